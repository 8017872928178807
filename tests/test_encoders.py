"""The encoders of SparseTasks: reduced-rank ridge, and what a network is trained on."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeCV

from sparsetasks import linear, network
from sparsetasks.linear import PENALTIES


def low_rank(seed=0, N=200, d=8, K=12, rank=3, noise=0.5):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((N, d))
    X -= X.mean(axis=0)
    Y = X @ rng.standard_normal((d, rank)) @ rng.standard_normal((rank, K))
    return X, Y + noise * rng.standard_normal((N, K))


def test_the_penalty_is_that_of_the_least_leave_one_out_error():
    X, Y = low_rank(noise=8.0, N=40)
    by = RidgeCV(PENALTIES, alpha_per_target=True).fit(X, Y)
    np.testing.assert_allclose(linear.penalties(X, Y), by.alpha_)
    assert len(set(by.alpha_)) > 1
    np.testing.assert_allclose(linear.ridge(X, Y, by.alpha_), by.coef_.T, rtol=1e-8)


def test_leave_one_out_is_that_of_fits_without_the_row():
    """On few rows, where the mean is a good part of a row's leverage."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((7, 4))
    Y = X @ rng.standard_normal((4, 60)) + 1.5 * rng.standard_normal((7, 60))
    errors = np.zeros((len(PENALTIES), 60))
    for p, i in np.ndindex(len(PENALTIES), 7):
        on = np.arange(7) != i
        errors[p] += (Ridge(PENALTIES[p]).fit(X[on], Y[on]).predict(X[i:i + 1])[0] - Y[i]) ** 2
    np.testing.assert_allclose(linear.penalties(X, Y), PENALTIES[errors.argmin(axis=0)])


def test_ridge_is_on_the_rows_that_have_a_label():
    X, Y = low_rank()
    Y[:50, :6], Y[::3, 7] = np.nan, np.nan
    penalty = np.linspace(0.1, 10, 12)
    B = linear.ridge(X, Y, penalty)
    for k, y in enumerate(Y.T):
        on = np.isfinite(y)
        own = Ridge(penalty[k]).fit(X[on], y[on])
        np.testing.assert_allclose(B[:, k], own.coef_, rtol=1e-8)
    Y[:, 3], Y[1:, 4] = np.nan, np.nan
    assert not linear.ridge(X, Y, penalty)[:, 3:5].any()  # too few labels


def test_the_encoder_spans_the_leading_predictions():
    X, Y = low_rank(noise=0.01)
    everywhere = np.arange(200)
    A = linear.ReducedRankRidge(X, Y).encoder(3, everywhere)
    F = X @ A
    left = Y - F @ np.linalg.lstsq(F, Y, rcond=None)[0]
    assert A.shape == (8, 3) and left.std() < 0.02
    six = X @ linear.ReducedRankRidge(X, Y[:, :1]).encoder(6, everywhere)  # then X's own directions
    assert np.linalg.matrix_rank(six) == 6
    assert linear.ReducedRankRidge(X, Y).encoder(20, everywhere).shape[1] == 8  # its rank


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_the_number_of_features_is_that_which_held_out_rows_ask_for(rank):
    for seed in range(3):
        X, Y = low_rank(seed, N=300, rank=rank, noise=1.0)
        gaps = np.random.default_rng(seed).random(Y.shape) < 0.2
        for labels in (Y, np.where(gaps, np.nan, Y)):
            ridge = linear.ReducedRankRidge(X, labels)
            found, best = ridge.rank_by_held_out(np.random.default_rng(0))
            assert found == rank <= best


def test_noise_asks_for_one_feature():
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((100, 5)), rng.standard_normal((100, 6))
    assert linear.ReducedRankRidge(X, Y).rank_by_held_out(rng)[0] == 1
    found = []
    for seed in range(6):  # of wide noise, too: no penalty has seen the rows held out
        rng = np.random.default_rng(seed)
        X, Y = rng.standard_normal((200, 30)), rng.standard_normal((200, 15))
        found.append(linear.ReducedRankRidge(X, Y).rank_by_held_out(rng)[0])
    assert sum(found) <= 7, found


def test_out_of_fold_features_of_a_row_do_not_depend_on_its_labels():
    X, Y = low_rank(0, N=50, rank=2, noise=1.0)
    F = X @ linear.ReducedRankRidge(X, Y).encoder(2, np.arange(50))
    out = linear.ReducedRankRidge(X, Y).out_of_fold(F)
    fold = np.random.default_rng(0).permutation(50) % linear.FOLDS
    for f in range(linear.FOLDS):
        held = (fold == f)[:, None]
        other = linear.ReducedRankRidge(X, np.where(held, 9.0, Y)).out_of_fold(
            np.where(held, 9.0, F))
        np.testing.assert_allclose(other[fold == f], out[fold == f])
    assert np.corrcoef(out[:, 0], F[:, 0])[0, 1] > 0.9


def test_components_of_a_table_of_few_rows_lose_nothing():
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((30, 80)), rng.standard_normal((30, 3))
    X, Y = X - X.mean(axis=0), Y - Y.mean(axis=0)
    ridge = linear.ReducedRankRidge(X, Y)
    assert ridge.X.shape == (30, 29)
    whole = linear.leading_directions(X, Y, linear.penalties(X, Y), 2)
    size = np.abs(whole.T @ ridge.encoder(2, np.arange(30))) / np.vecdot(whole, whole, axis=0)
    np.testing.assert_allclose(size.max(axis=0), 1, rtol=1e-6)
    assert linear.ReducedRankRidge(rng.standard_normal((700, 600)), Y).X.shape == (700, 600)


def test_ranks_within_a_standard_error_of_the_best_are_a_doubt(monkeypatch):
    """The fewest of them is taken: not the first, whose loss is 3 errors off, but the second."""
    rng = np.random.default_rng(1)
    noise = rng.standard_normal(100)
    noise = (noise - noise.mean()) / noise.std() / 10  # of standard error 0.01
    losses = np.stack([np.full(100, mean) for mean in (1.03, 1.005, 1.0, 1.1)])
    losses[2] += noise
    monkeypatch.setattr(linear, "losses_of_ranks", lambda *_: losses)
    monkeypatch.setattr(linear, "ENOUGH", 1)
    X = rng.standard_normal((100, 4))
    assert linear.ReducedRankRidge(X, X).rank_by_held_out(rng) == (2, 3)


def test_no_feature_is_added_for_next_to_nothing(monkeypatch):
    """With very many targets the standard error of a gain is next to nothing, too."""
    monkeypatch.setattr(linear, "losses_of_ranks", lambda *_: np.array([[0.3], [0.2], [0.1999]]))
    X = np.random.default_rng(0).standard_normal((50, 3))
    assert linear.ReducedRankRidge(X, X).rank_by_held_out(np.random.default_rng(0)) == (2, 3)


def test_rows_are_drawn_among_those_that_have_labels():
    known = np.array([[1, 0], [1, 0], [1, 1], [0, 1], [1, 1]], bool)
    labels = np.where(known, 1.0, 0) * np.arange(5)[:, None]
    for seed in range(20):
        index, y, on = network.draw(np.random.default_rng(seed), known, labels, 3, 3)
        assert len(set(index)) == len(index) == 3 and y.shape == on.shape == (2, 3)
        assert on[0].all() and (on.mean(axis=1) >= 0.5).all()
        assert not y[~on].any()


def test_a_target_with_few_labels_shrinks_no_set():
    known = np.full((200, 5), True)
    known[3:, 2] = False
    assert network.rows_of_a_set(known, 50) == 50
    for seed in range(20):
        _, _, on = network.draw(np.random.default_rng(seed), known, known * 1.0, 50, 4)
        assert on[0].all()


def test_decay_is_apart_from_the_gradient():
    """Of a gradient of 0, Adam leaves the parameters and decay shrinks them."""
    params, grads = {"W": np.ones(3)}, {"W": np.zeros(3)}
    stepped, _ = network.decayed(params, grads, None, lr=0.1, decay=0.5)
    np.testing.assert_allclose(stepped["W"], 0.95)
    stepped, _ = network.decayed(params, grads, None, lr=0.1, decay=0)
    np.testing.assert_allclose(stepped["W"], 1)
