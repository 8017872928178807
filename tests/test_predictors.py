"""Predictors on features: many small fits at once are the fits one by one."""

import numpy as np
import pytest
from sklearn.linear_model import Lasso

import solvers
from sparsetasks import predictors
from sparsetasks.targets import Targets


def features(seed=0, N=120, m=4, K=6):
    """Correlated features and targets of some of them, a fifth of the labels missing."""
    rng = np.random.default_rng(seed)
    F = rng.standard_normal((N, m)) @ (np.eye(m) + 0.5) + 3
    W = rng.standard_normal((K, m)) * (rng.random((K, m)) < 0.5)
    Y = F @ W.T + 0.3 * rng.standard_normal((N, K)) + 2
    Y[rng.random(Y.shape) < 0.2] = np.nan
    return F, Y, W


@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
def test_a_fit_from_sums_is_the_fit_on_the_rows(share):
    F, Y, _ = features()
    total = [a.sum(axis=0) for a in predictors.fold_sums(F, Y)]
    W, b = predictors.fit(*predictors.LASSO, share, *total)
    W2, b2 = predictors.fit(*predictors.RIDGE, share, *total)
    for k, y in enumerate(Y.T):
        on = np.isfinite(y)
        X, y = F[on] - F[on].mean(axis=0), y[on]
        lam = share * np.abs(X.T @ (y - y.mean())).max() / len(y)
        own = Lasso(lam, tol=1e-12, max_iter=100_000).fit(F[on], y)
        np.testing.assert_allclose(W[k], own.coef_, atol=1e-6)
        np.testing.assert_allclose(b[k], own.intercept_, atol=1e-5)
        lam2 = share * solvers.ridge_lambda_max(X[None], (y - y.mean())[None])
        w2 = solvers.ridge(X[None], (y - y.mean())[None], lam2)[0]
        np.testing.assert_allclose(W2[k], w2, atol=1e-6)


def test_errors_from_sums_are_those_of_the_rows():
    F, Y, W = features()
    sums = predictors.fold_sums(F, Y)
    left = np.nansum((Y - F @ W.T - 1) ** 2, axis=0)
    by_fold = [predictors.squared_error(W, np.ones(6), *(a[f] for a in sums)) for f in range(5)]
    np.testing.assert_allclose(np.sum(by_fold, axis=0), left, rtol=1e-9)


def test_the_penalty_is_the_largest_within_a_standard_error():
    """By hand, with scikit-learn's Lasso on the same folds."""
    F, Y, _ = features(N=60)
    Y = np.nan_to_num(Y[:, :3])
    W, _ = predictors.of_numbers(F, Y, "inner-lasso")
    fold = np.random.default_rng(0).permutation(60) % 5
    for k, y in enumerate(Y.T):
        errors = np.zeros((17, 5))
        for f in range(5):
            on = fold != f
            top = np.abs((F[on] - F[on].mean(0)).T @ (y[on] - y[on].mean())).max() / on.sum()
            for s, share in enumerate(predictors.SHARES):
                own = Lasso(share * top, tol=1e-10, max_iter=100_000).fit(F[on], y[on])
                errors[s, f] = np.sum((own.predict(F[~on]) - y[~on]) ** 2)
        more = errors - errors[errors.mean(axis=1).argmin()]
        share = predictors.SHARES[more.mean(axis=1) <= more.std(axis=1) / 5 ** 0.5].max()
        top = np.abs((F - F.mean(axis=0)).T @ (y - y.mean())).max() / 60
        own = Lasso(share * top, tol=1e-12, max_iter=100_000).fit(F, y)
        np.testing.assert_allclose(W[k], own.coef_, atol=1e-6)


@pytest.mark.parametrize("head", ["inner-lasso", "outer-ridge"])
def test_targets_are_found_through_gaps(head):
    F, Y, truth = features(N=2000)
    W, b = predictors.of_numbers(F, Y, head)
    np.testing.assert_allclose(W, truth, atol=0.1)
    np.testing.assert_allclose(b, 2, atol=0.3)
    if head == "inner-lasso":
        assert (W[truth == 0] == 0).mean() > 0.5


def test_a_constant_target_is_told_as_constant():
    F, _, _ = features()
    W, b = predictors.of_numbers(F, np.full((120, 1), 0.0), "inner-lasso")
    assert not W.any() and b[0] == 0


def classes(counts, seed=0):
    """Rows of classes that feature 0 tells apart, so many of each."""
    rng = np.random.default_rng(seed)
    code = np.repeat(np.arange(len(counts)), counts)
    F = rng.standard_normal((len(code), 3))
    F[:, 0] = 4 * code + 0.5 * rng.standard_normal(len(code))
    return (F - F.mean(axis=0)) / F.std(axis=0), code


def test_classes_are_told_by_the_features_that_they_need():
    F, code = classes([40, 40, 40])
    W, b, fitted, rare = predictors.of_classes(F, Targets(code, "categorical"))
    assert not rare and fitted.all() and (W[0, :, 0] != 0).any() and not W[0, :, 1:].any()
    assert ((F @ W[0].T + b[0]).argmax(axis=1) == code).all()


def test_rare_classes_keep_their_share_and_leave_the_others_alone():
    F, code = classes([40, 40, 3])
    W, b, fitted, rare = predictors.of_classes(F, Targets(code, "categorical"))
    assert rare == ["2 of target 0 (in 3 of 83 rows)"] and not W[0, 2].any()
    assert fitted.tolist() == [[True, True, False]]
    assert b[0, 2] == pytest.approx(np.log(3 / 83))
    found = (F @ W[0].T + b[0]).argmax(axis=1)
    assert (found[:80] == code[:80]).all()
    few = Targets(np.array([0, 0, 0, 0, 0, 1]), "categorical")
    _, b, _, rare = predictors.of_classes(F[:6], few)
    assert b[0, 0] > b[0, 1] > -np.inf and len(rare) == 1


def test_a_target_without_a_class_never_tells_it():
    F, code = classes([20, 20, 20])
    both = np.stack([code, np.minimum(code, 1)], axis=1)
    W, b, _, _ = predictors.of_classes(F, Targets(both, "categorical"))
    assert b[1, 2] == -np.inf and not W[1, 2].any() and np.isfinite(b[0]).all()


def test_a_target_of_few_labels_leaves_the_others_their_fits():
    F, Y, _ = features()
    W, _ = predictors.of_numbers(F, Y, "inner-lasso")
    for labels in (2, 3):
        Y[labels:, 0] = np.nan
        Y[:labels, 0] = np.arange(labels)
        few, _ = predictors.of_numbers(F, Y, "inner-lasso")
        assert np.isfinite(few).all()
        np.testing.assert_allclose(few[1:], W[1:], atol=1e-9)
    few, _ = predictors.of_numbers(F[:3], F[:3, :1], "inner-ridge")
    assert few.shape == (1, 4) and np.isfinite(few).all()
