"""Every solver by its optimality conditions, by another library, by properties."""

import time
import warnings

import fuzz_solvers
import numpy as np
import pytest
import scipy.optimize
from conftest import to_numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Lasso, Ridge
from threadpoolctl import threadpool_info, threadpool_limits

import data
import solvers
import sparsedis

# ------------------------------------------------------------------------------ Lasso


def problem(T, n, m, correlation=0.0, seed=0, density=0.5):
    rng = np.random.default_rng(seed)
    F = (
        rng.standard_normal((T, n, m))
        @ np.linalg.cholesky((1 - correlation) * np.eye(m) + correlation).T
    )
    w = rng.standard_normal((T, m)) * (rng.random((T, m)) < density)
    y = np.vecdot(F, w[:, None, :])
    return F, y + 0.1 * rng.standard_normal(y.shape)


def test_lambda_max_is_the_threshold():
    F, y = problem(4, 30, 5)
    lam = solvers.lasso_lambda_max(F, y)
    assert not solvers.lasso(F, y, lam)[0].any()
    assert (np.count_nonzero(solvers.lasso(F, y, 0.999 * lam)[0], axis=1) == 1).all()


def violation(F, y, lam, w):
    """The optimality conditions of the Lasso, written independently of the solver."""
    worst = 0.0
    for t in range(len(F)):
        g = F[t].T @ (F[t] @ w[t] - y[t]) / F.shape[1]
        lam_t = np.broadcast_to(lam, len(F))[t]
        for j in range(F.shape[2]):
            worst = max(
                worst,
                abs(g[j] + lam_t * np.sign(w[t, j])) if w[t, j] else max(abs(g[j]) - lam_t, 0),
            )
    return worst


@pytest.mark.parametrize("eps", [0.01, 0.1, 0.3, 0.9])
@pytest.mark.parametrize(
    "T, n, m, correlation",
    [
        (7, 50, 6, 0.0),
        (7, 50, 6, 0.99),
        (3, 20, 40, 0.9),
        (4, 2, 5, 0.0),
        (5, 30, 1, 0.0),
        (2, 50, 100, 0.9),
    ],
)
def test_lasso_is_optimal(T, n, m, correlation, eps):
    F, y = problem(T, n, m, correlation)
    lam = eps * solvers.lasso_lambda_max(F, y)
    w, info = solvers.lasso(F, y, lam)
    assert info["converged"].all() and violation(F, y, lam, w) <= 1e-10


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 4),
    st.integers(2, 12),
    st.integers(1, 12),
    st.floats(0.001, 1.2),
    st.sampled_from([0.0, 0.5, 0.99]),
)
def test_lasso_is_optimal_on_random_shapes(seed, T, n, m, eps, correlation):
    F, y = problem(T, n, m, correlation, seed)
    lam = eps * solvers.lasso_lambda_max(F, y)
    w, info = solvers.lasso(F, y, lam)
    assert info["converged"].all() and violation(F, y, lam, w) <= 1e-10
    if eps > 1:
        assert not w.any()


def test_lasso_degenerate_cases():
    F, y = problem(3, 30, 5)
    F[:, :, 2] = 0  # a feature that never varies
    w, info = solvers.lasso(F, y, 0.05)
    assert violation(F, y, 0.05, w) <= 1e-10 and not w[:, 2].any() and info["converged"].all()
    w, info = solvers.lasso(F, np.zeros_like(y), 0.1)  # nothing to explain
    assert not w.any() and info["converged"].all()
    w, info = solvers.lasso(np.zeros_like(F), y, 0.1)  # nothing to explain it with
    assert not w.any() and info["converged"].all()
    F[:, :, 3] = F[:, :, 1]  # equal columns: singular supports
    F[:, :, 4] = -F[:, :, 1]
    for lam in (0.0, 0.01):
        w, info = solvers.lasso(F, y, lam)
        assert violation(F, y, lam, w) <= 1e-10 and info["converged"].all()
        dF, dy, dlam = solvers.lasso_vjp(F, y, lam, w, np.ones_like(w))
        assert np.isfinite(dF).all() and np.isfinite(dy).all() and np.isfinite(dlam).all()


def test_a_lasso_of_more_features_than_samples_without_a_penalty_has_ridge_s_derivative():
    """At lam = 0 the minimiser of least norm, beside tasks with a penalty; m = 30: gathered."""
    rng = np.random.default_rng(0)
    for m in (6, 30):
        F, y = rng.standard_normal((3, 4, m)), rng.standard_normal((3, 4))
        lam = np.array([0.0, 0.1, 0.0])
        w, info = solvers.lasso(F, y, lam)
        np.testing.assert_allclose(w[::2], solvers.ridge(F, y, 0.0)[::2], atol=1e-12)
        assert info["converged"].all()
        along, dw = rng.standard_normal(F.shape), rng.standard_normal(w.shape)
        ahead, behind = (solvers.lasso(F + h * along, y, lam)[0] for h in (1e-6, -1e-6))
        dF, _, _ = solvers.lasso_vjp(F, y, lam, w, dw)
        found, told = ((ahead - behind) * dw / 2e-6).sum(axis=1), (dF * along).sum(axis=(1, 2))
        np.testing.assert_allclose(told, found, rtol=1e-6)


def test_without_a_penalty_correlated_features_have_ridge_s_solution_too():
    """q is not known to 1e-12 there, and a search would leave the solution of least norm."""
    rng = np.random.default_rng(26)
    root = np.linalg.cholesky(0.999 + 0.001 * np.eye(30))
    F, y = rng.standard_normal((20, 17, 30)) @ root.T, rng.standard_normal((20, 17))
    w, info = solvers.lasso(F, y, 0.0)
    np.testing.assert_allclose(w, solvers.ridge(F, y, 0.0), rtol=1e-9)
    assert info["converged"].all() and info["gap"].max() < 1e-8


@pytest.mark.parametrize("k", [1, 3])
def test_classes_that_features_separate_have_no_minimiser_without_a_penalty(k):
    rng, several = np.random.default_rng(0), max(k, 2)
    F, Y = rng.standard_normal((40, 8, 3)), np.eye(several)[rng.integers(several, size=(40, 8))]
    Y[:, :3] = np.eye(several)[np.arange(3) % several]
    F[0, :, :several] = 4 * Y[0] - 2 + 0.1 * F[0, :, :several]      # these tell the class
    F[1, :, 0] = np.arange(8) == 0                                 # this tells one sample's
    less = np.array([falls_for_ever(*task) for task in zip(F, Y, strict=True)])
    assert less[:2].all() and 5 < less.sum() < 35
    Y = Y[..., :1] if k == 1 else Y
    for lam, told in ((0.0, ~less), (0.01, ~less | True)):
        _, info = solvers.group_lasso(F, Y, lam, "logistic")
        np.testing.assert_array_equal(info["converged"], told)
    assert not solvers.group_lasso(F[:1], Y[:1], 1e-14, "logistic")[1]["converged"].any()
    with_less = solvers.group_lasso(F[:, :2], Y[:, :2], 0.0)[1]["converged"]
    assert not with_less.any()  # squared: of two samples and three features


def falls_for_ever(F, Y):
    """Whether some W raises the score of a sample's class over another's and never lowers it."""
    (n, m), k = F.shape, Y.shape[1]
    over = (Y[:, None, :, None] - np.eye(k)[..., None]) * F[:, None, None, :]  # (n, k, k, m)
    over = over.reshape(n * k, k * m)
    found = scipy.optimize.linprog(-over.sum(axis=0), -over, np.zeros(n * k), bounds=(-1, 1))
    return -found.fun > 1e-6


def test_a_svm_of_large_features_is_not_called_solved_where_its_weights_are_wrong():
    """Lam is 1e-12 off the classes there, and the gap is 1e-12 of n."""
    Y = np.eye(3)[np.arange(10) % 3][None]
    for size in (1e3, 1e6):
        rng = np.random.default_rng(5)
        F = size * (rng.standard_normal((1, 10, 4)) + 3 * (Y @ rng.standard_normal((3, 4))))
        W, _, info = solvers.group_svm(F, Y, 0.0, 10.0)
        other, _, told = solvers.group_svm(F, Y, 0.0, 10.0, method="pbcd", max_iter=300)
        assert info["converged"].all() and told["converged"].all()
        np.testing.assert_allclose(other, W, atol=1e-6 * np.abs(W).max())


@pytest.mark.parametrize("case", ["zero", "twice", "one class"])
def test_pbcd_goes_on_where_the_face_of_its_first_point_was_wrong(case):
    for seed in (0, 1, 2, 3):
        rng = np.random.default_rng(seed)
        F, Y = rng.standard_normal((1, 6, 4)), np.eye(3)[rng.integers(3, size=(1, 6))]
        if case == "zero":
            F[:, 0] = 0
        if case == "twice":
            F[:, 0], Y[:, 0] = F[:, 1], Y[:, 1]
        if case == "one class":
            Y[...] = [0, 1, 0]
        lam1 = 0.2 * solvers.svm_lambda_max(F, Y)
        W, _, info = solvers.group_svm(F, Y, lam1, 1.0, method="pbcd", max_iter=600)
        assert info["converged"].all()
        np.testing.assert_allclose(W, solvers.group_svm(F, Y, lam1, 1.0)[0], atol=1e-6)


def test_labels_of_the_wrong_number_of_dimensions_are_refused():
    F, Y = problem(3, 8, 4)[0], np.eye(2)[np.zeros((3, 8), int)]
    for of_one in (solvers.lasso, solvers.ridge):
        with pytest.raises(ValueError, match=r"expected F \(T, n, m\) and y \(T, n\) of one"):
            of_one(F, Y, 0.1)
    for of_several in (solvers.group_lasso, lambda *a: solvers.group_svm(*a, 1.0)):
        with pytest.raises(ValueError, match=r"and Y \(T, n, k\) of one"):
            of_several(F, Y[..., 0], 0.1)
    with pytest.raises(ValueError, match=r"outputs or tasks: .*\(3, 8, 0\)"):
        solvers.group_lasso(F, Y[..., :0], 0.1)


def test_a_label_that_is_nan_is_not_called_a_bad_penalty():
    F, y = problem(2, 8, 3)
    y[0, 0] = np.nan
    with pytest.raises(ValueError, match="F or y holds"):
        solvers.lasso(F, y, 0.1 * solvers.lasso_lambda_max(F, y))


def one_sample(F, y):
    return solvers.lasso(F, y, 0.1 * solvers.lasso_lambda_max(F, y))


def test_a_task_of_one_sample_and_one_feature_and_constant_labels():
    F, y = np.full((1, 1, 1), 2.0), np.full((1, 1), 3.0)
    w, info = one_sample(F, y)
    np.testing.assert_allclose(w, [[(6 - 0.6) / 4]])
    assert info["converged"].all()
    constant = one_sample(np.random.default_rng(0).standard_normal((2, 9, 4)), np.zeros((2, 9)))
    assert not constant[0].any() and constant[1]["converged"].all()


def test_lasso_without_penalty_is_least_squares():
    F, y = problem(3, 30, 5, correlation=0.9)
    w, _ = solvers.lasso(F, y, 0)
    for t in range(3):
        np.testing.assert_allclose(w[t], np.linalg.lstsq(F[t], y[t])[0], atol=1e-10)


def test_lasso_agrees_with_scikit_learn():
    F, y = problem(4, 40, 10, correlation=0.5)
    lam = 0.1 * solvers.lasso_lambda_max(F, y)
    w, _ = solvers.lasso(F, y, lam)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for t in range(4):
            theirs = Lasso(alpha=lam[t], fit_intercept=False, tol=1e-12, max_iter=10**6).fit(
                F[t], y[t]
            )
            np.testing.assert_allclose(w[t], theirs.coef_, atol=1e-6)


seeds, sizes = st.integers(0, 2**32 - 1), st.integers(1, 8)
quick = settings(max_examples=25, deadline=None)


def random_problem(seed, T, n, m, exponent=0):
    rng = np.random.default_rng(seed)
    return rng, 10.0**exponent * rng.standard_normal((T, n, m)), rng.standard_normal((T, n))


@quick
@given(seeds, st.integers(1, 3), st.integers(1, 12), sizes, st.floats(0.01, 1), st.integers(-6, 6))
def test_lasso_does_not_see_units(seed, T, n, m, eps, exponent):
    """w of (c F, y) is w/c, of (F, c y) is c w, with lam in the same units."""
    _, F, y = random_problem(seed, T, n, m)
    lam, c = eps * solvers.lasso_lambda_max(F, y), 10.0**exponent
    w, info = solvers.lasso(F, y, lam)
    assert info["converged"].all()
    for scaled, expected in (
        (solvers.lasso(c * F, y, c * lam)[0], w / c),
        (solvers.lasso(F, c * y, c * lam)[0], c * w),
    ):
        np.testing.assert_allclose(
            np.einsum("tnm,tm->tn", F, scaled),
            np.einsum("tnm,tm->tn", F, expected),
            rtol=1e-6,
            atol=1e-8 * np.abs(np.einsum("tnm,tm->tn", F, expected)).max() + 1e-300,
        )


@quick
@given(seeds, st.integers(2, 12), st.integers(1, 6), st.floats(0.01, 0.9))
def test_lasso_follows_permutations_and_signs_of_features(seed, n, m, eps):
    rng, F, y = random_problem(seed, 2, n + m, m)
    order, signs = rng.permutation(m), rng.choice([-1.0, 1.0], m)
    lam = eps * solvers.lasso_lambda_max(F, y)
    np.testing.assert_allclose(
        solvers.lasso(F[..., order] * signs, y, lam)[0],
        solvers.lasso(F, y, lam)[0][:, order] * signs,
        atol=1e-9,
    )


def test_lasso_in_single_precision():
    F, y = problem(8, 50, 6)
    lam = 0.2 * solvers.lasso_lambda_max(F, y)
    w32, info = solvers.lasso(F.astype(np.float32), y.astype(np.float32), lam.astype(np.float32))
    assert w32.dtype == np.float32 and info["converged"].all()
    np.testing.assert_allclose(w32, solvers.lasso(F, y, lam)[0], atol=1e-4)


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
        alone = solvers.lasso_vjp(
            F[t : t + 1], y[t : t + 1], lam[t : t + 1], w[t : t + 1], dw[t : t + 1]
        )
        for a, b in zip(together, alone):
            np.testing.assert_allclose(a[t], b[0], rtol=1e-9, atol=1e-12 * np.abs(b).max())


# ------------------------------------------------------------------------------ ridge


def test_ridge_lambda_max_is_the_trace_of_the_gram_matrix():
    F, _ = problem(3, 6, 9)
    np.testing.assert_allclose(
        solvers.ridge_lambda_max(F), np.trace(F.transpose(0, 2, 1) @ F / 6, axis1=1, axis2=2)
    )


def test_ridge_agrees_with_scikit_learn_and_is_least_norm_without_penalty():
    F, y = problem(3, 6, 9)
    w = solvers.ridge(F, y, np.array([0.1, 1, 10]))
    for t, lam in enumerate((0.1, 1, 10)):
        np.testing.assert_allclose(
            w[t], Ridge(alpha=6 * lam, fit_intercept=False).fit(F[t], y[t]).coef_, atol=1e-10
        )
        np.testing.assert_allclose(F[t].T @ (F[t] @ w[t] - y[t]) / 6 + lam * w[t], 0, atol=1e-12)
    w = solvers.ridge(F, y, 0)
    for t in range(3):
        np.testing.assert_allclose(w[t], np.linalg.pinv(F[t]) @ y[t], atol=1e-8)


@quick
@given(seeds, st.integers(2, 12), st.integers(1, 6), st.floats(1e-3, 10))
def test_ridge_follows_rotations(seed, n, m, lam):
    rng, F, y = random_problem(seed, 2, n, m)
    Q = np.linalg.qr(rng.standard_normal((m, m)))[0]
    np.testing.assert_allclose(
        solvers.ridge(F @ Q, y, lam), solvers.ridge(F, y, lam) @ Q, atol=1e-8
    )


def test_ridge_in_mixed_units():
    rng = np.random.default_rng(0)
    F = rng.standard_normal((1, 50, 3)) * [1e8, 1, 1]
    y = F[0, :, 1:] @ [1.0, -1.0]
    w = solvers.ridge(F, y[None], 1e-3)
    assert np.abs(w[0, 1:] - [1, -1]).max() < 5e-3
    assert solvers.ridge_residual(F, y[None], 1e-3, w)[0] <= 1e-10
    assert solvers.ridge_residual(F, y[None], 1e-3, w * [1, 1.01, 1])[0] > 1e-4


def test_every_array_library_gives_the_same(backend):
    xp, device = backend
    F, y = problem(5, 20, 8, correlation=0.8)
    dw = np.random.default_rng(1).standard_normal((5, 8))
    F_, y_, dw_ = (xp.asarray(a, device=device) for a in (F, y, dw))
    lam = 0.2 * solvers.lasso_lambda_max(F, y)
    lam_ = 0.2 * solvers.lasso_lambda_max(F_, y_)
    for solve, vjp in (
        (lambda *a: solvers.lasso(*a)[0], solvers.lasso_vjp),
        (solvers.ridge, solvers.ridge_vjp),
    ):
        w, w_ = solve(F, y, lam), solve(F_, y_, lam_)
        np.testing.assert_allclose(to_numpy(w_), w, atol=1e-10)
        for ours, theirs in zip(vjp(F, y, lam, w, dw), vjp(F_, y_, lam_, w_, dw_)):
            np.testing.assert_allclose(to_numpy(theirs), ours, atol=1e-9)


# ------------------------------------------------------------------------------ losses of k outputs


def test_one_logit_is_two_classes_with_a_reference():
    Z = np.linspace(-40, 40, 24).reshape(2, 12, 1)
    y = (Z > 3).astype(float)
    two = np.concatenate([Z, 0 * Z], axis=2), np.concatenate([y, 1 - y], axis=2)
    ours, theirs = solvers.data_loss(Z, y, "logistic"), solvers.data_loss(*two, "logistic")
    np.testing.assert_allclose(ours, theirs)
    ours, theirs = (solvers.loss_gradient(*a, "logistic")[0][..., 0] for a in ((Z, y), two))
    np.testing.assert_allclose(ours, theirs)


# ------------------------------------------------------------------------------ group Lasso


def group_problem(T, n, m, k, loss, correlation=0.5, seed=0):
    rng = np.random.default_rng(seed)
    F = (
        rng.standard_normal((T, n, m))
        @ np.linalg.cholesky((1 - correlation) * np.eye(m) + correlation).T
    )
    Y = F @ (
        rng.standard_normal((T, m, k)) * (rng.random((T, m, 1)) < 0.5)
    ) + 0.1 * rng.standard_normal((T, n, k))
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
            worst = max(
                worst,
                np.linalg.norm(g[j] + lam[t] * W[t, :, j] / size)
                if size
                else np.linalg.norm(g[j]) - lam[t],
            )
    return worst


@pytest.mark.parametrize("loss", ["squared", "logistic"])
@pytest.mark.parametrize(
    "T, n, m, k, eps",
    [
        (5, 40, 6, 3, 0.3),
        (5, 40, 6, 3, 0.03),
        (3, 20, 30, 2, 0.2),
        (2, 30, 5, 10, 0.05),
        (3, 10, 1, 2, 0.5),
    ],
)
def test_group_lasso_is_optimal(T, n, m, k, eps, loss):
    F, Y = group_problem(T, n, m, k, loss)
    lam = eps * solvers.group_lasso_lambda_max(F, Y, loss)
    W, info = solvers.group_lasso(F, Y, lam, loss)
    assert info["converged"].all() and group_conditions(F, Y, lam, W, loss) <= 1e-9
    assert not solvers.group_lasso(F, Y, 1.001 * lam / eps, loss)[0].any()
    assert solvers.group_lasso(F, Y, 0.99 * lam / eps, loss)[0].any()


@pytest.mark.parametrize("eps", [0.01, 0.1])
def test_group_lasso_ends_on_the_tasks_of_an_encoder_that_mixes(eps):
    """As at the start of a training: correlated factors, mixed at random, nearly separable."""
    shapes = data.Shapes3D()
    z, p = data.latents(shapes, 1.0, 0.9)
    rng = np.random.default_rng(0)
    tasks = data.Tasks(z, p, likelihood="categorical", outputs=3)
    index, Y = tasks.sample(rng)                                    # (4, 25), (4, 16, 25, 3)
    F, _ = sparsedis.normalise(z[index] @ rng.standard_normal((6, 6)))
    F, Y = np.repeat(F, 16, axis=0), Y.reshape(64, 25, 3)
    lam = eps * solvers.group_lasso_lambda_max(F, Y, "logistic")
    _, info = solvers.group_lasso(F, Y, lam, "logistic", max_iter=300)
    assert info["converged"].all()


def test_group_lasso_of_one_output_is_the_lasso():
    F, y = problem(4, 30, 6, correlation=0.7)
    lam = 0.1 * solvers.lasso_lambda_max(F, y)
    np.testing.assert_allclose(
        solvers.group_lasso(F, y[..., None], lam)[0][:, 0], solvers.lasso(F, y, lam)[0], atol=1e-9
    )


@quick
@given(seeds, st.integers(2, 12), st.integers(1, 6), st.integers(2, 4), st.floats(0.02, 0.9))
def test_group_lasso_follows_rotations_of_the_outputs(seed, n, m, k, eps):
    rng, F, _ = random_problem(seed, 2, n + m, m)
    Y, Q = rng.standard_normal((2, n + m, k)), np.linalg.qr(rng.standard_normal((k, k)))[0]
    lam = eps * solvers.group_lasso_lambda_max(F, Y)
    np.testing.assert_allclose(
        solvers.group_lasso(F, Y @ Q, lam)[0], Q.T @ solvers.group_lasso(F, Y, lam)[0], atol=1e-7
    )


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_group_lasso_on_every_array_library(backend, loss):
    xp, device = backend
    F, Y = group_problem(3, 20, 5, 3, loss)
    lam = 0.2 * solvers.group_lasso_lambda_max(F, Y, loss)
    W, _ = solvers.group_lasso(F, Y, lam, loss)
    F_, Y_, lam_ = (xp.asarray(a, device=device) for a in (F, Y, lam))
    W_, _ = solvers.group_lasso(F_, Y_, lam_, loss)
    np.testing.assert_allclose(to_numpy(W_), W, atol=1e-9)
    for ours, theirs in zip(
        solvers.group_lasso_vjp(F, Y, lam, W, W, loss),
        solvers.group_lasso_vjp(F_, Y_, lam_, W_, W_, loss),
    ):
        np.testing.assert_allclose(to_numpy(theirs), ours, atol=1e-8)


# ------------------------------------------------------------------------------ group-Lasso SVM


def svm_problem(T, n, m, k, seed=0, signal=0.5, relu=False):
    rng = np.random.default_rng(seed)
    Y = np.eye(k)[rng.permuted(np.tile(np.arange(n) % k, (T, 1)), axis=1)]
    F = rng.standard_normal((T, n, m)) + signal * Y @ rng.standard_normal((T, k, m))
    return np.maximum(F, 0) if relu else F, Y


def test_svm_lambda_max_is_the_threshold_of_two_classes():
    F, Y = svm_problem(4, 20, 6, 2)
    lam = solvers.svm_lambda_max(F, Y)
    assert not solvers.group_svm(F, Y, 1.0001 * lam, 1.0)[0].any()
    assert solvers.group_svm(F, Y, 0.99 * lam, 1.0)[0].any(axis=(1, 2)).all()


def duality_gap(F, Y, lam1, lam2, W, Lam, half=0.5):
    """P + D - n over n - P (1 where W gains nothing), of one task, from the formulas in words."""
    scores, hinge = F @ W.T, 0.0
    for i, y in enumerate(Y.argmax(axis=1)):
        hinge += max(scores[i, l] - scores[i, y] + (l != y) for l in range(Y.shape[1]))
    norms = np.linalg.norm(W, axis=0)
    P = hinge + lam1 * norms.sum() + lam2 / 2 * (norms**2).sum()
    V = (Y - Lam).T @ F
    D = half / lam2 * (np.maximum(np.linalg.norm(V, axis=0) - lam1, 0) ** 2).sum() + (Y * Lam).sum()
    gain = len(F) - P
    return abs(P + D - len(F)) / (gain if gain > 1e-13 * len(F) else 1)


@pytest.mark.parametrize("share", [0.0, 0.003, 0.1, 0.6])
@pytest.mark.parametrize(
    "T, n, m, k, lam2",
    [
        (3, 25, 64, 5, 1.0),
        (3, 25, 64, 5, 0.01),
        (2, 75, 20, 2, 1.0),
        (2, 10, 300, 3, 5.0),
        (2, 30, 1, 3, 0.5),
    ],
)
def test_group_svm_closes_the_duality_gap(T, n, m, k, lam2, share):
    F, Y = svm_problem(T, n, m, k)
    lam1 = share * solvers.svm_lambda_max(F, Y)
    W, Lam, info = solvers.group_svm(F, Y, lam1, lam2)
    assert info["converged"].all() and (Lam >= 0).all()
    np.testing.assert_allclose(Lam.sum(axis=2), 1, atol=1e-12)
    for t in range(T):
        assert duality_gap(F[t], Y[t], lam1[t], lam2, W[t], Lam[t]) <= 1e-8
    assert (
        duality_gap(F[0], Y[0], lam1[0], lam2, W[0], Lam[0], half=1.0) > 1e-6 or not W[0].any()
    )  # the 1/2 belongs there


@quick
@given(
    seeds,
    st.integers(2, 4),
    st.integers(1, 4),
    st.integers(1, 9),
    st.floats(0, 0.9),
    st.floats(-2, 2),
)
def test_the_svm_is_optimal_and_follows_permutations(seed, k, per_class, m, share, log_lam2):
    rng = np.random.default_rng(seed)
    Y = np.eye(k)[np.repeat(np.arange(k), per_class)][None]
    F, lam2 = rng.standard_normal((1, k * per_class, m)), 10.0**log_lam2
    lam1 = share * solvers.svm_lambda_max(F, Y)
    W, Lam, info = solvers.group_svm(F, Y, lam1, lam2)
    assert info["converged"].all() and (Lam >= 0).all() and np.allclose(Lam.sum(axis=2), 1)
    features, classes, samples = (
        rng.permutation(m),
        rng.permutation(k),
        rng.permutation(k * per_class),
    )
    W_other = solvers.group_svm(
        F[:, samples][..., features], Y[:, samples][..., classes], lam1, lam2
    )[0]
    np.testing.assert_allclose(
        W_other, W[:, classes][..., features], atol=1e-3 * np.abs(W).max() + 1e-9
    )


def test_the_dense_svm_is_that_of_crammer_and_singer():
    from sklearn.svm import LinearSVC

    F, Y = svm_problem(2, 30, 5, 3, signal=0.3)
    W, _, _ = solvers.group_svm(F, Y, 0.0, 2.0)
    for t in range(2):
        theirs = LinearSVC(
            C=1 / 2.0, multi_class="crammer_singer", fit_intercept=False, tol=1e-9, max_iter=10**6
        ).fit(F[t], Y[t].argmax(1))
        np.testing.assert_allclose(W[t], theirs.coef_, atol=1e-4)


def test_group_svm_in_single_precision():
    F, Y = svm_problem(3, 25, 40, 5)
    lam1 = 0.1 * solvers.svm_lambda_max(F, Y)
    W, _, info = solvers.group_svm(
        F.astype(np.float32), Y.astype(np.float32), lam1.astype(np.float32), 1.0
    )
    assert W.dtype == np.float32 and info["converged"].all()
    np.testing.assert_allclose(W, solvers.group_svm(F, Y, lam1, 1.0)[0], atol=2e-2)


# ---- its certificate


def test_the_gap_is_in_units_of_what_w_gains():
    """At a dual point that is far from optimal, where W gains something, of large and small F."""
    F, Y = svm_problem(1, 20, 6, 3)
    for scale in (1.0, 1e-3):
        lam1, lam2 = np.array([0.1 * scale]), np.array([50.0])
        exact = solvers.group_svm(scale * F, Y, lam1, lam2)[1]
        Lam = 0.9 * exact + 0.1 / 3
        svm = solvers.svm_problem(scale * F, Y, lam1, lam2)
        _, W, _ = solvers.svm_primal(svm, Lam)
        gap = solvers.svm_gap(svm, Lam)[0]
        told = duality_gap(scale * F[0], Y[0], lam1[0], lam2[0], W[0], Lam[0])
        assert gap == pytest.approx(told, rel=1e-5) and gap > 1e-3


def episode(seed, noise):
    """5-way 5-shot, 640 features of unit norm around the means of classes."""
    rng = np.random.default_rng(seed)
    F = np.repeat(rng.standard_normal((5, 640)), 5, axis=0)
    F += noise * rng.standard_normal(F.shape)
    F /= np.linalg.norm(F, axis=1, keepdims=True)
    return F[None], np.repeat(np.eye(5), 5, axis=0)[None]


def test_a_gap_is_not_enough_for_an_svm_to_converge():
    F, Y = episode(0, 1.0)
    lam1 = 0.1 * solvers.svm_lambda_max(F, Y)
    F, Y, lam1, lam2 = solvers.check_problem(F, Y, lam1, 10.0)
    _, Lam, _ = solvers.group_svm(F, Y, lam1, 10.0)
    svm = solvers.svm_problem(F, Y, lam1, lam2)
    near = (Lam + 1e-10) / (Lam + 1e-10).sum(axis=2, keepdims=True)     # no exact zeros
    right, wrong = (solvers.svm_certificate(svm, a, 1e-8) for a in (Lam, near))
    assert right.gap[0] <= 1e-8 and wrong.gap[0] <= 1e-8
    assert right.converged[0] and not wrong.converged[0]


def test_a_kink_is_not_strict():
    F, Y = svm_problem(1, 20, 5, 2)
    lam1 = solvers.svm_lambda_max(F, Y)
    _, _, info = solvers.group_svm(F, Y, lam1, 1.0)                       # W = 0, only just
    assert info["converged"][0] and not info["strict"][0]
    _, _, info = solvers.group_svm(F, Y, 1.3 * lam1, 1.0)
    assert info["converged"][0]
    F, Y = svm_problem(1, 6, 4, 3)
    W, _, info = solvers.group_svm(0 * F, Y, 0.0, 1.0)              # W = 0 is no plateau here
    assert info["converged"][0] and not info["strict"][0] and not W.any()


def test_dual_solutions_that_are_not_unique_are_not_strict():
    """Of two equal samples on the margin the sum of Lam is determined, and not its parts: moving
    one of them apart takes W along a kink."""
    F, Y = svm_problem(1, 20, 3, 2)
    W, Lam, info = solvers.group_svm(F, Y, 0.0, 1.0)
    assert info["strict"][0]
    i = np.flatnonzero(((Lam[0] > 1e-3) & (Lam[0] < 1 - 1e-3)).all(axis=1))[0]  # on the margin
    twice = np.append(F, F[:, i : i + 1], axis=1), np.append(Y, Y[:, i : i + 1], axis=1)
    _, _, info = solvers.group_svm(*twice, 0.0, 1.0)
    assert info["converged"][0] and not info["strict"][0]


# ---- its adjoint


def slope_of_svm(F, Y, lam1, lam2, dF, dW, h):
    """<dW, W> differentiated along dF by differences."""
    W = [solvers.group_svm(F + t * dF, Y, lam1, lam2)[0] for t in (-h, h)]
    return np.sum(dW * (W[1] - W[0])) / (2 * h)


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_a_converged_svm_has_exact_gradients(noise):
    for seed in range(12):
        F, Y = episode(seed, noise)
        lam1 = 0.1 * solvers.svm_lambda_max(F, Y)
        W, Lam, info = solvers.group_svm(F, Y, lam1, 10.0)
        assert info["converged"][0] and info["strict"][0] and (Lam == 0).any()
        rng = np.random.default_rng(seed)
        dF, dW = rng.standard_normal(F.shape), rng.standard_normal(W.shape)
        told = np.sum(dF * solvers.group_svm_vjp(F, Y, lam1, 10.0, W, Lam, dW)[0])
        slope = slope_of_svm(F, Y, lam1, 10.0, dF, dW, 1e-7)
        assert abs(told - slope) <= 1e-4 * max(abs(slope), 1)


def test_an_svm_of_small_features_is_solved_in_units_of_what_it_gains():
    for seed in range(8):
        rng = np.random.default_rng(seed)
        F, Y = rng.standard_normal((1, 15, 8)), np.eye(3)[rng.integers(3, size=15)][None]
        for scale in (1e-3, 1e-4):
            W, Lam, info = solvers.group_svm(scale * F, Y, 0.0, 1.0)
            same, _, _ = solvers.group_svm(F, Y, 0.0, 1.0 / scale**2)   # the same problem
            assert info["converged"][0]
            np.testing.assert_allclose(scale * W, same, rtol=1e-6, atol=1e-7 * abs(same).max())
            dF, dW = rng.standard_normal(F.shape), rng.standard_normal(W.shape)
            told = np.sum(dF * solvers.group_svm_vjp(scale * F, Y, 0.0, 1.0, W, Lam, dW)[0])
            slope = slope_of_svm(scale * F, Y, 0.0, 1.0, dF, dW, 1e-6 * scale)
            assert abs(told - slope) <= 1e-4 * max(abs(slope), 1)


def test_without_a_penalty_nothing_is_kinked():
    """A weight that happens to be 0 still moves with the data."""
    F = np.array([[[1.0, 1], [1, -1], [-1, 1], [-1, -1]]])
    y, dw = 2 * F[:, :, 0], np.array([[0.0, 1.0]])
    w, _ = solvers.lasso(F, y, 0.0)
    np.testing.assert_allclose(w, [[2, 0]], atol=1e-12)
    w = np.array([[2.0, 0.0]])
    _, dy, _ = solvers.lasso_vjp(F, y, 0.0, w, dw)
    np.testing.assert_allclose(dy, F[:, :, 1] / 4)

    Y, W, dW = np.stack([y, y], axis=2), np.array([[[2.0, 0], [2, 0]]]), np.ones((1, 2, 2))
    dF, _ = solvers.group_lasso_vjp(F, Y, 0.0, W, dW)
    h, direction = 1e-6, np.random.default_rng(0).standard_normal(F.shape)
    fits = [solvers.group_lasso(F + t * direction, Y, 0.0)[0].sum() for t in (-h, h)]
    assert np.sum(dF * direction) == pytest.approx((fits[1] - fits[0]) / (2 * h), rel=1e-6)

    F, Y = svm_problem(1, 20, 4, 3)
    F[:, :, 3] = 0                                                       # V_3 = 0, W_3 = 0
    W, Lam, _ = solvers.group_svm(F, Y, 0.0, 50.0)
    direction = np.random.default_rng(0).standard_normal(F.shape)
    dW = np.random.default_rng(1).standard_normal(W.shape)
    told = np.sum(direction * solvers.group_svm_vjp(F, Y, 0.0, 50.0, W, Lam, dW)[0])
    assert told == pytest.approx(slope_of_svm(F, Y, 0.0, 50.0, direction, dW, 1e-6), rel=1e-5)


# ---- proximal block coordinate descent


def test_block_coordinate_descent_finds_the_same_solution():
    F, Y = svm_problem(2, 12, 8, 3)
    lam1 = 0.2 * solvers.svm_lambda_max(F, Y)
    W, _, info = solvers.group_svm(F, Y, lam1, 5.0, method="pbcd")
    assert info["converged"].all()
    np.testing.assert_allclose(W, solvers.group_svm(F, Y, lam1, 5.0)[0], atol=1e-4)


def test_group_svm_on_every_array_library(backend):
    xp, device = backend
    F, Y = svm_problem(2, 12, 20, 3)
    lam1 = 0.1 * solvers.svm_lambda_max(F, Y)
    F_, Y_, lam1_ = (xp.asarray(a, device=device) for a in (F, Y, lam1))
    for strength, strength_ in ((lam1, lam1_), (0 * lam1, 0 * lam1_)):
        W, Lam, _ = solvers.group_svm(F, Y, strength, 2.0)
        W_, Lam_, info = solvers.group_svm(F_, Y_, strength_, 2.0)
        np.testing.assert_allclose(to_numpy(W_), W, atol=1e-9)
        for ours, theirs in zip(
            solvers.group_svm_vjp(F, Y, strength, 2.0, W, Lam, W),
            solvers.group_svm_vjp(F_, Y_, strength_, 2.0, W_, Lam_, W_),
        ):
            np.testing.assert_allclose(to_numpy(theirs), ours, atol=1e-7)
    np.testing.assert_allclose(
        to_numpy(solvers.group_svm(F_, Y_, lam1_, 2.0, method="pbcd", max_iter=3)[0]),
        solvers.group_svm(F, Y, lam1, 2.0, method="pbcd", max_iter=3)[0],
        atol=1e-12,
    )


# ------------------------------------------------------------------------------ interior points


def test_group_svm_converges_on_random_problems():
    """At least 99 % of problems of any shape and scale, and `converged` tells the truth on all."""
    rng, converged = np.random.default_rng(1), []
    for _ in range(20):
        n, k, m = (
            int(rng.choice([25, 75])),
            int(rng.choice([2, 5])),
            int(np.exp(rng.uniform(np.log(4), np.log(200)))),
        )
        F, Y = svm_problem(
            5, n, m, k, rng.integers(10**6), signal=rng.uniform(0, 2), relu=rng.random() < 0.5
        )
        F *= 10 ** rng.uniform(-1, 1)
        lam1 = 10 ** rng.uniform(-3, 0.1, 5) * solvers.svm_lambda_max(F, Y)
        lam2 = 10 ** rng.uniform(-2, 1, 5) * (F**2).sum(axis=2).mean(axis=1) / n
        W, Lam, info = solvers.group_svm(F, Y, lam1, lam2)
        told = [duality_gap(F[t], Y[t], lam1[t], lam2[t], W[t], Lam[t]) <= 2e-8 for t in range(5)]
        assert (info["converged"] <= told).all()
        converged.extend(info["converged"])
    assert np.mean(converged) >= 0.99


def degenerate_svms():
    F, Y = svm_problem(2, 20, 6, 4)
    yield (
        "duplicate samples",
        np.concatenate([F, F[:, :5]], axis=1),
        np.concatenate([Y, Y[:, :5]], axis=1),
        0.1,
        1.0,
    )
    yield (
        "duplicates with other labels",
        np.concatenate([F, F], axis=1),
        np.concatenate([Y, Y[:, ::-1]], axis=1),
        0.1,
        1.0,
    )
    yield "separable", F + 30 * Y @ np.eye(4, 6), Y, 0.1, 1e-3
    yield "all features off", F, Y, 1.01, 1.0
    yield "one feature", F[:, :, :1], Y, 0.1, 1.0
    yield "two classes", F, np.eye(2)[Y.argmax(2) % 2], 0.2, 1.0
    yield "a class with no sample", F, np.concatenate([Y, np.zeros((2, 20, 1))], axis=2), 0.1, 1.0
    yield "only one class", F, np.eye(3)[np.zeros((2, 20), int)], 0.1, 1.0
    yield (
        "a feature and a sample of zeros",
        F * (np.arange(6) != 2) * (np.arange(20) != 3)[:, None],
        Y,
        0.05,
        1.0,
    )
    yield "equal features", F[:, :, [0, 1, 1, 1, 2, 3]], Y, 0.1, 1.0


@pytest.mark.parametrize("case", list(degenerate_svms()), ids=lambda case: case[0])
def test_group_svm_on_degenerate_problems(case):
    _, F, Y, share, lam2 = case
    lam1 = share * solvers.svm_lambda_max(F, Y)
    for dense in (False, True):
        W, Lam, info = solvers.group_svm(F, Y, 0 * lam1 if dense else lam1, lam2)
        assert info["converged"].all()
        for t in range(2):
            assert duality_gap(F[t], Y[t], 0 if dense else lam1[t], lam2, W[t], Lam[t]) <= 1e-8
        for d in solvers.group_svm_vjp(
            F, Y, 0 * lam1 if dense else lam1, lam2, W, Lam, np.ones_like(W)
        ):
            assert np.isfinite(d).all()
    if share > 1:
        W, Lam, _ = solvers.group_svm(F, Y, lam1, lam2)
        assert not W.any() and not any(
            d.any() for d in solvers.group_svm_vjp(F, Y, lam1, lam2, W, Lam, np.ones_like(W))
        )


def test_svm_without_lam1_and_a_feature_that_starts_at_zero():
    F = np.array([[[0.0, 1], [1, 1], [2, 1], [3, 1]]])
    Y = np.eye(2)[[0, 0, 1, 1]][None]
    W, Lam, info = solvers.group_svm(F, Y, 0.0, 1.0)
    assert info["converged"][0]
    hinge = sum(max(1 - Y[0, i, l] + (W[0, l] - W[0, Y[0, i].argmax()]) @ F[0, i] for l in (0, 1))
                for i in range(4))
    assert hinge + np.sum(W**2) / 2 == pytest.approx(1.5, abs=1e-9)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        F = np.append(rng.standard_normal((1, 20, 4)), np.ones((1, 20, 1)), axis=2)
        Y = np.repeat(np.eye(2), 10, axis=0)[None]
        W, Lam, info = solvers.group_svm(F, Y, 0.0, 1.0)
        assert info["converged"][0] and duality_gap(F[0], Y[0], 0.0, 1.0, W[0], Lam[0]) <= 1e-8


def test_group_svm_says_when_it_stops_early():
    F, Y = svm_problem(2, 25, 30, 5)
    for method in ("interior-point", "pbcd"):
        W, Lam, info = solvers.group_svm(F, Y, 1.0, 0.1, method=method, max_iter=1)
        assert info["n_iter"] == 1 and not info["converged"].any()
        np.testing.assert_allclose(
            info["gap"],
            [duality_gap(F[t], Y[t], 1.0, 0.1, W[t], Lam[t]) for t in range(2)],
            rtol=1e-6,
        )


def test_no_iteration_is_none():
    F, Y = svm_problem(1, 20, 5, 3)
    assert solvers.group_svm(F, Y, 1.0, 0.1, max_iter=0)[2]["n_iter"] == 0


# ------------------------------------------------------------------------------ made of: thresholds


def test_soft_threshold_is_the_proximal_operator():
    a, grid = np.array([-2.0, -0.3, 0.0, 0.5, 1.7]), np.linspace(-3, 3, 60001)
    best = [grid[np.argmin((grid - v) ** 2 / 2 + 0.5 * np.abs(grid))] for v in a]
    np.testing.assert_allclose(solvers.soft_threshold(a, 0.5), best, atol=1e-4)


def test_simplex_projection_is_the_nearest_point():
    rng = np.random.default_rng(0)
    V = rng.standard_normal((50, 4))
    P = solvers.project_simplex(V)
    np.testing.assert_allclose(P.sum(axis=1), 1)
    assert (P >= 0).all()
    for Q in rng.dirichlet(np.ones(4), size=200):  # (V - P).(Q - P) <= 0 for every Q of the simplex
        assert (((V - P) * (Q - P)).sum(axis=1) <= 1e-12).all()


@quick
@given(seeds, st.integers(2, 6), st.sampled_from([1e-150, 1e-8, 1.0, 1e8, 1e150]))
def test_the_simplex_projection_is_in_the_simplex_and_the_nearest(seed, k, scale):
    rng = np.random.default_rng(seed)
    V = scale * rng.standard_normal((5, k))
    x = solvers.project_simplex(V)
    assert (x >= 0).all() and np.allclose(x.sum(axis=1), 1)
    corners = np.eye(k)
    for corner in corners:  # <V - x, corner - x> <= 0 for every corner
        assert (((V - x) * (corner - x)).sum(axis=1) <= 1e-9 * max(scale, 1)).all()


# ------------------------------------------------------------------------------ made of: iterations


def test_lasso_tasks_do_not_disturb_each_other():
    F, y = problem(9, 20, 12, correlation=0.8)
    y[4] *= 1e6
    lam = 0.1 * solvers.lasso_lambda_max(F, y)
    together, _ = solvers.lasso(F, y, lam)
    for t in range(9):
        alone, _ = solvers.lasso(F[t : t + 1], y[t : t + 1], lam[t : t + 1])
        np.testing.assert_allclose(
            together[t], alone[0], rtol=1e-9, atol=1e-9 * np.abs(together[t]).max()
        )


def test_lasso_says_when_it_stops_early():
    F, y = problem(5, 30, 8, correlation=0.9)
    lam = 0.01 * solvers.lasso_lambda_max(F, y)
    w, info = solvers.lasso(F, y, lam, max_iter=2)
    unit = solvers.lasso_lambda_max(F, y)
    assert info["n_iter"] == 2 and not info["converged"].all()
    for t in range(5):
        np.testing.assert_allclose(
            info["gap"][t],
            violation(F[t : t + 1], y[t : t + 1], lam[t : t + 1], w[t : t + 1]) / unit[t],
            rtol=1e-6,
            atol=1e-14,
        )


@pytest.mark.parametrize("fuzz", fuzz_solvers.FUZZ, ids=lambda fuzz: fuzz.__name__)
@settings(max_examples=13, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_certificate_is_right_or_false(fuzz, seed):
    """Against cvxpy, on thirteen problems of each kind; fuzz_solvers.py tries hundreds."""
    told = fuzz_solvers.check(fuzz, seed)
    assert told is None or told.startswith("not converged"), told


@pytest.mark.parametrize("fuzz", fuzz_solvers.FUZZ, ids=lambda fuzz: fuzz.__name__)
def test_most_odd_problems_converge(fuzz):
    told = [fuzz_solvers.check(fuzz, seed) for seed in range(1000, 1013)]
    assert sum(text is None for text in told) >= 10


# ------------------------------------------------------------------------------ made of: systems


def test_a_solve_with_few_numbers_is_a_solve():
    """b repeated up to 500 numbers, or not."""
    rng = np.random.default_rng(0)
    for T, k in ((1, 6), (3, 7), (1, 499), (90, 6)):
        A, b = rng.standard_normal((T, k, k)) + 50 * np.eye(k), rng.standard_normal((T, k))
        np.testing.assert_allclose(
            solvers.solve(A, b), np.linalg.solve(A, b[..., None])[..., 0], atol=1e-10
        )


def test_equal_columns_are_found_wherever_they_are():
    rng = np.random.default_rng(0)
    F = rng.standard_normal((1, 150, 100))
    for i, j in ((17, 84), (5, 27), (0, 99), (42, 43)):
        G = F.copy()
        G[:, :, j] = G[:, :, i]
        b = G[0].T @ rng.standard_normal(150)
        A = G[0].T @ G[0]
        np.testing.assert_allclose(
            solvers.solve_psd(A[None], b[None])[0][0], np.linalg.pinv(A, rcond=1e-12) @ b, atol=1e-9
        )


def test_what_is_off_the_range_of_a_singular_matrix_is_left_out():
    rng = np.random.default_rng(0)
    F = rng.standard_normal((3, 4, 7)) * 10.0 ** rng.uniform(-2, 2, 7)
    A, b = np.swapaxes(F, 1, 2) @ F, rng.standard_normal((3, 7))
    x, singular = solvers.solve_psd(A, b)
    assert singular.all()
    for ours, own, right in zip(x, A, b, strict=True):
        best = np.linalg.pinv(own, rcond=1e-13, hermitian=True) @ right
        np.testing.assert_allclose(ours, best, atol=1e-6 * np.abs(best).max())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_regular_matrices_are_not_singular(dtype):
    rng = np.random.default_rng(0)
    A = np.stack([np.eye(200), np.diag(np.arange(1.0, 201))]).astype(dtype)
    b = rng.standard_normal((2, 200)).astype(dtype)
    x, singular = solvers.solve_psd(A, b)
    assert not singular.any()
    np.testing.assert_allclose(A @ x[..., None], b[..., None], atol=1e-4)
    A[1, 3] = A[1, :, 3] = 0
    assert solvers.solve_psd(A, b)[1].tolist() == [False, True]


def test_one_singular_task_leaves_the_others_their_bits():
    rng = np.random.default_rng(0)
    A = np.swapaxes(F := rng.standard_normal((3, 9, 4)), 1, 2) @ F
    b = rng.standard_normal((3, 4))
    before, _ = solvers.solve_psd(A, b)
    A[1, :, 2] = A[1, 2, :] = 0
    after, singular = solvers.solve_psd(A, b)
    assert np.array_equal(after[[0, 2]], before[[0, 2]])
    assert singular.tolist() == [False, True, False]


def test_a_null_vector_that_fixed_probes_do_not_see():
    """Of unit diagonal, singular, its null vector orthogonal to cos(i^2) and cos(i^3)."""
    i = np.arange(1, 5.0)
    v = np.linalg.svd(np.stack([np.cos(i**2), np.cos(i**3)]))[2][-1]
    E = np.linalg.qr(np.concatenate([v[:, None], np.random.default_rng(0).random((4, 3))], 1))[0]
    A = E[:, 1:] @ np.diag([1.0, 2.0, 3.0]) @ E[:, 1:].T
    D = np.sqrt(np.diag(A))
    A = A / D / D[:, None]
    b = A @ np.arange(4.0)
    x, singular = solvers.solve_psd(A[None], b[None])
    assert singular[0]
    np.testing.assert_allclose(x[0], np.linalg.pinv(A, rcond=1e-12) @ b, atol=1e-9)


def test_least_norm_in_mixed_units():
    """Of two equal columns, the solution of least norm shares the weight, whatever their unit."""
    a = np.random.default_rng(0).standard_normal(20)
    for unit in (1e-6, 1.0, 1e6):
        F = np.stack([unit * a, unit * a, np.roll(a, 3)], axis=1)[None]
        w = solvers.ridge(F, (2 * unit * a)[None], 0.0)
        np.testing.assert_allclose(w[0], [1, 1, 0], atol=1e-6 * max(unit, 1))


# ------------------------------------------------------------------------------ made of: refusals


@pytest.mark.parametrize(
    "F, y, lam",
    [
        (np.ones((2, 3, 4)), np.full((2, 3), np.nan), 0.1),
        (np.full((2, 3, 4), np.inf), np.ones((2, 3)), 0.1),
        (np.ones((2, 3, 4)), np.ones((2, 3)), -0.1),
        (np.ones((2, 3, 4)), np.ones((2, 3)), np.nan),
        (np.ones((2, 3, 4)), np.ones((2, 4)), 0.1),
        (np.ones((2, 3, 4), int), np.ones((2, 3), int), 0.1),
        (np.ones((2, 3, 4)), np.ones((2, 3)), np.ones((2, 1))),
    ],
)
def test_bad_input_is_refused(F, y, lam):
    for solve in (solvers.lasso, solvers.ridge):
        with pytest.raises(ValueError):
            solve(F, y, lam)


@pytest.mark.parametrize(
    "change", [{"F": np.nan}, {"lam2": 0.0}, {"lam1": -1.0}, {"Y": 0.5}, {"method": "simplex"}]
)
def test_group_svm_refuses_bad_input(change):
    F, Y = svm_problem(2, 6, 3, 3)
    good = {"F": F, "Y": Y, "lam1": 0.1, "lam2": 1.0, "method": "interior-point"}
    for name, value in change.items():
        good[name] = good[name] * value if name in "FY" else value
    with pytest.raises(ValueError):
        solvers.group_svm(**good)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64, bool])
def test_integer_labels_are_converted_and_integer_features_refused(dtype):
    F, Y = svm_problem(2, 20, 5, 3)
    top, same = (solvers.group_lasso_lambda_max(F, a) for a in (Y, Y.astype(dtype)))
    np.testing.assert_array_equal(top, same)
    fits = [solvers.group_svm(F, labels, 0.1, 1.0) for labels in (Y, Y.astype(dtype))]
    np.testing.assert_array_equal(fits[0][0], fits[1][0])
    F_int = (100 * F).astype(dtype)
    for refused in (
        lambda: solvers.lasso_lambda_max(F_int, Y[..., 0].astype(dtype)),
        lambda: solvers.ridge_lambda_max(F_int),
        lambda: solvers.svm_lambda_max(F_int, Y),
        lambda: solvers.group_svm(F_int, Y, 0.1, 1.0),
    ):
        with pytest.raises(ValueError, match="float64 or float32"):
            refused()


def test_labels_that_a_loss_does_not_take_are_refused():
    F, Y = svm_problem(2, 20, 5, 3)
    soft = np.full_like(Y, 1 / 3)
    assert solvers.group_lasso(F, soft, 0.1, "logistic")[1]["converged"].all()
    for bad in (2 * Y, Y - 0.5, -Y, np.where(Y > 0, np.nan, 0)):
        for refused in (
            lambda Y: solvers.group_lasso(F, Y, 0.1, "logistic"),
            lambda Y: solvers.group_lasso_lambda_max(F, Y, "logistic"),
            lambda Y: solvers.group_svm(F, Y, 0.1, 1.0),
            lambda Y: solvers.svm_lambda_max(F, Y),
        ):
            with pytest.raises(ValueError):
                refused(bad)
    with pytest.raises(ValueError, match="one-hot"):
        solvers.group_svm(F, soft, 0.1, 1.0)


# ------------------------------------------------------------------------------ made of: threads


def blas_threads():
    return {lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"}


def test_blas_has_one_thread_inside_and_what_the_caller_set_outside():
    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        with solvers.cpu_threads(2):
            assert blas_threads() == {1}
            with solvers.cpu_threads(3):
                assert blas_threads() == {1}
            assert blas_threads() == {1}
        assert blas_threads() == before and 2 in before


def test_two_callers_at_once_leave_blas_as_it_was():
    """The first to enter is not the last to leave."""
    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        first, second = solvers.one_blas_thread(), solvers.one_blas_thread()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert blas_threads() == {1}
        second.__exit__(None, None, None)
        assert blas_threads() == before


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_blocks_of_tasks_do_not_depend_on_threads(threads):
    F, y = problem(300, 30, 130)
    lam = 0.2 * solvers.lasso_lambda_max(F, y)
    F_svm, Y = svm_problem(5, 25, 900, 3)
    lam1 = 0.2 * solvers.svm_lambda_max(F_svm, Y)
    found = []
    for n in (1, threads):
        with solvers.cpu_threads(n):
            w, info = solvers.lasso(F, y, lam)
            W, Lam, svm_info = solvers.group_svm(F_svm, Y, lam1, 5.0)
            adjoint = solvers.lasso_vjp(F, y, lam, w, w)
            found.append((w, *adjoint, info["gap"], W, Lam, svm_info["gap"]))
        assert info["converged"].shape == (300,) and isinstance(info["n_iter"], int)
    for a, b in zip(*found):
        np.testing.assert_array_equal(a, b)
    with solvers.cpu_threads(2):
        nested = solvers.on_threads(lambda i: solvers.on_threads(abs, (-i, i)), (1, 2))
        assert nested == [[1, 1], [2, 2]]


@pytest.mark.parametrize("bad", [0, 1])
def test_after_an_error_no_block_is_begun(bad):
    begun = []

    def work(i):
        begun.append(i)
        time.sleep(0.02)
        if i == bad:
            raise ValueError(f"block {i}")

    with solvers.cpu_threads(2):
        with pytest.raises(ValueError, match=f"block {bad}"):
            solvers.on_threads(work, range(50))
        then = len(begun)
        time.sleep(0.2)
    assert len(begun) <= then + 1 < 9


def test_tasks_with_and_without_lam1_do_not_disturb_each_other():
    """m > n: at lam1 = 0 alone the features may be compressed."""
    F, Y = svm_problem(3, 8, 14, 2)
    lam1 = np.array([0.0, 0.3, 0.0]) * solvers.svm_lambda_max(F, Y)
    W, Lam, info = solvers.group_svm(F, Y, lam1, 1.0)
    assert info["converged"].all()
    for t in range(3):
        assert duality_gap(F[t], Y[t], lam1[t], 1.0, W[t], Lam[t]) <= 1e-8
        alone = solvers.group_svm(F[t : t + 1], Y[t : t + 1], lam1[t], 1.0)[0]
        np.testing.assert_allclose(W[t], alone[0], atol=1e-7)


def test_every_number_of_a_batch_is_of_its_own_task():
    """Solved tasks leave the batch and come back in their places, their gaps too."""
    F, y = problem(24, 30, 10, correlation=0.9)
    lam = np.where(np.arange(24) % 3 == 0, 1.1, 0.01) * solvers.lasso_lambda_max(F, y)
    unit = solvers.lasso_lambda_max(F, y)
    some_left = 0
    for max_iter in (2, 4, 6, 8):
        w, info = solvers.lasso(F, y, lam, max_iter)
        told = solvers.lasso_gap(w, solvers.gram(F), solvers.correlations(F, y), lam, unit)[0]
        np.testing.assert_allclose(info["gap"], told, rtol=1e-6, atol=1e-13)
        np.testing.assert_array_equal(info["converged"], info["gap"] <= 1e-12)
        some_left += 0 < info["converged"].sum() < 24
    assert some_left >= 2


def test_squared_losses_of_one_hot_labels_have_a_minimiser_without_a_penalty():
    rng = np.random.default_rng(0)
    Y = np.eye(2)[np.arange(24).reshape(2, 12) % 2]
    F = np.concatenate([4 * Y - 2, np.zeros((2, 12, 1))], axis=2) + 0.1 * rng.standard_normal(
        (2, 12, 3)
    )
    W, info = solvers.group_lasso(F, Y, 0.0)
    assert info["converged"].all()  # though F separates the classes
    for t in range(2):
        np.testing.assert_allclose(W[t].T, np.linalg.lstsq(F[t], Y[t])[0], atol=1e-8)


def test_the_scale_of_lam1_is_its_formula_for_any_number_of_classes():
    """max_j ||F_j'(Y - (1 - Y)/(k - 1))||: rows sum to 0, W = 0 above it."""
    for k in (2, 3, 5):
        F, Y = svm_problem(3, 20, 6, k)
        for t, found in enumerate(solvers.svm_lambda_max(F, Y)):
            V = np.where(Y[t] == 1, 1, -1 / (k - 1)).T @ F[t]
            assert found == pytest.approx(np.linalg.norm(V, axis=0).max())


def test_errors_of_a_task_are_those_of_its_share_of_C():
    """sigma_k/sqrt(n) where F_k'F_k/n = C: covariances (sigma_k^2/n) C^-1."""
    rng = np.random.default_rng(0)
    W = rng.standard_normal((30, 3)) * (rng.random((30, 3)) < 0.6)
    W = W[W.any(axis=1)] @ rng.standard_normal((3, 3))
    C, errors = (
        np.cov(rng.standard_normal((3, 50)) + rng.standard_normal(50)),
        rng.random(len(W)) * 0.3,
    )
    noise = solvers.white_tasks(W, C, errors)[1]
    whole = solvers.white_tasks(W, C, errors[:, None, None] ** 2 * np.linalg.inv(C))[1]
    np.testing.assert_allclose(noise, whole, atol=1e-12)


def rotated(**options):
    rng = np.random.default_rng(0)
    W = rng.standard_normal((60, 4)) * (rng.random((60, 4)) < [0.2, 0.4, 0.6, 0.9])
    return solvers.sparse_rotation(
        W[W.any(axis=1)] @ rng.standard_normal((4, 4)), np.eye(4), **options
    )


def test_the_strongest_feature_is_first_and_its_largest_loadings_positive():
    V = rotated()[1]["loadings"]
    V = V / np.linalg.norm(V, axis=1, keepdims=True)
    strength = (V**2).sum(axis=0)
    assert (np.diff(strength) <= 0).all() and strength[0] > 1.5 * strength[-1]
    assert ((V**3).sum(axis=0) > 0).all()


def test_starts_that_reach_the_best_are_counted_within_1(monkeypatch):
    told = np.array([-0.5, 0.0, -0.9, -1.1, -40.0])
    monkeypatch.setattr(solvers, "log_likelihood", lambda *args: told)
    assert rotated(starts=5)[1]["reached"] == pytest.approx(3 / 5)


def test_a_rotation_that_has_not_ended_is_not_converged(monkeypatch):
    assert rotated()[1]["converged"]
    monkeypatch.setattr(solvers, "ROTATION_STEPS", 2)
    info = rotated(starts=1)[1]
    assert info["gap"] > 1e-2 and not info["converged"]


def test_another_seed_starts_elsewhere():
    x = np.random.default_rng(0).standard_normal((20, 3))
    one, same, other = (solvers.random_bases(x, 2, seed).B for seed in (0, 0, 1))
    assert (one == same).all() and (one != other).all()


@pytest.mark.parametrize("dtype", [np.float64])
def test_a_system_is_solved_to_its_condition(dtype):
    """The regularisation is taken back: its own error would be 32 d eps times the condition."""
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.standard_normal((20, 6, 6)))[0]
    A = Q @ (np.logspace(0, -6, 6)[:, None] * np.swapaxes(Q, 1, 2))
    x = rng.standard_normal((20, 6))
    found, singular = solvers.solve_psd(A, (A @ x[..., None])[..., 0])
    assert not singular.any() and np.abs(found - x).max() < 1e-9


def test_a_sample_at_the_edge_of_the_margin_is_not_strict():
    """W is that of the first; the second lies at a distance of 1 with Lam = Y. Moved in, it would
    change W; moved out, not."""
    one, Y = np.array([[[1.0, 0]]]), np.eye(2)[[0, 0]][None]
    _, Lam, _ = solvers.group_svm(one, Y[:, :1], 0.0, 0.1)
    Lam = np.append(Lam, Y[:, 1:], axis=1)
    for edge, strict in ((1.0, False), (1.5, True)):
        F = np.append(one, [[[edge, 1.0]]], axis=1)
        svm = solvers.svm_problem(F, Y, np.zeros(1), np.full(1, 0.1))
        told = solvers.svm_certificate(svm, Lam, 1e-8)
        assert told.converged[0] and told.gap[0] < 1e-12 and told.strict[0] == strict
