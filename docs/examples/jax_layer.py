"""An MLP of JAX trained through Lasso fits and through ridge fits: `w = lasso(F, y, lam)`.

    python docs/examples/jax_layer.py
"""
import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import jax
import jax.numpy as jnp
import numpy as np

import metrics
from sparsetasks.jax_heads import lasso

jax.config.update("jax_enable_x64", True)       # the solver's accuracy is the gradient's


def lasso_loss(F, y, eps=0.3):
    """Problem (6): the loss of sparse predictors of normalised features, and w."""
    lam = eps * jnp.abs(jnp.einsum("tnm,tn->tm", F, y)).max(1) / F.shape[1]
    w = lasso(F, y, jax.lax.stop_gradient(lam))
    return ((y - jnp.einsum("tnm,tm->tn", F, w)) ** 2).mean() / 2, w


def ridge_loss(F, y, eps=0.3):
    """The dense baseline; JAX differentiates it."""
    A = jnp.einsum("tni,tnj->tij", F, F)
    lam = jax.lax.stop_gradient(eps * jnp.einsum("tii->t", A))
    A = A + lam[:, None, None] * jnp.eye(F.shape[2])
    w = jnp.linalg.solve(A, jnp.einsum("tnm,tn->tm", F, y)[..., None])[..., 0]
    return ((y - jnp.einsum("tnm,tm->tn", F, w)) ** 2).mean() / 2, w


def encode(params, x):
    """A layer of ReLU, and a linear one."""
    (W1, b1), (W2, b2) = params
    return jax.nn.relu(x @ W1 + b1) @ W2 + b2


def train(loss_of, steps=300, tasks=32, n=50, rho=0.8, seed=0):
    """MCC of an MLP trained by JAX through a loss of fitted tasks: 5 factors of correlation rho,
    seen through 20 columns, and tasks that use half of them."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((4000, 5)) @ np.linalg.cholesky(np.full((5, 5), rho)
                                                            + (1 - rho) * np.eye(5)).T
    x = np.tanh(z @ rng.standard_normal((5, 20))) + z @ rng.standard_normal((5, 20))
    sizes = ((20, 64), (64, 5))
    params = [(rng.standard_normal(s) * (2 / s[0]) ** 0.5, np.zeros(s[1])) for s in sizes]

    def loss(params, x, y):
        F = encode(params, x)
        F = (F - F.mean(1, keepdims=True)) / jnp.sqrt(F.var(1, keepdims=True) + 1e-5)
        return loss_of(F, y)[0]

    gradient = jax.jit(jax.grad(loss))
    mean = square = jax.tree.map(jnp.zeros_like, params)
    for step in range(1, steps + 1):
        index = rng.integers(len(z), size=(tasks, n))
        w_true = rng.standard_normal((tasks, 5)) * (rng.random((tasks, 5)) < 0.5)
        y = np.einsum("tnm,tm->tn", z[index], w_true) + 0.1 * rng.standard_normal((tasks, n))
        grads = gradient(params, x[index], y)
        params, mean, square = adam(params, grads, mean, square, step)
    return metrics.mcc(z, encode(params, x))


@functools.partial(jax.jit, static_argnames="lr")
def adam(params, grads, mean, square, step, lr=5e-3):
    mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, grads)
    square = jax.tree.map(lambda s, g: 0.999 * s + 0.001 * g * g, square, grads)
    rate = lr * jnp.sqrt(1 - 0.999 ** step) / (1 - 0.9 ** step)
    moved = jax.tree.map(lambda p, m, s: p - rate * m / (jnp.sqrt(s) + 1e-8), params, mean, square)
    return moved, mean, square


if __name__ == "__main__":
    for name, loss_of in {"ridge": ridge_loss, "Lasso": lasso_loss}.items():
        print(f"MCC after 300 steps through {name} fits: {train(loss_of):.3f}")
