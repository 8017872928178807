"""The folder of a run: what is in it, and that a run resumes with the same bits."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, TINY, result_of, same_bits

import run
import sparsedis
from experiments import disentangle, results


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_scores_figures_and_a_checkpoint(finished):
    folder, out = finished
    result, where = result_of(folder)
    assert {"mcc", "r", "dci_d", "dci_c", "steps", "seed"} <= result.keys() and result["steps"] == 6
    assert all(0 <= result[key] <= 1 for key in ("mcc", "r", "dci_d", "dci_c"))
    files = """.lock checkpoint.npz config.json correlation.png metrics.jsonl responses.png
        result.json training.png"""
    assert sorted(path.name for path in where.iterdir()) == files.split()
    for name in ("correlation", "responses", "training"):
        assert (where / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    rows = lines_of(where)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(row["unsolved"] == 0 for row in rows)
    assert "rho=0.9" in out and "MCC" in out and where.name in out


def test_a_finished_run_is_not_run_again(finished, capsys):
    folder, _ = finished
    _, where = result_of(folder)
    before = (where / "checkpoint.npz").stat().st_mtime_ns
    # threads are no part of the result's name, nor is the folder
    assert run.main(["disentangle", *TINY, "--results", str(folder / "results")]) == 0
    assert "already there" in capsys.readouterr().out
    assert (where / "checkpoint.npz").stat().st_mtime_ns == before


def test_two_threads_and_a_kill_change_no_bit(finished, tmp_path):
    """Killed once it has a checkpoint, run again with other threads: the same bits."""
    words = [sys.executable, str(ROOT / "run.py"), *TINY, "--threads", "2"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(words, cwd=tmp_path, **quiet)
    deadline = time.time() + 120
    while not list(tmp_path.glob("results/*/*/checkpoint.npz")) and time.time() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(tmp_path.glob("results/disentangle/*/result.json"))
    args = [*TINY, "--threads", "2", "--results", str(tmp_path / "results")]
    assert run.main(args) == 0
    whole, whole_folder = result_of(finished[0])
    resumed, resumed_folder = result_of(tmp_path)
    assert resumed == whole
    assert same_bits(whole_folder / "checkpoint.npz", resumed_folder / "checkpoint.npz")
    assert [row["step"] for row in lines_of(resumed_folder)] == [1, 2, 3, 4, 5, 6]


def test_resuming_in_the_middle_changes_no_bit(finished, tmp_path, monkeypatch):
    """The same in one process, stopped after a known step: the resumed part is not empty."""
    config = disentangle.Disentangle(
        steps=6, image_sets=2, samples=21, tasks_per_set=2, eval_images=120,
        results=str(tmp_path / "results"),
    )
    save, stopped = results.save_checkpoint, []

    def save_and_stop(path, snapshot, *more):
        save(path, snapshot, *more)
        if snapshot.step == 3:
            stopped.append(True)
            raise KeyboardInterrupt

    monkeypatch.setattr(results, "save_checkpoint", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        disentangle.disentangle(config)
    monkeypatch.setattr(results, "save_checkpoint", save)
    disentangle.disentangle(config)
    whole, whole_folder = result_of(finished[0])
    resumed, resumed_folder = result_of(tmp_path)
    assert stopped and resumed == whole
    assert same_bits(whole_folder / "checkpoint.npz", resumed_folder / "checkpoint.npz")


def test_rows_after_the_checkpoint_are_dropped(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "lo')
    assert results.read_lines(file, 2) == [{"step": 1}, {"step": 2}]
    assert len(results.read_lines(file, 9)) == 3
    assert results.read_lines(tmp_path / "none", 5) == []


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    results.write_json(path, {"mcc": 0.5})

    def half(file):
        file.write(b"half of it")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        results.write_atomically(path, half)
    with pytest.raises(ValueError):
        results.write_json(path, {"mcc": float("nan")})
    assert json.loads(path.read_text()) == {"mcc": 0.5} and len(list(tmp_path.iterdir())) == 1


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    encoder = sparsedis.mlp([3, 4, 2])
    params, state = encoder.init(np.random.default_rng(0))
    moments = {name: a + 1 for name, a in params.items()}
    opt = sparsedis.Optimiser(7, moments, {})
    path = tmp_path / "checkpoint.npz"
    results.save_checkpoint(path, sparsedis.Snapshot(params, state, opt, 7), encoder.spec, 3)
    snapshot, spec = results.load_checkpoint(path)
    assert (snapshot.step, snapshot.opt.step, snapshot.opt.square) == (7, 7, {})
    for saved, loaded in ((params, snapshot.params), (moments, snapshot.opt.mean)):
        assert saved.keys() == loaded.keys()
        assert all(np.array_equal(saved[name], loaded[name]) for name in saved)
    assert sparsedis.build(spec).shapes == encoder.shapes
    path.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="not a checkpoint"):
        results.load_checkpoint(path)
