"""Few-shot runs from the command line: every source, head and setting, resuming, errors."""

import json
from pathlib import Path

import numpy as np
import pytest

import run
from experiments import fewshot, results

FEW = [
    "fewshot",
    "--steps",
    "3",
    "--episodes",
    "2",
    "--query",
    "3",
    "--test-episodes",
    "6",
    "--shot",
    "2",
    "--way",
    "3",
]


def run_few(*flags):
    """The result and folder of the only run in results/fewshot."""
    assert run.main([*FEW, *flags]) == 0
    (path,) = Path("results").glob("fewshot/*/result.json")
    return json.loads(path.read_text()), path.parent


def test_few_shot_training_scores_and_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    result, folder = run_few()
    assert (
        0.2 < result["accuracy"] <= 1
        and {"off", "dead", "gain_over_dense", "gain_over_dense_ci", "accuracy_ci"} <= result.keys()
    )
    assert {path.name for path in folder.iterdir()} >= {
        "training.png",
        "usage.png",
        "episodes.npz",
        "checkpoint.npz",
    }
    with np.load(folder / "episodes.npz") as file:
        np.testing.assert_allclose(file["accuracy"].mean(), result["accuracy"])
        assert (
            file["used"].shape == file["dead"].shape == (6, 64)
            and not (file["used"] & file["dead"]).any()
        )
    assert "points" in capsys.readouterr().out
    assert run.main([*FEW]) == 0 and "already there" in capsys.readouterr().out


LOGISTIC = "--head logistic --eps 0.3 --steps 1 --episodes 1 --test-episodes 2".split()
RESNET = "--encoder resnet12 --optimiser sgd --lr 0.01 --steps 1 --episodes 1".split()


@pytest.mark.parametrize(
    "flags",
    [
        ["--head", "ridge"],
        pytest.param(["--head", "prototypes"], marks=pytest.mark.slow),
        pytest.param(LOGISTIC, marks=pytest.mark.slow),
        ["--eps", "0", "--learn-lams"],
        pytest.param(RESNET, marks=pytest.mark.slow),
        pytest.param(["--train-shot", "4", "--noise", "0.5"], marks=pytest.mark.slow),
        ["--source", "shapes", "--encoder", "cnn"],
    ],
)
def test_every_few_shot_setting_trains(flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result, _ = run_few(*flags)
    assert 0 <= result["accuracy"] <= 1 and ("mcc" in result) == ("shapes" in flags)


def test_a_resumed_few_shot_run_ends_with_the_same_bits(tmp_path, monkeypatch):
    """Running moments and optimiser are in the checkpoint."""
    flags = ["--encoder", "conv4", "--optimiser", "sgd", "--lr", "0.01"]
    ends = []
    for name in ("whole", "halves"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        if name == "halves":
            save = results.save_checkpoint

            def save_and_stop(*args, save=save):
                save(*args)
                raise KeyboardInterrupt

            monkeypatch.setattr(results, "save_checkpoint", save_and_stop)
            assert run.main([*FEW, *flags]) == 130
            monkeypatch.setattr(results, "save_checkpoint", save)
        _, folder = run_few(*flags)
        with np.load(folder / "checkpoint.npz") as file:
            ends.append({key: file[key] for key in file.files})
    assert ends[0].keys() == ends[1].keys()
    assert all(np.array_equal(ends[0][k], ends[1][k]) for k in ends[0])
    assert any("state/block1.norm.mean" == key for key in ends[0])


def test_few_shot_on_npz_files_of_three_splits(tmp_path, monkeypatch):
    import test_episodes

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini").mkdir()
    test_episodes.write_splits(tmp_path / "mini")
    result, _ = run_few("--source", "npz", "--data", "mini", "--steps", "1")
    assert result["accuracy"] > 1 / 3  # its classes are colours


def test_few_shot_on_omniglot(tmp_path, monkeypatch, real_data):
    zips = ",".join(str(real_data(f"images_background_small{i}.zip")) for i in (1, 2))
    monkeypatch.chdir(tmp_path)
    result, _ = run_few("--source", "omniglot", "--data", zips)
    assert result["source"] == "omniglot" and result["accuracy"] > 1 / 3


def test_lam1_as_a_number_makes_features_switch_off(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result, _ = run_few("--eps", "0", "--lam1", "2")
    assert result["off"] > 0.2 and result["gain_over_dense_ci"] >= 0


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--source", "omniglot"], "--data"),
        (["--source", "shapes", "--encoder", "cnn", "--noise", "0.1"], "--noise: not with"),
        (["--source", "omniglot", "--data", "no.zip"], "no.zip"),
        (["--source", "npz", "--data", "."], "no train split"),
        (["--encoder", "cnn"], "--encoder cnn"),
        (["--way", "1"], "--way"),
        (["--shot", "10", "--query", "10"], "--shot"),
        (["--train-shot", "15"], "train split"),
        (["--lam2", "0"], "--lam2"),
        (["--data", "no.zip"], "--data: needs --source"),
        (["--features", "9"], "--features: needs --encoder cnn"),
        (["--head", "ridge", "--learn-lams"], "--learn-lams: needs --head svm"),
        (["--head", "logistic", "--eps", "0"], "--eps 0"),
        (["--source", "shapes", "--encoder", "resnet12", "--episodes", "5000"], "--episodes 5000"),
    ],
)
def test_few_shot_errors_are_one_line(flags, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run.main(["fewshot", *flags]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not Path("results").exists()


def test_any_other_image_or_label_is_other_data():
    rng = np.random.default_rng(0)
    x = rng.integers(256, size=(90, 8, 8, 1), dtype=np.uint8)
    labels = np.array([f"c{i // 10}" for i in range(90)])
    splits = {"train": (x, labels), "val": (x[:4], labels[:4]), "test": (x[4:9], labels[4:9])}
    names = {fewshot.fingerprint(splits)}
    every_second = x.copy()
    every_second[1::2] = 255 - every_second[1::2]
    names.add(fewshot.fingerprint(splits | {"train": (every_second, labels)}))
    other = labels.copy()
    other[13] = "c0"
    names.add(fewshot.fingerprint(splits | {"train": (x, other)}))
    assert len(names) == 3
