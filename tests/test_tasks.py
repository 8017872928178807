"""run.py tasks: the user's own table or images, in one command."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import data
import metrics
import run
from experiments import tasks
from sparsetasks import SparseTasks, estimator

FAST = ["--threads", "1", "--results", "results"]


def table(rng, N=1500, d=40, factors=5, K=40, rho=0.8, missing=0.3):
    """x of correlated factors through a layer, sparse targets, a share of the labels missing."""
    Sigma = np.full((factors, factors), rho) + (1 - rho) * np.eye(factors)
    z = rng.standard_normal((N, factors)) @ np.linalg.cholesky(Sigma).T
    x = np.tanh(z @ rng.standard_normal((factors, d))) + z @ rng.standard_normal((factors, d))
    on = data.nonempty(rng, rng.random((K, factors)) < 0.25)
    Y = z @ (rng.standard_normal((K, factors)) * on).T
    Y += 0.1 * Y.std(axis=0) * rng.standard_normal((N, K))
    Y[rng.random((N, K)) < missing] = np.nan
    return x, Y, z


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def result():
    (path,) = Path("results").glob("tasks/*/result.json")
    return json.loads(path.read_text()), path.parent


@pytest.mark.slow
def test_sparse_fits_find_the_factors_of_a_table(folder, capsys):
    x, Y, z = table(np.random.default_rng(0))
    np.savez("table.npz", x=x, Y=Y, factors=z)
    words = ["tasks", "table.npz", "--features", "5", "--steps", "300", *FAST]
    assert run.main(words) == 0
    out = capsys.readouterr().out
    told, run_folder = result()
    assert told["mcc"] > 0.97 and 0.7 < told["chance"] < 0.9
    assert told["score_all"] > 0.9 and {"score_10", "ridge_50", "raw_20"} <= told.keys()
    assert 0.1 < told["zero"] < 0.9 and told["targets"] == 40 and told["test_rows"] == 300
    assert "MCC" in out and "a target uses" in out
    files = {path.name for path in run_folder.iterdir()}
    assert {"weights.png", "training.png", "features.npz", "checkpoint.npz"} <= files
    with np.load(run_folder / "features.npz") as file:
        F, W = file["F"], file["W"]
    assert F.shape == (1500, 5) and W.shape == (40, 5)
    checkpoint = str(run_folder / "checkpoint.npz")
    assert run.main(["encode", checkpoint, "table.npz", "--out", "F.npz"]) == 0
    with np.load("F.npz") as file:
        again = file["F"]
    np.testing.assert_allclose(again, F, atol=1e-4)
    assert run.main(words) == 0 and "already there" in capsys.readouterr().out
    assert run.main([*words, "--head", "inner-ridge"]) == 0
    (ridge,) = (json.loads(p.read_text()) for p in Path("results").glob("tasks/*/result.json")
                if p.parent != run_folder)
    assert ridge["mcc"] < told["mcc"] - 0.02


def blobs(rng, N, side):
    """Images (N, side, side + 1) with a blob whose place and brightness are the factors."""
    z = rng.uniform(-1, 1, (N, 3))
    rows = np.exp(-(np.arange(side) - side / 2 - side / 4 * z[:, :1]) ** 2 / side)
    columns = np.exp(-(np.arange(side + 1) - side / 2 - side / 4 * z[:, 1:2]) ** 2 / side)
    return (1.5 + z[:, 2])[:, None, None] * rows[:, :, None] * columns[:, None, :] / 2.5, z


@pytest.mark.parametrize("side, kind", [(8, "u1"), (13, "f4"), (28, "u1")])
def test_images_of_any_size_and_classes(folder, side, kind):
    rng = np.random.default_rng(side)
    x, z = blobs(rng, 120, side)
    x = (255 * x).astype(np.uint8) if kind == "u1" else x.astype(kind)
    Y = (z @ rng.standard_normal((3, 2)) > 0).astype(int)
    Y[rng.random(Y.shape) < 0.1] = -1
    np.savez("images.npz", x=x, Y=Y, factors=z, test=np.arange(120) % 4 == 0)
    words = ["--likelihood", "categorical", "--features", "3", "--steps", "3", "--samples", "12"]
    assert run.main(["tasks", "images.npz", *words, *FAST]) == 0
    told, run_folder = result()
    assert told["likelihood"] == "categorical" and 0 <= told["score_10"] <= 1
    assert told["test_rows"] == 30 and {"raw_all", "mcc"} <= told.keys()
    assert run.main(["encode", str(run_folder / "checkpoint.npz"), "images.npz"]) == 0


def write_csv(rows, path="table.csv"):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)


def test_a_csv_file_gives_the_same_as_its_arrays(folder):
    x, Y, _ = table(np.random.default_rng(0), N=80, d=6, K=4)
    names = [*(f"x{i}" for i in range(6)), *(f"y{k}" for k in range(4))]
    empty = np.where(np.isnan(Y), "", Y.astype(str))
    write_csv([names, *np.concatenate([x.astype(str), empty], axis=1)])
    np.savez("table.npz", x=x, Y=Y)
    words = ["--steps", "4", "--samples", "10", *FAST]
    assert run.main(["tasks", "table.csv", "--targets", "y0,y1,y2,y3", *words]) == 0
    told, run_folder = result()
    run_folder.rename("from_csv")
    assert run.main(["tasks", "table.npz", *words]) == 0
    again, _ = result()
    assert {**told, "seconds": 0} == {**again, "seconds": 0}
    assert told["targets"] == 4 and "mcc" not in told and "score_50" not in told


def test_an_interrupted_run_goes_on_to_the_same_bits(folder, monkeypatch):
    x, Y, _ = table(np.random.default_rng(0), N=80, d=6, K=4)
    np.savez("table.npz", x=x, Y=Y)
    words = ["tasks", "table.npz", "--steps", "30", "--samples", "10", *FAST]
    assert run.main(words) == 0
    whole, run_folder = result()
    run_folder.rename("whole")
    plain = estimator.adam

    def stop_at_20(params, grads, opt, lr, **betas):
        if opt and opt.step == 20:
            raise KeyboardInterrupt
        return plain(params, grads, opt, lr, **betas)

    monkeypatch.setattr(estimator, "adam", stop_at_20)
    assert run.main(words) == 130
    monkeypatch.setattr(estimator, "adam", plain)
    assert run.main(words) == 0
    again, _ = result()
    assert {**whole, "seconds": 0} == {**again, "seconds": 0}


BAD = {  # what is wrong with the arrays: how the line begins to say so
    "x": (lambda x, Y: {"Y": Y}, "expected x and Y"),
    "Y rows": (lambda x, Y: {"x": x, "Y": Y[:-1]}, "Y: found"),
    "a NaN": (lambda x, Y: {"x": np.where(np.arange(6) == 2, np.nan, x), "Y": Y}, "column 2"),
    "no labels": (lambda x, Y: {"x": x, "Y": Y * [1, 1, np.nan, 1]}, "target 2"),
    "texts": (lambda x, Y: {"x": x.astype(str), "Y": Y}, "x: found"),
    "factors": (lambda x, Y: {"x": x, "Y": Y, "factors": x[:5]}, "factors: found"),
    "factors of text": (lambda x, Y: {"x": x, "Y": Y, "factors": x.astype(str)}, "factors: found"),
    "infinity": (lambda x, Y: {"x": x, "Y": np.where(Y > 1, np.inf, Y)}, "Y: found"),
    "test": (lambda x, Y: {"x": x, "Y": Y, "test": np.ones(80)}, "test: found"),
    "tiny images": (lambda x, Y: {"x": np.ones((80, 7, 9)) * x[:, :1, None], "Y": Y}, "X: found"),
}


@pytest.mark.parametrize("arrays, told", BAD.values(), ids=BAD)
def test_what_does_not_fit_is_one_line(folder, capsys, arrays, told):
    x, Y, _ = table(np.random.default_rng(0), N=80, d=6, K=4, missing=0)
    np.savez("bad.npz", **arrays(x, Y))
    assert run.main(["tasks", "bad.npz", *FAST]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and told in err


@pytest.mark.parametrize(
    "cell, flags, told",
    [
        ("seven", ["--targets", "y"], "column a, line 3: found 'seven'"),
        ("", ["--targets", "y"], "column a, line 3"),
        ("7", ["--targets", "z"], "no column z"),
        ("7", [], "--targets is needed"),
        ("7", ["--targets", "a,y"], "none is left"),
        ("inf", ["--targets", "y"], "column a, line 3"),
        ("7,1", ["--targets", "y"], "line 3: found 3 cells"),
    ],
)
def test_a_csv_file_that_does_not_fit_is_one_line(folder, capsys, cell, flags, told):
    Path("table.csv").write_text(f"a, y\n1,2\n{cell},3\n\n")  # and a blank line
    assert run.main(["tasks", "table.csv", *flags]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and told in err


def test_columns_of_one_name_are_refused(folder, capsys):
    write_csv([["a", "a", "y"], ["1", "2", "3"]])
    assert run.main(["tasks", "table.csv", "--targets", "y"]) == 2
    assert "two columns 'a'" in capsys.readouterr().err


def test_new_rows_of_a_csv_file_are_encoded(folder):
    x, Y, _ = table(np.random.default_rng(0), N=60, d=3, K=1, missing=0)
    write_csv([["a", "b", "c", '"y, 1"'], *np.concatenate([x, Y], axis=1).astype(str)])
    write_csv([["a", "b", "c", "y, 1"], *np.concatenate([x, Y], axis=1).astype(str)])
    words = ["--targets", '"y, 1"', "--steps", "3", "--features", "2", *FAST]
    assert run.main(["tasks", "table.csv", *words]) == 0
    _, run_folder = result()
    write_csv([["a", "b", "c"], *x.astype(str)], "new.csv")
    checkpoint = str(run_folder / "checkpoint.npz")
    assert run.main(["encode", checkpoint, "new.csv", "--out", "F.npz"]) == 0
    with np.load("F.npz") as new, np.load(run_folder / "features.npz") as old:
        np.testing.assert_allclose(new["F"], old["F"], atol=1e-4)


def test_one_target_is_a_column(folder):
    x, Y, _ = table(np.random.default_rng(0), N=60, d=3, K=1, missing=0)
    words = ["--steps", "2", "--features", "2", *FAST]
    for y in (Y, Y[:, 0]):
        np.savez("one.npz", x=x, Y=y)
        assert run.main(["tasks", "one.npz", *words]) == 0
    told, _ = result()  # the same rows, the same result
    assert told["targets"] == 1


def test_shapes_are_part_of_a_results_name():
    x = np.arange(2 * 8 * 8.0).reshape(2, 8, 8)
    rows = tasks.Rows(x, np.ones((2, 1)), None, np.array([True, False]), ["y"])
    flat = rows._replace(x=x.reshape(2, 64))
    assert rows.fingerprint() != flat.fingerprint()
    assert rows.fingerprint() != rows._replace(factors=np.ones((2, 1))).fingerprint()


def test_classes_have_no_ridge_head(folder, capsys):
    x, Y, _ = table(np.random.default_rng(0), N=80, d=6, K=4, missing=0)
    np.savez("table.npz", x=x, Y=(Y > 0).astype(int))
    words = ["--likelihood", "categorical", "--head", "inner-ridge", *FAST]
    assert run.main(["tasks", "table.npz", *words]) == 2
    assert "head: found inner-ridge" in capsys.readouterr().err


def test_few_labels_leave_out_the_sizes_that_they_do_not_reach():
    x, Y, z = table(np.random.default_rng(1), N=60, d=6, K=3, missing=0)
    config = tasks.TableTasks(data="-", features=5, steps=2)
    rows = tasks.checked({"x": x, "Y": Y}, ["a", "b", "c"], config)
    model = SparseTasks(n_components=5, steps=2)
    raw = metrics.standardise(x)
    assert tasks.scores_of_size(model, rows, z, raw, 50, config) == {}
    told = tasks.scores_of_size(model, rows, z, raw, 20, config)
    assert told["score_20"] > 0.9 and told["ridge_20"] > 0.9  # z are the factors themselves
