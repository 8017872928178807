"""estimator.py -- SparseTasks: the method on other people's data, by scikit-learn's conventions.

    X (N, d) or (N, H, W, C)   rows: a table, or images       Y (N, K)   targets, some missing
    F (N, m)                   features of rows               W, b       the targets' predictors

fit has three stages: an encoder, linear or a network, whichever predicts rows held out of its own
fit better; a rotation of its features; predictors on these. Arrays outside are NumPy's; a network
is trained on the CPU or a GPU.
"""
import dataclasses
import numbers
import warnings

import array_api_compat.numpy
import numpy as np
from array_api_compat import to_device
from scipy.special import logsumexp
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin, TransformerMixin
from sklearn.metrics import r2_score
from sklearn.utils import ClassifierTags, check_array, check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import (
    _check_feature_names_in,
    _check_sample_weight,
    check_is_fitted,
    validate_data,
)

from sparsedis import convnet, cpu_threads, mlp
from sparsetasks import linear, network, predictors
from sparsetasks.choice import as_good
from sparsetasks.rotation import STABLE, unmix
from sparsetasks.targets import Targets, mean_and_scale, some, standardised

REAL_HEADS = ("inner-lasso", "inner-ridge", "outer-lasso", "outer-ridge")
ROWS, ROWS_A_COLUMN = 500, 20  # of X, from which on auto tries a network
FEW_TARGETS = 4  # a feature, below which the rotation may take the inputs, too
SPARSE = 0.55  # of the inputs' loadings, the most that may not be small then


def parameter(default, low=None, high=np.inf, choices=None, also=()):
    """A parameter of SparseTasks: its default, and its bounds and what is `also` allowed, or its
    choices. Bounds of real numbers are written with a point."""
    bounds = {"low": low, "high": high, "choices": choices, "also": also}
    return dataclasses.field(default=default, metadata=bounds)


@dataclasses.dataclass(eq=False, repr=False)
class SparseTasks(TransformerMixin, MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Features of X (N, d) or (N, H, W, C) of which each of the targets Y (N, K) needs few.

    Y is real, NaN where a label is missing; likelihood="categorical": classes, numbers or texts,
    missing where negative, NaN, None or "". X is brought to mean 0 and variance 1 in each column or
    channel. The encoder is linear (reduced-rank ridge) or a network that is trained through many
    sparse fits [L23, Problem (7)]; the rotation then makes the targets' weights sparse, and a
    predictor on the features is fitted to each target.            [docs/derivations.md, 10]

    n_components_, encoder_       features and encoder, as chosen
    network_, params_, state_     the encoder: sparsedis.Encoder and its arrays
    rotation_ (m, m)              of its features
    loadings_ (C, m), stability_ (m,), identified_ (m,)      as of rotation.Rotation, on the encoder
                                  of all rows; C are the targets, or the classes of two rows or more
                                  (one of two); then, where these are few, the inputs; none is
                                  identified where not predictive_
    predictive_                   False: rows held out are predicted no better than by the means
    coef_, intercept_             predictors on the features, (K, m) and (K,), or (K, k, m), (K, k);
                                  where the encoder is linear, fitted to out-of-fold features
    classes_                      of each target, of y (N,) the array itself, or None
    held_out_                     encoder -> R^2 on rows held out of its fit, but not of the choice
                                  of n_components and of a network's step;  loss_curve_, its loss
    Warns of features that are not identified and of classes too rare to be fitted.
    ValueError where parameters, X or Y do not fit; FloatingPointError where training diverges.
    """

    n_components: int | str = parameter(    # features, m; auto: as many as held-out rows ask for,
        # predicted by the linear encoder, 20 at most
        "auto", 1, also=("auto",))
    encoder: str = parameter(               # auto: linear, or the network that fits X
        "auto", choices=("auto", "linear", "mlp", "convnet"))
    rotate: bool = parameter(True, choices=(True, False))
    validation: float = parameter(0.1, 0.0, 0.5)                    # share of rows held out
    likelihood: str = parameter("gaussian", choices=("gaussian", "categorical"))
    head: str = parameter(                  # in a network and of predictors; classes: inner-lasso
        "inner-lasso", choices=REAL_HEADS)
    eps: float = parameter(0.5, 0.0, 1.0)   # from here on of networks, as of task_objective
    warmup: float = parameter(0.5, 0.0, 1.0)
    split: int | None = parameter(25, 1, also=(None,))
    steps: int = parameter(800, 1)          # these as of Training, adam and cosine
    lr: float = parameter(8e-3, 1e-12)
    flat: float = parameter(0.3, 0.0, 1.0)
    beta1: float = parameter(0.85, 0.0, 0.99999)
    beta2: float = parameter(0.99, 0.0, 0.99999)
    weight_decay: float = parameter(0.0, 0.0)
    samples: int = parameter(50, 2)
    image_sets: int = parameter(4, 1)
    tasks_per_set: int = parameter(16, 1)
    hidden: int = parameter(128, 1)         # units of its hidden layers
    device: str = parameter("cpu", choices=("cpu", "gpu"))
    random_state: int = 0
    verbose: int = parameter(0, 0)

    def fit(self, X, y):
        """Find the features, then a predictor for each target; y is Y (N, K), or (N,)."""
        self._check_parameters()
        vars(self).pop("coef_", None)                               # not fitted, until it is
        X, targets = self._check(X, y)
        self.seed_ = seed_of(self.random_state)
        one = targets.one and targets.classes is not None
        self.classes_, self.loss_curve_ = targets.classes[0] if one else targets.classes, []
        self.input_mean_, self.input_scale_ = mean_and_scale(X)
        ridge = self._find_encoder(X, targets)
        F = self._encode(X)
        self.mean_, self.deviation_ = mean_and_scale(F)
        F = (F - self.mean_) / self.deviation_
        self._find_rotation(F, X, targets)
        if self.encoder_ == "linear":                               # F follows its own rows' labels
            F = ridge.out_of_fold(F)
        self._find_predictors(F @ self.rotation_, targets)
        return self

    def transform(self, X):
        """Features (N, m), of mean 0 and variance 1 over the rows of fit."""
        return self._features(X)

    def predict(self, X):
        """Targets (N, K), or (N,) where fit was given (N,)."""
        found = self.predict_from(self._features(X))
        return found[:, 0] if self.one_target_ else found

    def predict_from(self, F):
        """Targets (N, K) of rows of these features (N, m)."""
        if self.likelihood == "gaussian":
            return F @ self.coef_.T + self.intercept_
        code = self._logits(F).argmax(axis=2)                       # (K, N)
        pairs = zip(self._names(), code, strict=True)
        return np.stack([names[c] for names, c in pairs], axis=1)

    @available_if(lambda self: self.likelihood == "categorical")
    def predict_proba(self, X):
        """Probabilities (N, k) of each target's classes, a list; one where fit was given (N,)."""
        logits = self._logits(self._features(X))
        p = np.exp(logits - logits.max(axis=2, keepdims=True))
        p = p / p.sum(axis=2, keepdims=True)
        found = [a[:, :len(names)] for a, names in zip(p, self._names(), strict=True)]
        return found[0] if self.one_target_ else found

    def _names(self):
        """classes_ of each target, a list also where fit was given (N,)."""
        return [self.classes_] if self.one_target_ else self.classes_

    def score(self, X, y, sample_weight=None):
        """The mean over targets of two labels or more of R^2, or of the accuracy, on the rows that
        have one, and a weight above 0. ValueError where no target has."""
        check_is_fitted(self, "coef_")
        _, targets = self._check(X, y, reset=False)
        found = self.predict(X).reshape(targets.known.shape)
        weight = _check_sample_weight(sample_weight, found)
        score = r2_score if self.classes_ is None else accuracy
        known = targets.known & (weight > 0)[:, None]
        columns = zip(targets.Y.T, found.T, known.T, strict=True)
        scores = [score(y[on], its[on], sample_weight=weight[on])
                  for y, its, on in columns if on.sum() > 1]
        if not scores:
            raise ValueError("y: no target has two labels to score")
        return float(np.mean(scores))

    def __sklearn_tags__(self):
        """What scikit-learn asks: of classes it is a classifier."""
        tags = super().__sklearn_tags__()
        if self.likelihood == "categorical":
            tags.estimator_type, tags.regressor_tags = "classifier", None
            tags.classifier_tags = ClassifierTags()
        return tags

    def get_feature_names_out(self, input_features=None):
        """feature0, feature1, ..."""
        check_is_fitted(self, "coef_")
        if len(self.input_shape_) == 1:                             # images have no names
            _check_feature_names_in(self, input_features)
        return np.array([f"feature{j}" for j in range(self.n_components_)], dtype=object)

    # ---- the encoder

    def _find_encoder(self, X, targets):
        """n_components_, and of the encoders that are tried the one that predicts held-out rows
        best, or the linear one where that is within a standard error."""
        columns, tried = targets.columns, self._encoders_to_try(X)
        rng = np.random.default_rng(self.seed_)
        held = HeldOut(columns, self.validation, rng)
        ridge, self.n_components_ = None, self.n_components
        if "linear" in tried or self.n_components == "auto":
            ridge = self._ridge(X, columns)
        if self.n_components == "auto":
            self.n_components_ = count_features(ridge, rng)
        found, errors = {}, {}
        for name in tried:
            try:
                found[name] = (self._fit_linear(ridge, held.rows) if name == "linear"
                               else self._fit_network(X, targets, held))
            except FloatingPointError as error:
                if not found:
                    raise
                warn(f"the {name} is left out: {error}")
                continue
            self._use(*found[name])
            errors[name] = held.errors(self._encode(X[held.looked]))
        self.held_out_ = {name: 1 - float(e.mean()) for name, e in errors.items() if len(e)}
        self.encoder_ = simplest(errors)
        own = errors[self.encoder_]
        rivals = {"means": held.of_means, "features": own}
        self.predictive_ = not len(own) or simplest(rivals) == "features"
        if not self.predictive_:
            warn("the features predict rows held out no better than the targets' means do")
        if self.n_components == "auto" and self.encoder_ != "linear":
            warn(f"n_components: {self.n_components_}, as many as the linear encoder asks for; the "
                 f"{self.encoder_} may use more, if it is told how many")
        if self.encoder_ == "linear":                               # now on all rows
            found["linear"] = self._fit_linear(ridge, np.arange(len(X)))
        self._use(*found[self.encoder_])
        return ridge

    def _ridge(self, X, columns):
        """The linear encoder, to be fitted to all rows or some."""
        most = linear.WIDE if X.ndim == 2 else linear.PIXELS
        if X.ndim == 2 and min(X.shape) > most:
            warn(f"X: {X.shape[1]} columns stand for their {most} largest principal components", 5)
        return linear.ReducedRankRidge(self._flattened(X), columns, most)

    def _encoders_to_try(self, X):
        """Names of encoders, the simplest first."""
        fitting = "mlp" if X.ndim == 2 else "convnet"
        if self.encoder not in ("auto", "linear", fitting):
            refuse("encoder", self.encoder, f"{fitting} for rows {X.shape[1:]}")
        if self.encoder != "auto":
            return [self.encoder]
        if self.n_components != "auto" and self.n_components > X[0].size:
            return [fitting]                                        # a linear one has d at most
        enough = max(ROWS, ROWS_A_COLUMN * X.shape[1] if X.ndim == 2 else 0)
        return ["linear", fitting] if len(X) >= enough and self.validation else ["linear"]

    def _fit_linear(self, ridge, rows):
        """The linear encoder, a network of one layer, and its arrays."""
        A = ridge.encoder(self.n_components_, rows)
        if not A.shape[1]:
            raise ValueError("X: found constant columns alone")
        least = self.n_components_ if len(rows) == len(ridge.X) else 1          # some may have less
        if A.shape[1] < least:
            refuse("n_components", self.n_components_, f"at most the rank of X, {A.shape[1]}")
        return mlp([*A.shape]), {"linear1.W": A, "linear1.b": np.zeros(A.shape[1])}, {}

    def _fit_network(self, X, targets, held):
        """The network at the step that predicts held-out rows best."""
        if X.ndim == 4:
            encoder = convnet(self.n_components_, X.shape[1:], hidden=self.hidden)
        else:
            encoder = mlp([X.shape[1], self.hidden, self.hidden, self.n_components_])

        def errors(now):
            self._use(encoder, now.params, now.state)
            return held.errors(self._encode(X[held.looked]))

        known = targets.known.copy()
        known[held.out] = False
        if known.sum(axis=0).max() < 2:
            refuse("validation", self.validation, "0: no target has two labels in the other rows")
        best, self.loss_curve_ = network.fit(
            encoder, lambda index: self._standard(X[index], np.float32), known, targets.labels,
            errors, self, self.seed_, library_of(self.device))
        return encoder, best.params, best.state

    def _use(self, encoder, params, state):
        """Take an encoder as that of transform."""
        self.network_ = encoder
        self.params_, self.state_ = (
            {name: to_device(a, "cpu") for name, a in arrays.items()} for arrays in (params, state))

    def _standard(self, X, dtype):
        """Rows as encoders take them."""
        return ((X - self.input_mean_) / self.input_scale_).astype(dtype)

    def _flattened(self, X):
        """Standardised rows (N, d); those of images in single precision, for they are many."""
        return self._standard(X, np.float64 if X.ndim == 2 else np.float32).reshape(len(X), -1)

    def _encode(self, X):
        """What the encoder puts out, (N, m); of a table in double precision."""
        dtype = np.float64 if X.ndim == 2 else np.float32
        params = {name: a.astype(dtype) for name, a in self.params_.items()}
        rows = self._flattened if self.network_.spec.name == "mlp" else (
            lambda X: self._standard(X, dtype))
        with cpu_threads():
            F = self.network_.encode(
                params, self.state_, lambda index: rows(X[index]), np.arange(len(X)))
        return F.astype(np.float64)

    def _features(self, X):
        """What transform gives, which scikit-learn may make a frame of."""
        check_is_fitted(self, "coef_")
        return self.features_of(self._check_inputs(X, reset=False))

    def features_of(self, X):
        """What transform gives, of rows that are checked."""
        return (self._encode(X) - self.mean_) / self.deviation_ @ self.rotation_

    # ---- the rotation

    def _find_rotation(self, F, X, targets):
        """rotation_, to sparse weights, and what it tells."""
        m, columns = self.n_components_, targets.columns
        self.rotation_, self.loadings_ = np.eye(m), None
        self.stability_, self.identified_ = np.full(m, np.nan), np.full(m, False)
        if not self.rotate:
            return
        if m > columns.shape[1]:
            warn(f"{m} features for {columns.shape[1]} targets: more than these can tell")
        few = columns.shape[1] < FEW_TARGETS * m
        try:
            found = self._unmix_by_all(F, X, columns) if few and X.ndim == 2 else None
            if found and m > 1:
                warn("few targets: the inputs take part in the rotation and in what is identified")
            found = found or unmix(F, columns, **self._search(columns))
        except ValueError as error:                                 # no target tells a basis
            warn(f"the features are not rotated: {error}")
            return
        self.rotation_, self.loadings_ = found.M, found.loadings
        self.stability_, self.identified_ = found.stability, found.identified & self.predictive_
        stable = found.stability >= STABLE
        reason = "too few targets tell it apart" if self.predictive_ else "nothing is predicted"
        doubtful = [
            f"feature{j} (" + (reason if stable[j] else
                               f"stability {found.stability[j]:.3f}, below {STABLE}") + ")"
            for j in np.flatnonzero(~self.identified_)]
        if doubtful:
            warn(f"not identified: {', '.join(doubtful)}")

    def _unmix_by_all(self, F, X, targets):
        """The Rotation by few targets and the inputs, as factor analysis has it; None where the
        inputs' loadings are no sparser than the targets', as where they are mixtures of factors,
        and where no target varies."""
        columns = np.c_[targets, standardised(X)]
        found = unmix(F, columns, **self._search(columns))
        share = found.on.mean(axis=1)                               # of loadings that are not small
        share[~found.loadings.any(axis=1)] = np.nan                 # constant columns
        of_targets, of_inputs = np.split(share, [targets.shape[1]])
        if np.isnan(of_targets).all():
            return None
        of_targets, of_inputs = np.nanmean(of_targets), np.nanmean(of_inputs)
        return found if of_inputs <= min(of_targets, SPARSE) else None

    def _search(self, columns):
        """How unmix searches: with fewer targets fewer starts reach the best."""
        starts = int(np.clip(6000 / columns.shape[1], 10, 60))
        return {"splits": 3, "starts": starts, "seed": self.seed_}

    # ---- predictors

    def _find_predictors(self, F, targets):
        """coef_ and intercept_, on features F (N, m)."""
        if targets.classes is not None:
            self.coef_, self.intercept_, self.fitted_, rare = predictors.of_classes(F, targets)
            if rare:
                warn(f"too few rows to be fitted, told by their share alone: {some(rare)}")
            return
        mean, scale = self.target_mean_, self.target_scale_ = mean_and_scale(targets.Y)
        W, b = predictors.of_numbers(F, targets.columns, self.head)
        self.coef_, self.intercept_ = W * scale[:, None], b * scale + mean

    def _logits(self, F):
        """(K, N, k), of each class of each target, from features F (N, m); where some are fitted,
        the logarithm of its probability, which is its share for a class that is not."""
        found = F @ self.coef_.mT + self.intercept_[:, None, :]
        fitted = self.fitted_[:, None, :]
        share = 1 - np.where(fitted, 0, np.exp(found)).sum(axis=2, keepdims=True)
        with np.errstate(all="ignore"):                             # of targets that are not fitted
            total = logsumexp(found, axis=2, keepdims=True, b=fitted)
            return np.where(fitted, found - total + np.log(share), found)

    # ---- checks

    def _check_parameters(self):
        """Refuse what cannot be meant, by the parameter's name."""
        for field in dataclasses.fields(self):
            check_parameter(field, getattr(self, field.name))
        if self.likelihood == "categorical" and self.head != "inner-lasso":
            refuse("head", self.head, "inner-lasso, for classes")

    def _check(self, X, Y, reset=True):
        """X (N, d) or (N, H, W, C), and Targets; ValueError where they do not fit."""
        if Y is None:
            raise ValueError("requires y to be passed, but the target y is None")
        X = self._check_inputs(X, reset)
        targets = Targets(Y, self.likelihood, least=2 if reset else 0)
        if len(targets.known) != len(X):
            raise ValueError(f"Y: found {len(targets.known)} rows, expected those of X, {len(X)}")
        if reset:
            self.one_target_ = targets.one
            if targets.negative:
                warn(f"{targets.negative} of {targets.known.size} classes are negative numbers, "
                     "which are taken as missing")
        elif targets.known.shape[1] != len(self.coef_):
            raise ValueError(f"Y: found {targets.known.shape[1]} targets, expected those of fit, "
                             f"{len(self.coef_)}")
        return X, targets

    def _check_inputs(self, X, reset):
        """X (N, d) or (N, H, W, C), an array of numbers."""
        if np.ma.is_masked(X):
            raise ValueError("X: found masked values, expected none")
        images = getattr(X, "ndim", 2) > 2                          # of which scikit-learn has none
        X = check_array(X, allow_nd=True) if images else validate_data(self, X, reset=reset)
        if images and reset:                                        # nor names of a table before
            for name in ("n_features_in_", "feature_names_in_"):
                vars(self).pop(name, None)
        X = X[..., None] if X.ndim == 3 else X
        small = X.ndim == 4 and (min(X.shape[1:3]) < 8 or X.shape[3] == 0)
        if X.ndim not in (2, 4) or small:
            raise ValueError(
                f"X: found {X.shape}, expected (N, d) or (N, H, W, C) with H and W from 8")
        if reset and len(X) < 2:
            raise ValueError("X: found 1 sample, expected 2 or more")
        if reset:
            self.input_shape_ = X.shape[1:]
        if X.shape[1:] != self.input_shape_:
            raise ValueError(f"X: found rows {X.shape[1:]}, expected {self.input_shape_}")
        return X


class HeldOut:
    """Rows that train an encoder, and rows held out; looked are those that errors take, at most so
    many of each."""

    MOST = 2000

    def __init__(self, columns, share, rng):
        order = rng.permutation(len(columns))
        self.out, self.rows = np.split(order, [round(share * len(order))])
        self.looked = np.r_[self.rows[:self.MOST], self.out[:self.MOST]]
        self.columns, self.train = columns[self.looked], min(len(self.rows), self.MOST)
        squares = self.squares(mean_and_scale(self.columns[:self.train])[0])
        self.unit = squares.mean() if squares.any() else 1.0
        self.of_means = squares / self.unit

    def errors(self, F):
        """Squared errors of the held-out rows, predicted by ridge from features F of the rows
        looked at, in units of those of the means of the other rows, which are of_means: 1 less
        their mean is R^2."""
        F, n = standardised(F), self.train
        W, b = predictors.of_numbers(F[:n], self.columns[:n], "inner-ridge")
        return self.squares(F[n:] @ W.T + b) / self.unit

    def squares(self, found):
        """Mean squared error over targets of each held-out row that has a label."""
        varies = (np.nan_to_num(self.columns) != 0).any(axis=0)     # a constant one tells nothing
        left = np.where(varies, self.columns[self.train:] - found, np.nan)
        known = np.isfinite(left).sum(axis=1)
        return np.nansum(left ** 2, axis=1)[known > 0] / known[known > 0]


def accuracy(y, found, sample_weight):
    """The share of labels that were found."""
    return np.average(y == found, weights=sample_weight)


def count_features(ridge, rng):
    """n_components="auto", of ReducedRankRidge."""
    m, best = ridge.rank_by_held_out(rng)
    if best == linear.MOST:
        warn(f"n_components: {best} features are the most that auto considers", 5)
    if m < best:
        warn(f"n_components: {m} to {best} features predict rows held out alike", 5)
    return m


def simplest(errors):
    """Of encoders, the simplest first, with their errors on the same rows: the name of the best, or
    of the first where the gain is within a standard error of it."""
    losses = np.stack(list(errors.values()))
    return list(errors)[as_good(losses).argmax() if losses.size else 0]


def check_parameter(field, value):
    """ValueError where a parameter's value is outside its bounds, or none of its choices."""
    bounds = field.metadata
    if not bounds or any(value is other or value == other for other in bounds["also"]):
        return
    low, high, choices = bounds["low"], bounds["high"], bounds["choices"]
    if choices:
        if value not in choices:
            refuse(field.name, value, f"one of {', '.join(map(str, choices))}")
        return
    kind = numbers.Real if isinstance(low, float) else numbers.Integral
    fits = isinstance(value, kind) and not isinstance(value, bool)
    if not fits or not low <= value <= high or value == np.inf:
        what = "a number" if kind is numbers.Real else "a whole number"
        to = f" to {high}" if high < np.inf else ""
        also = "".join(f", or {other}" for other in bounds["also"])
        refuse(field.name, value, f"{what} from {low}{to}{also}")


def seed_of(random_state):
    """random_state as a number; scikit-learn's generators draw one at each fit."""
    if isinstance(random_state, numbers.Integral):
        if random_state < 0:
            refuse("random_state", random_state, "a whole number from 0")
        return int(random_state)
    return int(check_random_state(random_state).randint(2 ** 31 - 1))


def refuse(name, found, expected):
    """One line about a parameter."""
    raise ValueError(f"{name}: found {found!r}, expected {expected}")


def warn(text, level=4):
    """A warning of fit, told at the line that called it, so many calls up."""
    warnings.warn(text, stacklevel=level)


def library_of(name):
    """The array library of a device, cpu or gpu."""
    if name == "cpu":
        return array_api_compat.numpy
    import array_api_compat.cupy as xp

    return xp
