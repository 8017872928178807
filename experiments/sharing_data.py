"""sharing_data.py -- binary tasks on known factors, and dSprites.        [F23, our reading]

    factors (N, d)   the index of each factor of N images          p (N,)  their probabilities
    T, k             tasks, factors of a task, joined by AND, k = 2
    index (T, n), Y (T, n, 1)   a task's images, support first, and labels 0 and 1

[F23] Fumero et al., NeurIPS 2023.
"""
import functools
import zipfile
from collections import namedtuple
from pathlib import Path

import array_api_compat.numpy
import numpy as np

from data import SIDE, FactorGrid, draw_index, unpack_images
from experiments.episodes import support_first

# ------------------------------------------------------------------------------ binary tasks


# y = 1 where every factor f lies on its side of its threshold c: (factor > threshold) == side.
BinaryTask = namedtuple("BinaryTask", "factors thresholds sides")


class BinaryTasks:
    """`count` different binary tasks of k factors each, joined by AND.        [F23, our reading]

    Under p (N,) about 2 to 98 % of a task's images are positive; a sample's classes are rebalanced,
    half of each. ValueError where k is not possible, or so many different tasks are not found.
    """

    def __init__(self, factors, p, k, count, seed=0):
        values = [np.unique(column) for column in factors.T]            # a file may lack some
        varying = [f for f, own in enumerate(values) if len(own) > 1]
        if not 1 <= k <= len(varying):
            raise ValueError(f"--factors: found {k}, expected 1 to {len(varying)}")
        self.factors, self.cumulative = factors, np.cumsum(p)
        rng = np.random.default_rng(seed)
        seen = draw_index(rng, self.cumulative, 2000)
        found = {}                                                      # a set that keeps its order
        for _ in range(200 * count):
            task = draw_binary_task(rng, values, varying, k)
            if 0.02 <= self.labels(task, seen).mean() <= 0.98:
                found[task] = True
            if len(found) == count:
                break
        if len(found) < count:
            raise ValueError(
                f"--pool, --test-tasks: {count} tasks wanted, only {len(found)} different ones of "
                f"{k} factors found")
        self.tasks = list(found)

    def uniform(self):
        """The same tasks on images drawn uniformly."""
        other = BinaryTasks.__new__(BinaryTasks)
        other.factors, other.tasks = self.factors, self.tasks
        N = len(self.factors)
        other.cumulative = np.arange(1, N + 1) / N
        return other

    def labels(self, task, index):
        """Whether each image is positive, (len(index),)."""
        on, thresholds, sides = map(np.asarray, task)
        return ((self.factors[index][:, on] > thresholds) == sides).all(axis=1)

    def sample(self, rng, tasks, shot, query):
        """index (T, n) and Y (T, n, 1) for tasks (T,), given by their numbers: `shot` support
        images of each class, first, and `query` others."""
        samples = [self.sample_task(rng, self.tasks[t], shot, query) for t in tasks]
        index, Y = zip(*samples, strict=True)
        return np.stack(index), np.stack(Y)[..., 1:]

    def sample_task(self, rng, task, shot, query):
        """index (n,) and Y (n, 2): as drawn, no image twice unless there are too few, and none in
        both support and query unless a class has only one."""
        drawn = draw_index(rng, self.cumulative, 100 * (shot + query))
        positive = self.labels(task, drawn)
        parts = [first_occurrences(drawn[positive == side]) for side in (False, True)]
        parts = [part if len(part) else self.draw_side(rng, task, side, len(drawn))
                 for part, side in zip(parts, (False, True), strict=True)]
        return support_first(np.stack([in_two(part, shot, query) for part in parts]), shot)

    def draw_side(self, rng, task, side, size):
        """Images of a class so rare that none was drawn, by their probabilities."""
        own = np.flatnonzero(self.labels(task, slice(None)) == side)
        p = np.diff(self.cumulative, prepend=0)[own]
        return first_occurrences(own[draw_index(rng, np.cumsum(p), size)])


def draw_binary_task(rng, values, varying, k):
    """A random BinaryTask; of one factor always with the side above, lest two be complements."""
    on = np.sort(rng.choice(varying, k, replace=False))
    places = rng.integers([len(values[f]) - 1 for f in on])             # below the largest value
    thresholds = [int(values[f][place]) for f, place in zip(on, places, strict=True)]
    sides = (rng.random(k) < 0.5) | (k == 1)
    return BinaryTask(tuple(on), tuple(thresholds), tuple(sides))


def in_two(images, shot, query):
    """The first `shot` images, then `query` others. Where there are too few for both the support
    has at most half of them, the query the rest, and each repeats its own."""
    own = shot if len(images) >= shot + query else max(1, min(shot, len(images) // 2))
    others = images[own:] if len(images) > 1 else images
    return np.append(np.resize(images[:own], shot), np.resize(others, query))


def first_occurrences(a):
    """The different values of a, in the order in which they come."""
    _, first = np.unique(a, return_index=True)
    return a[np.sort(first)]


# ------------------------------------------------------------------------------ dSprites
# Rendered after its published description, with sizes of our choice, for no original was
# at hand: shapes of nearly equal area, 4.3 % of all pixels white as published, a position one pixel
# from the next. The official file's first factor, colour, has one value and is left out.


class DSprites(FactorGrid):
    """dSprites, as Shapes3D: rendered when no path is given, else read from the official npz.

    Arrays imgs and latents_classes; fewer rows will do. Its binary images come as three equal
    channels, so that one encoder reads both data sets.
    """

    names = ("shape", "scale", "orientation", "x", "y")
    levels = (3, 6, 40, 32, 32)                                         # square, ellipse, heart

    def __init__(self, path=None):
        super().__init__()
        if path is not None:
            self.stored, self.factors = open_dsprites(Path(path), self.levels)

    def images(self, index, xp=array_api_compat.numpy, device=None):
        rows = self.rows(index)
        x = (self.render if self.stored is None else self.stored.read)(np.ravel(rows))
        x = xp.asarray(x.reshape(*rows.shape, SIDE, SIDE, 1), device=device)
        return xp.astype(xp.repeat(x, 3, axis=-1), xp.float32)

    def render(self, rows):
        """A window of each image's sprite, (B, 64, 64) of 0 and 1."""
        factors = self.factors[rows].astype(int)
        drawn = sprites()[np.ravel_multi_index(factors[:, :3].T, self.levels[:3])]
        corners = 31 - factors[:, 3:]
        windows = zip(drawn, corners, strict=True)
        return np.stack([sprite[y:y + SIDE, x:x + SIDE] for sprite, (x, y) in windows])


@functools.cache
def sprites():
    """Each shape, scale and orientation in the middle of a canvas that holds all windows,
    (720, 95, 95) of 0 and 1."""
    Y, X = np.mgrid[-47:48, -47:48]
    scales = np.linspace(0.5, 1, 6)
    turns = np.linspace(0, 2 * np.pi, 40)                               # first and last alike, as
    out = []                                                            # in the official file
    for shape, scale, turn in np.ndindex(3, 6, 40):
        s, c = np.sin(turns[turn]), np.cos(turns[turn])
        u, v = (X * c + Y * s) / scales[scale], (Y * c - X * s) / scales[scale]
        out.append(inside_sprite(shape, u, v))
    return np.stack(out).astype(np.uint8)


def inside_sprite(shape, u, v):
    """Whether points (u, v) lie in the square, the ellipse or the heart at scale 1."""
    if shape == 0:
        return np.maximum(np.abs(u), np.abs(v)) < 8.6
    if shape == 1:
        return (u / 13) ** 2 + (v / 7.2) ** 2 < 1
    u, v = u / 9, v / 9
    return (u ** 2 + v ** 2 - 1) ** 3 < -u ** 2 * v ** 3


def open_dsprites(path, levels):
    """Images (N, 64, 64) uint8, left on disk, and factors (N, 5) of an official npz file."""
    try:
        with zipfile.ZipFile(path) as file, file.open("latents_classes.npy") as classes, \
                file.open("imgs.npy") as images:
            factors = np.lib.format.read_array(classes, allow_pickle=False)
            np.lib.format.read_magic(images)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(images)
            check_dsprites(shape, fortran, dtype, factors, levels)
            return unpack_images(path, shape, sprite_blocks(images)), factors[:, 1:].astype(np.int8)
    except Exception as error:                                          # zips fail in many ways
        raise ValueError(
            f"{path}: expected imgs (N, 64, 64) uint8 and latents_classes (N, 6) ({error})"
        ) from None


def check_dsprites(shape, fortran, dtype, factors, levels):
    """Refuse arrays of another shape, order or dtype, and classes that are none."""
    top = (1, *levels)
    fits = factors.ndim == 2 and factors.shape[1] == 6 and shape == (len(factors), SIDE, SIDE)
    if not fits or len(factors) == 0 or fortran or dtype != np.uint8:
        raise ValueError(f"found imgs {shape} {dtype} and latents_classes {factors.shape}")
    if factors.dtype.kind not in "iuf":
        raise ValueError(f"found latents_classes of {factors.dtype}")
    if not ((factors >= 0) & (factors < top) & (factors % 1 == 0)).all():
        raise ValueError(f"found a class that is no whole number below {top}")


def sprite_blocks(file, rows=1024):
    """The binary images of an opened imgs.npy, behind its header, some at a time."""
    while block := file.read(rows * SIDE * SIDE):
        x = np.frombuffer(block, np.uint8).reshape(-1, SIDE, SIDE)
        if x.max() > 1:
            raise ValueError(f"found a pixel of {x.max()}, expected 0 and 1")
        yield x
