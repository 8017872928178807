"""A new encoder is a layer made of layers; a new layer is a pair of functions. Both are checked.

    python docs/examples/add_an_encoder.py
"""
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from experiments.episode_networks import MEAN, BatchNorm, Residual
from experiments.gradcheck import check_gradient
from sparsedis import Blocks, Encoder, Layer, Sequential, conv, dense


def softplus(x):
    """log(1 + exp(x))."""
    return np.logaddexp(0, x), x


def softplus_backward(dout, cache):
    return dout / (1 + np.exp(-cache)), {}


SMOOTH = Layer(softplus, softplus_backward)


def small_residual_net(m, channels=3, width=16):
    """A strided convolution, a residual block with batch norms and softplus, the mean over
    pixels, a linear layer."""
    first = conv("block1.conv", 3, width, width, bias=False, pad=1)
    second = conv("block2.conv", 3, width, width, bias=False, pad=1)
    branch = Sequential(
        Blocks(first, size=10), BatchNorm("block1.norm", width),
        Blocks(SMOOTH, second, size=10), BatchNorm("block2.norm", width))
    stem = conv("stem", 4, channels, width, stride=2, pad=1, need_dx=False)
    return Encoder(Sequential(
        Blocks(stem, SMOOTH, size=10), Residual(branch, Sequential()), SMOOTH,
        MEAN, dense("out", width, m)))


encoder = small_residual_net(m=5, width=6)
rng = np.random.default_rng(0)
params, state = encoder.init(rng, dtype=np.float64)
x, R = rng.standard_normal((4, 8, 8, 3)), rng.standard_normal((4, 5))


def loss(arrays):
    F, cache, _ = encoder.forward(arrays, state, x)
    return (R * F).sum() + (F * F).sum() / 2, lambda: encoder.backward(cache, R + F), []


F, _, _ = encoder.forward(params, state, x)
print(f"{sum(a.size for a in params.values())} parameters, features {F.shape}")
print(f"gradient error {check_gradient(loss, params).error:.0e}")
