"""[F23] on a linear map: sparse heads that share more features than there are factors."""

import pytest

import run
from experiments import shared_maps


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
