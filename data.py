"""data.py -- images, their factors, and the tasks on them.

    N          images, 480,000; an image is (64, 64, 3), its values in [0, 1]
    factors    (N, 6) the index of each factor: floor hue, wall hue, object hue, scale, shape,
               orientation
    z (N, d)   the ground-truth latents, d = 6: the indices, with noise, standardised
    p (N,)     probability of each image: a Gaussian density at z, of correlations rho
    alpha      width of the noise, in steps of an index
    G, n, K    image sets a step; images a set; tasks a set: sets, samples, per_set of Tasks.
               run.py has 4, 25, 16, the paper n = 50 and K = 1
    w (T, d)   coefficients of tasks, T = G K; W (G, K, k, d) those of k outputs

In this order: latents and tasks; 3D Shapes; its file; its renderer. Few-shot episodes are in
experiments/episodes.py, binary tasks and dSprites in experiments/sharing_data.py.

[L23] Lachapelle et al., ICML 2023.   [3DS] Burgess and Kim, 3D Shapes dataset, 2018.
"""
import colorsys
import contextlib
import functools
import getpass
import hashlib
import math
import os
import shutil
import tempfile
import zlib
from collections import namedtuple
from pathlib import Path

import array_api_compat.numpy
import h5py
import numpy as np
from array_api_compat import is_numpy_namespace
from tqdm import tqdm

# ------------------------------------------------------------------------------ latents


def latents(shapes, alpha=1.0, rho=0.9, seed=0):
    """Ground-truth latents z (N, d) and the probability p (N,) of each image.   [L23, App. D.2.1]

    shapes has .factors (N, d), as Shapes3D has. z is each factor's index, plus alpha times uniform
    noise on [-1/2, 1/2] drawn once per image, then standardised to mean 0 and variance 1 over all
    images; a factor that never varies is 0. (D.2.1 standardises first and then adds noise; we
    follow the published code.) p is the density of a Gaussian of unit variances and correlations
    rho at z, normalised over the images. ValueError where alpha is not in [0, 1] or rho not in
    [0, 1).
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: found {alpha}, expected a number from 0 to 1")
    if not 0 <= rho < 1:
        raise ValueError(f"rho: found {rho}, expected a number from 0 up to, but not including, 1")
    factors = shapes.factors
    z = factors + alpha * (np.random.default_rng(seed).random(factors.shape) - 0.5)
    deviation = z.std(axis=0)
    z = (z - z.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    z[:, factors.min(axis=0) == factors.max(axis=0)] = 0
    Sigma = (1 - rho) * np.eye(z.shape[1]) + rho
    log_p = -0.5 * np.vecdot(z @ np.linalg.inv(Sigma), z)               # up to a constant
    p = np.exp(log_p - log_p.max())
    return z, p / p.sum()


def describe_latents(z, p):
    """What p makes of the data: effective images 1/sum p^2, as many as if all were equally likely,
    and the latents' mean correlation under p."""
    Z = z - p @ z
    C = Z.T @ (Z * p[:, None])
    deviation = np.sqrt(np.maximum(np.diag(C), 1e-300))                 # not 0, of a constant one
    R = C / np.outer(deviation, deviation)
    between = ~np.eye(len(R), dtype=bool)
    return {
        "effective_images": float(1 / np.sum(p * p)),
        "realised_correlation": float(R[between].mean())}


def draw_index(rng, cumulative, size):
    """Indices of images, each with probability proportional to its weight: the inverse of the
    cumulative distribution, from the running sum of the weights."""
    return np.searchsorted(cumulative, rng.random(size) * cumulative[-1], side="right")


# ------------------------------------------------------------------------------ tasks

TASK_KINDS = "bernoulli-gauss, laplace, gauss, sphere, blocks-B, fixed-K, finite-K"
LABEL_NOISE = 0.1  # deviation of the noise over that of w.z; our choice
SHARPNESS = 5  # class logits are 5 W z; our choice


def sample_tasks(rng, T, d, kind="bernoulli-gauss"):
    """Coefficients w (T, d) of T tasks.                        [L23, App. D.2.1, D.2.4, B.4, B.6]

    bernoulli-gauss  each entry is N(0, 1) with probability 1/2, else 0; an empty support (1 of 64
                     as D.2.1 describes it) is given one entry
    laplace, gauss   dense, against Assumption 3.6; independent entries of variance 1 (D.2.4:
                     Laplace of variance 2; the labels' noise and lambda are relative to the signal,
                     so that it makes no difference)
    sphere           as bernoulli-gauss, on the unit sphere of the support
    blocks-B         one of the d/B blocks of B consecutive entries is on, drawn uniformly: violates
                     Assumption 3.6 where B > 1
    fixed-K          exactly K entries are on: violates Assumption 3.6 where K = d
    finite-K         one of K coefficient vectors, the same in every run: violates Assumption 3.5,
                     and 3.6 where K is small
    """
    if kind == "laplace":
        return rng.laplace(scale=0.5 ** 0.5, size=(T, d))
    if kind == "gauss":
        return rng.standard_normal((T, d))
    name, size = parse_kind(kind, d)
    if name == "finite":
        return finite_tasks(kind, d)[rng.integers(size, size=T)]
    S = sample_supports(rng, T, d, name, size)
    w = rng.standard_normal((T, d)) * S
    return w / np.linalg.norm(w, axis=1, keepdims=True) if name == "sphere" else w


def finite_tasks(kind, d):
    """The K coefficient vectors (K, d) of the kind finite-K; K is their seed."""
    _, K = parse_kind(kind, d)
    return sample_tasks(np.random.default_rng(K), K, d)


def parse_kind(kind, d):
    """NAME and SIZE of a kind of tasks NAME-SIZE; ValueError where it is none."""
    if kind in ("bernoulli-gauss", "sphere"):
        return kind, None
    name, _, number = kind.rpartition("-")
    plain = number.isascii() and number.isdigit() and number[0] != "0" and len(number) < 20
    size = int(number) if plain else 0
    most = {"finite": 1_000_000, "fixed": d, "blocks": d}.get(name, 0)
    if not 1 <= size <= most or (name == "blocks" and d % size):
        raise ValueError(
            f"--tasks: found {kind}, expected one of {TASK_KINDS} (B a divisor of {d}, K from 1, "
            "of finite-K up to 1,000,000)")
    return name, size


def sample_supports(rng, T, d, name, size):
    """Supports (T, d) of a kind of tasks, a mask."""
    if name == "fixed":
        return rng.random((T, d)).argsort(axis=1) < size                # in a random permutation
    if name == "blocks":
        return np.arange(d) // size == rng.integers(d // size, size=(T, 1))
    return nonempty(rng, rng.random((T, d)) < 0.5)


def nonempty(rng, S):
    """Supports S (T, d), in place: an empty one is given an entry."""
    T, d = S.shape
    entry = rng.integers(d, size=T)                                     # used or not
    empty = np.flatnonzero(~S.any(axis=1))
    S[empty, entry[empty]] = True
    return S


LIKELIHOODS = "gaussian", "categorical"                                    # of labels


class Tasks:
    """Batches of tasks: .sample(rng) -> index (G, n) of images, labels y (G, K, n[, k]).

    gaussian     y = w.z + noise; the noise's deviation is 0.1 times that of w.z over the set
    categorical  y one-hot, its class drawn among k with probabilities softmax(5 W z)
    The K tasks of a set share its images; each has its own w and noise. With k > 1 outputs the kind
    gives only the support, common to a task's outputs; the entries on it are N(0, 1). shift > 0
    draws each set's images with probability proportional to p(x) exp(shift v.z), v the unit vector
    along the mean |w| of its tasks and outputs: our way to let p depend on the task.
                                                                    [L23, App. D.2.1, Sec. 3.1]
    """

    def __init__(self, z, p, sets=4, samples=25, per_set=16, kind="bernoulli-gauss", outputs=1,
                 likelihood="gaussian", shift=0.0):
        self.z, self.p = z, p
        self.cumulative = np.cumsum(p)
        self.sets, self.samples = sets, samples
        self.per_set, self.kind = per_set, kind
        self.outputs, self.likelihood = outputs, likelihood
        self.shift = shift
        if p.shape != z.shape[:1] or not (p.min() >= 0 and 0 < p.sum() < np.inf):
            raise ValueError("p: expected a weight for each row of z, none negative, not all 0")
        sample_tasks(np.random.default_rng(0), 1, z.shape[1], kind)     # refuses an unknown kind
        if likelihood not in LIKELIHOODS:
            raise ValueError(f"--likelihood: found {likelihood}, expected one of {LIKELIHOODS}")
        least = 2 if likelihood == "categorical" else 1
        if outputs < least:
            raise ValueError(f"--outputs: found {outputs}, expected at least {least}")

    def sample(self, rng):
        return self.sample_labels(rng, self.sample_coefficients(rng))

    def sample_labels(self, rng, W):
        """index and y for coefficients W (G, K, k, d)."""
        index = self.sample_images(rng, W)                              # (G, n)
        y = self.z[index][:, None] @ W.mT                               # (G, K, n, k), the signal
        if self.likelihood == "categorical":
            return index, np.eye(self.outputs)[draw_classes(rng, SHARPNESS * y)]
        noise = LABEL_NOISE * y.std(axis=2, keepdims=True)
        y = y + noise * rng.standard_normal(y.shape)
        return index, y if self.outputs > 1 else y[..., 0]

    def sample_coefficients(self, rng):
        """W (G, K, k, d)."""
        T = self.sets * self.per_set
        W = sample_tasks(rng, T, self.z.shape[1], self.kind)[:, None, :]
        if self.outputs > 1:
            own = rng.standard_normal((T, self.outputs, W.shape[2]))
            W = np.where(W != 0, own, 0)
        return W.reshape(self.sets, self.per_set, self.outputs, -1)

    def sample_images(self, rng, W):
        """index (G, n)."""
        if not self.shift:
            return draw_index(rng, self.cumulative, (len(W), self.samples))
        v = np.abs(W).mean(axis=(1, 2))                                 # (G, d)
        v = v / np.linalg.norm(v, axis=1, keepdims=True)
        tilted = [self.p * np.exp(self.shift * (self.z @ direction)) for direction in v]
        return np.stack([draw_index(rng, np.cumsum(own), self.samples) for own in tilted])


def draw_classes(rng, logits):
    """A class of each row of logits (..., k), drawn with the probabilities softmax(logits): the
    largest of logits plus Gumbel noise has those."""
    return (logits + rng.gumbel(size=logits.shape)).argmax(axis=-1)


# ------------------------------------------------------------------------------ 3D Shapes

FACTORS = ("floor", "wall", "object", "scale", "shape", "orientation")
LEVELS = (10, 10, 10, 8, 4, 15)                                         # the last runs fastest
N_IMAGES, N_GEOMETRIES = 480_000, 480
HUES = np.arange(10) / 10                                               # HSV, fully saturated
SCALES = np.linspace(0.75, 1.25, 8)
SHAPES = ("cube", "cylinder", "sphere", "capsule")
ORIENTATIONS = np.linspace(-30, 30, 15)                                 # degrees
LABEL_VALUES = (HUES, HUES, HUES, SCALES, np.arange(4.0), ORIENTATIONS)     # in the official file
SIDE = 64                                                               # pixels


class FactorGrid:
    """Images and their factors; by default every combination, the last factor running fastest.

    .factors (N, d) are indices. A subclass sets .names and .levels (d names; the number of values
    of each), and defines .images(index, xp, device) -> (..., 64, 64, 3) float32 in [0, 1]; index is
    anything that indexes the rows of a NumPy array. Where a file is read, .stored has its images.
    """

    stored = None                                                       # StoredImages of a file

    def __init__(self):
        index = np.unravel_index(np.arange(np.prod(self.levels)), self.levels)
        self.factors = np.stack(index, axis=1).astype(np.int8)

    def __len__(self):
        return len(self.factors)

    def rows(self, index):
        """The numbers of the rows that an index means, negative ones as in NumPy, masks, slices."""
        return np.arange(len(self))[index]

    def fingerprint(self):
        """Names the content of a file, factors and all images; ValueError where none was read."""
        if self.stored is None:
            raise ValueError("fingerprint: these images are rendered, not read from a file")
        content = self.factors.tobytes() + self.stored.digest.encode()
        return hashlib.sha256(content).hexdigest()[:10]


class Shapes3D(FactorGrid):
    """3D Shapes, from the official HDF5 file; without a path from our renderer, fitted to it.

    A file may have fewer rows. Its images are unpacked once into PATH.images.npy, for fast random
    access. Raises ValueError, naming the file, where it is damaged or holds other arrays.  [3DS]
    """

    names, levels = FACTORS, LEVELS

    def __init__(self, path=None):
        super().__init__()
        if path is not None:
            self.stored, self.factors = open_hdf5(Path(path))

    def images(self, index, xp=array_api_compat.numpy, device=None):
        rows = self.rows(index)
        if self.stored is not None:
            x = self.stored.read(np.ravel(rows)).reshape(*rows.shape, SIDE, SIDE, 3)
            return xp.astype(xp.asarray(x, device=device), xp.float32) / 255
        factors = self.factors[np.ravel(rows)].astype(np.int64)
        geometry = np.ravel_multi_index(tuple(factors[:, 3:].T), LEVELS[3:])
        x = compose(geometry, factors[:, :3], xp, device)
        return xp.reshape(x, (*rows.shape, SIDE, SIDE, 3))


# ------------------------------------------------------------------------------ its file


def open_hdf5(path):
    """Images (N, 64, 64, 3) uint8, left on disk, and factors (N, 6) of an official HDF5 file."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with h5py.File(path) as file:
            check_layout(path, file)
            factors = factors_of_labels(path, file["labels"][:])
            images = file["images"]
            blocks = (images[rows] for rows in row_blocks(images))
            return unpack_images(path, images.shape, blocks), factors
    except (OSError, RuntimeError, KeyError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise ValueError(f"{path}: cannot be read or unpacked ({reason})") from None


def check_layout(path, file):
    """Refuse a file whose images and labels have other shapes or dtypes, or are not all in it."""
    arrays = {name: file.get(name) for name in ("images", "labels")}
    found = {name: (getattr(a, "shape", None), str(getattr(a, "dtype", None)))
             for name, a in arrays.items()}
    N = (found["images"][0] or (0,))[0]
    expected = {"images": ((N, SIDE, SIDE, 3), "uint8"), "labels": ((N, 6), "float64")}
    if N == 0 or found != expected:
        raise ValueError(
            f"{path}: expected images (N, 64, 64, 3) uint8 and labels (N, 6) float64, "
            f"found {found}")
    for name, a in arrays.items():
        if a.is_virtual or a.external or a.file.filename != file.filename:
            raise ValueError(f"{path}: its {name} lie in other files; copy them into this one")
        if not is_whole(a):
            raise ValueError(f"{path}: some of its {name} were never written")


def is_whole(a):
    """Whether all of an HDF5 data set was written: what was not reads as zeros."""
    if not a.chunks:
        return a.id.get_storage_size() > 0
    along_axes = -(-np.array(a.shape) // a.chunks)                      # chunks, rounded up
    return a.id.get_num_chunks() == np.prod(along_axes)


def factors_of_labels(path, labels):
    """The official label values (N, 6) as indices."""
    columns = [np.abs(labels[:, k, None] - values) for k, values in enumerate(LABEL_VALUES)]
    factors = np.stack([column.argmin(axis=1) for column in columns], axis=1)
    far = np.stack([column.min(axis=1) for column in columns], axis=1)
    bad = ~(far < 1e-3)
    if bad.any():
        row, k = np.argwhere(bad)[0]
        raise ValueError(
            f"{path}: labels[{row}] has {FACTORS[k]} = {labels[row, k]}, which is no value of "
            "3D Shapes")
    return factors.astype(np.int8)


def row_blocks(images, rows=2048):
    """Slices of rows that read every chunk of an HDF5 data set once."""
    chunk = images.chunks[0] if images.chunks else 1
    step = -(-rows // chunk) * chunk
    return [slice(i, i + step) for i in range(0, len(images), step)]


# Images are unpacked once, for fast random access, into PATH.images.npy; PATH.images.npz keeps what
# it was made from, PATH's size, time and inode, the digest of all images, and a CRC-32 of each.


class StoredImages:
    """Images (N, ...) uint8 of a PATH.images.npy, read row by row; `digest` names their content.

    Read, not mapped: of a mapped file every row ever read counts as memory. Opened anew for every
    batch: threads, forks and copies in other processes share no place in an open file.
    """

    def __init__(self, cache, made_from):
        with np.load(cache.with_suffix(".npz"), allow_pickle=False) as file:
            recorded, self.digest, self.checksums = (
                file[name] for name in ("made_from", "digest", "checksums"))
        self.path, self.digest = cache.absolute(), str(self.digest)
        with open(cache, "rb") as file:
            np.lib.format.read_magic(file)
            self.shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            self.start, self.row = file.tell(), math.prod(self.shape[1:])
        size = self.start + self.shape[0] * self.row
        if str(recorded) != made_from or dtype != np.uint8 or cache.stat().st_size != size:
            raise ValueError(f"{cache}: damaged, or made from another file")

    def read(self, rows):
        """The images of row numbers (B,); ValueError where one is not what was written."""
        out = np.empty((len(rows), *self.shape[1:]), np.uint8)
        with open(self.path, "rb", buffering=0) as file:
            for row, image in zip(rows, out, strict=True):
                file.seek(self.start + int(row) * self.row)
                file.readinto(image)
                if zlib.crc32(image) != self.checksums[row]:
                    raise ValueError(
                        f"{self.path}: row {row} is damaged, or the file was written anew; remove "
                        "the file, or start again")
        return out


def unpack_images(path, shape, blocks):
    """The StoredImages of PATH, unpacked first, from blocks of images, where there are none."""
    cache, status = cache_path(path), path.stat()
    made_from = f"{path.resolve()} {status.st_size} {status.st_mtime_ns} {status.st_ino} {shape}"
    with contextlib.suppress(Exception):                                # missing, damaged or old
        return StoredImages(cache, made_from)
    free, needed = shutil.disk_usage(cache.parent).free, math.prod(shape)
    if free < 1.02 * needed:
        raise ValueError(
            f"{cache}: {needed / 1e9:.1f} GB are needed to unpack the images, "
            f"{free / 1e9:.1f} are free")
    new = [cache.with_suffix(f".{os.getpid()}.new{kind}") for kind in (".npy", ".npz")]
    try:
        digest, checksums = write_images(new[0], shape, blocks, path.name)
        np.savez(new[1], made_from=made_from, digest=digest, checksums=checksums)
        for file in new:
            os.replace(file, cache.with_suffix(file.suffix))
    finally:
        for file in new:
            file.unlink(missing_ok=True)
    return StoredImages(cache, made_from)


def write_images(path, shape, blocks, name):
    """Write blocks of images as one .npy file  ->  the digest of all, and a CRC-32 of each."""
    digest, checksums = hashlib.sha256(), []
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block in tqdm(blocks, desc=f"unpacking {name}", disable=None):
            file.write(block)
            digest.update(block)
            checksums += [zlib.crc32(image) for image in block]
    if len(checksums) != shape[0]:
        raise ValueError(f"found {len(checksums)} images, expected {shape[0]}")
    return digest.hexdigest(), np.array(checksums, np.uint32)


def cache_path(path):
    """PATH.images.npy, or a file in a folder of the user's own where PATH's cannot be written."""
    if os.access(path.parent, os.W_OK):
        return path.with_name(path.name + ".images.npy")
    home = Path(tempfile.gettempdir()) / f"sparsedis-{getpass.getuser()}"
    home.mkdir(mode=0o700, exist_ok=True)
    status = home.lstat()
    mine = not hasattr(os, "getuid") or status.st_uid == os.getuid()
    if home.is_symlink() or not mine or status.st_mode & 0o077:
        raise ValueError(f"{home}: not a folder of yours alone; remove it to unpack images there")
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    return home / f"{path.name}.{name}.images.npy"


# ------------------------------------------------------------------------------ its renderer
# 3D Shapes has only 480 geometries, scale x shape x orientation. For a given geometry an image is
# linear in its colours, so that five maps of each geometry hold the whole data set:
#     image = clip(m_sky SKY + m_floor C_floor + m_wall C_wall + m_object C_object + m_white WHITE)
# rounded to 256 levels. They are ray-cast once, in a few seconds; any image is then one small
# product, on any device.

SKY_MAP, FLOOR_MAP, WALL_MAP, OBJECT_MAP, WHITE_MAP = range(5)
SKY, WHITE = np.array([153, 226, 249.0]), np.array([255, 255, 255.0])   # colours in 0..255
PALETTE = 255 * np.array([colorsys.hsv_to_rgb(hue, 1, 1) for hue in HUES])


def compose(geometry, hues, xp=array_api_compat.numpy, device=None):
    """Images (N, 64, 64, 3) float32 in [0, 1], of 256 levels as in the file, on xp and device.

    geometry (N,) and three hues (N, 3), NumPy. Only small colour matrices travel to the device; on
    a CPU 16 images at a time stay in the cache.
    """
    N = len(geometry)
    C = np.empty((N, 5, 3), np.float32)
    C[:, SKY_MAP], C[:, WHITE_MAP] = SKY, WHITE
    C[:, FLOOR_MAP:OBJECT_MAP + 1] = PALETTE[hues]                      # in the order of the hues
    maps = maps_on(xp, device)                                          # (480, 4096, 5)
    C, geometry = xp.asarray(C, device=device), xp.asarray(geometry, device=device)
    step = 16 if is_numpy_namespace(xp) else N
    x = xp.empty((N, SIDE, SIDE, 3), dtype=xp.float32, device=device)
    for i in range(0, N, step):
        colour = xp.matmul(xp.take(maps, geometry[i:i + step], axis=0), C[i:i + step, ...])
        levels = xp.clip(xp.round(colour), 0, 255) / 255
        x[i:i + step, ...] = xp.reshape(levels, (-1, SIDE, SIDE, 3))
    return x


_maps = {}


def maps_on(xp, device):
    """geometry_maps, sent once to a device."""
    name = xp.__name__, str(device)                                     # CuPy's cannot be hashed
    if name not in _maps:
        _maps[name] = xp.asarray(geometry_maps(), device=device)
    return _maps[name]


# The scene, fitted to real images of [3DS]. World: x right, y into the room, z up; the object
# stands on the floor z = 0 at the origin. Room and lamps stay fixed; the camera, which has a
# headlight, orbits the object at CAMERA_HEIGHT, looking almost horizontally at the z axis.

RAYS = 192                                                              # a side, reduced by Lanczos
FOCAL = 2.1518                                                          # 1/tan(half field of view)
CAMERA_DISTANCE, CAMERA_HEIGHT = 3.8205, 1.1458
CAMERA_PITCH = 0.00059                                                  # radians, downwards
ROOM_LEFT, ROOM_RIGHT = -5.3162, 5.3162
ROOM_BACK, ROOM_HEIGHT = 5.3206, 3.0365
CUBE_HALF = 0.5337                                                      # sizes at scale 1
CYLINDER_RADIUS, CYLINDER_HALF = 0.5686, 0.5717
SPHERE_RADIUS = 0.6458
CAPSULE_RADIUS, CAPSULE_HALF = 0.4929, 0.4964
SHADOW_LAMP = np.array([-1.959, 0.552, 10.268])                         # casts the floor's shadow
OBJECT_LAMP = np.array([-3.230, 1.650, 13.790])                         # lights the object
SHADOW_REACH = 1.7                                                      # from the origin
# Light on the floor: sum of c x^a y^b, x and y in units of 5, for a = 0..4, b = 0..4-a.
FLOOR_LIGHT = (1.075, 0.1237, -0.5866, 0.0957, 0.0252, -0.5932, 0.0489, 0.3085, -0.066, -0.3118,
               -0.2189, 0.3026, 0.2958, -0.1009, 0.0695)
FLOOR_SHADOW = 0.3392
# Light on a wall: coefficients of 1, headlight N.v, u, z, uu, uz, zz (u along the wall/5, z/2.8).
BACK_LIGHT = (0.549, 0.4994, -0.0565, -0.0374, -0.0369, -0.0078, 0.0085)
LEFT_LIGHT = (0.5663, 0.5923, -0.1232, -0.0116, -0.005, -0.0371, 0.0157)
RIGHT_LIGHT = (0.4586, 0.5932, -0.0871, -0.0867, 0.0285, 0.0263, 0.0259)
OBJECT_AMBIENT = 0.3435
OBJECT_HEADLIGHT, OBJECT_LAMPLIGHT = 0.6057, 0.5842
GLOSS, GLOSS_FROM = 0.1183, 0.0164                                      # white where N.l > FROM
MESH_SLICES, MESH_STACKS = 28, 16                                       # the original's lit mesh

# A camera: position (3,), level unit direction from the z axis to it (3,), unit rays (R, 3).
Camera = namedtuple("Camera", "position back rays")
# The empty room along the rays: distance (R,), maps (5, R), floor that a shadow may reach (R,).
Room = namedtuple("Room", "distance maps shadowed")


@functools.cache
def geometry_maps():
    """The five maps of all 480 geometries (scale, shape, orientation), (480, 4096, 5), 39 MB."""
    D = lanczos()
    sizes = len(SCALES), len(SHAPES), len(ORIENTATIONS)
    out = np.empty((*sizes, SIDE, SIDE, 5), np.float32)
    for k, degrees in enumerate(ORIENTATIONS):
        camera = camera_at(degrees)
        room = cast_room(camera)
        empty = D @ room.maps.reshape(5, RAYS, RAYS) @ D.T              # (5, 64, 64)
        for i, j in np.ndindex(sizes[:2]):
            rays, new = cast_object(SHAPES[j], SCALES[i], camera, room)
            changed = reduce_window(D, rays, new - room.maps[:, rays])
            out[i, j, k] = np.moveaxis(empty + changed, 0, -1)
    return out.reshape(N_GEOMETRIES, SIDE * SIDE, 5)


@functools.cache
def lanczos():
    """Lanczos-3 reduction from RAYS to SIDE samples, a (64, 192) matrix."""
    ratio = RAYS / SIDE
    x = (np.arange(RAYS)[None, :] + 0.5) / ratio - (np.arange(SIDE)[:, None] + 0.5)
    kernel = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)
    return kernel / kernel.sum(axis=1, keepdims=True)


def reduce_window(D, rays, change):
    """A change of the maps (5, len(rays)) along some rays, reduced to pixels, (5, 64, 64): only the
    small window that holds those rays is."""
    full = np.zeros((5, RAYS, RAYS))
    full.reshape(5, -1)[:, rays] = change
    rows, cols = (slice(a.min(), a.max() + 1) for a in np.divmod(rays, RAYS))
    return D[:, rows] @ full[:, rows, cols] @ D[:, cols].T


def camera_at(degrees):
    """The Camera of an orientation."""
    u = (np.arange(RAYS) + 0.5) / RAYS * 2 - 1
    X, Y = (a.ravel() / FOCAL for a in np.meshgrid(u, -u))
    c, s = np.cos(CAMERA_PITCH), np.sin(CAMERA_PITCH)
    ahead, up = c + Y * s, Y * c - s
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    d = np.stack([c * X - s * ahead, s * X + c * ahead, up], axis=-1)
    back = np.array([s, -c, 0.0])
    position = CAMERA_DISTANCE * back + [0, 0, CAMERA_HEIGHT]
    return Camera(position, back, d / np.linalg.norm(d, axis=1, keepdims=True))


def cast_room(camera):
    """The empty Room that a camera sees."""
    o, back, d = camera
    with np.errstate(divide="ignore"):
        t = np.stack([
            np.where(d[:, 2] < 0, -o[2] / d[:, 2], np.inf),                     # 0 floor
            np.where(d[:, 1] > 0, (ROOM_BACK - o[1]) / d[:, 1], np.inf),        # 1 back wall
            np.where(d[:, 0] < 0, (ROOM_LEFT - o[0]) / d[:, 0], np.inf),        # 2 left wall
            np.where(d[:, 0] > 0, (ROOM_RIGHT - o[0]) / d[:, 0], np.inf)])      # 3 right wall
    surface, t = t.argmin(axis=0), t.min(axis=0)
    P = o + t[:, None] * d
    x, y = P[:, 0] / 5, P[:, 1] / 5
    z = P[:, 2] / 2.8
    sky = (surface > 0) & (P[:, 2] > ROOM_HEIGHT)
    maps = np.zeros((5, len(d)))
    maps[SKY_MAP] = sky
    on = surface == 0
    maps[FLOOR_MAP, on] = floor_light(x[on], y[on])
    headlights = -back[1], back[0], -back[0]                            # N.v, v = back, N inwards
    along = x, y, y                                                     # u, along each wall
    for wall, light_of in enumerate((BACK_LIGHT, LEFT_LIGHT, RIGHT_LIGHT)):
        on = (surface == wall + 1) & ~sky
        maps[WALL_MAP, on] = wall_light(light_of, headlights[wall], along[wall][on], z[on])
    near = P[:, 0] ** 2 + P[:, 1] ** 2 < SHADOW_REACH ** 2
    return Room(t, maps, (surface == 0) & near)


def floor_light(x, y):
    """Light on the floor, the polynomial of FLOOR_LIGHT."""
    powers = [(a, b) for a in range(5) for b in range(5 - a)]
    return sum(c * x ** a * y ** b for c, (a, b) in zip(FLOOR_LIGHT, powers, strict=True))


def wall_light(c, headlight, u, z):
    """Light on a wall, of coefficients c as above."""
    flat = c[0] + c[1] * headlight + c[2] * u + c[3] * z
    return flat + c[4] * u * u + c[5] * u * z + c[6] * z * z


def cast_object(shape, s, camera, room):
    """The object at scale s and its shadow, drawn over the room: the rays that change, and their
    new maps (5, changed)."""
    o, back, d = camera
    # Rays that can change: through a ball of radius 1.05 s, which holds the object but for its
    # base, and to the floor near it, against which base and shadow are seen.
    centre = np.array([0, 0, 0.95 * s]) - o
    near = centre @ centre - (d @ centre) ** 2 < (1.05 * s) ** 2
    rays = np.flatnonzero(room.shadowed | near)
    t, new = hit_object(shape, s, o, d[rays]), room.maps[:, rays]
    visible = t < room.distance[rays]

    floor = np.flatnonzero(~visible & room.shadowed[rays])
    P = o + room.distance[rays[floor], None] * d[rays[floor]]
    to_lamp = SHADOW_LAMP - P
    to_lamp = to_lamp / np.linalg.norm(to_lamp, axis=1, keepdims=True)
    shade = np.isfinite(hit_object(shape, s, P, to_lamp))
    new[FLOOR_MAP, floor[shade]] = FLOOR_SHADOW

    P = o + t[visible, None] * d[rays[visible]]
    lamp = OBJECT_LAMP - [0, 0, 0.6 * s]
    lit, gloss = light_object(shape, normals(shape, s, P), back, lamp / np.linalg.norm(lamp))
    new[:, visible] = 0
    new[OBJECT_MAP, visible], new[WHITE_MAP, visible] = lit, gloss
    return rays, new


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
            r, top = CAPSULE_RADIUS * s, (CAPSULE_RADIUS + 2 * CAPSULE_HALF) * s
            ends = np.minimum(hit_sphere(o, d, r, r), hit_sphere(o, d, r, top))
            t = np.minimum(hit_tube(o, d, r, r, top), ends)
    return np.where(t > 1e-6, t, np.inf)


def hit_sphere(o, d, r, z):
    """Distance along unit rays to the sphere of radius r about (0, 0, z)."""
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
    x, y = o[..., 0], o[..., 1]
    A, b = d[:, 0] ** 2 + d[:, 1] ** 2, d[:, 0] * x + d[:, 1] * y
    q = b * b - A * (x ** 2 + y ** 2 - r * r)
    t = (-b - np.sqrt(np.maximum(q, 0))) / A
    z = o[..., 2] + t * d[:, 2]
    return np.where((q > 0) & (z >= low) & (z <= high), t, np.inf)


def hit_disc(o, d, r, z):
    """Distance to the level disc of radius r about (0, 0, z)."""
    t = (z - o[..., 2]) / d[:, 2]
    P = o[..., :2] + t[:, None] * d[:, :2]
    return np.where(P[:, 0] ** 2 + P[:, 1] ** 2 < r * r, t, np.inf)


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
    top = (CAPSULE_RADIUS + 2 * CAPSULE_HALF) * s
    z = np.clip(P[:, 2], CAPSULE_RADIUS * s, top)                       # nearest of the axis
    return (P - np.stack([0 * z, 0 * z, z], axis=1)) / (CAPSULE_RADIUS * s)


def light_object(shape, N, back, lamp):
    """Light on the object and its white gloss, each (R,), at unit normals N (R, 3).

    Round surfaces are lit at the vertices of a mesh and interpolated, as the original was.
    """
    if shape == "cube":
        return light(N, back, lamp).T
    at = light(mesh_normals(), back, lamp)                              # (29, 18, 2)
    a = np.arctan2(N[:, 1], N[:, 0]) / (2 * np.pi) * MESH_SLICES % MESH_SLICES
    b = np.arccos(np.clip(N[:, 2], -1, 1)) / np.pi * MESH_STACKS
    left = np.floor(a + 1e-9)
    i, j = left.astype(int) % MESH_SLICES, np.floor(b).astype(int)
    fa, fb = (a - left)[:, None], (b - j)[:, None]
    above = (1 - fa) * at[i, j] + fa * at[i + 1, j]
    below = (1 - fa) * at[i, j + 1] + fa * at[i + 1, j + 1]
    return ((1 - fb) * above + fb * below).T


def light(N, back, lamp):
    """At unit normals N (..., 3): diffuse light and gloss, (..., 2)."""
    Nv, Nl = N @ back, N @ lamp
    diffuse = OBJECT_AMBIENT + OBJECT_HEADLIGHT * np.maximum(Nv, 0)
    diffuse = diffuse + OBJECT_LAMPLIGHT * np.maximum(Nl, 0)
    return np.stack([diffuse, GLOSS * (Nl > GLOSS_FROM)], axis=-1)


def mesh_normals():
    """Unit normals of a latitude-longitude mesh, (29, 18, 3): the first column again at the end,
    and a row beyond the pole, for what is interpolated there."""
    i, j = np.meshgrid(np.arange(MESH_SLICES + 1), np.arange(MESH_STACKS + 2), indexing="ij")
    azimuth, polar = i * 2 * np.pi / MESH_SLICES, j * np.pi / MESH_STACKS
    x, y = np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth)
    return np.stack([x, y, np.cos(polar)], axis=-1)
