"""Heads of few-shot episodes; their derivatives are checked by gradcheck."""

import numpy as np
import pytest
from test_solvers import svm_problem

import solvers
from experiments import episode_heads


def test_ridge_of_classes_is_ridge_of_each_class():
    F, Y = svm_problem(2, 8, 15, 3)
    W = episode_heads.ridge_classes(F, Y, np.array([0.1, 2.0]))
    for k in range(3):
        np.testing.assert_allclose(
            W[:, k], solvers.ridge(F, Y[:, :, k], np.array([0.1, 2.0])), atol=1e-10
        )


def test_ridge_of_classes_is_exact_for_more_samples_than_features():
    F, Y = svm_problem(2, 30, 4, 3)
    right = np.stack([np.linalg.lstsq(f, y)[0].T for f, y in zip(F, Y, strict=True)])
    np.testing.assert_allclose(episode_heads.ridge_classes(F, Y, 1e-14), right, rtol=1e-9)
    dW = np.random.default_rng(0).standard_normal(right.shape)
    (dF,) = episode_heads.ridge_classes_vjp(F, Y, 0.1, episode_heads.ridge_classes(F, Y, 0.1), dW)
    step = np.random.default_rng(1).standard_normal(F.shape)
    up, down = (episode_heads.ridge_classes(F + h * step, Y, 0.1) for h in (1e-6, -1e-6))
    assert np.sum(dF * step) == pytest.approx(np.sum(dW * (up - down)) / 2e-6, rel=1e-6)
    with pytest.raises(ValueError, match="positive"):
        episode_heads.ridge_classes(F, Y, 0.0)


def test_labels_that_are_not_finite_are_refused():
    F, Y = svm_problem(2, 8, 15, 3)
    with pytest.raises(ValueError, match="finite"):
        episode_heads.ridge_classes(F, np.where(Y > 0, np.nan, 0), 0.1)


def test_a_class_without_support_samples_has_no_prototype():
    F, Y = svm_problem(2, 8, 15, 3)
    Y[:, :, 0] += Y[:, :, 2]
    Y[:, :, 2] = 0
    with pytest.raises(ValueError, match="without support"):
        episode_heads.prototypes_episode(F, Y, None, None, {"scale": np.array(1.0)})


def test_episodes_that_are_not_solved_move_no_penalty(monkeypatch):
    F, Y = svm_problem(2, 14, 6, 3)
    params = {"log_lam1": np.array(0.0), "log_lam2": np.array(0.0)}
    solve = solvers.group_svm
    for steps, moved in ((2, False), (100, True)):
        monkeypatch.setattr(
            solvers, "group_svm", lambda *a, steps=steps: solve(*a, max_iter=steps))
        _, dF, dparams, info = episode_heads.svm_episode(F, Y, (0.5, 1.0), 9, params)
        assert (info["unsolved"] == 0) == moved == bool(dF.any())
        assert all((dparams[name] != 0) == moved for name in params)


@pytest.mark.parametrize("name", episode_heads.EPISODE_HEADS)
def test_a_head_that_only_fits_finds_the_same_without_its_adjoint(name):
    F, Y = svm_problem(2, 14, 6, 3)
    lam = {"svm": (0.5, 1.0), "prototypes": None}.get(name, np.full(2, 0.1))
    head, params = episode_heads.EPISODE_HEADS[name], {"scale": np.array(1.3)}
    loss, dF, _, info = head(F, Y, lam, 9, params)
    same, nothing, _, told = head(F, Y, lam, 9, params, fit_only=True)
    assert loss == same and dF.shape == F.shape and nothing is None
    np.testing.assert_array_equal(info["scores"], told["scores"])
