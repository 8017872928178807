"""SparseTasks, the estimator with scikit-learn's conventions."""

import pickle
import types
import warnings

import numpy as np
import pytest
import sklearn
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.datasets import load_diabetes, load_digits, load_iris
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import metrics
from sparsetasks import SparseTasks, estimator, predictors
from sparsetasks.estimator import simplest
from sparsetasks.linear import ReducedRankRidge
from sparsetasks.targets import standardised

pytestmark = pytest.mark.filterwarnings(
    "ignore:not identified", "ignore:.*features for", "ignore:n_components", "ignore:the features")
NETWORK = {"encoder": "mlp", "steps": 3, "samples": 10, "hidden": 8, "rotate": False}
SAME = {"rotate": False, "encoder": "linear"}  # the rotation's search ends within 1e-3


@parametrize_with_checks([SparseTasks(n_components=2, rotate=False)])
def test_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks([SparseTasks(n_components=2)])
def test_the_checks_of_scikit_learn_with_a_rotation(estimator, check):
    check(estimator)


def planted(seed, p=0.4, K=40, N=1000, missing=0.3):
    """Rows (N, 40), targets of a share p of five factors of correlation 0.8, and the factors."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((N, 5)) @ np.linalg.cholesky(0.8 + 0.2 * np.eye(5)).T
    A = np.linalg.qr(rng.standard_normal((20, 20)))[0][:, :5]
    X = np.tanh(0.8 * z @ A.T)
    W = rng.standard_normal((K, 5)) * (rng.random((K, 5)) < p)
    empty = np.flatnonzero(~W.any(axis=1))
    W[empty, rng.integers(5, size=len(empty))] = 1
    Y = z @ W.T + 0.1 * rng.standard_normal((N, K))
    Y[rng.random(Y.shape) < missing] = np.nan
    return np.c_[X, X ** 2], Y, z


def small(seed=0, N=60, d=5, K=3):
    """Rows and targets that are linear in them."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((N, d))
    return X, X @ rng.standard_normal((d, K)) + 0.1 * rng.standard_normal((N, K))


# ------------------------------------------------------------------------------ right on tables


@pytest.mark.parametrize("p, K", [(0.4, 40), (0.5, 80)])
def test_the_factors_of_a_table_are_found_and_counted(p, K):
    X, Y, z = planted(0, p, K)
    model = SparseTasks(encoder="linear").fit(X, Y)
    assert model.n_components_ == 5 and (model.stability_ > 0.9).all()
    assert metrics.mcc(z, model.transform(X)) > 0.99
    mixed = SparseTasks(encoder="linear", rotate=False).fit(X, Y)
    assert metrics.mcc(z, mixed.transform(X)) < 0.9 and np.isnan(mixed.stability_).all()


def test_it_predicts_as_ridge_does_where_the_old_one_did_not():
    """diabetes: 0.14 for 0.55, at a training score of 0.99."""
    data = load_diabetes().data
    X, Y = np.delete(data, [2, 5, 8], axis=1), data[:, [2, 5, 8]]
    out = np.random.default_rng(0).permutation(len(X)) < len(X) / 5
    ours = r2_score(Y[out], SparseTasks().fit(X[~out], Y[~out]).predict(X[out]))
    ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 5, 17), alpha_per_target=True))
    theirs = r2_score(Y[out], ridge.fit(X[~out], Y[~out]).predict(X[out]))
    assert ours > theirs - 0.01


def test_a_class_of_one_row_changes_nothing_else():
    X, y = load_digits(n_class=5, return_X_y=True)
    order = np.random.default_rng(2).permutation(len(X))
    train, test = order[:300], order[300:]
    odd = y.copy()
    odd[train[0]] = 10
    one, other = (SparseTasks(4, rotate=False, likelihood="categorical") for _ in range(2))
    clean = np.mean(one.fit(X[train], y[train]).predict(X[test]) == y[test])
    with pytest.warns(UserWarning, match=r"10 of target 0 \(in 1 of 300 rows\)"):
        found = other.fit(X[train], odd[train]).predict(X[test])
    assert clean > 0.9 and abs(np.mean(found == y[test]) - clean) < 0.01
    assert 10 in other.classes_ and (found != 10).all()
    assert other.predict_proba(X[test])[:, 5].max() < 1 / 100


def test_a_network_is_taken_where_it_predicts_better():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((600, 2))
    Y = np.abs(X) @ rng.standard_normal((2, 6))
    kinked = SparseTasks(n_components=2, steps=200, rotate=False).fit(X, Y)
    assert kinked.encoder_ == "mlp" and kinked.held_out_["mlp"] > 0.9 > kinked.held_out_["linear"]
    assert kinked.score(X, Y) > 0.9 and 0 < len(kinked.loss_curve_) <= 200
    straight = SparseTasks(2, steps=200, rotate=False).fit(X, X @ rng.standard_normal((2, 6)))
    assert straight.encoder_ == "linear" and set(straight.held_out_) == {"linear", "mlp"}


def test_the_simpler_encoder_is_kept_within_a_standard_error():
    rng = np.random.default_rng(0)
    errors = rng.random(100)
    assert simplest({"linear": errors, "mlp": errors - 0.1}) == "mlp"
    assert simplest({"linear": errors, "mlp": errors + 0.1}) == "linear"
    noise = rng.standard_normal(100)
    noise = noise - noise.mean() - 0.05  # better by half a standard error
    assert simplest({"linear": errors, "mlp": errors + noise}) == "linear"
    assert simplest({"linear": np.empty(0), "mlp": np.empty(0)}) == "linear"


def test_training_ends_at_the_step_that_predicts_best(monkeypatch):
    X, Y = small(N=200)
    model = SparseTasks(n_components=2, encoder="mlp", steps=100, hidden=8, samples=20)
    held = iter([0.5, 0.1, *np.linspace(0.2, 0.9, 30)])
    seen = []

    def errors(self, F):
        seen.append(F)
        return np.full(20, next(held))

    monkeypatch.setattr(estimator.HeldOut, "errors", errors)
    model.fit(X, Y)
    assert len(model.loss_curve_) == 48  # the second look of 25 was best, ten more, then the end
    looked = np.sort(seen[1], axis=0)  # 180 rows and 20 held out, in another order
    np.testing.assert_allclose(np.sort(model._encode(X), axis=0), looked, rtol=1e-6)
    assert not np.allclose(np.sort(seen[-2], axis=0), looked, rtol=1e-3)


@pytest.mark.parametrize("K", [1, 12])
def test_of_noise_a_warning_says_that_nothing_is_predicted(K):
    warned = 0
    for seed in range(6):
        X, Y = (np.random.default_rng([seed, c]).standard_normal((300, c)) for c in (5, K))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = SparseTasks(n_components=1, encoder="linear", rotate=False).fit(X, Y)
        warned += any("no better than" in str(w.message) for w in caught)
        assert -0.3 < model.held_out_["linear"] < 0.1
    assert warned >= 5


def test_what_is_held_out_is_scored_by_r2():
    X, Y = small(N=300, K=1)
    Y = 7 + Y + 2 * np.random.default_rng(1).standard_normal(Y.shape)
    model = SparseTasks(n_components=1, encoder="linear", rotate=False).fit(X, Y)
    X, Y = standardised(X), standardised(Y)
    held = estimator.HeldOut(Y, 0.1, np.random.default_rng(0))
    F = X @ ReducedRankRidge(X, Y).encoder(1, held.rows)
    W, b = predictors.of_numbers(F[held.rows], Y[held.rows], "inner-ridge")
    error = (Y[held.out] - F[held.out] @ W.T - b) ** 2
    mean = (Y[held.out] - Y[held.rows].mean()) ** 2
    r2 = 1 - error.sum() / mean.sum()
    assert abs(r2 - (1 - error.mean())) > 0.03  # in units of the variance of all rows
    assert model.held_out_["linear"] == pytest.approx(r2, abs=0.005)


def test_what_auto_does_not_consider_is_told(monkeypatch):
    X, Y = small(N=200, d=8, K=8)
    monkeypatch.setattr(estimator.linear, "MOST", 3)
    with pytest.warns(UserWarning, match="3 features are the most"):
        SparseTasks(encoder="linear", rotate=False).fit(X, Y)
    with pytest.warns(UserWarning, match="the mlp may use more"):
        SparseTasks(**NETWORK).fit(X, Y)
    with pytest.raises(ValueError, match="a whole number from 1, or auto"):
        SparseTasks(n_components="some").fit(X, Y)


def test_of_classes_it_is_a_classifier():
    X, Y = small(N=200, K=1)
    y = (Y[:, 0] > 0).astype(int)
    real, model = SparseTasks(1, **SAME), SparseTasks(1, likelihood="categorical", **SAME)
    assert is_regressor(real) and not is_classifier(real)
    assert is_classifier(model) and not is_regressor(model)
    assert cross_val_score(model, X, y, scoring="roc_auc").min() > 0.9
    weight = np.arange(200) < 100
    model.fit(X, y)
    assert model.score(X, y, sample_weight=weight) == model.score(X[:100], y[:100])
    real.fit(X, Y)
    assert real.score(X, Y, weight) == pytest.approx(real.score(X[:100], Y[:100]))


def test_images_have_no_number_of_columns():
    X = np.random.default_rng(0).standard_normal((40, 9, 12))
    model = SparseTasks(1, **SAME).fit(X, X[:, 0, :2])
    assert not hasattr(model, "n_features_in_")
    for wrong in (X[:, :, :9], X[:, :8]):
        with pytest.raises(ValueError, match=r"expected \(9, 12, 1\)"):
            model.transform(wrong)
    assert model.get_feature_names_out().tolist() == ["feature0"]
    model.fit(X[:, 0], X[:, 0, :2]).fit(X, X[:, 0, :2])  # nor after a fit on a table
    assert not hasattr(model, "n_features_in_")


def test_the_linear_encoder_is_fitted_to_all_rows_at_the_end():
    X, Y = small()
    model = SparseTasks(n_components=2, encoder="linear").fit(X, Y)
    X, Y = (standardised(a) for a in (X, Y))
    A = ReducedRankRidge(X, Y).encoder(2, np.arange(60))
    np.testing.assert_allclose(model.params_["linear1.W"], A)


@pytest.mark.filterwarnings("ignore:few targets")
def test_predictors_promise_nothing_of_noise():
    """Of more columns than rows an encoder fits any labels, and its features on the same rows."""
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((600, 200)), rng.standard_normal((600, 5))
    model = SparseTasks(**SAME).fit(X[:100], Y[:100])
    assert model.score(X[100:], Y[100:]) > -0.04
    classes = SparseTasks(likelihood="categorical", **SAME).fit(X[:100], Y[:100, 0] > 0)
    p = classes.predict_proba(X[100:])[np.arange(500), (Y[100:, 0] > 0).astype(int)]
    assert -np.log(p).mean() < 0.75
    with pytest.warns(UserWarning, match="nothing is predicted"):
        one = SparseTasks(1, encoder="linear").fit(X[:, :30], Y[:, :3])
    assert not one.predictive_ and not one.identified_.any() and one.stability_[0] == 1


def test_a_wide_table_is_told(monkeypatch):
    monkeypatch.setattr(estimator.linear, "WIDE", 4)
    X, Y = small()
    with pytest.warns(UserWarning, match="X: 5 columns stand for their 4 largest"):
        SparseTasks(n_components=2, **SAME).fit(X, Y)


def test_a_row_of_weight_0_is_not_scored():
    X, Y = small()
    Y = (Y > 0).astype(float)
    Y[2:, 2] = -1
    Y[:2, 2] = 0, 1
    with pytest.warns(UserWarning, match="too few rows"):
        model = SparseTasks(2, likelihood="categorical", **SAME).fit(X, Y)
    weight = np.ones(60)
    weight[:2] = 0
    assert model.score(X, Y, weight) == model.score(X[2:], Y[2:])


def questionnaire(mixed, K=10):
    """Few targets, and inputs of one factor each, or mixtures of all five."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((2000, 5))
    own = np.eye(5)[np.arange(20) % 5] * rng.uniform(0.5, 1, (20, 1))
    X = z @ (rng.standard_normal((20, 5)) if mixed else own).T
    X += 0.5 * rng.standard_normal((2000, 20))
    W = np.eye(5)[np.arange(K) % 5]
    W = W if mixed else W + 0.3 * rng.standard_normal((K, 5))
    return X, z @ W.T, z


def test_few_targets_are_helped_by_inputs_that_are_as_sparse():
    X, Y, z = questionnaire(mixed=False)
    with pytest.warns(UserWarning, match="the inputs take part"):
        with_inputs = SparseTasks(n_components=5, encoder="linear").fit(X, Y)
    assert len(with_inputs.loadings_) == 30 and metrics.mcc(z, with_inputs.transform(X)) > 0.94
    X, Y, z = questionnaire(mixed=True)
    alone = SparseTasks(n_components=5, encoder="linear").fit(X, Y)
    assert len(alone.loadings_) == 10 and metrics.mcc(z, alone.transform(X)) > 0.95


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid")
def test_a_network_that_diverges_leaves_the_linear_encoder():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((600, 2))
    Y = X @ rng.standard_normal((2, 6))
    with pytest.warns(UserWarning, match="the mlp is left out"):
        model = SparseTasks(n_components=2, lr=1e30).fit(X, Y)
    assert model.encoder_ == "linear" and model.score(X, Y) > 0.99
    with pytest.raises(FloatingPointError):
        clone(model).set_params(encoder="mlp").fit(X, Y)


def test_a_network_never_sees_the_rows_held_out(monkeypatch):
    X, Y = small(N=200)
    fit, seen = estimator.network.fit, []

    def spy(encoder, rows, known, *others):
        seen.append(known)
        return fit(encoder, rows, known, *others)

    monkeypatch.setattr(estimator.network, "fit", spy)
    SparseTasks(n_components=2, **NETWORK).fit(X, Y)
    assert (~seen[0]).all(axis=1).sum() == 20 and seen[0].all(axis=1).sum() == 180


def test_each_target_has_probabilities_of_its_own_classes():
    X, Y = small(N=200)
    classes = np.stack([Y[:, 0] > 0, (Y[:, 1] > 0) + (Y[:, 1] > 1) * 1], axis=1).astype(int)
    proba = SparseTasks(2, likelihood="categorical", **SAME).fit(X, classes).predict_proba(X)
    assert [p.shape[1] for p in proba] == [2, 3]


def test_weight_decay_makes_smaller_parameters():
    X, Y = small(N=100)
    size = {}
    for decay in (0, 1):
        model = SparseTasks(n_components=2, **NETWORK | {"steps": 40}, weight_decay=decay)
        size[decay] = sum(np.abs(a).sum() for a in model.fit(X, Y).params_.values())
    assert size[1] < 0.9 * size[0]


# ------------------------------------------------------------------------------ labels and classes


@pytest.mark.parametrize("settings", [SAME, NETWORK], ids=["linear", "network"])
def test_a_gap_in_the_labels_is_no_label(settings):
    """NaN, or behind a mask: what stands there is never seen."""
    X, Y = small(N=200, K=6)
    gaps = np.random.default_rng(1).random(Y.shape) < 0.3
    model = SparseTasks(n_components=3, **settings).fit(X, np.where(gaps, np.nan, Y))
    masked = np.ma.masked_array(np.where(gaps, -999.0, Y), gaps)
    same = clone(model).fit(X, masked)
    np.testing.assert_array_equal(same.coef_, model.coef_)
    found = model.predict(X)
    by_hand = [r2_score(Y[~g, k], found[~g, k]) for k, g in enumerate(gaps.T)]
    assert model.score(X, masked) == pytest.approx(np.mean(by_hand))
    with pytest.raises(ValueError, match="X: found masked"):
        model.predict(np.ma.masked_array(X, X > 0))


def test_scores_of_targets_with_gaps_are_numbers():
    """scikit-learn's own r2 refuses NaN; the estimator's leaves gaps out."""
    X, Y = small(N=90)
    Y[::4, 1] = np.nan
    model = SparseTasks(n_components=2, **SAME)
    for scoring in (None, SparseTasks.score):
        assert np.isfinite(cross_val_score(model, X, Y, scoring=scoring, cv=3)).all()
    with pytest.raises(ValueError, match="NaN"):
        cross_val_score(model, X, Y, scoring="r2", cv=3, error_score="raise")


@pytest.mark.filterwarnings("error:.*not solved")  # at eps 0 some classes are separable
@pytest.mark.parametrize("settings", [SAME, NETWORK], ids=["linear", "network"])
def test_classes_may_be_texts(settings):
    X, Y = small(N=300)
    names = np.array(["low", "middle", "high"], object)
    code = (Y > -0.5).astype(int) + (Y > 0.5)
    texts = names[code]
    texts[::7, 0] = None
    model = SparseTasks(n_components=3, likelihood="categorical", **settings).fit(X, texts)
    assert [list(c) for c in model.classes_] == [sorted(names)] * 3
    assert model.coef_.shape == (3, 3, 3) and model.intercept_.shape == (3, 3)
    found = model.predict(X)
    assert found.shape == Y.shape and set(found.ravel()) <= set(names)
    on = texts != None  # noqa: E711
    assert model.score(X, texts) == pytest.approx(
        np.mean([np.mean(found[r, k] == texts[r, k]) for k, r in enumerate(on.T)]))
    proba = model.predict_proba(X)
    assert len(proba) == 3 and proba[0].shape == (300, 3)
    np.testing.assert_allclose(proba[1].sum(axis=1), 1)
    assert (model.classes_[1][proba[1].argmax(axis=1)] == found[:, 1]).all()
    if settings["encoder"] == "linear":
        assert model.score(X, texts) > 0.85
        one = clone(model).fit(X, texts[:, 1])
        assert one.predict(X).shape == (300,) and one.predict_proba(X).shape == (300, 3)


def test_real_targets_have_no_probabilities():
    X, Y = small()
    model = SparseTasks(n_components=2).fit(X, Y)
    assert not hasattr(model, "predict_proba")


# ------------------------------------------------------------------------------ units


EXACT = [(SAME, 1e-7), (NETWORK, 5e-3)]


@pytest.mark.parametrize("unit", [1e-30, 1e-12, 1e12, 1e30])
@pytest.mark.parametrize("settings, tolerance", EXACT, ids=["linear", "network"])
def test_units_do_not_count(unit, settings, tolerance):
    X, Y = small(N=80)
    model, other = (SparseTasks(n_components=3, **settings) for _ in range(2))
    F, found = model.fit(X, Y).transform(X), model.predict(X)
    other.fit(unit * X, Y / unit)
    np.testing.assert_allclose(np.abs(other.transform(unit * X)), np.abs(F), atol=tolerance)
    np.testing.assert_allclose(other.predict(unit * X) * unit, found, atol=tolerance)


def test_units_do_not_count_for_the_rotation():
    X, Y, _ = planted(0, p=0.25, N=600)
    model, other = (SparseTasks(n_components=5, encoder="linear") for _ in range(2))
    F = model.fit(X, Y).transform(X)
    found = other.fit(1e-12 * X, 1e12 * Y).transform(1e-12 * X)
    np.testing.assert_allclose(np.abs(found), np.abs(F), atol=5e-3)


def test_a_shift_of_a_million_deviations_does_not_count():
    X, Y = small(N=80)
    model = SparseTasks(n_components=3, **SAME).fit(X, Y)
    moved = clone(model).fit(X + 1e6, Y - 1e6)
    np.testing.assert_allclose(moved.predict(X + 1e6) + 1e6, model.predict(X), atol=1e-5)


def test_a_column_that_is_constant_in_training_is_not_blown_up():
    X, Y = small()
    X[:, 1] = 0.1
    model = SparseTasks(n_components=2, encoder="linear").fit(X, Y)
    assert model.input_scale_[1] == 1
    X[:, 1] = 1.1
    assert np.abs(model.transform(X)).max() < 100


# ------------------------------------------------------------------------------ the rest of a tool


def test_images_go_in_as_they_are():
    rng = np.random.default_rng(0)
    X = rng.integers(256, size=(60, 9, 12), dtype=np.uint8)
    Y = rng.standard_normal((60, 4))
    for encoder in ("linear", "convnet"):
        model = SparseTasks(n_components=3, steps=2, samples=10, encoder=encoder).fit(X, Y)
        assert model.transform(X[:7]).shape == (7, 3) and model.encoder_ == encoder
        np.testing.assert_allclose(model.transform(X).std(axis=0), 1, rtol=1e-5)
        with pytest.raises(ValueError, match="found rows"):
            model.transform(X[:, :, :10])


def test_wide_rows_are_their_principal_components():
    rng = np.random.default_rng(0)
    z = rng.standard_normal((60, 2))
    X = z @ rng.standard_normal((2, 700)) + 0.01 * rng.standard_normal((60, 700))
    model = SparseTasks(n_components=2, encoder="linear").fit(X, z @ rng.standard_normal((2, 4)))
    assert model.score(X, z @ np.linalg.lstsq(z, model.predict(X))[0]) > 0.99
    assert model.transform(X).shape == (60, 2)


BAD = {
    "steps": [0, -5, "8", 2.5, True], "lr": [-1.0, 0.0, np.nan, np.inf, None], "eps": [2.0, -0.5],
    "hidden": [0], "beta1": [1.0], "n_components": [2.5, 0, "many"], "split": [3.5, 0],
    "samples": [1], "validation": [0.9], "weight_decay": [-1.0], "rotate": ["yes"],
    "head": ["lasso", "inner-group-lasso"], "likelihood": ["Categorical"], "device": ["cuda"],
    "encoder": ["convnet", "cnn"], "verbose": [-1]}


@pytest.mark.parametrize("name, value", [(name, v) for name, values in BAD.items() for v in values])
def test_parameters_that_cannot_be_meant_are_named(name, value):
    X, Y = small()
    with pytest.raises(ValueError, match=f"^{name}: found"):
        SparseTasks(**{"n_components": 2, name: value}).fit(X, Y)


def test_more_features_than_there_can_be_are_refused_or_told():
    X, Y = small(d=4)
    with pytest.raises(ValueError, match="n_components: found 5, expected at most the rank of X"):
        SparseTasks(n_components=5, encoder="linear").fit(X, Y)
    with pytest.warns(UserWarning, match="4 features for 3 targets"):
        SparseTasks(n_components=4, encoder="linear").fit(X, Y)
    with pytest.raises(ValueError, match="head: found 'inner-ridge', expected inner-lasso"):
        SparseTasks(likelihood="categorical", head="inner-ridge").fit(X, Y > 0)
    with pytest.raises(ValueError, match="no classes"):
        SparseTasks(likelihood="categorical").fit(X, Y)
    with pytest.raises(ValueError, match="column 1 has fewer than 2"):
        SparseTasks().fit(X, np.where([[0, 1, 0]], np.nan, Y))


def test_features_that_are_not_identified_are_named():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((300, 4))
    Y = X @ rng.standard_normal((4, 30))  # dense: any rotation is as good
    with pytest.warns(UserWarning, match="not identified: .*too few targets tell it apart") as told:
        model = SparseTasks(n_components=4, encoder="linear").fit(X, Y)
    assert not model.identified_.all() and told[0].filename == __file__
    one = SparseTasks(n_components=1, encoder="linear")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert one.fit(X, X[:, :1] + np.zeros((1, 3))).rotation_.shape == (1, 1)


def test_nothing_works_before_fit():
    X, Y = small()
    model = SparseTasks()
    for call in (model.transform, model.predict, lambda X: model.score(X, Y)):
        with pytest.raises(NotFittedError):
            call(X)


def test_a_frame_of_features_changes_no_prediction():
    pytest.importorskip("pandas")
    X, Y = small()
    model = SparseTasks(n_components=2).fit(X, Y)
    found = model.predict(X)
    with sklearn.config_context(transform_output="pandas"):
        assert list(model.transform(X).columns) == ["feature0", "feature1"]
        np.testing.assert_array_equal(model.predict(X), found)
        assert model.score(X, Y) > 0
    np.testing.assert_array_equal(
        clone(model).set_output(transform="pandas").fit(X, Y).predict(X), found)


@pytest.mark.parametrize("settings", [SAME, NETWORK], ids=["linear", "network"])
def test_it_is_cloned_pickled_and_chained(settings):
    X, Y = small()
    model = SparseTasks(n_components=3, **settings).fit(X, Y)
    again = pickle.loads(pickle.dumps(model))
    assert (again.predict(X) == model.predict(X)).all()
    assert list(model.get_feature_names_out()) == ["feature0", "feature1", "feature2"]
    assert (clone(model).fit(X, Y).predict(X) == model.predict(X)).all()  # the same seed
    chain = make_pipeline(FunctionTransformer(lambda X: 2 * X), clone(model)).fit(X, Y)
    np.testing.assert_allclose(chain.predict(X), model.predict(X), atol=1e-4)
    assert model.fit(X, Y[:, 0]).predict(X).shape == (60,)


def test_it_says_how_it_goes(capsys):
    X, Y = small()
    SparseTasks(n_components=2, **NETWORK, verbose=2).fit(X, Y)
    out = capsys.readouterr().out
    assert out.count("step") == 3 and "rows held out R^2" in out
    SparseTasks(n_components=2, **NETWORK, verbose=1, validation=0.0).fit(X, Y)
    assert capsys.readouterr().out == ""  # less than ten seconds


def test_a_random_state_draws_a_seed_at_each_fit():
    X, Y = small()
    one, other = (np.random.RandomState(seed) for seed in (1, 2))
    model = SparseTasks(n_components=2, random_state=one, **SAME).fit(X, Y)
    seed = model.seed_
    assert model.set_params(random_state=other).fit(X, Y).seed_ != seed
    assert model.set_params(random_state=5).fit(X, Y).seed_ == 5
    with pytest.raises(ValueError, match="^random_state: found"):
        model.set_params(random_state=-1).fit(X, Y)


def test_a_class_that_is_too_rare_has_its_share_as_probability():
    X, y = load_iris(return_X_y=True)
    y[[0, 50, 100]] = 3
    with pytest.warns(UserWarning, match="too few rows"):
        p = SparseTasks(2, likelihood="categorical", **SAME).fit(X, y).predict_proba(X)
    np.testing.assert_allclose(p[:, 3], 0.02)
    np.testing.assert_allclose(p.sum(axis=1), 1)


def test_one_target_of_classes_has_one_array_of_them():
    X, y = load_iris(return_X_y=True)
    model, cv = SparseTasks(2, likelihood="categorical", **SAME), StratifiedKFold(3)
    assert cross_val_predict(model, X, y, cv=cv, method="predict_proba").shape == (150, 3)
    assert model.fit(X, y).classes_.tolist() == [0, 1, 2]
    assert [list(names) for names in model.fit(X, y[:, None]).classes_] == [[0, 1, 2]]


def test_a_column_that_one_held_out_row_has_counts_in_the_rank():
    X, Y = small()
    out = np.random.default_rng(0).permutation(60)[0]
    X = np.c_[X, np.arange(60) == out]
    assert SparseTasks(n_components=6, **SAME).fit(X, Y).transform(X).shape == (60, 6)


def test_a_score_of_other_targets_is_refused():
    X, Y = small()
    with pytest.raises(ValueError, match="Y: found 2 targets, expected those of fit, 3"):
        SparseTasks(n_components=2, **SAME).fit(X, Y).score(X, Y[:, :2])


def test_a_constant_target_is_not_predicted_well():
    X, Y = small()
    model = SparseTasks(n_components=2, **SAME)
    alone = model.fit(X, Y[:, :1]).held_out_["linear"]
    constant = np.c_[Y[:, 0], np.ones((60, 9))]
    assert model.fit(X, constant).held_out_["linear"] == pytest.approx(alone)
    assert model.fit(X, np.ones((60, 2))).held_out_ == {}


def test_a_network_of_two_labels_is_told_what_to_change():
    X, _ = small()
    y = np.full(60, np.nan)
    y[np.random.default_rng(0).permutation(60)[[0, 50]]] = 0, 1
    with pytest.raises(ValueError, match="^validation: found 0.1"):
        SparseTasks(1, encoder="mlp", steps=3, rotate=False).fit(X, y)


def test_a_refused_fit_leaves_nothing_of_the_one_before():
    X, Y = small()
    model = SparseTasks(n_components=2, **SAME).fit(X, Y)
    with pytest.raises(ValueError, match="n_components"):
        model.set_params(n_components=50).fit(100 * X + 3, Y)
    with pytest.raises(NotFittedError):
        model.predict(X)
    model.set_params(n_components=2).fit(X, Y)
    with pytest.raises(ValueError, match="Y: found"):
        model.fit(np.c_[X, X], Y[:5])
    with pytest.raises(NotFittedError):
        model.predict(X)
    with pytest.raises(ValueError, match="X: found constant columns alone"):
        model.fit(np.ones(X.shape), Y)


def test_weights_of_other_rows_are_refused():
    X, Y = small()
    with pytest.raises(ValueError, match="sample_weight"):
        SparseTasks(n_components=2, **SAME).fit(X, Y).score(X, Y, sample_weight=np.ones(7))


def test_the_linear_encoder_chooses_its_penalties_on_its_own_rows():
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((60, 30)), rng.standard_normal((60, 3))
    own = ReducedRankRidge(X, Y).encoder(3, np.arange(50))
    others = ReducedRankRidge(X, np.r_[Y[:50], X[50:, :3]]).encoder(3, np.arange(50))
    np.testing.assert_array_equal(own, others)


def test_features_of_noise_are_warned_of():
    rng = np.random.default_rng(2)
    X, Y = rng.standard_normal((300, 30)), rng.standard_normal((300, 40))
    with pytest.warns(UserWarning, match="no better than"):
        SparseTasks(4, encoder="linear").fit(X, Y)


def test_targets_with_labels_on_some_rows_ask_for_as_many_features():
    """Each target's intercept is that of its own rows."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        X, W = rng.standard_normal((1000, 12)), rng.standard_normal((20, 4))
        Y = X[:, :4] @ W.T + 0.1 * rng.standard_normal((1000, 20))
        Y[X[:, 0] < 1] = np.nan
        model = SparseTasks(encoder="linear", rotate=False).fit(X, Y)
        assert model.n_components_ == 4 and model.score(X, Y) > 0.95


def test_nothing_to_score_is_refused():
    X, Y = small()
    model = SparseTasks(n_components=2, **SAME).fit(X, Y)
    with pytest.raises(ValueError, match="no target has two labels"):
        model.score(X, np.full(Y.shape, np.nan))


def test_targets_that_say_nothing_beside_inputs_are_told_by_our_warnings_alone():
    X = np.random.default_rng(0).standard_normal((50, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        SparseTasks(n_components=1, encoder="linear").fit(X, np.ones(50))


def test_negative_classes_are_missing_and_counted():
    X, Y = small(N=90, K=1)
    y = np.digitize(Y[:, 0], np.quantile(Y, (1 / 3, 2 / 3))) - 1  # -1, 0, 1
    model = SparseTasks(1, likelihood="categorical", **SAME)
    with pytest.warns(UserWarning, match="30 of 90 classes are negative"):
        model.fit(X, y)
    assert model.classes_.tolist() == [0, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(X, np.where(y < 0, "low", y))


@pytest.mark.parametrize(
    "targets, inputs, taken",
    [(0.4, 0.3, True), (0.3, 0.4, False), (0.8, 0.6, False), (0.8, 0.5, True)])
def test_inputs_take_part_where_they_are_sparse_and_as_sparse_as_the_targets(
        targets, inputs, taken, monkeypatch):
    on = np.r_[np.full((2, 4), targets), np.full((3, 4), inputs)]
    found = types.SimpleNamespace(on=on, loadings=np.ones((5, 4)))
    monkeypatch.setattr(estimator, "unmix", lambda *args, **how: found)
    model, X = SparseTasks(), np.random.default_rng(0).standard_normal((9, 3))
    model.seed_ = 0
    assert (model._unmix_by_all(X, X, X[:, :2]) is found) == taken
