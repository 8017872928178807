"""`lasso` and `lasso_vjp` by themselves, on arrays of NumPy, PyTorch or CuPy: the same call.

    python docs/examples/lasso_alone.py
"""
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import solvers

rng = np.random.default_rng(0)
F = rng.standard_normal((3, 50, 8))  # 3 tasks, 50 samples, 8 features
w_true = rng.standard_normal((3, 8)) * (rng.random((3, 8)) < 0.4)
y = np.einsum("tnm,tm->tn", F, w_true) + 0.1 * rng.standard_normal((3, 50))

libraries = {"numpy": np.asarray}
try:
    import torch
    libraries["torch"] = torch.asarray
except ImportError:
    print("torch is not installed: left out")
try:
    import cupy
    if cupy.is_available():
        libraries["cupy"] = cupy.asarray
except ImportError:
    pass

for name, asarray in libraries.items():
    F_, y_ = asarray(F), asarray(y)
    lam = 0.1 * solvers.lasso_lambda_max(F_, y_)  # one penalty per task
    w, info = solvers.lasso(F_, y_, lam)
    dF, dy, dlam = solvers.lasso_vjp(F_, y_, lam, w, dw=w)  # gradient of sum w^2 / 2
    on, true = int((w != 0).sum()), int((w_true != 0).sum())
    size = float((dF ** 2).sum() ** 0.5)
    print(f"{name:<6} {type(w).__module__}.{type(w).__name__}: {on} on, {true} of them true, "
          f"violation {float(info['gap'].max()):.0e}, |dF| {size:.6f}")
