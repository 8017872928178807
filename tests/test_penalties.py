"""A penalty that is learned by its hypergradient, and ways to choose one."""

import functools

import numpy as np
import pytest

import run
import sparsedis
from experiments import beyond, maps, penalties

SHORT = {"threads": 1, "steps": 60}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Fewer images and starts."""
    monkeypatch.setattr(maps, "MANY", 3000)
    monkeypatch.setattr(penalties, "STARTS", 2)
    maps.features_of_images.cache_clear()
    yield
    maps.features_of_images.cache_clear()


def trained(tmp_path, **settings):
    config = penalties.Penalties(results=str(tmp_path), **SHORT | settings)
    return penalties.penalties(config)[0]


@pytest.mark.slow
def test_a_given_penalty_stays_and_is_as_inner_lasso_s(tmp_path):
    found = trained(tmp_path, steps=150)
    assert found["eps_end"] == 0.3 and found["mcc"] == np.mean(found["mccs"])
    plain = maps.maps(maps.Maps(results=str(tmp_path), threads=1, steps=150))[0]
    assert found["mccs"][0] == pytest.approx(plain["mcc"], abs=1e-6)  # the same training


def test_learned_on_fitted_samples_it_vanishes_and_on_others_it_lowers_the_loss(tmp_path):
    def loss_at(eps):
        return trained(tmp_path, steps=150, eps=eps, held_out=True, samples=8)["loss"]

    fitted, held_out = (
        trained(tmp_path, steps=150, learn=True, held_out=held_out, samples=8)
        for held_out in (False, True))
    assert fitted["eps_end"] < held_out["eps_end"] < 0.02
    assert held_out["loss"] < min(loss_at(0.001), loss_at(0.05))


def test_labels_have_mean_0_as_features_have(tmp_path):
    given = maps.features_of_images("factors", 0.9, 0, "unused")
    tasks = maps.tasks_of(maps.Maps(samples=16), given.z)
    index, y = penalties.centred_labels(tasks, np.random.default_rng(0))
    np.testing.assert_allclose(y.mean(axis=-1), 0, atol=1e-12)
    assert index.shape == (4, 16) and y.shape == (4, 16, 16)


def test_one_set_of_starts_is_compared_by_udr_and_another_seed_has_others(tmp_path):
    one, other = (trained(tmp_path, seed=seed) for seed in (0, 1))
    assert len(one["mccs"]) == 2 and 0 < one["udr"] <= 1 and 0 < one["udr_seen"] <= 1
    assert len({one["udr"], one["udr_seen"], one["udr_regressed"]}) == 3
    assert not set(one["mccs"]) & set(other["mccs"])


def test_the_command_tells_and_keeps(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert run.main(["penalties", "--steps", "5", "--threads", "1", "--learn"]) == 0
    assert "UDR" in (out := capsys.readouterr().out) and "already there" in out


def test_eps_is_chosen_on_some_runs_and_scored_on_others():
    rows = [
        {"seed": seed, "learn": False, "eps": eps, "mcc": mcc, "loss": loss,
         "udr": udr, "udr_seen": mcc, "udr_regressed": udr,
         "mccs": [eps + seed, eps + seed + 2]}
        for seed in (0, 1) for eps, mcc, udr, loss in ((0.1, 0.7, 0.9, 3), (0.2, 0.8, 0.5, 1))]
    rows.append({"seed": 1, "learn": True, "eps": 0.3, "eps_end": 0.02, "mccs": [0.5]})
    told = {way: (eps, scores) for way, eps, scores, _ in beyond.choices(rows)}
    assert told == {"factors known": (0.2, [1.2, 3.2]), "UDR": (0.1, [1.1, 3.1]),
                    "UDR on images as trained on": (0.2, [1.2, 3.2]),
                    "the same by regression": (0.1, [1.1, 3.1]),
                    "held-out loss": (0.2, [1.2, 3.2]), "learned from 0.3": (0.02, [0.5])}


def test_udr_is_of_uniform_images_and_that_seen_of_those_of_training(tmp_path, monkeypatch):
    """Maps of two starts that agree on uniform features and not on those of training."""
    rng = np.random.default_rng(0)
    z, noise = rng.standard_normal((2, 3000, 4))
    X = np.hstack([noise[:, :2], noise[:, 2:], noise @ rng.standard_normal((4, 4))])
    given = maps.Given(z, X, z, np.hstack([z, z]))
    own = iter([(np.eye(8, 4), 0.2), (np.eye(8, 4, k=-4), 0.4)])
    monkeypatch.setattr(maps, "features_of_images", functools.cache(lambda *args: given))
    monkeypatch.setattr(penalties, "learn", lambda *args: next(own))
    found, _ = penalties.penalties(penalties.Penalties(results=str(tmp_path), threads=1))
    assert found["udr"] > 0.85 > 0.7 > max(found["udr_seen"], found["udr_regressed"])
    assert found["mccs"] == pytest.approx([1, 1]) and found["eps_end"] == pytest.approx(0.3)


def test_the_loss_is_of_samples_that_were_not_fitted():
    given = maps.features_of_images("factors", 0.9, 0, "unused")
    noise = np.random.default_rng(0).standard_normal((3000, 6))
    told = penalties.held_out_loss(given._replace(X=noise), np.eye(6), 1e-3, 8)
    tasks = maps.tasks_of(maps.Maps(samples=16), given.z, sets=40)
    _, y = penalties.centred_labels(tasks, np.random.default_rng(10_000))
    assert told > np.mean(y[..., 8:] ** 2) / 2  # worse than 0 on others, better on their own


@pytest.mark.parametrize("held_out", [False, True])
def test_each_start_has_tasks_of_its_own_at_each_step(held_out, monkeypatch):
    given, seen = maps.features_of_images("factors", 0.9, 0, "unused"), []

    def train(training, start):
        seen.append([training.sample(step)[1] for step in (0, 1)])
        return start

    monkeypatch.setattr(sparsedis, "train", train)
    for start in (0, 0, 1):
        penalties.learn(penalties.Penalties(held_out=held_out, samples=9), given, start)
    one, same, other = seen
    assert one[0].shape == (4, 16, 18 if held_out else 9)
    np.testing.assert_array_equal(one, same)
    assert (one[1] != other[1]).all() and (one[1] != one[0]).all()
