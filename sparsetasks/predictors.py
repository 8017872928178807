"""predictors.py -- a predictor on the features for each target, for all targets at once.

    F  (N, m)      features                       Y  (N, K)     targets, NaN in gaps
    A  (N, m + 1)  features and a column of ones  f  folds of the rows
    AA (f, K, m + 1, m + 1), Ay (f, K, m + 1), yy (f, K)        sums over a fold's known rows

A fit depends on its rows through such sums alone, and so does its error on other rows: each target
on its own rows, five folds and all penalties, are one batch of small problems for solvers.lasso.
"""
import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score

import solvers
from sparsedis import logistic_lambda_max
from sparsetasks.choice import FOLDS, as_good
from sparsetasks.targets import FEW, class_name
from sparsetasks.unsolved import warn_of_unsolved

SHARES = np.logspace(0, -4, 17)  # of lambda_max
GROUP_SHARES = (0.5, 0.2, 0.1, 0.05, 0.02)  # of that of a classifier
LOG_LOSS = "neg_log_loss"


def solved_lasso(F, y, lam):
    """w of solvers.lasso, with a warning of fits that are not solved."""
    w, info = solvers.lasso(F, y, lam)
    warn_of_unsolved(info)
    return w


LASSO = solved_lasso, solvers.lasso_lambda_max
RIDGE = solvers.ridge, solvers.ridge_lambda_max


def of_numbers(F, Y, head):
    """W (K, m) and b (K,), by the Lasso, or ridge where the head is one.

    The penalty of each target is the largest whose error in cross-validation is within a standard
    error, paired over folds, of the least.                  [Hastie et al. 2009, Sec. 7.10]
    """
    by, largest = LASSO if head.endswith("lasso") else RIDGE
    sums = fold_sums(F, Y)
    total = [a.sum(axis=0) for a in sums]
    errors = np.zeros((len(SHARES), FOLDS, Y.shape[1]))
    for f in range(FOLDS):
        held = [a[f] for a in sums]
        others = [a - its for a, its in zip(total, held, strict=True)]
        for s, share in enumerate(SHARES):
            errors[s, f] = squared_error(*fit(by, largest, share, *others), *held)
    first = as_good(errors).argmax(axis=0)                          # of shares, the largest first
    return fit(by, largest, SHARES[first], *total)


def fold_sums(F, Y):
    """AA, Ay and yy of random folds."""
    fold = np.random.default_rng(0).permutation(len(F)) % FOLDS
    A, known, y = np.c_[F, np.ones(len(F))], np.isfinite(Y).astype(float), np.nan_to_num(Y)
    p = A.shape[1]
    AA, Ay, yy = np.zeros((FOLDS, Y.shape[1], p, p)), [], []
    for f in range(FOLDS):
        rows = np.flatnonzero(fold == f)
        for some in np.array_split(rows, 1 + len(rows) // 10_000):
            pairs = (A[some, :, None] * A[some, None, :]).reshape(len(some), p * p)
            AA[f] += (known[some].T @ pairs).reshape(-1, p, p)
        Ay.append(y[rows].T @ A[rows])
        yy.append(np.vecdot(y[rows], y[rows], axis=0))
    return AA, np.stack(Ay), np.stack(yy)


def fit(by, lambda_max, share, AA, Ay, yy):
    """W (K, m) and b (K,) of the targets with these sums, at a share of lambda_max.

    The problem of m samples with the same F'F/n and F'y/n has the same solution.
    """
    n = np.maximum(AA[:, -1, -1], 1)[:, None]
    mean, y_mean = AA[:, -1, :-1] / n, Ay[:, -1:] / n
    G = AA[:, :-1, :-1] / n[:, :, None] - mean[:, :, None] * mean[:, None, :]
    c = Ay[:, :-1] / n - y_mean * mean
    m = c.shape[1]
    jitter = 1e-9 * np.trace(G, axis1=1, axis2=2)[:, None, None] / m + 1e-12        # F: variance 1
    L = np.linalg.cholesky(G + jitter * np.eye(m))
    F, y = m ** 0.5 * L.mT, m ** 0.5 * np.linalg.solve(L, c[..., None])[..., 0]
    W = by(F, y, share * lambda_max(F, y))
    return W, y_mean[:, 0] - np.vecdot(W, mean)


def squared_error(W, b, AA, Ay, yy):
    """Sum of (y - w'F - b)^2 over a fold's rows, (K,)."""
    w = np.c_[W, b]
    return yy - 2 * np.vecdot(w, Ay) + np.vecdot(w, (AA @ w[..., None])[..., 0])


# ------------------------------------------------------------------------------ classes


def of_classes(F, targets):
    """W (K, k, m) and b (K, k), -inf where a target has no such class; fitted (K, k), classes of
    FEW rows or more; and the names of others, of which b is the logarithm of their share."""
    K, k = len(targets.classes), targets.most
    W, b, rare = np.zeros((K, k, F.shape[1])), np.full((K, k), -np.inf), []
    fitted = np.full((K, k), False)
    for i, names in enumerate(targets.classes):
        known = targets.known[:, i]
        code, size = targets.codes[known, i], len(names)
        count = np.bincount(code, minlength=size)
        b[i, :size] = np.log(count / count.sum())
        fitted[i, :size] = count >= FEW
        rare += [f"{class_name(names[c])} of target {i} (in {count[c]} of {len(code)} rows)"
                 for c in np.flatnonzero(count < FEW)]
        often = np.flatnonzero(count >= FEW)
        rows = np.isin(code, often)
        if len(often) > 1:
            W[i, often], b[i, often] = logistic(F[known][rows], np.searchsorted(often, code[rows]))
    return W, b, fitted, rare


def logistic(F, code):
    """W (k, m) and b (k,) of classes 0 to k - 1: logistic regression on the fewest of the sets of
    features that the group Lasso keeps whose cross-validated loss is within a standard error,
    paired over folds, of the least; then its L2 penalty by cross-validation."""
    k, m = code.max() + 1, F.shape[1]
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        sets = kept_features(F, np.eye(k)[code])
        losses = np.stack([
            -cross_val_score(LogisticRegression(), F[:, on], code, cv=folds, scoring=LOG_LOSS)
            for on in sets])
        on = sets[as_good(losses).argmax()]
        search = GridSearchCV(
            LogisticRegression(), {"C": np.logspace(-4, 3, 8)}, cv=folds, scoring=LOG_LOSS)
        found = search.fit(F[:, on], code).best_estimator_
    W, b = np.zeros((k, m)), np.zeros(k)
    first = slice(1, None) if k == 2 else slice(None)               # of two classes one row is told
    W[first, on], b[first] = found.coef_, found.intercept_
    return W, b


def kept_features(F, Y):
    """Masks (m,) of features that the group Lasso of a classifier keeps, few first, all last; from
    a fit that is not solved, too, for each is judged by the loss of what is fitted on it."""
    sets, lambda_max = [], logistic_lambda_max(F[None], Y[None])
    for share in GROUP_SHARES:
        W, _ = solvers.group_lasso(F[None], Y[None], share * lambda_max, loss="logistic")
        on = (W[0] != 0).any(axis=0)
        if on.any() and not any((on == other).all() for other in sets):
            sets.append(on)
    return [*sets, np.full(F.shape[1], True)]
