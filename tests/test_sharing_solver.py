"""[F23]'s joint fit: stationary points, against scikit-learn, its derivatives."""

import numpy as np
import pytest
from conftest import to_numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import sharing_solver as s


def binary_problem(T=6, n=40, m=8, seed=0):
    rng = np.random.default_rng(seed)
    F, W = rng.standard_normal((T, n, m)), rng.standard_normal((T, m)) * (rng.random((T, m)) < 0.4)
    noise = 0.3 * rng.standard_normal((T, n))
    return F, (np.einsum("tnm,tm->tn", F, W) + noise > 0)[..., None].astype(float)


def sharing_objective(F, Y, alpha, beta, phi):
    """J of the section's head, written independently of the solver."""
    Z = np.einsum("tnm,tkm->tnk", F, phi)
    loss = np.mean(np.log1p(np.exp(Z)) - Y * Z)
    size = np.abs(phi).sum(axis=(0, 1))
    p = size / max(size.sum(), 1e-300)
    return loss + alpha * size.sum() / len(F) - beta * (p[p > 0] * np.log(p[p > 0])).sum()


@pytest.mark.parametrize("alpha, beta", [(0.05, 0.0), (0.05, 0.02), (0.1, 0.1), (0.03, 0.1)])
def test_sparse_sharing_is_stationary_from_five_starts(alpha, beta):
    F, Y = binary_problem()
    values = []
    for seed in range(5):
        start = 0.5 * np.random.default_rng(seed).standard_normal((6, 1, 8)) if seed else None
        phi, info = s.sparse_sharing(F, Y, alpha, beta, start=start)
        assert info["converged"] and info["gap"] <= 1e-12 and (phi == 0).any()
        assert all(0 <= H <= np.log(8) + 1e-12 for H in info["entropy"])
        J = sharing_objective(F, Y, alpha, beta, phi)
        for i in np.ndindex(phi.shape):  # no single coordinate can be moved to lower J
            if phi[i] or beta == 0 or np.abs(phi[..., i[2]]).any():
                for step in (1e-4, -1e-4):
                    moved = phi.copy()
                    moved[i] += step
                    assert sharing_objective(F, Y, alpha, beta, moved) >= J - 1e-12
        np.testing.assert_allclose(s.sharing_objective(F, Y, alpha, beta, phi), J)
        values.append(J)
    assert np.ptp(values) < (1e-9 if beta == 0 else 0.05 * abs(values[0]))  # convex without sharing


def test_sharing_concentrates_the_importances_and_alpha_shrinks_the_heads():
    F, Y = binary_problem()
    H = s.sparse_sharing(F, Y, 0.05, 0.1)[1]["entropy"]
    assert all(later <= earlier + 1e-9 for earlier, later in zip(H, H[1:])) and H[-1] < H[0] - 0.01
    sizes = [np.abs(s.sparse_sharing(F, Y, a, 0.0)[0]).sum() for a in (0.01, 0.05, 0.2, 0.5)]
    assert sizes == sorted(sizes, reverse=True)
    for beta in (0.0, 0.02):
        nothing, info = s.sparse_sharing(F, Y, 1e3, beta)
        assert info["converged"] and not nothing.any()


def test_without_sharing_binary_heads_are_those_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    F, Y = binary_problem()
    phi, info = s.sparse_sharing(F, Y, 0.03, 0.0)
    assert info["converged"] and info["n_iter"] <= 10  # Newton's method
    for F_t, y, phi_t in zip(F, Y[..., 0], phi[:, 0]):
        theirs = LogisticRegression(
            l1_ratio=1,
            C=1 / (0.03 * len(y)),
            fit_intercept=False,
            solver="liblinear",
            tol=1e-10,
            max_iter=10_000,
        ).fit(F_t, y)
        np.testing.assert_allclose(phi_t, theirs.coef_[0], atol=1e-5)


def test_a_head_that_is_zero_takes_no_part():
    F, Y = binary_problem()
    Y[2] = np.random.default_rng(5).integers(2, size=Y[2].shape)  # a task of noise
    phi, info = s.sparse_sharing(F, Y, 0.1, 0.02)
    assert info["converged"] and not phi[2].any() and phi[0].any()
    others = s.sharing_entropy(np.delete(phi, 2, axis=0))
    np.testing.assert_allclose(s.sharing_entropy(phi), others)


def test_single_precision_ends_at_its_tolerance():
    for seed in range(10):
        F, Y = binary_problem(T=4, n=20, m=5, seed=seed)
        _, info = s.sparse_sharing(F.astype(np.float32), Y.astype(np.float32), 0.1, 0.0)
        assert info["converged"], seed


def test_features_that_are_zero_have_a_gradient_of_zero():
    F, Y = binary_problem()
    phi, info = s.sparse_sharing(0 * F, Y, 0.1, 0.02)
    assert info["converged"] and not phi.any()
    for one_step in (False, True):
        parts = s.sparse_sharing_vjp(0 * F, Y, 0.1, 0.02, phi, phi + 1, one_step)
        assert all(np.isfinite(part).all() for part in parts)


def test_a_solver_that_cannot_go_on_says_so():
    F, Y = binary_problem()
    _, info = s.sparse_sharing(F, Y, 0.05, 0.02, max_iter=2)
    assert not info["converged"] and info["gap"] > 1e-12


def test_labels_of_one_class_still_have_a_minimum():
    F, Y = np.random.default_rng(0).standard_normal((2, 9, 4)), np.ones((2, 9, 1))
    assert s.sparse_sharing(F, Y, 0.1, 0.0)[1]["converged"]


def test_entropy_of_importances_by_hand_and_its_derivatives():
    phi = np.array([[[1.0, 1, 0, 0]], [[0, 0, -3, 0]]])
    np.testing.assert_allclose(s.importances(phi), [0.2, 0.2, 0.6, 0])
    H = -(0.4 * np.log(0.2) + 0.6 * np.log(0.6))
    np.testing.assert_allclose(s.sharing_entropy(phi), H)
    assert s.entropy_slopes(phi)[3] == np.inf
    phi, h = np.random.default_rng(0).uniform(0.5, 2, (3, 1, 4)), 1e-5
    for j in range(4):
        up, down = phi.copy(), phi.copy()
        up[1, 0, j] += h
        down[1, 0, j] -= h
        slope = (s.sharing_entropy(up) - s.sharing_entropy(down)) / (2 * h)
        np.testing.assert_allclose(s.entropy_slopes(phi)[j], slope, rtol=1e-6)
        bend = (s.entropy_slopes(up) - s.entropy_slopes(down)) / (2 * h)
        np.testing.assert_allclose(s.entropy_curvature(phi)[j], bend, rtol=1e-6)


@pytest.mark.parametrize("alpha, beta", [(0, 0.1), (0.1, -1), (np.nan, 0), (0.1, np.inf)])
def test_bad_strengths_are_refused(alpha, beta):
    with pytest.raises(ValueError, match="alpha and beta"):
        s.sparse_sharing(*binary_problem(), alpha, beta)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda F, Y: (F, np.concatenate([Y, 1 - Y], axis=2)),
        lambda F, Y: (F, Y[..., 0]),
        lambda F, Y: (F * np.nan, Y),
    ],
)
def test_a_problem_of_another_form_is_refused(spoil):
    with pytest.raises(ValueError):
        s.sparse_sharing(*spoil(*binary_problem()), 0.1, 0.02)


def test_the_one_step_hypergradient_is_wrong():
    F, Y = binary_problem()
    phi, _ = s.sparse_sharing(F, Y, 0.05, 0.05)
    exact, cheap = (
        s.sparse_sharing_vjp(F, Y, 0.05, 0.05, phi, phi, one_step=flag)[0]
        for flag in (False, True)
    )
    error = np.linalg.norm(cheap - exact)
    assert error > 0.1 * np.linalg.norm(exact) and (cheap * exact).sum() > 0


def test_the_adjoint_is_the_limit_of_an_unrolled_solver():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    F, Y = binary_problem(T=4, n=30, m=5)
    alpha, beta, R = 0.08, 0.02, np.random.default_rng(3).standard_normal((4, 1, 5))
    phi, _ = s.sparse_sharing(F, Y, alpha, beta)
    ours = s.sparse_sharing_vjp(F, Y, alpha, beta, phi, R)
    one_step = s.sparse_sharing_vjp(F, Y, alpha, beta, phi, R, one_step=True)
    leaves = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (F, alpha, beta)]
    Ft, a, b = leaves
    x, y, on = torch.tensor(phi), torch.tensor(Y), torch.tensor(phi != 0)
    for _ in range(1500):  # proximal gradient, its penalty linearised: autograd goes through it all
        g = ((torch.sigmoid(Ft @ x.mT) - y) / 30).mT @ Ft / 4
        share = x.abs().sum((0, 1), keepdim=True)
        p = share / share.sum()
        log_p = torch.where(on.any(0), p.mean((0, 1)).clamp_min(1e-300), torch.ones(())).log()
        slope = ((p * log_p).sum(-1, keepdim=True) - log_p) / share.sum()
        v = x - 5 * g
        x = torch.where(on, torch.sign(v) * (v.abs() - 5 * (a / 4 + b * slope)), 0)
    np.testing.assert_allclose(x.detach(), phi, atol=1e-10)
    unrolled = torch.autograd.grad((x * torch.tensor(R)).sum(), leaves)
    for mine, theirs in zip(ours, unrolled):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-9)
    error = np.linalg.norm(one_step[0] - ours[0]) / np.linalg.norm(ours[0])
    assert 0.01 < error < 2  # cheap, and far from exact


def test_sparse_sharing_on_every_array_library(backend):
    xp, device = backend
    F, Y = binary_problem(T=3, n=25, m=5)
    F_, Y_ = (xp.asarray(a, device=device) for a in (F, Y))
    phi, phi_ = (s.sparse_sharing(a, b, 0.05, 0.02)[0] for a, b in ((F, Y), (F_, Y_)))
    np.testing.assert_allclose(to_numpy(phi_), phi, atol=1e-8)
    pulled = s.sparse_sharing_vjp(F, Y, 0.05, 0.02, phi, phi)
    pulled_ = s.sparse_sharing_vjp(F_, Y_, 0.05, 0.02, phi_, phi_)
    for ours, theirs in zip(pulled, pulled_):
        np.testing.assert_allclose(to_numpy(theirs), to_numpy(ours), atol=1e-7)


def test_labels_that_are_no_probabilities_are_refused():
    F, Y = binary_problem()
    with pytest.raises(ValueError, match="probabilities"):
        s.sparse_sharing(F, 2 * Y - 1, 0.1, 0.0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(2, 6))
def test_the_entropy_of_importances_is_bounded_and_does_not_see_scale(seed, T, m):
    phi = np.random.default_rng(seed).standard_normal((T, 1, m))
    H = s.sharing_entropy(phi)
    assert -1e-12 <= H <= np.log(m) + 1e-12
    np.testing.assert_allclose(s.sharing_entropy(1e-7 * phi), H, atol=1e-9)
    alone = np.zeros((T, 1, m))
    alone[..., 0] = 1
    assert abs(s.sharing_entropy(alone)) < 1e-12
