"""data.py -- where images, factors, tasks and few-shot episodes come from.

    N          images; an image is (64, 64, 3), its values in [0, 1]
    factors    (N, 6) the index of each factor: floor hue, wall hue, object hue, scale, shape, orientation
    z (N, 6)   standardised factors, the ground-truth latents
    p (N,)     probability of each image; rho its correlation, alpha the noise on z
    G, n, K    image sets per step, images per set, tasks per set

3D Shapes has 480,000 images but only 480 geometries (scale x shape x orientation). For a given geometry
an image is linear in its colours, so five maps of each geometry hold the whole data set:

    image = clip( m_sky SKY + m_floor C_floor + m_wall C_wall + m_object C_object + m_white WHITE )

The maps are ray-cast once, in about a second; any image is then one small product, on whatever device.

[L23] Lachapelle et al., ICML 2023, arXiv 2211.14666.   [3DS] Burgess and Kim, 3D Shapes dataset, 2018.
"""
import colorsys
import contextlib
import functools
import hashlib
import os
import pickle
import shutil
import tempfile
from pathlib import Path

import array_api_compat.numpy
import numpy as np
from array_api_compat import is_numpy_namespace

# --------------------------------------------------------------------------------------------- the factors

FACTORS = ("floor", "wall", "object", "scale", "shape", "orientation")
LEVELS = (10, 10, 10, 8, 4, 15)                                             # the last factor runs fastest
N_IMAGES, N_GEOMETRIES = 480_000, 480
HUES = np.arange(10) / 10                                                   # HSV hue at full saturation and value
SCALES = np.linspace(0.75, 1.25, 8)
SHAPES = ("cube", "cylinder", "sphere", "capsule")
ORIENTATIONS = np.linspace(-30, 30, 15)                                     # degrees
LABEL_VALUES = (HUES, HUES, HUES, SCALES, np.arange(4.0), ORIENTATIONS)     # what the official file stores

# ---------------------------------------------------------------- the scene, fitted to real images of [3DS]
# World: x right, y into the room, z up; the object stands on the floor z = 0 at the origin. Room and lamps
# stay fixed; the camera orbits the object at height CAMERA_HEIGHT, looking horizontally at the z axis.

FOCAL = 2.1518                                                              # 1 / tan(half the field of view)
CAMERA_DISTANCE, CAMERA_HEIGHT, CAMERA_PITCH = 3.8205, 1.1458, 0.00059      # pitch: radians, downwards
ROOM_LEFT, ROOM_RIGHT, ROOM_BACK, ROOM_HEIGHT = -5.3162, 5.3162, 5.3206, 3.0365
CUBE_HALF = 0.5337                                                          # half sizes and radii at scale 1
CYLINDER_RADIUS, CYLINDER_HALF = 0.5686, 0.5717
SPHERE_RADIUS = 0.6458
CAPSULE_RADIUS, CAPSULE_HALF = 0.4929, 0.4964
SHADOW_LAMP = np.array([-1.959, 0.552, 10.268])                             # casts the object's shadow on the floor
OBJECT_LAMP = np.array([-3.230, 1.650, 13.790])                             # lights the object
SHADOW_REACH = 1.7                                                          # no shadow falls further from the origin

SKY, WHITE = np.array([153, 226, 249.0]), np.array([255, 255, 255.0])       # colours in 0..255
PALETTE = 255 * np.array([colorsys.hsv_to_rgb(h, 1, 1) for h in HUES])
# Light on the floor: sum of c x^a y^b, with x and y in units of 5, for a = 0..4, b = 0..4-a.
FLOOR_LIGHT = (1.075, 0.1237, -0.5866, 0.0957, 0.0252, -0.5932, 0.0489, 0.3085, -0.066, -0.3118,
               -0.2189, 0.3026, 0.2958, -0.1009, 0.0695)
FLOOR_SHADOW = 0.3392
# Light on a wall: the coefficients of 1, headlight N.v, u, z, uu, uz, zz (u along the wall / 5, z / 2.8).
BACK_LIGHT = (0.549, 0.4994, -0.0565, -0.0374, -0.0369, -0.0078, 0.0085)
LEFT_LIGHT = (0.5663, 0.5923, -0.1232, -0.0116, -0.005, -0.0371, 0.0157)
RIGHT_LIGHT = (0.4586, 0.5932, -0.0871, -0.0867, 0.0285, 0.0263, 0.0259)
OBJECT_AMBIENT, OBJECT_HEADLIGHT, OBJECT_LAMPLIGHT = 0.3435, 0.6057, 0.5842
GLOSS, GLOSS_FROM = 0.1183, 0.0164                                          # white, wherever N.l > GLOSS_FROM
MESH_SLICES, MESH_STACKS = 28, 16                                           # the original lit vertices of this mesh

RAYS, SIDE = 192, 64                                                        # rays per side, reduced to pixels by Lanczos-3
SKY_MAP, FLOOR_MAP, WALL_MAP, OBJECT_MAP, WHITE_MAP = range(5)


@functools.cache
def lanczos():
    """Lanczos-3 reduction from RAYS to SIDE samples, a (64, 192) matrix."""
    ratio = RAYS / SIDE
    x = (np.arange(RAYS)[None, :] + 0.5) / ratio - (np.arange(SIDE)[:, None] + 0.5)
    kernel = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)
    return kernel / kernel.sum(axis=1, keepdims=True)


def camera(degrees):
    """Position (3,), unit direction to the camera (3,) and unit ray directions (192*192, 3), row by row."""
    u = (np.arange(RAYS) + 0.5) / RAYS * 2 - 1
    X, Y = (a.ravel() / FOCAL for a in np.meshgrid(u, -u))
    c, s = np.cos(CAMERA_PITCH), np.sin(CAMERA_PITCH)
    right, ahead, up = X, c + Y * s, Y * c - s
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    d = np.stack([c * right - s * ahead, s * right + c * ahead, up], axis=-1)
    back = np.array([s, -c, 0.0])
    return CAMERA_DISTANCE * back + [0, 0, CAMERA_HEIGHT], back, d / np.linalg.norm(d, axis=1, keepdims=True)


def cast_room(o, back, d):
    """The empty room along rays d: distance to its surfaces (R,), maps (5, R), floor near enough for a shadow (R,)."""
    with np.errstate(divide="ignore"):
        t = np.stack([np.where(d[:, 2] < 0, -o[2] / d[:, 2], np.inf),                       # 0 floor
                      np.where(d[:, 1] > 0, (ROOM_BACK - o[1]) / d[:, 1], np.inf),          # 1 back wall
                      np.where(d[:, 0] < 0, (ROOM_LEFT - o[0]) / d[:, 0], np.inf),          # 2 left wall
                      np.where(d[:, 0] > 0, (ROOM_RIGHT - o[0]) / d[:, 0], np.inf)])        # 3 right wall
    surface, t = t.argmin(axis=0), t.min(axis=0)
    P = o + t[:, None] * d
    x, y, z = P[:, 0] / 5, P[:, 1] / 5, P[:, 2] / 2.8
    sky = (surface > 0) & (P[:, 2] > ROOM_HEIGHT)
    maps = np.zeros((5, len(d)))
    maps[SKY_MAP] = sky
    powers = [(a, b) for a in range(5) for b in range(5 - a)]
    on = surface == 0
    maps[FLOOR_MAP, on] = sum(c * x[on] ** a * y[on] ** b for c, (a, b) in zip(FLOOR_LIGHT, powers))
    for wall, headlight, u, c in ((1, -back[1], x, BACK_LIGHT), (2, back[0], y, LEFT_LIGHT), (3, -back[0], y, RIGHT_LIGHT)):
        on = (surface == wall) & ~sky
        U, Z = u[on], z[on]
        maps[WALL_MAP, on] = c[0] + c[1] * headlight + c[2] * U + c[3] * Z + c[4] * U * U + c[5] * U * Z + c[6] * Z * Z
    return t, maps, (surface == 0) & (P[:, 0] ** 2 + P[:, 1] ** 2 < SHADOW_REACH ** 2)


def hit_sphere(o, d, r, z):
    """Distance along unit rays to the sphere of radius r about (0, 0, z); inf where they miss."""
    oc = o - [0, 0, z]
    b = np.vecdot(d, oc)
    q = b * b - np.vecdot(oc, oc) + r * r
    return np.where(q > 0, -b - np.sqrt(np.maximum(q, 0)), np.inf)


def hit_box(o, d, a):
    """Distance to the box |x| <= a, |y| <= a, 0 <= z <= 2a."""
    t1, t2 = ([-a, -a, 0] - o) / d, ([a, a, 2 * a] - o) / d
    near, far = np.minimum(t1, t2).max(axis=1), np.maximum(t1, t2).min(axis=1)
    return np.where(near < far, near, np.inf)


def hit_tube(o, d, r, low, high):
    """Distance to the side of the upright cylinder of radius r between two heights."""
    A, b = d[:, 0] ** 2 + d[:, 1] ** 2, d[:, 0] * o[..., 0] + d[:, 1] * o[..., 1]
    q = b * b - A * (o[..., 0] ** 2 + o[..., 1] ** 2 - r * r)
    t = (-b - np.sqrt(np.maximum(q, 0))) / A
    z = o[..., 2] + t * d[:, 2]
    return np.where((q > 0) & (z >= low) & (z <= high), t, np.inf)


def hit_disc(o, d, r, z):
    """Distance to the level disc of radius r about (0, 0, z)."""
    t = (z - o[..., 2]) / d[:, 2]
    P = o[..., :2] + t[:, None] * d[:, :2]
    return np.where(P[:, 0] ** 2 + P[:, 1] ** 2 < r * r, t, np.inf)


def hit_object(shape, s, o, d):
    """Distance along rays from o ((3,) or (R, 3)) to the object at scale s; inf where they miss."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if shape == "cube":
            t = hit_box(o, d, CUBE_HALF * s)
        elif shape == "sphere":
            t = hit_sphere(o, d, SPHERE_RADIUS * s, SPHERE_RADIUS * s)
        elif shape == "cylinder":
            r, top = CYLINDER_RADIUS * s, 2 * CYLINDER_HALF * s
            t = np.minimum(hit_tube(o, d, r, 0, top), hit_disc(o, d, r, top))
        else:
            r, low, high = CAPSULE_RADIUS * s, CAPSULE_RADIUS * s, (CAPSULE_RADIUS + 2 * CAPSULE_HALF) * s
            t = np.minimum(hit_tube(o, d, r, low, high), np.minimum(hit_sphere(o, d, r, low), hit_sphere(o, d, r, high)))
    return np.where(t > 1e-6, t, np.inf)


def normals(shape, s, P):
    """Outward unit normals at points P (R, 3) of the object's surface."""
    if shape == "cube":
        Q = (P - [0, 0, CUBE_HALF * s]) / (CUBE_HALF * s)
        axis = np.abs(Q).argmax(axis=1)
        return np.eye(3)[axis] * np.sign(np.take_along_axis(Q, axis[:, None], axis=1))
    if shape == "cylinder":
        top = P[:, 2] > 2 * CYLINDER_HALF * s - 1e-9
        return np.where(top[:, None], [0.0, 0, 1], P * [1, 1, 0] / (CYLINDER_RADIUS * s))
    if shape == "sphere":
        return (P - [0, 0, SPHERE_RADIUS * s]) / (SPHERE_RADIUS * s)
    z = np.clip(P[:, 2], CAPSULE_RADIUS * s, (CAPSULE_RADIUS + 2 * CAPSULE_HALF) * s)       # nearest point of the axis
    return (P - np.stack([0 * z, 0 * z, z], axis=1)) / (CAPSULE_RADIUS * s)


def light_object(shape, N, back, lamp):
    """Light on the object and its white gloss, each (R,), at unit normals N (R, 3); round surfaces are lit at the vertices of a
    latitude-longitude mesh and interpolated, as the original was."""
    def light(N):
        Nv, Nl = N @ back, N @ lamp
        diffuse = OBJECT_AMBIENT + OBJECT_HEADLIGHT * np.maximum(Nv, 0) + OBJECT_LAMPLIGHT * np.maximum(Nl, 0)
        return np.stack([diffuse, GLOSS * (Nl > GLOSS_FROM)], axis=-1)                      # (..., 2)

    if shape == "cube":
        return light(N).T
    i, j = np.meshgrid(np.arange(MESH_SLICES + 1), np.arange(MESH_STACKS + 2), indexing="ij")
    azimuth, polar = i * 2 * np.pi / MESH_SLICES, j * np.pi / MESH_STACKS
    vertex = np.stack([np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)], axis=-1)
    at = light(vertex)                                                                      # (29, 18, 2)
    a = np.arctan2(N[:, 1], N[:, 0]) / (2 * np.pi) * MESH_SLICES % MESH_SLICES
    b = np.arccos(np.clip(N[:, 2], -1, 1)) / np.pi * MESH_STACKS
    i, j = np.floor(a + 1e-9).astype(int) % MESH_SLICES, np.floor(b).astype(int)
    fa, fb = (a - np.floor(a + 1e-9))[:, None], (b - j)[:, None]
    lit = (1 - fb) * ((1 - fa) * at[i, j] + fa * at[i + 1, j]) + fb * ((1 - fa) * at[i, j + 1] + fa * at[i + 1, j + 1])
    return lit.T


def cast_object(shape, s, o, back, d, room):
    """The object at scale s and its shadow, drawn over the room: rays changed (changed,) and their new maps (5, changed)."""
    t_room, maps, shadowed = room
    to_centre = np.array([0, 0, 0.95 * s]) - o                              # a ball of radius 1.05 s there holds any object
    rays = np.flatnonzero(shadowed | (to_centre @ to_centre - (d @ to_centre) ** 2 < (1.05 * s) ** 2))
    t, new = hit_object(shape, s, o, d[rays]), maps[:, rays]
    visible = t < t_room[rays]

    floor = np.flatnonzero(~visible & shadowed[rays])
    P = o + t_room[rays[floor], None] * d[rays[floor]]
    to_lamp = SHADOW_LAMP - P
    shade = np.isfinite(hit_object(shape, s, P, to_lamp / np.linalg.norm(to_lamp, axis=1, keepdims=True)))
    new[FLOOR_MAP, floor[shade]] = FLOOR_SHADOW

    P = o + t[visible, None] * d[rays[visible]]
    lamp = OBJECT_LAMP - [0, 0, 0.6 * s]
    new[:, visible] = 0
    new[OBJECT_MAP, visible], new[WHITE_MAP, visible] = light_object(shape, normals(shape, s, P), back, lamp / np.linalg.norm(lamp))
    return rays, new


@functools.cache
def geometry_maps():
    """The five maps of all 480 geometries, (480, 4096, 5) float32, 39 MB; geometry = (scale, shape, orientation)."""
    D = lanczos()
    out = np.empty((len(SCALES), len(SHAPES), len(ORIENTATIONS), SIDE, SIDE, 5), np.float32)
    for k, degrees in enumerate(ORIENTATIONS):
        o, back, d = camera(degrees)
        room = _, maps, _ = cast_room(o, back, d)
        empty = D @ maps.reshape(5, RAYS, RAYS) @ D.T                                       # (5, 64, 64)
        for i, s in enumerate(SCALES):
            for j, shape in enumerate(SHAPES):
                rays, new = cast_object(shape, s, o, back, d, room)
                change = np.zeros((5, RAYS, RAYS))                                          # zero outside a small window:
                change.reshape(5, -1)[:, rays] = new - maps[:, rays]                        # reduce the window only
                rows, cols = (slice(a.min(), a.max() + 1) for a in np.divmod(rays, RAYS))
                out[i, j, k] = np.moveaxis(empty + D[:, rows] @ change[:, rows, cols] @ D[:, cols].T, 0, -1)
    return out.reshape(N_GEOMETRIES, SIDE * SIDE, 5)


def compose(geometry, hues, xp=array_api_compat.numpy, device=None):
    """Images (N, 64, 64, 3) float32 in [0, 1], of 256 levels as in the file, from geometry (N,) and three hues (N, 3), on xp and
    device; only the small colour matrices travel there."""
    C = np.empty((len(geometry), 5, 3), np.float32)                         # sky, floor, wall, object, white
    C[:, SKY_MAP], C[:, FLOOR_MAP:OBJECT_MAP + 1], C[:, WHITE_MAP] = SKY, PALETTE[hues], WHITE
    maps, C, geometry = maps_on(xp, device), xp.asarray(C, device=device), xp.asarray(geometry, device=device)
    N = geometry.shape[0]
    step = 16 if is_numpy_namespace(xp) else N                              # 16 images at a time stay in a CPU's cache
    x = xp.empty((N, SIDE, SIDE, 3), dtype=xp.float32, device=device)
    for i in range(0, N, step):
        light = xp.matmul(xp.take(maps, geometry[i:i + step], axis=0), C[i:i + step, ...])
        x[i:i + step, ...] = xp.reshape(xp.clip(xp.round(light), 0, 255) / 255, (-1, SIDE, SIDE, 3))
    return x


_maps = {}


def maps_on(xp, device):
    """geometry_maps, sent once to a device."""
    name = xp.__name__, str(device)                                         # a CuPy device cannot be hashed
    if name not in _maps:
        _maps[name] = xp.asarray(geometry_maps(), device=device)
    return _maps[name]


# ------------------------------------------------------------------------------------------- the data set


class FactorGrid:
    """Images of every combination of factors: .factors (N, d) indices, named .names, with .levels values; the last factor runs fastest."""

    def __init__(self):
        self.factors = np.stack(np.unravel_index(np.arange(np.prod(self.levels)), self.levels), axis=1).astype(np.int8)

    def __len__(self):
        return len(self.factors)

    def fingerprint(self):
        """Names the content: factors and a few images."""
        some = np.linspace(0, len(self) - 1, 16).astype(int)
        return hashlib.sha256(self.factors.tobytes() + np.asarray(self.images(some)).tobytes()).hexdigest()[:10]


class Shapes3D(FactorGrid):
    """3D Shapes: rendered when no path is given, else read from the official HDF5 file (or one with fewer rows).

    .factors (N, 6) int and .images(index, xp, device) -> (len(index), 64, 64, 3) float32 in [0, 1].
    A file's images are unpacked once into PATH.images.npy, for fast random access.
    Raises ValueError, naming the file, where it is damaged or holds other arrays.
    """

    names, levels = FACTORS, LEVELS

    def __init__(self, path=None):
        super().__init__()
        self.path = None if path is None else Path(path)
        if path is not None:
            self.stored, self.factors = open_hdf5(self.path)

    def images(self, index, xp=array_api_compat.numpy, device=None):
        if self.path is not None:
            return xp.astype(xp.asarray(self.stored[index], device=device), xp.float32) / 255
        f = self.factors[index].astype(np.int64)
        return compose(np.ravel_multi_index(tuple(f[:, 3:].T), LEVELS[3:]), f[:, :3], xp, device)


def open_hdf5(path):
    """Images (N, 64, 64, 3) uint8, left on disk, and factors (N, 6) of an HDF5 file in the official layout."""
    import h5py
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with h5py.File(path) as file:
            found = {name: (getattr(file.get(name), "shape", None), str(getattr(file.get(name), "dtype", None)))
                     for name in ("images", "labels")}
            N = (found["images"][0] or (0,))[0]
            if N == 0 or found != {"images": ((N, SIDE, SIDE, 3), "uint8"), "labels": ((N, 6), "float64")}:
                raise ValueError(f"{path}: expected images (N, 64, 64, 3) uint8 and labels (N, 6) float64, found {found}")
            factors = factors_of_labels(path, file["labels"][:])
            images = file["images"]
            return unpack_images(path, images.shape, (images[rows].tobytes() for rows in row_blocks(images))), factors
    except OSError as error:
        raise ValueError(f"{path}: cannot be read or unpacked ({str(error).splitlines()[0]})") from None


def factors_of_labels(path, labels):
    """The official label values (N, 6) as indices."""
    factors = np.stack([np.abs(labels[:, k, None] - values).argmin(axis=1) for k, values in enumerate(LABEL_VALUES)], axis=1)
    stored = np.stack([values[factors[:, k]] for k, values in enumerate(LABEL_VALUES)], axis=1)
    bad = ~(np.abs(labels - stored) < 1e-3)
    if bad.any():
        row, k = np.argwhere(bad)[0]
        raise ValueError(f"{path}: labels[{row}] has {FACTORS[k]} = {labels[row, k]}, which is no value of 3D Shapes")
    return factors.astype(np.int8)


class StoredImages:
    """Images (N, 64, 64, 3) uint8 of an .npy file, read row by row: memory-mapped, every row ever read would count as memory."""

    def __init__(self, path):
        self.file = open(path, "rb")
        np.lib.format.read_magic(self.file)
        self.shape, _, self.dtype = np.lib.format.read_array_header_1_0(self.file)
        self.start, self.row = self.file.tell(), int(np.prod(self.shape[1:]))
        if self.dtype != np.uint8 or path.stat().st_size != self.start + self.shape[0] * self.row:
            raise ValueError(f"{path}: not the unpacked images")

    def __getitem__(self, index):
        rows = [os.pread(self.file.fileno(), self.row, self.start + int(i) * self.row) for i in index]
        return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), *self.shape[1:])


def unpack_images(path, shape, blocks):
    """images from PATH.images.npy, which is written first, from blocks of bytes, where it is missing, older, or of another shape."""
    cache = path.with_name(path.name + ".images.npy")
    if not os.access(path.parent, os.W_OK):
        name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
        cache = Path(tempfile.gettempdir()) / f"{path.name}.{name}.images.npy"
    if cache.is_file() and cache.stat().st_mtime >= path.stat().st_mtime:
        with contextlib.suppress(ValueError):                               # a cache that is damaged is written again
            stored = StoredImages(cache)
            if stored.shape == shape:
                return stored
    free = shutil.disk_usage(cache.parent).free
    if free < 1.02 * np.prod(shape):
        raise ValueError(f"{cache}: {np.prod(shape) / 1e9:.1f} GB are needed to unpack the images, {free / 1e9:.1f} are free")
    new = cache.with_name(f"{cache.name}.{os.getpid()}.new")
    try:
        with open(new, "wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for block in progress(blocks, f"unpacking {path.name}"):
                file.write(block)
        os.replace(new, cache)
    finally:
        new.unlink(missing_ok=True)
    return StoredImages(cache)


def row_blocks(images, rows=2048):
    """Slices of rows that read every chunk of an HDF5 data set once."""
    chunk = images.chunks[0] if images.chunks else 1
    step = -(-rows // chunk) * chunk
    return [slice(i, i + step) for i in range(0, len(images), step)]


def progress(steps, what, total=None):
    """A progress bar on a terminal, silence elsewhere."""
    from tqdm import tqdm
    return tqdm(steps, desc=what, total=total, disable=None)


def write_hdf5(path, limit=None, seed=0):
    """The rendered data set in the official HDF5 layout; with a limit, that many rows spread at random, in file order."""
    import h5py
    path, shapes = Path(path), Shapes3D()
    if limit is not None and not 1 <= limit <= len(shapes):
        raise ValueError(f"--limit: found {limit}, expected 1 to {len(shapes)}")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: no such folder {path.parent}")
    index = np.arange(len(shapes)) if limit is None else np.sort(np.random.default_rng(seed).choice(len(shapes), limit, replace=False))
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        with h5py.File(new, "w") as file:
            chunk = min(512, len(index))                                    # neighbouring images are alike: long chunks compress
            images = file.create_dataset("images", (len(index), SIDE, SIDE, 3), np.uint8, compression="gzip", compression_opts=4,
                                         chunks=(chunk, 16, 16, 3))
            file["labels"] = np.stack([v[shapes.factors[index, k]] for k, v in enumerate(LABEL_VALUES)], axis=1)
            for rows in progress(row_blocks(images, 512), f"writing {path.name}"):
                images[rows] = np.round(shapes.images(index[rows]) * 255).astype(np.uint8)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
    return len(index)


# ------------------------------------------------------------------------------------------------- dSprites
# Rendered after the published description, with sizes of our choice, for no original was at hand: shapes of nearly equal area, 4.3 % of all
# pixels white as published, a position one pixel from the next. The official file's first factor, colour, has one value and is left out.


class DSprites(FactorGrid):
    """dSprites, as Shapes3D: rendered when no path is given, else read from the official npz (imgs, latents_classes; fewer rows will do).
    Its binary images come as three equal channels, so that one encoder reads both."""
    names, levels = ("shape", "scale", "orientation", "x", "y"), (3, 6, 40, 32, 32)         # square, ellipse, heart

    def __init__(self, path=None):
        super().__init__()
        self.path = None if path is None else Path(path)
        if path is not None:
            self.stored, self.factors = open_dsprites(self.path, self.levels)

    def images(self, index, xp=array_api_compat.numpy, device=None):
        if self.path is not None:
            x = self.stored[index]
        else:
            f = self.factors[index].astype(int)
            drawn, corners = sprites()[np.ravel_multi_index(f[:, :3].T, self.levels[:3])], 31 - f[:, 3:]
            x = np.stack([sprite[y:y + SIDE, x:x + SIDE] for sprite, (x, y) in zip(drawn, corners)])
        return xp.astype(xp.repeat(xp.asarray(x, device=device)[..., None], 3, axis=3), xp.float32)


@functools.cache
def sprites():
    """Each shape, scale and orientation in the middle of a canvas that holds all windows, (720, 95, 95) of 0 and 1."""
    Y, X = np.mgrid[-47:48, -47:48]
    out = []
    for shape, scale, turn in np.ndindex(3, 6, 40):
        s, a = np.linspace(0.5, 1, 6)[scale], np.linspace(0, 2 * np.pi, 40)[turn]           # the first and the last are alike,
        u, v = (X * np.cos(a) + Y * np.sin(a)) / s, (Y * np.cos(a) - X * np.sin(a)) / s     # as in the official file
        inside = (np.maximum(np.abs(u), np.abs(v)) < 8.6, (u / 13) ** 2 + (v / 7.2) ** 2 < 1,
                  ((u / 9) ** 2 + (v / 9) ** 2 - 1) ** 3 < -(u / 9) ** 2 * (v / 9) ** 3)[shape]
        out.append(inside)
    return np.stack(out).astype(np.uint8)


def open_dsprites(path, levels):
    """Images (N, 64, 64) uint8, left on disk, and factors (N, 5) of an npz file in the official layout."""
    import zipfile
    import zlib
    try:
        with zipfile.ZipFile(path) as file, file.open("latents_classes.npy") as classes, file.open("imgs.npy") as images:
            factors = np.lib.format.read_array(classes, allow_pickle=False)
            np.lib.format.read_magic(images)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(images)
            if shape != (len(factors), SIDE, SIDE) or fortran or dtype != np.uint8 or factors.shape[1:] != (6,) or len(factors) == 0 \
                    or (factors < 0).any() or (factors >= (1, *levels)).any():
                raise ValueError(f"found imgs {shape} {dtype} and latents_classes {factors.shape}, or classes beyond {(1, *levels)}")
            return unpack_images(path, shape, iter(lambda: images.read(1 << 22), b"")), factors[:, 1:].astype(np.int8)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: expected imgs (N, 64, 64) uint8 and latents_classes (N, 6) ({error})") from None


# ---------------------------------------------------------------------------------------- latents and tasks


def latents(shapes, alpha=1.0, rho=0.9, seed=0):
    """Ground-truth latents z (N, d) and the probability p (N,) of each image.                       [L23, App. D.2.1]
    Each factor's index plus alpha times a uniform noise on [-1/2, 1/2], drawn once per image, standardised;
    p is the density of a Gaussian of unit variances and correlations rho at z, normalised over the images.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: found {alpha}, expected a number from 0 to 1")
    if not 0 <= rho < 1:
        raise ValueError(f"rho: found {rho}, expected a number from 0 up to, but not including, 1")
    z = shapes.factors + alpha * (np.random.default_rng(seed).random(shapes.factors.shape) - 0.5)
    deviation = z.std(axis=0)
    z = (z - z.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    z[:, shapes.factors.min(axis=0) == shapes.factors.max(axis=0)] = 0                      # no image shows a constant factor
    Sigma = (1 - rho) * np.eye(z.shape[1]) + rho
    log_p = -0.5 * np.vecdot(z @ np.linalg.inv(Sigma), z)
    p = np.exp(log_p - log_p.max())
    return z, p / p.sum()


TASKS = "bernoulli-gauss, laplace, gauss, sphere, blocks-B, fixed-K, finite-K"


def sample_tasks(rng, T, d, kind="bernoulli-gauss"):
    """Coefficients w (T, d) of T tasks.                                                           [L23, App. D.2.1, D.3]

    bernoulli-gauss  each entry is N(0, 1) with probability 1/2, else 0; an empty support is given one entry
    laplace, gauss   dense, independent entries of variance 1
    sphere           the support of bernoulli-gauss, the direction uniform on the unit sphere of that support
    blocks-B         whole blocks of B consecutive entries are on or off: violates Assumption 3.6
    fixed-K          exactly K entries are on
    finite-K         one of K coefficient vectors fixed beforehand: violates Assumption 3.5
    """
    name, _, number = kind.rpartition("-")
    size = int(number) if number.isdigit() else 0
    if kind in ("laplace", "gauss"):
        return rng.laplace(scale=0.5 ** 0.5, size=(T, d)) if kind == "laplace" else rng.standard_normal((T, d))
    if name == "finite" and size:
        return sample_tasks(np.random.default_rng(size), size, d)[rng.integers(size, size=T)]
    if name == "fixed" and 1 <= size <= d:
        S = rng.random((T, d)).argsort(axis=1) < size
    elif name == "blocks" and 1 <= size <= d and d % size == 0:
        S = np.repeat(nonempty(rng, rng.random((T, d // size)) < 0.5), size, axis=1)
    elif kind in ("bernoulli-gauss", "sphere"):
        S = nonempty(rng, rng.random((T, d)) < 0.5)
    else:
        raise ValueError(f"--tasks: found {kind}, expected one of {TASKS} (B a divisor of {d}, K from 1)")
    w = rng.standard_normal((T, d)) * S
    return w / np.linalg.norm(w, axis=1, keepdims=True) if kind == "sphere" else w


def nonempty(rng, S):
    """Supports S (T, d) with an empty one given one entry."""
    S[np.arange(len(S)), rng.integers(S.shape[1], size=len(S))] |= ~S.any(axis=1)
    return S


class Tasks:
    """Batches of tasks on image sets: .sample(rng) -> index (G, n) of images, labels y (G, K, n) or (G, K, n, k).

    gaussian     y = w.z + noise, the noise with a standard deviation of 0.1 of the task's signal over the set
    categorical  y one-hot over k classes, of probabilities softmax(5 W z)
    K tasks share a set's images, each with its own w and noise; the paper has K = 1.              [L23, App. D.2.1]
    With k > 1 outputs a task's support is common to its outputs. shift > 0 draws each set's images from
    p(x | W) ~ p(x) exp(shift v.z), v the unit direction of the mean of |w|: p(x | W) may differ from task to task.
    """

    def __init__(self, z, p, sets=2, samples=50, per_set=16, kind="bernoulli-gauss", outputs=1, likelihood="gaussian", shift=0.0, noise=0.1):
        self.z, self.sets, self.samples, self.per_set, self.noise = z, sets, samples, per_set, noise
        self.kind, self.outputs, self.likelihood, self.shift = kind, outputs, likelihood, shift
        self.cumulative = np.cumsum(p)
        sample_tasks(np.random.default_rng(0), 1, z.shape[1], kind)                         # refuses an unknown kind now
        if likelihood == "categorical" and outputs < 2:
            raise ValueError(f"--outputs: found {outputs}, expected at least 2 classes")

    def sample(self, rng):
        w = self.sample_coefficients(rng)                                                   # (G, K, k, d)
        index = self.sample_images(rng, w)                                                  # (G, n)
        y = np.moveaxis(w @ np.swapaxes(self.z[index], 1, 2)[:, None], 3, 2)                # (G, K, n, k)
        if self.likelihood == "categorical":                                                # Gumbel's way to draw a class
            return index, np.eye(self.outputs)[(5 * y + rng.gumbel(size=y.shape)).argmax(axis=3)]
        y = y + self.noise * y.std(axis=2, keepdims=True) * rng.standard_normal(y.shape)
        return index, y if self.outputs > 1 else y[..., 0]

    def sample_coefficients(self, rng):
        T = self.sets * self.per_set
        w = sample_tasks(rng, T, self.z.shape[1], self.kind)[:, None, :]
        if self.outputs > 1:
            w = np.where(w != 0, rng.standard_normal((T, self.outputs, w.shape[2])), 0)
        return w.reshape(self.sets, self.per_set, self.outputs, -1)

    def sample_images(self, rng, w):
        draws = self.samples * (20 if self.shift else 1)
        index = np.searchsorted(self.cumulative, rng.random((self.sets, draws)) * self.cumulative[-1], side="right")
        if not self.shift:
            return index
        v = np.abs(w).mean(axis=(1, 2))                                                     # of 20 n drawn from p, keep n
        tilt = self.shift * np.vecdot(self.z[index], (v / np.linalg.norm(v, axis=1, keepdims=True))[:, None, :])
        keep = (tilt + rng.gumbel(size=tilt.shape)).argsort(axis=1)[:, -self.samples:]
        return np.take_along_axis(index, keep, axis=1)


def gaussian_task(rng, n, m=100, active=5, covariance="ar", noise=0.04):
    """Features z (n, m), labels y (n,) and w of one sparse task.                                   [L23, App. D.1, Fig. 1]
    z ~ N(0, Sigma), Sigma_ij = 0.9^|i-j| ("ar") or I ("identity"); w has `active` entries N(0, 1); y = w.z + N(0, noise).
    """
    Sigma = 0.9 ** np.abs(np.subtract.outer(np.arange(m), np.arange(m))) if covariance == "ar" else np.eye(m)
    z = rng.standard_normal((n, m)) @ np.linalg.cholesky(Sigma).T
    w = np.zeros(m)
    w[rng.choice(m, active, replace=False)] = rng.standard_normal(active)
    return z, z @ w + noise ** 0.5 * rng.standard_normal(n), w


class BinaryTasks:
    """`count` different binary tasks on factors (N, d): y = 1 where each of k factors lies on its side of a threshold.   [F23]
    Under p (N,) 2 to 98 % of a task's images are positive; a sample's classes are rebalanced, half of each."""

    def __init__(self, factors, p, k, count, seed=0):
        levels, rng = factors.max(axis=0).astype(int) + 1, np.random.default_rng(seed)
        varying = np.flatnonzero(levels > 1)
        if not 1 <= k <= len(varying):
            raise ValueError(f"--factors: found {k}, expected 1 to {len(varying)}")
        self.factors, self.cumulative, found = factors, np.cumsum(p), {}
        seen = self.draw(rng, 2000)
        for _ in range(200 * count):
            on = np.sort(rng.choice(varying, k, replace=False))
            task = tuple(on), tuple(rng.integers(levels[on] - 1)), tuple((rng.random(k) < 0.5) | (k == 1))      # factors, thresholds, sides
            if len(found) < count and 0.02 <= self.labels(task, seen).mean() <= 0.98:
                found[task] = len(found)
        if len(found) < count:
            raise ValueError(f"--pool, --test-tasks: {count} tasks wanted, only {len(found)} different ones of {k} factors found")
        self.tasks = list(found)

    def draw(self, rng, n):
        return np.searchsorted(self.cumulative, rng.random(n) * self.cumulative[-1], side="right")

    def labels(self, task, index):
        on, threshold, side = map(np.asarray, task)
        return ((self.factors[index][:, on] > threshold) == side).all(axis=1)

    def sample(self, rng, tasks, shot, query):
        """index (T, n) and Y (T, n, 1), of `shot` support images of each class, first, and `query` others, for tasks (T,)."""
        index, Y = [], []
        for t in tasks:
            drawn = self.draw(rng, 100 * (shot + query))
            y = self.labels(self.tasks[t], drawn)
            parts = [drawn[y == flag][np.sort(np.unique(drawn[y == flag], return_index=True)[1])] for flag in (False, True)]
            if not min(map(len, parts)):
                raise ValueError(f"task {self.tasks[t]} found images of one class only")
            rows = np.stack([np.resize(part, shot + query) for part in parts])              # as drawn, none twice unless there are too few
            for out, a in zip((index, Y), support_first(rows, shot)):
                out.append(a)
        return np.stack(index), np.stack(Y)[..., 1:]


def load_features(path):
    """Precomputed features: an npz file with x (N, d) real, y (N,) classes, and domain (N,), or group (N,) and split (N,), whose rows
    named "test" are held out  ->  x float32, y and domain or group from 0 on, the names of the latter, test (N,) (of domains: none).
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            kind = "domain" if "domain" in file else "group"
            x, y, place, *split = (file[name] for name in ("x", "y", kind) + (("split",) if kind == "group" else ()))
            if kind == "domain" and ("group" in file or "split" in file):
                raise ValueError("beside domain, no group and no split")
    except Exception as error:
        raise ValueError(f"{path}: expected an npz file with x, y and domain, or group and split ({error})") from None
    test = split[0].astype(str) == "test" if split else np.zeros(len(x), bool)
    (_, y), (names, place) = (np.unique(a, return_inverse=True) for a in (y, place))
    if x.ndim != 2 or x.dtype.kind != "f" or {a.shape for a in (y, place, test)} != {x.shape[:1]} or not np.isfinite(x).all() \
            or y.max() < 1 or not (test.any() if kind == "group" else place.max() > 0):
        raise ValueError(f"{path}: expected finite x (N, d), y and {kind} (N,), two classes, and two domains or rows of split \"test\"; "
                         f"found {x.shape} {x.dtype}, {y.shape}, {place.shape}")
    return x.astype(np.float32), y, place, kind, names, test


class FeatureTasks:
    """Tasks of telling two classes apart, on rows (R,) of labels y (N,) and places (N,). A task's support comes from one domain and its query
    from the others, as far as the classes have them; or its support from all rows of the classes, its query evenly from their groups."""

    def __init__(self, y, place, kind, rows):
        self.kind = kind
        self.cells = {c: {e: rows[(y[rows] == c) & (place[rows] == e)] for e in np.unique(place[rows[y[rows] == c]])} for c in np.unique(y[rows])}
        if len(self.cells) < 2:
            raise ValueError(f"only {len(self.cells)} class is left to train on, expected at least 2")

    def sample(self, rng, T, shot, query):
        """index (T, n) and Y (T, n, 1) of `shot` support rows of each class, first, and `query` others, no row in both."""
        tasks = []
        for _ in range(T):
            pair, rows = [self.cells[c] for c in rng.choice(list(self.cells), 2, replace=False)], []
            homes = sorted(set(pair[0]) & set(pair[1])) if self.kind == "domain" else []
            home = rng.choice(homes) if homes else None
            for cells in pair:
                pool = cells[home] if homes else np.concatenate(list(cells.values()))
                support = rng.choice(pool, shot, replace=len(pool) <= shot)
                left = {e: np.setdiff1d(own, support) for e, own in cells.items()}
                others = [own for e, own in left.items() if e != home and len(own)] or [own for own in left.values() if len(own)] or [pool]
                rows.append(np.append(support, self.spread(rng, others, query)))
            tasks.append(support_first(np.stack(rows), shot))
        index, Y = (np.stack(a) for a in zip(*tasks))
        return index, Y[..., 1:]

    def spread(self, rng, cells, n):
        return np.array([rng.choice(cells[i]) for i in rng.integers(len(cells), size=n)])

    def rows(self, rng, n, even):
        """n rows: as they come, or evenly from every class and place."""
        cells = [rows for c in self.cells.values() for rows in c.values()]
        return self.spread(rng, cells if even else [np.concatenate(cells)], n)


# ----------------------------------------------------------------------------------------- few-shot episodes
# A source of episodes has sample(rng, split, way, shot, query) -> index (n,), Y (n, way) one-hot, the way * shot support
# samples first, and images(split, index, xp, device, rng=None) -> x (n, H, W, C) float32, augmented where rng is given (3D
# Shapes are not). splits: "train", "val", "test", whose classes are disjoint.


def support_first(index, shot):
    """index (way, shot + query) of each class's images -> index (n,) and Y (n, way), support samples first."""
    way = len(index)
    labels = np.broadcast_to(np.arange(way)[:, None], index.shape)
    index, labels = (np.concatenate([a[:, :shot].ravel(), a[:, shot:].ravel()]) for a in (index, labels))
    return index, np.eye(way)[labels]


class ImageEpisodes:
    """Episodes from labelled images: splits name -> (images (N, H, W, C) uint8, class names (N,)), augmented by shifts of up
    to `shift` pixels and, where colour is set, flips and jitter of brightness, contrast and saturation. [Lee et al. 2019]
    """

    def __init__(self, splits, shift=2, colour=False):
        self.x = {name: x for name, (x, _) in splits.items()}
        self.members = {name: [np.flatnonzero(labels == c) for c in np.unique(labels)] for name, (_, labels) in splits.items()}
        self.shift, self.colour, self.image_shape = shift, colour, self.x["train"].shape[1:]

    def sample(self, rng, split, way, shot, query):
        members = [m for m in self.members[split] if len(m) >= shot + query]
        if len(members) < way:
            raise ValueError(f"--way, --shot, --query: {way} classes with {shot} + {query} images each are needed, the {split} split has {len(members)}")
        picked = rng.choice(len(members), way, replace=False)
        return support_first(np.stack([rng.choice(members[c], shot + query, replace=False) for c in picked]), shot)

    def images(self, split, index, xp=array_api_compat.numpy, device=None, rng=None):
        x = self.x[split][index]
        if rng is not None:
            x = shifted(rng, x, self.shift)
            x = jittered(rng, x) if self.colour else x
        return xp.astype(xp.asarray(x, device=device), xp.float32) / 255


def refuse_shared(splits):
    """The splits, unless two of them share a class, by its name or by any of its images."""
    names = [(split, name) for split, (_, labels) in splits.items() for name in np.unique(labels)]
    hashes = [(split, h) for split, (x, _) in splits.items() for h in {hashlib.sha256(image).digest() for image in x}]
    for what, pairs in (("class", names), ("image", hashes)):
        if len({value for _, value in pairs}) < len(pairs):
            raise ValueError(f"two splits share a{'n' * (what == 'image')} {what}")
    return splits


def shifted(rng, x, pad):
    """Each image of (N, H, W, C) moved by up to `pad` pixels, its border repeated."""
    H, W = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="edge")
    return np.stack([image[a:a + H, b:b + W] for image, a, b in zip(padded, *rng.integers(2 * pad + 1, size=(2, len(x))))])


def jittered(rng, x, strength=0.4):
    """Half of the images mirrored; brightness, contrast and saturation scaled by 0.6 to 1.4 each, in this order (MetaOptNet: in a
    random order, and borders of zeros)."""
    x = np.where(rng.random(len(x))[:, None, None, None] < 0.5, x, x[:, :, ::-1]).astype(np.float32)
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, (3, len(x), 1, 1, 1)).astype(np.float32)
    x = np.clip(x * brightness, 0, 255)
    mean = x.mean(axis=(1, 2, 3), keepdims=True)
    x = np.clip(mean + contrast * (x - mean), 0, 255)
    grey = x.mean(axis=3, keepdims=True)
    return np.clip(grey + saturation * (x - grey), 0, 255).astype(np.uint8)


def glyphs(side=28):
    """Letters and digits of 16 fonts that matplotlib ships, split by script: Latin to train, Greek and digits to validate,
    Cyrillic to test. A class is a character, its images the fonts; characters of equal outlines are one class.
    """
    import unicodedata

    from matplotlib import ft2font, get_data_path
    folder = Path(get_data_path()) / "fonts" / "ttf"
    names = [f"DejaVu{family}{style}" for family, styles in (("Sans", ("", "-Bold", "-Oblique", "-BoldOblique")),
             ("SansMono", ("", "-Bold", "-Oblique", "-BoldOblique")), ("Serif", ("", "-Bold", "-Italic", "-BoldItalic"))) for style in styles]
    fonts = [ft2font.FT2Font(str(folder / f"{name}.ttf")) for name in (*names, "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta")]
    for font in fonts:
        font.set_size(0.75 * side, 72)
    common = sorted(set.intersection(*(set(font.get_charmap()) for font in fonts)))
    split_of = {"LATIN": "train", "GREEK": "val", "DIGIT": "val", "CYRILLIC": "test"}
    found, seen = {split: ([], []) for split in ("train", "val", "test")}, set()
    for script in split_of:
        for code in common:
            if unicodedata.name(chr(code), "").split(" ")[0] == script and unicodedata.category(chr(code)) in ("Lu", "Ll", "Nd"):
                images = [draw_glyph(font, code, side) for font in fonts]
                outlines = {image.tobytes() for image in images}
                if not outlines & seen:
                    seen |= outlines
                    found[split_of[script]][0].extend(images)
                    found[split_of[script]][1].extend([chr(code)] * len(images))
    return refuse_shared({split: (np.stack(x)[..., None], np.array(labels)) for split, (x, labels) in found.items()})


def draw_glyph(font, code, side):
    """A character in white on black, centred in (side, side) uint8."""
    font.set_text(chr(code))
    font.draw_glyphs_to_bitmap(antialiased=True)
    bitmap = np.asarray(font.get_image())
    ink = np.argwhere(bitmap)
    (top, left), (bottom, right) = ink.min(axis=0), ink.max(axis=0) + 1
    bitmap = bitmap[top:bottom, left:right][:side, :side]
    out = np.zeros((side, side), np.uint8)
    row, column = (side - bitmap.shape[0]) // 2, (side - bitmap.shape[1]) // 2
    out[row:row + bitmap.shape[0], column:column + bitmap.shape[1]] = bitmap
    return out


def omniglot(paths, side=28, seed=0):
    """Omniglot's zips as distributed, merged by alphabet and split by alphabet, 5 : 1 : 2; training characters turned by
    90, 180 and 270 degrees are classes of their own.                                    [Lake et al. 2015; Santoro et al. 2016]
    """
    import zipfile

    from PIL import Image
    alphabets = {}                                                          # alphabet -> character -> drawer -> image
    for path in paths:
        try:
            with zipfile.ZipFile(path) as file:
                for name in sorted(file.namelist()):
                    if name.endswith(".png"):
                        _, alphabet, character, drawer = name.split("/")
                        picture = Image.open(file.open(name)).convert("L").resize((side, side), Image.Resampling.BOX)
                        alphabets.setdefault(alphabet, {}).setdefault(character, {})[drawer] = 255 - np.asarray(picture)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: expected a zip of ALPHABET/CHARACTER/DRAWER.png as Omniglot's ({error})") from None
    names = np.random.default_rng(seed).permutation(sorted(alphabets))
    if len(names) < 3:
        raise ValueError(f"{', '.join(map(str, paths))}: at least 3 alphabets are needed to split by, found {len(names)}")
    train, val = max(1, round(len(names) * 5 / 8)), max(1, round(len(names) / 8))
    splits = {}
    for split, own in (("train", names[:train]), ("val", names[train:train + val]), ("test", names[train + val:])):
        images, labels = zip(*((image, f"{a}/{c}") for a in own for c, drawers in alphabets[a].items() for image in drawers.values()))
        x, labels = np.stack(images)[..., None], np.array(labels)
        if split == "train":
            turned = [np.rot90(x, k, axes=(1, 2)) for k in range(4)]
            x, labels = np.concatenate(turned), np.concatenate([np.char.add(labels, f"/{90 * k}") for k in range(4)])
        splits[split] = x, labels
    return refuse_shared(splits)


class ArraysOnly(pickle.Unpickler):
    """Unpickles dicts, lists, numbers, strings and NumPy arrays; anything else is refused before it can run."""
    ALLOWED = {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}

    def find_class(self, module, name):
        if (module, name) == ("_codecs", "encode"):                         # how Python 2's bytes are written in protocol 2
            return lambda text, encoding: text.encode("latin1")
        if (module, name) not in self.ALLOWED:
            raise ValueError(f"a pickle may hold arrays only, found {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def load_split(path):
    """data (N, H, W, 3) uint8 and labels (N,) of one of MetaOptNet's pickles; for `NAME_labels.pkl`, data from NAME_images.npz."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            content = ArraysOnly(file, encoding="latin1").load()
        labels = np.asarray(content["labels"])
        x = np.load(str(path).replace("_labels.pkl", "_images.npz"))["images"] if path.name.endswith("_labels.pkl") else np.asarray(content["data"])
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename}: no such file") from None
    except Exception as error:
        raise ValueError(f"{path}: not a pickle with data and labels ({error})") from None
    if x.ndim != 4 or x.shape[3] != 3 or x.dtype != np.uint8 or labels.shape != (len(x),):
        raise ValueError(f"{path}: expected data (N, H, W, 3) uint8 and labels (N,), found {x.shape} {x.dtype} and {labels.shape}")
    return x, labels


def load_splits(folder):
    """The three splits in a folder of MetaOptNet's files: miniImageNet, CIFAR-FS and FC100 as pickles, tieredImageNet as npz and pkl."""
    patterns = {"train": ("*_phase_train.pickle", "*_train.pickle", "train_labels.pkl"), "val": ("*_val.pickle", "val_labels.pkl"),
                "test": ("*_test.pickle", "test_labels.pkl")}
    splits = {}
    for split, globs in patterns.items():
        files = [path for pattern in globs for path in sorted(Path(folder).glob(pattern)) if split == "train" or "_train_phase_" not in path.name]
        if not files:
            raise ValueError(f"{folder}: no {split} split, expected a file like {' or '.join(globs)}")
        x, labels = load_split(files[0])
        splits[split] = x, np.char.add(f"{split}/", labels.astype(str))     # labels count from 0 in each file
    return splits


class ShapesEpisodes:
    """Episodes of 3D Shapes whose classes are sparse linear functions of the standardised factors z, what [L23] assumes of its tasks:
    argmax_l W_l.z, W (way, 6) Gaussian on one to three factors. Training, validation and test have 70, 10 and 20 % of the images."""

    def __init__(self, shapes, seed=0):
        self.shapes, (self.z, _), self.image_shape = shapes, latents(shapes, alpha=0.0, rho=0.0), (SIDE, SIDE, 3)
        order = np.random.default_rng(seed).permutation(len(shapes))
        parts = np.split(order, [7 * len(order) // 10, 8 * len(order) // 10])
        self.members = dict(zip(("train", "val", "test"), parts))

    def sample(self, rng, split, way, shot, query):
        for _ in range(100):                                                # until every class has images enough
            on = rng.choice(6, rng.integers(1, 4), replace=False)
            drawn = rng.choice(self.members[split], 60 * way * (shot + query) // 10)
            label = (self.z[drawn][:, on] @ rng.standard_normal((len(on), way))).argmax(axis=1)
            index = [np.unique(drawn[label == c]) for c in range(way)]
            if min(map(len, index)) >= shot + query:
                return support_first(np.stack([rng.permutation(i)[:shot + query] for i in index]), shot)
        raise ValueError(f"--way, --shot, --query: {way} linear classes with {shot} + {query} images each were not found in 100 draws; "
                         "2 or 3 ways are easy")

    def images(self, split, index, xp=array_api_compat.numpy, device=None, rng=None):
        return self.shapes.images(index, xp, device)
