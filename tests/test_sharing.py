"""Sparse and shared features on images of known factors: runs, resuming, its table, errors."""

import json
import types
from pathlib import Path

import numpy as np
import pytest
from conftest import line_of

import data
import metrics
import run
import solvers
import sparsedis
from experiments import sharing, sweeps

TINY = ("--steps 3 --eval-images 200 --threads 1 --tasks 2 --shot 4 --query 3 --pool 6 "
        "--test-tasks 4").split()


SLOW = [pytest.param(method, marks=pytest.mark.slow) for method in ("lasso", "erm")]


@pytest.mark.parametrize("method", ["sharing", *SLOW])
def test_a_tiny_run_of_every_method(method, tmp_path, capsys):
    args = ["sharing", "--method", method, *TINY, "--results", str(tmp_path)]
    assert run.main(args) == 0
    out = capsys.readouterr().out
    assert "unseen tasks: accuracy" in out and "the other data set: MCC" in out
    folder = next(tmp_path.rglob("result.json")).parent
    assert {"importances.png", "responses.png", "correlation.png", "training.png"} <= {
        file.name for file in folder.iterdir()
    }
    result = json.loads((folder / "result.json").read_text())
    assert 0 <= result["entropy"] <= np.log(10)
    assert 0 <= result["zeros"] <= 1 and 0.3 <= result["accuracy"] <= 1


@pytest.mark.slow
def test_dsprites_trains_and_the_hypergradient_can_be_cheap(tmp_path):
    args = ["sharing", "--source", "dsprites", "--one-step", *TINY, "--results", str(tmp_path)]
    assert run.main(args) == 0
    result = json.loads(next(tmp_path.rglob("result.json")).read_text())
    assert "mcc_orientation" in result and "transfer_dci_d" in result


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, monkeypatch):
    args = ["sharing", *TINY, "--method", "erm", "--steps", "6"]
    assert run.main([*args, "--results", str(tmp_path / "a")]) == 0
    plain, calls = sparsedis.adam, []

    def stop(*a):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return plain(*a)

    monkeypatch.setattr(sparsedis, "adam", stop)
    assert run.main([*args, "--results", str(tmp_path / "b")]) == 130
    monkeypatch.undo()
    assert run.main([*args, "--results", str(tmp_path / "b")]) == 0
    a, b = (np.load(next((tmp_path / side).rglob("checkpoint.npz"))) for side in "ab")
    assert all((a[name] == b[name]).all() for name in a.files) and "params/head.W" in a.files


def test_matched_features_are_scored_without_the_others():
    """Six features are the factors; the four others mix them, which DCI of all ten counts."""
    grid = data.Shapes3D()
    z, _ = data.latents(grid, 1.0, 0.0)
    mix = np.random.default_rng(0).standard_normal((6, 4))

    def features(index):
        return np.hstack([z[index] @ mix, -2 * z[index][:, ::-1]])

    found = sharing.score_matched(features, grid, z, 1000)
    assert found["dci_d_matched"] > 0.99 and found["dci_c_matched"] > 0.99
    index = np.random.default_rng(20_000).integers(len(grid), size=1000)
    assert metrics.dci(z[index], features(index))[0] < 0.9


def test_failures_are_named():
    good = {"features_per_head": 2.0, "unused": 0.1, "accuracy_seen": 0.9, "accuracy": 0.9}
    assert sharing.signatures(good, 10) == []
    for key, value, said in (
        ("features_per_head", 9.0, "all alike"),
        ("unused", 0.6, "unused"),
        ("accuracy_seen", 0.6, "trained on"),
        ("accuracy", 0.6, "unseen"),
    ):
        (text,) = sharing.signatures({**good, key: value}, 10)
        assert said in text


@pytest.mark.slow
def test_the_sweep_makes_its_table_and_figures(tmp_path, monkeypatch, capsys):
    tiny = {"eval_images": 200, "tasks": 2, "shot": 4, "query": 3, "pool": 6, "test_tasks": 4}
    cells = ({}, {"method": "lasso", "rho": 0.9}, {})
    monkeypatch.setattr(sweeps, "SHARING_SWEEP", [{**cell, **tiny} for cell in cells])
    plain = sharing.Sharing
    monkeypatch.setattr(sharing, "Sharing", lambda **kw: plain(**{**kw, "steps": 2}))
    configs = sweeps.sweep_configs("sharing", "quick", str(tmp_path))
    assert len(configs) == 2  # equal ones run once
    for config in configs:
        sharing.sharing(config)
    ours, lasso = sweeps.read_table("sharing", "quick", str(tmp_path))
    grid = [(a, b) for a in (0.03, 0.2) for b in (0.0, 0.1)]
    more = [
        {**ours, "alpha": a, "beta": b, "entropy": 1 + b, "dci_d": 0.5 - b + a / 10}
        for a, b in grid
    ]
    rows = [ours, lasso, *more]
    sweeps.write_table(rows, tmp_path / "t.csv", plain)
    head = Path(tmp_path / "t.csv").read_text().splitlines()[0].split(",")
    assert {"alpha", "beta", "method", "dci_d", "accuracy", "transfer_mcc", "code"} <= set(head)
    assert "eval_images" not in head
    sharing.draw_sharing(rows, tmp_path / "s.png")
    sharing.print_methods(rows, tmp_path / "m.png")
    out = capsys.readouterr().out
    assert "correlation -" in out and "94.7" in out and "lasso" in out
    assert (tmp_path / "s.png").exists()


@pytest.mark.parametrize(
    "args, said",
    [
        (["--factors", "7"], "--factors"),
        (["--alpha", "0"], "--alpha"),
        (["--beta", "-1"], "--beta"),
        (["--features", "1"], "--features"),
        (["--source", "dsprites", "--factors", "6"], "--factors"),
        pytest.param(["--pool", "500", "--factors", "1"], "--pool", marks=pytest.mark.slow),
        (["--source", "features", "--data", "nowhere.npz"], "nowhere.npz"),
        (["--source", "features", "--data", "nowhere.npz", "--method", "lasso"], "--method"),
        (["--factors", "1"], "--pool"),
        (["--tasks", "9", "--pool", "4"], "--tasks: found 9, expected at most --pool 4"),
        (["--method", "erm", "--beta", "1"], "--beta: needs --method sharing, found erm"),
        (["--eps", "0.9"], "--eps: needs --method lasso, found sharing"),
        (["--rho", "0.996"], "--rho 0.996: leaves 1.3 effective images"),
        (["--source", "features", "--data", "nowhere.npz", "--eval-images", "77"], "--eval-images"),
        (["--method", "magic"], "--method"),
    ],
)
def test_wrong_arguments_are_one_line_and_status_2(args, said, tmp_path, capsys):
    try:
        status = run.main(["sharing", *args, "--results", str(tmp_path / "r")])
    except SystemExit as stop:
        status = stop.code
    err = capsys.readouterr().err
    assert status == 2 and said in err and err.count("\n") == 1 and not (tmp_path / "r").exists()


def test_heads_do_not_start_from_the_encoder_s_numbers():
    config = sharing.Sharing(method="erm", pool=4, features=5)
    heads = sharing.head_start(config)["head.W"]
    map_, _ = sparsedis.mlp([4, 5]).init(np.random.default_rng(config.seed), np.float64)
    assert abs(np.corrcoef(heads.ravel(), map_["linear1.W"].ravel())[0, 1]) < 0.9


def test_heads_of_unseen_tasks_are_scored_on_uniform_images(tmp_path, monkeypatch):
    grid = data.Shapes3D()
    z, p = data.latents(grid, 1.0, 0.9)
    config, asked = sharing.Sharing(pool=6, test_tasks=2, shot=4), []
    tasks = sharing.BinaryTasks(grid.factors, p, 2, 8)

    def accuracies(config, features, some, numbers):
        asked.append((some.cumulative[0] == p[0], list(numbers)))
        return np.array([0.6, 0.9]), np.array([[1.0, 0, 0, 0, 0, -1], [2, 0, 0, 0, 0, 0]])

    monkeypatch.setattr(sharing, "accuracies", accuracies)
    monkeypatch.setattr(sharing, "draw_importances", lambda *args: None)
    run = types.SimpleNamespace(path=tmp_path.joinpath)
    told = sharing.score_heads(config, lambda index: z[index], grid, tasks, run)
    assert asked == [(True, [0, 1, 2, 3, 4, 5]), (False, [6, 7])]
    assert told["accuracy"] == told["accuracy_seen"] == 0.75
    assert told["unused"] == pytest.approx(4 / 6) and told["zeros"] == pytest.approx(9 / 12)
    assert told["features_per_head"] == pytest.approx(1.5)  # two alike, and one
    assert told["entropy"] == pytest.approx(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))


def test_what_is_scored_has_no_part_in_the_fit_of_a_head():
    rng = np.random.default_rng(0)
    F, Y = rng.standard_normal((3, 30, 5)), rng.integers(2, size=(3, 30, 1)).astype(float)
    Z, phi = sharing.fit_heads(F, Y, 20)
    assert Z.shape == (3, 10) and phi.any()
    others = np.where(np.arange(30)[:, None] < 20, F, 9 * F + 3)
    _, same = sharing.fit_heads(others, np.where(np.arange(30)[:, None] < 20, Y, 1 - Y), 20)
    np.testing.assert_array_equal(same, phi)


def objective_at(progress, method, monkeypatch, one_step=False):
    """Labels and strength with which an objective fits, at a progress; alpha 0.1, beta 0.02."""
    seen = []

    def head(F, Y, lam, n_support, one_step=None):
        seen.append((Y, lam, F, one_step))
        return 0.0, 0 * F, {}, {}

    monkeypatch.setattr(sharing, "sharing_episode", head)
    monkeypatch.setattr(sparsedis, "inner_lasso", head)
    Y = np.random.default_rng(1).integers(2, size=(2, 12, 1)).astype(float)
    F = np.random.default_rng(0).standard_normal((24, 5))
    config = sharing.Sharing(shot=4, one_step=one_step)
    sharing.objective_of(config, method)(progress, [F], (Y, None), {})
    assert seen[0][3] == (one_step if method == "sharing" else None)
    return Y, *seen[0][:3]


def test_penalties_rise_over_their_share_of_the_steps(monkeypatch):
    told = [objective_at(progress, "sharing", monkeypatch, progress == 1)[2]
            for progress in (0, 0.25, 0.5, 1)]
    np.testing.assert_allclose(told, [(0.01, 0), (0.05, 0.01), (0.1, 0.02), (0.1, 0.02)])


def test_the_lasso_has_labels_of_both_signs_and_a_share_of_its_largest_penalty(monkeypatch):
    Y, signs, lam, F = objective_at(0.25, "lasso", monkeypatch)
    np.testing.assert_array_equal(signs, np.where(Y[..., 0] == 1, 1, -1))
    np.testing.assert_allclose(lam, 0.15 * solvers.lasso_lambda_max(F[:, :8], signs[:, :8]))


def row(seed=0, method="sharing", alpha=0.1, beta=0.02, factors=2, rho=0.0, **scores):
    keys = ("mcc", "dci_d", "dci_c", "accuracy", "accuracy_seen", "seconds", "entropy", "inner_ms")
    told = {"seed": seed, "method": method, "alpha": alpha, "beta": beta, "factors": factors}
    return told | {"rho": rho} | dict.fromkeys(keys, 0.5) | scores


def test_methods_are_compared_at_one_strength_by_means_over_seeds(capsys):
    rows = [row(seed, mcc=0.6 + seed / 10, dci_d=0.2) for seed in (0, 1)]
    rows += [row(alpha=0.2, mcc=0.0), row(factors=3, mcc=0.0), row(method="erm", mcc=0.3)]
    sharing.print_methods(rows, None)
    _, erm, ours = (line.split() for line in capsys.readouterr().out.splitlines())
    assert erm[:3] == ["0.0", "erm", "0.300"] and ours[:2] == ["0.0", "sharing"]
    assert ours[2:8] == ["0.650", "+-", "0.071", "0.200", "+-", "0.000"]
    assert ours[-2:] == ["(2", "seeds)"]


def test_the_figure_of_sharing_has_each_row_in_its_place(panels):
    rows = [row(alpha=a, beta=b, dci_d=a + b, entropy=a) for a in (0.1, 0.2) for b in (0.02, 0.1)]
    rows += [row(seed=1, dci_d=0.32), row(factors=3, dci_d=0.9, mcc=0.7, accuracy=0.8)]
    sharing.draw_sharing(rows, None)
    grid, entropy, factors, _ = panels[0]
    np.testing.assert_allclose(line_of(grid.containers[0])[1], [0.22, 0.22])  # of 0.12 and 0.32
    np.testing.assert_allclose(line_of(grid.containers[1])[1], [0.2, 0.3])
    lines = [line_of(container) for container in factors.containers]
    np.testing.assert_allclose([y for _, y, _ in lines], [[0.22, 0.9], [0.5, 0.7], [0.5, 0.8]])


def test_the_other_data_set_is_scored_on_its_own_images_and_tasks():
    config = sharing.Sharing(test_tasks=3, shot=5)
    grid, tasks = sharing.tasks_elsewhere(config)
    told = sharing.transfer(config, grid, tasks, lambda grid, index: 1.0 * grid.factors[index])
    accuracy, _ = sharing.accuracies(
        config, lambda index: 1.0 * grid.factors[index], tasks, np.arange(3))
    assert "orientation" in grid.names and len(grid.names) == 5 and len(tasks.tasks) == 3
    assert told["transfer_mcc"] == pytest.approx(1)
    assert told["transfer_accuracy"] == accuracy.mean() != accuracy[0]


def test_scores_and_what_has_gone_wrong_are_told(monkeypatch, capsys):
    keys = ("mcc", "r", "dci_d", "dci_c", "entropy", "transfer_mcc", "transfer_dci_d")
    result = dict.fromkeys(keys, 0.5) | {"steps": 3, "seconds": 1.0, "signatures": ["a", "b"]}
    result |= {"accuracy": 0.9, "accuracy_ci": 0.01, "accuracy_seen": 0.8, "zeros": 0.3,
               "unused": 0.2, "transfer_accuracy": 0.7}
    folder = types.SimpleNamespace(tell_files=lambda: None)
    cases = ((["a", "b"], ["warning: a", "warning: b"]), ([], ["no sign of failure"]))
    for signatures, last in cases:
        monkeypatch.setattr(
            sharing, "sharing", lambda config, s=signatures: (result | {"signatures": s}, folder))
        sharing.tell_images(sharing.Sharing())
        told = capsys.readouterr().out.splitlines()
        assert told[-len(last):] == last and "warning" not in told[-len(last) - 1]
    assert told[-3:-1] == [
        "unseen tasks: accuracy 90.00 +- 1.00 % (seen 80.00 %); entropy 0.50 of at most 2.30, "
        "30 % of weights 0, 20 % of features unused",
        "the other data set: MCC 0.5000   DCI-D 0.5000   accuracy 70.00 %"]
