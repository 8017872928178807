"""rotation.py -- unmix features after training, by the tasks' sparse weights, and say how surely.

    N, m, T, n     samples, features, tasks or targets, samples of a task's own
    F  (N, m)      features that determine the factors linearly (R near 1), however mixed
    Y  (N, T)      targets of F's rows, NaN where unknown; or, where an index is given,
    Y  (T, n)      labels of tasks that have rows of their own, index (T, n)
    M  (m, m)      (F - mean) M are the unmixed features, of variance 1

    rotation = unmix(F, Y)
    factors = (F - rotation.mean) @ rotation.M

The search is solvers.sparse_rotation. Here are its inputs, each task's weights with their errors,
the choice of how wide the spike of small loadings is, and whether another half of the data would
tell the same. Factor analysis calls what is sought simple structure [Thurstone 1947].
"""
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

import solvers
from sparsetasks.targets import range_of, varies

WIDTHS = (0.0, 0.2, 0.45)  # of the spike, in deviations of the slab
MANY = 20  # tasks a feature from where on the tasks are halved, too
STABLE = 0.95
ROUNDING = 1e-12  # of a target's largest value


class Rotation(NamedTuple):
    """What unmix found; on, apart, reached and gap are solvers.sparse_rotation's."""

    M: np.ndarray                                                   # (m, m)
    mean: np.ndarray                                                # (m,), of F
    width: float                                                    # of the spike, as chosen
    loadings: np.ndarray                                            # (T, m), weights on F M
    on: np.ndarray                                                  # (T, m)
    apart: np.ndarray                                               # (m,)
    stability: np.ndarray                                           # (m,), NaN where unknown
    identified: np.ndarray                                          # (m,), a mask
    reached: float
    gap: float


class Sample(NamedTuple):
    """Features and targets, as of unmix."""

    F: np.ndarray
    Y: np.ndarray
    index: np.ndarray | None


def unmix(F, Y, index=None, widths=WIDTHS, splits=5, starts=20, seed=0):
    """The Rotation of features F to sparse weights of their tasks.      [docs/derivations.md, 10]

    stability: a feature's |correlation| as found from one half of the data with itself as found
    from the other, the mean over so many splits. Halved are the rows, and the tasks too from 20 m
    on; with an index the tasks alone from 20 m on, and else each one's rows. identified: as of
    sparse_rotation, and stability >= 0.95. The width of the spike is that of the most evidence.
    Tasks without variation, or of fewer than m + 2 rows, are left out: their loadings are 0. What
    tasks on the same rows have in common in their errors is not told.
    Raises solvers.NotIdentified where the tasks left tell no basis, as where they are m or fewer;
    ValueError where F, Y and index do not fit.
    """
    if splits < 1 or not len(widths):
        raise ValueError(f"found splits {splits}, widths {widths}: expected one of each, or more")
    sample, mean = checked(F, Y, index)
    rng = np.random.default_rng(seed)
    settings = {"starts": starts, "seed": seed}
    weights = task_weights(sample)
    found = [search(sample.F, weights, settings | {"width": width}) for width in widths]
    chosen = int(np.argmax([info["evidence"] for _, info, _ in found]))
    M, info, kept = found[chosen]
    settings |= {"width": widths[chosen]}
    pairs = (halves(sample, rng) for _ in range(splits))
    stability = np.mean([agreement(M, sample.F, pair, settings) for pair in pairs], axis=0)
    loadings, on = np.zeros((2, len(kept), len(M)))
    loadings[kept], on[kept] = info["loadings"], info["on"]
    return Rotation(
        M, mean, widths[chosen], loadings, on, info["apart"], stability,
        info["identified"] & info["converged"] & (stability >= STABLE),
        float(info["reached"]), float(info["gap"]))


def checked(F, Y, index):
    """The Sample, F of mean 0, and the mean; ValueError where shapes do not fit or values are not
    finite."""
    if np.ma.is_masked(F):
        raise ValueError("F: found masked values: leave their rows out")
    F = np.asarray(F, dtype=np.float64)
    Y = np.ma.filled(np.ma.asarray(Y, dtype=np.float64), np.nan) if np.ma.is_masked(Y) else Y
    Y = np.asarray(Y, dtype=np.float64)
    index = None if index is None else np.asarray(index)
    shape = None if index is None else index.shape
    fits = F.shape[:1] == Y.shape[:1] if index is None else index.shape == Y.shape
    if F.ndim != 2 or Y.ndim != 2 or 0 in (*F.shape, *Y.shape) or not fits:
        raise ValueError(
            "expected F (N, m) and Y (N, T), or Y (T, n) and index (T, n), found "
            f"{F.shape}, {Y.shape}, {shape}")
    if not np.isfinite(F).all() or np.isinf(Y).any() or (index is not None and np.isnan(Y).any()):
        raise ValueError("F or Y holds values that are not finite")
    if index is not None and (
            index.dtype.kind not in "iu" or index.min() < 0 or index.max() >= len(F)):
        raise ValueError(f"index: expected rows of F, integers from 0 to {len(F) - 1}")
    mean = F.mean(axis=0)
    return Sample(F - mean, Y, index), mean


def search(F, weights, settings):
    """M and info of sparse_rotation, and which tasks they are found from, a mask (T,)."""
    W, errors, kept = weights
    if not kept.any():
        m = W.shape[1]
        raise solvers.NotIdentified(
            f"Y: no target varies over {m + 2} rows of {m} independent features")
    C = F.T @ F / len(F)
    M, info = solvers.sparse_rotation(W[kept], C, errors[kept], **settings)
    return M, info, kept


# ------------------------------------------------------------------------------ tasks' weights


def moments(F, Y, index):
    """Of each task: its rows' number n (T,); about their means FF (T, m, m), Fy (T, m), yy (T,);
    and whether its labels vary, a mask (T,)."""
    low, high, count = range_of(Y, 0 if index is None else 1)
    vary = varies(low, high, ROUNDING)
    if index is not None:
        F = F[index] - F[index].mean(axis=1, keepdims=True)
        y = Y - Y.mean(axis=1, keepdims=True)
        n = np.full(len(Y), Y.shape[1])
        return n, F.mT @ F, (F.mT @ y[..., None])[..., 0], np.vecdot(y, y), vary
    n, known = np.maximum(count, 1), np.isfinite(Y)
    Y = np.where(known, Y, 0)
    y = np.where(known, Y - Y.sum(axis=0) / n, 0)                   # of mean 0
    mean, FF = known.T @ F / n[:, None], 0
    for rows in np.array_split(np.arange(len(F)), 1 + len(F) // 10_000):
        FF = FF + known[rows].T @ (F[rows, :, None] * F[rows, None, :]).reshape(len(rows), -1)
    FF = FF.reshape(-1, *mean.shape[1:] * 2) - n[:, None, None] * mean[:, :, None] * mean[:, None]
    return n, FF, y.T @ F, np.vecdot(y, y, axis=0), vary


def task_weights(sample):
    """W (T, m) by least squares, covariances of its errors sigma^2 (F'F)^-1 (T, m, m), and which
    tasks have them, a mask (T,)."""
    n, FF, Fy, yy, vary = moments(*sample)
    m = Fy.shape[1]
    scale = np.sqrt(np.linalg.diagonal(FF))
    scale = np.where(scale > 0, scale, 1)
    least = np.linalg.eigvalsh(FF / scale[:, :, None] / scale[:, None, :])[:, 0]
    kept = (n >= m + 2) & (least > 1e-10) & vary
    inverse = np.linalg.inv(np.where(kept[:, None, None], FF, np.eye(m)))
    W = (inverse @ Fy[..., None])[..., 0]
    left = np.maximum(yy - np.vecdot(W, Fy), 1e-14 * yy)            # rounding, where y is exact
    sigma2 = left / np.maximum(n - m - 1, 1)
    return W, sigma2[:, None, None] * inverse, kept & (W != 0).any(axis=1)


# ------------------------------------------------------------------------------ stability


def halves(sample, rng):
    """Two Samples of disjoint rows, and of disjoint tasks where there are many."""
    F, Y, index = sample
    T, m = Y.shape[1 if index is None else 0], F.shape[1]
    many, tasks = T >= MANY * m, rng.permutation(T)
    rows = rng.permutation(len(F) if index is None else Y.shape[1])
    pair = []
    for half in (0, 1):
        some = tasks[half::2] if many else tasks
        few = rows[half::2]
        if index is None:
            pair.append(Sample(F[few], Y[np.ix_(few, some)], None))
        elif many:
            pair.append(Sample(F, Y[some], index[some]))
        else:
            pair.append(Sample(F, Y[:, few], index[:, few]))
    return pair


def agreement(M, F, pair, settings):
    """|Correlation| of each feature of F M as found from two Samples, (m,); NaN where one does not
    tell a basis."""
    C, found = F.T @ F, []
    for half in pair:
        try:
            M_half, _, _ = search(half.F, task_weights(half), settings)
        except solvers.NotIdentified:
            return np.full(len(M), np.nan)
        M_half = M_half / np.sqrt(np.vecdot(M_half, C @ M_half, axis=0))
        _, place = linear_sum_assignment(-np.abs(M.T @ C @ M_half))
        found.append(M_half[:, place])
    return np.abs(np.vecdot(found[0], C @ found[1], axis=0))
