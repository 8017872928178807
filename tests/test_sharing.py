"""Sparse and shared features on images of known factors: runs, resuming, its table, errors."""

import json
from pathlib import Path

import numpy as np
import pytest

import data
import metrics
import run
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
    assert "no sign of failure" in out or "warning:" in out
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
