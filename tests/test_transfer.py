"""New sparse tasks on learned features: which features help, and from how few samples."""

import types

import numpy as np
import pytest

import data
import metrics
import run
from experiments import maps, transfer


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Fewer images and tasks, and encoders of two steps."""
    few = {"steps": 2, "image_sets": 1, "samples": 12, "tasks_per_set": 2, "eval_images": 60}
    real = maps.disentangle.Disentangle
    monkeypatch.setattr(maps.disentangle, "Disentangle", lambda **own: real(**own | few))
    monkeypatch.setattr(maps, "MANY", 1600)
    monkeypatch.setattr(maps, "FRESH", 60)
    monkeypatch.setattr(transfer, "SIZES", (5, 25))
    monkeypatch.setattr(transfer, "TEST", 300)


OTHERS = [pytest.param(name, marks=pytest.mark.slow)
          for name in ("rotated", "lasso", "ridge", "none", "ica")]


@pytest.mark.parametrize("method", ["factors", *OTHERS])
def test_every_method_has_its_scores(method, tmp_path):
    config = transfer.Transfer(method=method, draws=1, threads=1, results=str(tmp_path))
    found, folder = transfer.transfer(config)
    for end in ("", "_seen"):
        assert 0 < found[f"mcc{end}"] <= found[f"r{end}"] + 1e-9 <= 1.01
    keys = {f"{p}_{n}{e}" for p in ("lasso", "ridge") for n in transfer.SIZES
            for e in ("", "_uniform")}
    assert keys <= found.keys()
    if method == "factors":
        assert found["mcc"] == pytest.approx(1) and found["lasso_25"] > 0.9
    assert transfer.transfer(config)[0] == found


def test_sparse_fits_learn_from_fewer_samples_on_the_factors_than_on_their_mixtures():
    z = np.random.default_rng(0).standard_normal((400, 30))
    mixed = z @ np.linalg.qr(np.random.default_rng(1).standard_normal((30, 30)))[0]

    def sparse(rng, T, d):
        w = np.zeros((T, d))
        w[:, rng.choice(d, 2)] = 1
        return w

    original, data.sample_tasks = data.sample_tasks, sparse
    try:
        plain, other = (transfer.r2_of_tasks(z, F, 3, 0).mean(axis=0) for F in (z, mixed))
    finally:
        data.sample_tasks = original
    at_25 = transfer.SIZES.index(25)
    assert plain[at_25, 0] > 0.7 > other[at_25, 0]
    np.testing.assert_allclose(plain[:, 1], other[:, 1], atol=1e-6)  # ridge sees no rotation


def test_ridge_s_penalty_is_chosen_by_squared_error():
    """With five samples a fold has one, and no R^2: RidgeCV would take its first penalty."""
    rng, chosen = np.random.default_rng(0), []
    for _ in range(10):
        X = rng.standard_normal((5, 6))
        _, ridge = transfer.models()
        chosen.append(transfer.fitted(ridge, X, X[:, 0] + rng.standard_normal(5)).alpha_)
    assert len(set(chosen)) > 3


def test_the_command_tells_r2(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run.main(["transfer", "--method", "factors", "--draws", "1", "--threads", "1"]) == 0
    assert capsys.readouterr().out.count("R^2 of") == len(transfer.SIZES)


def test_scores_stand_under_the_images_and_the_fit_that_they_are_of(tmp_path, monkeypatch):
    """Seen features are noise, uniform ones the factors of dense tasks."""
    rng = np.random.default_rng(0)
    z, noise, uniform = rng.standard_normal((3, 1600, 6))
    given = maps.Given(z, noise, uniform, uniform)
    monkeypatch.setattr(transfer, "features_of", lambda config: given)
    config = transfer.Transfer(method="factors", draws=2, threads=1, results=str(tmp_path))
    found, _ = transfer.transfer(config)
    assert found["mcc"] == pytest.approx(1) and found["r_seen"] < 0.3
    assert found["mcc_seen"] == metrics.mcc(z, noise) < 0.1
    assert found["r_seen"] == metrics.r_score(z, noise) > found["mcc_seen"]
    both = transfer.r2_of_tasks(uniform, uniform, 2, 0).mean(axis=0)
    told = [[found[f"{p}_{n}_uniform"] for p in ("lasso", "ridge")] for n in transfer.SIZES]
    np.testing.assert_allclose(told, both)
    assert (both[:, 0] != both[:, 1]).all() and found["ridge_25"] < 0.2 < 0.9 < both[1].min()


def test_r2_is_of_samples_that_were_not_fitted(monkeypatch):
    rng, fitted = np.random.default_rng(0), []
    z, F = rng.standard_normal((2, 400, 6))

    class Seen:
        def fit(self, X, y):
            self.own = {*map(tuple, X)}
            fitted.append(len(X))
            return self

        def score(self, X, y):
            assert len(X) == len(y) == 300 and not self.own & {*map(tuple, X)}
            return 0.5

    monkeypatch.setattr(transfer, "models", lambda: (Seen(), Seen()))
    assert (transfer.r2_of_tasks(z, F, 3, 0) == np.full((3, 2, 2), 0.5)).all()
    assert fitted == [5, 5, 25, 25] * 3


def test_the_command_tells_each_penalty_and_each_distribution(monkeypatch, capsys):
    found = {f"{p}_{n}{on}": (p == "ridge") / 2 + j / 10 + bool(on) / 4
             for p in ("lasso", "ridge") for j, n in enumerate(transfer.SIZES)
             for on in ("", "_uniform")}
    folder = types.SimpleNamespace(tell_files=lambda: None)
    monkeypatch.setattr(transfer, "transfer", lambda config: (found, folder))
    transfer.command(transfer.Transfer())
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert lines == [
        "R^2 of   5 samples: lasso 0.000, ridge 0.500, on uniform images 0.250, 0.750",
        "R^2 of  25 samples: lasso 0.100, ridge 0.600, on uniform images 0.350, 0.850"]
