"""A new head: write the fit and its vjp, check the gradient, register it under a name.

    python docs/examples/add_a_head.py

Here the elastic net, min ||y - F w||^2/(2n) + lam ||w||_1 + mu/2 ||w||^2: the Lasso of F with
sqrt(n mu) I below it, and 0 below y.
"""
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import solvers
import sparsedis
from experiments.gradcheck import check_gradient

MU = 0.05


def extended(F, y):
    """The Lasso's data: it averages over n + m rows, hence the factor sqrt((n + m)/n)."""
    T, n, m = F.shape
    more = ((n + m) / n) ** 0.5
    below = np.broadcast_to((n * MU) ** 0.5 * np.eye(m), (T, m, m))
    F_more = more * np.concatenate([F, below], axis=1)
    return F_more, more * np.concatenate([y, np.zeros((T, m))], axis=1), more


def fit(F, y, lam):
    F_more, y_more, _ = extended(F, y)
    return solvers.lasso(F_more, y_more, lam)


def fit_vjp(F, y, lam, w, dw, info):
    F_more, y_more, more = extended(F, y)
    dF, _, _ = solvers.lasso_vjp(F_more, y_more, lam, w, dw)
    return more * dF[:, :F.shape[1]], {}


def elastic_net(F, y, lam, n_support=None, params=None):
    return sparsedis.bilevel(fit, fit_vjp, sparsedis.squared_error, F, y, lam, n_support)


rng = np.random.default_rng(0)
F, y = rng.standard_normal((4, 30, 6)), rng.standard_normal((4, 30))
lam = 0.2 * solvers.lasso_lambda_max(F, y)
w = fit(F, y, lam)[0]

# optimality: |g| <= lam, and g = lam sign(w) on the support
g = np.einsum("tnm,tn->tm", F, y - np.einsum("tnm,tm->tn", F, w)) / 30 - MU * w
on = np.abs(g - lam[:, None] * np.sign(w))
off = np.maximum(np.abs(g) - lam[:, None], 0)
print(f"optimality is violated by {np.where(w != 0, on, off).max():.0e}")


def loss(arrays):
    value, dF, _, info = elastic_net(arrays["F"], y, lam, 20)
    return value, lambda: {"F": dF}, [info["w"] != 0]


print(f"gradient error {check_gradient(loss, {'F': F}).error:.0e}")
sparsedis.HEADS["elastic-net"] = elastic_net, solvers.lasso_lambda_max
objective = sparsedis.task_objective("elastic-net")
print("sparsedis.task_objective('elastic-net') now trains with it:", callable(objective))
