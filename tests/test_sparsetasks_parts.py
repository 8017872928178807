"""The parts of SparseTasks one by one: penalties, ranks, draws, stability, what is told."""

import numpy as np
import pytest

import solvers
import sparsedis
from sparsetasks import SparseTasks, estimator, linear, network, predictors, rotation, unsolved
from sparsetasks.choice import as_good


def test_penalties_are_those_of_the_least_leave_one_out_errors():
    """Row by row, the intercept fitted anew; each target its own."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((12, 4))
    X = X - X.mean(axis=0)
    Y = X @ rng.standard_normal((4, 40)) + 2 * rng.standard_normal((12, 40))
    errors = np.zeros((len(linear.PENALTIES), 40))
    for i in range(12):
        on = np.arange(12) != i
        mean, means = X[on].mean(axis=0), Y[on].mean(axis=0)
        for p, penalty in enumerate(linear.PENALTIES):
            A = (X[on] - mean).T @ (X[on] - mean) + penalty * np.eye(4)
            B = np.linalg.solve(A, (X[on] - mean).T @ (Y[on] - means))
            errors[p] += (Y[i] - means - (X[i] - mean) @ B) ** 2
    best = linear.PENALTIES[errors.argmin(axis=0)]
    np.testing.assert_array_equal(linear.penalties(X, Y), best)
    assert len(set(best)) > 3


def test_losses_of_ranks_are_means_over_targets():
    """Targets that come twice change no mean, gaps or not."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 5))
    Y = X @ rng.standard_normal((5, 4)) + rng.standard_normal((60, 4))
    Y[rng.random(Y.shape) < 0.3] = np.nan
    held = np.arange(60) < 15
    once = linear.losses_of_ranks(X, Y, held, 3)
    twice = linear.losses_of_ranks(X, np.c_[Y, Y], held, 3)
    np.testing.assert_allclose(twice, once)


def test_what_does_as_well_as_the_best():
    best = np.array([1.0, 1.0, 1.0, 1.0])
    noisy = best + [0.4, -0.2, 0.3, -0.3]  # 0.05 more, standard error 0.15
    worse = best + [0.2, 0.2, 0.2, 0.2]
    for losses, slight, good in (
        ([noisy, best], 0, [True, True]),
        ([worse, best], 0, [False, True]),
        ([worse, best], 0.25, [True, True]),
        ([best + 1e-4, best], 1e-3, [True, True]),
        ([best + 2e-3, best], 1e-3, [False, True]),
        ([best + 0.02 + 0.01 * (noisy - best), best], 0.019, [False, True]),
    ):  # no sum of the two
        assert as_good(np.stack(losses), slight).tolist() == good


def test_a_feature_is_not_added_for_a_slight_gain():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((3000, 4))
    W = np.diag([1.0, 1.0, 0.02, 0.02])[:, np.arange(12) % 4]
    W[2:] = 0.02 * rng.standard_normal((2, 12))
    ridge = linear.ReducedRankRidge(X, X @ W)
    assert ridge.rank_by_held_out(np.random.default_rng(0)) == (2, 4)


def a_network(seed=0, **settings):
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((80, 3)), rng.standard_normal((80, 4))
    model = SparseTasks(n_components=2, samples=10, **settings)
    encoder = sparsedis.mlp([3, 2])
    return network.training(encoder, lambda i: X[i], np.isfinite(Y), Y, model, seed, np)


def test_a_seed_draws_its_own_rows_at_each_step():
    one, same, other = (a_network(seed) for seed in (0, 0, 1))
    (x,), _ = one.sample(3)
    assert (x == same.sample(3)[0][0]).all()
    for (different,), _ in (other.sample(3), one.sample(4)):
        assert (x == different).all(axis=1).mean() < 0.2


def test_targets_of_a_set_have_labels_in_half_of_its_rows():
    known = np.zeros((40, 5), bool)
    known[:20, 0] = known[20:, 1] = known[20:, 2] = known[:, 3] = known[:12, 4] = True
    labels = np.arange(200.0).reshape(40, 5)
    for seed in range(30):
        index, y, on = network.draw(np.random.default_rng(seed), known, labels, 16, 5)
        assert (on.mean(axis=1) >= 0.5).all() and on[0].all() and len(set(index)) == 16
        target = (y[:, 0] - labels[index[0], 0]).astype(int)
        np.testing.assert_array_equal(y, labels[index][:, target].T)
        np.testing.assert_array_equal(on, known[index][:, target].T)


def test_rows_of_a_set_are_as_many_as_half_of_the_targets_have_labels():
    known = np.arange(60)[:, None] < [4, 30, 40, 50, 60]
    assert network.rows_of_a_set(known, 50) == 40 and network.rows_of_a_set(known, 25) == 25
    assert network.rows_of_a_set(known[:1], 50) == 2


def test_decay_is_lr_times_its_share_beside_adams_step():
    p, g = {"a": np.array([1.0, -2.0])}, {"a": np.array([0.5, 0.1])}
    plain, _ = sparsedis.adam(p, g, None, 0.01)
    found, _ = network.decayed(p, g, None, 0.01, decay=0.3)
    np.testing.assert_allclose(found["a"], plain["a"] - 0.01 * 0.3 * p["a"], rtol=1e-12)


def test_fits_of_a_training_that_are_not_solved_are_told(monkeypatch):
    lasso = solvers.lasso
    monkeypatch.setattr(solvers, "lasso", lambda *problem: lasso(*problem[:3], max_iter=0))
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((60, 3)), rng.standard_normal((60, 4))
    model = SparseTasks(2, encoder="mlp", steps=2, warmup=0.0, rotate=False, samples=10)
    with pytest.warns(UserWarning, match="fits of the training were not solved"):
        model.fit(X, Y)


@pytest.mark.parametrize("stability, identified", [(0.94, False), (0.96, True)])
def test_what_is_identified_is_stable_too(stability, identified, monkeypatch):
    rng = np.random.default_rng(0)
    F = rng.standard_normal((300, 3))
    W = rng.standard_normal((3, 200)) * (rng.random((3, 200)) < 0.5)
    monkeypatch.setattr(rotation, "agreement", lambda *args: np.full(3, stability))
    found = rotation.unmix(F, F @ W[:, W.any(axis=0)], widths=(0.0,), splits=2, starts=5)
    assert (found.apart >= 0.2).all() and (found.identified == identified).all()


def test_errors_of_exact_targets_are_not_negative():
    rng = np.random.default_rng(0)
    F = rng.standard_normal((40, 3)) * [1, 1e3, 1e-3]
    _, errors, kept = rotation.task_weights(
        rotation.Sample(F - F.mean(axis=0), F @ rng.standard_normal((3, 200)), None)
    )
    assert kept.all() and (np.linalg.diagonal(errors) > 0).all()


def test_a_classifier_takes_the_fewest_features_within_a_standard_error(monkeypatch):
    told = iter([[-0.50, -0.52, -0.49, -0.51, -0.48], [-0.49, -0.49, -0.50, -0.50, -0.49]])
    masks = [np.array([True, False, False]), np.array([True, True, True])]
    monkeypatch.setattr(predictors, "kept_features", lambda F, Y: masks)
    monkeypatch.setattr(predictors, "cross_val_score", lambda *args, **how: np.array(next(told)))
    rng = np.random.default_rng(0)
    code = np.arange(60) % 3
    F = rng.standard_normal((60, 3)) + 3 * code[:, None]
    W, _ = predictors.logistic(F, code)
    assert (W[:, 0] != 0).any() and not W[:, 1:].any()


def test_ridge_predictors_are_not_the_lassos():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 4))
    Y = X[:, :2] @ rng.standard_normal((2, 3)) + rng.standard_normal((60, 3))
    ridge, lasso = (
        SparseTasks(4, encoder="linear", rotate=False, head=head).fit(X, Y)
        for head in ("inner-ridge", "inner-lasso")
    )
    assert (ridge.coef_ != 0).all() and (lasso.coef_ == 0).any()


def test_settings_reach_the_objective_of_a_network(monkeypatch):
    seen = []
    monkeypatch.setattr(network, "task_objective", lambda *args, **how: seen.append((args, how)))
    for split, used in ((25, 9), (4, 4), (None, None)):  # of sets of 10 rows
        a_network(head="outer-ridge", eps=0.2, warmup=0.4, split=split)
        assert seen.pop() == (("outer-ridge", 0.2, 0.4, used), {"masked": True})


def test_errors_of_rows_held_out_are_means_over_targets():
    rng = np.random.default_rng(0)
    F, Y = rng.standard_normal((50, 3)), rng.standard_normal((50, 4))
    Y[rng.random(Y.shape) < 0.3] = np.nan
    once, twice = (
        estimator.HeldOut(columns, 0.3, np.random.default_rng(1)) for columns in (Y, np.c_[Y, Y])
    )
    errors = once.errors(F[once.looked])
    np.testing.assert_allclose(twice.errors(F[twice.looked]), errors)
    assert len(errors) == 15


@pytest.mark.parametrize("steps, looks", [(49, 25), (800, 25), (24, 24), (30, 15)])
def test_a_training_is_looked_at_25_times_at_most(steps, looks):
    seen = []

    def errors(now):
        seen.append(now.step)
        return np.array([1 / now.step])

    watch = network.Watch(errors, SparseTasks(steps=steps))
    for step in range(1, steps + 1):
        watch.report(sparsedis.Snapshot({}, {}, None, step), 1.0, {"eps": 0.0})
    assert len(seen) == looks and seen[-1] == steps


def test_predictors_that_are_not_solved_are_told():
    with pytest.warns(UserWarning, match="1 of 3 fits are not solved"):
        unsolved.warn_of_unsolved({"converged": np.array([True, False, True])})
    lasso = solvers.lasso
    rng = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solvers, "lasso", lambda *problem: lasso(*problem, max_iter=0))
        with pytest.warns(UserWarning, match="2 of 2 fits"):
            predictors.of_numbers(
                rng.standard_normal((30, 3)), rng.standard_normal((30, 2)), "inner-lasso"
            )
