"""The timings: peers do the same work as we do, and the command prints its rows."""

import functools
from pathlib import Path

import numpy as np
import pytest

import data
import run
import solvers
from experiments import bench


def test_images_composed_at_once_are_the_same():
    shapes, index = data.Shapes3D(), np.random.default_rng(0).integers(data.N_IMAGES, size=20)
    ours, theirs = shapes.images(index), bench.compose_at_once(shapes, index)
    assert np.abs(ours - theirs).max() <= 1.01 / 255 and np.mean(ours != theirs) < 1e-4


def test_the_peers_of_the_lasso_solve_the_same_problem():
    problem = bench.lasso_problem(6, 0.3, T=5, n=30)
    w, _ = solvers.lasso(*problem)
    np.testing.assert_allclose(bench.scikit_lasso(*problem), w, atol=1e-5)
    np.testing.assert_allclose(bench.batched_fista(*problem), w, atol=1e-5)
    assert bench.violation(*problem, w) < 1e-10 < bench.violation(*problem, w + 1e-6)
    dw = np.random.default_rng(1).standard_normal(w.shape)
    dF, _, _ = solvers.lasso_vjp(*problem, w, dw)
    np.testing.assert_allclose(bench.vjp_loop(*problem, w, dw), dF, atol=1e-10)


def test_the_svms_problem_has_the_share_off_that_was_asked_for():
    F, Y, lam1, lam2 = bench.svm_problem(200, n=15, T=2, k=3, off=0.4)
    W, _, info = solvers.group_svm(F, Y, lam1, lam2)
    assert info["converged"].all() and abs((W[0] == 0).all(axis=0).mean() - 0.4) < 0.05


def test_stopping_early_is_wrong_and_stopping_late_is_right():
    problem = bench.svm_problem(60, n=12, T=2, k=3)
    rows = list(bench.shortcut(*problem, counts=(5, 20_000)))
    (_, early_W, early_dF), (_, late_W, late_dF) = rows
    assert early_W > 0.1 and early_dF > 0.1 and late_W < 1e-4 and late_dF < 1e-3


def test_exponents_of_power_laws():
    sizes = (10, 20, 40, 80)
    assert bench.exponent(sizes, np.array(sizes) ** 1.5) == pytest.approx(1.5)
    bent = np.array([1, 1, 2, 4.0])  # only the upper half counts
    assert bench.exponent(sizes, bent) == pytest.approx(1)
    assert np.isnan(bench.exponent((1,), np.ones(1)))


def test_timers_take_turns_and_medians_leave_out_the_first_two_calls():
    turns = []

    def clock(name, seconds):
        def one():
            turns.append(name)
            return next(seconds)

        return one

    a, b = iter([9, 9, 1, 2, 3.0]), iter([9, 9, 5, 4, 6.0])
    assert bench.seconds_of(clock("a", a), clock("b", b), repeats=3) == [2, 5]
    assert turns == ["a", "b"] * 5


def test_of_a_turns_calls_the_last_counts():
    a, b = iter([9, 9, 9, 9, 7, 1.0]), iter([9, 9, 9, 9, 8, 2.0])
    timers = (lambda: next(a)), (lambda: next(b))
    assert bench.seconds_of(*timers, repeats=1, calls=2) == [1, 2]


@pytest.mark.slow
def test_the_command_prints_rows_and_draws(tmp_path, monkeypatch, capsys):
    """All of it at small sizes, each timer called once."""
    lasso_problem, svm_problem = bench.lasso_problem, bench.svm_problem
    outer_step = bench.outer_step
    growth = [
        bench.Growth("tasks T", (2, 4, 8), lambda T: bench.lasso_work(T, 10, 3)),
        bench.Growth("features m", (8, 16), lambda m: bench.svm_work(m, 8)),
    ]
    monkeypatch.setattr(bench, "seconds_of", lambda *all, **_: [one() for one in all])
    monkeypatch.setattr(bench, "lasso_problem", lambda m, eps, *_: lasso_problem(5, eps, 4, 20))
    monkeypatch.setattr(bench, "svm_problem", lambda m, n=12: svm_problem(30, min(n, 12), 2, 3))
    monkeypatch.setattr(bench, "outer_step", lambda threads: outer_step(threads, 1, 8))
    for name in ("our_cnn", "torch_cnn", "torch_conv4"):
        monkeypatch.setattr(bench, name, functools.partial(getattr(bench, name), images=4))
    monkeypatch.setattr(bench, "panels", lambda threads: growth)
    monkeypatch.setattr(bench, "product_rate", lambda *shape: 50.0)
    monkeypatch.setattr(bench, "torch_ways", lambda: {})
    assert run.main(["bench", "--threads", "1", "--out", str(tmp_path / "b.png")]) == 0
    out = capsys.readouterr().out
    rows = """outer step, 400 images|cnn forward, 400 images|cnn forward + backward, 400 images
composition of 400 images|lasso, T = 1000|lasso_vjp, the same|conv4 forward|group SVM, 8 tasks
projected gradient steps|relative duality gap|batched FISTA|GFLOP/s|BLAS: | MB"""
    for row in rows.replace("\n", "|").split("|"):
        assert row in out, row
    assert Path(tmp_path / "b.png").read_bytes()[:4] == b"\x89PNG"
    table = (tmp_path / "b.csv").read_text().splitlines()
    assert table[0] == "what,ours_ms,peer,peer_ms,ratio" and len(table) > 5


def test_the_peak_of_a_call_is_what_it_held_at_once():
    def call():
        for _ in range(3):
            np.ones(1_000_000)

    assert 8e6 <= bench.peak_bytes(call) < 9e6


def test_an_exponent_is_told_of_straight_curves_only():
    sizes = np.array([1, 2, 4, 8, 16.0])
    assert bench.straight(sizes, sizes**2) == "exponent 2.0"
    assert bench.straight(sizes, np.maximum(sizes, 8) ** 2) == "exponent 0.0 to 2.0"


def test_without_pytorch_our_own_time_is_told(monkeypatch, capsys):
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    bench.beside_torch("a step", lambda: 0.25, None)
    assert capsys.readouterr().out == "     -     a step: 250 ms, PyTorch is not installed\n"


def test_a_row_tells_our_share_of_the_peers_time(tmp_path, capsys):
    bench._rows.clear()
    bench.tell("a fit", 0.002, "theirs", 0.008)
    assert capsys.readouterr().out == "  0.25 x   a fit: 2 ms, theirs 8 ms\n"
    bench.write_rows(tmp_path / "b.csv")
    assert (tmp_path / "b.csv").read_text().splitlines()[1] == "a fit,2.0,theirs,8.0,0.25"
