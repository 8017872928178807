"""Best subsets, the minimax concave penalty, refitted and unfinished Lassos."""

import itertools

import numpy as np
import pytest

import solvers
from experiments import inner_problems as inner


def problem(seed=0, T=5, n=20, m=5):
    rng = np.random.default_rng(seed)
    F = rng.standard_normal((T, n, m)) @ (0.5 * np.eye(m) + 0.5)
    F = (F - F.mean(1, keepdims=True)) / F.std(1, keepdims=True)
    w = rng.standard_normal((T, m)) * (rng.random((T, m)) < 0.5)
    return F, np.vecdot(F, w[:, None]) + 0.3 * rng.standard_normal((T, n))


def objective(F, y, w):
    return np.mean((y - np.vecdot(F, w[:, None])) ** 2, axis=1) / 2


def by_hand(F, y, allowed):
    """The least of the objective plus its price, over supports one by one with NumPy's lstsq."""
    n, m = F.shape
    best = (np.inf, None)
    for size in range(m + 1):
        for S in itertools.combinations(range(m), size):
            w = np.zeros(m)
            if S:
                w[list(S)] = np.linalg.lstsq(F[:, S], y, rcond=None)[0]
            cost = np.mean((y - F @ w) ** 2) / 2 + allowed(size)
            best = min(best, (cost, tuple(w)))
    return best


def test_the_best_subset_is_that_of_a_search_one_by_one():
    F, y = problem()
    price = 0.1 * inner.price_max(F, y)
    w, info = inner.best_subset(F, y, price)
    for t in range(len(F)):
        cost, own = by_hand(F[t], y[t], lambda size, t=t: price[t] * size)
        np.testing.assert_allclose(w[t], own, atol=1e-10)
        assert cost == pytest.approx(objective(F, y, w)[t] + price[t] * np.sum(w[t] != 0))
    assert info["converged"].all() and (info["margin"] > 0).all()
    assert 0 < np.sum(w != 0) < w.size


def test_of_a_size_no_more_features_are_used():
    F, y = problem(1)
    size = np.array([0, 1, 2, 3, 5])
    w, info = inner.best_subset_of(F, y, size)
    assert (np.sum(w != 0, axis=1) == size).all()  # more always fit better
    for t in range(len(F)):
        _, own = by_hand(F[t], y[t], lambda k, t=t: 0 if k <= size[t] else np.inf)
        np.testing.assert_allclose(w[t], own, atol=1e-10)
    assert info["converged"].all()


def test_price_max_is_the_least_that_zeroes_all():
    F, y = problem(2)
    top = inner.price_max(F, y)
    assert (inner.best_subset(F, y, 1.0001 * top)[0] == 0).all()
    assert (inner.best_subset(F, y, 0.9999 * top)[0] != 0).any(axis=1).all()


def test_the_margin_is_to_the_next_best():
    F, y = problem(3)
    price = 0.1 * inner.price_max(F, y)
    w, info = inner.best_subset(F, y, price)
    each, gain = inner.on_all_supports(F, y)
    costs = price[:, None] * inner.supports(5).sum(1) - gain
    ordered = np.sort(costs, axis=1)
    np.testing.assert_allclose(info["margin"], ordered[:, 1] - ordered[:, 0])


def test_a_relaxed_lasso_fits_without_shrinking():
    F, y = problem(4)
    lam = 0.2 * solvers.lasso_lambda_max(F, y)
    chosen, _ = solvers.lasso(F, y, lam)
    w, _ = inner.relaxed_lasso(F, y, lam)
    assert np.array_equal(w != 0, chosen != 0)
    for t in range(len(F)):
        S = chosen[t] != 0
        np.testing.assert_allclose(w[t][S], np.linalg.lstsq(F[t][:, S], y[t], rcond=None)[0])
    assert np.abs(w).sum() > np.abs(chosen).sum()


def concave(F, y, w, lam, gamma=inner.GAMMA):
    a = np.abs(w)
    near = lam * a - a**2 / (2 * gamma)
    return objective(F, y, w[None])[0] + np.where(a <= gamma * lam, near, gamma * lam**2 / 2).sum()


def test_mcp_is_stationary_and_no_step_of_a_weight_is_better():
    F, y = problem(5)
    lam = 0.2 * solvers.lasso_lambda_max(F, y)
    w, info = inner.mcp(F, y, lam)
    assert info["converged"].all() and info["gap"].max() <= 1e-10
    for t in range(len(F)):  # a minimum along each coordinate
        here = concave(F[t : t + 1], y[t : t + 1], w[t], lam[t])
        for j in range(w.shape[1]):
            for step in (1e-4, -1e-4, 0.1, -0.1):
                other = w[t].copy()
                other[j] += step
                assert concave(F[t : t + 1], y[t : t + 1], other, lam[t]) > here - 1e-12
    lasso, _ = solvers.lasso(F, y, lam)
    assert np.abs(w).sum() > np.abs(lasso).sum()  # large weights are not shrunk
    big = np.abs(w) > inner.GAMMA * lam[:, None]
    assert big.any()
    with pytest.raises(ValueError, match="1/gamma"):
        inner.mcp(0.1 * F, y, lam)


def test_the_concave_fit_ends_at_no_saddle():
    """Of correlated features Newton's step alone would end at some."""
    rng = np.random.default_rng(0)
    mix = np.linalg.cholesky(0.1 * np.eye(6) + 0.9).T
    F = rng.standard_normal((100, 25, 6)) @ mix
    F = (F - F.mean(1, keepdims=True)) / F.std(1, keepdims=True)
    w = rng.standard_normal((100, 6)) * (rng.random((100, 6)) < 0.5)
    y = np.vecdot(F, w[:, None]) + 0.1 * rng.standard_normal((100, 25))
    lam = 0.3 * solvers.lasso_lambda_max(F, y)
    found, info = inner.mcp(F, y, lam)
    assert info["converged"].all()
    A, S, _ = inner.mcp_curvature(found, solvers.gram(F), lam, inner.GAMMA)
    for t in range(100):
        on = np.flatnonzero(S[t])
        assert not len(on) or np.linalg.eigvalsh(A[t][np.ix_(on, on)])[0] > 0


def test_an_unfinished_lasso_comes_near_the_solution():
    F, y = problem(6)
    lam = 0.1 * solvers.lasso_lambda_max(F, y)
    exact, _ = solvers.lasso(F, y, lam)
    errors, sweeps = [], []
    for tolerance in (1e-1, 1e-3, 1e-6, 1e-12):
        w, info = inner.unfinished_lasso(F, y, lam, tolerance)
        assert info["gap"].max() <= tolerance
        errors.append(np.abs(w - exact).max())
        sweeps.append(info["n_iter"])
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-10
    assert sweeps == sorted(sweeps) and sweeps[-1] > sweeps[0]
    w, info = inner.proximal_step(F, y, lam)
    assert info["gap"].max() > 1e-3 and np.abs(w - exact).max() > errors[1]
    gone, _ = inner.proximal_step(F, y, 1.01 * solvers.lasso_lambda_max(F, y))
    assert (gone == 0).all()


def test_fewer_samples_than_features_and_too_many_features_are_refused():
    F, y = problem(7, n=4)
    for fit in (inner.best_subset, inner.relaxed_lasso, inner.mcp):
        with pytest.raises(ValueError, match="n >= m"):
            fit(F, y, np.ones(len(F)))
    F, y = problem(8)
    F[1, :, 3] = 0
    for sweeps in (0, 3):  # what is told is of the w that is returned
        w, info = inner.unfinished_lasso(F, y, 0.1, 1e-15, sweeps)
        q = solvers.correlations(F, y) - solvers.matvec(solvers.gram(F), w)
        missed = solvers.lasso_violation(q, np.full(len(F), 0.1), w).max(axis=1)
        np.testing.assert_allclose(info["gap"], missed / solvers.lasso_lambda_max(F, y))
        assert info["n_iter"] == sweeps
    w, info = inner.unfinished_lasso(F, y, 0.1, 1e-8)
    assert (info["gap"] <= 1e-8).all() and w[1, 3] == 0  # a column of zeros is not used
    with pytest.raises(ValueError, match="dependent"):
        inner.best_subset_of(F, y, 2)
    F[1, 0, 3] = np.nan
    with pytest.raises(ValueError, match="finite"):
        inner.best_subset(F, y, np.ones(len(F)))
    with pytest.raises(ValueError, match="at most 10"):
        inner.best_subset(np.ones((1, 20, 11)), np.ones((1, 20)), np.ones(1))
