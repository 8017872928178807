"""The folder of a run: what is in it, and that a run resumes with the same bits."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, TINY, arrays_of, result_of, same_bits

import run
import sparsedis
from experiments import disentangle, results, settings


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
    assert "--steps 6" in out and "--rho" not in out  # what is not the default's
    assert "3.6 supports tell all factors apart" in out and "MCC" in out
    assert out.splitlines()[-1].startswith(f"open results/disentangle/{where.name}/responses.png")


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
    rows = [{"step": step, "seconds": 0.5} for step in (1, 2, 3)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    file.write_text(text + '{"step": 4, "lo')
    assert results.read_lines(file, 2) == rows[:2]
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
    opt = sparsedis.OptimiserState(7, moments, {})
    path = tmp_path / "checkpoint.npz"
    rows = {"input.mean": np.arange(3.0)}
    end = sparsedis.Snapshot(params, state, opt, 7)
    results.save_checkpoint(path, end, encoder.spec, 3, rows, ["a", "b"])
    snapshot, its_encoder, seed, its_rows, inputs = results.load_checkpoint(path)
    assert its_rows.keys() == rows.keys() and inputs == ["a", "b"]
    assert (its_rows["input.mean"] == np.arange(3)).all()
    assert (seed, snapshot.step, snapshot.opt.step, snapshot.opt.square) == (3, 7, 7, {})
    for saved, loaded in ((params, snapshot.params), (moments, snapshot.opt.mean)):
        assert saved.keys() == loaded.keys()
        assert all(np.array_equal(saved[name], loaded[name]) for name in saved)
    assert its_encoder.shapes == encoder.shapes and its_encoder.spec.name == "mlp"
    path.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="not a checkpoint"):
        results.load_checkpoint(path)


# ------------------------------------------------------------------------ damaged results


@pytest.fixture
def copied(finished, tmp_path, monkeypatch):
    """The arguments of a finished run, and a copy of its folder."""
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return [*TINY, "--threads", "1"], result_of(tmp_path)[1]


DAMAGE = (b"", b"{}", b"[]", b"null", b'{"mcc": 0.', b"\xff\xfe\x00", b'{"mcc": null, "steps": 3}')


SLOW = [pytest.param(content, marks=pytest.mark.slow) for content in DAMAGE[2:]]


@pytest.mark.parametrize("content", [*DAMAGE[:2], *SLOW])
@pytest.mark.parametrize("name", ["result.json", "config.json", "metrics.jsonl"])
def test_a_damaged_file_of_a_result_is_named_with_its_remedy(content, name, copied, capsys):
    args, folder = copied
    (folder / name).write_bytes(content)
    if name == "metrics.jsonl":
        (folder / "result.json").unlink()
    status = run.main(args)
    err = capsys.readouterr().err
    assert status == 2 and name in err and "--force" in err and err.count("\n") == 1
    if name == "metrics.jsonl" and content != b"":
        assert run.main(["curves", str(folder)]) == 2
    assert run.main([*args, "--force"]) == 0


def test_a_result_of_before_the_rotation_is_still_told(copied, capsys):
    args, folder = copied
    told = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({k: told[k] for k in told if k != "identified"}))
    assert run.main(args) == 0 and "after a rotation" not in capsys.readouterr().out


def spoil(arrays, how):
    """The arrays of a checkpoint with one of them missing, of another shape, or not finite."""
    name = "params/conv2.W"
    if how == "missing":
        return {key: a for key, a in arrays.items() if key != name}
    if how == "seed":
        return arrays | {"seed": np.array(7)}
    if how == "step":
        return arrays | {"step": np.array(99)}
    if how == "no spec":
        return arrays | {"encoder": np.array("cnn")}
    others = {
        "nan": np.full_like(arrays[name], np.nan),
        "complex": arrays[name].astype(complex),
        "double": arrays[name].astype(float),
        "shape": arrays[name][1:],
    }
    return arrays | {name: others[how]}


HOW = ("missing", "seed", "step", "no spec", "nan", "complex", "double", "shape")


@pytest.mark.parametrize("how", HOW)
def test_a_checkpoint_that_is_not_the_runs_is_refused(how, copied, capsys):
    args, folder = copied
    (folder / "result.json").unlink()
    path = folder / "checkpoint.npz"
    np.savez(path, **spoil(arrays_of(path), how))
    assert run.main(args) == 2
    err = capsys.readouterr().err
    assert "checkpoint.npz" in err and err.count("\n") == 1


def test_a_checkpoint_that_its_rows_do_not_reach_is_refused(copied, capsys):
    args, folder = copied
    (folder / "result.json").unlink()
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:-1]))
    assert run.main(args) == 2 and "metrics.jsonl" in capsys.readouterr().err


def test_going_on_with_other_code_is_said_and_kept(copied, capsys, monkeypatch):
    args, folder = copied
    (folder / "result.json").unlink()
    before = json.loads((folder / "config.json").read_text())["code"]
    monkeypatch.setattr(settings, "code_digest", lambda *args: "another")
    assert run.main(args) == 0 and "other code" in capsys.readouterr().out
    told = json.loads((folder / "config.json").read_text())
    assert told["code"] == "another" and told["code_before"] == [before]


def test_a_number_that_is_not_finite_is_named(tmp_path):
    with pytest.raises(ValueError, match="x.json: not finite: b$"):
        results.write_json(tmp_path / "x.json", {"a": 1.0, "b": float("nan"), "c": [1], "d": "x"})


def test_what_a_kill_leaves_is_removed(copied):
    args, folder = copied
    (folder / ".checkpoint.npz.123.new").write_bytes(b"half")
    (folder / "result.json").unlink()
    assert run.main(args) == 0 and not list(folder.glob(".*.new"))


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_not_another_process(number, copied, monkeypatch, capsys):
    import fcntl

    def flock(*args):
        raise OSError(number, os.strerror(number))

    args, folder = copied
    (folder / "result.json").unlink()
    monkeypatch.setattr(fcntl, "flock", flock)
    assert run.main(args) == 0 and "another process" not in capsys.readouterr().out


def test_seconds_of_a_resumed_run_are_those_of_all_its_parts(copied):
    args, folder = copied
    (folder / "result.json").unlink()
    file = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row | {"seconds": 1000.0}) + "\n" for row in rows))
    assert run.main(args) == 0
    assert json.loads((folder / "result.json").read_text())["seconds"] >= 1000


def test_a_folder_is_left_before_the_next_may_enter(tmp_path):
    """A run that fails removes its folder while nobody else can be in it; what was there before
    stays."""
    own = tmp_path / "mine"
    own.mkdir()
    first = results.Run(disentangle.Disentangle(results=str(own)))
    with pytest.raises(ValueError, match="stop"):
        with first:
            free, release = [], first.lock.release
            first.lock.release = lambda: (free.append(first.folder.exists()), release())
            raise ValueError("stop")
    assert free == [False] and own.exists() and not any(own.iterdir())


@pytest.mark.parametrize("number, goes_on", [(errno.ENOLCK, True), (errno.EACCES, False)])
def test_only_a_disk_without_locks_is_gone_on_with(number, goes_on, tmp_path, monkeypatch):
    def refuse(lock, blocking):
        raise OSError(number, "no")

    monkeypatch.setattr(results.filelock.FileLock, "acquire", refuse)
    if goes_on:
        results.acquire_lock(tmp_path / ".lock")
    else:
        with pytest.raises(OSError):
            results.acquire_lock(tmp_path / ".lock")


def test_a_line_tells_of_the_steps_since_the_one_before(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(results, "save_checkpoint", lambda path, now, *args: saved.append(now.step))
    training = sparsedis.Training(sparsedis.mlp([2, 1]), None, None, steps=100)
    log = results.Log(tmp_path, training, lambda *args: {}, sparsedis.Snapshot({}, {}, None, 0), 0)
    w = np.array([[-1.0, 0, 0], [1, 2, 0]])  # half of them are not zero
    for step in range(1, 101):
        info = {"w": w, "unsolved": int(step > 52 and step % 4 == 1)}  # of two tasks
        log.report(sparsedis.Snapshot({}, {}, None, step), float(step), info)
    log.bar.close()
    rows = results.read_lines(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == saved == list(range(4, 101, 4))
    assert [row["loss"] for row in rows] == [step - 1.5 for step in saved]
    assert [(row["nonzero"], row["unsolved"]) for row in rows] == [(0.5, 0)] * 13 + [
        (0.5, 1 / 8)
    ] * 12


def test_all_codes_and_kernels_that_made_a_result_are_kept(tmp_path, monkeypatch):
    def begun():
        run = results.Run(disentangle.Disentangle(results=str(tmp_path)))
        with run:
            run.path("checkpoint.npz").write_bytes(b"")
        return run.made_by()

    for code, before, kernels in (
        ("a", [], "K"), ("b", ["a"], "K"), ("c", ["a", "b"], "K+L"), ("b", ["a", "c"], "K+L")
    ):
        monkeypatch.setattr(settings, "code_digest", lambda *args, code=code: code)
        monkeypatch.setattr(settings, "blas_kernels", lambda code=code: "KL"[code == "c"])
        told = begun()
        assert sorted(told.get("code_before", [])) == before and told["kernel"] == kernels


def test_a_checkpoint_with_moments_of_another_encoder_is_refused(tmp_path):
    encoder = sparsedis.mlp([3, 4, 2])
    params, state = encoder.init(np.random.default_rng(0))
    for mean in (
        {k: a for k, a in params.items() if k != "linear1.W"},
        params | {"linear1.W": params["linear1.W"][1:]},
    ):
        opt = sparsedis.OptimiserState(7, mean, params)
        end = sparsedis.Snapshot(params, state, opt, 7)
        results.save_checkpoint(tmp_path / "c.npz", end, encoder.spec, 3)
        with pytest.raises(ValueError, match="adam_mean does not fit"):
            results.load_checkpoint(tmp_path / "c.npz")


def started(seed, folder):
    config = disentangle.Disentangle(seed=seed, results=str(folder))
    training = sparsedis.Training(sparsedis.mlp([3, 2]), None, None, steps=4)
    return results.Run(config).start(folder, training, np, None, {}).params["linear1.W"]


def test_a_seed_draws_its_own_parameters(tmp_path):
    one, same, other = (started(seed, tmp_path) for seed in (0, 0, 1))
    assert (one == same).all() and (one != other).all()


def test_a_training_says_how_many_fits_it_left_unsolved(tmp_path, monkeypatch, capsys):
    def train(training, start, report):
        for step in (1, 2):
            report(start._replace(step=step), 1.0, {"w": np.ones((4, 2)), "unsolved": 1})
        return start

    monkeypatch.setattr(sparsedis, "train", train)
    monkeypatch.setattr(results, "save_checkpoint", lambda *args: None)
    training = sparsedis.Training(sparsedis.mlp([3, 2]), None, None, steps=2)
    with results.Run(disentangle.Disentangle(results=str(tmp_path))) as run:
        run.train(training, lambda *args: {})
    assert "25 % of the fits were not solved" in capsys.readouterr().out


def test_a_result_tells_the_kernel_that_made_it(finished):
    (path,) = finished[0].rglob("config.json")
    told = json.loads(path.read_text())
    assert told["kernel"] == settings.blas_kernels() != "" and told["device"] == "cpu"
