"""Fig. 1: sparse linear tasks on disentangled and entangled features."""

import itertools

import numpy as np
import pytest

from experiments import regression


def test_fig1_draws_four_estimators(tmp_path):
    scores = regression.draw_fig1(
        "identity", "absolute", "all", 1, tmp_path / "f.png", seeds=2, percents=(5,),
        sizes=(25, 50))
    assert scores.shape == (1, 2, 2, 4) and (tmp_path / "f.png").exists()
    # a rotation changes nothing for ridge
    np.testing.assert_allclose(scores[..., 2], scores[..., 3], atol=1e-6)
    assert scores[0, 0, :, 0].mean() > 0.5 > scores[0, 0, :, 1].mean()


def test_the_numbers_of_fig1_stand_beside_the_printed_ones(tmp_path):
    regression.write_rows(tmp_path / "f.csv", (20,), (50,), *np.ones((2, 1, 1, 4)))
    rows = (tmp_path / "f.csv").read_text().splitlines()
    assert rows[1] == "20,50,disentangled-lasso,1,1,0.4488,0.12" and len(rows) == 5


SLOW = [pytest.param(varies, marks=pytest.mark.slow) for varies in ("folds", "test")]


@pytest.mark.parametrize("varies", ["rotation", *SLOW])
def test_of_a_kept_task_one_thing_varies(varies):
    scores = regression.scores_of_seeds("identity", "relative", varies, 1, 0, 2, (5,), (50,))
    spread = np.ptp(scores[0, 0], axis=0)  # lasso, lasso, ridge, ridge
    changes = {"rotation": [0, 1, 0, 0], "folds": [1, 1, 0, 0], "test": [1, 1, 1, 1]}[varies]
    assert ((spread > 1e-6) >= np.array(changes, bool)).all()
    if varies == "rotation":
        assert (spread[[0, 2, 3]] < 1e-6).all() and spread[1] > 1e-3


def test_a_gaussian_task_is_as_described():
    rng = np.random.default_rng(0)
    z, y, w = regression.gaussian_task(rng, 20_000, m=10, active=3, covariance="ar")
    np.testing.assert_allclose(np.cov(z.T)[0, :3], [1, 0.9, 0.81], atol=0.05)
    assert np.count_nonzero(w) == 3 and abs((y - z @ w).var() - 0.04) < 0.003
    z, y, w = regression.gaussian_task(rng, 20_000, 10, 3, "identity", "relative")
    assert abs((y - z @ w).var() / (z @ w).var() - 0.04) < 0.003


def test_the_printed_figure_is_read_in_our_order():
    """Mean, standard error: disentangled and entangled Lasso, then both ridges."""
    mean, error = regression.printed()
    assert mean.shape == error.shape == (3, 6, 4)
    np.testing.assert_allclose(mean[0, 0], [0.633, -0.0768, -0.0735, -0.0735])
    np.testing.assert_allclose(error[0, 0, :2], [0.11, 0.017])


@pytest.mark.parametrize("varies", regression.VARIES)
def test_each_fit_is_of_n_samples_and_scored_on_1000_others(varies, monkeypatch):
    fitted, scored = [], []

    class Seen:
        def __init__(self, *args, **settings):
            pass

        def fit(self, X, y):
            fitted.append((len(X), set(y)))
            return self

        def score(self, X, y):
            scored.append((len(X), set(y)))
            return 0.0

    for name in ("LassoCV", "RidgeCV"):
        monkeypatch.setattr(regression, name, Seen)
    regression.scores_of_task("identity", "relative", varies, 20, 50, seed=3, m=50)
    assert [n for n, _ in fitted] == [50] * 4 and [n for n, _ in scored] == [1000] * 4
    assert all(not own & other for (_, own), (_, other) in zip(fitted, scored))


@pytest.mark.parametrize("varies", ["all", "rotation"])
def test_a_figure_is_of_the_tasks_that_it_says(varies, monkeypatch):
    plain, asked = regression.gaussian_task, []

    def task(rng, n, *kind):
        asked.append(kind)
        return plain(rng, n, *kind)

    monkeypatch.setattr(regression, "gaussian_task", task)
    regression.scores_of_task("identity", "relative", varies, 20, 25, seed=0, m=50)
    assert asked == [(50, 10, "identity", "relative")]


def test_the_error_is_that_of_a_mean():
    scores = np.array([0.1, 0.4, 0.7]).reshape(1, 1, 3, 1) * np.ones((2, 1, 1, 4))
    mean, error = regression.mean_and_error(scores)
    np.testing.assert_allclose(mean, np.full((2, 1, 4), 0.4))
    np.testing.assert_allclose(error, np.full((2, 1, 4), 0.3 / 3**0.5))


def test_rows_of_fig1_have_their_mean_first(tmp_path):
    mean, error = np.arange(8.0).reshape(2, 1, 4), np.arange(10.0, 18).reshape(2, 1, 4)
    regression.write_rows(tmp_path / "f.csv", (5, 20), (50,), mean, error)
    rows = [row.split(",") for row in (tmp_path / "f.csv").read_text().splitlines()[1:]]
    assert [row[3:5] for row in rows] == [[str(k), str(10 + k)] for k in range(8)]
    assert rows[5][:3] == ["20", "50", "entangled-lasso"]


def test_scores_stand_in_the_place_of_their_cell(monkeypatch):
    def scores(covariance, noise, varies, percent, n, seed, task):
        return [percent + n + seed + k / 10 for k in range(4)]

    monkeypatch.setattr(regression, "scores_of_task", scores)
    found = regression.scores_of_seeds("ar", "absolute", "all", 1, 0, 3, (5, 20), (100, 1000))
    for (i, percent), (j, n) in itertools.product(enumerate((5, 20)), enumerate((100, 1000))):
        np.testing.assert_allclose(found[i, j, :, 0], percent + n + np.arange(3))
    np.testing.assert_allclose(found[0, 0, 0], 105 + np.arange(4) / 10)
