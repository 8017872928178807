"""The command line, run as a user would: results, resuming, errors."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gradient_cases
import numpy as np
import pytest

import run

ROOT = Path(run.__file__).parent
TINY = ["--steps", "6", "--image-sets", "2", "--samples", "21", "--tasks-per-set", "2", "--eval-images", "120"]


def command(*args, cwd, expect=0):
    """Run run.py in a folder of its own; returns stdout, stderr."""
    done = subprocess.run([sys.executable, str(ROOT / "run.py"), *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout, done.stderr


def arrays(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def same_bits(a, b):
    a, b = arrays(a), arrays(b)
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def result_of(folder):
    results = list(Path(folder).glob("results/disentangle/*/result.json"))
    assert len(results) == 1
    content = json.loads(results[0].read_text())
    content.pop("seconds")
    return content, results[0].parent


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    return folder, command(*TINY, "--threads", "1", cwd=folder)[0]


def test_a_run_leaves_scores_figures_and_a_checkpoint(finished):
    folder, out = finished
    result, where = result_of(folder)
    assert {"mcc", "r", "dci_d", "dci_c", "steps", "seed"} <= result.keys() and result["steps"] == 6
    assert all(0 <= result[k] <= 1 for k in ("mcc", "r", "dci_d", "dci_c"))
    assert sorted(p.name for p in where.iterdir()) == [".lock", "checkpoint.npz", "config.json", "correlation.png", "metrics.jsonl",
                                                       "responses.png", "result.json", "training.png"]
    for name in ("correlation", "responses", "training"):
        assert (where / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    rows = [json.loads(line) for line in (where / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6] and all(row["unsolved"] == 0 for row in rows)
    assert "rho=0.9" in out and "MCC" in out and where.name in out


def test_a_finished_run_is_not_run_again(finished):
    folder, _ = finished
    _, where = result_of(folder)
    before = (where / "checkpoint.npz").stat().st_mtime_ns
    out, _ = command("disentangle", *TINY, cwd=folder)                      # threads are no part of the result's name
    assert "already there" in out and (where / "checkpoint.npz").stat().st_mtime_ns == before


def test_two_threads_and_a_kill_change_no_bit(finished, tmp_path):
    """Interrupted by SIGKILL once it has a checkpoint, run again with another number of threads: the same bits."""
    process = subprocess.Popen([sys.executable, str(ROOT / "run.py"), *TINY, "--threads", "2"], cwd=tmp_path,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not list(tmp_path.glob("results/disentangle/*/checkpoint.npz")) and time.time() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(tmp_path.glob("results/disentangle/*/result.json"))
    command(*TINY, "--threads", "2", cwd=tmp_path)
    whole, whole_folder = result_of(finished[0])
    resumed, resumed_folder = result_of(tmp_path)
    assert resumed == whole and same_bits(whole_folder / "checkpoint.npz", resumed_folder / "checkpoint.npz")
    steps = [json.loads(line)["step"] for line in (resumed_folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_resuming_in_the_middle_changes_no_bit(finished, tmp_path, monkeypatch):
    """The same within one process, stopped after a known step, so that the resumed part is certain not to be empty."""
    config = run.Disentangle(steps=6, image_sets=2, samples=21, tasks_per_set=2, eval_images=120, results=str(tmp_path / "results"))
    save, stopped = run.save_checkpoint, []

    def save_and_stop(path, start, seed):
        save(path, start, seed)
        if start[3] == 3:
            stopped.append(True)
            raise KeyboardInterrupt
    monkeypatch.setattr(run, "save_checkpoint", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        run.disentangle(config)
    monkeypatch.setattr(run, "save_checkpoint", save)
    run.disentangle(config)
    assert stopped and result_of(tmp_path)[0] == result_of(finished[0])[0]
    assert same_bits(result_of(tmp_path)[1] / "checkpoint.npz", result_of(finished[0])[1] / "checkpoint.npz")


def test_rows_after_the_checkpoint_are_dropped(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "lo')
    assert run.read_rows(file, 2) == [{"step": 1}, {"step": 2}] and len(run.read_rows(file, 9)) == 3
    assert run.read_rows(tmp_path / "none", 5) == []


@pytest.mark.parametrize("flags", [["--head", "inner-ridge"], ["--split", "11"], ["--norm", "layer"], ["--features", "8"], ["--warmup", "0"],
                                   ["--tasks", "laplace"], ["--outputs", "3"], ["--outputs", "3", "--likelihood", "categorical"], ["--shift", "2"],
                                   ["--head", "outer-lasso"], ["--alpha", "0", "--rho", "0"], ["--lr", "0.01"], ["--eps", "0"], ["--seed", "1"]])
def test_settings_reach_the_training(finished, flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run.main([*TINY, *flags]) == 0
    assert result_of(tmp_path)[0]["mcc"] != result_of(finished[0])[0]["mcc"]


def test_a_data_file_with_few_rows_trains(tmp_path):
    out, _ = command("render", "--out", "few.h5", "--limit", "150", cwd=tmp_path)
    assert "150" in out
    command(*TINY, "--rho", "0", "--data", "few.h5", cwd=tmp_path)         # at rho 0.9 the weights would leave one of them
    assert result_of(tmp_path)[0]["mcc"] > 0


def test_encode_writes_the_encoders_features(finished, tmp_path):
    _, where = result_of(finished[0])
    images = np.random.default_rng(0).integers(256, size=(7, 64, 64, 3)).astype(np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    command("encode", where / "checkpoint.npz", "images.npz", "--out", "F.npz", cwd=tmp_path)
    np.savez(tmp_path / "real.npz", images=images / np.float32(255))
    command("encode", where / "checkpoint.npz", "real.npz", "--out", "G.npz", cwd=tmp_path)
    F = arrays(tmp_path / "F.npz")["F"]
    assert F.shape == (7, 6) and np.isfinite(F).all()
    np.testing.assert_allclose(F, arrays(tmp_path / "G.npz")["F"], rtol=1e-5, atol=1e-5)


def test_curves_of_runs_are_drawn(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run.main([*TINY, "--warmup", "0"]) == 0
    assert run.main(["curves", str(result_of(finished[0])[1]), str(result_of(tmp_path)[1]), "--out", "c.png"]) == 0
    assert Path("c.png").read_bytes()[:4] == b"\x89PNG"
    assert run.main(["curves", "nowhere"]) == 2


def test_real_images_beside_their_renders(finished, tmp_path, monkeypatch, capsys, real_data):
    monkeypatch.chdir(tmp_path)
    checkpoint = str(result_of(finished[0])[1] / "checkpoint.npz")
    assert run.main(["real", checkpoint, str(real_data("3dshapes_real_images.npz"))]) == 0 and Path("real.png").exists()
    assert capsys.readouterr().out.count("correlation of real and rendered") == 6
    assert run.main(["real", checkpoint, checkpoint]) == 2


def test_gradcheck_prints_its_table_and_fails_on_a_wrong_gradient(tmp_path, monkeypatch, capsys):
    few = [case for case in gradient_cases.gradient_cases() if case[0] in ("linear", "lasso")]
    monkeypatch.setattr(gradient_cases, "gradient_cases", lambda: iter(few))
    assert run.main(["gradcheck"]) == 0
    assert "caught" in capsys.readouterr().out
    _, f, a = gradient_cases.wrong_on_purpose()
    few.insert(0, ("broken", f, a))
    assert run.main(["gradcheck"]) == 1
    assert "FAIL" in capsys.readouterr().out


@pytest.mark.parametrize("args, said", [
    (["--rho", "1"], "--rho"), (["--rho", "x"], "--rho"), (["--alpha", "2"], "--alpha"), (["--eps", "-1"], "--eps"), (["--eps", "nan"], "--eps"),
    (["--steps", "0"], "--steps"), (["--samples", "1"], "--samples"), (["--head", "lasso"], "--head"), (["--split", "50"], "--split"),
    (["--data", "nowhere.h5"], "nowhere.h5"), (["--device", "gpu"], "gpu"), (["--nonsense", "1"], "--nonsense"), (["--tasks", "blocks-4"], "--tasks"),
    (["--likelihood", "categorical"], "--outputs"), (["--outputs", "2", "--head", "inner-ridge"], "--head"),
    (["--norm", "layer", "--features", "1"], "--features"), (["nonsense"], "nonsense"),
    (["render", "--out", "no/such/folder.h5"], "no/such"), (["render", "--out", "a.h5", "--limit", "0"], "--limit"),
    (["encode", "none.npz", "none.npz"], "none.npz"), (["encode", "bad.npz", "bad.npz"], "bad.npz"), (["--results", "bad.npz/results"], "bad.npz")])
def test_errors_are_one_line_and_status_2(args, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("bad.npz").write_bytes(b"PK\x03\x04 not really")
    if "gpu" in args:
        monkeypatch.setitem(sys.modules, "cupy", None)                      # as where CuPy is not installed
    try:
        status = run.main(args)
    except SystemExit as stop:
        status = stop.code
    err = capsys.readouterr().err
    assert status == 2 and said in err and err.count("\n") == 1
    assert not Path("results").exists()


def test_gpu_without_a_gpu_says_so():
    cupy = pytest.importorskip("cupy", reason="no GPU (CuPy is not installed)")
    if not cupy.is_available():
        with pytest.raises(ValueError, match="no GPU"):
            run.device_of("gpu")


def test_help_names_every_command_and_flag(tmp_path):
    out, _ = command("--help", cwd=tmp_path)
    assert all(name in out for name in ("disentangle", "render", "encode", "gradcheck"))
    out, _ = command("disentangle", "--help", cwd=tmp_path)
    assert all(flag in out for flag in ("--rho", "--tasks-per-set", "--warmup", "--device"))


def test_a_progress_line_shows_on_a_terminal(tmp_path):
    """On a terminal a line with loss, sparsity and MCC; elsewhere nothing but the report."""
    import fcntl
    import pty
    import struct
    import termios
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 160, 0, 0))
    process = subprocess.Popen([sys.executable, str(ROOT / "run.py"), *TINY], cwd=tmp_path, stdout=child, stderr=child)
    os.close(child)
    seen = b""
    try:
        while chunk := os.read(parent, 4096):
            seen += chunk
    except OSError:                                                         # the terminal is closed when the program ends
        process.wait()
    assert process.returncode == 0 and b"loss" in seen and b"nonzero" in seen and b"MCC" in seen and b"training" in seen
