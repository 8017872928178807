"""Few-shot runs from the command line: every source, head and setting, resuming, errors."""

import json
import types
from pathlib import Path

import numpy as np
import pytest

import data
import run
import solvers
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
        pytest.param(RESNET, marks=pytest.mark.slow),
        pytest.param(["--train-shot", "4", "--noise", "0.5"], marks=pytest.mark.slow),
        ["--source", "shapes", "--encoder", "cnn"],
    ],
)
def test_every_few_shot_setting_trains(flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result, _ = run_few(*flags)
    assert 0 <= result["accuracy"] <= 1 and ("mcc" in result) == ("shapes" in flags)


def test_penalties_noise_and_optimiser_reach_the_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, folder = run_few("--eps", "0.3", "--learn-lams")
    with np.load(folder / "checkpoint.npz") as file:
        assert file["params/head.log_lam1"] != 0 != file["params/head.log_lam2"]
    plain, noisy = (fewshot.source_of(fewshot.FewShot(noise=noise)) for noise in (0.0, 0.5))
    index = np.arange(5)
    x, y = (source.images("test", index, np, "cpu") for source, _ in (plain, noisy))
    assert 0.2 < np.std(y - x) < 0.6
    asked = []

    def stop(run, training, *_):
        asked.append(training)
        raise KeyboardInterrupt

    monkeypatch.setattr(results.Run, "train", stop)
    assert run.main([*FEW, "--optimiser", "sgd"]) == 130
    assert asked[0].optimiser == fewshot.OPTIMISERS["sgd"]


def test_factors_are_scored_against_their_own_features():
    shapes = data.Shapes3D()
    z = shapes.factors.astype(float)
    end = types.SimpleNamespace(params={}, state={})
    source = types.SimpleNamespace(shapes=shapes, images=lambda split, some, xp, device: some)

    def encoder(width):
        return types.SimpleNamespace(
            encode=lambda params, state, images, index: np.resize(z[index].T, (width, 5000)).T)

    assert fewshot.score_factors(encoder(6), source, end, np, "cpu")["mcc"] == pytest.approx(1)
    assert fewshot.score_factors(encoder(1001), source, end, np, "cpu") == {}


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
    assert result["off"] > 0.2


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
        (["--head", "ridge", "--eps", "0.5"], "--eps: needs --head svm or logistic"),
        (["--head", "logistic", "--lam1", "3"], "--lam1: needs --head svm"),
        (["--head", "prototypes", "--lam2", "3"], "--lam2: needs --head svm or ridge"),
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


def test_gains_are_over_the_dense_svm_and_shares_are_of_live_features(tmp_path, monkeypatch):
    used = np.array([[1, 0, 0, 0], [1, 1, 0, 0]], bool)
    dead = np.array([[0, 0, 0, 1]] * 2, bool)

    def evaluate(config, encoded, dense=False):
        accuracy = np.array([0.5, 0.7]) if dense else np.array([0.6, 0.9])
        return fewshot.Evaluation(accuracy, np.array([True, False]), used, dead)

    monkeypatch.setattr(fewshot, "evaluate", evaluate)
    run = types.SimpleNamespace(path=tmp_path.joinpath)
    told = fewshot.score(fewshot.FewShot(), run, None)
    assert told["accuracy"] == 0.75 and told["gain_over_dense"] == pytest.approx(0.15)
    assert (told["off"], told["dead"], told["unsolved"]) == (0.5, 0.25, 1)


def test_a_feature_is_dead_that_is_0_on_the_support():
    config = fewshot.FewShot(head="ridge", way=2, shot=2, query=1)
    F = np.random.default_rng(0).standard_normal((1, 6, 3))
    F[0, :4, 1] = 0  # but not on the query samples
    Y = np.eye(2)[[[0, 0, 1, 1, 0, 1]]]
    found = fewshot.evaluate_some(config, F, Y, {}, dense=False)
    assert found.dead.tolist() == [[False, True, False]]
    assert found.used.tolist() == [[True, False, True]]


def test_penalties_are_as_the_settings_say():
    F = np.random.default_rng(0).standard_normal((2, 10, 4))
    Y = np.broadcast_to(np.eye(2)[np.arange(10) % 2], (2, 10, 2))
    config = fewshot.FewShot(eps=0.5, lam1=0.25, lam2=3.0)
    lam1, lam2 = fewshot.strengths(config)(F, Y)
    np.testing.assert_allclose(lam1, 0.25 + 0.5 * solvers.svm_lambda_max(F, Y))
    assert lam2 == 3 and fewshot.strengths(config, dense=True)(F, Y) == (0, 3)
    ridge = fewshot.FewShot(head="ridge", lam2=3.0)
    assert fewshot.strengths(ridge)(F, Y) == 0.3  # of the mean over 10 samples
    logistic = fewshot.strengths(fewshot.FewShot(head="logistic", eps=0.5))(F, Y)
    np.testing.assert_allclose(
        logistic, 0.5 * solvers.group_lasso_lambda_max(F, Y, "logistic"))


def test_training_looks_at_validation_and_is_scored_on_test_classes(tmp_path, monkeypatch):
    asked, draw = [], fewshot.draw_episodes

    def spy(rng, source, split, size, count):
        asked.append((split, *size, count))
        return draw(rng, source, split, size, count)

    monkeypatch.setattr(fewshot, "draw_episodes", spy)
    config = fewshot.FewShot(
        way=2, shot=1, query=2, train_shot=2, train_query=3, steps=2, episodes=2, test_episodes=4,
        head="ridge", results=str(tmp_path), threads=1)
    fewshot.fewshot(config)
    step, look = ("train", 2, 2, 3, 2), ("val", 2, 1, 2, 50)
    assert asked == [step, look, step, look, ("test", 2, 1, 2, 4)]


def test_fig5_tells_gains_over_the_least_eps_of_the_same_seed(tmp_path, panels, capsys):
    rows = []
    for seed in (0, 1):
        for eps in (0.3, 0.0):
            accuracy = np.array([0.5, 0.7]) + eps + seed / 10
            (folder := tmp_path / f"{seed}{eps}").mkdir()
            np.savez(folder / "episodes.npz", accuracy=accuracy, used=np.ones((2, 3), bool),
                     dead=np.zeros((2, 3), bool))
            rows.append({"eps": eps, "seed": seed, "off": eps, "dead": 0.0, "folder": folder,
                         "accuracy": accuracy.mean()})
    fewshot.draw_fig5(rows, None)
    gains = [line.rpartition("; ")[2] for line in capsys.readouterr().out.splitlines()]
    assert gains == [f"{gain} +- 0.00 against the least eps" for gain in ("+0.00", "+30.00") * 2]
    (points,) = [ax.containers for ax in panels[0] if ax.containers]
    told = [(float(c.lines[0].get_xdata()[0]), float(c.lines[0].get_ydata()[0])) for c in points]
    np.testing.assert_allclose(told, [(0, 65), (30, 95)])


def test_the_command_tells_accuracy_and_gain_with_their_intervals(monkeypatch, capsys):
    result = {"accuracy": 0.9, "accuracy_ci": 0.01, "off": 0.25, "dead": 0.125, "steps": 3,
              "seconds": 4.0, "unsolved": 2, "gain_over_dense": -0.02, "gain_over_dense_ci": 0.003}
    folder = types.SimpleNamespace(tell_files=lambda: None)
    monkeypatch.setattr(fewshot, "fewshot", lambda config: (result, folder))
    fewshot.command(fewshot.FewShot())
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "accuracy 90.00 +- 1.00 % on 1000 test episodes; 25.0 % of live features off, 12.5 % dead"
        "      3 steps, 4 s of training",
        "warning: the fits of 2 test episodes were not solved",
        "over the dense SVM on the same features and episodes: -2.00 +- 0.30 points"]
