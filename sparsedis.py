"""sparsedis.py -- the method: an encoder trained through the solutions of many sparse linear fits.

    theta -- params, a dict name -> array          f_theta -- Encoder, a layer made of layers
    x (N, H, W, C)  images                         features (N, m)  what it gives for them
    F (T, n, m)     features of T tasks, normalised; F_sets (G, n, m) those of image sets
    y (T, n)        labels                         w (T, m)  linear predictors of the tasks
    Y (T, n, k)     labels of k outputs            W (T, k, m)  their predictors
    G, n, K         image sets a step, G = 4; images a set, n = 25, N = G n; tasks on each set,
                    K = 16 (the paper: n = 50 and K = 1)
    T, m            tasks a step, T = G K = 64; features, m = 6
    eps             strength of the penalty:  lam = eps lambda_max(F, y)
    dX              dL/dX, with the shape of X

The bilevel problem, and the function that computes each part:

    min_theta  1/T sum_t  1/(2 n) ||y_t - F_t w_t||^2                  task_objective, squared_error
    with       F_t = normalise(f_theta(x_t))                           Encoder, head_on_sets
               w_t = argmin_w  1/(2 n) ||y_t - F_t w||^2 + lam ||w||_1   bilevel, solvers.lasso
                                                                       [L23, Problem (6)]
A run in outline (experiments/disentangle.py makes it, with settings of Adam of its own):

    shapes, encoder = data.Shapes3D(), cnn(6)
    tasks = data.Tasks(*data.latents(shapes), sets=4, samples=25, per_set=16)

    def sample(step):
        index, y = tasks.sample(numpy.random.default_rng(step))             # (G, n), (G, K, n)
        return [shapes.images(index.ravel())], y

    params, state = encoder.init(numpy.random.default_rng(0))
    training = Training(encoder, sample, task_objective("inner-lasso"), steps=800)
    end = train(training, Snapshot(params, state, None, 0))

In this order: the problem and its training; other heads; layers; encoders. Every forward pass
f(x, ...) -> out, cache is followed by its backward pass f_backward(dout, cache) -> dx, grads. The
inner problems lie in solvers.py.

[L23] Lachapelle et al., Synergies between disentanglement and sparsity, ICML 2023.
"""
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import array_api_compat.numpy
from array_api_compat import array_namespace, device, is_numpy_array

import solvers
from solvers import cpu_threads as cpu_threads  # sparsedis.cpu_threads, for those who train
from solvers import matvec, on_threads, one_blas_thread, outer_product

# ------------------------------------------------------------------------------ one bilevel problem
# A head is a function of features, labels and penalty:
#     head(F, y, lam, n_support=None, params=None) -> loss, dF, dparams, info
# n_support=None fits and scores on the same samples, Problem (6); a number fits on the first
# n_support samples of each task and scores on the others, Problem (7). lam, a number or (T,), is a
# constant of the differentiation. params are a head's own, such as a learned scale of its scores:
# those of few-shot episodes have some (experiments/episode_heads.py); task_objective passes none.


class Outer(NamedTuple):
    """What an outer loss returns: its value, its derivatives, and the scores Z of classes."""

    loss: Any                                                       # an array of no dimensions
    dF: Any                                                         # at fixed w, of those scored
    dw: Any                                                         # at fixed F, the shape of w
    dparams: dict = {}
    Z: Any = None                                                   # W F_i, (T, n, k)


def bilevel(fit, fit_vjp, outer_loss, F, y, lam, n_support=None):
    """The outer loss of fitted predictors; its gradient, directly and through the solution w(F).

    fit(F, y, lam) -> w, info                          the inner problem
    fit_vjp(F, y, lam, w, dw, info) -> dF, dparams     its adjoint (None: the returned dF is None)
    outer_loss(F, y, w) -> Outer                                [L23, Problems (6), (7)]

    info counts the tasks whose fit is "unsolved", whose dF is 0.
    """
    F, y = solvers.check_shapes(F, y)
    fit_on, score_on = split_samples(n_support, F.shape[1])
    F_fit, y_fit = F[:, fit_on, :], y[:, fit_on, ...]
    w, info = fit(F_fit, y_fit, lam)
    out = outer_loss(F[:, score_on, :], y[:, score_on, ...], w)
    xp, solved = array_namespace(F), solved_tasks(info, F)
    unsolved = xp.sum(xp.astype(~solved, xp.int64))
    info = {"w": w, "scores": out.Z, "unsolved": unsolved, **info}
    if fit_vjp is None:
        return out.loss, None, {}, info
    dF_fit, dparams = fit_vjp(F_fit, y_fit, lam, w, out.dw, info)
    dF = xp.zeros_like(F)
    dF[:, score_on, :] += out.dF                                    # at fixed w
    dF[:, fit_on, :] += dF_fit                                      # through w(F)
    dF = xp.where(solved[:, None, None], dF, 0)                     # w(F) is not known elsewhere
    return out.loss, dF, {**out.dparams, **dparams}, info


def solved_tasks(info, F):
    """Which tasks (T,) a solver calls converged; all or none where they have one fit together."""
    xp = array_namespace(F)
    told = xp.asarray(info.get("converged", True), device=device(F))
    return xp.broadcast_to(told, F.shape[:1])


def features_only(vjp):
    """The fit_vjp of a solver's vjp, of which dF is kept, and not its dy and dlam."""
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


def squared_error(F, y, w):
    """L = 1/T sum_t 1/(2 n) ||y_t - F_t w_t||^2."""
    T, n, _ = F.shape
    r = matvec(F, w) - y                                            # (T, n)
    loss = array_namespace(F).sum(r * r) / (2 * T * n)
    dr = r / (T * n)
    return Outer(loss, dF=outer_product(dr, w), dw=matvec(F.mT, dr))


def inner_lasso(F, y, lam, n_support=None, params=None):
    """Sparse predictors, w_t = argmin 1/(2 n) ||y_t - F_t w||^2 + lam_t ||w||_1.

    F (T, n, m), y (T, n), lam a number or (T,)  ->  loss, dF (T, n, m), {}, and info: w (T, m) and
    the solver's certificate.                                  [L23, Problem (6), Sec. 5.1]
    """
    fit_vjp = features_only(solvers.lasso_vjp)
    return bilevel(solvers.lasso, fit_vjp, squared_error, F, y, lam, n_support)


# ------------------------------------------------------------------------------ the objective
# objective(progress, [features, ...], y, params) -> loss, [dfeatures, ...], dparams, info, for the
# features of each batch of a step; progress runs from 0 up to 1, without it.


def task_objective(head, eps=0.3, warmup=0.5, n_support=None, norm="batch", masked=False):
    """[L23, Problem (6)] on one batch: a head of HEADS (below), on G image sets with K tasks each.

    y (G, K, n) or (G, K, n, k); masked: a pair of y and the mask known (G, K, n). eps rises from 0
    over the share `warmup` of the steps (0: constant, as in the paper). n_support: Problem (7).
    norm: see normalise.
    """
    head, lambda_max = HEADS[head]

    def objective(progress, batches, y, params):
        features, = batches                                         # (G n, m)
        y, known = y if masked else (y, None)
        G, _, n = y.shape[:3]
        now = eps * rise(progress, warmup)
        F_sets = array_namespace(features).reshape(features, (G, n, -1))
        loss, dF, info = head_on_sets(head, lambda_max, F_sets, y, now, n_support, norm, known)
        return loss, [array_namespace(dF).reshape(dF, features.shape)], {}, {"eps": now, **info}

    return objective


def rise(progress, share):
    """From 0 to 1 over a share of the training, 1 from there on."""
    return min(1, progress / share) if share else 1.0


def head_on_sets(head, lambda_max, F_sets, y, eps, n_support=None, norm="batch", known=None):
    """A head on G image sets that K tasks share: F_sets (G, n, m), y (G, K, n, ...) -> loss,
    dF_sets, info.

    Each set's features are normalised, by all its samples, and repeated for its K tasks; the K
    gradients are added up. Predictors have no intercept. Where norm="batch" and every sample is
    fitted, features have mean 0, and for a real y none is needed: its mean has no effect on w. With
    n_support or known this does not hold, and the caller should centre a real y; with another norm
    features have means of their own. Scores of classes miss theirs.
    Where known (G, K, n) is False, a task has no label, and the caller puts y_i = 0, or any class:
    F_i = 0 there, so that the sample does not change w; n and the moments still count it.
    """
    xp = array_namespace(F_sets)
    G, n, m = F_sets.shape
    K = y.shape[1]
    F_norm, cache = normalise(F_sets, norm)
    F = xp.repeat(F_norm, K, axis=0)                                # (T, n, m), T = G K
    y = xp.reshape(y, (G * K, *y.shape[2:]))
    if known is not None:
        known = xp.astype(xp.reshape(known, (G * K, n, 1)), F.dtype)
        F = F * known
    lam = eps * lambda_max(F[:, :n_support, :], y[:, :n_support, ...])              # a constant
    loss, dF, _, info = head(F, y, lam, n_support)
    dF = dF if known is None else dF * known
    dF_norm = xp.sum(xp.reshape(dF, (G, K, n, m)), axis=1)
    dF_sets, _ = normalise_backward(dF_norm, cache)
    return loss, dF_sets, info


def normalise(F, norm="batch", n_support=None):
    """Shift and scale to mean 0 and variance 1: norm="batch", each feature over the samples of its
    set; norm="layer", each sample over its own features; norm="none", not at all.

    F (G, n, m), or (T, n, m) where each task has its own. The variance is biased, with 1e-5 added;
    nothing is learned. n_support ("batch" only): the moments are those of the first n_support
    samples, applied to all. Without normalisation ||F|| grows without bound.
                                                                  [L23, Sec. 3.4, App. D.2.3]
    """
    xp = array_namespace(F)
    if norm not in ("batch", "layer", "none"):
        raise ValueError(f"norm: found {norm}, expected batch, layer or none")
    if n_support is not None and norm != "batch":
        raise ValueError("normalise: moments of the support are those of samples, norm='batch'")
    if norm == "none":
        return F, None
    axis = {"batch": 1, "layer": 2}[norm]
    fit = F[:, split_samples(n_support, F.shape[1])[0], :]
    mean = xp.mean(fit, axis=axis, keepdims=True)
    deviation = xp.sqrt(xp.mean((fit - mean) ** 2, axis=axis, keepdims=True) + 1e-5)
    out = (F - mean) / deviation
    return out, (out, deviation, axis, n_support)


def normalise_backward(dout, cache):
    """dF_i = (dout_i - (sum dout + out_i sum dout out) / n_fit) / deviation, but dout_i/deviation
    where sample i is not in the moments. Sums are over all samples, n_fit counts those in the
    moments ("layer": both are over the m features)."""
    if cache is None:                                               # norm="none"
        return dout, {}
    xp = array_namespace(dout)
    out, deviation, axis, n_support = cache
    fit = out[:, :n_support, :]
    sum_dout = xp.sum(dout, axis=axis, keepdims=True)
    sum_along = xp.sum(dout * out, axis=axis, keepdims=True)
    dF = dout / deviation
    dF[:, :n_support, :] -= (sum_dout + fit * sum_along) / (fit.shape[axis] * deviation)
    return dF, {}


# ------------------------------------------------------------------------------ training


class OptimiserState(NamedTuple):
    """Steps taken, and Adam's first and second moments (SGD keeps its velocity as the mean)."""

    step: int
    mean: dict
    square: dict


class Snapshot(NamedTuple):
    """Where a training is: its parameters, the encoder's state, the optimiser, the next step."""

    params: dict
    state: dict
    opt: OptimiserState | None
    step: int


class Training(NamedTuple):
    """What `train` needs.

    sample(step) -> [x, ...], y      batches of images and labels, on the parameters' device
    objective(progress, [features, ...], y, params) -> loss, [dfeatures, ...], dparams, info; it is
                     given features in float64, and what it returns is cast back
    optimiser        step(params, grads, opt, lr) -> params, opt and schedule(lr, progress) -> lr of
                     a step; None: (adam, cosine)
    """

    encoder: "Encoder"
    sample: Callable
    objective: Callable
    steps: int = 1000
    lr: float = 1e-3
    optimiser: tuple | None = None


def train(training, start, report=None):
    """Minimise the objective from a Snapshot on; report(Snapshot, loss, info) hears of every step.

    Batches of a step pass the encoder one by one, each normalised by its own moments where it has
    batch norms. The inner problems are solved in double precision, whatever the encoder's. Returns
    the last Snapshot. Raises FloatingPointError where features, loss or gradient are not finite.
    """
    params, state, opt, first = start
    optimise, schedule = training.optimiser or (adam, cosine)
    for step in range(first, training.steps):
        progress = step / training.steps
        batches, y = training.sample(step)
        features, caches = [], []
        for x in batches:
            out, cache, state = training.encoder.forward(params, state, x)
            features.append(out)
            caches.append(cache)
        named = {f"features of batch {i}": F for i, F in enumerate(features)}
        refuse_non_finite(named, step)
        loss, dfeatures, dhead, info = training.objective(progress, in_double(features), y, params)
        grads = gradients(training.encoder, caches, features, dfeatures, dhead)
        refuse_non_finite({"the loss": loss} | {f"d{name}": g for name, g in grads.items()}, step)
        params, opt = optimise(params, grads, opt, schedule(training.lr, progress))
        if report:
            report(Snapshot(params, state, opt, step + 1), float(loss), info)
    return Snapshot(params, state, opt, max(first, training.steps))


def in_double(features):
    """Every array in double precision."""
    return [array_namespace(a).astype(a, array_namespace(a).float64) for a in features]


def gradients(encoder, caches, features, dfeatures, dhead):
    """The encoder's gradients, added up over the batches of a step, and the head's own."""
    xp, dtype = array_namespace(*features), features[0].dtype
    pairs = zip(caches, dfeatures, strict=True)
    parts = [encoder.backward(cache, xp.astype(d, dtype)) for cache, d in pairs]
    return add_up(parts) | {name: xp.astype(g, dtype) for name, g in dhead.items()}


def add_up(parts):
    """The sum of each key's arrays, one part after another."""
    total = dict(parts[0])
    for part in parts[1:]:
        total = {name: a + part[name] for name, a in total.items()}
    return total


def refuse_non_finite(named, step):
    """Raise FloatingPointError where an array, name -> array, holds a value that is not finite."""
    xp = array_namespace(*named.values())
    bad = [name for name, a in named.items() if not bool(xp.all(xp.isfinite(a)))]
    if bad:
        raise FloatingPointError(f"step {step}: values that are not finite in {', '.join(bad)}")


def adam(params, grads, opt, lr, beta1=0.9, beta2=0.999, tiny=1e-8):
    """One step of Adam; opt is None at first.          [Kingma and Ba 2015, Algorithm 1]"""
    xp = array_namespace(*grads.values())
    t, mean, square = opt or (0, zeros_like_all(params), zeros_like_all(params))
    t = t + 1
    mean = {k: beta1 * mean[k] + (1 - beta1) * g for k, g in grads.items()}
    square = {k: beta2 * square[k] + (1 - beta2) * g * g for k, g in grads.items()}
    rate = lr / (1 - beta1 ** t)
    unbias = 1 / math.sqrt(1 - beta2 ** t)
    new = {k: p - rate * mean[k] / (xp.sqrt(square[k]) * unbias + tiny) for k, p in params.items()}
    return new, OptimiserState(t, mean, square)


def zeros_like_all(params):
    """Zeros of the shapes of all parameters."""
    return {name: 0 * p for name, p in params.items()}


def cosine(lr, progress, flat=0.0):
    """lr for a share `flat` of the training, then to 0 along half a cosine; progress is 0 to 1."""
    done = max(0, progress - flat) / (1 - flat) if flat < 1 else 0  # share of the descent
    return lr * (1 + math.cos(math.pi * done)) / 2


# ------------------------------------------------------------------------------ other heads


def inner_ridge(F, y, lam, n_support=None, params=None):
    """Dense predictors, the baseline: w_t = argmin 1/(2 n) ||y_t - F_t w||^2 + lam_t/2 ||w||^2.

    Shapes as of inner_lasso.                                              [L23, Sec. 5.1]
    """
    fit_vjp = features_only(solvers.ridge_vjp)
    return bilevel(fit_ridge, fit_vjp, squared_error, F, y, lam, n_support)


def fit_ridge(F, y, lam):
    """w (T, m), and its certificate."""
    w = solvers.ridge(F, y, lam)
    gap = solvers.ridge_residual(F, y, lam, w)
    return w, {"gap": gap, "converged": gap <= array_namespace(F).finfo(F.dtype).eps ** 0.5}


def outer_lasso(F, y, lam, n_support=None, params=None):
    """Plain fits; the outer loss asks them to be sparse: + 1/T sum_t lam_t ||w_t||_1, |w| having
    the slope 0 at w = 0. Shapes as of inner_lasso.           [L23, Problem (62), App. B.3]
    """
    xp = array_namespace(F)
    return outer_penalty(xp.abs, xp.sign, F, y, lam, n_support)


def outer_ridge(F, y, lam, n_support=None, params=None):
    """The same with + 1/T sum_t lam_t/2 ||w_t||^2 (the paper: "L2-norm").  [L23, App. D.2.5]"""
    return outer_penalty(lambda w: w * w / 2, lambda w: w, F, y, lam, n_support)


def outer_penalty(penalty, slope, F, y, lam, n_support):
    """Plain fits, and an outer loss with + 1/T sum_t lam_t sum_j penalty(w_tj); its slope."""
    F, y, lam = solvers.check_problem(F, y, lam, ndim=2)

    def penalised(F, y, w):
        xp, T = array_namespace(w), w.shape[0]
        out = squared_error(F, y, w)
        total = xp.sum(lam * xp.sum(penalty(w), axis=1))
        return Outer(out.loss + total / T, out.dF, out.dw + lam[:, None] * slope(w) / T)

    return bilevel(fit_least_squares, fit_least_squares_vjp, penalised, F, y, lam, n_support)


RIDGE = 1e-7  # keeps plain least squares regular in float64, as a share of ridge_lambda_max


def fit_least_squares(F, y, lam):
    """Plain least squares; lam is the outer penalty's."""
    return fit_ridge(F, y, RIDGE * solvers.ridge_lambda_max(F))


def fit_least_squares_vjp(F, y, lam, w, dw, info):
    """dF of ridge, and that through its strength rho = RIDGE ||F||_F^2/n: 2 RIDGE F drho/n."""
    rho = RIDGE * solvers.ridge_lambda_max(F)
    dF, _, drho = solvers.ridge_vjp(F, y, rho, w, dw)
    return dF + 2 * RIDGE / F.shape[1] * drho[:, None, None] * F, {}


# Heads of k outputs: Y (T, n, k) is real, one-hot, or of 0 and 1 where k = 1.


def inner_group_lasso(F, Y, lam, n_support=None, params=None, loss="squared"):
    """Sparse predictors of k outputs: argmin (1/n) sum_i loss(W F_i, Y_i) + lam_t ||W||_{2,1}.

    loss is "squared", 1/2 ||z - y||^2, or "logistic", softmax cross-entropy (k = 1: sigmoid). The
    outer loss is its mean over tasks and samples, of scores times params["scale"] where there is
    one (class_loss). For m k up to a few hundred.                      [L23, Problem (6)]
    """
    fit = functools.partial(solvers.group_lasso, loss=loss)
    fit_vjp = features_only(functools.partial(solvers.group_lasso_vjp, loss=loss))
    return bilevel(fit, fit_vjp, class_loss(params, loss=loss), F, Y, lam, n_support)


def class_loss(params, smoothing=0.0, loss="logistic"):
    """The outer loss of predictors W (T, k, m): that of the scores scale W F_i."""
    params = params or {}
    scale = params.get("scale", 1)

    def outer_loss(F, Y, W):
        xp = array_namespace(F)
        Z = solvers.scores(F, W)                                    # (T, n, k)
        value, dZ = score_loss(scale * Z, Y, smoothing, loss)
        dW = scale * (dZ.mT @ F)
        dparams = {"scale": xp.sum(dZ * Z)} if "scale" in params else {}
        return Outer(value, scale * (dZ @ W), dW, dparams, Z)

    return outer_loss


def score_loss(Z, Y, smoothing=0.0, loss="logistic"):
    """1/(T n) sum loss(Z_i, Y_i) and its derivative in the scores Z (T, n, k).

    Labels are smoothed to 1 - smoothing (k - 1)/k for the class and smoothing/k for each other
    (MetaOptNet: 1 - smoothing and smoothing/(k - 1)).
    """
    T, _, k = Z.shape
    Y = (1 - smoothing) * Y + smoothing / max(k, 2)                 # one column is two classes
    R, _ = solvers.loss_gradient(Z, Y, loss)
    return array_namespace(Z).mean(solvers.data_loss(Z, Y, loss)), R / T


inner_group_logistic = functools.partial(inner_group_lasso, loss="logistic")
logistic_lambda_max = functools.partial(solvers.group_lasso_lambda_max, loss="logistic")

HEADS = {                             # name -> head, and the scale of its penalty, lambda_max(F, y)
    "inner-lasso": (inner_lasso, solvers.lasso_lambda_max),
    "inner-ridge": (inner_ridge, solvers.ridge_lambda_max),
    "outer-lasso": (outer_lasso, solvers.lasso_lambda_max),
    "outer-ridge": (outer_ridge, solvers.ridge_lambda_max),
    "inner-group-lasso": (inner_group_lasso, solvers.group_lasso_lambda_max),
    "inner-group-logistic": (inner_group_logistic, logistic_lambda_max)}

# ------------------------------------------------------------------------------ layers
# f(x, ...) -> out, cache, and f_backward(dout, cache) -> dx, grads; grads is a dict by the names of
# f's own arguments, {} where it has no parameters.


def linear(x, W, b):
    """x W + b:  x (N, a), W (a, c), b (c,) -> (N, c)."""
    if x.shape[1:] != W.shape[:1]:
        raise ValueError(f"linear: found x {tuple(x.shape)}, expected (N, {W.shape[0]}): images of "
                         "another size, or other inputs, than the encoder was built for")
    return x @ W + b, (x, W)


def linear_backward(dout, cache):
    """dx = dout W',  dW = x' dout,  db = sum_i dout_i."""
    x, W = cache
    return dout @ W.T, {"W": x.T @ dout, "b": column_sums(dout)}


def column_sums(x):
    """(N, c) -> (c,), as a product with ones: of many rows several times as fast as a sum."""
    xp = array_namespace(x)
    return xp.ones(x.shape[0], dtype=x.dtype, device=device(x)) @ x


def relu(x):
    """max(x, 0); its cache is the mask of x > 0, a byte each."""
    xp = array_namespace(x)
    out = xp.maximum(x, xp.zeros_like(x[:1, ...]))                  # zeros: a bare 0 is slower
    return out, out > 0


def relu_backward(dout, positive):
    """dx = dout where x > 0."""
    return dout * array_namespace(dout).astype(positive, dout.dtype), {}


def flatten(x):
    """(N, ...) -> (N, product of the rest)."""
    return array_namespace(x).reshape(x, (x.shape[0], math.prod(x.shape[1:]))), x.shape


def flatten_backward(dout, shape):
    """dx = dout, in the shape of x."""
    return array_namespace(dout).reshape(dout, shape), {}


def trim(x):
    """x without its last row where H is odd, and without its last column where W is."""
    return x[:, :x.shape[1] // 2 * 2, :x.shape[2] // 2 * 2, :], x.shape


def trim_backward(dout, shape):
    """dx = dout, and 0 in the row and the column that were left out."""
    if dout.shape == shape:
        return dout, {}
    _, H, W, _ = dout.shape
    dx = array_namespace(dout).zeros(shape, dtype=dout.dtype, device=device(dout))
    dx[:, :H, :W, :] = dout
    return dx, {}


# A k x k convolution of stride s, with k = q s, is a dense q x q one of stride 1 after
# space-to-depth: each s x s patch becomes one pixel of c = s^2 C channels. What is left is one
# matrix product of gathered pixels, forward and backward; no pass scatters:
#     out = windows(X) V                    V (q^2 c, O), the kernel (windows_times)
#     dX  = windows(padded dout) V_back     V_back (q^2 O, c), V's q^2 blocks reversed, transposed
#     dV  = X' windows(padded dout)         its q^2 blocks reversed, or, where dX is not needed,
#           windows(X)' dout


class ConvCache(NamedTuple):
    """X (N, (H + 2 pad)/s, (W + 2 pad)/s, c), the kernel, whether there is b, and the settings."""

    X: Any
    W: Any
    bias: bool
    stride: int
    pad: int
    need_dx: bool


def conv2d(x, W, b=None, stride=1, pad=0, need_dx=True):
    """Convolution with zero padding: x (N, H, W, C), W (k, k, C, O), b (O,) or none.

    The stride divides k, H + 2 pad and W + 2 pad. need_dx=False, for an encoder's first layer,
    leaves out the gradient of the images.
    """
    check_sizes(x, W, stride, pad)
    X = space_to_depth(zero_pad(x, pad), stride)
    out = windows_times(X, fold_kernel(W, stride), W.shape[0] // stride)            # (N, h, w, O)
    if b is not None:
        out += b
    return out, ConvCache(X, W, b is not None, stride, pad, need_dx)


def conv2d_backward(dout, cache):
    """dx (None unless it is needed), dW and, where there is b, db = sum of dout over pixels."""
    dx, dV = (conv2d_dx_dV if cache.need_dx else conv2d_dV)(dout, cache)
    grads = {"W": unfold_kernel(dV, cache.stride, cache.W.shape)}
    return dx, grads | ({"b": column_sums(rows(dout))} if cache.bias else {})


def conv2d_dV(dout, cache):
    """No dx, and dV = windows(X)' dout."""
    XX = windows(cache.X, cache.W.shape[0] // cache.stride)
    return None, rows(XX).T @ rows(dout)


def conv2d_dx_dV(dout, cache):
    """dX = D V_back and dV = X' D, with D the windows of the padded dout."""
    xp = array_namespace(dout)
    X, W, _, stride, pad, _ = cache
    k, _, _, O = W.shape
    q, c = k // stride, X.shape[3]
    edge = min(pad, q - 1) if stride == 1 else 0                    # padding: X is 0, dX unwanted
    X = crop(X, edge)
    D = windows(zero_pad(dout, q - 1 - edge), q)                    # (N, as X now, q q O)
    V_back = xp.permute_dims(xp.flip(fold_kernel(W, stride), axis=0), (0, 2, 1))    # (q q, O, c)
    dX = xp.reshape(rows(D) @ rows(V_back), X.shape)
    dV = xp.reshape(rows(X).T @ rows(D), (c, q * q, O))
    dV = xp.flip(xp.permute_dims(dV, (1, 0, 2)), axis=0)            # (q q, c, O)
    return crop(depth_to_space(dX, stride), pad - edge), dV


def check_sizes(x, W, stride, pad):
    """Refuse a stride that does not divide the kernel and the padded image, or a larger kernel, or
    one that is not square, or of other channels."""
    k, *sides = W.shape[0], x.shape[1] + 2 * pad, x.shape[2] + 2 * pad
    if W.shape[:3] != (k, k, x.shape[3]):
        raise ValueError(f"conv2d: found x {tuple(x.shape)} and W {tuple(W.shape)}, expected "
                         "(N, H, W, C) and (k, k, C, O)")
    if any(size % stride for size in (k, *sides)) or min(sides) < k:
        raise ValueError(
            f"conv2d: stride {stride} must divide the kernel, {k}, and the padded image, "
            f"{x.shape[1:3]} + 2 * {pad}, in which the kernel must fit")


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


def windows_times(X, V, q):
    """windows(X) V, (N, h, w, O), for V (q q, c, O).

    c <= O: gather the q^2 shifted copies of X (c channels each), then multiply once. c > O: first
    multiply X by each of the q^2 blocks of V, then add the shifted products (O channels each, so
    fewer numbers to move). The second saves a quarter of the CNN's forward pass.
    """
    xp = array_namespace(X)
    qq, c, O = V.shape
    if c <= O:
        XX = windows(X, q)
        return xp.reshape(rows(XX) @ rows(V), (*XX.shape[:3], O))
    Z = rows(X) @ xp.reshape(xp.permute_dims(V, (1, 0, 2)), (c, qq * O))
    parts = shifted(xp.reshape(Z, (*X.shape[:3], qq * O)), q)
    out = parts[0][..., :O] + 0                                     # a copy
    for i in range(1, qq):
        out += parts[i][..., i * O:(i + 1) * O]
    return out


def windows(X, q):
    """(N, H, W, C) -> (N, h, w, q q C), the q^2 shifted copies side by side."""
    return array_namespace(X).concat(shifted(X, q), axis=3)


def shifted(X, q):
    """The q^2 parts (N, h, w, C) of X (N, H, W, C) that a window meets; h = H - q + 1, w too."""
    _, H, W, _ = X.shape
    h, w = H - q + 1, W - q + 1
    return [X[:, a:a + h, b:b + w, :] for a, b in itertools.product(range(q), repeat=2)]


def fold_kernel(W, s):
    """(k, k, C, O) -> (q q, c, O), the kernel after space-to-depth, k = q s."""
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


# ------------------------------------------------------------------------------ made of layers
# A layer has shapes, name -> shape of its parameters; state, name -> its start, a function of
# NumPy's generator ({} for all below: running moments are in experiments/episode_networks.py); and
#     forward(params, state, x, train) -> out, cache, state      train=False: as in evaluation
#     backward(dout, cache) -> dx, grads                         after train=True
# and so has every layer that is made of layers.


class Layer:
    """A pair of functions above, the name and the shapes of its parameters, and its settings."""

    state = {}

    def __init__(self, f, f_backward, name="", shapes=None, **settings):
        self.f, self.f_backward = f, f_backward
        self.settings = settings
        self.prefixed = {key: f"{name}.{key}" for key in shapes or {}}
        self.shapes = {f"{name}.{key}": shape for key, shape in (shapes or {}).items()}

    def forward(self, params, state, x, train):
        own = {key: params[name] for key, name in self.prefixed.items()}
        out, cache = self.f(x, **own, **self.settings)
        return out, cache, state

    def backward(self, dout, cache):
        dx, grads = self.f_backward(dout, cache)
        return dx, {self.prefixed[key]: g for key, g in grads.items()}


class Sequential:
    """One layer after another."""

    def __init__(self, *layers):
        self.layers = layers
        self.shapes = joined(layer.shapes for layer in layers)
        self.state = joined(layer.state for layer in layers)

    def forward(self, params, state, x, train):
        caches = []
        for layer in self.layers:
            x, cache, state = layer.forward(params, state, x, train)
            caches.append(cache if train else None)
        return x, caches, state

    def backward(self, dout, caches):
        grads = {}
        for layer, cache in zip(self.layers[::-1], caches[::-1], strict=True):
            dout, own = layer.backward(dout, cache)
            grads |= own
        return dout, grads


def joined(dicts):
    """One dict of all; ValueError where two layers have parameters, or state, of one name."""
    out = {}
    for more in dicts:
        twice = ", ".join(sorted(out.keys() & more.keys()))
        if twice:
            raise ValueError(f"found two layers with parameters or state named {twice}")
        out |= more
    return out


class Blocks:
    """Layers without state, applied to `size` images at a time: a block's activations stay in a
    core's fast memory from layer to layer, and blocks run on the threads of cpu_threads."""

    state = {}

    def __init__(self, *layers, size):
        self.layer, self.size = Sequential(*layers), size
        self.shapes = self.layer.shapes
        if self.layer.state:
            raise ValueError(f"Blocks: found layers with state: {', '.join(self.layer.state)}")

    def forward(self, params, state, x, train):
        def through(block):
            return self.layer.forward(params, state, block, train)

        out, caches, _ = zip(*on_threads(through, cut(x, self.size)), strict=True)
        return array_namespace(x).concat(out), caches, state

    def backward(self, dout, caches):
        dx, grads = zip(*on_threads(self.layer.backward, cut(dout, self.size), caches), strict=True)
        dx = None if dx[0] is None else array_namespace(dout).concat(dx)
        return dx, add_up(grads)


def cut(x, size):
    """x in blocks of `size` images, which fit a core's cache; on a GPU in few, large ones."""
    size = size if is_numpy_array(x) else max(64, 20 * size)
    N = x.shape[0]
    return [x[i:min(i + size, N), ...] for i in range(0, max(N, 1), size)]


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
        """params and state: weights *.W are N(0, 2/fan_in), biases *.b 0, scales *.g 1; the state
        that the layers declare. rng is NumPy's.                           [He et al. 2015]
        """
        xp = xp or array_api_compat.numpy
        dtype = dtype or xp.float32
        params = {}
        for name, shape in self.shapes.items():
            if name.endswith(".W"):
                draw = math.sqrt(2 / math.prod(shape[:-1])) * rng.standard_normal(shape)
                params[name] = xp.asarray(draw, dtype=dtype, device=device)
            else:
                fill = 1 if name.endswith(".g") else 0
                params[name] = xp.full(shape, fill, dtype=dtype, device=device)
        state = {name: start(rng) for name, start in self.layer.state.items()}
        for name, a in state.items():
            a_dtype = dtype if a.dtype.kind == "f" else None        # counts stay whole numbers
            state[name] = xp.asarray(a, dtype=a_dtype, device=device)
        return params, state

    @one_blas_thread()
    def forward(self, params, state, x, train=True):
        """x (N, H, W, C) or (N, d)  ->  features (N, m), cache, state."""
        return self.layer.forward(params, state, x, train)

    @one_blas_thread()
    def backward(self, cache, dF):
        """dF (N, m)  ->  gradients, with the keys and shapes of params; none of the images."""
        _, grads = self.layer.backward(dF, cache)
        return {name: grads[name] for name in self.shapes}

    def encode(self, params, state, images, index, batch=400):
        """Features (N, m) of images(index), in evaluation, a batch of them at a time."""
        parts = []
        for i in range(0, max(len(index), 1), batch):
            out, _, _ = self.forward(params, state, images(index[i:i + batch]), train=False)
            parts.append(out)
        return array_namespace(*parts).concat(parts)


def dense(name, a, c):
    """A linear layer."""
    return Layer(linear, linear_backward, name, {"W": (a, c), "b": (c,)})


def conv(name, k, c, o, bias=True, **settings):
    """A k x k convolution from c to o channels."""
    shapes = {"W": (k, k, c, o)} | ({"b": (o,)} if bias else {})
    return Layer(conv2d, conv2d_backward, name, shapes, **settings)


RELU = Layer(relu, relu_backward)
FLATTEN = Layer(flatten, flatten_backward)
TRIM = Layer(trim, trim_backward)


def mlp(sizes, classes=0):
    """Linear layers with ReLU between them, mlp([d, hidden, ..., m]).

    classes > 0 adds a linear classifier of the features: logits, for empirical risk minimisation.
    """
    if len(sizes) < 2:
        raise ValueError(f"mlp: found sizes {sizes}, expected at least [inputs, features]")
    layers = []
    for i, (a, c) in enumerate(itertools.pairwise(sizes), start=1):
        layers += [dense(f"linear{i}", a, c), RELU]
    layers.pop()                                                    # none behind the features
    if classes:
        layers.append(dense("head", sizes[-1], classes))
    return Encoder(Sequential(*layers), Spec("mlp", {"sizes": sizes, "classes": classes}))


def cnn(m, channels=3):
    """The encoder of the 3D Shapes experiments, 64 x 64 images to m features.
                                                    [L23, App. D.2.3; Locatello et al. 2019]
    """
    convolutions = Blocks(                                          # 64 x 64 pixels
        conv("conv1", 4, channels, 32, stride=2, pad=1, need_dx=False), RELU,       # 32 x 32
        conv("conv2", 4, 32, 32, stride=2, pad=1), RELU,            # 16 x 16
        conv("conv3", 2, 32, 64, stride=2), RELU,                   # 8 x 8
        conv("conv4", 2, 64, 64, stride=2), RELU, size=10)          # 4 x 4, of 64 channels: 1024
    top = mlp([1024, 256, m]).layer
    spec = Spec("cnn", {"m": m, "channels": channels})
    return Encoder(Sequential(convolutions, FLATTEN, top), spec)


def convnet(m, shape, widths=(32, 32, 64, 64), hidden=256):
    """The like for images of any shape (H, W, C), H and W at least 4: 4 x 4 convolutions of stride
    2, one for each width while both sides are at least 4; an odd side is trimmed first."""
    H, W, c = shape
    if min(H, W) < 4:
        raise ValueError(f"convnet: found images of {H} x {W}, expected at least 4 x 4")
    layers = []
    for i, o in enumerate(widths, start=1):
        if min(H, W) < 4:
            break
        odd = H % 2 + W % 2 > 0
        if odd:
            layers.append(TRIM)                                     # it pulls back dx, used or not
        layers += [conv(f"conv{i}", 4, c, o, stride=2, pad=1, need_dx=odd or i > 1), RELU]
        H, W, c = H // 2, W // 2, o
    spec = Spec("convnet", {"m": m, "shape": shape, "widths": widths, "hidden": hidden})
    top = mlp([H * W * c, hidden, m]).layer
    return Encoder(Sequential(Blocks(*layers, size=10), FLATTEN, top), spec)


ENCODERS = {"mlp": mlp, "cnn": cnn, "convnet": convnet}


def build(spec, encoders=ENCODERS):
    """The encoder of a Spec; encoders, name -> function, are those to choose from."""
    if spec.name not in encoders:
        raise ValueError(f"encoder: found {spec.name}, expected one of {', '.join(encoders)}")
    return encoders[spec.name](**spec.sizes)
