"""Sparse rotation: exact where weights are, right where they are noisy, and sure only where it may
be; what comes of it in the experiment."""

import types

import numpy as np
import pytest
from conftest import to_numpy
from scipy.stats import norm

import data
import metrics
import solvers
from experiments import disentangle, rotation
from sparsetasks.rotation import Sample, halves, task_weights, unmix


def mixture(seed, d=5, K=40, p=0.4, noise=0.1, N=1000, rho=0.8):
    """Factors, mixed features of variance 1, targets of variance 1, each of some factors."""
    rng = np.random.default_rng(seed)
    z = rng.multivariate_normal(np.zeros(d), np.full((d, d), rho) + (1 - rho) * np.eye(d), N)
    W = rng.standard_normal((K, d)) * (rng.random((K, d)) < p)
    empty = ~W.any(axis=1)
    W[empty, rng.integers(d, size=empty.sum())] = 1
    Y = z @ W.T
    Y = Y + noise * Y.std(axis=0) * rng.standard_normal(Y.shape)
    F = z @ rng.standard_normal((d, d))
    return z, (F - F.mean(axis=0)) / F.std(axis=0), Y / Y.std(axis=0)


def exact(seed, **shape):
    """Factors, features, and weights without error."""
    z, F, Y = mixture(seed, noise=0.0, **shape)
    return z, F, np.linalg.lstsq(F, Y - Y.mean(axis=0), rcond=None)[0].T


def test_where_the_search_has_not_ended_nothing_is_identified(monkeypatch):
    _, F, Y = mixture(0)
    assert unmix(F, Y).identified.all()
    search = solvers.sparse_rotation

    def unfinished(*args, **settings):
        M, info = search(*args, **settings)
        return M, info | {"converged": np.False_}

    monkeypatch.setattr(solvers, "sparse_rotation", unfinished)
    assert not unmix(F, Y).identified.any()


# ------------------------------------------------------------------------------ the search


@pytest.mark.parametrize("seed", range(5))
def test_exact_weights_give_the_factors_to_rounding(seed):
    z, F, W = exact(seed, K=80, p=0.5)
    M, info = solvers.sparse_rotation(W, np.cov(F.T))
    assert metrics.mcc(z, F @ M) > 1 - 1e-9 and info["converged"] and info["identified"].all()
    np.testing.assert_allclose((F @ M).std(axis=0, ddof=1), 1)
    np.testing.assert_allclose(info["loadings"] @ M.T, W, atol=1e-9)
    large = np.abs(info["loadings"]) > 1e-4
    np.testing.assert_array_equal(large, info["on"] > 0.5)
    assert 0.3 < large.mean() < 0.7


def test_it_runs_on_every_library(backend):
    xp, device = backend
    z, F, W = exact(0)
    ours = solvers.sparse_rotation(W, np.cov(F.T), 0.01 * np.ones(40), starts=5)[0]
    W, C, errors = (xp.asarray(a, device=device) for a in (W, np.cov(F.T), 0.01 * np.ones(40)))
    M, info = solvers.sparse_rotation(W, C, errors, starts=5)
    np.testing.assert_allclose(to_numpy(M), ours, rtol=1e-6, atol=1e-8)
    assert to_numpy(info["on"]).shape == (40, 5)


def test_single_precision_is_enough():
    z, F, W = exact(1)
    M, info = solvers.sparse_rotation(np.float32(W), np.cov(F.T).astype(np.float32))
    assert M.dtype == np.float32 and metrics.mcc(z, F @ M) > 0.9999 and info["converged"]


def test_order_scale_and_sign_of_the_tasks_change_nothing():
    z, F, Y = mixture(3)
    W, errors, _ = task_weights(Sample(F - F.mean(axis=0), Y, None))
    C = np.cov(F.T)
    M, info = solvers.sparse_rotation(W, C, errors)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(W))
    scale = rng.choice([-1, 1], len(W)) * rng.uniform(0.1, 10, len(W))
    W_2, errors_2 = (scale[:, None] * W)[order], (scale[:, None, None] ** 2 * errors)[order]
    M_2, info_2 = solvers.sparse_rotation(W_2, C, errors_2)
    correlation = np.abs(M.T @ C @ M_2)
    assert (correlation.max(axis=0) > 1 - 1e-6).all() and (correlation.max(axis=1) > 1 - 1e-6).all()
    np.testing.assert_allclose(np.sort(info_2["apart"]), np.sort(info["apart"]), rtol=1e-4)


def test_its_certificate_is_a_slope_that_vanishes_and_fails_elsewhere():
    """Moving b_j along b_i leaves the likelihood as it is at the end, and not at a random basis."""
    _, F, W = exact(4)
    x, noise, whitening = solvers.white_tasks(W, np.cov(F.T), None)
    np.testing.assert_allclose(whitening @ whitening.T, np.linalg.inv(np.cov(F.T)), rtol=1e-6)
    M, info = solvers.sparse_rotation(W, np.cov(F.T), width=0.1)
    assert info["gap"] < 1e-6
    found = np.linalg.inv(np.linalg.solve(whitening, M))[None]
    other = solvers.random_bases(x, 1, seed=0).B
    for B, vanishes in ((found, True), (other, False)):
        bases = solvers.Bases(B, np.full((1, 5, 1), 0.5), np.var(B @ x.T, axis=2, keepdims=True))
        for _ in range(100):                                        # its prior
            loadings = solvers.expectation(x, noise, 0.01, bases)
            bases = solvers.maximisation(x, loadings, bases)._replace(B=B)
        slope, curvature = solvers.along_rows(x, loadings, bases)
        apart = ~np.eye(5, dtype=bool)
        slopes = numeric_slopes(x, noise, bases)
        np.testing.assert_allclose(slope[0][apart], slopes, rtol=1e-5, atol=1e-5)
        assert (np.abs(slope / curvature)[0][apart].max() < 1e-4) == vanishes


def numeric_slopes(x, noise, bases, h=1e-6):
    """Central differences of minus the log-likelihood a task along b_j + t b_i, i not j."""
    def log_p(B):
        total = solvers.expectation(x, noise, 0.01, bases._replace(B=B)).log_p.sum()
        return total / len(x) + np.linalg.slogdet(B[0])[1]

    m, slopes = x.shape[1], []
    for j, i in np.argwhere(~np.eye(m, dtype=bool)):
        step = np.zeros_like(bases.B)
        step[0, j] = h * bases.B[0, i] * np.sqrt(bases.tau2[0, j] / bases.tau2[0, i])
        slopes.append((log_p(bases.B - step) - log_p(bases.B + step)) / (2 * h))
    return slopes


def test_the_likelihood_is_that_of_the_prior():
    """By another library, task by task; and a step's prior from these loadings."""
    rng = np.random.default_rng(0)
    x, B = rng.standard_normal((7, 3)), rng.standard_normal((1, 3, 3))
    root = rng.standard_normal((7, 3, 3)) * 0.4
    prob, tau2, noise = np.array([0.2, 0.5, 0.9]), np.array([1.0, 2.0, 3.0]), root @ root.mT
    bases = solvers.Bases(B, prob[None, :, None], tau2[None, :, None])
    loadings = solvers.expectation(x, noise, 0.1, bases)
    expected, on = 0.0, np.zeros((3, 7))
    for k, j in np.ndindex(7, 3):
        b = B[0, j]
        v, e = b @ x[k], b @ noise[k] @ b
        slab, spike = (
            share * norm.pdf(v, scale=np.sqrt(variance))
            for share, variance in ((prob[j], tau2[j] + e), (1 - prob[j], 0.1 * tau2[j] + e)))
        expected += np.log(slab + spike)
        on[j, k] = slab / (slab + spike)
    expected += 7 * np.log(abs(np.linalg.det(B[0]))) + 7 * 3 / 2 * np.log(2 * np.pi)
    np.testing.assert_allclose(solvers.log_likelihood(loadings, bases), expected)
    np.testing.assert_allclose(loadings.on[0], on)
    step = solvers.maximisation(x, loadings, bases)
    np.testing.assert_allclose(step.prob[0, :, 0], on.mean(axis=1))
    least = (on * loadings.e[0]).sum(axis=1) / on.sum(axis=1)
    by_moments = (on * loadings.v[0] ** 2).sum(axis=1) / on.sum(axis=1) - least
    np.testing.assert_allclose(step.tau2[0, :, 0], np.maximum(by_moments, least), rtol=1e-6)
    assert (by_moments < least).any() and (by_moments > least).any()


def test_a_margin_is_a_share_and_a_number_of_tasks():
    """Two of two tasks that use feature 0 do without 1; of fifty that use 1, four do without 0."""
    few = np.array([[1, 0]] * 2 + [[0, 1]] * 6)
    found = solvers.identification(few.astype(float))
    np.testing.assert_allclose(found["apart"], 1)
    assert list(found["apart_tasks"]) == [2, 6] and list(found["identified"]) == [False, True]
    rare = np.array([[1, 0]] * 6 + [[1, 1]] * 46 + [[0, 1]] * 4)
    found = solvers.identification(rare.astype(float))
    np.testing.assert_allclose(found["apart"], [6 / 52, 4 / 50])
    assert not found["identified"].any()


def test_one_feature():
    M, info = solvers.sparse_rotation(np.ones((3, 1)), np.array([[4.0]]))
    assert np.abs(M) == pytest.approx(0.5) and info["identified"].all()


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda W, C: (W[:4], C), "4 tasks span 4 of 5 dimensions"),
        (lambda W, C: (W[:5], C), "5 tasks span 5 of 5 dimensions"),
        (lambda W, C: (np.repeat(W[:4], 5, axis=0), C), "20 tasks span 4 of 5"),
        (lambda W, C: (W * (np.arange(40) != 3)[:, None], C), "1 of 40 tasks have no weights"),
        (lambda W, C: (W, C[:4, :4]), "found (40, 5), (4, 4), None"),
        (lambda W, C: (W, np.ones((5, 5))), "linearly dependent"),
        (lambda W, C: (W, C + np.eye(5, k=1)), "C: found a matrix that is not symmetric"),
        (lambda W, C: (W * 1e160, C), "too large or too small"),
        (lambda W, C: (W * 1e-160, C), "too large or too small"),
        (lambda W, C: (W * np.nan, C), "not finite"),
        (lambda W, C: (W, C, np.ones(3)), "found (40, 5), (5, 5), (3,)"),
        (lambda W, C: (W.astype(int), C), "int64"),
        (lambda W, C: (W, C, None, 0.0, 0), "starts: found 0"),
        (lambda W, C: (W, C, None, 1.0), "width: found 1.0"),
        (lambda W, C: (W, C, None, float("nan")), "width: found nan"),
        (lambda W, C: (W, C, -np.ones(40)), "errors: found a negative"),
        (lambda W, C: (W, C, -np.ones((40, 1, 1)) * np.eye(5)), "errors: found a negative"),
    ],
)
def test_what_tells_no_basis_is_refused(change, words):
    _, F, W = exact(0)
    with pytest.raises(ValueError) as error:
        solvers.sparse_rotation(*change(W, np.cov(F.T)))
    assert words in str(error.value) and "\n" not in str(error.value)


# ------------------------------------------------------------------------------ unmix


@pytest.mark.parametrize(
    "shape, least",
    [
        ({}, 0.99),
        ({"K": 80, "p": 0.5}, 0.99),
        ({"d": 10, "K": 160, "p": 0.5}, 0.99),
        ({"d": 10, "K": 80, "p": 0.2, "noise": 0.5, "N": 300}, 0.99),
        ({"noise": 1.0, "N": 300}, 0.93),
    ],
)
def test_planted_mixtures_are_unmixed(shape, least):
    for seed in (0, 1):
        z, F, Y = mixture(seed, **shape)
        found = unmix(F, Y, splits=1, widths=(0.0,), starts=10)
        assert metrics.mcc(z, F @ found.M) > least
        assert found.loadings.shape == found.on.shape == (Y.shape[1], F.shape[1])
        np.testing.assert_allclose(((F - found.mean) @ found.M).std(axis=0), 1)


def test_stable_features_are_called_identified():
    z, F, Y = mixture(0, K=100)
    found = unmix(F, Y, splits=2, widths=(0.0,), starts=10)
    assert found.identified.all() and (found.stability > 0.98).all()


def test_what_never_comes_alone_is_the_one_not_told():
    """Factor 1 comes only with factor 0, whose weights may then hold any share of its own: 0 is
    told, and what is found for 1 has a share of 0."""
    rng = np.random.default_rng(0)
    on = rng.random((200, 4)) < 0.5
    on[:, 1] &= on[:, 0]
    on[~on.any(axis=1), 2] = True
    found, info = solvers.sparse_rotation(rng.standard_normal((200, 4)) * on, np.eye(4))
    factor = np.abs(found).argmax(axis=0)
    assert sorted(factor) == [0, 1, 2, 3]
    assert not info["identified"][factor == 1] and info["identified"][factor != 1].all()


def weights(rng, T, d, kind):
    """Weights that tell no basis."""
    if kind == "together":                                          # factors 0 and 1 always are
        on = rng.random((T, d)) < 0.5
        on[:, 1] = on[:, 0]
        on[~on.any(axis=1), 2] = True
        return rng.standard_normal((T, d)) * on
    return data.sample_tasks(rng, T, d, kind)


@pytest.mark.parametrize("kind", ["blocks-2", "blocks-3", "blocks-6", "gauss", "together"])
@pytest.mark.parametrize("T", [60, 300])
def test_tasks_that_violate_assumption_3_6_identify_no_basis(kind, T):
    rng = np.random.default_rng(T)
    z = rng.standard_normal((3000, 6)) @ np.linalg.cholesky(0.5 + 0.5 * np.eye(6)).T
    F = z @ rng.standard_normal((6, 6))
    index = rng.integers(len(z), size=(T, 40))
    Y = (z[index] @ weights(rng, T, 6, kind)[:, :, None])[..., 0]
    Y = Y + 0.1 * Y.std(axis=1, keepdims=True) * rng.standard_normal(Y.shape)
    found = unmix(F, Y, index, widths=(0.0,), splits=3, starts=10)
    assert not found.identified.all()
    if kind != "together" and T == 300:
        assert found.stability.min() < 0.95


@pytest.mark.parametrize("T", [99, 100])
def test_halves_are_disjoint(T):
    """Of rows; of tasks too from 20 m on, of which those with rows of their own keep them all."""
    F = np.arange(30.0)[:, None] + np.zeros((30, 5))
    Y = 100.0 * np.arange(30)[:, None] + np.arange(T)
    pair = halves(Sample(F, Y, None), np.random.default_rng(0))
    rows, tasks = ([set(a) for a in parts] for parts in zip(*(
        (half.F[:, 0], half.Y[0] % 100) for half in pair)))
    assert not rows[0] & rows[1] and len(rows[0] | rows[1]) == 30
    assert (len(tasks[0] & tasks[1]) == 0) == (T == 100) and len(tasks[0] | tasks[1]) == T
    for half in pair:
        np.testing.assert_array_equal(half.Y[:, 0] // 100, half.F[:, 0])    # still of its row
    index = np.arange(T)[:, None] * 0 + np.arange(8)
    own = halves(Sample(F, np.arange(T)[:, None] + index / 10, index), np.random.default_rng(0))
    for half in own:
        np.testing.assert_allclose(half.Y % 1 * 10, half.index)
        assert half.Y.shape == ((50, 8) if T == 100 else (99, 4))
    assert (own[0].index[0, 0] in own[1].index[0]) == (T == 100)


def test_gaps_and_what_cannot_be_fitted_are_left_out():
    z, F, Y = mixture(1)
    Y = np.where(np.random.default_rng(0).random(Y.shape) < 0.3, np.nan, Y)
    Y[:, 3] = 7.0                                                   # constant
    Y[6:, 4] = np.nan                                               # of six rows, m + 1
    Y[:6, 4] = np.arange(6)
    found = unmix(F, Y, splits=1, widths=(0.0,))
    assert metrics.mcc(z, F @ found.M) > 0.99
    assert not found.loadings[[3, 4]].any() and found.loadings[5].any()


def test_weights_and_their_errors_are_those_of_least_squares():
    """Of targets with gaps, and of tasks with rows of their own; deviations as they are seen."""
    rng = np.random.default_rng(0)
    F = rng.standard_normal((60, 3)) + 5
    Y = F @ rng.standard_normal((3, 4)) + rng.standard_normal((60, 4)) - 2
    Y[rng.random(Y.shape) < 0.2] = np.nan
    W, errors, kept = task_weights(Sample(F, Y, None))
    for k in range(4):
        rows = np.isfinite(Y[:, k])
        A = np.c_[F[rows], np.ones(rows.sum())]
        w, left, _, _ = np.linalg.lstsq(A, Y[rows, k], rcond=None)
        expected = left / (rows.sum() - 4) * np.linalg.inv(A.T @ A)[:3, :3]
        np.testing.assert_allclose(W[k], w[:3])
        np.testing.assert_allclose(errors[k], expected, rtol=1e-6)
    index = np.tile(np.arange(60), (2, 1))
    own, own_errors, _ = task_weights(Sample(F, np.nan_to_num(Y).T[:2], index))
    same, same_errors, _ = task_weights(Sample(F, np.nan_to_num(Y)[:, :2], None))
    np.testing.assert_allclose(own, same)
    np.testing.assert_allclose(own_errors, same_errors)
    assert kept.all()


def small_loadings(rng, size):
    """Targets of one factor each and a little of all others, 4 factors."""
    z = rng.standard_normal((2000, 4)) @ np.linalg.cholesky(0.3 + 0.7 * np.eye(4)).T
    W = np.tile(np.eye(4), (4, 1)) + size * rng.standard_normal((16, 4))
    return z, z @ rng.standard_normal((4, 4)), z @ W.T + 0.3 * rng.standard_normal((2000, 16))


def test_the_evidence_chooses_the_width_of_the_spike():
    z, F, Y = small_loadings(np.random.default_rng(0), size=0.15)
    found = unmix(F, Y, splits=1)
    assert found.width > 0 and metrics.mcc(z, F @ found.M) > 0.97
    z, F, Y = small_loadings(np.random.default_rng(0), size=0.0)
    assert unmix(F, Y, splits=1).width == 0
    z, F, Y = mixture(0)
    assert unmix(F, Y, splits=1).width == 0


def test_unmix_refuses_what_does_not_fit():
    z, F, Y = mixture(0)
    with pytest.raises(ValueError, match="4 tasks span 4 of 5"):
        unmix(F, Y[:, :4])
    with pytest.raises(ValueError, match=r"found \(1000, 5\), \(999, 40\), None"):
        unmix(F, Y[1:])
    with pytest.raises(ValueError, match="not finite"):
        unmix(F * np.inf, Y)
    with pytest.raises(ValueError, match="no target varies over 7 rows"):
        unmix(F, np.full_like(Y, np.nan))
    with pytest.raises(ValueError, match="no target varies"):
        unmix(np.c_[F[:, :4], np.ones(len(F))], Y)
    for index in ([[0.5, 1.5]], [[0, 5000]]):
        with pytest.raises(ValueError, match="index: expected rows of F"):
            unmix(F, np.ones((1, 2)), index)


def test_units_change_nothing():
    z, F, Y = mixture(2)
    rng = np.random.default_rng(0)
    usual = unmix(F, Y, splits=1, widths=(0.0,))
    units, targets = 10.0 ** rng.integers(-9, 9, 5), 10.0 ** rng.integers(-9, 9, 40)
    odd = unmix(F * units, Y * targets + 100 * targets, splits=1, widths=(0.0,))
    np.testing.assert_allclose(odd.M * units[:, None], usual.M, rtol=1e-4, atol=1e-6)
    dates = unmix(F, Y + 1e9, splits=1, widths=(0.0,))
    np.testing.assert_allclose(dates.M, usual.M, rtol=1e-3, atol=1e-3)
    _, _, kept = task_weights(Sample(F, np.c_[Y[:, :2] + 1e9, np.full(len(F), 0.1)], None))
    assert kept.tolist() == [True, True, False]


def test_the_mean_is_in_double_precision():
    _, F, Y = mixture(2)
    F = np.float32(F + 1000)
    found = unmix(F, Y, splits=1, widths=(0.0,))
    np.testing.assert_allclose(found.mean, F.mean(axis=0, dtype=np.float64), rtol=1e-12)


def test_what_no_search_can_mean_is_refused():
    _, F, Y = mixture(2)
    for how in ({"splits": 0}, {"widths": ()}):
        with pytest.raises(ValueError, match="expected one of each, or more"):
            unmix(F, Y, **how)
    with pytest.raises(ValueError, match="index"):
        unmix(F, Y[:40, :30], np.arange(40))


# ------------------------------------------------------------------------------ the experiment


def test_fresh_tasks_are_of_the_run():
    z = np.random.default_rng(0).standard_normal((500, 6))
    Y, index = disentangle.fresh_tasks(disentangle.Disentangle(samples=30), z, 2000)
    assert Y.shape == index.shape == (1000, 30)
    left = [np.linalg.lstsq(z[i], y, rcond=None)[1][0] / np.var(y) / 30 for i, y in zip(index, Y)]
    assert 0.003 < np.mean(left) < 0.03                             # labels of noise 0.1
    for K in (7, 1200):                                             # each once, at most 1,000
        finite = disentangle.Disentangle(tasks=f"finite-{K}", samples=30)
        assert disentangle.fresh_tasks(finite, z, 10)[0].shape == (min(K, 1000), 30)
    for several in ({}, {"tasks": "finite-7"}, {"tasks": "finite-7", "likelihood": "categorical"}):
        several = disentangle.Disentangle(outputs=3, samples=30, **several)
        Y, index = disentangle.fresh_tasks(several, z, 10)
        assert Y.shape == (30, 30) and (Y.std(axis=1) > 0).mean() > 0.8
        assert (index[0] == index[10]).all() and (index[0] != index[1]).any()


def test_a_rotation_scores_mixed_features_as_factors():
    rng = np.random.default_rng(0)
    z = rng.standard_normal((2000, 6))
    F = z @ rng.standard_normal((6, 6))
    config = disentangle.Disentangle(samples=30)
    scores = disentangle.score_rotation(F, z, F, disentangle.fresh_tasks(config, z, 200))
    assert scores["mcc_rotated"] > 0.99 and scores["identified"] == 6
    few = disentangle.score_rotation(F, z, F, disentangle.fresh_tasks(config, z, 5))
    assert few["identified"] == 0 and few["mcc_rotated"] == metrics.mcc(z, F)


def row(head, eps, seed, rho=0.9, tasks="bernoulli-gauss", samples=25, **scores):
    """A row of the sweep."""
    told = {"run": f"{head}{eps}{seed}{rho}{tasks}{samples}", "head": head, "eps": eps}
    return told | {"seed": seed, "rho": rho, "tasks": tasks, "samples": samples, **scores}


def test_the_curves_take_the_best_eps_and_the_right_runs():
    rows = [
        row("inner-lasso", 0.3, 0, mcc=0.9, mcc_ica=0.1),
        row("inner-lasso", 0.1, 0, mcc=0.8, mcc_ica=0.1),
        row("inner-lasso", 0.3, 0, samples=100, mcc=0.95, mcc_ica=0.1),
        row("inner-lasso", 0.3, 0, samples=50, tasks="finite-10", mcc=0.7, mcc_ica=0.1),
        row("inner-ridge", 0.1, 0, mcc=0.2, mcc_ica=0.6),
        row("inner-ridge", 0.1, 0, rho=0.5, mcc=0.2, mcc_ica=0.65),
    ]
    points = [
        rotation.Point("", 0.9, "none", 0.0, 0, "bernoulli-gauss", 1000, n, mcc, 6, 1.0)
        for n, mcc in ((50, 0.94), (100, 0.96))
    ]
    points.append(rotation.Point("", 0.9, "none", 0.0, 0, "finite-10", 10, 50, 0.6, 0, 0.5))
    found = {curve.label: curve.groups for curve in rotation.curves(rows, points, "n")}
    assert found["inner-Lasso, not rotated"] == {25: [0.9], 100: [0.95]}
    assert found["no penalty + rotation"] == {50: [0.94], 100: [0.96]}
    assert found["inner-Ridge + ICA"] == {50: [0.6], 100: [0.6]}
    found = {curve.label: curve.groups for curve in rotation.curves(rows, points, "T")}
    assert found["inner-Lasso, not rotated"] == {10: [0.7]}
    assert found["no penalty on this pool + rotation"] == {10: [0.6]}
    found = {curve.label: curve.groups for curve in rotation.curves(rows, points, "rho")}
    assert found["inner-Ridge + ICA"] == {0.5: [0.65], 0.9: [0.6]}


def test_points_of_an_encoder_that_was_made_anew_are_dropped():
    own = rotation.Point("a", 0.9, "none", 0.0, 0, "bernoulli-gauss", 1000, 50, 0.9, 6, 1.0, "new")
    points = [own, own._replace(code="old"), own._replace(code=""), own._replace(run="b", code="x"),
              own._replace(run="c", code="old")]
    rows = [{"run": "a", "folder": "there", "code": "new"},
            {"run": "b", "folder": None, "code": "y"}]
    assert rotation.of_these_runs(points, rows) == [points[0], *points[2:]]


def test_points_are_of_features_rotated_by_tasks_on_their_own_images(monkeypatch):
    shapes = data.Shapes3D()
    z, p = data.latents(shapes, 1.0, 0.9)
    mix, asked = np.random.default_rng(0).standard_normal((6, 6)), []
    fresh = disentangle.fresh_tasks

    def tasks(config, z, count, seed):
        asked.append((config.tasks, config.samples, count, seed))
        return fresh(config, z, count, seed)

    parts = types.SimpleNamespace(encoder=None, snapshot=types.SimpleNamespace(params=None))
    monkeypatch.setattr(rotation.results, "load_checkpoint", lambda path: parts)
    monkeypatch.setattr(disentangle, "features_of", lambda *args: z[args[-1]] @ mix)
    monkeypatch.setattr(disentangle, "fresh_tasks", tasks)
    own = row("inner-ridge", 0.1, 3, alpha=1.0, folder="there", code="c")
    points = rotation.rotated(own, [(100, 30), (60, 40)], shapes)
    assert asked == [("bernoulli-gauss", n, T, [30_001, 3]) for T, n in ((100, 30), (60, 40))]
    assert [(p.T, p.n, p.head, p.seed, p.code) for p in points] == [
        (100, 30, "inner-ridge", 3, "c"), (60, 40, "inner-ridge", 3, "c")]
    assert min(p.mcc for p in points) > 0.98
    pool = row("inner-lasso", 0.0, 3, tasks="finite-10", alpha=1.0, folder="there", code="c")
    (point,) = rotation.rotated(pool, rotation.grid_of(pool), shapes)
    assert asked[-1] == ("finite-10", 50, 10, [30_001, 3])
    assert (point.trained, point.head, point.T) == ("finite-10", "none", 10)


def test_each_run_is_rotated_by_the_tasks_that_its_curves_show():
    assert rotation.grid_of(row("inner-lasso", 0.3, 0)) == [
        *((1000, n) for n in (10, 25, 50, 100, 400)), *((T, 50) for T in (10, 30, 100, 300)),
        (200, 25)]
    assert rotation.grid_of(row("inner-lasso", 0.3, 0, rho=0.5)) == [(1000, 50), (200, 25)]
    assert rotation.grid_of(row("inner-lasso", 0.3, 0, samples=100)) == []
    pool = row("inner-lasso", 0.0, 0, samples=50, tasks="finite-100")
    assert rotation.grid_of(pool) == [(100, 50)]
    assert rotation.grid_of(pool | {"eps": 0.3}) == []


def test_the_best_eps_of_a_curve_is_that_of_the_highest_mean():
    rows = [row("inner-lasso", eps, seed, mcc=mcc) for eps, own in
            ((0.1, (0.5, 0.95)), (0.3, (0.8, 0.8))) for seed, mcc in enumerate(own)]
    assert rotation.best(rows, "rho", "mcc") == {0.9: [0.8, 0.8]}
