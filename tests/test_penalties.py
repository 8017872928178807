"""A penalty that is learned by its hypergradient, and ways to choose one."""

import numpy as np
import pytest

import run
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
