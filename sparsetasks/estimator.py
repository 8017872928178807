"""estimator.py -- SparseTasks: the method on other people's data, by scikit-learn's conventions.

    X (N, d) or (N, H, W, C)   rows: a table, or images       Y (N, K)   targets, some missing
    F (N, m)                   features of rows               w, b       a target's predictor

NumPy arrays outside, parameters on the CPU or a GPU inside. The method is
sparsedis.task_objective; a step draws sets of rows, and targets for each set.
"""
import dataclasses
import functools
import numbers
import warnings

import array_api_compat.numpy
import numpy as np
from array_api_compat import to_device
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    MultiOutputMixin,
    RegressorMixin,
    TransformerMixin,
)
from sklearn.linear_model import Lasso, LassoCV, LogisticRegression
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

import solvers
from sparsedis import (
    Snapshot,
    Training,
    adam,
    convnet,
    cosine,
    cpu_threads,
    logistic_lambda_max,
    mlp,
    task_objective,
    train,
)

REAL_HEADS = ("inner-lasso", "inner-ridge", "outer-lasso", "outer-ridge")


@dataclasses.dataclass(eq=False, repr=False)
class SparseTasks(
        ClassNamePrefixFeaturesOutMixin, TransformerMixin, MultiOutputMixin, RegressorMixin,
        BaseEstimator):
    """Features of X (N, d) or (N, H, W, C), learned from many sparse fits of targets Y (N, K).

    Y is real, NaN where a label is missing; likelihood="categorical": classes 0, 1, ..., a negative
    one where missing. X is brought to mean 0 and variance 1 in each column or channel. A step draws
    image_sets sets of `samples` rows, and tasks_per_set targets for each; predictors are fitted on
    `split` rows of a set and scored on the others: with the same few targets again and again, that
    finds correlated factors better than Problem (6) (None).               [L23, Problem (7)]

    encoder_, params_, state_     the trained encoder
    coef_, intercept_             predictors on the features, (K, m) and (K,), or (K, k, m), (K, k):
                                  Lasso where the head is one, else ridge, by cross-validation
    ValueError where X or Y do not fit; FloatingPointError where training diverges.
    """

    n_components: int = 6                   # features, m
    head: str = "inner-lasso"               # one of REAL_HEADS; for classes inner-lasso
    eps: float = 0.5                        # these as of task_objective, split is n_support
    warmup: float = 0.5
    split: int | None = 25
    steps: int = 800                        # these as of Training, adam and cosine
    lr: float = 8e-3
    flat: float = 0.3
    beta1: float = 0.85
    beta2: float = 0.99
    samples: int = 50
    image_sets: int = 4
    tasks_per_set: int = 16
    likelihood: str = "gaussian"            # or categorical
    encoder: str = "auto"                   # mlp or convnet; auto: by the shape of X
    hidden: int = 128                       # units of its hidden layers
    device: str = "cpu"                     # or gpu
    random_state: int = 0

    def fit(self, X, y):
        """Train the encoder, then fit a predictor to each target; y is Y (N, K), or (N,)."""
        training = self.prepare(X, y)
        rng = np.random.default_rng(self.seed())
        params, state = training.encoder.init(rng, xp=library_of(self.device))
        with cpu_threads():
            end = train(training, Snapshot(params, state, None, 0))
            return self.conclude(end, X, y)

    def prepare(self, X, Y):
        """What `train` needs to train the encoder."""
        X, targets = self.check(X, Y)
        xp = library_of(self.device)
        self.encoder_ = self.make_encoder(X.shape[1:])
        self.input_mean_, self.input_scale_ = mean_and_scale(X)
        head = self.head if self.likelihood == "gaussian" else "inner-group-logistic"
        size = targets.size(self.samples)
        split = min(self.split, size - 1) if self.split else None
        objective = task_objective(head, self.eps, self.warmup, split, masked=True)
        optimiser = (
            functools.partial(adam, beta1=self.beta1, beta2=self.beta2),
            functools.partial(cosine, flat=self.flat))

        def sample(step):
            rng = np.random.default_rng([self.seed(), step])
            sets = [targets.draw(rng, size, self.tasks_per_set) for _ in range(self.image_sets)]
            index, y, known = (np.stack(parts) for parts in zip(*sets, strict=True))
            labels = xp.asarray(y), xp.asarray(known)
            return [xp.asarray(self.inputs(X[index.ravel()]))], labels

        return Training(self.encoder_, sample, objective, self.steps, self.lr, optimiser)

    def conclude(self, snapshot, X, Y):
        """Fit the predictors on the features of a trained encoder's Snapshot."""
        X, targets = self.check(X, Y)
        self.params_, self.state_ = (
            {name: to_device(a, "cpu") for name, a in arrays.items()}
            for arrays in (snapshot.params, snapshot.state))
        F = self.encode(X)
        self.mean_, self.deviation_ = mean_and_scale(F)
        F = (F - self.mean_) / self.deviation_
        fits = [targets.predictor(F, k, np.flatnonzero(on), self.head, self.eps)
                for k, on in enumerate(targets.known.T)]
        self.coef_, self.intercept_ = (np.stack(parts) for parts in zip(*fits, strict=True))
        return self

    def transform(self, X):
        """Features (N, m), of mean 0 and variance 1 over the rows of fit."""
        check_is_fitted(self, "coef_")
        return (self.encode(self.check_inputs(X, reset=False)) - self.mean_) / self.deviation_

    def predict(self, X):
        """Targets (N, K), or (N,) where fit was given (N,)."""
        F = self.transform(X)
        if self.likelihood == "categorical":
            scores = F @ np.swapaxes(self.coef_, 1, 2) + self.intercept_[:, None, :]
            found = scores.argmax(axis=2).T                         # of (K, N, k)
        else:
            found = F @ self.coef_.T + self.intercept_
        return found[:, 0] if self.one_target_ else found

    def score(self, X, y):
        """The mean over targets of R^2, or of the accuracy, on the rows that have a label."""
        _, targets = self.check(X, y, reset=False)
        found = np.reshape(self.predict(X), targets.Y.shape)
        score = accuracy_score if self.likelihood == "categorical" else r2_score
        columns = zip(targets.Y.T, found.T, targets.known.T, strict=True)
        return float(np.mean([score(y[on], its[on]) for y, its, on in columns if on.sum() > 1]))

    # ---- what these are made of

    @property
    def _n_features_out(self):
        return self.n_components

    def check(self, X, Y, reset=True):
        """X (N, d) or (N, H, W, C), and Targets; ValueError where they do not fit."""
        if Y is None:
            raise ValueError("requires y to be passed, but the target y is None")
        if reset:
            self.check_settings()
        X, targets = self.check_inputs(X, reset), Targets(Y, self.likelihood, few=not reset)
        if len(targets.Y) != len(X):
            raise ValueError(f"Y: found {len(targets.Y)} rows, expected those of X, {len(X)}")
        if reset:
            self.one_target_ = targets.one
        return X, targets

    def check_settings(self):
        """Refuse names that are none, and heads that do not take the targets."""
        heads = REAL_HEADS if self.likelihood == "gaussian" else ("inner-lasso",)
        allowed = {"likelihood": ("gaussian", "categorical"), "head": heads,
                   "device": ("cpu", "gpu")}
        for name, values in allowed.items():
            found = getattr(self, name)
            if found not in values:
                raise ValueError(f"{name}: found {found}, expected one of {', '.join(values)}")

    def seed(self):
        """random_state as a number; scikit-learn's generators draw one, at the first fit."""
        if isinstance(self.random_state, numbers.Integral):
            return int(self.random_state)
        if not hasattr(self, "seed_"):
            self.seed_ = int(check_random_state(self.random_state).randint(2 ** 31 - 1))
        return self.seed_

    def check_inputs(self, X, reset):
        """X (N, d) or (N, H, W, C), an array of numbers."""
        X = validate_data(self, X, reset=reset, allow_nd=True)
        X = X[..., None] if X.ndim == 3 else X
        if X.ndim not in (2, 4) or (X.ndim == 4 and min(X.shape[1:3]) < 8):
            raise ValueError(
                f"X: found {X.shape}, expected (N, d) or (N, H, W, C) with H and W from 8")
        if reset and len(X) < 2:
            raise ValueError("X: found 1 sample, expected 2 or more")
        if not reset and X.shape[1:] != self.input_shape_:
            raise ValueError(f"X: found rows {X.shape[1:]}, expected {self.input_shape_}")
        if reset:
            self.input_shape_ = X.shape[1:]
        return X

    def make_encoder(self, shape):
        """The encoder for rows of a shape."""
        fitting = "mlp" if len(shape) == 1 else "convnet"
        if self.encoder not in ("auto", fitting):
            raise ValueError(f"encoder: found {self.encoder}, expected {fitting} for rows {shape}")
        if fitting == "convnet":
            return convnet(self.n_components, shape, hidden=self.hidden)
        return mlp([*shape, self.hidden, self.hidden, self.n_components])

    def inputs(self, X, dtype=np.float32):
        """Rows as the encoder takes them."""
        return ((X - self.input_mean_) / self.input_scale_).astype(dtype)

    def encode(self, X):
        """What the encoder puts out, (N, m), in evaluation; in double precision for a table."""
        dtype = np.float64 if X.ndim == 2 else np.float32
        params = {name: a.astype(dtype) for name, a in self.params_.items()}

        def rows(index):
            return self.inputs(X[index], dtype)

        with cpu_threads():
            F = self.encoder_.encode(params, self.state_, rows, np.arange(len(X)))
        return F.astype(np.float64)


class Targets:
    """Y (N, K), of which known (N, K) tells what is no gap, and labels as the heads take them:
    (N, K), standardised, or (N, K, k) one-hot."""

    def __init__(self, Y, likelihood, few=False):
        Y = check_array(Y, ensure_2d=False, ensure_all_finite="allow-nan", input_name="Y")
        self.one = Y.ndim == 1
        self.Y = Y = Y[:, None] if self.one else Y
        self.classes = likelihood == "categorical"
        self.known = Y >= 0 if self.classes else ~np.isnan(Y)
        poor = np.flatnonzero(self.known.sum(axis=0) < 2)
        if len(poor) and not few:
            raise ValueError(f"Y: column {poor[0]} has fewer than 2 labels")
        self.labels = one_hot(Y, self.known) if self.classes else standardised(Y, self.known)

    def size(self, most):
        """Rows of a set: `most`, but no more than half of the targets have labels."""
        return int(min(most, np.median(self.known.sum(axis=0))))

    def draw(self, rng, size, count):
        """A set's rows (size,), the labels (count, size[, k]) of `count` targets, and their mask.

        All rows have a label of one target, drawn from those with so many; the others are drawn
        from those that have labels in half of the rows or more.
        """
        first = rng.choice(np.flatnonzero(self.known.sum(axis=0) >= size))
        index = rng.choice(np.flatnonzero(self.known[:, first]), size, replace=False)
        known, labels = self.known[index], self.labels[index]
        others = rng.permutation(np.flatnonzero(known.mean(axis=0) >= 0.5))
        count = min(count, self.known.shape[1])
        tasks = np.resize([first, *others[others != first]], count)     # again, if too few
        return index, np.swapaxes(labels[:, tasks], 0, 1), known[:, tasks].T

    def predictor(self, F, k, rows, head, eps):
        """w (m,) and an intercept for target k, fitted on rows of F; for classes W (k, m) and k."""
        F, y = F[rows], self.Y[rows, k]
        if self.classes:
            return class_predictor(F, y.astype(int), self.labels[rows, k], head, eps)
        if not head.endswith("lasso"):
            return ridge_by_folds(F, y)
        return lasso_by_folds(F, y)

    def predict(self, F, w, b):
        """What one predictor says of F (N, m)."""
        scores = F @ w.T + b
        return scores.argmax(axis=1) if self.classes else scores


def mean_and_scale(X):
    """Mean and deviation of each column or channel; 1 for the deviation of a constant one."""
    axes = tuple(range(X.ndim - 1))
    mean, scale = (f(X, axis=axes, dtype=np.float64) for f in (np.mean, np.std))
    return mean, np.where(scale > 1e-9 * (1 + np.abs(mean)), scale, 1)


def standardised(Y, known):
    """Columns of mean 0 and variance 1, 0 where nothing is known."""
    out = np.zeros(Y.shape)
    for k, on in enumerate(known.T):
        if on.any():
            mean, scale = mean_and_scale(Y[on, k, None])
            out[on, k] = (Y[on, k] - mean) / scale
    return out


def one_hot(Y, known):
    """Classes (N, K) -> (N, K, k), any class where nothing is known."""
    classes = np.where(known, Y, 0).astype(int)
    if (classes != np.where(known, Y, 0)).any():
        raise ValueError("Y: found numbers that are no classes 0, 1, ...")
    if classes.max() > 1000:
        raise ValueError(f"Y: found class {classes.max()}, expected 0, 1, ... without gaps")
    return np.eye(max(2, classes.max() + 1))[classes]


def lasso_by_folds(F, y):
    """w and the intercept of the Lasso, its penalty by 5-fold cross-validation: the largest whose
    error is within one standard error of the least.    [Hastie et al. 2009, Sec. 7.10]
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                             # of few rows, early stops
        folds = KFold(min(5, len(y)), shuffle=True, random_state=0)
        search = LassoCV(cv=folds).fit(F, y)
        error, spread = search.mse_path_.mean(axis=1), search.mse_path_.std(axis=1)
        best = np.argmin(error)
        within = error <= error[best] + spread[best] / search.mse_path_.shape[1] ** 0.5
        fit = Lasso(search.alphas_[within].max()).fit(F, y)
    return fit.coef_, fit.intercept_


def ridge_by_folds(F, y):
    """w and the intercept of ridge regression, the penalty by 5-fold cross-validation.

    One singular value decomposition a fold serves all penalties: scikit-learn's takes one each.
    """
    penalties = np.logspace(-4, 3, 15)
    fold = np.random.default_rng(0).permutation(len(y)) % min(5, len(y))
    errors = 0
    for k in range(fold.max() + 1):
        W, b = ridge_path(F[fold != k], y[fold != k], penalties)
        errors = errors + np.sum((F[fold == k] @ W.T + b - y[fold == k][:, None]) ** 2, axis=0)
    W, b = ridge_path(F, y, penalties[np.argmin(errors)][None])
    return W[0], b[0]


def ridge_path(F, y, penalties):
    """Minimisers of ||y - F w - b||^2/n + penalty ||w||^2, W (len(penalties), m) and b."""
    mean = F.mean(axis=0)
    U, s, Vt = np.linalg.svd(F - mean, full_matrices=False)
    shrunk = s / (s ** 2 + len(y) * penalties[:, None])
    W = (shrunk * ((y - y.mean()) @ U)) @ Vt
    return W, y.mean() - W @ mean


def class_predictor(F, y, labels, head, eps):
    """W (k, m) and intercepts (k,), -inf for a class that y lacks.

    Where the head is a Lasso, the group Lasso at eps says which features; logistic regression on
    them is fitted anew, its L2 penalty by 5-fold cross-validation.
    """
    k, m = labels.shape[1], F.shape[1]
    W, b = np.zeros((k, m)), np.full(k, -np.inf)
    count = np.bincount(y)
    seen = np.flatnonzero(count)
    b[seen] = np.log(count[seen])                                   # as often as they were seen
    on = np.full(m, True)
    if head.endswith("lasso") and eps > 0 and len(seen) > 1:
        F_one, Y_one = F[None], labels[None]
        lam = eps * logistic_lambda_max(F_one, Y_one)
        fitted, _ = solvers.group_lasso(F_one, Y_one, lam, loss="logistic")
        on = (fitted[0] != 0).any(axis=0)
    if len(seen) == 1 or count[seen].min() < 2 or not on.any():
        return W, b
    folds = KFold(min(5, len(y)), shuffle=True, random_state=0)
    search = GridSearchCV(
        LogisticRegression(max_iter=1000), {"C": np.logspace(-2, 2, 5)}, cv=folds, error_score=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                             # of folds of one class
        fit = search.fit(F[:, on], y).best_estimator_
    first = seen[1:] if len(seen) == 2 else seen                    # of two classes one row is told
    b[seen] = 0
    W[np.ix_(first, on)], b[first] = fit.coef_, fit.intercept_
    return W, b


def library_of(name):
    """The array library of a device, cpu or gpu."""
    if name == "cpu":
        return array_api_compat.numpy
    import array_api_compat.cupy as xp

    return xp
