"""linear.py -- the linear encoder: ridge for every target, then the leading directions of these.

    X (N, d)     rows of mean 0 and variance 1         Y (N, K)   targets likewise, NaN in gaps
    B (d, K)     ridge coefficients, a penalty for each target
    A (d, m)     the encoder, F = X A: the leading directions of the predictions X B

Reduced-rank regression [Izenman 1975], with ridge in the place of least squares.
"""
import numpy as np
from sklearn.decomposition import PCA

from sparsetasks.choice import FOLDS, as_good
from sparsetasks.targets import mean_and_scale

PENALTIES = np.logspace(-3, 5, 17)
MOST = 20  # features that n_components="auto" considers
WIDE = 2000  # columns of a table, for more of which stand their largest principal components
PIXELS = 500  # so many components stand for the pixels of images
ENOUGH = 600  # rows held out to compare numbers of features
SLIGHT = 1e-3  # of the targets' variance: no feature is added for less


class ReducedRankRidge:
    """The linear encoder of rows X (N, d) by their targets Y (N, K), fitted on all rows or some;
    of more than `most` columns, and of more than rows, of their principal components."""

    def __init__(self, X, Y, most=WIDE):
        most = min(most, max(1, len(X) - 1))                        # N - 1 components lose nothing
        self.P = principal(X, most) if X.shape[1] > most else np.eye(X.shape[1])       # (d, p)
        self.X, self.Y = np.asarray(X @ self.P, dtype=np.float64), Y

    def encoder(self, m, rows):
        """A (d, m), from some rows; fewer than m columns where X has a lower rank."""
        X, Y = self.X[rows], self.Y[rows]
        return self.P @ leading_directions(X, Y, penalties(X, Y), m)

    def out_of_fold(self, F):
        """The features F (N, m) as encoders tell them that did not see the row: of each fold the
        encoder of the others, brought to F by least squares on these.  [Wolpert 1992]"""
        X, Y, found = self.X, self.Y, np.empty_like(F)
        fold = np.random.default_rng(0).permutation(len(F)) % min(FOLDS, len(F))
        for f in range(fold.max() + 1):
            held, on = fold == f, fold != f
            A = leading_directions(X[on], Y[on], penalties(X[on], Y[on]), F.shape[1])
            x_mean, F_mean = X[on].mean(axis=0), F[on].mean(axis=0)
            to_F = np.linalg.pinv((X[on] - x_mean) @ A) @ (F[on] - F_mean)
            found[held] = F_mean + (X[held] - x_mean) @ A @ to_F
        return found

    def rank_by_held_out(self, rng):
        """The number of features beyond which held-out rows are not predicted better: the fewest
        whose squared error is within a standard error, paired over rows, of the least one's, or
        SLIGHT; and that one. Tenths of the rows are held out until ENOUGH rows were.
        """
        X, Y = self.X, self.Y
        fold = rng.permutation(len(X)) % min(10, len(X))
        folds = min(fold.max() + 1, -(-ENOUGH // np.sum(fold == 0)))
        most = min(*X.shape, Y.shape[1], MOST)
        losses = np.concatenate(
            [losses_of_ranks(X, Y, fold == f, most) for f in range(folds)], axis=1)
        losses = losses[:, np.isfinite(losses).all(axis=0)]         # of rows with a label
        if not losses.size:
            return 1, 1
        best = int(losses.mean(axis=1).argmin())
        return 1 + int(as_good(losses, SLIGHT).argmax()), 1 + best


def leading_directions(X, Y, penalty, m):
    """A (d, m): the leading m directions in X of ridge's predictions of Y, then, where these are
    fewer, of X itself."""
    X = X - X.mean(axis=0)
    B = ridge(X, Y, penalty)
    A = B @ leading_of(X, B)[:, :m]
    if A.shape[1] < m:
        F = X @ A
        left = X - F @ np.linalg.lstsq(F, X, rcond=None)[0]
        A = np.c_[A, leading(left, np.linalg.norm(X))[:, :m - A.shape[1]]]
    return A


def losses_of_ranks(X, Y, held, most):
    """Mean squared error over targets of the held-out rows (most, rows), by 1, 2, ... features;
    NaN for a row without a label."""
    train, mean = X[~held], X[~held].mean(axis=0)
    B = ridge(train, Y[~held], penalties(train, Y[~held]))
    V, fitted, P = leading_of(train - mean, B), (train - mean) @ B, (X[held] - mean) @ B
    known, losses = np.isfinite(Y[held]).sum(axis=1), []
    for m in range(1, most + 1):
        U = V[:, :m] @ V[:, :m].T
        b, _ = mean_and_scale(Y[~held] - fitted @ U)                # a target's, on its own rows
        losses.append(np.nansum((Y[held] - b - P @ U) ** 2, axis=1))
    return np.stack(losses) / np.where(known, known, np.nan)


def leading_of(X, B):
    """leading(X B), by way of fewer rows: where X = QR, those of R B."""
    return leading(np.linalg.qr(X, mode="r") @ B)


def leading(P, unit=0.0):
    """The right singular vectors of P (N, K), largest first, but for singular values that are 0
    beside the largest or a unit."""
    _, size, Vt = np.linalg.svd(P, full_matrices=False)
    return Vt[size > 1e-10 * max(size[0], unit, 1e-300)].T


def principal(X, count):
    """(d, p): so many of the largest principal directions of X (N, d), or all."""
    return PCA(min(count, len(X) - 1), random_state=0).fit(X).components_.T


# ------------------------------------------------------------------------------ ridge


def ridge(X, Y, penalty):
    """B (d, K): minimisers of ||y - X b||^2 + penalty ||b||^2, of means 0, a penalty each (K,)."""
    B = np.zeros((X.shape[1], Y.shape[1]))
    for X_on, Y_on, same in by_rows(X, Y):
        gram, c = X_on.T @ X_on, X_on.T @ Y_on
        for value in np.unique(penalty[same]):
            some = penalty[same] == value
            B[:, same[some]] = np.linalg.solve(gram + value * np.eye(len(gram)), c[:, some])
    return B


def penalties(X, Y):
    """The penalty of each target (K,) of the least leave-one-out errors, (y - y_hat)/(1 - h), h
    the leverage of a row: one decomposition for all penalties and targets on the same rows.
                                                                 [Hastie et al. 2009, Sec. 7.10]
    """
    chosen = np.ones(Y.shape[1])
    for X_on, y, same in by_rows(X, Y):
        e, V = np.linalg.eigh(X_on.T @ X_on)
        Z = X_on @ V                                                # (n, d), of squares e
        c, squares, errors = Z.T @ y, Z * Z, []
        for penalty in PENALTIES:
            shrunk = 1 / (np.maximum(e, 0) + penalty)
            kept = 1 - 1 / len(y) - squares @ shrunk                # 1 - h, (n,)
            left = (y - Z @ (shrunk[:, None] * c)) / kept[:, None]
            errors.append(np.vecdot(left, left, axis=0))
        chosen[same] = PENALTIES[np.argmin(errors, axis=0)]
    return chosen


def by_rows(X, Y):
    """For the targets that have labels on the same rows, two or more: these rows of X and Y, of
    mean 0, and the targets' numbers."""
    known, patterns = np.isfinite(Y), {}
    for k, on in enumerate(known.T):
        patterns.setdefault(on.tobytes(), []).append(k)
    for same in patterns.values():
        rows = known[:, same[0]]
        if rows.sum() < 2:
            continue
        X_on, Y_on = X[rows], Y[np.ix_(rows, same)]
        yield X_on - X_on.mean(axis=0), Y_on - Y_on.mean(axis=0), np.array(same)
