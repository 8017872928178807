"""[F23] on a linear map: sparse heads that share more features than there are factors."""

import numpy as np
import pytest

import data
import run
from experiments import maps, shared_maps, sharing
from experiments.sharing_data import BinaryTasks


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(shared_maps, "SCORED", 500)
    monkeypatch.setattr(shared_maps, "SHOTS", (5, 13))
    monkeypatch.setattr(shared_maps, "POOL", 12)
    monkeypatch.setattr(shared_maps, "TEST_TASKS", 4)


MORE = [pytest.param(own, marks=pytest.mark.slow)
        for own in ({"method": "erm"}, {"method": "lasso", "factors": 1, "m": 7})]


@pytest.mark.parametrize("settings", [{"beta": 0.02}, *MORE], ids=str)
def test_every_method_is_scored_and_kept(settings, tmp_path):
    own = {"steps": 12, "threads": 1, "results": str(tmp_path)} | settings
    config = shared_maps.SharedMaps(**own)
    found, _ = shared_maps.shared_maps(config)
    assert found["r"] == pytest.approx(1, abs=1e-6)  # a map of full rank loses nothing
    assert 0.2 < found["mcc"] < 1 and 0.4 < found["accuracy_13"] <= 1 and 0 <= found["unused"] < 1
    assert found["mcc_rotated"] is None or 0.5 < found["mcc_rotated"] <= 1
    assert shared_maps.shared_maps(config)[0] == found


def test_the_command_tells_accuracies(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run.main(["shared-maps", "--steps", "3", "--threads", "1"]) == 0
    assert "of 13 samples a class" in capsys.readouterr().out


def test_samples_of_its_own_are_scored_too(tmp_path):
    config = shared_maps.SharedMaps(steps=3, shot=20, threads=1, results=str(tmp_path))
    found, _ = shared_maps.shared_maps(config)
    assert 0.4 < found["accuracy_20"] <= 1 and 0 <= found["unused"] <= 1


def test_heads_of_unseen_tasks_are_scored_with_as_many_samples_as_are_told(monkeypatch):
    asked = []

    def accuracies(config, features, tasks, numbers):
        asked.append((config.shot, list(numbers)))
        return np.array([0.5, config.shot / 10]), np.array([[1.0, 0, 0, -1], [2, 0, 0, 0]])

    monkeypatch.setattr(sharing, "accuracies", accuracies)
    told = shared_maps.score_heads(sharing.Sharing(pool=3, test_tasks=2, shot=8), None, None)
    assert asked == [(5, [3, 4]), (13, [3, 4]), (8, [3, 4])]
    accuracy = [told[f"accuracy_{shot}"] for shot in (5, 13, 8)]
    assert accuracy == pytest.approx([0.5, 0.9, 0.65])
    assert told["unused"] == 0.5 and told["features_per_head"] == pytest.approx(1.5)


def test_a_rotation_by_the_labels_of_tasks_finds_the_factors():
    grid = data.Shapes3D()
    z, p = data.latents(grid, 1.0, 0.0)
    X, index = maps.mixed_factors(z, z, 0).X, np.arange(0, len(z), 997)
    tasks = BinaryTasks(grid.factors, p, 2, 40)
    own = sharing.Sharing(pool=40)
    assert shared_maps.rotated(shared_maps.SharedMaps(), own, X, z, index, tasks) > 0.95
