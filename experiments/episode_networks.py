"""episode_networks.py -- what few-shot learning adds to the layers of sparsedis.py.

    x, out, dout (N, H, W, C)  images or activations, C the channels

conv4, ResNet-12 and a cnn that ends in a batch norm, and what they are made of: leaky ReLU, max and
mean pooling, batch norm, DropBlock, the sum of two branches. Last SGD and its schedule. Functions
and layers keep the contracts of sparsedis.py: f(x, ...) -> out, cache; f_backward(dout, cache) ->
dx, grads.
"""
import itertools
import math

import numpy as np
from array_api_compat import array_namespace, device

import sparsedis
from sparsedis import (
    FLATTEN,
    RELU,
    Blocks,
    Encoder,
    Layer,
    OptimiserState,
    Sequential,
    Spec,
    column_sums,
    conv,
    joined,
    rows,
    trim,
    trim_backward,
    zeros_like_all,
)

# ------------------------------------------------------------------------------ without parameters


def leaky_relu(x, slope=0.1):
    """x where positive, slope x elsewhere, 0 <= slope <= 1."""
    return array_namespace(x).maximum(x, slope * x), (x > 0, slope)


def leaky_relu_backward(dout, cache):
    """dx = dout where x > 0, slope dout elsewhere."""
    xp = array_namespace(dout)
    positive, slope = cache
    return dout * xp.maximum(xp.astype(positive, dout.dtype), slope), {}


def global_pool(x):
    """The mean over pixels, (N, H, W, C) -> (N, C)."""
    return array_namespace(x).mean(x, axis=(1, 2)), x.shape


def global_pool_backward(dout, shape):
    """Every pixel gets dout/(H W)."""
    _, H, W, _ = shape
    share = dout[:, None, None, :] / (H * W)
    return array_namespace(dout).broadcast_to(share, shape), {}


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
    dout, _ = larger_backward(dout, of_columns)
    dout, _ = larger_backward(dout, of_rows)
    return trim_backward(dout, shape)


def larger(x, axis):
    """The larger of each two rows (axis 1) or columns (2)."""
    before = (slice(None),) * axis                                  # x[:, 0::2], x[:, 1::2] of rows
    first, second = (x[(*before, slice(start, None, 2), ...)] for start in (0, 1))
    return array_namespace(x).maximum(first, second), (first >= second, axis)


def larger_backward(dout, cache):
    """The larger takes dout; of equal ones, the first."""
    xp = array_namespace(dout)
    is_first, axis = cache
    dfirst = dout * xp.astype(is_first, dout.dtype)
    both = xp.stack([dfirst, dout - dfirst], axis=axis + 1)
    twice = 2 * dout.shape[axis]
    return xp.reshape(both, (*dout.shape[:axis], twice, *dout.shape[axis + 1:])), {}


LEAKY = Layer(leaky_relu, leaky_relu_backward)
POOL = Layer(max_pool2d, max_pool2d_backward)
MEAN = Layer(global_pool, global_pool_backward)

# ------------------------------------------------------------------------------ batch norm


def batch_norm(x, g, b, mean=None, variance=None):
    """g (x - mean)/sqrt(variance + 1e-5) + b per channel of (N, ..., C); by default x's moments.

    The cache is x, not x_hat, an array less; its price: dg is a difference of two sums, of which
    float32 leaves a few digits where a mean is many deviations large.
    """
    if mean is None:
        mean, variance = moments(x)
    scale = 1 / array_namespace(x).sqrt(variance + 1e-5)
    out = x * (g * scale)
    out += b - mean * (g * scale)
    return out, (x, g, mean, scale)


def batch_norm_backward(dout, cache):
    """dx = g scale (dout - db/count - x_hat dg/count), x_hat = (x - mean) scale, for moments of x;
    dg = sum dout x_hat,  db = sum dout.
    """
    x, g, mean, scale = cache
    count = math.prod(x.shape[:-1])
    db = column_sums(rows(dout))
    dg = (column_sums(rows(dout * x)) - mean * db) * scale
    slope = dg * scale / count
    dx = dout * (g * scale)
    dx -= x * (slope * g * scale)
    dx += (mean * slope - db / count) * g * scale
    return dx, {"g": dg, "b": db}


def moments(x):
    """x (N, ..., C) -> mean and biased variance of each channel, (C,) both."""
    x = rows(x)
    mean = column_sums(x) / x.shape[0]
    x = x - mean
    x *= x
    return mean, column_sums(x) / x.shape[0]


class BatchNorm(Layer):
    """batch_norm by the moments of the batch, in evaluation by running ones, its state."""

    def __init__(self, name, channels, decay=0.9):
        shapes = {"g": (channels,), "b": (channels,)}
        super().__init__(batch_norm, batch_norm_backward, name, shapes)
        self.running, self.decay = (f"{name}.mean", f"{name}.variance"), decay
        starts = (lambda rng: np.zeros(channels), lambda rng: np.ones(channels))
        self.state = dict(zip(self.running, starts, strict=True))

    def forward(self, params, state, x, train):
        now = moments(x) if train else [state[name] for name in self.running]
        own = [params[name] for name in self.shapes]
        out, cache = batch_norm(x, *own, *now)
        if train:
            state = self.moved(state, *now, math.prod(x.shape[:-1]))
        return out, cache, state

    def moved(self, state, mean, variance, count):
        """The state with its running moments moved towards those of a batch, unbiased."""
        pairs = zip(self.running, (mean, variance * (count / max(count - 1, 1))), strict=True)
        keep, take = self.decay, 1 - self.decay
        return {**state, **{name: keep * state[name] + take * a for name, a in pairs}}


# ------------------------------------------------------------------------------ DropBlock


def drop_block(x, key, rate, ramp, size):
    """DropBlock: zero random size x size blocks of each channel, about a share `rate`; rescale.

    size 1 is dropout. key = (a seed, training passes so far); the rate grows linearly over `ramp`
    passes.                                                         [Ghiasi et al. 2018]
    """
    xp = array_namespace(x)
    N, H, W, C = x.shape
    size = min(size, H, W)
    rate = rate * min(1, (key[1] + 1) / ramp) if ramp else rate
    down, right = H - size + 1, W - size + 1
    share = rate / size ** 2 * H * W / (down * right)               # of corners: each drops size^2
    corners = np.random.default_rng(key).random((N, down, right, C)) < share
    corners = xp.asarray(corners, device=device(x))
    keep = xp.ones(x.shape, dtype=x.dtype, device=device(x))
    for a, b in itertools.product(range(size), repeat=2):
        inside = slice(None), slice(a, a + down), slice(b, b + right), slice(None)
        keep[inside] = xp.where(corners, 0, keep[inside])
    keep = keep * (math.prod(x.shape) / xp.maximum(xp.sum(keep), 1))
    return x * keep, keep


def drop_block_backward(dout, keep):
    """dx = dout times the mask."""
    return dout * keep, {}


class DropBlock(Layer):
    """drop_block in training; its state is its key, whose count it raises."""

    def __init__(self, name, **settings):
        super().__init__(drop_block, drop_block_backward, name, **settings)
        self.key = f"{name}.key"
        self.state = {self.key: lambda rng: np.array([rng.integers(2 ** 31), 0])}

    def forward(self, params, state, x, train):
        if not train:
            return x, None, state
        key = state[self.key]
        out, cache = drop_block(x, [int(i) for i in key], **self.settings)
        one_more = array_namespace(key).asarray([0, 1], device=device(key))
        return out, cache, {**state, self.key: key + one_more}


# ------------------------------------------------------------------------------ networks


class Residual:
    """The sum of two layers of the same input, branch and shortcut."""

    def __init__(self, branch, shortcut):
        self.branch, self.shortcut = branch, shortcut
        self.shapes = joined((branch.shapes, shortcut.shapes))
        self.state = joined((branch.state, shortcut.state))

    def forward(self, params, state, x, train):
        out, cache, state = self.branch.forward(params, state, x, train)
        short, short_cache, state = self.shortcut.forward(params, state, x, train)
        return out + short, (cache, short_cache), state

    def backward(self, dout, caches):
        dx, grads = self.branch.backward(dout, caches[0])
        dx_short, grads_short = self.shortcut.backward(dout, caches[1])
        return dx + dx_short, grads | grads_short


def conv4(channels=3, filters=64):
    """4 x [3 x 3 convolution, batch norm, ReLU, 2 x 2 max pool]:
    (N, H, W, channels) -> (N, filters H//16 W//16), H and W at least 16.  [Snell et al. 2017]

    Max and ReLU commute: pooling first leaves ReLU a quarter of the work. No bias before a norm.
    """
    # Blocks end at a batch norm, which needs the whole batch:
    # [conv] norm [pool ReLU conv] norm [pool ReLU conv] norm [pool ReLU conv] norm [pool ReLU]
    layers, before = [], []
    for i, c in enumerate((channels, filters, filters, filters), start=1):
        own = conv(f"block{i}.conv", 3, c, filters, bias=False, pad=1, need_dx=i > 1)
        layers += [Blocks(*before, own, size=15), BatchNorm(f"block{i}.norm", filters)]
        before = [POOL, RELU]
    spec = Spec("conv4", {"channels": channels, "filters": filters})
    return Encoder(Sequential(*layers, Blocks(*before, size=15), FLATTEN), spec)


def resnet12(channels=3, widths=(64, 160, 320, 640), drop=0.1, ramp=40_000):
    """MetaOptNet's ResNet-12: four residual blocks of three 3 x 3 convolutions, each ended by a
    2 x 2 max pool and dropout, DropBlock of size 5 in the last two.

    (N, H, W, channels) -> (N, widths[-1] H//16 W//16), H and W at least 16; ramp counts forward
    passes, two a training step.                          [L23, App. D.3; Lee et al. 2019, Sec. 4.1]
    """
    # Each: [conv] norm [leaky conv] norm [leaky conv] norm + [conv] norm of its input; [leaky pool]
    layers = []
    for i, (c, o) in enumerate(itertools.pairwise((channels, *widths)), start=1):
        branch = Sequential(
            *conv_norm(f"block{i}.1", 3, c, o), *conv_norm(f"block{i}.2", 3, o, o, LEAKY),
            *conv_norm(f"block{i}.3", 3, o, o, LEAKY))
        shortcut = Sequential(*conv_norm(f"block{i}.short", 1, c, o))
        layers += [Residual(branch, shortcut), Blocks(LEAKY, POOL, size=1)]
        if drop:
            last = {"ramp": ramp, "size": 5} if i > 2 else {"ramp": 0, "size": 1}
            layers.append(DropBlock(f"block{i}.drop", rate=drop, **last))
    sizes = {"channels": channels, "widths": widths, "drop": drop, "ramp": ramp}
    return Encoder(Sequential(*layers, FLATTEN), Spec("resnet12", sizes))


def conv_norm(name, k, c, o, *before):
    """What comes before, a convolution that keeps the image's size, and its batch norm."""
    own = conv(f"{name}.conv", k, c, o, bias=False, pad=k // 2)
    return Blocks(*before, own, size=1), BatchNorm(f"{name}.norm", o)


def cnn(m, channels=3, norm=False):
    """sparsedis.cnn; norm ends it by a batch norm, for heads that do not normalise features."""
    encoder = sparsedis.cnn(m, channels)
    if not norm:
        return encoder
    spec = Spec("cnn", {"m": m, "channels": channels, "norm": True})
    return Encoder(Sequential(encoder.layer, BatchNorm("norm", m)), spec)


ENCODERS = {**sparsedis.ENCODERS, "cnn": cnn, "conv4": conv4, "resnet12": resnet12}

# ------------------------------------------------------------------------------ SGD


def sgd(params, grads, opt, lr, momentum=0.9, weight_decay=5e-4):
    """One step of SGD with Nesterov's momentum and weight decay; opt, None at first, keeps the
    velocity as its mean."""
    t, velocity, _ = opt or (0, zeros_like_all(params), {})
    grads = {k: g + weight_decay * params[k] for k, g in grads.items()}
    velocity = {k: momentum * velocity[k] + g for k, g in grads.items()}
    new = {k: p - lr * (grads[k] + momentum * velocity[k]) for k, p in params.items()}
    return new, OptimiserState(t + 1, velocity, {})


def stairs(lr, progress):
    """lr, then 0.06, 0.012 and 0.0024 of it from epochs 20, 40, 50 of 60 on.  [Lee et al. 2019]"""
    for epoch, factor in ((50, 0.0024), (40, 0.012), (20, 0.06)):
        if progress >= epoch / 60:
            return lr * factor
    return lr


OPTIMISERS = {"adam": (sparsedis.adam, sparsedis.cosine), "sgd": (sgd, stairs)}
