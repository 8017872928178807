"""The command line, run as a user would: errors in one line, help, progress."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, TINY, command

import run
from experiments import tell


@pytest.mark.parametrize(
    "line, said",
    [
        ("--rho 1", "--rho"),
        ("--rho x", "--rho"),
        ("--alpha 2", "--alpha"),
        ("--eps -1", "--eps"),
        ("--eps nan", "--eps"),
        ("--steps 0", "--steps"),
        ("--samples 1", "--samples"),
        ("--head lasso", "--head"),
        ("--split 50", "--split"),
        ("--data nowhere.h5", "nowhere.h5"),
        ("--device gpu", "gpu"),
        ("--nonsense 1", "--nonsense"),
        ("--tasks blocks-4", "--tasks"),
        ("--likelihood categorical", "--outputs"),
        ("--outputs 2 --head inner-ridge", "--head"),
        ("--norm layer --features 1", "--features"),
        ("nonsense", "nonsense"),
        ("sweep nonsense", "nonsense"),
        ("figure nonsense", "nonsense"),
        ("render", "--out"),
        ("render --out no/such/folder.h5", "no/such"),
        ("render --out a.h5 --limit 0", "--limit"),
        ("encode none.npz none.npz", "none.npz"),
        ("encode bad.npz bad.npz", "bad.npz"),
        ("--results bad.npz/results", "bad.npz"),
    ],
)
def test_errors_are_one_line_and_status_2(line, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("bad.npz").write_bytes(b"PK\x03\x04 not really")
    if "gpu" in line:
        monkeypatch.setitem(sys.modules, "cupy", None)  # as where CuPy is not installed
    try:
        status = run.main(line.split())
    except SystemExit as stop:
        status = stop.code
    err = capsys.readouterr().err
    assert status == 2 and said in err and err.count("\n") == 1
    assert not Path("results").exists()


def test_help_names_every_command_and_flag(tmp_path, capsys):
    out, _ = command("--help", cwd=tmp_path)
    assert all(name in out for name in run.COMMANDS)
    with pytest.raises(SystemExit) as stop:
        run.main(["disentangle", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert all(flag in out for flag in ("--rho", "--tasks-per-set", "--warmup", "--device"))


@pytest.mark.parametrize("name", run.COMMANDS)
def test_every_command_has_a_parser_and_a_function(name):
    parser, settings_class, function = run.parser_of(name)
    assert parser.prog == f"run.py {name}" and callable(function) and settings_class.__doc__


def test_a_progress_line_shows_on_a_terminal(tmp_path):
    """On a terminal a line with loss, sparsity and MCC; elsewhere nothing but the report."""
    import fcntl
    import pty
    import struct
    import termios

    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 160, 0, 0))
    words = [sys.executable, str(ROOT / "run.py"), *TINY, "--steps", "2"]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=child, stderr=child)
    os.close(child)
    seen = b""
    try:
        while chunk := os.read(parent, 4096):
            seen += chunk
    except OSError:  # the terminal is closed when the program ends
        process.wait()
    assert process.returncode == 0
    assert all(word in seen for word in (b"training: ", b"loss", b"nonzero", b"mcc 0."))


@pytest.mark.parametrize("line", ["--help", "sweep main --scale tiny --index 0"])
def test_a_reader_that_has_seen_enough_ends_a_command_without_a_word(line, tmp_path):
    words = [sys.executable, str(ROOT / "run.py"), *line.split()]
    unread, stdout = os.pipe()
    os.close(unread)
    done = subprocess.run(words, cwd=tmp_path, stdout=stdout, stderr=subprocess.PIPE, timeout=60)
    os.close(stdout)
    assert (done.returncode, done.stderr) == (141, b"")


STEPS = """
import resource
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from experiments import process
process.keep_memory()
pool = ThreadPoolExecutor(2)
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [np.ones(2 ** 17) for _ in range(60)]  # 1 MB each
    del blocks
    list(pool.map(lambda _: [np.ones(2 ** 20) for _ in range(8)], range(2)))  # 8 MB each
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_what_one_step_frees_the_next_one_takes():
    """190 MB of pages are not asked for again: by glibc's default there are 14,000 faults, with an
    arena for each thread 1,500.
    """
    done = subprocess.run([sys.executable, "-c", STEPS], cwd=ROOT, capture_output=True, text=True)
    assert int(done.stdout) < 1000, done


def test_scores_are_told_under_their_names(capsys):
    result = {"mcc": 0.1, "r": 0.2, "dci_d": 0.3, "dci_c": 0.4, "steps": 5, "seconds": 6.0,
              "mcc_ica": 0.7, "mcc_rotated": 0.8, "identified": 9, "features": 10, "stability": 1.0,
              "mcc_floor": 0.11, "mcc_wall": 0.12}
    tell.scores(result)
    assert capsys.readouterr().out.splitlines() == [
        "MCC 0.1000   R 0.2000   DCI-D 0.3000   DCI-C 0.4000      5 steps, 6 s of training",
        "after a rotation: MCC 0.8000, 9 of its 10 features identified   after ICA: MCC 0.7000",
        "matched |correlation|: floor 0.110, wall 0.120"]
    verdicts = {"3.2": (True, "a"), "3.6": (False, "some factor never comes without another")}
    tell.training_data({"effective_images": 2803.2, "realised_correlation": 0.82}, verdicts)
    assert capsys.readouterr().out.splitlines() == [
        "training images: worth 2,803 different ones, factors correlated at 0.82",
        "what Theorem 3.1 assumes of these tasks holds: 3.2 labels tell their parameters; 3.6 does "
        "not, some factor never comes without another"]
