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

KILLS = int(os.environ.get("SPARSEDIS_KILLS", 1))  # 10 of each experiment in our own trial
TINY = "--steps 12 --samples 6 --image-sets 1 --tasks-per-set 2 --eval-images 50 --threads 1"
TINY = TINY.split()
EXPERIMENTS = {  # arguments of a tiny run of each
    "disentangle": TINY,
    "fewshot": "fewshot --way 2 --shot 2 --query 3 --episodes 2 --steps 12 "
    "--test-episodes 4".split(),
    "sharing": "sharing --tasks 2 --shot 3 --query 3 --pool 3 --test-tasks 2 --features 4 "
    "--steps 12 --eval-images 60".split(),
    "features": "sharing --source features --data FILE --features 3 --tasks 2 --steps 40".split(),
}
KILLED = EXPERIMENTS if "SPARSEDIS_KILLS" in os.environ else ["disentangle"]
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def words(folder, args=TINY):
    """The command line of a tiny run, in a process of its own."""
    return [sys.executable, str(ROOT / "run.py"), *args, "--results", str(folder)]


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
@pytest.mark.parametrize("name", KILLED)
def test_killed_at_random_moments_a_run_ends_with_the_same_bits(name, tmp_path):
    write_features(tmp_path / "x.npz")
    args = [str(tmp_path / "x.npz") if word == "FILE" else word for word in EXPERIMENTS[name]]
    args += [] if "--threads" in args else ["--threads", "1"]
    began = time.perf_counter()
    subprocess.run(words(tmp_path / "whole", args), check=True, capture_output=True)
    seconds, killed = time.perf_counter() - began, 0
    rng = np.random.default_rng(KILLS)
    for attempt in range(4 * KILLS):
        folder = tmp_path / str(attempt)
        process = subprocess.Popen(words(folder, args), **QUIET)
        time.sleep(rng.uniform(0.4, 1.0) * seconds)
        process.send_signal(signal.SIGKILL)
        in_time = process.wait() == -signal.SIGKILL
        killed, seconds = killed + in_time, seconds * (1 if in_time else 0.8)
        subprocess.run(words(folder, args), check=True, capture_output=True)
        assert all_checkpoints(folder) == all_checkpoints(tmp_path / "whole")
        assert not list(folder.rglob("*.new"))
        if killed == KILLS:
            return
    raise AssertionError(f"{killed} of {attempt + 1} were killed: the moments were too late")


def write_features(path):
    """A small table of two classes in two domains."""
    rng = np.random.default_rng(0)
    y, domain = rng.integers(2, size=200), rng.integers(2, size=200)
    np.savez(path, x=rng.standard_normal((200, 5)) + y[:, None], y=y, domain=domain)


def all_checkpoints(folder):
    """The bytes of every array of every checkpoint below a folder."""
    found = {}
    for path in sorted(Path(folder).rglob("checkpoint.npz")):
        arrays = {name: a.tobytes() for name, a in arrays_of(path).items()}
        found[str(path.relative_to(folder))] = arrays
    return found


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_the_workers_of_a_killed_sweep_end_with_it(sent, tmp_path):
    args = ["sweep", "blocks", "--scale", "tiny", "--jobs", "2"]
    process = subprocess.Popen(words(tmp_path, args), start_new_session=True, **QUIET)
    while not list(tmp_path.rglob("config.json")):
        time.sleep(0.05)
    process.send_signal(sent)
    process.wait()
    time.sleep(2)
    done = subprocess.run(words(tmp_path, args), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "another process" not in done.stdout + done.stderr


@pytest.mark.slow
def test_sigterm_ends_a_run_as_ctrl_c_does(tmp_path):
    args = [*TINY, "--steps", "100000"]
    process = subprocess.Popen(
        words(tmp_path, args), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while not list(tmp_path.rglob("metrics.jsonl")):
        time.sleep(0.05)
    process.terminate()
    assert "interrupted" in process.communicate(timeout=60)[1] and process.returncode == 130


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&- <&-"])
def test_a_closed_stream_stops_no_run(closed, whole, tmp_path):
    line = " ".join(words(tmp_path)) + f" {closed}"
    assert subprocess.run(["bash", "-c", line], timeout=120).returncode == 0
    assert same_checkpoint(tmp_path, whole[0])


@pytest.mark.slow
def test_render_on_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    render = f"{sys.executable} {ROOT / 'run.py'} render --limit 900 --out {tmp_path}/a.h5"
    line = f"ulimit -f 100; {render}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120)
    line = done.stderr.strip().splitlines()[-1]  # after those of progress
    assert done.returncode == 2 and line.startswith("run.py render")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_sweep_on_dask_outlives_a_worker(tmp_path):
    import distributed

    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None
    ) as cluster:
        args = ["sweep", "blocks", "--scale", "tiny", "--dask", cluster.scheduler_address]
        process = subprocess.Popen(words(tmp_path, args), **QUIET)
        while not list(tmp_path.rglob("result.json")):
            time.sleep(0.1)
        worker = next(iter(cluster.workers.values()))
        os.kill(worker.pid, signal.SIGKILL)
        assert process.wait(timeout=300) == 0
    rows = (tmp_path / "blocks-tiny.csv").read_text().splitlines()
    assert len(rows) == 1 + 6


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


@pytest.mark.parametrize("after", [1, pytest.param(3, marks=pytest.mark.slow), 6])
@pytest.mark.usefixtures("pictures")
def test_a_full_disk_is_one_line_and_keeps_what_was_there(
        after, finished, tmp_path, monkeypatch, capsys):
    args = [*TINY, "--steps", "4", "--results", str(tmp_path)]
    shutil.copytree(finished[0] / "results", tmp_path, dirs_exist_ok=True)
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
    assert "not finite in" in err and "kept" in err
    assert list(tmp_path.rglob("checkpoint.npz")) and not list(tmp_path.rglob("result.json"))
