"""The paper's formal claims, and their figures."""

from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import OptimizeResult

import run
from experiments import theory


def test_figures_of_the_assumptions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("fig2", "fig3"):
        assert (
            run.main(["figure", name]) == 0
            and Path(f"results/{name}.png").read_bytes()[:4] == b"\x89PNG"
        )


def test_every_claim_of_the_theory_holds(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run.main(["theory"]) == 0 and "FAILS" not in capsys.readouterr().out


@pytest.mark.slow
def test_every_claim_holds_for_another_seed():
    claims = list(theory.theory(seed=1))
    assert len(claims) >= 10 and all(claim.holds for claim in claims)


def test_the_losses_of_problem_4_and_their_slopes():
    rng = np.random.default_rng(0)
    C, W = 0.5 + 0.5 * np.eye(3), rng.standard_normal((4, 3)) * [1, 1, 0]
    losses, dL = theory.subset_losses(np.eye(3)[[2, 0, 1]] * 3, C, W)  # a permutation-scaling
    np.testing.assert_allclose(losses[0], np.sum(W @ C * W, axis=1))
    np.testing.assert_allclose(losses[2:], 0, atol=1e-12)
    L, step = rng.standard_normal((2, 3, 3))
    losses, dL = theory.subset_losses(L, C, W)
    up, down = (theory.subset_losses(L + h * step, C, W)[0] for h in (1e-6, -1e-6))
    np.testing.assert_allclose(np.sum(dL * step, axis=(2, 3)), (up - down) / 2e-6, atol=1e-6)
    assert (np.diff(losses, axis=0) <= 1e-12).all()  # more features, less loss


def test_features_are_shared_out_as_is_best():
    losses = np.random.default_rng(1).random((4, 5)).cumsum(axis=0)[::-1]  # (m + 1, T), falling
    ways = np.stack(np.meshgrid(*[range(4)] * 5, indexing="ij"), axis=-1).reshape(-1, 5)
    ways = ways[ways.sum(axis=1) <= 7]
    least = min(losses[way, np.arange(5)].sum() for way in ways)
    sizes = theory.shared_out(losses, 7)
    assert losses[sizes, np.arange(5)].sum() == least and sizes.sum() <= 7


@pytest.mark.parametrize(
    "L, off",
    [([[0, 2], [-1, 0]], 0), ([[1, 0.5], [0, 3]], 0.5), ([[1, 0], [1, 0.1]], 1.0)],
)
def test_how_far_from_a_permutation_scaling(L, off):
    assert theory.mixing(np.array(L, float)) == off


def test_a_bound_that_is_too_low_fails(monkeypatch):
    assert all(holds for _, _, holds in theory.support_variability_bound(np.random.default_rng(0)))
    monkeypatch.setattr(theory, "variability_bound", lambda m, p, T: 0.0)
    assert not all(
        holds for _, _, holds in theory.support_variability_bound(np.random.default_rng(0))
    )


def test_tasks_that_miss_a_direction_do_not_identify():
    rng = np.random.default_rng(0)
    F, W = rng.standard_normal((50, 4)), rng.standard_normal((30, 4))
    thin = W - W.mean(axis=1, keepdims=True)
    assert next(theory.linear_identifiability(rng, F, W)).holds
    assert not next(theory.linear_identifiability(rng, F, thin)).holds


def test_where_no_search_ends_at_0_nothing_holds(monkeypatch):
    monkeypatch.setattr(theory, "descend", lambda loss, x: OptimizeResult(x=x, fun=loss(x)[0]))
    assert not any(claim.holds for claim in theory.minima(np.random.default_rng(0), T=8))


def test_the_theorems_picture_is_0_at_permutations_alone_where_features_are_few(panels):
    theory.draw_theorem(None)
    few, both = (line.get_ydata() for line in panels[0][0].lines)
    assert both.max() < 1e-9 and np.flatnonzero(few < 1e-9).tolist() == [0, 90, 180]
    # at 45 degrees, of factors correlated at 0.8: features (z0 -+ z1)/root 2, themselves apart
    W = np.array([[1.0, 0], [0, 1], [1, 1], [1, -1], [1, -0.3], [0.4, 1]])
    own, signal = [], np.einsum("ti,ij,tj->t", W, [[1, 0.8], [0.8, 1]], W)
    for w, size in zip(W, np.count_nonzero(W, axis=1)):
        parts = np.array([(w[0] - w[1]) ** 2 * 0.2, (w[0] + w[1]) ** 2 * 1.8]) / 2
        own.append(parts.min() if size == 1 else 0)
    assert few[45] == pytest.approx(100 * np.mean(own / signal))


def test_an_unfinished_fit_is_no_maximum_of_the_likelihood(monkeypatch):
    fit = theory.LogisticRegression
    monkeypatch.setattr(
        theory, "LogisticRegression", lambda **how: fit(**how | {"max_iter": 1}))
    rng = np.random.default_rng(0)
    F, L = rng.standard_normal((200, 4)), rng.standard_normal((4, 4))
    with pytest.warns(UserWarning, match="converge"):
        squared, logistic = theory.predictions_do_not_see_L(rng, F, L)
    assert squared.holds and not logistic.holds


def test_the_coefficients_of_app_b6_are_on_a_sphere(monkeypatch):
    (claim,) = theory.tasks_on_a_sphere(np.random.default_rng(0), 4, 50)
    assert claim.holds
    sample = theory.data.sample_tasks
    monkeypatch.setattr(
        theory.data, "sample_tasks", lambda rng, T, m, kind: sample(rng, T, m, "bernoulli-gauss"))
    (claim,) = theory.tasks_on_a_sphere(np.random.default_rng(0), 4, 50)
    assert not claim.holds
