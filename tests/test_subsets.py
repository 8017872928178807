"""Encoders trained through best subsets and other inner problems."""

import types

import numpy as np
import pytest

import data
import metrics
import run
from experiments import disentangle, maps, results, subsets
from experiments.apply import encode_images

SHORT = {"threads": 1, "steps": 3}


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Encoders of two steps to go on from, on few images."""
    real, tiny = disentangle.Disentangle, {"steps": 2, "eval_images": 60}
    monkeypatch.setattr(subsets.disentangle, "Disentangle", lambda **own: real(**tiny | own))


MORE = [{"head": "relaxed", "eps": 0.1, "start": "lasso"}, {"head": "subset", "eps": 0.1},
        {"head": "mcp", "eps": 0.3}]


@pytest.mark.parametrize(
    "settings",
    [{}, *(pytest.param(own, marks=pytest.mark.slow) for own in MORE)], ids=str)
def test_every_kind_of_run_trains_and_is_kept(settings, tmp_path, capsys):
    config = subsets.Subsets(results=str(tmp_path), **SHORT, **settings)
    found, _ = subsets.subsets(config)
    assert 0 < found["mcc"] < 1 and 0 < found["loss_at_truth"] < found["loss"]
    assert subsets.subsets(config)[0] == found and "already there" in capsys.readouterr().out


def test_it_goes_on_from_the_lasso_s_encoder(tmp_path):
    config = subsets.Subsets(
        results=str(tmp_path), threads=1, steps=1, lr=1e-12, start="lasso", head="inner-lasso",
        eps=0.3)
    before = subsets.trained_params(subsets.lasso_of(config))
    _, own = subsets.subsets(config)
    after = results.load_checkpoint(own.path("checkpoint.npz")).snapshot.params
    assert before.keys() == after.keys()
    for name, a in before.items():
        np.testing.assert_allclose(after[name], a, atol=1e-6)


@pytest.mark.slow
def test_through_the_lasso_it_is_the_main_job_s_training(tmp_path):
    config = subsets.Subsets(results=str(tmp_path), head="inner-lasso", eps=0.3, **SHORT)
    main = disentangle.Disentangle(results=str(tmp_path), threads=1, steps=3)
    ends = [results.load_checkpoint(done.path("checkpoint.npz")).snapshot.params
            for _, done in (subsets.subsets(config), disentangle.disentangle(main))]
    for name, a in ends[0].items():
        np.testing.assert_allclose(a, ends[1][name], atol=1e-5)


def test_the_factors_are_told_how_many_they_are():
    z = np.random.default_rng(0).standard_normal((2000, 6))
    mixed = z @ np.linalg.qr(np.random.default_rng(1).standard_normal((6, 6)))[0]
    own, other = (subsets.losses(subsets.Subsets(), z, F) for F in (z, mixed))
    assert own["loss"] == own["loss_at_truth"] == other["loss_at_truth"] < 0.6 * other["loss"]
    assert maps.sizes_of(np.array([[[[1.0, 0, 2]], [[0, 0, 3.0]]]])).tolist() == [2, 1]


def test_the_command_tells_scores(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run.main(["subsets", "--steps", "2", "--threads", "1"]) == 0
    assert "DCI-D" in capsys.readouterr().out
    assert run.main(["subsets", "--head", "mcp"]) == 2  # without a penalty it is none of its kind
    assert "--eps: found 0" in capsys.readouterr().err


def test_scores_are_on_uniform_images_and_losses_on_those_of_training(tmp_path):
    config, shapes = subsets.Subsets(results=str(tmp_path), **SHORT), data.Shapes3D()
    found, run = subsets.subsets(config)
    z, p = data.latents(shapes, 1.0, 0.9)
    index, seen = disentangle.scored_images(p, 60, 5000)
    F = encode_images(run.path("checkpoint.npz"), shapes.images(index))
    assert found["mcc"] == pytest.approx(metrics.mcc(z[index], F), abs=1e-6)
    truth = subsets.losses(config, z[seen], z[seen])["loss"]
    assert found["loss_at_truth"] == pytest.approx(truth)
    assert np.corrcoef(z[seen].T)[0, 1] > 0.7 > 0.4 > abs(np.corrcoef(z[index].T)[0, 1])


def test_a_seed_draws_its_own_images_and_labels_at_each_step():
    z = np.random.default_rng(0).standard_normal((500, 6))
    tasks = data.Tasks(z, np.full(500, 1 / 500), sets=2, samples=9, per_set=3)
    shapes = types.SimpleNamespace(images=lambda index: index)

    def drawn(seed, step):
        (index,), (y, size) = subsets.sampler(seed, tasks, shapes)(step)
        assert y.shape == (2, 3, 9) and size.shape == (6,)
        return np.append(index, y)

    assert (drawn(0, 3) == drawn(0, 3)).all()
    assert (drawn(0, 3) != drawn(1, 3)).mean() > 0.9 < (drawn(0, 3) != drawn(0, 4)).mean()
