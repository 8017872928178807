"""A new encoder is a list of layers; a new layer is a pair of functions. Both are checked like ours.

    python docs/examples/add_an_encoder.py
"""
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import metrics
import sparsedis


def softplus(x):
    """log(1 + exp(x))."""
    return np.logaddexp(0, x), x


def softplus_backward(dout, cache):
    return (dout / (1 + np.exp(-cache)),)


sparsedis.LAYERS["softplus"] = softplus, softplus_backward


def small_residual_net(m, channels=3, width=16):
    """A strided convolution, a residual block with batch norms and softplus, the mean over pixels, a linear layer."""
    smooth = ("softplus", "softplus", {}, {})
    block = sparsedis.conv_norm("block.1", 3, width, width) + [smooth] + sparsedis.conv_norm("block.2", 3, width, width)
    return sparsedis.Encoder([
        ("stem", "conv2d", {"W": (4, 4, channels, width), "b": (width,)}, {"stride": 2, "pad": 1, "need_dx": False}), smooth,
        ("block", "residual", {}, {"branch": block, "shortcut": []}), smooth,
        ("mean", "global_pool", {}, {}), *sparsedis.mlp([width, m]).layers])


encoder = small_residual_net(m=5, width=6)
rng = np.random.default_rng(0)
params, state = encoder.init(rng, dtype=np.float64)
x, R = rng.standard_normal((4, 8, 8, 3)), rng.standard_normal((4, 5))


def loss(arrays):
    F, cache, _ = encoder.forward(arrays, state, x)
    return (R * F).sum() + (F * F).sum() / 2, lambda: encoder.backward(cache, R + F), []


print(f"{sum(a.size for a in params.values())} parameters, features {encoder.forward(params, state, x)[0].shape}")
print(f"gradient error {metrics.check_gradient(loss, params)['error']:.0e}")
