"""Where the code meets other code: units, arrays in other dress, sizes, files of other makers."""

import multiprocessing
import os
import pickle
import subprocess
import sys

import h5py
import numpy as np
import pytest
from conftest import ROOT
from test_solvers import svm_problem

import data
import metrics
import run
import solvers
import sparsedis
from experiments import apply, episodes, results, settings, sharing_data, sharing_features
from experiments.disentangle import Disentangle
from experiments.plots import Grid
from sparsetasks.rotation import unmix
from sparsetasks.targets import Targets

RNG = np.random.default_rng(0)
Z = RNG.standard_normal((400, 4))
F_MIXED = np.tanh(Z @ RNG.standard_normal((4, 6)) / 2) + 0.1 * RNG.standard_normal((400, 6))

# ------------------------------------------------------------------------------ units

SCORES = {
    "mcc": metrics.mcc,
    "r": metrics.r_score,
    "dci": metrics.dci,
    "udr": lambda z, F: metrics.udr([F, F_MIXED ** 2, F[:, ::-1]]),
    "udr by regression": lambda z, F: metrics.udr([F, F_MIXED ** 2, F[:, ::-1]], "regression"),
    "block_share": lambda z, F: metrics.block_share(z, F, 2),
    "ica": lambda z, F: np.abs(metrics.ica(F)),
    "standardise": lambda z, F: metrics.standardise(F),
    "correlation": metrics.correlation,
}


@pytest.mark.parametrize("name", SCORES)
def test_no_unit_and_no_shift_changes_a_score(name):
    units = 10.0 ** np.array([-30, 30, -12, 1, 7, -9])
    right, score = SCORES[name](Z, F_MIXED), SCORES[name]
    for z, F in ((Z, F_MIXED * units), (Z * units[:4], F_MIXED), (Z, F_MIXED * 1e-30)):
        np.testing.assert_allclose(score(z, F), right, atol=1e-6)
    far = F_MIXED + 1e6 * F_MIXED.std(axis=0)
    np.testing.assert_allclose(score(Z - 1e6, far), right, atol=1e-5)


def test_the_assumptions_are_those_of_any_units():
    W = RNG.standard_normal((60, 4)) * (RNG.random((60, 4)) < 0.5)
    right = {name: holds for name, (holds, _) in metrics.assumptions(Z, W).items()}
    units = 10.0 ** np.array([-30, 30, -12, 1])
    other = metrics.assumptions(Z * units, W / units)
    assert {name: holds for name, (holds, _) in other.items()} == right
    assert right["3.3"] and right["3.6"]


# ------------------------------------------------------------------------------ dress


@pytest.mark.parametrize("dtype", [">f8", ">f4", np.float32, np.float16, np.longdouble])
def test_scores_are_those_of_any_dtype(dtype):
    exact = F_MIXED.astype(np.float16)
    assert metrics.mcc(Z, exact.astype(dtype)) == pytest.approx(metrics.mcc(Z, exact))


def test_scores_of_a_frame():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(F_MIXED)
    assert metrics.mcc(pandas.DataFrame(Z), frame) == metrics.mcc(Z, F_MIXED)
    frame.iloc[0, 0] = None
    with pytest.raises(ValueError, match="finite"):
        metrics.mcc(Z, frame)


def calls(F, y, Y):
    """Every solver's, on features, labels, and labels of classes."""
    yield lambda c: solvers.lasso(c(F), c(y), 0.1)[0]
    yield lambda c: solvers.lasso_lambda_max(c(F), c(y))
    yield lambda c: solvers.lasso_vjp(c(F), c(y), 0.1, F[:, 0, :], F[:, 1, :])[0]
    yield lambda c: solvers.ridge(c(F), c(y), 0.1)
    yield lambda c: solvers.ridge_lambda_max(c(F))
    yield lambda c: solvers.group_lasso(c(F), c(Y), 0.05)[0]
    yield lambda c: solvers.group_svm(c(F), c(Y), 0.5, 1.0)[0]


@pytest.fixture
def problem():
    F, Y = svm_problem(2, 20, 5, 3)
    return F, RNG.standard_normal((2, 20)), Y


@pytest.mark.parametrize("dtype", [np.float16, np.longdouble, np.int64, complex])
def test_numbers_that_no_solver_takes_are_a_value_error(dtype, problem):
    for call in calls(*problem):
        with pytest.raises(ValueError, match="float64 or float32"):
            call(lambda a: a.astype(dtype))


def test_another_byte_order_or_a_mask_of_nothing_changes_no_bit(problem):
    for call in calls(*problem):
        right = call(lambda a: a)
        for other in (lambda a: a.astype(">f8"), np.ma.masked_array):
            np.testing.assert_array_equal(call(other), right)


def test_masked_values_are_refused(problem):
    for call in calls(*problem):
        with pytest.raises(ValueError, match="masked"):
            call(lambda a: np.ma.masked_array(a, a == a.flat[0]))


def sparse_tasks():
    W = RNG.standard_normal((40, 3)) * (RNG.random((40, 3)) < 0.5)
    return W[W.any(axis=1)]


def test_the_rotation_takes_what_the_solvers_take():
    W, C = sparse_tasks(), np.eye(3)
    right, _ = solvers.sparse_rotation(W, C)
    np.testing.assert_array_equal(solvers.sparse_rotation(W.astype(">f8"), C)[0], right)
    for bad in (W.astype(np.float16), W.astype(np.longdouble), np.ma.masked_array(W, W > 1)):
        with pytest.raises(ValueError, match="float64 or float32|masked"):
            solvers.sparse_rotation(bad, C)


def test_masked_targets_of_the_rotation_are_missing_ones():
    F = RNG.standard_normal((300, 3))
    Y = F @ sparse_tasks().T + 0.1 * RNG.standard_normal((300, 1))
    hidden = np.ma.masked_array(np.where(Y > 2, -999, Y), Y > 2)
    np.testing.assert_array_equal(unmix(F, hidden).M, unmix(F, np.where(Y > 2, np.nan, Y)).M)
    with pytest.raises(ValueError, match="masked"):
        unmix(np.ma.masked_array(F, F > 1), Y)


@pytest.mark.parametrize("kind", ["Float64", object])
def test_gaps_of_a_frame_are_gaps(kind):
    pandas = pytest.importorskip("pandas")
    Y = np.where(Z > 1, np.nan, Z)
    frame = pandas.DataFrame(Z).astype(kind).mask(pandas.DataFrame(Z > 1))
    np.testing.assert_array_equal(Targets(frame).Y, Y)
    texts = pandas.DataFrame(np.where(Z > 0, "a", "b")).astype("string")
    texts = texts.mask(pandas.DataFrame(Z > 1))
    found = Targets(texts, "categorical")
    np.testing.assert_array_equal(found.known, np.isfinite(Y))
    assert [list(names) for names in found.classes] == [["a", "b"]] * 4
    with pytest.raises(ValueError, match="real"):
        Targets(Z + 0j)


@pytest.mark.parametrize("dtype, size", [(np.float32, 1e-25), (np.float64, 1e-170)])
def test_features_whose_squares_vanish_are_refused(dtype, size, problem):
    F, y = (a.astype(dtype) for a in problem[:2])
    with pytest.raises(ValueError, match="too small"):
        solvers.lasso(F * np.array([1, size], dtype)[:, None, None], y, 0.0)
    w, _ = solvers.lasso(F * np.array([1, 0], dtype)[:, None, None], y, 0.0)
    assert w[0].all() and not w[1].any()


@pytest.mark.parametrize("method", solvers.SVM_METHODS)
@pytest.mark.parametrize("seed", range(5))
def test_an_svm_whose_dual_is_tiny_is_solved(seed, method):
    F = np.random.default_rng(seed).standard_normal((1, 1, 3)) * np.logspace(-3, 3, 3)
    W, _, info = solvers.group_svm(F, np.eye(3)[[[seed % 3]]], 0.0, 1e-3, method)
    assert info["converged"].all() and W.any()


def test_tasks_that_are_not_solved_are_counted_and_have_no_gradient(problem):
    F, y, _ = problem

    def fit(F, y, lam):
        w, info = solvers.lasso(F, y, lam)
        return w, info | {"converged": np.array([True, False])}

    vjp = sparsedis.features_only(solvers.lasso_vjp)
    _, dF, _, info = sparsedis.bilevel(fit, vjp, sparsedis.squared_error, F, y, 0.01)
    _, right, _, all_solved = sparsedis.inner_lasso(F, y, 0.01)
    assert info["unsolved"] == 1 and all_solved["unsolved"] == 0
    np.testing.assert_array_equal(dF[0], right[0])
    assert not dF[1].any() and right[1].any()


@pytest.mark.parametrize("name, inner", sparsedis.HEADS.items())
def test_every_head_counts_what_is_not_solved(name, inner, problem):
    F, y, Y = problem
    labels = Y if "group" in name else y
    assert inner[0](F, labels, 0.01)[3]["unsolved"] == 0


def test_a_command_tells_the_share_that_was_not_solved(capsys):
    results.tell_unsolved(0.0)
    assert capsys.readouterr().out == ""
    results.tell_unsolved(0.0123)
    assert "1.2 % of the fits" in capsys.readouterr().out


# ------------------------------------------------------------------------------ stored images


def write_shapes(path, factors, images=None):
    """An HDF5 file of 3D Shapes whose rows have these factors."""
    if images is None:
        images = RNG.integers(0, 255, (len(factors), 64, 64, 3), dtype=np.uint8)
    columns = [values[k] for values, k in zip(data.LABEL_VALUES, factors.T, strict=True)]
    with h5py.File(path, "w") as file:
        file["images"], file["labels"] = images, np.stack(columns, axis=1).astype(float)
    return path


def some_factors(count):
    return RNG.integers(data.LEVELS, size=(count, 6))


def read_often(shapes):
    rng = np.random.default_rng(os.getpid())
    for _ in range(150):
        shapes.images(rng.integers(len(shapes), size=20))
    return len(shapes)


@pytest.mark.parametrize("how", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_stored_images_are_read_in_other_processes(how, tmp_path):
    if how not in multiprocessing.get_all_start_methods():
        pytest.skip("no fork here")
    shapes = data.Shapes3D(write_shapes(tmp_path / "a.h5", some_factors(60)))
    right = shapes.images([3, 59])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(shapes)).images([3, 59]), right)
    with multiprocessing.get_context(how).Pool(2) as pool:
        assert pool.map(read_often, [shapes] * 4) == [60] * 4


@pytest.mark.parametrize("order", ["as in the file", "shuffled", "with repeats"])
def test_rows_are_found_by_their_factors_in_any_order(order):
    factors = np.stack(np.unravel_index(np.arange(24), (3, 4, 2, 1, 1, 1)), axis=1).astype(np.int8)
    if order != "as in the file":
        factors = RNG.permutation(factors)
    if order == "with repeats":
        factors = np.concatenate([factors, factors[:7]])
    for k in range(3):
        levels, index = Grid(factors).varied(factors[5], k)
        expected = np.repeat(factors[5][None], len(levels), axis=0)
        expected[:, k] = levels
        np.testing.assert_array_equal(factors[index], expected)
        assert len(levels) == (3, 4, 2)[k]


def with_virtual_images(path, source):
    layout = h5py.VirtualLayout((8, 64, 64, 3), np.uint8)
    layout[:] = h5py.VirtualSource("gone.h5", "images", (8, 64, 64, 3))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("images", layout)
        file["labels"] = source["labels"][:]


def with_raw_images(path, source):
    (path.parent / "raw").write_bytes(bytes(8 * 12288))
    with h5py.File(path, "w") as file:
        external = [(str(path.parent / "raw"), 0, 8 * 12288)]
        file.create_dataset("images", (8, 64, 64, 3), np.uint8, external=external)
        file["labels"] = source["labels"][:]


def with_linked_images(path, source):
    with h5py.File(path, "w") as file:
        file["images"] = h5py.ExternalLink(source.filename, "images")
        file["labels"] = source["labels"][:]


def with_chunks_missing(path, source):
    with h5py.File(path, "w") as file:
        images = file.create_dataset("images", (8, 64, 64, 3), np.uint8, chunks=(4, 64, 64, 3))
        images[:4] = source["images"][:4]
        file["labels"] = source["labels"][:]


def with_nothing_written(path, source):
    with h5py.File(path, "w") as file:
        file.create_dataset("images", (8, 64, 64, 3), np.uint8)
        file["labels"] = source["labels"][:]


@pytest.mark.parametrize(
    "write, said",
    [
        (with_virtual_images, "other files"),
        (with_raw_images, "other files"),
        (with_linked_images, "other files"),
        (with_chunks_missing, "never written"),
        (with_nothing_written, "never written"),
    ],
)
def test_images_that_are_not_in_the_file_are_refused(write, said, tmp_path):
    with h5py.File(write_shapes(tmp_path / "whole.h5", some_factors(8))) as source:
        write(tmp_path / "a.h5", source)
    with pytest.raises(ValueError, match=f"a.h5.*{said}"):
        data.Shapes3D(tmp_path / "a.h5")


def test_real_takes_the_file_that_render_writes(tmp_path):
    factors = some_factors(12)
    x, found = apply.read_labelled(write_shapes(tmp_path / "a.h5", factors))
    assert x.shape == (12, 64, 64, 3) and x.max() <= 1
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, factors.tolist()))


# ------------------------------------------------------------------------------ too late


@pytest.mark.parametrize(
    "line, flag",
    [
        ("disentangle --lr inf", "--lr"),
        ("disentangle --eval-images 29", "--eval-images"),
        ("sharing --features 20 --eval-images 99", "--eval-images"),
        ("disentangle --samples 100000000000", "--samples"),
        ("disentangle --samples 40000000", "--samples"),
        ("disentangle --features 400000000", "--features"),
        ("disentangle --outputs 4000000000", "--outputs"),
        ("disentangle --eval-images 2000000000", "--eval-images"),
        ("disentangle --tasks-per-set 1000000000", "--tasks-per-set"),
        ("disentangle --tasks finite-100000000000", "--tasks"),
        ("sharing --shot 1000000000", "--shot"),
        ("sharing --test-tasks 100000", "--test-tasks"),
        ("fewshot --lam2 1e400", "--lam2"),
        ("fewshot --episodes 100000000", "--episodes"),
        ("fewshot --test-episodes 4000000000", "--test-episodes"),
    ],
)
def test_what_no_machine_holds_is_one_line_with_the_flag_and_leaves_nothing(
    line, flag, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(settings, "memory", lambda: 64e9)
    assert run.main([*line.split(), "--results", str(tmp_path / "r")]) == 2
    error = capsys.readouterr().err
    assert flag in error and error.count("\n") == 1 and not (tmp_path / "r").exists()


def test_out_of_memory_is_one_line_and_leaves_no_folder(tmp_path, monkeypatch, capsys):
    def full(*args, **options):
        raise MemoryError("Unable to allocate 1 TiB")

    monkeypatch.setattr(sparsedis, "train", full)
    line = "--samples 2600 --image-sets 1 --tasks-per-set 1 --eval-images 60 --results".split()
    assert run.main([*line, str(tmp_path / "r")]) == 2
    error = capsys.readouterr().err
    assert "1 TiB; --samples 2600" in error and error.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_what_may_be_too_large_is_named_only_where_something_is():
    assert settings.suspect(Disentangle()) == settings.suspect(apply.Encode("c", "i")) == ""
    assert settings.suspect(Disentangle(features=60, samples=50)).startswith("; --features 60 ")


def test_a_run_that_has_a_checkpoint_keeps_its_folder(tmp_path):
    config = Disentangle(results=str(tmp_path))
    with pytest.raises(KeyboardInterrupt), results.Run(config) as begun:
        begun.path("checkpoint.npz").write_bytes(b"")
        raise KeyboardInterrupt
    assert begun.path("checkpoint.npz").exists()


@pytest.mark.parametrize("shot, query, k", [(2, 1, 2), (2, 1, 6)])
def test_rare_classes_are_found_at_every_step(shot, query, k):
    grid = data.Shapes3D()
    _, p = data.latents(grid, 1.0, 0.0)
    tasks = sharing_data.BinaryTasks(grid.factors, p, k, 80)
    for step in range(120):
        rng = np.random.default_rng([1, step])
        some = rng.choice(40, 8, replace=False)
        index, Y = tasks.sample(rng, some, shot, query)
        for row, y, t in zip(index, Y[..., 0], some, strict=True):
            np.testing.assert_array_equal(tasks.labels(tasks.tasks[t], row), y == 1)


def test_ways_that_may_not_be_found_are_refused_before_training():
    source = episodes.ShapesEpisodes(data.Shapes3D())
    source.check("train", 7, 5, 10)
    for seed in range(40):
        index, Y = source.sample(np.random.default_rng(seed), "train", 7, 5, 10)
        assert index.shape == (7 * 15,) and (Y.sum(axis=0) == 15).all()
    with pytest.raises(ValueError, match="--way"):
        source.check("train", 12, 5, 10)


def test_splits_of_the_same_images_are_refused(tmp_path):
    x = RNG.integers(256, size=(40, 8, 8, 3)).astype(np.uint8)
    for split in ("train", "val", "test"):
        np.savez(tmp_path / f"a_{split}.npz", data=x, labels=np.arange(40) // 10)
    with pytest.raises(ValueError, match="val split"):
        episodes.load_splits(tmp_path)


FEW_ROWS = {
    "a domain of 2 rows": {"domain": np.where(np.arange(90) < 2, 9, np.arange(90) // 2 % 3)},
    "a class for every row": {"y": np.arange(90)},
    "a class for every domain": {"domain": np.arange(90) % 2},
    "a domain of one class": {
        "domain": np.where(np.arange(90) % 8 == 0, 9, np.arange(90) // 2 % 3)},
}


@pytest.mark.parametrize("what", FEW_ROWS)
def test_too_few_rows_are_refused_before_training(what, tmp_path, monkeypatch, capsys):
    rows = {"y": np.arange(90) % 2, "domain": np.arange(90) // 2 % 3}
    x = RNG.standard_normal((90, 5))
    np.savez(tmp_path / "a.npz", x=x, **rows | FEW_ROWS[what])
    monkeypatch.setattr(sharing_features, "features_run", None)
    line = f"sharing --source features --data {tmp_path / 'a.npz'} --results {tmp_path / 'r'}"
    assert run.main(line.split()) == 2
    assert "a.npz" in capsys.readouterr().err and not (tmp_path / "r").exists()


def test_a_label_may_be_any_text(finished, tmp_path):
    folder = next(finished[0].rglob("metrics.jsonl")).parent
    for label in ("cost $$ \\frac{", "a $x$ $", "$\\frac{$"):
        line = ["curves", f"{label}={folder}", "--out", str(tmp_path / "c.png")]
        assert run.main(line) == 0 and (tmp_path / "c.png").exists()


@pytest.mark.parametrize("name, goes_on", [("render", False), ("disentangle", True)])
def test_only_what_has_checkpoints_says_that_it_goes_on(name, goes_on, monkeypatch, capsys):
    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(settings, "read", lambda *args: None)
    plain = run.parser_of(name)
    monkeypatch.setattr(run, "parser_of", lambda name: (*plain[:2], interrupted))
    line = [name, "--out", "a.h5"] if name == "render" else [name]
    assert run.main(line) == 130
    assert ("goes on" in capsys.readouterr().err) == goes_on


# ------------------------------------------------------------------------------ threads


OUTLIVES = """
import threading, time
import numpy as np
import sparsedis
rng = np.random.default_rng(0)
encoder, x = sparsedis.cnn(3), rng.random((23, 64, 64, 3)).astype(np.float32)
params, state = encoder.init(rng)
def features():
    with sparsedis.cpu_threads(2):
        return encoder.forward(params, state, x)[0]
right = features()
def work():
    time.sleep(0.3)
    print(np.array_equal(features(), right))
threading.Thread(target=work).start()
"""


def test_a_thread_that_outlives_the_main_one_gets_the_same_bits():
    line = [sys.executable, "-c", OUTLIVES]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "True\n" and done.stderr == ""
