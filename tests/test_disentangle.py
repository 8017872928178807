"""The main job: every setting reaches the training, and a short data file trains too."""

import dataclasses
import json
import shutil

import pytest
from conftest import TINY, result_of

import run
from experiments import disentangle, results, tell

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
