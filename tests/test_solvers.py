"""Every solver by its optimality conditions first, by scikit-learn second."""
import warnings

import numpy as np
import pytest
from conftest import to_numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Lasso, Ridge

import solvers


def problem(T, n, m, correlation=0.0, seed=0, density=0.5):
    rng = np.random.default_rng(seed)
    F = rng.standard_normal((T, n, m)) @ np.linalg.cholesky((1 - correlation) * np.eye(m) + correlation).T
    w = rng.standard_normal((T, m)) * (rng.random((T, m)) < density)
    y = np.vecdot(F, w[:, None, :])
    return F, y + 0.1 * rng.standard_normal(y.shape)


def violation(F, y, lam, w):
    """The optimality conditions of the Lasso, written independently of the solver: subgradient of each coordinate."""
    worst = 0.0
    for t in range(len(F)):
        g = F[t].T @ (F[t] @ w[t] - y[t]) / F.shape[1]
        lam_t = np.broadcast_to(lam, len(F))[t]
        for j in range(F.shape[2]):
            worst = max(worst, abs(g[j] + lam_t * np.sign(w[t, j])) if w[t, j] else max(abs(g[j]) - lam_t, 0))
    return worst


@pytest.mark.parametrize("eps", [0.01, 0.1, 0.3, 0.9])
@pytest.mark.parametrize("T, n, m, correlation", [(7, 50, 6, 0.0), (7, 50, 6, 0.99), (3, 20, 40, 0.9), (4, 2, 5, 0.0), (5, 30, 1, 0.0),
                                                  (2, 50, 100, 0.9)])
def test_lasso_is_optimal(T, n, m, correlation, eps):
    F, y = problem(T, n, m, correlation)
    lam = eps * solvers.lasso_lambda_max(F, y)
    w, info = solvers.lasso(F, y, lam)
    assert info["converged"].all() and violation(F, y, lam, w) <= 1e-10


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(2, 12), st.integers(1, 12), st.floats(0.001, 1.2), st.sampled_from([0.0, 0.5, 0.99]))
def test_lasso_is_optimal_on_random_shapes(seed, T, n, m, eps, correlation):
    F, y = problem(T, n, m, correlation, seed)
    lam = eps * solvers.lasso_lambda_max(F, y)
    w, info = solvers.lasso(F, y, lam)
    assert info["converged"].all() and violation(F, y, lam, w) <= 1e-10
    if eps > 1:
        assert not w.any()


def test_lambda_max_is_the_threshold():
    F, y = problem(4, 30, 5)
    lam = solvers.lasso_lambda_max(F, y)
    assert not solvers.lasso(F, y, lam)[0].any()
    assert (np.count_nonzero(solvers.lasso(F, y, 0.999 * lam)[0], axis=1) == 1).all()


def test_lasso_degenerate_cases():
    F, y = problem(3, 30, 5)
    F[:, :, 2] = 0                                                          # a feature that never varies
    w, info = solvers.lasso(F, y, 0.05)
    assert violation(F, y, 0.05, w) <= 1e-10 and not w[:, 2].any() and info["converged"].all()
    w, info = solvers.lasso(F, np.zeros_like(y), 0.1)                       # nothing to explain
    assert not w.any() and info["converged"].all()
    w, info = solvers.lasso(np.zeros_like(F), y, 0.1)                       # nothing to explain it with
    assert not w.any() and info["converged"].all()
    F[:, :, 3] = F[:, :, 1]                                                 # equal columns: singular supports
    F[:, :, 4] = -F[:, :, 1]
    for lam in (0.0, 0.01):
        w, info = solvers.lasso(F, y, lam)
        assert violation(F, y, lam, w) <= 1e-10 and info["converged"].all()
        dF, dy, dlam = solvers.lasso_vjp(F, y, lam, w, np.ones_like(w))
        assert np.isfinite(dF).all() and np.isfinite(dy).all() and np.isfinite(dlam).all()


def test_lasso_without_penalty_is_least_squares():
    F, y = problem(3, 30, 5, correlation=0.9)
    w, _ = solvers.lasso(F, y, 0)
    for t in range(3):
        np.testing.assert_allclose(w[t], np.linalg.lstsq(F[t], y[t])[0], atol=1e-10)


def test_lasso_tasks_do_not_disturb_each_other():
    F, y = problem(9, 20, 12, correlation=0.8)
    y[4] *= 1e6
    lam = 0.1 * solvers.lasso_lambda_max(F, y)
    together, _ = solvers.lasso(F, y, lam)
    for t in range(9):
        alone, _ = solvers.lasso(F[t:t + 1], y[t:t + 1], lam[t:t + 1])
        np.testing.assert_allclose(together[t], alone[0], rtol=1e-9, atol=1e-9 * np.abs(together[t]).max())


def test_lasso_says_when_it_stops_early():
    F, y = problem(5, 30, 8, correlation=0.9)
    lam = 0.01 * solvers.lasso_lambda_max(F, y)
    w, info = solvers.lasso(F, y, lam, max_iter=2)
    unit = solvers.lasso_lambda_max(F, y)
    assert info["n_iter"] == 2 and not info["converged"].all()
    for t in range(5):
        np.testing.assert_allclose(info["gap"][t], violation(F[t:t + 1], y[t:t + 1], lam[t:t + 1], w[t:t + 1]) / unit[t], rtol=1e-6, atol=1e-14)


def test_lasso_agrees_with_scikit_learn():
    F, y = problem(4, 40, 10, correlation=0.5)
    lam = 0.1 * solvers.lasso_lambda_max(F, y)
    w, _ = solvers.lasso(F, y, lam)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for t in range(4):
            theirs = Lasso(alpha=lam[t], fit_intercept=False, tol=1e-12, max_iter=10**6).fit(F[t], y[t])
            np.testing.assert_allclose(w[t], theirs.coef_, atol=1e-6)


def test_ridge_agrees_with_scikit_learn_and_is_least_norm_without_penalty():
    F, y = problem(3, 6, 9)
    w = solvers.ridge(F, y, np.array([0.1, 1, 10]))
    for t, lam in enumerate((0.1, 1, 10)):
        np.testing.assert_allclose(w[t], Ridge(alpha=6 * lam, fit_intercept=False).fit(F[t], y[t]).coef_, atol=1e-10)
        np.testing.assert_allclose(F[t].T @ (F[t] @ w[t] - y[t]) / 6 + lam * w[t], 0, atol=1e-12)
    w = solvers.ridge(F, y, 0)
    for t in range(3):
        np.testing.assert_allclose(w[t], np.linalg.pinv(F[t]) @ y[t], atol=1e-8)


def test_ridge_lambda_max_is_the_trace_of_the_gram_matrix():
    F, _ = problem(3, 6, 9)
    np.testing.assert_allclose(solvers.ridge_lambda_max(F), np.trace(F.transpose(0, 2, 1) @ F / 6, axis1=1, axis2=2))


def test_soft_threshold_is_the_proximal_operator():
    a, grid = np.array([-2.0, -0.3, 0.0, 0.5, 1.7]), np.linspace(-3, 3, 60001)
    best = [grid[np.argmin((grid - v) ** 2 / 2 + 0.5 * np.abs(grid))] for v in a]
    np.testing.assert_allclose(solvers.soft_threshold(a, 0.5), best, atol=1e-4)


@pytest.mark.parametrize("F, y, lam", [(np.ones((2, 3, 4)), np.full((2, 3), np.nan), 0.1), (np.full((2, 3, 4), np.inf), np.ones((2, 3)), 0.1),
                                       (np.ones((2, 3, 4)), np.ones((2, 3)), -0.1), (np.ones((2, 3, 4)), np.ones((2, 3)), np.nan),
                                       (np.ones((2, 3, 4)), np.ones((2, 4)), 0.1), (np.ones((2, 3, 4), int), np.ones((2, 3), int), 0.1),
                                       (np.ones((2, 3, 4)), np.ones((2, 3)), np.ones((2, 1)))])
def test_bad_input_is_refused(F, y, lam):
    for solve in (solvers.lasso, solvers.ridge):
        with pytest.raises(ValueError):
            solve(F, y, lam)


def test_lasso_in_single_precision():
    F, y = problem(8, 50, 6)
    lam = 0.2 * solvers.lasso_lambda_max(F, y)
    w32, info = solvers.lasso(F.astype(np.float32), y.astype(np.float32), lam.astype(np.float32))
    assert w32.dtype == np.float32 and info["converged"].all()
    np.testing.assert_allclose(w32, solvers.lasso(F, y, lam)[0], atol=1e-4)


def test_every_array_library_gives_the_same(backend):
    xp, device = backend
    F, y = problem(5, 20, 8, correlation=0.8)
    dw = np.random.default_rng(1).standard_normal((5, 8))
    F_, y_, dw_ = (xp.asarray(a, device=device) for a in (F, y, dw))
    lam = 0.2 * solvers.lasso_lambda_max(F, y)
    lam_ = 0.2 * solvers.lasso_lambda_max(F_, y_)
    for solve, vjp in ((lambda *a: solvers.lasso(*a)[0], solvers.lasso_vjp), (solvers.ridge, solvers.ridge_vjp)):
        w, w_ = solve(F, y, lam), solve(F_, y_, lam_)
        np.testing.assert_allclose(to_numpy(w_), w, atol=1e-10)
        for ours, theirs in zip(vjp(F, y, lam, w, dw), vjp(F_, y_, lam_, w_, dw_)):
            np.testing.assert_allclose(to_numpy(theirs), ours, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_gradients_of_tasks_do_not_disturb_each_other(scale):
    """Supports of unequal size in one batch, at any scale of the features."""
    F, y = problem(4, 30, 6, correlation=0.5)
    F = F * scale
    lam = np.array([0.9, 0.5, 0.1, 0.01]) * solvers.lasso_lambda_max(F, y)
    w, _ = solvers.lasso(F, y, lam)
    dw = np.random.default_rng(1).standard_normal(w.shape)
    together = solvers.lasso_vjp(F, y, lam, w, dw)
    for t in range(4):
        alone = solvers.lasso_vjp(F[t:t + 1], y[t:t + 1], lam[t:t + 1], w[t:t + 1], dw[t:t + 1])
        for a, b in zip(together, alone):
            np.testing.assert_allclose(a[t], b[0], rtol=1e-9, atol=1e-12 * np.abs(b).max())


def test_equal_columns_are_found_wherever_they_are():
    rng = np.random.default_rng(0)
    F = rng.standard_normal((1, 150, 100))
    for i, j in ((17, 84), (5, 27), (0, 99), (42, 43)):
        G = F.copy()
        G[:, :, j] = G[:, :, i]
        b = G[0].T @ rng.standard_normal(150)
        A = G[0].T @ G[0]
        np.testing.assert_allclose(solvers.solve_psd(A[None], b[None])[0], np.linalg.pinv(A, rcond=1e-12) @ b, atol=1e-9)


def test_one_singular_task_leaves_the_others_their_bits():
    rng = np.random.default_rng(0)
    A = np.swapaxes(F := rng.standard_normal((3, 9, 4)), 1, 2) @ F
    b = rng.standard_normal((3, 4))
    before = solvers.solve_psd(A, b)
    A[1, :, 2] = A[1, 2, :] = 0
    assert np.array_equal(solvers.solve_psd(A, b)[[0, 2]], before[[0, 2]])


# ---------------------------------------------------------------------------------------------- group Lasso


def group_problem(T, n, m, k, loss, correlation=0.5, seed=0):
    rng = np.random.default_rng(seed)
    F = rng.standard_normal((T, n, m)) @ np.linalg.cholesky((1 - correlation) * np.eye(m) + correlation).T
    Y = F @ (rng.standard_normal((T, m, k)) * (rng.random((T, m, 1)) < 0.5)) + 0.1 * rng.standard_normal((T, n, k))
    return F, np.eye(k)[(3 * Y + rng.gumbel(size=Y.shape)).argmax(-1)] if loss == "logistic" else Y


def group_conditions(F, Y, lam, W, loss):
    """The optimality conditions of the group Lasso, written independently of the solver."""
    worst = 0.0
    for t in range(len(F)):
        Z = F[t] @ W[t].T
        P = Z if loss == "squared" else np.exp(Z) / np.exp(Z).sum(1, keepdims=True)
        g = F[t].T @ (P - Y[t]) / F.shape[1]
        for j in range(F.shape[2]):
            size = np.linalg.norm(W[t, :, j])
            worst = max(worst, np.linalg.norm(g[j] + lam[t] * W[t, :, j] / size) if size else np.linalg.norm(g[j]) - lam[t])
    return worst


@pytest.mark.parametrize("loss", ["squared", "logistic"])
@pytest.mark.parametrize("T, n, m, k, eps", [(5, 40, 6, 3, 0.3), (5, 40, 6, 3, 0.03), (3, 20, 30, 2, 0.2), (2, 30, 5, 10, 0.05), (3, 10, 1, 2, 0.5)])
def test_group_lasso_is_optimal(T, n, m, k, eps, loss):
    F, Y = group_problem(T, n, m, k, loss)
    lam = eps * solvers.group_lasso_lambda_max(F, Y, loss)
    W, info = solvers.group_lasso(F, Y, lam, loss)
    assert info["converged"].all() and group_conditions(F, Y, lam, W, loss) <= 1e-9
    assert not solvers.group_lasso(F, Y, 1.001 * lam / eps, loss)[0].any()
    assert solvers.group_lasso(F, Y, 0.99 * lam / eps, loss)[0].any()


def test_group_lasso_of_one_output_is_the_lasso():
    F, y = problem(4, 30, 6, correlation=0.7)
    lam = 0.1 * solvers.lasso_lambda_max(F, y)
    np.testing.assert_allclose(solvers.group_lasso(F, y[..., None], lam)[0][:, 0], solvers.lasso(F, y, lam)[0], atol=1e-9)


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_group_lasso_on_every_array_library(backend, loss):
    xp, device = backend
    F, Y = group_problem(3, 20, 5, 3, loss)
    lam = 0.2 * solvers.group_lasso_lambda_max(F, Y, loss)
    W, _ = solvers.group_lasso(F, Y, lam, loss)
    F_, Y_, lam_ = (xp.asarray(a, device=device) for a in (F, Y, lam))
    W_, _ = solvers.group_lasso(F_, Y_, lam_, loss)
    np.testing.assert_allclose(to_numpy(W_), W, atol=1e-9)
    for ours, theirs in zip(solvers.group_lasso_vjp(F, Y, lam, W, W, loss), solvers.group_lasso_vjp(F_, Y_, lam_, W_, W_, loss)):
        np.testing.assert_allclose(to_numpy(theirs), ours, atol=1e-8)
