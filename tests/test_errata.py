"""docs/errata.md, shown on numbers."""

import numpy as np
import pytest

import data
import metrics
import solvers


def episode(n=20, m=12, k=3, seed=0):
    rng = np.random.default_rng(seed)
    Y = np.eye(k)[np.arange(n) % k]
    return (rng.standard_normal((n, m)) + Y @ rng.standard_normal((k, m)))[None], Y[None]


def svm(F, Y, lam1, lam2):
    W, Lam, info = solvers.group_svm(F, Y, lam1, lam2)
    assert info["converged"].all()
    return W[0], Lam[0]


def primal(F, Y, W, lam1, lam2, sign=1):
    Z = F @ W.T
    hinge = (1 - Y + sign * (Z - (Z * Y).sum(axis=1, keepdims=True))).max(axis=1).sum()
    return hinge + lam1 * np.linalg.norm(W, axis=0).sum() + lam2 / 2 * (W**2).sum()


def dual(F, Y, Lam, lam1, lam2, factor):
    V = (Y - Lam).T @ F
    return (
        factor / lam2 * (np.maximum(np.linalg.norm(V, axis=0) - lam1, 0) ** 2).sum()
        + (Y * Lam).sum()
    )


def test_the_dual_has_a_half():
    F, Y = episode()
    W, Lam = svm(F, Y, 2.0, 1.5)
    P, n = primal(F[0], Y[0], W, 2.0, 1.5), len(Y[0])
    assert abs(P + dual(F[0], Y[0], Lam, 2.0, 1.5, 0.5) - n) < 1e-7 * P
    assert abs(P + dual(F[0], Y[0], Lam, 2.0, 1.5, 1.0) - n) > 0.05 * P


def test_the_sign_inside_the_max():
    F, Y = episode()
    W, Lam = svm(F, Y, 2.0, 1.5)
    optimum = len(Y[0]) - dual(F[0], Y[0], Lam, 2.0, 1.5, 0.5)
    assert abs(primal(F[0], Y[0], W, 2.0, 1.5) - optimum) < 1e-7 * optimum
    # as printed, a good classifier is punished, and the best one is -W
    assert primal(F[0], Y[0], W, 2.0, 1.5, sign=-1) > 1.2 * optimum
    assert abs(primal(F[0], Y[0], -W, 2.0, 1.5, sign=-1) - optimum) < 1e-7 * optimum
    Z = F[0] @ W.T
    without = (
        (-Y[0] + Z - (Z * Y[0]).sum(axis=1, keepdims=True)).max(axis=1).sum()
        + 2 * np.linalg.norm(W, axis=0).sum()
        + 0.75 * (W**2).sum()
    )
    assert abs(without - optimum) > 1  # without the 1, the optimum is another


def test_rows_of_factors_are_completeness():
    rng = np.random.default_rng(0)
    z = rng.standard_normal((4000, 3))
    z_hat = np.stack(
        [z[:, 0] + 0.01 * z[:, 1], z[:, 1], z[:, 2], z[:, 2] + rng.standard_normal(4000)], axis=1
    )
    B = np.abs(
        np.linalg.lstsq(metrics.standardise(z_hat), metrics.standardise(z), rcond=None)[0].T
    )  # factors in rows
    shares = B / B.sum(axis=1, keepdims=True)
    by_rows = np.mean(1 + (shares * np.log(shares)).sum(axis=1) / np.log(4))
    d, c = metrics.dci(z, z_hat)
    assert abs(by_rows - c) < 1e-9 and abs(by_rows - d) > 0.01


@pytest.mark.parametrize("T", [8, 1000])
def test_filling_columns_makes_supports_dense(T):
    """rand_idx has six entries, whatever is empty, and fills those columns of every row."""
    shares = []
    for seed in range(200 if T == 8 else 20):
        rng = np.random.default_rng(seed)
        S = rng.random((T, 6)) < 0.5
        S[:, rng.integers(6, size=6)] = True
        shares.append(S.mean())
    assert abs(np.mean(shares) - 0.83) < 0.02  # four columns of six, and half of the others


def test_what_the_weights_leave_of_the_images():
    """Standardised before the noise, as D.2.1 says, or after it, as in the published code."""
    shapes = data.Shapes3D()
    _, p = data.latents(shapes, 1.0, 0.9)
    assert 1 / np.sum(p**2) == pytest.approx(2803, abs=1)
    factors = shapes.factors.astype(float)
    deviation = factors.std(axis=0)
    noise = np.random.default_rng(0).random(factors.shape) - 0.5
    z = (factors - factors.mean(axis=0) + noise) / deviation
    log_p = -0.5 * np.vecdot(z @ np.linalg.inv(0.1 * np.eye(6) + 0.9), z)
    p = np.exp(log_p - log_p.max())
    assert p.sum() ** 2 / np.sum(p**2) == pytest.approx(2670, abs=5)
    _, p = data.latents(shapes, 1.0, 0.99)
    assert 1 / np.sum(p**2) == pytest.approx(9.5, abs=0.1)


def test_a_loose_inner_solve_is_a_wrong_gradient():
    errors = {1e-3: [], 1e-12: []}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        F = rng.standard_normal((1, 50, 6)) @ np.linalg.cholesky(0.05 * np.eye(6) + 0.95).T
        y = F @ (rng.standard_normal(6) * (rng.random(6) < 0.6)) + 0.1 * rng.standard_normal(
            (1, 50)
        )
        lam, dw = 0.01 * solvers.lasso_lambda_max(F, y), rng.standard_normal((1, 6))
        exact = solvers.lasso_vjp(F, y, lam, solvers.lasso(F, y, lam)[0], dw)[0]
        G, c = F[0].T @ F[0] / 50, F[0].T @ y[0] / 50
        for tol in errors:
            w, change = np.zeros(6), 1.0
            while change > tol:  # cyclic coordinate descent
                before = w.copy()
                for j in range(6):
                    w[j] = (
                        solvers.soft_threshold(c[j] - G[j] @ w + G[j, j] * w[j], lam[0]) / G[j, j]
                    )
                change = np.abs(w - before).max()
            errors[tol].append(
                np.linalg.norm(solvers.lasso_vjp(F, y, lam, w[None], dw)[0] - exact)
                / np.linalg.norm(exact)
            )
    assert (
        0.005 < np.median(errors[1e-3]) < 0.05
        and max(errors[1e-3]) > 0.1
        and max(errors[1e-12]) < 1e-6
    )


def gap_after(F, Y, lam1, lam2, L, epochs):
    """The relative duality gap after epochs of block coordinate descent with steps 1/L_i."""
    F, Y = F[0], Y[0]
    Lam = np.full(Y.shape, 1 / Y.shape[1])
    for _ in range(epochs):
        for i in range(len(F)):
            W = solvers.block_soft_threshold((Y - Lam).T @ F, lam1, axis=0) / lam2
            Lam[i] = solvers.project_simplex(Lam[i] - (Y[i] - W @ F[i]) / L[i])
    W = solvers.block_soft_threshold((Y - Lam).T @ F, lam1, axis=0) / lam2
    P = primal(F, Y, W, lam1, lam2)
    return (P + dual(F, Y, Lam, lam1, lam2, 0.5) - len(F)) / P


def test_the_step_of_the_dual_needs_lam2():
    F, Y = episode()
    size = (F[0] ** 2).sum(axis=1)
    right, short = (gap_after(F, Y, 2.0, 50.0, L, 60) for L in (size / 50.0, size))
    assert right < 1e-4 and short > 100 * right


def test_five_steps_are_no_solve():
    F, Y = episode(n=25, m=200, k=5)
    lam1 = float(0.2 * solvers.svm_lambda_max(F, Y)[0])
    W, Lam = svm(F, Y, lam1, 1.0)
    step = np.linalg.norm(F[0], 2) ** 2
    x = np.full(Y[0].shape, 1 / 5)
    for _ in range(5):  # projected gradient on the dual, step 1/L
        G = Y[0] - F[0] @ solvers.block_soft_threshold((Y[0] - x).T @ F[0], lam1, axis=0).T
        x = solvers.project_simplex(x - G / step)
    W_five = solvers.block_soft_threshold((Y[0] - x).T @ F[0], lam1, axis=0)
    assert np.linalg.norm(W_five - W) > 0.5 * np.linalg.norm(W)


@pytest.mark.parametrize("name", ["errata.md"])
def test_every_named_check_exists(name):
    import re
    from pathlib import Path

    here = Path(__file__).parent
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (here.parent / "docs" / name).read_text())
    assert len(named) >= 8
    for file, test in named:
        assert f"def {test}(" in (here / file).read_text(), test
