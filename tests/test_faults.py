"""What may go wrong while a run or a sweep is under way: SIGKILL, a full disk, a folder that cannot be written, damaged files, two processes."""
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import metrics
import run

ROOT = Path(__file__).parent.parent
KILLS = int(os.environ.get("SPARSEDIS_KILLS", 2))                           # 20 in our own trial
TINY = ["--steps", "12", "--samples", "6", "--image-sets", "1", "--tasks-per-set", "2", "--eval-images", "50", "--threads", "1"]


def command(*args, results):
    return [sys.executable, str(ROOT / "run.py"), *args, "--results", str(results)]


def arrays_of(results):
    with np.load(next(Path(results).rglob("checkpoint.npz"))) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: its checkpoint, its rows and how long it took."""
    folder, began = tmp_path_factory.mktemp("whole"), time.perf_counter()
    subprocess.run(command(*TINY, results=folder), check=True, capture_output=True)
    return arrays_of(folder), next(folder.rglob("metrics.jsonl")).read_text().splitlines(), time.perf_counter() - began


def test_killed_at_random_moments_a_run_ends_with_the_same_bits(whole, tmp_path):
    expected, rows, seconds = whole
    rng, killed = np.random.default_rng(KILLS), 0
    for attempt in range(KILLS):
        folder = tmp_path / str(attempt)
        process = subprocess.Popen(command(*TINY, results=folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.3, 1.0) * seconds)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        told = subprocess.run(command(*TINY, results=folder), capture_output=True, text=True)
        assert told.returncode == 0, told.stderr
        got = arrays_of(folder)
        assert got.keys() == expected.keys() and all((got[name] == expected[name]).all() for name in got)
        again = next(folder.rglob("metrics.jsonl")).read_text().splitlines()
        strip = [[{k: v for k, v in json.loads(row).items() if k != "seconds"} for row in told] for told in (rows, again)]
        assert strip[0] == strip[1]
    assert killed >= KILLS // 2                                             # else the moments were too late to test anything


def test_of_two_processes_the_second_is_told_so(whole, tmp_path):
    first = subprocess.Popen(command(*TINY, results=tmp_path), stdout=subprocess.DEVNULL)
    while not list(tmp_path.rglob("config.json")):
        time.sleep(0.02)
    second = subprocess.run(command(*TINY, results=tmp_path), capture_output=True, text=True)
    assert first.wait() == 0
    assert second.returncode == 2 and "another process" in second.stderr and second.stderr.count("\n") == 1
    got = arrays_of(tmp_path)
    assert all((got[name] == whole[0][name]).all() for name in got)
    assert subprocess.run(command(*TINY, results=tmp_path), capture_output=True).returncode == 0


@pytest.mark.parametrize("after", [1, 3, 6])
def test_a_full_disk_is_one_line_and_keeps_what_was_there(after, tmp_path, monkeypatch, capsys):
    args = [*TINY, "--steps", "4", "--results", str(tmp_path)]
    assert run.main([*args, "--seed", "1"]) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    plain, calls = metrics.write_atomically, []

    def full(path, write):
        calls.append(path)
        if len(calls) >= after:
            def half(file):
                file.write(b"half of it")
                raise OSError(errno.ENOSPC, "No space left on device")
            write = half
        plain(path, write)
    for module in (metrics, run):
        monkeypatch.setattr(module, "write_atomically", full)
    capsys.readouterr()
    assert run.main(args) == 2
    err = capsys.readouterr().err
    assert "No space left" in err and err.count("\n") == 1
    assert all(path.read_bytes() == content for path, content in before.items()) and not list(tmp_path.rglob("*.new"))
    monkeypatch.undo()
    assert run.main(args) == 0


@pytest.mark.skipif(os.getuid() == 0 and not Path("/proc/version").exists(), reason="no way to make a folder that root cannot write")
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
    (checkpoint.parent / "result.json").unlink()                            # as if it had been interrupted
    checkpoint.write_bytes(checkpoint.read_bytes()[:-500])
    content = checkpoint.read_bytes()
    capsys.readouterr()
    assert run.main(args) == 2
    err = capsys.readouterr().err
    assert "checkpoint.npz" in err and err.count("\n") == 1 and checkpoint.read_bytes() == content
    assert run.main([*args, "--force"]) == 0


def test_features_that_are_not_finite_stop_the_run(tmp_path, monkeypatch, capsys):
    import sparsedis
    plain = sparsedis.Encoder.forward

    def poisoned(self, params, state, x, train=True):
        F, cache, state = plain(self, params, state, x, train)
        return F * (np.nan if train and "later" in seen else 1), cache, state
    seen = {}
    monkeypatch.setattr(sparsedis.Encoder, "forward", poisoned)
    monkeypatch.setattr(run, "save_checkpoint", lambda *args, plain=run.save_checkpoint: (plain(*args), seen.update(later=1)))
    assert run.main([*TINY, "--results", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert "no longer finite" in err and "kept" in err and list(tmp_path.rglob("checkpoint.npz")) and not list(tmp_path.rglob("result.json"))
