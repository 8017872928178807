"""sparsedis.py -- the method: an encoder trained through the solutions of many sparse linear fits.

    theta -- params, a dict name -> array                    f_theta -- Encoder, a list of layers
    x (N, H, W, C)  images              F (T, n, m)  features of n samples of T tasks
    y (T, n)        labels              w (T, m)     each task's linear predictor, fitted in solvers.py
    G, n, K         image sets per step, images per set, tasks on each set: T = G K
    eps             strength of the penalty as a fraction of lambda_max:  lam = eps lambda_max(F, y)
    dX              dL/dX, with the shape of X

The bilevel problem, and the function that computes each part:

    min_theta  1/T sum_t  1/(2 n) ||y_t - F_t w_t||^2                    train, task_objective        [L23, Problem (6)]
    with       F_t = normalise(f_theta(x_t))                             head_on_sets, Encoder
               w_t = argmin_w  1/(2 n) ||y_t - F_t w||^2 + lam ||w||_1   bilevel, solvers.lasso

Few-shot learning puts an episode's support and query images in place of x_t, a group-Lasso multiclass SVM in place of the
Lasso and the query cross-entropy in place of the squared error: episode_objective, svm_episode.                [L23, Sec. 5.2]
Sparse and shared features fit the heads of several binary tasks jointly: binary_objective, sharing_episode.             [F23]

Every forward pass f(x, ...) -> (out, cache) is followed by its backward pass f_backward(dout, cache) -> (dx, dparams...).

[L23] Lachapelle et al., Synergies between disentanglement and sparsity, ICML 2023, arXiv 2211.14666.
[F23] Fumero et al., Leveraging sparse and shared feature activations, NeurIPS 2023, arXiv 2304.07939 (our reading).
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
    return dout @ W.T, x.T @ dout, column_sums(dout)


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
# slices. Forward, the slices are taken on the side with fewer channels, and no pass scatters:
#     C' <= O:    out = windows(X) V          gather the q^2 shifted inputs, then multiply
#     C' > O:     out = shift_add(X V)        multiply, then add the q^2 shifted products
#     backward:   D = windows(padded dout),   dX = D V',   dV = X' D,   with V's q^2 blocks in reverse order
#                 dV = windows(X)' dout       where dX is not needed


def zero_pad(x, pad):
    """(N, H, W, C) -> (N, H + 2 pad, W + 2 pad, C)."""
    xp = array_namespace(x)
    N, H, W, C = x.shape
    if not pad:
        return x
    out = xp.zeros((N, H + 2 * pad, W + 2 * pad, C), dtype=x.dtype, device=device(x))
    out[:, pad:pad + H, pad:pad + W, :] = x
    return out


def space_to_depth(x, s):
    """(N, H, W, C) -> (N, H/s, W/s, s s C)."""
    xp = array_namespace(x)
    N, H, W, C = x.shape
    x = xp.permute_dims(xp.reshape(x, (N, H // s, s, W // s, s * C)), (0, 1, 3, 2, 4))
    return xp.reshape(x, (N, H // s, W // s, s * s * C))


def depth_to_space(X, s):
    """The inverse of space_to_depth."""
    xp = array_namespace(X)
    N, H, W, C = X.shape
    X = xp.permute_dims(xp.reshape(X, (N, H, W, s, C // s)), (0, 1, 3, 2, 4))
    return xp.reshape(X, (N, H * s, W * s, C // s // s))


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


def column_sums(x):
    """(N, c) -> (c,), as a product with ones, which is several times as fast as a sum over the first axis."""
    return array_namespace(x).ones(x.shape[0], dtype=x.dtype, device=device(x)) @ x


def conv2d(x, W, b=None, stride=1, pad=0, need_dx=True):
    """Convolution with zero padding: x (N, H, W, C), W (k, k, C, O), b (O,) or none -> (N, H', W', O).

    The stride divides k, H + 2 pad and W + 2 pad. need_dx=False, for an encoder's first layer, leaves out the
    gradient of the images.
    """
    xp = array_namespace(x)
    if any(size % stride for size in (W.shape[0], x.shape[1] + 2 * pad, x.shape[2] + 2 * pad)):
        raise ValueError(f"conv2d: stride {stride} must divide the kernel, {W.shape[0]}, and the padded image, {x.shape[1:3]} + 2 * {pad}")
    X, V = space_to_depth(zero_pad(x, pad), stride), fold_kernel(W, stride)
    (qq, C, O), q = V.shape, W.shape[0] // stride                                       # C is C' from here on
    if C <= O:
        w = windows(X, q)                                                               # (N, H', W', q q C')
        out = xp.reshape(rows(w) @ xp.reshape(V, (qq * C, O)), w.shape[:3] + (O,))
    else:
        Z = rows(X) @ xp.reshape(xp.permute_dims(V, (1, 0, 2)), (C, qq * O))
        out = shift_add(xp.reshape(Z, X.shape[:3] + (qq * O,)), q)
    if b is not None:
        out += b
    return out, (X, V, W.shape, stride, pad, need_dx, b is not None)


def conv2d_backward(dout, cache):
    xp = array_namespace(dout)
    X, V, W_shape, stride, pad, need_dx, bias = cache
    (qq, C, O), q = V.shape, W_shape[0] // stride
    if need_dx:
        edge = pad if stride == 1 else 0                                                # X is zero there, and dX not wanted
        D = windows(zero_pad(dout, q - 1 - edge), q)                                    # (N, H, W, q q O)
        X = X[:, edge:X.shape[1] - edge, edge:X.shape[2] - edge, :]
        dV = xp.permute_dims(xp.reshape(rows(X).T @ rows(D), (C, qq, O)), (1, 0, 2))
        dX = rows(D) @ xp.reshape(xp.permute_dims(xp.flip(V, axis=0), (0, 2, 1)), (qq * O, C))
        dx = depth_to_space(xp.reshape(dX, X.shape), stride)
        dx = dx[:, pad - edge:dx.shape[1] - pad + edge, pad - edge:dx.shape[2] - pad + edge, :]
        dV = xp.flip(dV, axis=0)
    else:
        dx, dV = None, xp.reshape(rows(windows(X, q)).T @ rows(dout), (qq, C, O))
    return (dx, unfold_kernel(dV, stride, W_shape)) + ((column_sums(rows(dout)),) if bias else ())


def normalise(F, axis=1, n_support=None):
    """Features of mean 0 and variance 1 over axis 1, each task's samples (batch norm), or axis 2 (layer norm).  [L23, Sec. 3.4]

    F (T, n, m); biased variance with 1e-5 added; nothing learned; moments of the first n_support samples only, where given (axis 1).
    Without it ||F|| grows and sparsity is lost.
    """
    xp, fit = array_namespace(F), F[:, :n_support, :]
    if n_support is not None and axis != 1:
        raise ValueError("normalise: moments of the support are those of samples, axis 1")
    mean = xp.mean(fit, axis=axis, keepdims=True)
    deviation = xp.sqrt(xp.mean((fit - mean) ** 2, axis=axis, keepdims=True) + 1e-5)
    out = (F - mean) / deviation
    return out, (out, deviation, axis, n_support)


def normalise_backward(dout, cache):
    out, deviation, axis, n_support = cache
    total = functools.partial(array_namespace(dout).sum, axis=axis, keepdims=True)
    dF, fit = dout / deviation, out[:, :n_support, :]
    dF[:, :n_support, :] -= (total(dout) + fit * total(dout * out)) / (fit.shape[axis] * deviation)
    return (dF,)


def leaky_relu(x, slope=0.1):
    """x where positive, slope x elsewhere."""
    xp = array_namespace(x)
    slopes = xp.where(x > 0, xp.asarray(1, dtype=x.dtype, device=device(x)), xp.asarray(slope, dtype=x.dtype, device=device(x)))
    return x * slopes, slopes


def leaky_relu_backward(dout, cache):
    return (dout * cache,)


def max_pool2d(x):
    """The largest of each 2 x 2 pixels: (N, H, W, C) -> (N, H//2, W//2, C); of an odd side the last pixel is left out."""
    xp = array_namespace(x)
    out = functools.reduce(xp.maximum, [x[at] for at in quarters(x.shape)])
    return out, (x, out)


def max_pool2d_backward(dout, cache):
    x, out = cache
    xp = array_namespace(dout)
    dx = xp.zeros_like(x)
    for at in quarters(x.shape):                                                        # the first of equal pixels takes it all
        dx[at] = dout * xp.astype(x[at] == out, dout.dtype)
        dout = dout - dx[at]
    return (dx,)


def quarters(shape):
    """The slices of an image's pixels of even and odd rows and columns."""
    H, W = shape[1] // 2 * 2, shape[2] // 2 * 2
    return [(slice(None), slice(a, H, 2), slice(b, W, 2), slice(None)) for a in (0, 1) for b in (0, 1)]


def global_pool(x):
    """The mean over pixels, (N, H, W, C) -> (N, C)."""
    return array_namespace(x).mean(x, axis=(1, 2)), x.shape


def global_pool_backward(dout, cache):
    N, H, W, C = cache
    return (array_namespace(dout).broadcast_to(dout[:, None, None, :] / (H * W), cache),)


def moments(x):
    """Mean and biased variance of each channel of (N, H, W, C), (C,)."""
    x = rows(x)
    mean = column_sums(x) / x.shape[0]
    x = x - mean
    return mean, column_sums(x * x) / x.shape[0]


def batch_norm(x, g, b, mean=None, variance=None):
    """g (x - mean)/sqrt(variance + 1e-5) + b per channel of (N, H, W, C); by default with the moments of x itself."""
    xp = array_namespace(x)
    if mean is None:
        mean, variance = moments(x)
    scale = 1 / xp.sqrt(variance + 1e-5)
    out = x * (g * scale)
    out += b - mean * (g * scale)
    return out, (x, g, mean, scale)


def batch_norm_backward(dout, cache, sums=None, count=None):
    """sums: dg and db over all `count` pixels of the batch, where dout is a part of it."""
    x, g, mean, scale = cache
    dg, db = batch_norm_sums(dout, cache) if sums is None else sums
    count = math.prod(dout.shape[:-1]) if count is None else count
    dx = dout - db / count                                                              # minus x_hat dg/count, times g scale
    dx -= x * (dg * scale / count)
    dx += mean * scale * dg / count
    dx *= g * scale
    return dx, dg, db


def batch_norm_sums(dout, cache):
    """dg and db, (C,)."""
    x, _, mean, scale = cache
    dout, x = rows(dout), rows(x)
    db = column_sums(dout)
    return (column_sums(dout * x) - mean * db) * scale, db


def drop_block(x, key, rate, ramp, size, layer):
    """DropBlock (Ghiasi et al. 2018): zero random size x size blocks of each channel, a share `rate` of it in all, and rescale.

    size 1 is dropout. key = (a run's seed, forward passes so far); the rate grows linearly over `ramp` passes.
    """
    xp = array_namespace(x)
    N, H, W, C = x.shape
    rate, size = rate * min(1, (key[1] + 1) / ramp) if ramp else rate, min(size, H, W)
    seeds = rate / size ** 2 * H * W / ((H - size + 1) * (W - size + 1))               # so many corners make this rate
    corners = array_api_compat.numpy.random.default_rng([*key, layer]).random((N, H - size + 1, W - size + 1, C)) < seeds
    keep = xp.ones(x.shape, dtype=x.dtype, device=device(x))
    corners = xp.asarray(corners, device=device(x))
    for a, b in itertools.product(range(size), repeat=2):
        inside = (slice(None), slice(a, a + H - size + 1), slice(b, b + W - size + 1), slice(None))
        keep[inside] = xp.where(corners, 0, keep[inside])
    keep = keep * (math.prod(x.shape) / xp.maximum(xp.sum(keep), 1))
    return x * keep, keep


def drop_block_backward(dout, cache):
    return (dout * cache,)


LAYERS = {"linear": (linear, linear_backward), "relu": (relu, relu_backward), "leaky_relu": (leaky_relu, leaky_relu_backward),
          "conv2d": (conv2d, conv2d_backward), "max_pool2d": (max_pool2d, max_pool2d_backward), "flatten": (flatten, flatten_backward),
          "global_pool": (global_pool, global_pool_backward), "drop_block": (drop_block, drop_block_backward),
          "batch_norm": (batch_norm, batch_norm_backward)}
WHOLE = {"linear", "flatten", "global_pool", "drop_block"}  # layers computed on all images at once; others on blocks of them

# ------------------------------------------------------------------------------------------------- encoders

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


def on_threads(f, *blocks):
    """[f(...) for each block], in order, on the threads of cpu_threads."""
    return list(_pool.map(f, *blocks) if _pool and len(blocks[0]) > 1 else map(f, *blocks))


def add_up(parts):
    """The sum of each key's arrays, block after block."""
    return {key: functools.reduce(lambda a, b: a + b, [part[key] for part in parts]) for key in parts[0]}


class Encoder:
    """f_theta, a list of layers (name, kind, shapes of its parameters, settings) and nothing else: parameters come from outside.

    The images of a batch travel in blocks, so that a block's activations stay in a CPU core's cache from layer to layer
    and blocks can run on several threads. Three kinds are the interpreter's own: WHOLE layers join the blocks, batch_norm
    needs the moments of all blocks first, and residual adds the outputs of two lists of layers, branch and shortcut.
    """

    def __init__(self, layers, block=10):
        self.layers, self.block = layers, block

    def parameters(self, layers=None):
        """(name, shape) of every parameter, in order."""
        for name, kind, shapes, settings in self.layers if layers is None else layers:
            yield from ((f"{name}.{p}", shape) for p, shape in shapes.items())
            if kind == "residual":
                yield from self.parameters(settings["branch"] + settings["shortcut"])

    def init(self, rng, dtype=None, xp=None, device=None):
        """params and state. Weights N(0, 2/fan_in) (He et al. 2015), biases and shifts b 0, scales g 1, drawn by a NumPy
        Generator; state holds the running moments of every batch norm and the step count of every drop_block.
        """
        params, state, xp = {}, {}, xp or array_api_compat.numpy
        dtype = dtype or xp.float32
        for name, shape in self.parameters():
            layer, p = name.rsplit(".", 1)
            if p == "W":
                params[name] = xp.asarray(math.sqrt(2 / math.prod(shape[:-1])) * rng.standard_normal(shape), dtype=dtype, device=device)
            else:
                params[name] = xp.full(shape, 1 if p == "g" else 0, dtype=dtype, device=device)
            if p == "g":
                state[f"{layer}.mean"] = xp.zeros(shape, dtype=dtype, device=device)
                state[f"{layer}.variance"] = xp.ones(shape, dtype=dtype, device=device)
        if any("drop_block" in str(layer) for layer in self.layers):
            state["drop"] = xp.asarray([int(rng.integers(2 ** 31)), 0], device=device)  # key of drop_block
        return params, state

    def forward(self, params, state, x, train=True):
        """x (N, H, W, C) or (N, d) -> features (N, m), cache, state. train=False: running moments, nothing dropped."""
        xp, state = array_namespace(x), dict(state)
        blocks = self._blocks(x)
        blocks, caches = self._forward(self.layers, params, state, blocks, train)
        if train and "drop" in state:
            state["drop"] = state["drop"] + xp.asarray([0, 1], device=device(x))
        return joined(blocks), caches, state

    def _blocks(self, x):
        """The images x in blocks: a few for a CPU core's cache, many for a GPU."""
        step = self.block if is_numpy_array(x) else max(64, 20 * self.block)
        return [x[i:min(i + step, x.shape[0]), ...] for i in range(0, x.shape[0], step)]

    def _forward(self, layers, params, state, blocks, train):
        """One run of layers after another: `state` is updated in place."""
        caches = []
        for run in runs_of(layers):
            name, kind, shapes, settings = run[0]
            if kind == "residual":
                blocks, *parts = self._residual(settings, params, state, blocks, train)
                caches.append(parts)
                continue
            if kind == "drop_block" and not train:
                caches.append(None)
                continue
            more = self._moments(name, state, blocks, train) if kind == "batch_norm" else {}
            if kind == "drop_block":
                more = {"key": [int(i) for i in state["drop"]]}
            if kind in WHOLE:
                blocks = [joined(blocks)]
            elif len(blocks) == 1 and blocks[0].ndim == 4:                              # images again after a WHOLE layer
                blocks = self._blocks(blocks[0])

            def through(x):
                cache = []
                for i, (name, kind, shapes, settings) in enumerate(run):
                    x, c = LAYERS[kind][0](x, *(params[f"{name}.{p}"] for p in shapes), **settings, **(more if i == 0 else {}))
                    cache.append(c)
                return x, cache
            blocks, cache = zip(*on_threads(through, blocks))
            caches.append(cache)
        return list(blocks), caches

    def _moments(self, name, state, blocks, train, decay=0.9):
        """The moments that a batch norm divides by: in training those of this batch, which also move the running ones."""
        keys = f"{name}.mean", f"{name}.variance"
        if not train:
            return {"mean": state[keys[0]], "variance": state[keys[1]]}
        means, variances = zip(*on_threads(moments, blocks))
        shares = [b.shape[0] / sum(b.shape[0] for b in blocks) for b in blocks]
        mean = sum(w * a for w, a in zip(shares, means))
        variance = sum(w * (v + (a - mean) ** 2) for w, a, v in zip(shares, means, variances))
        count = sum(math.prod(b.shape[:-1]) for b in blocks)
        for key, now in zip(keys, (mean, variance * (count / max(count - 1, 1)))):
            state[key] = decay * state[key] + (1 - decay) * now
        return {"mean": mean, "variance": variance}

    def _residual(self, settings, params, state, blocks, train):
        out, caches = self._forward(settings["branch"], params, state, blocks, train)
        short, short_caches = self._forward(settings["shortcut"], params, state, blocks, train)
        return [a + b for a, b in zip(out, short)], caches, short_caches

    def backward(self, caches, dF):
        """dF (N, m) -> gradients, with the keys and shapes of params."""
        grads = {}
        self._backward(self.layers, caches, [dF], grads)
        return {name: grads[name] for name, _ in self.parameters()}

    def _backward(self, layers, caches, blocks, grads):
        """Through the runs of layers in reverse; `grads` is filled in place."""
        for run, cache in zip(runs_of(layers)[::-1], caches[::-1]):
            kind = run[0][1]
            if cache is None:
                continue
            if kind == "residual":
                branch, short = (self._backward(run[0][3][part], c, blocks, grads) for part, c in zip(("branch", "shortcut"), cache))
                blocks = [a + b for a, b in zip(branch, short)]
                continue
            if len(blocks) != len(cache):                                               # after a WHOLE layer: into blocks again
                blocks = self._blocks(joined(blocks)) if len(cache) > 1 else [joined(blocks)]
            norm = kind == "batch_norm"

            def through(dx, cache):
                own = {}
                for (name, kind, shapes, _), c in list(zip(run, cache))[norm:][::-1]:
                    dx, *dparams = LAYERS[kind][1](dx, c)
                    own.update({f"{name}.{p}": g for p, g in zip(shapes, dparams)})
                if norm:
                    own.update(zip((f"{run[0][0]}.g", f"{run[0][0]}.b"), batch_norm_sums(dx, cache[0])))
                return dx, own
            blocks, parts = zip(*on_threads(through, blocks, cache))
            grads.update(add_up(parts))
            if norm:
                sums, count = tuple(grads[f"{run[0][0]}.{p}"] for p in "gb"), sum(math.prod(b.shape[:-1]) for b in blocks)
                blocks = on_threads(lambda dx, c: batch_norm_backward(dx, c[0], sums, count)[0], blocks, cache)
        return list(blocks)


def joined(blocks):
    """The blocks as one array."""
    return blocks[0] if len(blocks) == 1 or blocks[0] is None else array_namespace(blocks[0]).concat(blocks)


def runs_of(layers):
    """Layers in runs that blocks pass through without a stop: a residual or WHOLE layer stands alone, a batch norm begins a run."""
    runs = []
    for layer in layers:
        alone = layer[1] == "residual" or layer[1] in WHOLE
        if not runs or alone or layer[1] == "batch_norm" or runs[-1][0][1] == "residual" or runs[-1][0][1] in WHOLE:
            runs.append([])
        runs[-1].append(layer)
    return runs


def mlp(sizes):
    """Linear layers with ReLU between them: mlp([d, hidden, ..., m])."""
    layers = []
    for i, (a, c) in enumerate(zip(sizes[:-1], sizes[1:]), start=1):
        layers += [(f"linear{i}", "linear", {"W": (a, c), "b": (c,)}, {}), ("relu", "relu", {}, {})]
    return Encoder(layers[:-1])


def cnn(m, channels=3, norm=False):
    """The encoder of the 3D Shapes experiments, 64 x 64 images to m features; norm ends it by a batch norm.  [L23, App. D.2.2]"""
    layers = []
    for i, (c, o, k, pad) in enumerate([(channels, 32, 4, 1), (32, 32, 4, 1), (32, 64, 2, 0), (64, 64, 2, 0)], start=1):
        settings = {"stride": 2, "pad": pad, "need_dx": i > 1}
        layers += [(f"conv{i}", "conv2d", {"W": (k, k, c, o), "b": (o,)}, settings), ("relu", "relu", {}, {})]
    return Encoder(layers + [("flatten", "flatten", {}, {})] + mlp([1024, 256, m]).layers
                   + [("norm", "batch_norm", {"g": (m,), "b": (m,)}, {})] * norm)


def conv_norm(name, k, c, o, need_dx=True):
    """A convolution that keeps the image's size, and its batch norm, which needs no bias before it."""
    return [(f"{name}.conv", "conv2d", {"W": (k, k, c, o)}, {"pad": k // 2, "need_dx": need_dx}),
            (f"{name}.norm", "batch_norm", {"g": (o,), "b": (o,)}, {})]


def conv4(channels=3, filters=64):
    """4 x [3 x 3 convolution, batch norm, ReLU, 2 x 2 max pool]: (N, H, W, channels) -> (N, filters H//16 W//16).  [L23, App. D.3]

    Max and ReLU commute: pooling first leaves ReLU a quarter of the work.
    """
    layers, flat = [], ("flatten", "flatten", {}, {})
    for i, c in enumerate((channels, filters, filters, filters), start=1):
        layers += conv_norm(f"block{i}", 3, c, filters, need_dx=i > 1) + [("pool", "max_pool2d", {}, {}), ("relu", "relu", {}, {})]
    return Encoder(layers + [flat], block=25)


def resnet12(channels=3, widths=(64, 160, 320, 640), drop=0.1, ramp=40_000, pool=False):
    """MetaOptNet's ResNet-12: four residual blocks of three 3 x 3 convolutions, each ended by a 2 x 2 max pool and dropout,
    DropBlock of size 5 in the last two: (N, H, W, channels) -> (N, widths[-1] H//16 W//16), or their mean over pixels.
    ramp counts forward passes, two a training step.                                          [Lee et al. 2019, Sec. 4.1]
    """
    layers = []
    for i, (c, o) in enumerate(zip((channels, *widths), widths), start=1):
        leaky = ("leaky_relu", "leaky_relu", {}, {})
        branch = conv_norm(f"block{i}.1", 3, c, o) + [leaky] + conv_norm(f"block{i}.2", 3, o, o) + [leaky] + conv_norm(f"block{i}.3", 3, o, o)
        layers += [(f"block{i}", "residual", {}, {"branch": branch, "shortcut": conv_norm(f"block{i}.short", 1, c, o)}),
                   leaky, ("pool", "max_pool2d", {}, {})]
        if drop:
            layers.append((f"drop{i}", "drop_block", {}, {"rate": drop, "ramp": ramp if i > 2 else 0, "size": 5 if i > 2 else 1, "layer": i}))
    return Encoder(layers + [("mean", "global_pool", {}, {}) if pool else ("flatten", "flatten", {}, {})], block=1)


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
    """The same with + 1/T sum_t lam_t/2 ||w_t||^2.                                              [L23, Problem (62)]"""
    xp = array_namespace(F)
    return bilevel(least_squares, least_squares_vjp, F, y, lam, n_support,
                   lambda w, lam: (xp.sum(lam * xp.sum(w * w, axis=1)) / 2, lam[:, None] * w))


# Heads of k outputs, W (T, k, m): Y (T, n, k) is one-hot, or of 0 and 1 where k = 1; in few-shot episodes F holds the support
# samples first; params is {"scale": ()}, the learned factor of the logits (Lee et al. 2019, Sec. 3.3).


def score_loss(Z, Y, smoothing=0.0, loss="logistic"):
    """1/(T n) sum loss(Z_i, Y_i) and its derivative in the scores Z (T, n, k); labels smoothed to 1 - smoothing (k - 1)/k for the class
    and smoothing/k for each other (MetaOptNet: 1 - smoothing and smoothing/(k - 1))."""
    Y = (1 - smoothing) * Y + smoothing / max(Z.shape[2], 2)
    return array_namespace(Z).mean(solvers.data_loss(Z, Y, loss)), solvers.residual(Z, Y, loss)[0] / Z.shape[0]


def episode(fit, fit_vjp, F, Y, lam, n_support, params, smoothing=0.0, loss="logistic"):
    """Linear classifiers fitted on the support samples, scored by the cross-entropy of scale W F_i on the query samples.

    fit(F, Y, lam) -> W (T, k, m) and info;  fit_vjp(F, Y, lam, W, info, dW) -> dF and the gradient of what else was learned.
    """
    xp, scale = array_namespace(F), params["scale"] if params else 1
    fit_on, score_on = halves(n_support, F.shape[1])
    Fs, Ys, Fq = F[:, fit_on, :], Y[:, fit_on, :], F[:, score_on, :]
    W, info = fit(Fs, Ys, lam)
    Z = xp.matmul(Fq, transpose(W))                                                     # (T, n, k)
    value, dZ = score_loss(scale * Z, Y[:, score_on, :], smoothing, loss)
    dF, (dF_fit, dparams) = xp.zeros_like(F), fit_vjp(Fs, Ys, lam, W, info, scale * xp.matmul(transpose(dZ), Fq))
    dF[:, score_on, :] += scale * xp.matmul(dZ, W)
    dF[:, fit_on, :] += dF_fit
    return value, dF, {"scale": xp.sum(dZ * Z), **dparams}, {"w": W, "logits": Z, **info}


def inner_group_lasso(F, Y, lam, n_support=None, params=None, smoothing=0.0, loss="squared", max_iter=1000):
    """W_t = argmin (1/n) sum_i loss(W F_i, Y_i) + lam_t ||W||_{2,1}; the outer loss is the same, "squared" or "logistic".

    In few-shot episodes max_iter = 200: the Newton step has m k unknowns, for a few hundred features, and the sweeps are slow where
    n < m and lam is below 0.1 of its maximum; the solver then stops and says so.
    """
    return episode(lambda F, Y, lam: solvers.group_lasso(F, Y, lam, loss, max_iter),
                   lambda F, Y, lam, W, info, dW: (solvers.group_lasso_vjp(F, Y, lam, W, dW, loss)[0], {}),
                   F, Y, lam, n_support, params, smoothing, loss)


def svm_episode(F, Y, lam, n_support, params, smoothing=0.0):
    """The group-Lasso multiclass SVM; lam = (lam1, lam2). lam1 = 0 is the dense SVM of MetaOptNet.        [L23, Sec. 5.2]

    If params holds "log_lam1" or "log_lam2", these multiply lam1 and lam2 by their exponential and are learned too.
    """
    xp = array_namespace(F)
    learned = [name for name in ("log_lam1", "log_lam2") if name in params]
    zero = xp.zeros(F.shape[0], dtype=F.dtype, device=device(F))
    lams = [a * xp.exp(params[name]) + zero if name in params else a for a, name in zip(lam, ("log_lam1", "log_lam2"))]

    def fit(F, Y, lams):
        W, Lam, info = solvers.group_svm(F, Y, *lams)
        return W, {"Lam": Lam, **info}

    def fit_vjp(F, Y, lams, W, info, dW):
        dF, *dlams = solvers.group_svm_vjp(F, Y, *lams, W, info["Lam"], dW)
        dlog = {name: xp.sum(d * a) for name, d, a in zip(("log_lam1", "log_lam2"), dlams, lams)}
        return dF, {name: dlog[name] for name in learned}
    return episode(fit, fit_vjp, F, Y, lams, n_support, params, smoothing)


def ridge_episode(F, Y, lam, n_support, params, smoothing=0.0):
    """Ridge regression on the one-hot labels.                                               [Bertinetto et al. 2019]"""
    return episode(lambda F, Y, lam: (solvers.ridge_classes(F, Y, lam), {}),
                   lambda F, Y, lam, W, info, dW: (solvers.ridge_classes_vjp(F, Y, lam, W, dW), {}),
                   F, Y, lam, n_support, params, smoothing)


def prototypes_episode(F, Y, lam, n_support, params, smoothing=0.0):
    """Prototypical networks: the logit of a class is -||F_i - its support samples' mean||^2 / m.     [Snell et al. 2017]"""
    xp = array_namespace(F)
    fit_on, score_on = halves(n_support, F.shape[1])
    Fs, Ys, Fq, m = F[:, fit_on, :], Y[:, fit_on, :], F[:, score_on, :], F.shape[2]
    share = transpose(Ys / xp.sum(Ys, axis=1, keepdims=True))                           # (T, k, n)
    C = xp.matmul(share, Fs)                                                            # (T, k, m)
    Z = (2 * xp.matmul(Fq, transpose(C)) - xp.sum(C * C, axis=2)[:, None, :] - xp.sum(Fq * Fq, axis=2, keepdims=True)) / m
    loss, dZ = score_loss(params["scale"] * Z, Y[:, score_on, :], smoothing)
    dscale, dZ = xp.sum(dZ * Z), 2 * params["scale"] / m * dZ
    dC = xp.matmul(transpose(dZ), Fq) - xp.sum(dZ, axis=1)[..., None] * C
    dFq = xp.matmul(dZ, C)                                                              # softmax does not see ||F_i||^2
    return loss, xp.concat([xp.matmul(transpose(share), dC), dFq], axis=1), {"scale": dscale}, {"w": C, "logits": Z}


def sharing_episode(F, Y, lam, n_support, params, smoothing=0.0, pooled=True, one_step=False):
    """Sparse heads fitted jointly, which share features; lam = (alpha, beta), Y (T, n, 1) for binary tasks. Our reading of [F23]."""
    return episode(lambda F, Y, lam: solvers.sparse_sharing(F, Y, *lam, pooled),
                   lambda F, Y, lam, W, info, dW: (solvers.sparse_sharing_vjp(F, Y, *lam, W, dW, pooled, one_step)[0], {}),
                   F, Y, lam, n_support, params, smoothing)


EPISODE_HEADS = {"svm": svm_episode, "ridge": ridge_episode, "logistic": functools.partial(inner_group_lasso, loss="logistic", max_iter=200),
                 "prototypes": prototypes_episode}
HEADS = {"inner-lasso": (inner_lasso, solvers.lasso_lambda_max), "inner-ridge": (inner_ridge, lambda F, y: solvers.ridge_lambda_max(F)),
         "outer-lasso": (outer_lasso, solvers.lasso_lambda_max), "outer-ridge": (outer_ridge, lambda F, y: solvers.ridge_lambda_max(F)),
         "inner-group-lasso": (inner_group_lasso, solvers.group_lasso_lambda_max),
         "inner-group-logistic": tuple(functools.partial(f, loss="logistic") for f in (inner_group_lasso, solvers.group_lasso_lambda_max))}


def head_on_sets(head, lambda_max, F, y, eps, n_support=None, norm_axis=1):
    """A head on G image sets that K tasks share: F (G, n, m), y (G, K, n) or (G, K, n, k) -> loss, dF (G, n, m), info.

    Normalise each set's features, repeat them for its K tasks, fit and score, and add the K gradients up. Predictors have no intercept:
    under Problem (6) the mean of y stays in the loss but has no gradient. Under Problem (7) all samples of a set normalise it.
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


def sgd(params, grads, opt, lr, momentum=0.9, weight_decay=5e-4):
    """One step of SGD with Nesterov's momentum and weight decay; opt is None at first, then (step, velocity, {})."""
    t, velocity, _ = opt or (0, {k: 0 * p for k, p in params.items()}, {})
    grads = {k: g + weight_decay * params[k] for k, g in grads.items()}
    velocity = {k: momentum * velocity[k] + g for k, g in grads.items()}
    return {k: p - lr * (grads[k] + momentum * velocity[k]) for k, p in params.items()}, (t + 1, velocity, {})


def cosine(lr, progress):
    """From lr to 0 along half a cosine, progress from 0 to 1."""
    return lr * (1 + math.cos(math.pi * progress)) / 2


def stairs(lr, progress):
    """MetaOptNet's schedule of 60 epochs: lr, then 0.06, 0.012 and 0.0024 of it from epochs 20, 40 and 50 on. [Lee et al. 2019]"""
    return lr * (1 if progress < 20 / 60 else 0.06 if progress < 40 / 60 else 0.012 if progress < 50 / 60 else 0.0024)


OPTIMISERS = {"adam": (adam, cosine), "sgd": (sgd, stairs)}


@dataclasses.dataclass(frozen=True)
class Training:
    """What `train` needs.

    sample(step) -> batches of images and labels y, on the device of the parameters
    objective(progress, [F, ...], y, params) -> loss, [dF, ...], dparams, info, for the features of each batch in float64
    """
    encoder: Encoder
    sample: object
    objective: object
    steps: int = 1000
    lr: float = 1e-3
    optimiser: str = "adam"


def train(config, start, report=None):
    """Minimise the objective from start = (params, state, opt, step); report(start, loss, info) hears of every step.

    Batches of a step pass the encoder one by one, each normalised by its own moments where it has batch norms. The inner
    problems are solved in double precision whatever the encoder's. Returns the last (params, state, opt, step). Raises
    FloatingPointError when the features, the loss or a gradient is no longer finite.
    """
    params, state, opt, first = start
    optimise, schedule = OPTIMISERS[config.optimiser]
    for step in range(first, config.steps):
        progress = step / config.steps
        batches, y = config.sample(step)
        features, caches = [], []
        for x in batches:
            F, cache, state = config.encoder.forward(params, state, x)
            features.append(F)
            caches.append(cache)
        refuse_non_finite("features", {f"batch {i}": F for i, F in enumerate(features)}, step)
        xp = array_namespace(F)
        loss, dFs, grads, info = config.objective(progress, [xp.astype(F, xp.float64) for F in features], y, params)
        parts = [config.encoder.backward(cache, xp.astype(dF, F.dtype)) for cache, dF in zip(caches, dFs)]
        grads = {**add_up(parts), **{name: xp.astype(g, F.dtype) for name, g in grads.items()}}
        refuse_non_finite("gradient", {"loss": loss, **grads}, step)
        params, opt = optimise(params, grads, opt, schedule(config.lr, progress))
        if report:
            report((params, state, opt, step + 1), float(loss), info)
    return params, state, opt, config.steps


def task_objective(head, eps=0.3, warmup=0.5, n_support=None, norm_axis=1):
    """[L23, Problem (6)] on one batch of images, y (G, K, n): a head of HEADS on G image sets of K tasks; n_support: Problem (7).
    eps rises from 0 over the share `warmup` of the steps (0: constant, as in the paper); norm_axis: see normalise."""
    def objective(progress, features, y, params):
        F, = features
        now = eps * min(1, progress / warmup) if warmup else eps
        F_sets = array_namespace(F).reshape(F, (y.shape[0], y.shape[2], -1))            # (G, n, m)
        loss, dF, info = head_on_sets(*HEADS[head], F_sets, y, now, n_support, norm_axis)
        return loss, [array_namespace(F).reshape(dF, F.shape)], {}, {"eps": now, **info}
    return objective


def episode_objective(head, lam, smoothing=0.0):
    """Few-shot episodes, Y (T, n, k), on two batches, of support and of query images.                     [L23, Sec. 5.2]

    lam(F_support, Y_support) -> the head's lam; the head's own parameters are those named "head.NAME".
    """
    def objective(progress, features, Y, params):
        xp, T = array_namespace(Y), Y.shape[0]
        F = xp.concat([xp.reshape(F, (T, F.shape[0] // T, -1)) for F in features], axis=1)          # support, query
        n_support = features[0].shape[0] // T
        own = {name[5:]: xp.astype(a, F.dtype) for name, a in params.items() if name.startswith("head.")}
        lams = lam(F[:, :n_support, :], Y[:, :n_support, :])
        loss, dF, dparams, info = EPISODE_HEADS[head](F, Y, lams, n_support, own, smoothing)
        dFs = [xp.reshape(part, f.shape) for part, f in zip((dF[:, :n_support, :], dF[:, n_support:, :]), features)]
        return loss, dFs, {f"head.{name}": g for name, g in dparams.items()}, info
    return objective


def binary_objective(method, alpha, beta, eps, ramp, n_support, **how):
    """Binary tasks on one batch of images, y = Y (T, n, 1) and the tasks' numbers (T,), features normalised by each task's support.

    sharing  sparse heads fitted on the support, cross-entropy of the others; lasso: a Lasso on labels -1 and 1, squared error
    erm      plain cross-entropy of all samples, a task's head being a row of the learned params["head.W"]
    alpha (from a tenth on), beta and eps rise over the share `ramp` of the steps.               [F23]; [L23, Problem (7)]
    """
    def objective(progress, features, y, params):
        (F,), (Y, tasks), now = features, y, min(1, progress / ramp) if ramp else 1.0
        xp = array_namespace(F)
        F_t, cache = normalise(xp.reshape(F, (*Y.shape[:2], -1)), n_support=n_support)             # (T, n, m)
        grads, info = {}, {}
        if method == "sharing":
            loss, dF, _, info = sharing_episode(F_t, Y, (alpha * max(now, 0.1), beta * now), n_support, {"scale": 1.0}, **how)
        elif method == "lasso":
            y = 2 * Y[..., 0] - 1
            loss, dF, _, info = inner_lasso(F_t, y, eps * now * solvers.lasso_lambda_max(F_t[:, :n_support, :], y[:, :n_support]), n_support)
        else:
            picked = xp.astype(xp.arange(params["head.W"].shape[0], device=device(F)) == tasks[:, None], F.dtype)   # (T, tasks)
            W = (picked @ xp.astype(params["head.W"], F.dtype))[:, None, :]
            loss, dZ = score_loss(xp.matmul(F_t, transpose(W)), Y)
            grads, dF, info = {"head.W": picked.T @ xp.matmul(transpose(dZ), F_t)[:, 0, :]}, xp.matmul(dZ, W), {"w": W}
        return loss, [xp.reshape(normalise_backward(dF, cache)[0], F.shape)], grads, info
    return objective


def plain_objective(progress, features, Y, params):
    """Cross-entropy of what the encoder puts out, logits F (n, k), with Y (n, k) one-hot: empirical risk minimisation."""
    loss, dZ = score_loss(features[0][None, ...], Y[None, ...])
    return loss, [dZ[0, ...]], {}, {}


def refuse_non_finite(what, arrays, step):
    """Raise FloatingPointError where an array holds a value that is not finite."""
    xp = array_namespace(*arrays.values())
    bad = [name for name, a in arrays.items() if not bool(xp.all(xp.isfinite(a)))]
    if bad:
        raise FloatingPointError(f"the {what} is no longer finite at step {step} (in {', '.join(bad)})")
