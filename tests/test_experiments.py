"""Sweeps, figures, the theory and the choice of eps, at tiny settings."""
import json
from pathlib import Path

import numpy as np
import pytest

import data
import metrics
import run


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """The sweeps of quick scale, shrunk to seconds."""
    settings = {"steps": 2, "image_sets": 1, "samples": 12, "tasks_per_set": 2, "eval_images": 60}
    monkeypatch.setitem(run.SCALES, "quick", (settings, 2, {"main": (0.1, 0.3), "other": (0.3,)}))
    monkeypatch.setitem(run.SWEEPS, "main", (run.INNER, [{"rho": 0.0}, {"rho": 0.9}]))
    for draw in ("draw_training", "draw_correlation", "draw_responses"):    # a second a run, and tested elsewhere
        monkeypatch.setattr(metrics, draw, lambda *args: Path(args[-1]).write_bytes(b"\x89PNG"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def results():
    return sorted(Path("results").glob("disentangle/*/result.json"))


def test_a_sweep_fills_its_table_and_resumes(tiny, capsys):
    assert run.main(["sweep", "blocks", "--index", "3"]) == 0
    assert len(results()) == 1
    assert run.main(["sweep", "fig8"]) == 0                                 # by its figure's name
    assert len(results()) == 3 * 2 * 1 * 2 and "12 runs, 1 there already" in capsys.readouterr().out
    times = [path.stat().st_mtime_ns for path in results()]
    assert run.main(["sweep", "blocks"]) == 0
    assert [path.stat().st_mtime_ns for path in results()] == times
    lines = Path("results/blocks-quick.csv").read_text().splitlines()
    assert len(lines) == 13 and {"mcc", "r", "mcc_ica", "block_share_2", "tasks", "seed"} <= set(lines[0].split(","))


def test_figures_are_drawn_from_the_table(tiny, capsys):
    assert run.main(["figure", "fig4"]) == 2 and "sweep main" in capsys.readouterr().err
    assert run.main(["sweep", "main", "--index", "0"]) == 0
    assert run.main(["figure", "fig4"]) == 0 and "15 of 16 runs are missing" in capsys.readouterr().out
    assert run.main(["sweep", "main"]) == 0
    for name in ("fig4", "fig6", "fig7", "fig11", "fig13", "fig14"):
        assert run.main(["figure", name]) == 0
        assert Path(f"results/{name}-quick.png").read_bytes()[:4] == b"\x89PNG"
    assert run.main(["sweep", "outer", "--index", "0"]) == 0 and run.main(["figure", "fig10"]) == 0
    assert run.main(["choose-eps"]) == 0
    out = capsys.readouterr().out
    assert "UDR chooses eps" in out and "below the best" in out


def test_two_workers_fill_the_same_table(tiny, monkeypatch):
    monkeypatch.setitem(run.SWEEPS, "main", (("inner-lasso",), [{"rho": 0.0}]))
    assert run.main(["sweep", "main", "--jobs", "2"]) == 0
    contents = [json.loads(path.read_text()) for path in results()]
    assert len(contents) == 4 and sorted((c["eps"], c["seed"]) for c in contents) == [(0.1, 0), (0.1, 1), (0.3, 0), (0.3, 1)]


def test_an_interrupted_sweep_goes_on(tiny, monkeypatch):
    monkeypatch.setitem(run.SWEEPS, "main", (("inner-lasso",), [{"rho": 0.0}]))
    disentangle, count = run.disentangle, []

    def stop_at_the_third(config):
        count.append(config)
        if len(count) == 3:
            raise KeyboardInterrupt
        return disentangle(config)
    monkeypatch.setattr(run, "disentangle", stop_at_the_third)
    assert run.main(["sweep", "main"]) == 130 and len(results()) == 2
    assert run.main(["sweep", "main"]) == 0 and len(results()) == 4


def test_an_unreachable_scheduler_is_one_line(tiny, capsys):
    assert run.main(["sweep", "main", "--dask", "tcp://127.0.0.1:1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("flags", [["--jobs", "0"], ["--index", "99"], ["--index", "-2"]])
def test_a_sweep_refuses_impossible_numbers(tiny, capsys, flags):
    assert run.main(["sweep", "main", *flags]) == 2 and flags[0] in capsys.readouterr().err and not results()


def test_fig1_draws_four_estimators(tmp_path):
    scores = metrics.draw_fig1(data.gaussian_task, "identity", 1, tmp_path / "f.png", seeds=2, percents=(5,), sizes=(25, 50))
    assert scores.shape == (1, 2, 2, 4) and (tmp_path / "f.png").exists()
    np.testing.assert_allclose(scores[..., 2], scores[..., 3], atol=1e-6)   # a rotation changes nothing for ridge
    assert scores[0, 0, :, 0].mean() > 0.5 > scores[0, 0, :, 1].mean()


def test_figures_of_the_assumptions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("fig2", "fig3"):
        assert run.main(["figure", name]) == 0 and Path(f"results/{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_every_claim_of_the_theory_holds(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run.main(["theory"]) == 0 and "FAILS" not in capsys.readouterr().out
    assert len(list(metrics.theory(seed=1))) >= 10 and all(holds for _, _, holds in metrics.theory(seed=1))


def test_a_bound_that_is_too_low_fails(monkeypatch):
    assert all(holds for _, _, holds in metrics.support_variability_bound(np.random.default_rng(0)))
    monkeypatch.setattr(metrics, "variability_bound", lambda m, p, T: 0.0)
    assert not all(holds for _, _, holds in metrics.support_variability_bound(np.random.default_rng(0)))


def test_the_assumptions_are_told_apart():
    rng = np.random.default_rng(0)
    F = rng.standard_normal((100, 6))
    S = metrics.nonempty_supports(rng, 3000, 6)
    W = rng.standard_normal((3000, 6)) * S
    held = lambda W, F=F: {name for name, (holds, _) in metrics.assumptions(F, W).items() if holds}
    assert held(W) == {"3.2", "3.3", "3.4", "3.5", "3.6"}
    assert held(np.repeat(W[:, :3], 2, axis=1) * rng.standard_normal(W.shape)) == {"3.2", "3.3", "3.4", "3.5"}      # blocks of 2
    assert "3.5" not in held(W[rng.integers(8, size=3000)])                 # finitely many vectors
    assert held(W * [1, 1, 1, 1, 1, 0]).isdisjoint({"3.4", "3.6"})
    assert "3.3" not in held(W, F[:, [0, 1, 2, 3, 4, 4]])


def test_support_variability_by_hand():
    assert metrics.supports_are_sufficient(np.eye(3))
    assert not metrics.supports_are_sufficient(np.array([[1, 1, 0], [0, 0, 1]]))            # 0 and 1 always together
    assert metrics.supports_are_sufficient(np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1]]))
    assert not metrics.supports_are_sufficient(np.ones((4, 2)))


def test_block_share_by_hand():
    z = np.linalg.qr(np.c_[np.ones(60), np.random.default_rng(0).standard_normal((60, 6))])[0][:, 1:] * 60 ** 0.5
    mix = np.kron(np.eye(3), [[1, 0.5], [-0.5, 1]])                         # inside blocks of 2
    assert metrics.block_share(z, z @ mix, 2) == pytest.approx(1) and metrics.block_share(z, z @ mix, 1) == pytest.approx(2 / 3)
    assert metrics.block_share(z, z[:, ::-1] @ mix, 2) == pytest.approx(1)  # in any order
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((6, 6)))[0]
    assert metrics.block_share(z, z @ rotation, 2) < 0.7


def test_udr_prefers_models_that_agree():
    rng = np.random.default_rng(0)
    z = rng.uniform(-1, 1, (800, 5))
    same = [z[:, rng.permutation(5)] * rng.choice([-1, 1], 5) for _ in range(3)]
    mixed = [z @ np.linalg.qr(rng.standard_normal((5, 5)))[0] for _ in range(3)]
    assert metrics.udr(same).min() > 0.85 > 0.6 > metrics.udr(mixed).max()
    assert np.isfinite(metrics.udr([np.ones((800, 5)), z])).all()


# ------------------------------------------------------------------------------------------------- few-shot

FEW = ["fewshot", "--steps", "3", "--episodes", "2", "--query", "3", "--test-episodes", "6", "--shot", "2", "--way", "3"]


def run_few(*flags):
    """The result and folder of the only run in results/fewshot."""
    assert run.main([*FEW, *flags]) == 0
    path, = Path("results").glob("fewshot/*/result.json")
    return json.loads(path.read_text()), path.parent


def test_few_shot_training_scores_and_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    result, folder = run_few()
    assert 0.2 < result["accuracy"] <= 1 and {"off", "dead", "gain_over_dense", "gain_over_dense_ci", "accuracy_ci"} <= result.keys()
    assert {path.name for path in folder.iterdir()} >= {"training.png", "usage.png", "episodes.npz", "checkpoint.npz"}
    with np.load(folder / "episodes.npz") as file:
        np.testing.assert_allclose(file["accuracy"].mean(), result["accuracy"])
        assert file["used"].shape == file["dead"].shape == (6, 64) and not (file["used"] & file["dead"]).any()
    assert "points" in capsys.readouterr().out
    assert run.main([*FEW]) == 0 and "already there" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [["--head", "ridge"], ["--head", "prototypes"], ["--head", "logistic", "--eps", "0.3", "--steps", "1", "--episodes", "1", "--test-episodes", "2"], ["--eps", "0", "--learn-lams"],
                                   ["--encoder", "resnet12", "--optimiser", "sgd", "--lr", "0.01", "--steps", "1", "--episodes", "1"], ["--train-shot", "4"],
                                   ["--source", "shapes", "--encoder", "cnn"]])
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
            save = run.save_checkpoint

            def save_and_stop(path, start, seed):
                save(path, start, seed)
                raise KeyboardInterrupt
            monkeypatch.setattr(run, "save_checkpoint", save_and_stop)
            assert run.main([*FEW, *flags]) == 130
            monkeypatch.setattr(run, "save_checkpoint", save)
        _, folder = run_few(*flags)
        with np.load(folder / "checkpoint.npz") as file:
            ends.append({key: file[key] for key in file.files})
    assert ends[0].keys() == ends[1].keys() and all(np.array_equal(ends[0][k], ends[1][k]) for k in ends[0])
    assert any("state/block1.norm.mean" == key for key in ends[0])


def test_few_shot_on_pickles_of_metaoptnets_layout(tmp_path, monkeypatch):
    import test_data
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini").mkdir()
    test_data.write_pickles(tmp_path / "mini")
    result, _ = run_few("--source", "pickles", "--data", "mini", "--steps", "1")
    assert result["accuracy"] > 1 / 3                                       # its classes are colours


def test_few_shot_on_omniglot(tmp_path, monkeypatch, real_data):
    zips = ",".join(str(real_data(f"images_background_small{i}.zip")) for i in (1, 2))
    monkeypatch.chdir(tmp_path)
    result, _ = run_few("--source", "omniglot", "--data", zips)
    assert result["source"] == "omniglot" and result["accuracy"] > 1 / 3


def test_fig5_is_drawn_from_its_sweep(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = {"episodes": 1, "query": 2, "test_episodes": 4, "way": 2, "shot": 2}
    monkeypatch.setitem(run.EPISODE_SWEEPS, "glyphs", ({"source": "glyphs", **small}, 1, (0.0, 0.3)))
    monkeypatch.setitem(run.EPISODE_SWEEPS, "shapes", ({"source": "shapes", "encoder": "cnn", **small}, 1, (0.1,)))
    assert run.main(["sweep", "fig5"]) == 0 and run.main(["sweep", "shapes"]) == 0
    assert len(Path("results/glyphs-quick.csv").read_text().splitlines()) == 3
    assert run.main(["figure", "fig5"]) == 0 and run.main(["figure", "conjecture"]) == 0
    out = capsys.readouterr().out
    assert "against eps 0.0" in out and "gain_over_dense" in Path("results/glyphs-quick.csv").read_text()
    for name in ("fig5", "conjecture"):
        assert Path(f"results/{name}-quick.png").read_bytes()[:4] == b"\x89PNG"


def test_lam1_as_a_number_makes_features_switch_off(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result, _ = run_few("--eps", "0", "--lam1", "2")
    assert result["off"] > 0.2 and result["gain_over_dense_ci"] >= 0


@pytest.mark.parametrize("flags, said", [(["--source", "omniglot"], "--data"), (["--source", "omniglot", "--data", "no.zip"], "no.zip"),
                                         (["--source", "pickles", "--data", "."], "no train split"), (["--encoder", "cnn"], "--encoder cnn"),
                                         (["--way", "1"], "--way"), (["--shot", "10", "--query", "10"], "--shot"), (["--train-shot", "15"], "train split"), (["--lam2", "0"], "--lam2")])
def test_few_shot_errors_are_one_line(flags, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run.main(["fewshot", *flags]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not Path("results").exists()


def test_accuracy_interval_by_hand():
    mean, interval = metrics.mean_ci(np.array([0.8, 1.0, 0.6, 0.8]))
    assert abs(mean - 0.8) < 1e-12 and abs(interval - 1.96 * np.std([0.8, 1.0, 0.6, 0.8], ddof=1) / 2) < 1e-12
