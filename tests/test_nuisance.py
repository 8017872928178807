"""Tasks that need only some factors of the images."""

import numpy as np
import pytest

import data
import metrics
import run
from experiments import disentangle, nuisance

FEW = {
    "steps": 3,
    "image_sets": 1,
    "samples": 12,
    "tasks_per_set": 4,
    "eval_images": 200,
    "threads": 1,
}


ALL = pytest.param(6, 6, marks=pytest.mark.slow)


@pytest.mark.parametrize("features, needed", [(4, 4), (6, 4), ALL])
def test_only_the_needed_factors_are_scored(features, needed, tmp_path):
    config = nuisance.Nuisance(features=features, needed=needed, results=str(tmp_path), **FEW)
    found, folder = nuisance.nuisance(config)
    assert 0 < found["mcc"] <= found["r"] <= 1 and found["needed"] == needed
    assert (found["leak"] == 0) == (needed == 6)
    assert nuisance.nuisance(config)[0] == found


def test_with_all_factors_it_is_the_main_job(tmp_path):
    few = FEW | {"split": 8, "results": str(tmp_path)}
    found, _ = nuisance.nuisance(nuisance.Nuisance(needed=6, **few))
    main, _ = disentangle.disentangle(disentangle.Disentangle(**few))
    assert found["mcc"] == main["mcc"] and found["r"] == main["r"]


def test_what_leaks_is_told():
    z = np.random.default_rng(0).standard_normal((500, 6))
    assert nuisance.leak(z, z[:, :4], 4) < 0.2
    assert nuisance.leak(z, z[:, 2:], 4) == pytest.approx(1)
    assert nuisance.leak(z, z, 6) == 0


def test_the_command_and_its_bounds(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [f"--{key.replace('_', '-')}={value}" for key, value in FEW.items()]
    assert run.main(["nuisance", *words]) == 0
    assert "of the 4 factors needed" in capsys.readouterr().out
    assert run.main(["nuisance", "--needed", "7"]) == 2
    assert run.main(["nuisance", "--rho", "0.9999"]) == 2
    assert "effective images" in capsys.readouterr().err


def test_needed_and_other_factors_are_scored_on_uniform_images(tmp_path, monkeypatch):
    """Features that are the factors: of the four needed, rotated too, and of the others."""
    shapes = data.Shapes3D()
    z, p = data.latents(shapes, 1.0, 0.9)
    mix = np.random.default_rng(0).standard_normal((4, 4))
    monkeypatch.setattr(
        disentangle, "features_of", lambda *args: z[args[-1]][:, :4] @ mix)
    config = nuisance.Nuisance(results=str(tmp_path), **FEW | {"features": 4, "eval_images": 2000})
    found, _ = nuisance.nuisance(config)
    index, seen = disentangle.scored_images(p, 2000)
    assert len(index) == len(seen) == 2000
    assert found["mcc"] == metrics.mcc(z[index][:, :4], z[index][:, :4] @ mix)
    assert found["mcc_rotated"] > 0.99 and found["r"] == pytest.approx(1)
    assert found["leak"] < 0.15  # in training the others go along
