"""Of a bilevel gradient, how much comes through the solution? Nothing, where the inner problem
minimises the outer loss itself; more, the more the penalty bends it away from that.

    python docs/examples/envelope.py                                    (docs/course.md, lesson 1)
"""
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import solvers
import sparsedis

rng = np.random.default_rng(0)
F = rng.standard_normal((64, 25, 6))  # 64 tasks, 25 samples, 6 features
w_true = rng.standard_normal((64, 6)) * (rng.random((64, 6)) < 0.5)
y = np.einsum("tnm,tm->tn", F, w_true) + 0.1 * rng.standard_normal((64, 25))

print("eps     loss      |dF|, in all   directly   through w(F)")
for eps in (0.0, 0.01, 0.1, 0.3):
    lam = eps * solvers.lasso_lambda_max(F, y)
    loss, dF, _, info = sparsedis.inner_lasso(F, y, lam)
    direct = sparsedis.squared_error(F, y, info["w"]).dF  # at fixed w
    sizes = [np.linalg.norm(part) for part in (dF, direct, dF - direct)]
    print(f"{eps:<5} {loss:8.5f}" + "".join(f"{size:14.5f}" for size in sizes))
