"""The main job: every setting reaches the training, and a short data file trains too."""

import dataclasses
import json
import shutil
import types

import numpy as np
import pytest
from conftest import TINY, result_of

import data
import metrics
import run
import sparsedis
from experiments import disentangle, results, tell
from experiments.apply import encode_images

LINES = ["--head inner-ridge", "--split 11", "--norm layer", "--features 8", "--warmup 0",
         "--outputs 3", "--shift 2", "--head outer-lasso", "--eps 0"]
MORE = ["--norm none", "--tasks laplace", "--outputs 3 --likelihood categorical",
        "--alpha 0 --rho 0", "--lr 0.01", "--seed 1"]


@pytest.mark.parametrize(
    "line", [*LINES, *(pytest.param(line, marks=pytest.mark.slow) for line in MORE)])
def test_settings_reach_the_training(finished, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run.main([*TINY, *line.split()]) == 0
    assert result_of(tmp_path)[0]["mcc"] != result_of(finished[0])[0]["mcc"]


def test_where_no_rotation_can_be_told_none_is_claimed(finished, capsys):
    result = result_of(finished[0])[0] | {"mcc_rotated": 0.5, "identified": 3, "seconds": 1}
    tell.scores(result | {"stability": 0.7})
    assert "after a rotation: MCC 0.5000, 3 of its 6" in capsys.readouterr().out
    tell.scores(result | {"stability": 0.0})
    out = capsys.readouterr().out
    assert "no rotation can be told" in out and "0.5000" not in out and "after ICA" in out


def test_a_data_file_with_few_rows_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run.main(["render", "--out", "few.h5", "--limit", "150"]) == 0
    assert "150" in capsys.readouterr().out
    # at rho 0.9 the weights would leave one of the 150
    assert run.main([*TINY, "--rho", "0", "--data", "few.h5"]) == 0
    assert result_of(tmp_path)[0]["mcc"] > 0
    assert run.main(["render", "--out", "fewer.h5", "--limit", "29"]) == 0
    for line in ([*TINY, "--rho", "0"], ["sharing"], ["nuisance"]):  # any feature fits any factor
        assert run.main([*line, "--data", "fewer.h5"]) == 2
        error = capsys.readouterr().err
        assert "found 29 images, expected at least" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "settings, head",
    [
        ({}, "inner-lasso"),
        ({"head": "outer-ridge"}, "outer-ridge"),
        ({"outputs": 3}, "inner-group-lasso"),
        ({"outputs": 3, "likelihood": "categorical"}, "inner-group-logistic"),
    ],
)
def test_the_head_follows_the_tasks(settings, head):
    assert disentangle.head_of(disentangle.Disentangle(**settings)) == head


def test_weights_that_leave_no_images_are_refused(capsys, tmp_path):
    assert run.main(["--rho", "0.9999", "--alpha", "0", "--results", str(tmp_path)]) == 2
    assert "effective images" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("split, outputs", [(0, 1), (10, 1), (10, 2)])
def test_labels_are_centred_where_not_all_samples_are_fitted(split, outputs, tmp_path, monkeypatch):
    """Predictors have no intercept, and features of the fitted ones no mean of 0."""
    class Seen(Exception):
        pass

    def see(config, encoder, sample):
        raise Seen(sample(0)[1])

    monkeypatch.setattr(disentangle, "training_of", see)
    config = disentangle.Disentangle(split=split, outputs=outputs, results=str(tmp_path))
    with pytest.raises(Seen) as seen:
        disentangle.disentangle(config)
    y, = seen.value.args
    assert (abs(y.mean(axis=2)).max() < 1e-12) == (split > 0)


def test_another_experiment_waits_for_a_run_that_a_process_is_at_work_on(
        finished, tmp_path, monkeypatch):
    """Two workers of a sweep that need one encoder: it is done while the second sleeps."""
    shutil.copytree(finished[0] / "results", tmp_path / "results")
    result, folder = result_of(tmp_path)
    told = json.loads((folder / "config.json").read_text())
    names = {field.name for field in dataclasses.fields(disentangle.Disentangle)} - {"data"}
    config = disentangle.Disentangle(**{name: told[name] for name in names & told.keys()})
    config = dataclasses.replace(config, results=str(tmp_path / "results"))
    (folder / "result.json").rename(folder / "away.json")
    lock, slept = results.acquire_lock(folder / ".lock"), []

    def sleep(seconds):
        slept.append(seconds)
        (folder / "away.json").rename(folder / "result.json")
        lock.release()

    monkeypatch.setattr(disentangle.time, "sleep", sleep)
    run = disentangle.other_run(config)
    assert len(slept) == 1 and run.folder == folder and run.result()["mcc"] == result["mcc"]


def test_scores_are_on_uniform_images_and_what_unmixes_is_fitted_on_those_of_training(tmp_path):
    shapes = data.Shapes3D()
    z, p = data.latents(shapes, 1.0, 0.9)
    mix, run = np.random.default_rng(0).standard_normal((6, 6)), types.SimpleNamespace()
    run.path, config = tmp_path.joinpath, disentangle.Disentangle()
    found = disentangle.score_features(
        lambda index: z[index] @ mix, shapes, z, p, 2000, run,
        lambda z, count: disentangle.fresh_tasks(config, z, count))
    index, drawn = disentangle.scored_images(p, 2000, 2000)
    between = ~np.eye(6, dtype=bool)
    assert np.abs(np.corrcoef(z[index].T)[between]).max() < 0.1
    assert np.corrcoef(z[drawn].T)[between].min() > 0.7
    F, F_seen = z[index] @ mix, z[drawn] @ mix
    assert found["mcc"] == metrics.mcc(z[index], F) and found["mcc_rotated"] > 0.99
    assert found["mcc_ica"] == pytest.approx(metrics.mcc(z[index], metrics.ica(F, F_seen)))
    for size in (1, 2, 3):
        assert found[f"block_share_{size}"] == metrics.block_share(z[index], F, size)
    seen = metrics.correlation(z[drawn], F_seen)[metrics.match(metrics.correlation(z[index], F))]
    assert [found[f"seen_{name}"] for name in shapes.names] == seen.tolist()


def test_a_result_and_its_last_line_are_scores_of_its_checkpoint(finished):
    result, folder = result_of(finished[0])
    first, *_, last = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    shapes = data.Shapes3D()
    z, _ = data.latents(shapes, 1.0, 0.9)
    for told, seed in ((result["mcc"], 20_000), (last["mcc"], 1000)):
        index = np.random.default_rng(seed).integers(len(shapes), size=120)
        F = encode_images(folder / "checkpoint.npz", shapes.images(index))
        assert told == pytest.approx(metrics.mcc(z[index], F), abs=1e-6)
    assert result["nonzero"] == last["nonzero"] < first["nonzero"]  # eps rises from 0


def test_a_seed_draws_its_own_images_and_labels_at_each_step():
    z = np.random.default_rng(0).standard_normal((500, 6))
    shapes = types.SimpleNamespace(images=lambda index, xp, device: index)

    def drawn(seed, step):
        config = disentangle.Disentangle(seed=seed)
        tasks = disentangle.tasks_of(config, z, np.full(500, 1 / 500))
        (index,), y = disentangle.sampler(config, tasks, shapes, np, None)(step)
        return np.append(index, y)

    assert (drawn(0, 3) == drawn(0, 3)).all()
    assert (drawn(0, 3) != drawn(1, 3)).mean() > 0.9 < (drawn(0, 3) != drawn(0, 4)).mean()


def test_adam_and_its_schedule_are_as_the_settings_say():
    config = disentangle.Disentangle(beta1=0.5, beta2=0.75, flat=0.6, lr=0.1, steps=7)
    training = disentangle.training_of(config, sparsedis.mlp([2, 1]), None)
    optimise, schedule = training.optimiser
    ours, own, theirs, opt = {"a": np.ones(1)}, None, {"a": np.ones(1)}, None
    for g in (1.0, -3.0):
        ours, own = optimise(ours, {"a": np.array([g])}, own, 0.1)
        theirs, opt = sparsedis.adam(theirs, {"a": np.array([g])}, opt, 0.1, 0.5, 0.75)
    assert ours["a"] == theirs["a"] and (training.steps, training.lr) == (7, 0.1)
    assert schedule(2.0, 0.6) == 2 and schedule(2.0, 0.8) == pytest.approx(1)


def test_layer_norm_is_applied_to_what_is_scored():
    encoder, x = sparsedis.mlp([4, 6]), np.random.default_rng(0).standard_normal((9, 4))
    params, _ = encoder.init(np.random.default_rng(1), np.float64)
    shapes = types.SimpleNamespace(images=lambda index, xp, device: x[index])
    plain, layer = (disentangle.features_of(encoder, shapes, norm, np, None, params, np.arange(9))
                    for norm in ("batch", "layer"))
    np.testing.assert_allclose(plain, encoder.forward(params, {}, x)[0])
    np.testing.assert_allclose(layer, sparsedis.normalise(plain[None], "layer")[0][0])
