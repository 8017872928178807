"""sparsedis.py -- the method: an encoder trained through the solutions of many sparse linear fits.

    theta -- params, a dict name -> array          f_theta -- Encoder, a layer made of layers
    x (N, H, W, C)  images, N = 100                F (T, n, m)  features, m = 6
    y (T, n)        labels                         w (T, m)  linear predictors of the tasks
    Y (T, n, k)     labels of k outputs            W (T, k, m)  their predictors
    T, n            tasks, T = 64; samples of a task, n = 25
    G, K            image sets a step, G = 4; tasks on each set, K = 16; T = G K
    eps             strength of the penalty:  lam = eps lambda_max(F, y)
    dX              dL/dX, with the shape of X

The bilevel problem, and the function that computes each part:

    min_theta  1/T sum_t  1/(2 n) ||y_t - F_t w_t||^2                  task_objective, squared_error
    with       F_t = normalise(f_theta(x_t))                           Encoder, head_on_sets
               w_t = argmin_w  1/(2 n) ||y_t - F_t w||^2 + lam ||w||_1   bilevel, solvers.lasso
                                                                       [L23, Problem (6)]
In this order: heads and objectives, training, layers, encoders, an estimator. Every forward pass
f(x, ...) -> (out, cache) is followed by its backward pass f_backward(dout, cache) -> (dx, dparams).
The inner problems lie in solvers.py, images and tasks in data.py.

[L23] Lachapelle et al., Synergies between disentanglement and sparsity, ICML 2023.
[F23] Fumero et al., Leveraging sparse and shared feature activations, NeurIPS 2023 (our reading).
"""
import dataclasses
import functools
import itertools
import math
import numbers
import warnings
from collections import namedtuple
from typing import NamedTuple

import array_api_compat.numpy
import numpy as np
from array_api_compat import device, is_numpy_array, to_device
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
from solvers import (
    array_namespace,
    matvec,
    on_one_blas_thread,
    on_threads,
    outer_product,
    transpose,
)
from solvers import cpu_threads as cpu_threads  # for experiments, which time and repeat runs

# ------------------------------------------------------------------------------ one bilevel problem
# head(F, y, lam, n_support=None, params=None) -> (loss, dF, dparams, info), of the features alone;
# heads of episodes need n_support and params, take label smoothing too, and lam may be a pair.
# n_support=None fits and scores on the same samples, Problem (6); a number fits on the first
# n_support samples and scores on the others, Problem (7). params are a head's own, such as a
# learned scale of the logits. lam is a constant of the differentiation.


class Outer(NamedTuple):
    """The value of an outer loss, its derivatives, and the scores Z where it has classes."""

    loss: object
    dF: object
    dw: object
    dparams: dict = {}
    Z: object = None


def bilevel(fit, fit_vjp, outer_loss, F, y, lam, n_support=None):
    """The outer loss of fitted predictors; its gradient, directly and through the solution w(F).

    fit(F, y, lam) -> w, info                          the inner problem
    fit_vjp(F, y, lam, w, dw, info) -> dF, dparams     its adjoint
    outer_loss(F, y, w) -> Outer                                [L23, Problems (6), (7)]
    """
    fit_on, score_on = split_samples(n_support, F.shape[1])
    F_fit, y_fit = F[:, fit_on, :], y[:, fit_on, ...]
    w, info = fit(F_fit, y_fit, lam)
    out = outer_loss(F[:, score_on, :], y[:, score_on, ...], w)
    dF_fit, dparams = fit_vjp(F_fit, y_fit, lam, w, out.dw, info)
    dF = array_namespace(F).zeros_like(F)
    dF[:, score_on, :] += out.dF
    dF[:, fit_on, :] += dF_fit
    info = {"w": w, "logits": out.Z, **info}
    return out.loss, dF, {**out.dparams, **dparams}, info


def features_only(vjp):
    """A solver's vjp(F, y, lam, w, dw) -> dF, ... as the fit_vjp of a bilevel problem."""
    def fit_vjp(F, y, lam, w, dw, info):
        return vjp(F, y, lam, w, dw)[0], {}

    return fit_vjp


def split_samples(n_support, n):
    """Of n samples, the slices of those to fit on and of those to score on."""
    if n_support is None:
        return slice(None), slice(None)
    if not 0 < n_support < n:
        raise ValueError(f"n_support: found {n_support}, expected 1 to {n - 1} of {n} samples")
    return slice(n_support), slice(n_support, None)


# ------------------------------------------------------------------------------ heads of one output


def squared_error(F, y, w):
    """L = 1/T sum_t 1/(2 n) ||y_t - F_t w_t||^2."""
    xp = array_namespace(F)
    T, n, _ = F.shape
    r = (matvec(F, w) - y) / (T * n)                                # (T, n)
    loss = T * n / 2 * xp.sum(r * r)
    return Outer(loss, dF=outer_product(r, w), dw=matvec(transpose(F), r))


def inner_lasso(F, y, lam, n_support=None, params=None):
    """Sparse predictors, w_t = argmin 1/(2 n) ||y_t - F_t w||^2 + lam_t ||w||_1.

    F (T, n, m), y (T, n), lam a number or (T,)  ->  loss, dF (T, n, m), {}, and info: w (T, m) and
    the solver's certificate.                                  [L23, Problem (6), Sec. 5.1]
    """
    fit_vjp = features_only(solvers.lasso_vjp)
    return bilevel(solvers.lasso, fit_vjp, squared_error, F, y, lam, n_support)


def inner_ridge(F, y, lam, n_support=None, params=None):
    """Dense predictors, the baseline: w_t = argmin 1/(2 n) ||y_t - F_t w||^2 + lam_t/2 ||w||^2.

    Shapes as of inner_lasso.                                              [L23, Sec. 5.1]
    """
    fit_vjp = features_only(solvers.ridge_vjp)
    return bilevel(fit_ridge, fit_vjp, squared_error, F, y, lam, n_support)


def fit_ridge(F, y, lam):
    """w (T, m), and its certificate."""
    w = solvers.ridge(F, y, lam)
    return w, {"gap": solvers.ridge_residual(F, y, lam, w)}


def outer_lasso(F, y, lam, n_support=None, params=None):
    """Plain fits; the outer loss asks them to be sparse: + 1/T sum_t lam_t ||w_t||_1, sign(0) = 0.

    Shapes as of inner_lasso, lam (T,).                       [L23, Problem (62), App. B.3]
    """
    xp = array_namespace(F)
    return outer_penalty(xp.abs, xp.sign, F, y, lam, n_support)


def outer_ridge(F, y, lam, n_support=None, params=None):
    """The same with + 1/T sum_t lam_t/2 ||w_t||^2.                     [L23, App. D.2.5]"""
    return outer_penalty(lambda w: w * w / 2, lambda w: w, F, y, lam, n_support)


def outer_penalty(penalty, slope, F, y, lam, n_support):
    """Plain fits, and an outer loss with + 1/T sum_t lam_t sum_j penalty(w_tj) of that slope."""
    lam = solvers.per_task(lam, F)

    def penalised(F, y, w):
        xp, T = array_namespace(w), w.shape[0]
        out = squared_error(F, y, w)
        total = xp.sum(lam * xp.sum(penalty(w), axis=1))
        return Outer(out.loss + total / T, out.dF, out.dw + lam[:, None] * slope(w) / T)

    return bilevel(fit_least_squares, fit_least_squares_vjp, penalised, F, y, lam, n_support)


def fit_least_squares(F, y, lam):
    """Plain least squares, kept regular by a ridge of 1e-7 ||F||_F^2/n."""
    return fit_ridge(F, y, 1e-7 * solvers.ridge_lambda_max(F))


def fit_least_squares_vjp(F, y, lam, w, dw, info):
    """dF of ridge, and 2e-7 F d_ridge/n, for the ridge depends on F."""
    ridge = 1e-7 * solvers.ridge_lambda_max(F)
    dF, _, d_ridge = solvers.ridge_vjp(F, y, ridge, w, dw)
    return dF + 2e-7 / F.shape[1] * d_ridge[:, None, None] * F, {}


# ------------------------------------------------------------------------------ heads of k outputs
# Y (T, n, k) is real, one-hot, or of 0 and 1 where k = 1. In few-shot episodes F holds the support
# samples first, and params is {"scale": ()}, a learned factor of the logits (Lee et al. 2019).


def score_loss(Z, Y, smoothing=0.0, loss="logistic"):
    """1/(T n) sum loss(Z_i, Y_i) and its derivative in the scores Z (T, n, k).

    Labels are smoothed to 1 - smoothing (k - 1)/k for the class and smoothing/k for each other
    (MetaOptNet: 1 - smoothing and smoothing/(k - 1)).
    """
    T, _, k = Z.shape
    Y = (1 - smoothing) * Y + smoothing / max(k, 2)
    R, _ = solvers.loss_gradient(Z, Y, loss)
    return array_namespace(Z).mean(solvers.data_loss(Z, Y, loss)), R / T


def class_loss(params, smoothing=0.0, loss="logistic"):
    """The outer loss of predictors W (T, k, m): that of the scores scale W F_i."""
    params = params or {}
    scale = params.get("scale", 1)

    def outer_loss(F, Y, W):
        xp = array_namespace(F)
        Z = xp.matmul(F, transpose(W))                              # (T, n, k)
        value, dZ = score_loss(scale * Z, Y, smoothing, loss)
        dW = scale * xp.matmul(transpose(dZ), F)
        dparams = {"scale": xp.sum(dZ * Z)} if "scale" in params else {}
        return Outer(value, scale * xp.matmul(dZ, W), dW, dparams, Z)

    return outer_loss


def inner_group_lasso(F, Y, lam, n_support=None, params=None, smoothing=0.0, loss="squared",
                      max_iter=1000):
    """W_t = argmin (1/n) sum_i loss(W F_i, Y_i) + lam_t ||W||_{2,1}; the outer loss is its
    first term, of scaled scores and smoothed labels.

    loss is "squared" or "logistic". In few-shot episodes max_iter = 200: a Newton step has m k
    unknowns, for a few hundred features; where n < m and lam is below 0.1 of its maximum, sweeps
    are slow, and the solver stops and says so.                         [L23, Problem (6)]
    """
    fit = functools.partial(solvers.group_lasso, loss=loss, max_iter=max_iter)
    fit_vjp = features_only(functools.partial(solvers.group_lasso_vjp, loss=loss))
    return bilevel(fit, fit_vjp, class_loss(params, smoothing, loss), F, Y, lam, n_support)


def svm_episode(F, Y, lam, n_support, params, smoothing=0.0):
    """The group-Lasso multiclass SVM; lam = (lam1, lam2), lam1 = 0 is the SVM of MetaOptNet.

    If params holds "log_lam1" or "log_lam2", these multiply lam1 and lam2 by their exponential and
    are learned too.                                               [L23, Problem (8), Sec. 5.2]
    """
    xp = array_namespace(F)
    names = ("log_lam1", "log_lam2")
    zero = xp.zeros(F.shape[0], dtype=F.dtype, device=device(F))
    factors = [xp.exp(params.get(name, zero)) for name in names]
    lam = [a * factor + zero for a, factor in zip(lam, factors, strict=True)]

    def fit(F, Y, lam):
        W, Lam, info = solvers.group_svm(F, Y, *lam)
        return W, {"Lam": Lam, **info}

    def fit_vjp(F, Y, lam, W, dW, info):
        dF, *dlam = solvers.group_svm_vjp(F, Y, *lam, W, info["Lam"], dW)
        dlog = {name: xp.sum(d * a) for name, d, a in zip(names, dlam, lam, strict=True)}
        return dF, {name: dlog[name] for name in names if name in params}

    return bilevel(fit, fit_vjp, class_loss(params, smoothing), F, Y, lam, n_support)


def ridge_episode(F, Y, lam, n_support, params, smoothing=0.0):
    """Ridge regression on the one-hot labels.                      [Bertinetto et al. 2019]"""
    def fit(F, Y, lam):
        return solvers.ridge_classes(F, Y, lam), {}

    fit_vjp = features_only(solvers.ridge_classes_vjp)
    return bilevel(fit, fit_vjp, class_loss(params, smoothing), F, Y, lam, n_support)


def prototypes_episode(F, Y, lam, n_support, params, smoothing=0.0):
    """Prototypical networks: W_l is the mean of class l's support samples.   [Snell et al. 2017]

    The logits are -||F_i - W_l||^2 / m.
    """
    xp = array_namespace(F)
    m, scale = F.shape[2], params["scale"]

    def fit(F, Y, lam):
        return xp.matmul(transpose(class_shares(Y)), F), {}         # (T, k, m)

    def fit_vjp(F, Y, lam, W, dW, info):
        return xp.matmul(class_shares(Y), dW), {}

    def outer_loss(F, Y, W):
        sizes_F, sizes_W = xp.sum(F * F, axis=2), xp.sum(W * W, axis=2)
        Z = 2 * xp.matmul(F, transpose(W)) - sizes_W[:, None, :] - sizes_F[..., None]
        Z = Z / m                                                   # (T, n, k)
        loss, dZ = score_loss(scale * Z, Y, smoothing)
        dscale = xp.sum(dZ * Z)
        dZ = 2 * scale / m * dZ
        dW = xp.matmul(transpose(dZ), F) - xp.sum(dZ, axis=1)[..., None] * W
        dF = xp.matmul(dZ, W)                                       # softmax does not see ||F_i||^2
        return Outer(loss, dF, dW, {"scale": dscale}, Z)

    return bilevel(fit, fit_vjp, outer_loss, F, Y, lam, n_support)


def class_shares(Y):
    """Y (T, n, k) one-hot -> the share of each sample in its class's mean."""
    return Y / array_namespace(Y).sum(Y, axis=1, keepdims=True)


def sharing_episode(F, Y, lam, n_support, params=None, smoothing=0.0, one_step=False):
    """Sparse heads of binary tasks fitted jointly, which share features; Y (T, n, 1) of 0 and 1.

    lam = (alpha, beta), the weights of the L1 norm and of the entropy. one_step: the inexact
    adjoint of sparse_sharing_vjp. Not in EPISODE_HEADS: its tasks share one fit.
                                                                        [F23, our reading]
    """
    def fit(F, Y, lam):
        return solvers.sparse_sharing(F, Y, *lam)

    def fit_vjp(F, Y, lam, phi, dphi, info):
        return solvers.sparse_sharing_vjp(F, Y, *lam, phi, dphi, one_step)[0], {}

    return bilevel(fit, fit_vjp, class_loss(params, smoothing), F, Y, lam, n_support)


inner_group_logistic = functools.partial(inner_group_lasso, loss="logistic")
logistic_lambda_max = functools.partial(solvers.group_lasso_lambda_max, loss="logistic")

HEADS = {  # name -> head, and the scale of its penalty, lambda_max(F, y)
    "inner-lasso": (inner_lasso, solvers.lasso_lambda_max),
    "inner-ridge": (inner_ridge, solvers.ridge_lambda_max),
    "outer-lasso": (outer_lasso, solvers.lasso_lambda_max),
    "outer-ridge": (outer_ridge, solvers.ridge_lambda_max),
    "inner-group-lasso": (inner_group_lasso, solvers.group_lasso_lambda_max),
    "inner-group-logistic": (inner_group_logistic, logistic_lambda_max)}

EPISODE_HEADS = {
    "svm": svm_episode,
    "ridge": ridge_episode,
    "logistic": functools.partial(inner_group_logistic, max_iter=200),
    "prototypes": prototypes_episode}

# ------------------------------------------------------------------------------ objectives
# objective(progress, [F, ...], y, params) -> loss, [dF, ...], dparams, info, for the features of
# each batch of a step; progress runs from 0 to 1 over the training.


def task_objective(head, eps=0.3, warmup=0.5, n_support=None, norm="batch"):
    """[L23, Problem (6)] on one batch: a head of HEADS on G image sets with K tasks each.

    y (G, K, n) or (G, K, n, k), or a pair of y and a mask `known` (G, K, n). eps rises from 0 over
    the share `warmup` of the steps (0: constant, as in the paper). n_support: Problem (7). norm:
    see normalise.
    """
    def objective(progress, features, y, params):
        F, = features
        y, known = y if isinstance(y, tuple) else (y, None)
        xp = array_namespace(F)
        now = eps * rise(progress, warmup)
        F_sets = xp.reshape(F, (y.shape[0], y.shape[2], -1))        # (G, n, m)
        loss, dF, info = head_on_sets(*HEADS[head], F_sets, y, now, n_support, norm, known)
        return loss, [xp.reshape(dF, F.shape)], {}, {"eps": now, **info}

    return objective


def rise(progress, share):
    """From 0 to 1 over a share of the training, 1 from there on."""
    return min(1, progress / share) if share else 1.0


def head_on_sets(head, lambda_max, F, y, eps, n_support=None, norm="batch", known=None):
    """A head on G image sets that K tasks share: F (G, n, m), y (G, K, n, ...) -> loss, dF, info.

    Each set's features are normalised and repeated for its K tasks; the K gradients are added up.
    Predictors have no intercept: under Problem (6) the mean of y stays in the loss but has no
    gradient. Under Problem (7) all samples of a set normalise it. Where known (G, K, n) is False, a
    task has no label: with F_i = 0, and y_i = 0 or any class, the sample pulls at no predictor.
    """
    xp = array_namespace(F)
    G, n, m = F.shape
    K = y.shape[1]
    F_norm, cache = normalise(F, norm)
    F_task = xp.repeat(F_norm, K, axis=0)                           # (T, n, m), T = G K
    y_task = xp.reshape(y, (G * K, *y.shape[2:]))
    if known is not None:
        known = xp.astype(xp.reshape(known, (G * K, n, 1)), F.dtype)
        F_task = F_task * known                                     # of mean 0 over all rows only
    lam = eps * lambda_max(F_task[:, :n_support, :], y_task[:, :n_support, ...])    # App. D.2.3
    loss, dF_task, _, info = head(F_task, y_task, lam, n_support)
    dF_task = dF_task if known is None else dF_task * known
    dF = xp.sum(xp.reshape(dF_task, (G, K, n, m)), axis=1)
    return loss, normalise_backward(dF, cache)[0], info


def normalise(F, norm="batch", n_support=None):
    """Features of mean 0 and variance 1 over the samples of each set ("batch") or its features.

    F (G, n, m), or (T, n, m) where each task has its own; biased variance with 1e-5 added; nothing
    learned; moments of the first n_support samples only, where given (batch). Without it ||F||
    grows and sparsity is lost.                                   [L23, Sec. 3.4, App. D.2.3]
    """
    xp = array_namespace(F)
    if n_support is not None and norm != "batch":
        raise ValueError("normalise: moments of the support are those of samples, norm='batch'")
    axis = {"batch": 1, "layer": 2}[norm]
    fit = F[:, :n_support, :]
    mean = xp.mean(fit, axis=axis, keepdims=True)
    deviation = xp.sqrt(xp.mean((fit - mean) ** 2, axis=axis, keepdims=True) + 1e-5)
    out = (F - mean) / deviation
    return out, (out, deviation, axis, n_support)


def normalise_backward(dout, cache):
    """dF = (dout - 1_fit (sum dout + F_norm sum dout F_norm) / count) / deviation."""
    xp = array_namespace(dout)
    out, deviation, axis, n_support = cache
    fit = out[:, :n_support, :]
    sum_dout = xp.sum(dout, axis=axis, keepdims=True)
    sum_along = xp.sum(dout * out, axis=axis, keepdims=True)
    dF = dout / deviation
    dF[:, :n_support, :] -= (sum_dout + fit * sum_along) / (fit.shape[axis] * deviation)
    return (dF,)


def episode_objective(head, lam, smoothing=0.0):
    """Few-shot episodes, Y (T, n, k), on two batches, support and query images.  [L23, Sec. 5.2]

    lam(F_support, Y_support) -> the head's lam; a head's own parameters are named "head.NAME".
    """
    def objective(progress, features, Y, params):
        xp, T = array_namespace(Y), Y.shape[0]
        parts = [xp.reshape(F, (T, F.shape[0] // T, -1)) for F in features]
        n_support = parts[0].shape[1]
        F = xp.concat(parts, axis=1)                                # (T, n, m), support first
        own = {name: xp.astype(a, F.dtype) for name, a in head_params(params).items()}
        lams = lam(parts[0], Y[:, :n_support, :])
        loss, dF, dparams, info = EPISODE_HEADS[head](F, Y, lams, n_support, own, smoothing)
        dparts = dF[:, :n_support, :], dF[:, n_support:, :]
        dFs = [xp.reshape(d, f.shape) for d, f in zip(dparts, features, strict=True)]
        return loss, dFs, {f"head.{name}": g for name, g in dparams.items()}, info

    return objective


def head_params(params):
    """The parameters of the head, without their prefix."""
    return {name[5:]: a for name, a in params.items() if name.startswith("head.")}


# ------------------------------------------------------------------------------ training


class Optimiser(NamedTuple):
    """Steps taken, and Adam's first and second moments; SGD's velocity stands in `mean`."""

    step: int
    mean: dict
    square: dict


class Snapshot(NamedTuple):
    """Where a training is: its parameters, the encoder's state, the optimiser, the next step."""

    params: dict
    state: dict
    opt: Optimiser
    step: int


@dataclasses.dataclass(frozen=True)
class Training:
    """What `train` needs.

    sample(step) -> [x, ...], y      batches of images and labels, on the parameters' device
    objective(progress, [F, ...], y, params) -> loss, [dF, ...], dparams, info, in float64
    optimiser        a name of OPTIMISERS, or a pair like those there
    """

    encoder: object
    sample: object
    objective: object
    steps: int = 1000
    lr: float = 1e-3
    optimiser: object = "adam"


@on_one_blas_thread
def train(config, start, report=None):
    """Minimise the objective from a Snapshot on; report(Snapshot, loss, info) hears of every step.

    Batches of a step pass the encoder one by one, each normalised by its own moments where it has
    batch norms. The inner problems are solved in double precision, whatever the encoder's. Returns
    the last Snapshot. Raises FloatingPointError where features, loss or gradient are not finite.
    """
    params, state, opt, first = start
    optimise, schedule = OPTIMISERS.get(config.optimiser, config.optimiser)
    for step in range(first, config.steps):
        progress = step / config.steps
        batches, y = config.sample(step)
        features, caches = [], []
        for x in batches:
            F, cache, state = config.encoder.forward(params, state, x)
            features.append(F)
            caches.append(cache)
        refuse_non_finite("features", dict(enumerate(features)), step)
        xp = array_namespace(*features)
        in_double = [xp.astype(F, xp.float64) for F in features]
        loss, dFs, own, info = config.objective(progress, in_double, y, params)
        grads = gradients(config.encoder, caches, features, dFs, own)
        refuse_non_finite("gradient", {"loss": loss, **grads}, step)
        params, opt = optimise(params, grads, opt, schedule(config.lr, progress))
        if report:
            report(Snapshot(params, state, opt, step + 1), float(loss), info)
    return Snapshot(params, state, opt, config.steps)


def gradients(encoder, caches, features, dFs, own):
    """The encoder's gradients, added up over the batches of a step, and the head's own."""
    xp, dtype = array_namespace(*features), features[0].dtype
    pairs = zip(caches, dFs, strict=True)
    parts = [encoder.backward(cache, xp.astype(dF, dtype)) for cache, dF in pairs]
    return add_up(parts) | {name: xp.astype(g, dtype) for name, g in own.items()}


def add_up(parts):
    """The sum of each key's arrays, one part after another."""
    total = dict(parts[0])
    for part in parts[1:]:
        total = {name: a + part[name] for name, a in total.items()}
    return total


def refuse_non_finite(what, arrays, step):
    """Raise FloatingPointError where an array holds a value that is not finite."""
    xp = array_namespace(*arrays.values())
    bad = [str(name) for name, a in arrays.items() if not bool(xp.all(xp.isfinite(a)))]
    if bad:
        where = ", ".join(bad)
        raise FloatingPointError(f"the {what} is no longer finite at step {step} (in {where})")


def zeros_like_all(params):
    """Zeros of the shapes of all parameters."""
    return {name: 0 * p for name, p in params.items()}


def adam(params, grads, opt, lr, beta1=0.9, beta2=0.999, tiny=1e-8):
    """One step of Adam; opt is None at first.          [Kingma and Ba 2015, Algorithm 1]"""
    xp = array_namespace(*grads.values())
    t, mean, square = opt or (0, zeros_like_all(params), zeros_like_all(params))
    t = t + 1
    mean = {k: beta1 * mean[k] + (1 - beta1) * g for k, g in grads.items()}
    square = {k: beta2 * square[k] + (1 - beta2) * g * g for k, g in grads.items()}
    scale = lr / (1 - beta1 ** t)
    unbias = 1 / math.sqrt(1 - beta2 ** t)
    new = {k: p - scale * mean[k] / (xp.sqrt(square[k]) * unbias + tiny) for k, p in params.items()}
    return new, Optimiser(t, mean, square)


def sgd(params, grads, opt, lr, momentum=0.9, weight_decay=5e-4):
    """One step of SGD with Nesterov's momentum and weight decay; opt is None at first."""
    t, velocity, _ = opt or (0, zeros_like_all(params), {})
    grads = {k: g + weight_decay * params[k] for k, g in grads.items()}
    velocity = {k: momentum * velocity[k] + g for k, g in grads.items()}
    new = {k: p - lr * (grads[k] + momentum * velocity[k]) for k, p in params.items()}
    return new, Optimiser(t + 1, velocity, {})


def cosine(lr, progress, flat=0.0):
    """lr for a share `flat` of the training, then to 0 along half a cosine; progress is 0 to 1."""
    left = max(0, progress - flat) / (1 - flat) if flat < 1 else 0
    return lr * (1 + math.cos(math.pi * left)) / 2


def stairs(lr, progress):
    """lr, then 0.06, 0.012 and 0.0024 of it from epochs 20, 40, 50 of 60 on.  [Lee et al. 2019]"""
    for epoch, factor in ((50, 0.0024), (40, 0.012), (20, 0.06)):
        if progress >= epoch / 60:
            return lr * factor
    return lr


OPTIMISERS = {"adam": (adam, cosine), "sgd": (sgd, stairs)}

# ------------------------------------------------------------------------------ layers


def linear(x, W, b):
    """x W + b:  x (N, a), W (a, c), b (c,) -> (N, c)."""
    return x @ W + b, (x, W)


def linear_backward(dout, cache):
    """dx = dout W',  dW = x' dout,  db = sum_i dout_i."""
    x, W = cache
    return dout @ W.T, x.T @ dout, column_sums(dout)


def column_sums(x):
    """(N, c) -> (c,), as a product with ones: several times as fast as a sum over axis 0."""
    xp = array_namespace(x)
    return xp.ones(x.shape[0], dtype=x.dtype, device=device(x)) @ x


# Where a layer only chooses between its inputs, its cache is the mask of its choice, a byte each.


def relu(x):
    """max(x, 0), and where it is positive."""
    xp = array_namespace(x)
    out = xp.maximum(x, xp.zeros_like(x[:1, ...]))                  # twice as fast as with a number
    return out, out > 0


def relu_backward(dout, positive):
    """dx = dout where x > 0."""
    return (dout * array_namespace(dout).astype(positive, dout.dtype),)


def leaky_relu(x, slope=0.1):
    """x where positive, slope x elsewhere, 0 <= slope <= 1."""
    return array_namespace(x).maximum(x, slope * x), (x > 0, slope)


def leaky_relu_backward(dout, cache):
    """dx = dout where x > 0, slope dout elsewhere."""
    xp = array_namespace(dout)
    positive, slope = cache
    return (dout * xp.maximum(xp.astype(positive, dout.dtype), slope),)


def flatten(x):
    """(N, ...) -> (N, product of the rest)."""
    return array_namespace(x).reshape(x, (x.shape[0], -1)), x.shape


def flatten_backward(dout, cache):
    """dout in the shape of x."""
    return (array_namespace(dout).reshape(dout, cache),)


def trim(x):
    """x without its last row where H is odd, and without its last column where W is."""
    return x[:, :x.shape[1] // 2 * 2, :x.shape[2] // 2 * 2, :], x.shape


def trim_backward(dout, cache):
    """0 in the row and the column that were left out."""
    if dout.shape == cache:
        return (dout,)
    _, H, W, _ = dout.shape
    dx = array_namespace(dout).zeros(cache, dtype=dout.dtype, device=device(dout))
    dx[:, :H, :W, :] = dout
    return (dx,)


def global_pool(x):
    """The mean over pixels, (N, H, W, C) -> (N, C)."""
    return array_namespace(x).mean(x, axis=(1, 2)), x.shape


def global_pool_backward(dout, cache):
    """Every pixel gets dout/(H W)."""
    _, H, W, _ = cache
    share = dout[:, None, None, :] / (H * W)
    return (array_namespace(dout).broadcast_to(share, cache),)


def max_pool2d(x):
    """The largest of each 2 x 2 pixels, (N, H, W, C) -> (N, H//2, W//2, C): the larger of two rows,
    then of two columns. Of an odd side the last pixel is left out.
    """
    if min(x.shape[1:3]) < 2:
        raise ValueError(f"max_pool2d: found {x.shape[1:3]} pixels, expected 2 or more a side")
    x, shape = trim(x)
    x, of_rows = larger(x, 1)
    x, of_columns = larger(x, 2)
    return x, (of_rows, of_columns, shape)


def max_pool2d_backward(dout, cache):
    """The largest pixel takes dout; of equal ones the left, then the upper one."""
    of_rows, of_columns, shape = cache
    dout, = larger_backward(dout, of_columns)
    dout, = larger_backward(dout, of_rows)
    return trim_backward(dout, shape)


def larger(x, axis):
    """The larger of each two rows (axis 1) or columns (2)."""
    before = (slice(None),) * axis
    first, second = (x[(*before, slice(start, None, 2), ...)] for start in (0, 1))
    return array_namespace(x).maximum(first, second), (first >= second, axis)


def larger_backward(dout, cache):
    """The larger takes dout; of equal ones, the first."""
    xp = array_namespace(dout)
    is_first, axis = cache
    dfirst = dout * xp.astype(is_first, dout.dtype)
    both = xp.stack([dfirst, dout - dfirst], axis=axis + 1)
    twice = 2 * dout.shape[axis]
    return (xp.reshape(both, (*dout.shape[:axis], twice, *dout.shape[axis + 1:])),)


# A k x k convolution of stride s, with k = q s, is a dense q x q one of stride 1 after
# space-to-depth: each s x s patch becomes one pixel of c = s^2 C channels. What is left is one
# matrix product and q^2 shifted slices. Forward, the slices are taken on the side with fewer
# channels, and no pass scatters:
#     c <= O:     out = windows(X) V          gather the q^2 shifted inputs, then multiply
#     c > O:      out = shift_add(X V)        multiply, then add the q^2 shifted products
#     backward:   D = windows(padded dout),   dX = D V',   dV = X' D,   V's q^2 blocks reversed
#                 dV = windows(X)' dout       where dX is not needed


# What conv2d keeps: X (N, (H + 2 pad)/s, (W + 2 pad)/s, c), V (q^2, c, O), and its settings.
ConvCache = namedtuple("ConvCache", "X V W_shape stride pad need_dx bias")


def conv2d(x, W, b=None, stride=1, pad=0, need_dx=True):
    """Convolution with zero padding: x (N, H, W, C), W (k, k, C, O), b (O,) or none.

    The stride divides k, H + 2 pad and W + 2 pad. need_dx=False, for an encoder's first layer,
    leaves out the gradient of the images.
    """
    check_sizes(x, W, stride, pad)
    X, V = space_to_depth(zero_pad(x, pad), stride), fold_kernel(W, stride)
    q = W.shape[0] // stride
    _, c, O = V.shape
    out = gather_then_multiply(X, V, q, b) if c <= O else multiply_then_add(X, V, q, b)
    return out, ConvCache(X, V, W.shape, stride, pad, need_dx, b is not None)


def check_sizes(x, W, stride, pad):
    """Refuse a stride that does not divide the kernel and the padded image, or a larger kernel."""
    k, *sides = W.shape[0], x.shape[1] + 2 * pad, x.shape[2] + 2 * pad
    if any(size % stride for size in (k, *sides)) or min(sides) < k:
        raise ValueError(
            f"conv2d: stride {stride} must divide the kernel, {k}, and the padded image, "
            f"{x.shape[1:3]} + 2 * {pad}, in which the kernel must fit")


def gather_then_multiply(X, V, q, b=None):
    """windows(X) V + b, (N, h, w, O)."""
    xp = array_namespace(X)
    qq, c, O = V.shape
    XX = windows(X, q)                                              # (N, h, w, q q c)
    out = xp.reshape(rows(XX) @ xp.reshape(V, (qq * c, O)), (*XX.shape[:3], O))
    if b is not None:
        out += b
    return out


def multiply_then_add(X, V, q, b=None):
    """shift_add(X V) + b, (N, h, w, O)."""
    xp = array_namespace(X)
    qq, c, O = V.shape
    Z = rows(X) @ xp.reshape(xp.permute_dims(V, (1, 0, 2)), (c, qq * O))
    return shift_add(xp.reshape(Z, (*X.shape[:3], qq * O)), q, 0 if b is None else b)


def conv2d_backward(dout, cache):
    """dx (or None), dW and, where there is one, db."""
    q = cache.W_shape[0] // cache.stride
    dx, dV = (conv2d_dx_dV if cache.need_dx else conv2d_dV)(dout, cache, q)
    dW = unfold_kernel(dV, cache.stride, cache.W_shape)
    return (dx, dW, column_sums(rows(dout))) if cache.bias else (dx, dW)


def conv2d_dV(dout, cache, q):
    """No dx, and dV = windows(X)' dout."""
    X, V = cache.X, cache.V
    return None, array_namespace(dout).reshape(rows(windows(X, q)).T @ rows(dout), V.shape)


def conv2d_dx_dV(dout, cache, q):
    """dX = D V' and dV = X' D, with D the windows of the padded dout."""
    xp = array_namespace(dout)
    pad, stride = cache.pad, cache.stride
    qq, c, O = cache.V.shape
    edge = min(pad, q - 1) if stride == 1 else 0                    # X is 0 there, dX not wanted
    D = windows(zero_pad(dout, q - 1 - edge), q)                    # (N, H, W, q q O)
    X = crop(cache.X, edge)
    dV = xp.permute_dims(xp.reshape(rows(X).T @ rows(D), (c, qq, O)), (1, 0, 2))
    V_back = xp.permute_dims(xp.flip(cache.V, axis=0), (0, 2, 1))   # (q q, O, c)
    dX = xp.reshape(rows(D) @ xp.reshape(V_back, (qq * O, c)), X.shape)
    return crop(depth_to_space(dX, stride), pad - edge), xp.flip(dV, axis=0)


def rows(x):
    """(..., c) -> (product of the rest, c)."""
    return array_namespace(x).reshape(x, (-1, x.shape[-1]))


def zero_pad(x, pad):
    """(N, H, W, C) -> (N, H + 2 pad, W + 2 pad, C)."""
    if not pad:
        return x
    xp = array_namespace(x)
    N, H, W, C = x.shape
    out = xp.zeros((N, H + 2 * pad, W + 2 * pad, C), dtype=x.dtype, device=device(x))
    out[:, pad:pad + H, pad:pad + W, :] = x
    return out


def crop(x, pad):
    """The inverse of zero_pad."""
    return x[:, pad:x.shape[1] - pad, pad:x.shape[2] - pad, :]


def space_to_depth(x, s):
    """(N, H, W, C) -> (N, H/s, W/s, s s C)."""
    xp = array_namespace(x)
    N, H, W, C = x.shape
    x = xp.reshape(x, (N, H // s, s, W // s, s * C))
    return xp.reshape(xp.permute_dims(x, (0, 1, 3, 2, 4)), (N, H // s, W // s, s * s * C))


def depth_to_space(X, s):
    """The inverse of space_to_depth."""
    xp = array_namespace(X)
    N, H, W, C = X.shape
    X = xp.reshape(X, (N, H, W, s, C // s))
    return xp.reshape(xp.permute_dims(X, (0, 1, 3, 2, 4)), (N, H * s, W * s, C // s // s))


def windows(X, q):
    """(N, H, W, C) -> (N, h, w, q q C), the q^2 shifted copies side by side; h = H - q + 1, w too.

    A row of a window is q neighbouring pixels of X. Those of the windows first, first + q, ... do
    not overlap: one slice of X holds them all, and is copied for first = 0 ... q - 1. A single
    channel is faster pixel by pixel (run = 1).
    """
    xp = array_namespace(X)
    N, H, W, C = X.shape
    h, w = H - q + 1, W - q + 1
    run = q if C > 1 else 1                                         # pixels of a row copied at once
    out = xp.empty((N, h, w, q, q * C), dtype=X.dtype, device=device(X))
    for a, b, first in itertools.product(range(q), range(0, q, run), range(min(run, w))):
        count = len(range(first, w, run))
        start, end = first + b, first + b + run * count
        row = xp.reshape(X[:, a:a + h, start:end, :], (N, h, count, run * C))
        out[:, :, first::run, a, b * C:(b + run) * C] = row
    return xp.reshape(out, (N, h, w, q * q * C))


def shift_add(Z, q, bias=0):
    """(N, H, W, q q O) -> (N, h, w, O), bias and the sum of q^2 shifted blocks."""
    xp = array_namespace(Z)
    N, H, W, O = Z.shape
    Z = xp.reshape(Z, (N, H, W, q, q, O // (q * q)))
    h, w = H - q + 1, W - q + 1
    out = Z[:, :h, :w, 0, 0, :] + bias
    for a, b in list(itertools.product(range(q), repeat=2))[1:]:
        out += Z[:, a:a + h, b:b + w, a, b, :]
    return out


def fold_kernel(W, s):
    """(k, k, C, O) -> V (q q, c, O), the kernel after space-to-depth, k = q s."""
    xp = array_namespace(W)
    k, _, C, O = W.shape
    q = k // s
    W = xp.permute_dims(xp.reshape(W, (q, s, q, s, C, O)), (0, 2, 1, 3, 4, 5))
    return xp.reshape(W, (q * q, s * s * C, O))


def unfold_kernel(V, s, shape):
    """The inverse of fold_kernel, to (k, k, C, O)."""
    xp = array_namespace(V)
    k, _, C, O = shape
    q = k // s
    V = xp.permute_dims(xp.reshape(V, (q, q, s, s, C, O)), (0, 2, 1, 3, 4, 5))
    return xp.reshape(V, shape)


def moments(x):
    """x (N, ..., C) -> mean and biased variance of each channel, (C,) both."""
    x = rows(x)
    mean = column_sums(x) / x.shape[0]
    x = x - mean
    x *= x
    return mean, column_sums(x) / x.shape[0]


def batch_norm(x, g, b, mean=None, variance=None):
    """g (x - mean)/sqrt(variance + 1e-5) + b per channel of (N, ..., C); by default x's moments.

    In float32, means of many deviations cost digits, of 1,000 in dg all but three.
    """
    if mean is None:
        mean, variance = moments(x)
    scale = 1 / array_namespace(x).sqrt(variance + 1e-5)
    out = x * (g * scale)
    out += b - mean * (g * scale)
    return out, (x, g, mean, scale)


def batch_norm_backward(dout, cache, sums=None, count=None):
    """dx = g scale (dout - db/count - x_hat dg/count), dg = sum dout x_hat, db = sum dout.

    The moments are the batch's own. Where dout is a block of it: sums, dg and db of all blocks, and
    count, their pixels.
    """
    x, g, mean, scale = cache
    dg, db = batch_norm_sums(dout, cache) if sums is None else sums
    count = math.prod(dout.shape[:-1]) if count is None else count
    slope = dg * scale / count                                      # x_hat = (x - mean) scale
    dx = dout * (g * scale)
    dx -= x * (slope * g * scale)
    dx += (mean * slope - db / count) * g * scale
    return dx, dg, db


def batch_norm_sums(dout, cache):
    """dg and db, (C,)."""
    x, _, mean, scale = cache
    dout, x = rows(dout), rows(x)
    db = column_sums(dout)
    return (column_sums(dout * x) - mean * db) * scale, db


def drop_block(x, key, rate, ramp, size, layer):
    """DropBlock: zero random size x size blocks of each channel, about a share `rate`; rescale.

    size 1 is dropout. key = (a run's seed, training passes so far); the rate grows linearly over
    `ramp` passes.                                                  [Ghiasi et al. 2018]
    """
    xp = array_namespace(x)
    N, H, W, C = x.shape
    size = min(size, H, W)
    rate = rate * min(1, (key[1] + 1) / ramp) if ramp else rate
    down, right = H - size + 1, W - size + 1
    share = rate / size ** 2 * H * W / (down * right)               # of corners, for this rate
    rng = array_api_compat.numpy.random.default_rng([*key, layer])
    corners = xp.asarray(rng.random((N, down, right, C)) < share, device=device(x))
    keep = xp.ones(x.shape, dtype=x.dtype, device=device(x))
    for a, b in itertools.product(range(size), repeat=2):
        inside = slice(None), slice(a, a + down), slice(b, b + right), slice(None)
        keep[inside] = xp.where(corners, 0, keep[inside])
    keep = keep * (math.prod(x.shape) / xp.maximum(xp.sum(keep), 1))
    return x * keep, keep


def drop_block_backward(dout, cache):
    """dx = dout times the mask."""
    return (dout * cache,)


# ------------------------------------------------------------------------------ made of layers
# A layer has shapes, name -> shape of its parameters, and
#     forward(params, state, x, train) -> out, cache, state      train=False: as in evaluation
#     backward(cache, dout) -> dx, grads                         after train=True
# and so has every layer that is made of layers; of BatchNorm InBlocks does a half. x, out, dout and
# dx are arrays or lists of blocks: InBlocks leaves a batch in blocks; a layer that needs it whole
# joins them.


class Layer:
    """A pair of functions above, its parameters and its settings."""

    def __init__(self, f, f_backward, shapes=None, **settings):
        self.f, self.f_backward = f, f_backward
        self.shapes, self.settings = shapes or {}, settings

    def forward(self, params, state, x, train):
        own = [params[name] for name in self.shapes]
        out, cache = self.f(joined(x), *own, **self.settings)
        return out, cache, state

    def backward(self, cache, dout):
        dx, *grads = self.f_backward(joined(dout), cache)
        return dx, dict(zip(self.shapes, grads, strict=True))


def shapes_of(layers):
    """The shapes of all parameters; each layer has names of its own."""
    shapes = {}
    for layer in layers:
        twice = shapes.keys() & layer.shapes.keys()
        if twice:
            raise ValueError(f"found two layers with parameters named {', '.join(sorted(twice))}")
        shapes |= layer.shapes
    return shapes


class Sequential:
    """One layer after another."""

    def __init__(self, *layers):
        self.layers, self.shapes = layers, shapes_of(layers)

    def forward(self, params, state, x, train):
        caches = []
        for layer in self.layers:
            x, cache, state = layer.forward(params, state, x, train)
            caches.append(cache if train else None)
        return x, caches, state

    def backward(self, caches, dout):
        grads = {}
        for layer, cache in zip(self.layers[::-1], caches[::-1], strict=True):
            dout, own = layer.backward(cache, dout)
            grads |= own
        return dout, grads


class Residual:
    """The sum of two layers of the same input, branch and shortcut."""

    def __init__(self, branch, shortcut):
        self.branch, self.shortcut = branch, shortcut
        self.shapes = shapes_of((branch, shortcut))

    def forward(self, params, state, x, train):
        out, cache, state = self.branch.forward(params, state, x, train)
        short, short_cache, state = self.shortcut.forward(params, state, x, train)
        return joined(out) + joined(short), (cache, short_cache), state

    def backward(self, caches, dout):
        dx, grads = self.branch.backward(caches[0], dout)
        dx_short, grads_short = self.shortcut.backward(caches[1], dout)
        return joined(dx) + joined(dx_short), grads | grads_short


# How many images each block has, and for each stage a list of the caches of its blocks.
BlockCaches = namedtuple("BlockCaches", "lengths caches")


class InBlocks:
    """Layers without state, and batch norms, in blocks of `size` images.

    A block's activations stay in a core's fast memory from layer to layer; blocks run on threads.
    In training, blocks wait for each other at a batch norm, whose moments are those of all blocks;
    what lies between two norms is a stage.
    """

    def __init__(self, *layers, size):
        if any(isinstance(layer, (DropBlock, InBlocks)) for layer in layers):
            raise ValueError("InBlocks: found DropBlock or InBlocks among its layers")
        self.layer, self.size = Sequential(*layers), size
        self.shapes, self.stages = self.layer.shapes, list(stages(layers))

    def forward(self, params, state, x, train):
        blocks = blocks_of(x, self.size)
        if not train:
            def whole(block):
                return self.layer.forward(params, state, block, train=False)[0]

            return on_threads(whole, blocks), None, state
        caches, now = [], {}
        for stage in self.stages:
            through = functools.partial(stage.forward, params, now)
            blocks, own, parts = on_blocks(through, blocks)
            caches.append(own)
            if stage.norm:
                now = {stage.norm: merged_moments(parts, lengths(blocks))}
                state = stage.norm.moved(state, *now[stage.norm], pixels(blocks))
        return blocks, BlockCaches(lengths(blocks), caches), state

    def backward(self, cached, dout):
        blocks, grads = split(dout, cached.lengths), {}
        behind = [None] * len(blocks)                               # caches of the stage behind
        for stage, caches in zip(self.stages[::-1], cached.caches[::-1], strict=True):
            through = functools.partial(stage.backward, grads, pixels(blocks))
            blocks, own = on_blocks(through, caches, behind, blocks)
            grads |= add_up(own)
            behind = caches
        return blocks, grads


class Stage(NamedTuple):
    """Layers that a block passes on its own, and the batch norm that follows, or None.

    Forward, the norm's moments are taken at the end; it is itself the first layer of the next
    stage. Backward, the gradient is first pulled through the norm.
    """

    layer: Sequential
    norm: "BatchNorm | None"

    def forward(self, params, now, x):
        out, cache, _ = self.layer.forward(params, now, x, train=True)
        return out, cache, moments(out) if self.norm else None

    def backward(self, grads, count, cache, behind, dout):
        if self.norm:
            dout = self.norm.pull(grads, count, behind[0], dout)
        return self.layer.backward(cache, dout)


def stages(layers):
    """Layers cut before each batch norm."""
    norms = [i for i, layer in enumerate(layers) if isinstance(layer, BatchNorm)]
    for start, end in itertools.pairwise([0, *norms, len(layers)]):
        yield Stage(Sequential(*layers[start:end]), layers[end] if end in norms else None)


class BatchNorm:
    """batch_norm by the moments of the batch, which InBlocks hands it, or in evaluation by running
    ones. Backward has two halves: dg and db of a block, and, once they are summed over blocks, its
    dx (pull).
    """

    def __init__(self, name, channels, decay=0.9):
        self.decay = decay
        self.shapes = {f"{name}.g": (channels,), f"{name}.b": (channels,)}
        self.running = f"{name}.mean", f"{name}.variance"

    def forward(self, params, state, x, train):
        if train and self not in state:
            raise ValueError("BatchNorm: is trained as one of InBlocks' own layers only")
        now = state[self] if train else [state[name] for name in self.running]
        own = [params[name] for name in self.shapes]
        return *batch_norm(joined(x), *own, *now), state

    def backward(self, cache, dout):
        return dout, dict(zip(self.shapes, batch_norm_sums(dout, cache), strict=True))

    def pull(self, grads, count, cache, dout):
        """dx of a block, from dg and db over all blocks, which stand in grads, and their pixels."""
        sums = [grads[name] for name in self.shapes]
        return batch_norm_backward(dout, cache, sums, count)[0]

    def moved(self, state, mean, variance, count):
        """The state with its running moments moved towards those of a batch, unbiased."""
        pairs = zip(self.running, (mean, variance * (count / max(count - 1, 1))), strict=True)
        keep, take = self.decay, 1 - self.decay
        return {**state, **{name: keep * state[name] + take * a for name, a in pairs}}


def pixels(blocks):
    """The number of pixels in all blocks."""
    return sum(math.prod(block.shape[:-1]) for block in blocks)


def merged_moments(parts, sizes):
    """Mean and biased variance of all blocks together, (C,), of each block's and its size."""
    shares = [size / sum(sizes) for size in sizes]
    mean = sum(share * a for share, (a, _) in zip(shares, parts, strict=True))
    variance = 0
    for share, (a, v) in zip(shares, parts, strict=True):
        variance = variance + share * (v + (a - mean) ** 2)
    return mean, variance


class DropBlock:
    """drop_block in training; its key is state["drop"], whose count Encoder.forward raises."""

    shapes = {}

    def __init__(self, **settings):
        self.settings = settings

    def forward(self, params, state, x, train):
        if not train:
            return x, None, state
        key = [int(i) for i in state["drop"]]
        return *drop_block(joined(x), key, **self.settings), state

    def backward(self, cache, dout):
        return drop_block_backward(joined(dout), cache)[0], {}


def blocks_of(x, size):
    """x in blocks of `size` images (on a GPU of many; None: one block); a list stays as it is."""
    if isinstance(x, list):
        return x
    N = x.shape[0]
    size = N if size is None else size
    step = size if is_numpy_array(x) else max(64, 20 * size)
    return [x[i:min(i + step, N), ...] for i in range(0, N, step)]


def lengths(blocks):
    """How many images each block has."""
    return [block.shape[0] for block in blocks]


def split(x, sizes):
    """x in blocks of such lengths."""
    if isinstance(x, list) and lengths(x) == sizes:
        return x
    x, ends = joined(x), itertools.accumulate(sizes)
    if x.shape[0] != sum(sizes):
        raise ValueError(f"dout: found {x.shape[0]} rows, expected {sum(sizes)}")
    return [x[end - size:end, ...] for end, size in zip(ends, sizes, strict=True)]


def joined(blocks):
    """An array, or blocks as one array; None where they are None."""
    if not isinstance(blocks, list):
        return blocks
    if len(blocks) == 1 or blocks[0] is None:
        return blocks[0]
    return array_namespace(*blocks).concat(blocks)


def on_blocks(f, *blocks):
    """A list of each result of f, in the order of the blocks, which run on the threads."""
    return map(list, zip(*on_threads(f, *blocks), strict=True))


# ------------------------------------------------------------------------------ encoders


class Spec(NamedTuple):
    """The name of an encoder below and its sizes, enough to build it again."""

    name: str
    sizes: dict


class Encoder:
    """f_theta: a layer made of layers, and nothing else; parameters come from outside."""

    def __init__(self, layer, spec=None):
        self.layer, self.spec = layer, spec
        self.shapes = layer.shapes

    def init(self, rng, dtype=None, xp=None, device=None):
        """params and state: weights *.W are N(0, 2/fan_in), biases *.b 0, scales *.g 1.

        rng is NumPy's. state: running moments of every batch norm; the key of DropBlock.
                                                                        [He et al. 2015]
        """
        xp = xp or array_api_compat.numpy
        on = {"dtype": dtype or xp.float32, "device": device}
        params, state = {}, {}
        for name, shape in self.shapes.items():
            layer, _, kind = name.rpartition(".")
            if kind == "W":
                draw = math.sqrt(2 / math.prod(shape[:-1])) * rng.standard_normal(shape)
                params[name] = xp.asarray(draw, **on)
            else:
                params[name] = xp.full(shape, {"g": 1, "b": 0}[kind], **on)
            if kind == "g":
                state[f"{layer}.mean"] = xp.zeros(shape, **on)
                state[f"{layer}.variance"] = xp.ones(shape, **on)
        state["drop"] = xp.asarray([int(rng.integers(2 ** 31)), 0], device=device)
        return params, state

    @on_one_blas_thread
    def forward(self, params, state, x, train=True):
        """x (N, H, W, C) or (N, d)  ->  features (N, m), cache, state."""
        F, cache, state = self.layer.forward(params, state, x, train)
        F = joined(F)
        if train and "drop" in state:
            one = array_namespace(x).asarray([0, 1], device=device(x))
            state = {**state, "drop": state["drop"] + one}          # a pass more
        return F, cache, state

    @on_one_blas_thread
    def backward(self, cache, dF):
        """dF (N, m)  ->  gradients, with the keys and shapes of params."""
        _, grads = self.layer.backward(cache, dF)
        return {name: grads[name] for name in self.shapes}


def dense(name, a, c):
    """A linear layer."""
    return Layer(linear, linear_backward, {f"{name}.W": (a, c), f"{name}.b": (c,)})


def conv(name, k, c, o, bias=True, **settings):
    """A k x k convolution from c to o channels."""
    shapes = {f"{name}.W": (k, k, c, o)} | ({f"{name}.b": (o,)} if bias else {})
    return Layer(conv2d, conv2d_backward, shapes, **settings)


RELU = Layer(relu, relu_backward)
LEAKY = Layer(leaky_relu, leaky_relu_backward)
POOL = Layer(max_pool2d, max_pool2d_backward)
FLATTEN = Layer(flatten, flatten_backward)
TRIM = Layer(trim, trim_backward)
MEAN = Layer(global_pool, global_pool_backward)


def mlp(sizes, classes=0):
    """Linear layers with ReLU between them, mlp([d, hidden, ..., m]).

    classes > 0 adds a linear head on the features: logits, for empirical risk minimisation.
    """
    layers = []
    for i, (a, c) in enumerate(itertools.pairwise(sizes), start=1):
        layers += [dense(f"linear{i}", a, c), RELU]
    layers.pop()                                                    # none behind the features
    if classes:
        layers.append(dense("head", sizes[-1], classes))
    return Encoder(Sequential(*layers), Spec("mlp", {"sizes": sizes, "classes": classes}))


def cnn(m, channels=3, norm=False):
    """The encoder of the 3D Shapes experiments, 64 x 64 images to m features; norm ends it by a
    batch norm.                                     [L23, App. D.2.3; Locatello et al. 2019]
    """
    convolutions = Sequential(
        conv("conv1", 4, channels, 32, stride=2, pad=1, need_dx=False), RELU,
        conv("conv2", 4, 32, 32, stride=2, pad=1), RELU,
        conv("conv3", 2, 32, 64, stride=2), RELU,
        conv("conv4", 2, 64, 64, stride=2), RELU)
    layers = [InBlocks(convolutions, size=10), FLATTEN, mlp([1024, 256, m]).layer]
    if norm:
        layers.append(InBlocks(BatchNorm("norm", m), size=None))
    spec = Spec("cnn", {"m": m, "channels": channels, "norm": norm})
    return Encoder(Sequential(*layers), spec)


def convnet(m, shape, widths=(32, 32, 64, 64), hidden=256):
    """The same for images of any shape (H, W, C), H and W at least 4: 4 x 4 convolutions of stride
    2, as many as there are widths and as leave at least one pixel."""
    H, W, c = shape
    layers = []
    for i, o in enumerate(widths, start=1):
        if min(H, W) < 4:
            break
        odd = H % 2 + W % 2 > 0
        layers += odd * [TRIM]
        layers += [conv(f"conv{i}", 4, c, o, stride=2, pad=1, need_dx=odd or i > 1), RELU]
        H, W, c = H // 2, W // 2, o
    spec = Spec("convnet", {"m": m, "shape": shape, "widths": widths, "hidden": hidden})
    head = mlp([H * W * c, hidden, m]).layer
    return Encoder(Sequential(InBlocks(*layers, size=10), FLATTEN, head), spec)


def conv4(channels=3, filters=64):
    """4 x [3 x 3 convolution, batch norm, ReLU, 2 x 2 max pool]:
    (N, H, W, channels) -> (N, filters H//16 W//16), H and W at least 16.  [Snell et al. 2017]

    Max and ReLU commute: pooling first leaves ReLU a quarter of the work. No bias before a norm.
    """
    layers = []
    for i, c in enumerate((channels, filters, filters, filters), start=1):
        own = conv(f"block{i}.conv", 3, c, filters, bias=False, pad=1, need_dx=i > 1)
        layers += [own, BatchNorm(f"block{i}.norm", filters), POOL, RELU]
    spec = Spec("conv4", {"channels": channels, "filters": filters})
    return Encoder(Sequential(InBlocks(*layers, size=15), FLATTEN), spec)


def resnet12(channels=3, widths=(64, 160, 320, 640), drop=0.1, ramp=40_000, pool=False):
    """MetaOptNet's ResNet-12: four residual blocks of three 3 x 3 convolutions, each ended by a
    2 x 2 max pool and dropout, DropBlock of size 5 in the last two.

    (N, H, W, channels) -> (N, widths[-1] H//16 W//16), or (pool) their mean over pixels, H and W at
    least 16; ramp counts forward passes, two a training step.
                                                          [L23, App. D.3; Lee et al. 2019, Sec. 4.1]
    """
    layers = []
    for i, (c, o) in enumerate(zip((channels, *widths), widths), start=1):      # noqa: B905
        branch = InBlocks(
            *conv_norm(f"block{i}.1", 3, c, o), LEAKY,
            *conv_norm(f"block{i}.2", 3, o, o), LEAKY,
            *conv_norm(f"block{i}.3", 3, o, o), size=1)
        shortcut = InBlocks(*conv_norm(f"block{i}.short", 1, c, o), size=1)
        layers += [Residual(branch, shortcut), InBlocks(LEAKY, POOL, size=1)]
        if drop:
            last = {"ramp": ramp, "size": 5} if i > 2 else {"ramp": 0, "size": 1}
            layers.append(DropBlock(rate=drop, layer=i, **last))
    layers.append(MEAN if pool else FLATTEN)
    sizes = {"channels": channels, "widths": widths, "drop": drop, "ramp": ramp, "pool": pool}
    return Encoder(Sequential(*layers), Spec("resnet12", sizes))


def conv_norm(name, k, c, o):
    """A convolution that keeps the image's size, and its batch norm."""
    return conv(f"{name}.conv", k, c, o, bias=False, pad=k // 2), BatchNorm(f"{name}.norm", o)


ENCODERS = {"mlp": mlp, "cnn": cnn, "convnet": convnet, "conv4": conv4, "resnet12": resnet12}


def build(spec):
    """The encoder of a Spec."""
    if spec.name not in ENCODERS:
        raise ValueError(f"encoder: found {spec.name}, expected one of {', '.join(ENCODERS)}")
    return ENCODERS[spec.name](**spec.sizes)


# ------------------------------------------------------------------------------ estimator
# For scikit-learn's users: NumPy arrays outside, parameters on the CPU or a GPU inside.

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
        xp, on = library_of(self.device)
        rng = np.random.default_rng(self.seed())
        params, state = training.encoder.init(rng, xp=xp, device=on)
        return self.conclude(train(training, Snapshot(params, state, None, 0)), X, y)

    def prepare(self, X, Y):
        """What `train` needs to train the encoder."""
        X, targets = self.check(X, Y)
        xp, on = library_of(self.device)
        self.encoder_ = self.make_encoder(X.shape[1:])
        self.input_mean_, self.input_scale_ = mean_and_scale(X)
        head = self.head if self.likelihood == "gaussian" else "inner-group-logistic"
        size = targets.size(self.samples)
        split = min(self.split, size - 1) if self.split else None
        objective = task_objective(head, self.eps, self.warmup, split)
        optimiser = (
            functools.partial(adam, beta1=self.beta1, beta2=self.beta2),
            functools.partial(cosine, flat=self.flat))

        def sample(step):
            rng = np.random.default_rng([self.seed(), step])
            sets = [targets.draw(rng, size, self.tasks_per_set) for _ in range(self.image_sets)]
            index, y, known = (np.stack(parts) for parts in zip(*sets, strict=True))
            labels = xp.asarray(y, device=on), xp.asarray(known, device=on)
            return [xp.asarray(self.inputs(X[index.ravel()]), device=on)], labels

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

    def encode(self, X, batch=400):
        """What the encoder puts out, (N, m), in evaluation; in double precision for a table."""
        dtype, parts = np.float64 if X.ndim == 2 else np.float32, []
        params = {name: a.astype(dtype) for name, a in self.params_.items()}
        for i in range(0, len(X), batch):
            x = self.inputs(X[i:i + batch], dtype)
            F, _, _ = self.encoder_.forward(params, self.state_, x, train=False)
            parts.append(F)
        return np.concatenate(parts).astype(np.float64)


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
    """The array library of a device, cpu or gpu, and the device."""
    if name == "cpu":
        return array_api_compat.numpy, None
    import array_api_compat.cupy as xp

    return xp, None
