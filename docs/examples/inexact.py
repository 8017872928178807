"""A Lasso that is left too early: how wrong are its weights, and how wrong the gradient?

    python docs/examples/inexact.py                                     (docs/course.md, lesson 3)
"""
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import solvers

rng = np.random.default_rng(0)
mix = np.linalg.cholesky(0.1 * np.eye(6) + 0.9)  # features correlated at 0.9
F = rng.standard_normal((64, 25, 6)) @ mix.T
w_true = rng.standard_normal((64, 6)) * (rng.random((64, 6)) < 0.5)
y = np.einsum("tnm,tm->tn", F, w_true) + 0.1 * rng.standard_normal((64, 25))
lam = 0.1 * solvers.lasso_lambda_max(F, y)


def gradient(w):
    """dF of the sum of w^2/2, by the formula that is right at the solution."""
    return solvers.lasso_vjp(F, y, lam, w, dw=w)[0]


def sweep(w):
    """Coordinate descent over all weights once."""
    for j in range(6):
        F_j = F[:, :, j]
        q = np.vecdot(F_j, y - np.vecdot(F, w[:, None])) / 25
        G_jj = np.vecdot(F_j, F_j) / 25
        w[:, j] = solvers.soft_threshold(q + G_jj * w[:, j], lam) / G_jj
    return w


w_right, info = solvers.lasso(F, y, lam)
print(f"solvers.lasso: gap {info['gap'].max():.0e} after {info['n_iter']} iterations")
print("sweeps       gap   error of w   of dF   supports wrong")
w = np.zeros_like(w_right)
for n_sweeps in range(1, 257):
    w = sweep(w)
    if n_sweeps & (n_sweeps - 1) == 0:  # 1, 2, 4, ...
        G, c = solvers.gram(F), solvers.correlations(F, y)
        gap, _ = solvers.lasso_gap(w, G, c, lam, solvers.lasso_lambda_max(F, y))
        off = [np.linalg.norm(a - b) / np.linalg.norm(b)
               for a, b in ((w, w_right), (gradient(w), gradient(w_right)))]
        wrong = np.mean(((w != 0) != (w_right != 0)).any(axis=1))
        print(f"{n_sweeps:>6} {gap.max():9.0e} {off[0]:12.1e} {off[1]:7.1e} {wrong:16.0%}")
