"""The Lasso of JAX passes its own gradient check."""

import numpy as np
import pytest

import solvers


def test_the_lasso_of_jax_passes_its_check():
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    from jax.test_util import check_grads

    from sparsetasks import jax_heads

    jax.config.update("jax_enable_x64", True)

    rng = np.random.default_rng(0)
    F, y = rng.standard_normal((2, 30, 5)), rng.standard_normal((2, 30))
    lam = 0.2 * solvers.lasso_lambda_max(F, y)
    w = jax.jit(jax_heads.lasso)(F, y, lam)
    assert 0 < (np.asarray(w) != 0).sum() < 10
    how = {"order": 1, "modes": ["rev"], "eps": 1e-6, "atol": 1e-6, "rtol": 1e-5}
    check_grads(jax_heads.lasso, (F, y, lam), **how)
    check_grads(jax_heads.lasso, (F, y, 0.1), **how)  # one penalty for all tasks


def test_fits_of_jax_that_are_not_solved_are_told(monkeypatch):
    pytest.importorskip("jax", reason="JAX is not installed")
    from sparsetasks import jax_heads

    lasso = solvers.lasso
    monkeypatch.setattr(solvers, "lasso", lambda *problem: lasso(*problem, max_iter=0))
    F, y = np.random.default_rng(0).standard_normal((2, 30, 5)), np.ones((2, 30))
    with pytest.warns(UserWarning, match="2 of 2 fits"):
        jax_heads.solve(F, y, np.full(2, 0.01))
