"""Properties that hold for any input: of solvers (random shapes, extreme magnitudes, scalings, permutations) and metrics."""
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import metrics
import solvers

seeds, sizes = st.integers(0, 2 ** 32 - 1), st.integers(1, 8)
quick = settings(max_examples=25, deadline=None)


def problem(seed, T, n, m, exponent=0):
    rng = np.random.default_rng(seed)
    return rng, 10.0 ** exponent * rng.standard_normal((T, n, m)), rng.standard_normal((T, n))


@quick
@given(seeds, st.integers(1, 3), st.integers(1, 12), sizes, st.floats(0.01, 1), st.integers(-6, 6))
def test_lasso_does_not_see_units(seed, T, n, m, eps, exponent):
    """w of (c F, y) is w/c, of (F, c y) is c w, with lam in the same units."""
    _, F, y = problem(seed, T, n, m)
    lam, c = eps * solvers.lasso_lambda_max(F, y), 10.0 ** exponent
    w, info = solvers.lasso(F, y, lam)
    assert info["converged"].all()
    for scaled, expected in ((solvers.lasso(c * F, y, c * lam)[0], w / c), (solvers.lasso(F, c * y, c * lam)[0], c * w)):
        np.testing.assert_allclose(np.einsum("tnm,tm->tn", F, scaled), np.einsum("tnm,tm->tn", F, expected), rtol=1e-6,
                                   atol=1e-8 * np.abs(np.einsum("tnm,tm->tn", F, expected)).max() + 1e-300)


@quick
@given(seeds, st.integers(2, 12), st.integers(1, 6), st.floats(0.01, 0.9))
def test_lasso_follows_permutations_and_signs_of_features(seed, n, m, eps):
    rng, F, y = problem(seed, 2, n + m, m)
    order, signs = rng.permutation(m), rng.choice([-1.0, 1.0], m)
    lam = eps * solvers.lasso_lambda_max(F, y)
    np.testing.assert_allclose(solvers.lasso(F[..., order] * signs, y, lam)[0], solvers.lasso(F, y, lam)[0][:, order] * signs, atol=1e-9)


@quick
@given(seeds, st.integers(2, 12), st.integers(1, 6), st.floats(1e-3, 10))
def test_ridge_follows_rotations(seed, n, m, lam):
    rng, F, y = problem(seed, 2, n, m)
    Q = np.linalg.qr(rng.standard_normal((m, m)))[0]
    np.testing.assert_allclose(solvers.ridge(F @ Q, y, lam), solvers.ridge(F, y, lam) @ Q, atol=1e-8)


@quick
@given(seeds, st.integers(2, 12), st.integers(1, 6), st.integers(2, 4), st.floats(0.02, 0.9))
def test_group_lasso_follows_rotations_of_the_outputs(seed, n, m, k, eps):
    rng, F, _ = problem(seed, 2, n + m, m)
    Y, Q = rng.standard_normal((2, n + m, k)), np.linalg.qr(rng.standard_normal((k, k)))[0]
    lam = eps * solvers.group_lasso_lambda_max(F, Y)
    np.testing.assert_allclose(solvers.group_lasso(F, Y @ Q, lam)[0], Q.T @ solvers.group_lasso(F, Y, lam)[0], atol=1e-7)


@quick
@given(seeds, st.integers(2, 4), st.integers(1, 4), st.integers(1, 9), st.floats(0, 0.9), st.floats(-2, 2))
def test_the_svm_is_optimal_and_follows_permutations(seed, k, per_class, m, share, log_lam2):
    rng = np.random.default_rng(seed)
    Y = np.eye(k)[np.repeat(np.arange(k), per_class)][None]
    F, lam2 = rng.standard_normal((1, k * per_class, m)), 10.0 ** log_lam2
    lam1 = share * solvers.svm_lambda_max(F, Y)
    W, Lam, info = solvers.group_svm(F, Y, lam1, lam2)
    assert info["converged"].all() and (Lam >= 0).all() and np.allclose(Lam.sum(axis=2), 1)
    features, classes, samples = rng.permutation(m), rng.permutation(k), rng.permutation(k * per_class)
    W_other = solvers.group_svm(F[:, samples][..., features], Y[:, samples][..., classes], lam1, lam2)[0]
    np.testing.assert_allclose(W_other, W[:, classes][..., features], atol=1e-3 * np.abs(W).max() + 1e-9)


@quick
@given(seeds, st.integers(2, 6), st.sampled_from([1e-150, 1e-8, 1.0, 1e8, 1e150]))
def test_the_simplex_projection_is_in_the_simplex_and_the_nearest(seed, k, scale):
    rng = np.random.default_rng(seed)
    V = scale * rng.standard_normal((5, k))
    x = solvers.project_simplex(V)
    assert (x >= 0).all() and np.allclose(x.sum(axis=1), 1)
    corners = np.eye(k)
    for corner in corners:                                                  # <V - x, corner - x> <= 0 for every corner
        assert (((V - x) * (corner - x)).sum(axis=1) <= 1e-9 * max(scale, 1)).all()


@quick
@given(seeds, st.integers(1, 4), st.integers(2, 6), st.booleans())
def test_the_entropy_of_importances_is_bounded_and_does_not_see_scale(seed, T, m, pooled):
    phi = np.random.default_rng(seed).standard_normal((T, 1, m))
    H = solvers.sharing_entropy(phi, pooled)
    assert -1e-12 <= H <= np.log(m) + 1e-12
    np.testing.assert_allclose(solvers.sharing_entropy(1e-7 * phi, pooled), H, atol=1e-9)
    alone = np.zeros((T, 1, m))
    alone[..., 0] = 1
    assert abs(solvers.sharing_entropy(alone, pooled)) < 1e-12


def one_sample(F, y):
    return solvers.lasso(F, y, 0.1 * solvers.lasso_lambda_max(F, y))


def test_a_task_of_one_sample_and_one_feature_and_constant_labels():
    F, y = np.full((1, 1, 1), 2.0), np.full((1, 1), 3.0)
    w, info = one_sample(F, y)
    np.testing.assert_allclose(w, [[(6 - 0.6) / 4]])
    assert info["converged"].all()
    constant = one_sample(np.random.default_rng(0).standard_normal((2, 9, 4)), np.zeros((2, 9)))
    assert not constant[0].any() and constant[1]["converged"].all()
    F, Y = np.random.default_rng(0).standard_normal((2, 9, 4)), np.ones((2, 9, 1))
    phi, info = solvers.sparse_sharing(F, Y, 0.1, 0.0)                      # labels of one class: still a minimum
    assert info["converged"]


@quick
@given(seeds, st.integers(2, 6), st.integers(-9, 9))
def test_scores_do_not_see_permutations_scales_and_shifts(seed, d, exponent):
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((60, d))
    z_hat = z @ rng.standard_normal((d, d)) + 0.3 * rng.standard_normal((60, d))
    changed = z_hat[:, rng.permutation(d)] * (10.0 ** exponent * rng.choice([-1, 1], d)) + 5 * 10.0 ** exponent
    mine, theirs = metrics.scores(z, z_hat), metrics.scores(z, changed)
    for name in mine:
        assert -1e-9 <= mine[name] <= 1 + 1e-9
        np.testing.assert_allclose(mine[name], theirs[name], atol=1e-5)
    assert mine["r"] >= mine["mcc"] - 1e-9


@quick
@given(seeds, st.integers(2, 5))
def test_r_does_not_see_linear_maps(seed, d):
    rng = np.random.default_rng(seed)
    z, z_hat = rng.standard_normal((80, d)), rng.standard_normal((80, d))
    A = np.linalg.qr(rng.standard_normal((d, d)))[0] * rng.uniform(0.5, 2, d)
    np.testing.assert_allclose(metrics.r_score(z, z_hat @ A), metrics.r_score(z, z_hat), atol=1e-8)


def test_a_kink_that_no_step_avoids_is_told():
    def f(arrays):
        return np.abs(arrays["x"]).sum(), lambda: {"x": np.sign(arrays["x"])}, [arrays["x"] > 0]
    assert not metrics.check_gradient(f, {"x": np.zeros(2)})["same"]
    assert metrics.check_gradient(f, {"x": np.array([2e-3, 1.0])})["same"]          # a smaller step stays on one side


def test_choosing_eps_needs_two_seeds(capsys):
    rng = np.random.default_rng(0)
    z = rng.standard_normal((300, 4))
    runs = [{"eps": eps, "mcc": 0.9 - eps, "seed": seed} for eps in (0.1, 0.3) for seed in (0, 1)]

    def features(row):                                                      # at 0.3 the seeds agree
        return z[:, ::1 - 2 * row["seed"]] if row["eps"] == 0.3 else z @ np.random.default_rng(row["seed"]).standard_normal((4, 4))
    metrics.choose_eps(runs, features)
    assert "chooses eps 0.3: MCC 0.6000, 0.2000 below the best, eps 0.1" in capsys.readouterr().out
    try:
        metrics.choose_eps(runs[:1], features)
    except ValueError as error:
        assert "two finished seeds" in str(error)
    else:
        raise AssertionError("one seed is not enough")
