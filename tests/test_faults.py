"""What may go wrong under way: SIGKILL, a full disk, damaged files, two processes."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, arrays_of

import run
import sparsedis
from experiments import plots, results

KILLS = int(os.environ.get("SPARSEDIS_KILLS", 2))  # 20 in our own trial
TINY = "--steps 12 --samples 6 --image-sets 1 --tasks-per-set 2 --eval-images 50 --threads 1"
TINY = TINY.split()
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def words(folder):
    """The command line of a tiny run, in a process of its own."""
    return [sys.executable, str(ROOT / "run.py"), *TINY, "--results", str(folder)]


def checkpoint_of(folder):
    return arrays_of(next(Path(folder).rglob("checkpoint.npz")))


def rows_of(folder):
    """The lines of metrics.jsonl but for the seconds."""
    lines = next(Path(folder).rglob("metrics.jsonl")).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted run, and how long it took."""
    folder, began = tmp_path_factory.mktemp("whole"), time.perf_counter()
    subprocess.run(words(folder), check=True, capture_output=True)
    return folder, time.perf_counter() - began


def same_checkpoint(folder, other):
    a, b = checkpoint_of(folder), checkpoint_of(other)
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_killed_at_random_moments_a_run_ends_with_the_same_bits(whole, tmp_path):
    expected, seconds = whole
    rng, killed = np.random.default_rng(KILLS), 0
    for attempt in range(KILLS):
        folder = tmp_path / str(attempt)
        process = subprocess.Popen(words(folder), **QUIET)
        time.sleep(rng.uniform(0.3, 1.0) * seconds)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        assert run.main([*TINY, "--results", str(folder)]) == 0
        assert same_checkpoint(folder, expected) and rows_of(folder) == rows_of(expected)
    assert killed >= KILLS // 2  # else the moments were too late to test anything


@pytest.mark.slow
def test_of_two_processes_the_second_is_told_so(whole, tmp_path, capsys):
    first = subprocess.Popen(words(tmp_path), stdout=subprocess.DEVNULL)
    while not list(tmp_path.rglob("config.json")):
        time.sleep(0.02)
    assert run.main([*TINY, "--results", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "another process" in err and err.count("\n") == 1
    assert first.wait() == 0 and same_checkpoint(tmp_path, whole[0])
    assert run.main([*TINY, "--results", str(tmp_path)]) == 0


@pytest.mark.parametrize("after", [1, 3, 6])
def test_a_full_disk_is_one_line_and_keeps_what_was_there(
    after, whole, tmp_path, monkeypatch, capsys
):
    args = [*TINY, "--steps", "4", "--results", str(tmp_path)]
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    plain, calls = results.write_atomically, []

    def half(file):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    def full(path, write):
        calls.append(path)
        plain(path, half if len(calls) >= after else write)

    for module in (results, plots):
        monkeypatch.setattr(module, "write_atomically", full)
    capsys.readouterr()
    assert run.main(args) == 2
    err = capsys.readouterr().err
    assert "No space left" in err and err.count("\n") == 1
    assert all(path.read_bytes() == content for path, content in before.items())
    assert not list(tmp_path.rglob("*.new"))
    monkeypatch.undo()
    assert run.main(args) == 0


@pytest.mark.skipif(
    os.getuid() == 0 and not Path("/proc/version").exists(),
    reason="no way to make a folder that root cannot write",
)
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys):
    target = Path("/proc/sparsedis") if os.getuid() == 0 else tmp_path / "locked"
    if os.getuid() != 0:
        target.mkdir(mode=0o500)
    assert run.main([*TINY, "--results", str(target)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_truncated_checkpoint_is_one_line_and_stays(tmp_path, capsys, monkeypatch):
    args = [*TINY, "--steps", "4", "--results", str(tmp_path)]
    assert run.main(args) == 0
    checkpoint = next(tmp_path.rglob("checkpoint.npz"))
    (checkpoint.parent / "result.json").unlink()  # as if it had been interrupted
    checkpoint.write_bytes(checkpoint.read_bytes()[:-500])
    content = checkpoint.read_bytes()
    capsys.readouterr()
    assert run.main(args) == 2
    err = capsys.readouterr().err
    assert "checkpoint.npz" in err and err.count("\n") == 1 and checkpoint.read_bytes() == content
    assert run.main([*args, "--force"]) == 0


def test_features_that_are_not_finite_stop_the_run(tmp_path, monkeypatch, capsys):
    plain, save, saved = sparsedis.Encoder.forward, results.save_checkpoint, []

    def poisoned(self, params, state, x, train=True):
        F, cache, state = plain(self, params, state, x, train)
        return F * (np.nan if train and saved else 1), cache, state

    def save_and_note(path, *more):
        save(path, *more)
        saved.append(path)

    monkeypatch.setattr(sparsedis.Encoder, "forward", poisoned)
    monkeypatch.setattr(results, "save_checkpoint", save_and_note)
    assert run.main([*TINY, "--results", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert "no longer finite" in err and "kept" in err
    assert list(tmp_path.rglob("checkpoint.npz")) and not list(tmp_path.rglob("result.json"))
