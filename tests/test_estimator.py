"""SparseTasks, the estimator with scikit-learn's conventions."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks

import metrics
import sparsedis
from sparsetasks import SparseTasks, estimator
from sparsetasks.estimator import Targets

QUICK = SparseTasks(n_components=2, steps=3, samples=10, hidden=8)
LONGER = SparseTasks(n_components=2, steps=60, samples=20, hidden=16)  # learns what checks score


@parametrize_with_checks([LONGER])
def test_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


def correlated_factors(rng, N=1000, d=12, m=4, K=24, rho=0.8):
    Sigma = np.full((m, m), rho) + (1 - rho) * np.eye(m)
    z = rng.standard_normal((N, m)) @ np.linalg.cholesky(Sigma).T
    W = rng.standard_normal((K, m)) * (rng.random((K, m)) < 0.5)
    return z, z @ rng.standard_normal((m, d)), z @ W.T + 0.05 * rng.standard_normal((N, K))


def targets_of_one_or_two(rng, z, K):
    """Labels of K targets, of one or two factors each."""
    m = z.shape[1]
    on = rng.random((K, m)).argsort(axis=1) < rng.integers(1, 3, size=(K, 1))
    W = rng.standard_normal((K, m)) * on
    return z @ W.T + 0.05 * rng.standard_normal((len(z), K))


def test_the_lasso_finds_the_factors_and_the_ridge_mixes_them():
    """With 100 targets; with 24 it does not on every data set: docs/own-data.md."""
    rng = np.random.default_rng(1)
    z, X, _ = correlated_factors(rng)
    Y = targets_of_one_or_two(rng, z, K=100)
    mcc = {}
    for head in ("inner-lasso", "inner-ridge"):
        model = SparseTasks(n_components=4, head=head, steps=300).fit(X, Y)
        assert model.coef_.shape == (100, 4) and model.intercept_.shape == (100,)
        assert model.score(X, Y) > 0.95
        mcc[head] = metrics.mcc(z, model.transform(X))
    assert mcc["inner-lasso"] > 0.99 > mcc["inner-ridge"] + 0.04, mcc


def test_a_gap_in_the_labels_is_no_label():
    """What stands in a gap is never seen: training and predictors are the same bits."""
    rng = np.random.default_rng(1)
    _, X, Y = correlated_factors(rng, N=200, K=6)
    gaps = rng.random(Y.shape) < 0.3
    targets = Targets(np.where(gaps, np.nan, Y), "gaussian")
    assert (targets.known == ~gaps).all() and not targets.labels[gaps].any()
    np.testing.assert_allclose(targets.labels[~gaps[:, 0], 0].std(), 1)
    model = SparseTasks(n_components=4, steps=5).fit(X, np.where(gaps, np.nan, Y))
    assert np.isfinite(model.predict(X)).all()
    assert model.score(X, np.where(gaps, np.nan, Y)) == pytest.approx(
        np.mean([_r2(Y[~g, k], model.predict(X)[~g, k]) for k, g in enumerate(gaps.T)])
    )


def test_a_target_without_labels_leaves_the_labels_of_others():
    Y = np.random.default_rng(0).standard_normal((20, 2))
    with_gap = np.stack([Y[:, 0], np.full(20, np.nan)], axis=1)
    labels = Targets(with_gap, "gaussian", few=True).labels
    np.testing.assert_allclose(labels[:, 0], Targets(Y, "gaussian").labels[:, 0])
    assert not labels[:, 1].any()


def _r2(y, found):
    return 1 - ((y - found) ** 2).sum() / ((y - y.mean()) ** 2).sum()


@pytest.mark.parametrize("likelihood", ["gaussian", "categorical"])
def test_a_row_without_a_label_changes_no_fit(likelihood):
    """Of a head: the solution on the rows that are known is the one on zeros elsewhere."""
    rng = np.random.default_rng(2)
    F, known = rng.standard_normal((2, 30, 4)), rng.random((2, 3, 30)) < 0.7
    y = rng.standard_normal((2, 3, 30))
    head = sparsedis.HEADS["inner-lasso"]
    if likelihood == "categorical":
        y = np.eye(3)[rng.integers(3, size=(2, 3, 30))]
        head = sparsedis.HEADS["inner-group-logistic"]
    _, dF, info = sparsedis.head_on_sets(*head, F, y, 0.2, known=known)
    other = np.where(known[..., None], y, y[:, :, ::-1]) if y.ndim == 4 else y
    _, dF_other, _ = sparsedis.head_on_sets(*head, F, other, 0.2, known=known)
    if likelihood == "categorical":
        np.testing.assert_allclose(dF_other, dF, atol=1e-9)
    F_norm, _ = sparsedis.normalise(F)
    for g, k in np.ndindex(2, 3):
        on = known[g, k]
        X, labels = F_norm[g][on][None], y[g, k][on][None]
        if likelihood == "gaussian":
            # y is 0 where not known, as Targets has it
            X_all, y_all = (F_norm[g] * on[:, None])[None], (y[g, k] * on)[None]
            w_all, _ = sparsedis.solvers.lasso(
                X_all, y_all, 0.2 * sparsedis.solvers.lasso_lambda_max(X_all, y_all))
            w, _ = sparsedis.solvers.lasso(
                X, labels, 0.2 * sparsedis.solvers.lasso_lambda_max(X, labels))
            np.testing.assert_allclose(w_all, w, atol=1e-9)
        else:
            lam = 0.2 * sparsedis.logistic_lambda_max(X, labels)
            W, _ = sparsedis.solvers.group_lasso(X, labels, lam, loss="logistic")
            np.testing.assert_allclose(info["w"][3 * g + k], W[0], atol=1e-6)


def test_classes_are_told_apart_and_a_missing_one_is_none():
    rng = np.random.default_rng(0)
    z, X, Y = correlated_factors(rng, N=400, K=8)
    classes = (Y > -0.5).astype(int) + (Y > 0.5)
    gaps = rng.random(Y.shape) < 0.2
    model = SparseTasks(n_components=4, steps=60, likelihood="categorical")
    model.fit(X, np.where(gaps, -1, classes))
    assert model.coef_.shape == (8, 3, 4) and model.intercept_.shape == (8, 3)
    found = model.predict(X)
    assert found.shape == classes.shape and (found == classes).mean() > 0.7
    assert model.score(X, np.where(gaps, -1, classes)) > 0.7
    never = np.where(classes[:, 0] == 2, 0, classes[:, 0])
    w, b = Targets(np.stack([never, classes[:, 1]], 1), "categorical").predictor(
        X, 0, np.arange(400), "inner-lasso", 0.1)
    assert b[2] == -np.inf and not w[2].any()  # a class that this target never has


def test_images_go_in_as_they_are():
    rng = np.random.default_rng(0)
    X = rng.integers(256, size=(60, 9, 12), dtype=np.uint8)
    model = SparseTasks(n_components=3, steps=2, samples=10).fit(X, rng.standard_normal((60, 4)))
    assert model.transform(X[:7]).shape == (7, 3) and model.encoder_.spec.name == "convnet"
    np.testing.assert_allclose(model.transform(X).std(axis=0), 1, rtol=1e-6)
    with pytest.raises(ValueError, match="found rows"):
        model.transform(X[:, :, :10])


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"head": "lasso"}, "head: found lasso"),
        ({"head": "inner-group-lasso"}, "head: found inner-group-lasso"),
        ({"likelihood": "Categorical"}, "likelihood: found"),
        ({"device": "cuda"}, "device: found cuda"),
        ({"encoder": "convnet"}, "encoder: found convnet"),
        ({"likelihood": "categorical"}, "no classes"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, told):
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((30, 5)), rng.standard_normal((30, 2))
    with pytest.raises(ValueError, match=told):
        SparseTasks(n_components=2, steps=1, **settings).fit(X, np.abs(Y))


def test_it_is_cloned_pickled_and_chained():
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((40, 5)), rng.standard_normal((40, 3))
    model = clone(QUICK).set_params(n_components=3).fit(X, Y)
    again = pickle.loads(pickle.dumps(model))
    assert (again.predict(X) == model.predict(X)).all()
    assert list(model.get_feature_names_out()) == ["sparsetasks0", "sparsetasks1", "sparsetasks2"]
    assert (clone(model).fit(X, Y).predict(X) == model.predict(X)).all()  # the same seed
    chain = make_pipeline(FunctionTransformer(lambda X: 2 * X), clone(model)).fit(X, Y)
    np.testing.assert_allclose(chain.predict(X), model.predict(X), atol=1e-4)  # units do not count
    assert model.fit(X, Y[:, 0]).predict(X).shape == (40,)


def test_rows_are_drawn_among_those_that_have_labels():
    known = np.array([[1, 0], [1, 0], [1, 1], [0, 1], [1, 1]], bool)
    targets = Targets(np.where(known, 1.0, np.nan) * np.arange(5)[:, None], "gaussian")
    for seed in range(20):
        index, y, on = targets.draw(np.random.default_rng(seed), 3, 3)
        assert len(set(index)) == len(index) == 3 and y.shape == on.shape == (2, 3)
        assert on[0].all() and (on.mean(axis=1) >= 0.5).all()
        assert not y[~on].any()


def test_a_target_with_few_labels_shrinks_no_set():
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((200, 4)), rng.standard_normal((200, 5))
    Y[3:, 2] = np.nan
    targets = Targets(Y, "gaussian")
    assert targets.size(50) == 50
    for seed in range(20):
        _, _, on = targets.draw(np.random.default_rng(seed), 50, 4)
        assert on[0].all()
    assert SparseTasks(n_components=2, steps=3).fit(X, Y).coef_.shape == (5, 2)


def test_a_column_that_is_constant_in_training_is_not_blown_up():
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((60, 4)), rng.standard_normal((60, 3))
    X[:, 1] = 7
    model = SparseTasks(n_components=2, steps=5).fit(X, Y)
    X[:, 1] = 8
    assert np.abs(model.transform(X)).max() < 100
    mean, scale = estimator.mean_and_scale(np.full((3_000_000, 1), 0.1, np.float32))
    assert abs(mean[0] - 0.1) < 1e-6 and scale[0] == 1


def test_too_few_of_a_class_are_told_as_often_as_they_were_seen():
    rng = np.random.default_rng(0)
    F, y = rng.standard_normal((5, 2)), np.array([0, 0, 0, 0, 1])
    w, b = estimator.class_predictor(F, y, np.eye(2)[y], "inner-lasso", 0.1)
    assert not w.any() and b[0] > b[1] > -np.inf
    w, b = estimator.class_predictor(F, 0 * y, np.eye(2)[0 * y], "inner-lasso", 0.0)
    assert not w.any() and b[1] == -np.inf


def test_a_random_state_is_drawn_from_once():
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((40, 5)), rng.standard_normal((40, 3))
    state = np.random.RandomState(3)
    model = clone(QUICK).set_params(random_state=state).fit(X, Y)
    seed = model.seed()
    assert model.seed() == seed and model.fit(X, Y).seed() == seed
