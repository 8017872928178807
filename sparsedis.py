"""sparsedis.py -- the method: an encoder trained through the solutions of many sparse linear fits.

    theta -- params, a dict name -> array                    f_theta -- Encoder, a list of layers
    x (N, H, W, C)  images              F (T, n, m)  features of n samples of T tasks
    y (T, n)        labels              w (T, m)     each task's linear predictor, fitted in solvers.py
    G, n, K         image sets per step, images per set, tasks on each set: T = G K
    eps             strength of the penalty as a fraction of lambda_max:  lam = eps lambda_max(F, y)
    dX              dL/dX, with the shape of X

The bilevel problem, and the function that computes each part:

    min_theta  1/T sum_t  1/(2 n) ||y_t - F_t w_t||^2                    train, squared_error         [L23, Problem (6)]
    with       F_t = normalise(f_theta(x_t))                             head_on_sets, Encoder
               w_t = argmin_w  1/(2 n) ||y_t - F_t w||^2 + lam ||w||_1   bilevel, solvers.lasso

Every forward pass f(x, ...) -> (out, cache) is followed by its backward pass f_backward(dout, cache) -> (dx, dparams...).

[L23] Lachapelle et al., Synergies between disentanglement and sparsity, ICML 2023, arXiv 2211.14666.
"""
import contextlib
import dataclasses
import functools
import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import array_api_compat.numpy
from array_api_compat import array_namespace, device, is_numpy_array
from threadpoolctl import threadpool_limits

import solvers
from solvers import matvec, outer, transpose

# --------------------------------------------------------------------------------------------------- layers


def linear(x, W, b):
    """x W + b:  x (N, a), W (a, c), b (c,) -> (N, c)."""
    return x @ W + b, (x, W)


def linear_backward(dout, cache):
    x, W = cache
    return dout @ W.T, x.T @ dout, array_namespace(dout).sum(dout, axis=0)


def relu(x):
    """max(x, 0)."""
    out = array_namespace(x).maximum(x, 0)
    return out, out


def relu_backward(dout, cache):
    return (dout * array_namespace(dout).astype(cache > 0, dout.dtype),)


def flatten(x):
    """(N, ...) -> (N, product of the rest)."""
    return array_namespace(x).reshape(x, (x.shape[0], -1)), x.shape


def flatten_backward(dout, cache):
    return (array_namespace(dout).reshape(dout, cache),)


# A k x k convolution of stride s, with k = q s, is a dense q x q one of stride 1 after space-to-depth: each
# s x s patch becomes one pixel of C' = s^2 C channels. What is left is one matrix product and q^2 shifted
# slices. The slices are taken on the side with fewer channels, and no pass scatters:
#     thin input (C' < O):   out = windows(X) V             gather the q^2 shifted inputs, then multiply
#     thin output:           out = shift_add(X V)           multiply, then add the q^2 shifted products
#     backward, both:        D = place(dout),  dX = D V'    place = transpose of shift_add
#                            dV = windows(X)' dout = X' D   whichever was gathered already


def space_to_depth(x, s, pad):
    """Zero-pad, then (N, H, W, C) -> (N, H/s, W/s, s s C)."""
    xp = array_namespace(x)
    N, H, W, C = x.shape
    if pad:
        padded = xp.zeros((N, H + 2 * pad, W + 2 * pad, C), dtype=x.dtype, device=device(x))
        padded[:, pad:pad + H, pad:pad + W, :] = x
        x, H, W = padded, H + 2 * pad, W + 2 * pad
    x = xp.permute_dims(xp.reshape(x, (N, H // s, s, W // s, s * C)), (0, 1, 3, 2, 4))
    return xp.reshape(x, (N, H // s, W // s, s * s * C))


def depth_to_space(X, s, pad):
    """The transpose of space_to_depth."""
    xp = array_namespace(X)
    N, H, W, C = X.shape
    X = xp.permute_dims(xp.reshape(X, (N, H, W, s, C // s)), (0, 1, 3, 2, 4))
    return xp.reshape(X, (N, H * s, W * s, C // s // s))[:, pad:H * s - pad, pad:W * s - pad, :]


def shifts(q, H, W):
    """For each of the q^2 offsets: its number and the slices of the H x W windows that start there."""
    return [(a * q + b, slice(a, a + H), slice(b, b + W)) for a in range(q) for b in range(q)]


def windows(X, q):
    """(N, H, W, C) -> (N, H-q+1, W-q+1, q q C), the q^2 shifted copies side by side."""
    xp = array_namespace(X)
    N, H, W, C = X.shape
    out = xp.empty((N, H - q + 1, W - q + 1, q * q, C), dtype=X.dtype, device=device(X))
    for k, rows, cols in shifts(q, H - q + 1, W - q + 1):
        out[:, :, :, k, :] = X[:, rows, cols, :]
    return xp.reshape(out, (N, H - q + 1, W - q + 1, q * q * C))


def shift_add(Z, q):
    """(N, H, W, q q O) -> (N, H-q+1, W-q+1, O), the sum of q^2 shifted blocks."""
    xp = array_namespace(Z)
    N, H, W, O = Z.shape
    Z = xp.reshape(Z, (N, H, W, q * q, O // (q * q)))
    out = Z[:, :H - q + 1, :W - q + 1, 0, :] + 0
    for k, rows, cols in shifts(q, H - q + 1, W - q + 1)[1:]:
        out += Z[:, rows, cols, k, :]
    return out


def place(dout, q):
    """(N, H, W, O) -> (N, H+q-1, W+q-1, q q O), the transpose of shift_add."""
    xp = array_namespace(dout)
    N, H, W, O = dout.shape
    D = xp.zeros((N, H + q - 1, W + q - 1, q * q, O), dtype=dout.dtype, device=device(dout))
    for k, rows, cols in shifts(q, H, W):
        D[:, rows, cols, k, :] = dout
    return xp.reshape(D, (N, H + q - 1, W + q - 1, q * q * O))


def fold_kernel(W, s):
    """(k, k, C, O) -> V (q q, C', O), the kernel after space-to-depth, k = q s."""
    xp = array_namespace(W)
    k, _, C, O = W.shape
    q = k // s
    return xp.reshape(xp.permute_dims(xp.reshape(W, (q, s, q, s, C, O)), (0, 2, 1, 3, 4, 5)), (q * q, s * s * C, O))


def unfold_kernel(V, s, shape):
    """The inverse of fold_kernel, to (k, k, C, O)."""
    xp = array_namespace(V)
    k, _, C, O = shape
    q = k // s
    return xp.reshape(xp.permute_dims(xp.reshape(V, (q, q, s, s, C, O)), (0, 2, 1, 3, 4, 5)), shape)


def rows(x):
    """(..., c) -> (product of the rest, c)."""
    return array_namespace(x).reshape(x, (-1, x.shape[-1]))


def conv2d(x, W, b, stride=1, pad=0, need_dx=True):
    """Convolution with zero padding: x (N, H, W, C), W (k, k, C, O), b (O,) -> (N, H', W', O).

    The stride divides k, H + 2 pad and W + 2 pad. need_dx=False, for an encoder's first layer, leaves out the
    gradient of the images.
    """
    xp = array_namespace(x)
    if any(size % stride for size in (W.shape[0], x.shape[1] + 2 * pad, x.shape[2] + 2 * pad)):
        raise ValueError(f"conv2d: stride {stride} must divide the kernel, {W.shape[0]}, and the padded image, {x.shape[1:3]} + 2 * {pad}")
    X, V = space_to_depth(x, stride, pad), fold_kernel(W, stride)
    (qq, C, O), q = V.shape, W.shape[0] // stride                                       # C is C' from here on
    thin_input = C < O
    if thin_input:
        X = windows(X, q)                                                               # (N, H', W', q q C'), also the cached X
        out = xp.reshape(rows(X) @ xp.reshape(V, (qq * C, O)), X.shape[:3] + (O,))
    else:
        Z = rows(X) @ xp.reshape(xp.permute_dims(V, (1, 0, 2)), (C, qq * O))
        out = shift_add(xp.reshape(Z, X.shape[:3] + (qq * O,)), q)
    out += b
    return out, (X, V, W.shape, stride, pad, thin_input, need_dx)


def conv2d_backward(dout, cache):
    xp = array_namespace(dout)
    X, V, W_shape, stride, pad, thin_input, need_dx = cache
    (qq, C, O), q = V.shape, W_shape[0] // stride
    D = place(dout, q) if need_dx or not thin_input else None                           # (N, H, W, q q O)
    if thin_input:
        dV = xp.reshape(rows(X).T @ rows(dout), (qq, C, O))
    else:
        dV = xp.permute_dims(xp.reshape(rows(X).T @ rows(D), (C, qq, O)), (1, 0, 2))
    dx = None
    if need_dx:
        dX = rows(D) @ xp.reshape(xp.permute_dims(V, (0, 2, 1)), (qq * O, C))
        dx = depth_to_space(xp.reshape(dX, D.shape[:3] + (C,)), stride, pad)
    return dx, unfold_kernel(dV, stride, W_shape), xp.sum(rows(dout), axis=0)


def normalise(F, axis=1):
    """Features of mean 0 and variance 1 over axis 1, each task's samples (batch norm), or axis 2 (layer norm).  [L23, Sec. 3.4]

    F (T, n, m); biased variance with 1e-5 added; nothing learned. Without it ||F|| grows and sparsity is lost.
    """
    xp = array_namespace(F)
    centred = F - xp.mean(F, axis=axis, keepdims=True)
    deviation = xp.sqrt(xp.mean(centred * centred, axis=axis, keepdims=True) + 1e-5)
    out = centred / deviation
    return out, (out, deviation, axis)


def normalise_backward(dout, cache):
    xp = array_namespace(dout)
    out, deviation, axis = cache
    mean = functools.partial(xp.mean, axis=axis, keepdims=True)
    return ((dout - mean(dout) - out * mean(dout * out)) / deviation,)


LAYERS = {"linear": (linear, linear_backward), "relu": (relu, relu_backward), "flatten": (flatten, flatten_backward),
          "conv2d": (conv2d, conv2d_backward)}
IMAGEWISE = {"conv2d", "relu"}                              # layers that treat each (H, W, C) image by itself

# ------------------------------------------------------------------------------------------------- encoders

BLOCK = 10                                                  # images: what fits a CPU core's cache
_pool = None


@contextlib.contextmanager
def cpu_threads(n):
    """Blocks of images on n threads, BLAS on one: no sum depends on n, so that runs agree bit for bit."""
    global _pool
    with ThreadPoolExecutor(n) as _pool, threadpool_limits(1, user_api="blas"):
        try:
            yield
        finally:
            _pool = None


def over_blocks(f, N, blocked):
    """[f(block) for the blocks of N images, in order], on the threads of cpu_threads."""
    blocks = [slice(i, i + BLOCK) for i in range(0, N, BLOCK)] if blocked else [slice(0, N)]
    return list(_pool.map(f, blocks) if _pool and len(blocks) > 1 else map(f, blocks))


class Encoder:
    """f_theta, a list of layers (name, kind, shapes of its parameters, settings) and nothing else: parameters come from outside.

    Runs of layers that treat each image by itself are computed in blocks of images, so that one block's
    activations stay in the cache from layer to layer, and so that blocks can run on several threads.
    """

    def __init__(self, layers):
        self.layers = layers
        kinds = [kind for _, kind, _, _ in layers]
        images = kinds.index("flatten") if "flatten" in kinds else 0                    # so many layers see images
        stages = itertools.groupby(enumerate(layers), lambda i_layer: i_layer[0] < images and i_layer[1][1] in IMAGEWISE)
        self.stages = [(blocked, [layer for _, layer in stage]) for blocked, stage in stages]

    def init(self, rng, dtype=None, xp=None, device=None):
        """params and state: weights N(0, 2/fan_in) (He et al. 2015), biases 0, drawn by a NumPy Generator."""
        params, xp = {}, xp or array_api_compat.numpy
        for name, _, shapes, _ in self.layers:
            for p, shape in shapes.items():
                dtype = dtype or xp.float32
                params[f"{name}.{p}"] = xp.zeros(shape, dtype=dtype, device=device) if p == "b" else \
                    xp.asarray(math.sqrt(2 / math.prod(shape[:-1])) * rng.standard_normal(shape), dtype=dtype, device=device)
        return params, {}

    def forward(self, params, state, x, train=True):
        """x (N, H, W, C) or (N, d) -> features (N, m), cache, state."""
        xp, caches = array_namespace(x), []
        for blocked, stage in self.stages:
            def run(block):
                out, cache = x[block, ...], []
                for name, kind, shapes, settings in stage:
                    out, c = LAYERS[kind][0](out, *(params[f"{name}.{p}"] for p in shapes), **settings)
                    cache.append(c)
                return out, cache
            outs, cache = zip(*over_blocks(run, x.shape[0], blocked and is_numpy_array(x)))
            x = outs[0] if len(outs) == 1 else xp.concat(outs)
            caches.append(cache)
        return x, caches, state

    def backward(self, caches, dF):
        """dF (N, m) -> gradients, with the keys and shapes of params."""
        xp, grads, dx = array_namespace(dF), {}, dF
        for (blocked, stage), cache in zip(self.stages[::-1], caches[::-1]):
            def run(block):
                dout, own = dx[block, ...], {}
                for (name, kind, shapes, _), c in zip(stage[::-1], cache[block.start // BLOCK][::-1]):
                    dout, *dparams = LAYERS[kind][1](dout, c)
                    own.update({f"{name}.{p}": g for p, g in zip(shapes, dparams)})
                return dout, own
            dxs, parts = zip(*over_blocks(run, dx.shape[0], blocked and is_numpy_array(dx)))
            grads.update({key: functools.reduce(lambda a, b: a + b, [part[key] for part in parts]) for key in parts[0]})
            dx = dxs[0] if len(dxs) == 1 or dxs[0] is None else xp.concat(dxs)
        return grads


def linear_layer(i, a, c):
    return (f"linear{i}", "linear", {"W": (a, c), "b": (c,)}, {})


def mlp(sizes):
    """Linear layers with ReLU between them: mlp([d, hidden, ..., m])."""
    layers = []
    for i, (a, c) in enumerate(zip(sizes[:-1], sizes[1:]), start=1):
        layers += [linear_layer(i, a, c), ("relu", "relu", {}, {})]
    return Encoder(layers[:-1])


def cnn(m, channels=3):
    """The encoder of the 3D Shapes experiments, 64 x 64 images to m features.                   [L23, App. D.2.2]"""
    layers = []
    for i, (c, o, k, pad) in enumerate([(channels, 32, 4, 1), (32, 32, 4, 1), (32, 64, 2, 0), (64, 64, 2, 0)], start=1):
        settings = {"stride": 2, "pad": pad, "need_dx": i > 1}
        layers += [(f"conv{i}", "conv2d", {"W": (k, k, c, o), "b": (o,)}, settings), ("relu", "relu", {}, {})]
    return Encoder(layers + [("flatten", "flatten", {}, {}), linear_layer(1, 1024, 256), ("relu", "relu", {}, {}),
                             linear_layer(2, 256, m)])


# --------------------------------------------------------------------------------------------------- heads
# head(F, y, lam, n_support=None, params=None) -> (loss, dF, dparams, info), a function of the features alone.
# n_support=None fits and scores on the same samples, Problem (6); a number fits on the first n_support
# samples and scores on the others, Problem (7). lam is a constant of the differentiation.


def squared_error(F, y, w):
    """L = 1/T sum_t 1/(2 n) ||y_t - F_t w_t||^2  ->  L, dF and dw."""
    xp = array_namespace(F)
    T, n, _ = F.shape
    r = (matvec(F, w) - y) / (T * n)                                                    # (T, n)
    return T * n / 2 * xp.sum(r * r), outer(r, w), matvec(transpose(F), r)


def halves(n_support, n):
    """Of n samples, those to fit on and those to score on."""
    if n_support is not None and not 0 < n_support < n:
        raise ValueError(f"n_support: found {n_support}, expected 1 to {n - 1} of {n} samples")
    return (slice(None), slice(None)) if n_support is None else (slice(n_support), slice(n_support, None))


def bilevel(fit, fit_vjp, F, y, lam, n_support, penalty=None):
    """The loss of the fitted predictors and its gradient: directly through F, and through the solution w(F).

    penalty(w, lam) -> sum over tasks and its derivative in w, adds the outer regularisation of Problem (62).
    """
    xp = array_namespace(F)
    T = F.shape[0]
    fit_on, score_on = halves(n_support, F.shape[1])
    Fs, ys = F[:, fit_on, :], y[:, fit_on]
    w, info = fit(Fs, ys, lam)                                                          # inner problem
    loss, dF_direct, dw = squared_error(F[:, score_on, :], y[:, score_on], w)           # outer problem
    if penalty:
        total, d_total = penalty(w, lam)
        loss, dw = loss + total / T, dw + d_total / T
    dF = xp.zeros_like(F)
    dF[:, score_on, :] += dF_direct
    dF[:, fit_on, :] += fit_vjp(Fs, ys, lam, w, dw)[0]
    return loss, dF, {}, {"w": w, **info}


def inner_lasso(F, y, lam, n_support=None, params=None):
    """Sparse predictors: w_t = argmin 1/(2 n) ||y_t - F_t w||^2 + lam_t ||w||_1.             [L23, Problem (6), Sec. 5.1]

    F (T, n, m), y (T, n), lam a number or (T,) -> loss, dF (T, n, m), {}, info with w and the solver's certificate.
    """
    return bilevel(solvers.lasso, solvers.lasso_vjp, F, y, lam, n_support)


def inner_ridge(F, y, lam, n_support=None, params=None):
    """Dense predictors, the baseline: w_t = argmin 1/(2 n) ||y_t - F_t w||^2 + lam_t/2 ||w||^2.       [L23, Sec. 5.1]"""
    return bilevel(lambda F, y, lam: (solvers.ridge(F, y, lam), {}), solvers.ridge_vjp, F, y, lam, n_support)


def least_squares(F, y, lam):
    """Plain least squares, kept regular by a ridge of 1e-7 ||F||_F^2/n.                                  [L23, Problem (62)]"""
    return solvers.ridge(F, y, 1e-7 * solvers.ridge_lambda_max(F)), {}


def least_squares_vjp(F, y, lam, w, dw):
    dF, dy, d_ridge = solvers.ridge_vjp(F, y, 1e-7 * solvers.ridge_lambda_max(F), w, dw)
    return dF + 2e-7 / F.shape[1] * d_ridge[:, None, None] * F, dy, 0 * d_ridge


def outer_lasso(F, y, lam, n_support=None, params=None):
    """Plain fits; the outer loss asks them to be sparse: + 1/T sum_t lam_t ||w_t||_1. sign(0) = 0.       [L23, Problem (62)]"""
    xp = array_namespace(F)
    return bilevel(least_squares, least_squares_vjp, F, y, lam, n_support,
                   lambda w, lam: (xp.sum(lam * xp.sum(xp.abs(w), axis=1)), lam[:, None] * xp.sign(w)))


def outer_ridge(F, y, lam, n_support=None, params=None):
    """The same with + 1/T sum_t lam_t/2 ||w_t||^2."""
    xp = array_namespace(F)
    return bilevel(least_squares, least_squares_vjp, F, y, lam, n_support,
                   lambda w, lam: (xp.sum(lam * xp.sum(w * w, axis=1)) / 2, lam[:, None] * w))


def inner_group_lasso(F, Y, lam, n_support=None, params=None, loss="squared"):
    """Tasks of k outputs, Y (T, n, k): W_t = argmin (1/n) sum_i loss(W F_i, Y_i) + lam_t ||W||_{2,1}; the outer loss is
    the same loss on the scoring samples, averaged over tasks. "squared" or "logistic" (Y one-hot).
    """
    xp = array_namespace(F)
    T = F.shape[0]
    fit_on, score_on = halves(n_support, F.shape[1])
    Fs, Ys, Fq, Yq = F[:, fit_on, :], Y[:, fit_on, :], F[:, score_on, :], Y[:, score_on, :]
    W, info = solvers.group_lasso(Fs, Ys, lam, loss)
    Z = xp.matmul(Fq, transpose(W))                                                     # (T, n, k)
    R = solvers.residual(Z, Yq, loss)[0] / T                                            # dL/dZ
    dF = xp.zeros_like(F)
    dF[:, score_on, :] += xp.matmul(R, W)
    dF[:, fit_on, :] += solvers.group_lasso_vjp(Fs, Ys, lam, W, xp.matmul(transpose(R), Fq), loss)[0]
    return xp.mean(solvers.data_loss(Z, Yq, loss)), dF, {}, {"w": W, **info}


def ridge_scale(F, y):
    """solvers.ridge_lambda_max, which needs no labels."""
    return solvers.ridge_lambda_max(F)


HEADS = {"inner-lasso": (inner_lasso, solvers.lasso_lambda_max), "inner-ridge": (inner_ridge, ridge_scale),
         "outer-lasso": (outer_lasso, solvers.lasso_lambda_max), "outer-ridge": (outer_ridge, ridge_scale),
         "inner-group-lasso": (inner_group_lasso, solvers.group_lasso_lambda_max),
         "inner-group-logistic": (functools.partial(inner_group_lasso, loss="logistic"),
                                  functools.partial(solvers.group_lasso_lambda_max, loss="logistic"))}


def head_on_sets(head, lambda_max, F, y, eps, n_support=None, norm_axis=1):
    """A head on G image sets that K tasks share: F (G, n, m), y (G, K, n) or (G, K, n, k) -> loss, dF (G, n, m), info.

    Normalise each set's features, repeat them for its K tasks, fit and score, and add the K gradients up. Predictors
    have no intercept: under batch norm and Problem (6) the mean of y stays in the loss but has no gradient. Under
    Problem (7) a set's statistics are those of all its samples, fitted and scored.
    """
    xp = array_namespace(F)
    (G, n, m), K = F.shape, y.shape[1]
    features, cache = normalise(F, norm_axis)
    F_k, y_k = xp.repeat(features, K, axis=0), xp.reshape(y, (G * K, *y.shape[2:]))     # one row per task
    lam = eps * lambda_max(F_k[:, :n_support, :], y_k[:, :n_support, ...])              # [L23, App. D.2.3]
    loss, dF_k, _, info = head(F_k, y_k, lam, n_support)
    dF = xp.sum(xp.reshape(dF_k, (G, K, n, m)), axis=1)
    return loss, normalise_backward(dF, cache)[0], info


# ------------------------------------------------------------------------------------------------- training


def adam(params, grads, opt, lr, beta1=0.9, beta2=0.999, tiny=1e-8):
    """One step of Adam (Kingma and Ba 2015, Algorithm 1). opt is None at first, then (step, first and second moments)."""
    xp = array_namespace(*grads.values())
    t, mean, square = opt or (0, {k: 0 * p for k, p in params.items()}, {k: 0 * p for k, p in params.items()})
    t = t + 1
    mean = {k: beta1 * mean[k] + (1 - beta1) * g for k, g in grads.items()}
    square = {k: beta2 * square[k] + (1 - beta2) * g * g for k, g in grads.items()}
    scale, unbias = lr / (1 - beta1 ** t), 1 / math.sqrt(1 - beta2 ** t)
    params = {k: p - scale * mean[k] / (xp.sqrt(square[k]) * unbias + tiny) for k, p in params.items()}
    return params, (t, mean, square)


@dataclasses.dataclass(frozen=True)
class Training:
    """What `train` needs. sample(step) -> images x (G n, ...), labels y (G, K, n), on the device of the parameters."""
    encoder: Encoder
    sample: object
    head: str = "inner-lasso"
    steps: int = 1000
    lr: float = 1e-3
    eps: float = 0.3
    warmup: float = 0.5             # share of the steps over which eps rises from 0; 0: constant, as in the paper
    n_support: int | None = None    # None: Problem (6); a number: Problem (7)
    norm_axis: int = 1              # 1 batch norm over each set, 2 layer norm


def train(config, start, report=None):
    """Solve [L23, Problem (6)] from start = (params, state, opt, step); report(start, loss, info) hears of every step.

    The inner problems are solved in double precision whatever the encoder's. Returns the last (params, state, opt,
    step). Raises FloatingPointError when the features, the loss or a gradient is no longer finite.
    """
    params, state, opt, first = start
    head, lambda_max = HEADS[config.head]
    for step in range(first, config.steps):
        progress = step / config.steps
        eps = config.eps * min(1, progress / config.warmup) if config.warmup else config.eps
        lr = config.lr * (1 + math.cos(math.pi * progress)) / 2
        x, y = config.sample(step)
        F, cache, state = config.encoder.forward(params, state, x)                      # (G n, m)
        refuse_non_finite("features", {"F": F}, step)
        xp = array_namespace(F)
        F_sets = xp.reshape(xp.astype(F, xp.float64), (y.shape[0], y.shape[2], -1))     # (G, n, m)
        loss, dF, info = head_on_sets(head, lambda_max, F_sets, y, eps, config.n_support, config.norm_axis)
        grads = config.encoder.backward(cache, xp.astype(xp.reshape(dF, F.shape), F.dtype))
        refuse_non_finite("gradient", {"loss": loss, **grads}, step)
        params, opt = adam(params, grads, opt, lr)
        if report:
            report((params, state, opt, step + 1), float(loss), {"eps": eps, "lr": lr, **info})
    return params, state, opt, config.steps


def refuse_non_finite(what, arrays, step):
    """Raise FloatingPointError where an array holds a value that is not finite."""
    xp = array_namespace(*arrays.values())
    bad = [name for name, a in arrays.items() if not bool(xp.all(xp.isfinite(a)))]
    if bad:
        raise FloatingPointError(f"the {what} is no longer finite at step {step} (in {', '.join(bad)})")
