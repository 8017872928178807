"""The user's own rows: npz and CSV files, and what does not fit."""

import csv
from pathlib import Path

import numpy as np
import pytest

import run
from experiments import tables

FAST = ["--threads", "1", "--results", "results"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def linear_table(N=80, d=4, K=3, missing=0.0):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, d))
    Y = x @ rng.standard_normal((d, K)) + 0.1 * rng.standard_normal((N, K))
    return x, np.where(rng.random(Y.shape) < missing, np.nan, Y)


def write_csv(lines, name="table.csv", delimiter=","):
    with open(name, "w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(lines)


def refused(capsys, *words):
    """The line in which `tasks` refuses."""
    assert run.main(["tasks", *words, *FAST]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    return err


BAD = {  # what is wrong with the arrays: what the line says
    "x": (lambda x, Y: {"Y": Y}, "expected x and Y"),
    "Y rows": (lambda x, Y: {"x": x, "Y": Y[:-1]}, "Y: found"),
    "a NaN": (lambda x, Y: {"x": np.where(np.arange(4) == 2, np.nan, x), "Y": Y}, "column 2"),
    "no labels": (lambda x, Y: {"x": x, "Y": Y * [1, 1, np.nan]}, "target 2"),
    "texts": (lambda x, Y: {"x": x.astype(str), "Y": Y}, "x: found"),
    "factors": (lambda x, Y: {"x": x, "Y": Y, "factors": x[:5]}, "factors: found"),
    "factors of text": (lambda x, Y: {"x": x, "Y": Y, "factors": x.astype(str)}, "factors: found"),
    "infinity": (lambda x, Y: {"x": x, "Y": np.where(Y > 1, np.inf, Y)}, "Y: found"),
    "all held out": (lambda x, Y: {"x": x, "Y": Y, "test": np.ones(80)}, "test: found"),
    "shares": (lambda x, Y: {"x": x, "Y": Y, "test": np.full(80, 0.4)}, "test: found"),
    "folds": (lambda x, Y: {"x": x, "Y": Y, "test": np.arange(80) % 5}, "test: found"),
    "NaN held out": (
        lambda x, Y: {"x": x, "Y": Y, "test": np.where(np.arange(80) < 9, np.nan, 0)},
        "test: found"),
    "names": (
        lambda x, Y: {"x": x, "Y": Y, "test": np.repeat(["test", "train"], 40)}, "test: found"),
    "tiny images": (lambda x, Y: {"x": np.ones((80, 7, 9)) * x[:, :1, None], "Y": Y}, "X: found"),
}


@pytest.mark.parametrize("arrays, told", BAD.values(), ids=BAD)
def test_arrays_that_do_not_fit_are_one_line(capsys, arrays, told):
    np.savez("bad.npz", **arrays(*linear_table()))
    assert told in refused(capsys, "bad.npz")


@pytest.mark.parametrize("dtype", [bool, int, float])
def test_a_mask_of_rows_held_out_is_taken(dtype):
    x, Y = linear_table()
    found = {"x": x, "Y": Y, "test": (np.arange(80) % 4 == 0).astype(dtype)}
    assert tables.checked(found, False, 0).test.sum() == 20


@pytest.mark.parametrize(
    "cell, flags, told",
    [
        ("seven", ["--targets", "y"], "column a, line 3: found 'seven', expected a number: code"),
        ("2024-05-01", ["--targets", "y"], "or --drop a"),
        ('"1,5"', ["--targets", "y"], "write decimal points"),
        ("", ["--targets", "y"], "column a, line 3: found '', expected a number: fill it"),
        ("7", ["--targets", "z"], "no column z (--targets); a, b, y"),
        ("7", ["--targets", "y", "--inputs", "bb"], "no column bb (--inputs); did you mean b?"),
        ("7", ["--targets", "y", "--drop", "c"], "no column c (--drop)"),
        ("7", [], "--targets is needed"),
        ("7", ["--targets", "a,b", "y"], "no column is left as an input"),
        ("7", ["--targets", "y", "--test", "y"], "no column is left as a target"),
        ("7", ["--targets", "y", "y"], "y is given twice (--targets)"),
        ("7", ["--targets", "y", "--inputs", "a,a"], "a is given twice (--inputs)"),
        ("inf", ["--targets", "y"], "column a, line 3"),
        ("7,1", ["--targets", "y"], "line 3: found 4 cells, expected 3"),
    ],
)
def test_a_csv_file_that_does_not_fit_is_one_line(capsys, cell, flags, told):
    Path("table.csv").write_text(f"a, b, y\n1,1,2\n{cell},5,3\n\n")  # and a blank line
    assert told in refused(capsys, "table.csv", *flags)


def test_first_lines_that_name_nothing_are_refused(capsys):
    write_csv([["a", "a", "y"], ["1", "2", "3"]])
    assert "two columns 'a'" in refused(capsys, "table.csv", "--targets", "y")
    write_csv([["1", "2", "3"], ["1", "2", "3"]])
    assert "expected the columns' names" in refused(capsys, "table.csv", "--targets", "3")
    write_csv([["a", "b"]])
    assert "no rows" in refused(capsys, "table.csv", "--targets", "b")


def test_a_hundred_names_are_not_printed(capsys):
    write_csv([[f"name{i}" for i in range(103)], list(range(103))])
    told = refused(capsys, "table.csv")
    assert "(103 in all)" in told and len(told) < 200
    assert len(refused(capsys, "table.csv", "--targets", "zzz")) < 200


@pytest.mark.parametrize("delimiter", ",;\t|")
def test_delimiters_are_found(delimiter):
    write_csv([["a, 1", "b", "y"], [1, 2, 3], [4, 5, 6]], delimiter=delimiter)
    found = tables.read_csv("table.csv", ["y"])
    assert found["inputs"] == ["a, 1", "b"] and found["x"].tolist() == [[1, 2], [4, 5]]
    assert found["Y"].tolist() == [[3], [6]] and found["names"] == ["y"]


def test_columns_are_those_asked_for_and_the_others_are_named(capsys):
    lines = [[0, 1, "Rome", 2, 3, ""], [1, 4, "Oslo", 5, 6, 7]]
    write_csv([["", "a", "city", "b", "y", "y2"], *lines])
    found = tables.read_csv("table.csv", ["y2", "y"], drop=["city"])
    assert found["inputs"] == ["a", "b"] and found["names"] == ["y2", "y"]
    assert np.isnan(found["Y"][0, 0]) and found["Y"][1].tolist() == [7, 6]
    assert capsys.readouterr().out == "table.csv: left out: column 1, which has no name, city\n"
    found = tables.read_csv("table.csv", ["y"], inputs=["b", "y2", "y"], drop=["y2"])
    assert found["inputs"] == ["b"]
    told = capsys.readouterr().out
    assert "a, city, y2" in told
    assert tables.read_inputs("table.csv", ["b", "a"]).tolist() == [[2, 1], [5, 4]]
    with pytest.raises(ValueError, match="no column c"):
        tables.read_inputs("table.csv", ["a", "c"])


def test_targets_are_given_as_words_or_with_commas():
    assert tables.words(["y1", "y2,y3", '"y, 4"']) == ["y1", "y2", "y3", "y, 4"]
    assert tables.words(["y1,", "y2"]) == ["y1", "y2"]  # "y1, y2" as a shell gives it


def test_classes_are_texts_where_one_is():
    write_csv([["a", "y", "n"], [1, "yes", "1"], [2, "", "-1"], [3, "no", ""]])
    found = tables.read_csv("table.csv", ["y"], classes=True, drop=["n"])
    assert found["Y"].tolist() == [["yes"], [""], ["no"]]
    found = tables.read_csv("table.csv", ["n"], classes=True, drop=["y"])
    np.testing.assert_array_equal(found["Y"], [[1], [-1], [np.nan]])


def test_content_is_part_of_a_results_name():
    x = np.arange(2 * 8 * 8.0).reshape(2, 8, 8)
    Y, test = np.ones((2, 1)), np.array([True, False])
    rows = tables.Rows(x, Y, Y == 1, None, test, ["y"], [])
    other = [
        rows._replace(x=x.reshape(2, 64)), rows._replace(factors=np.ones((2, 1))),
        rows._replace(names=["z"]), rows._replace(inputs=["a"])]
    assert len({r.fingerprint() for r in (rows, *other)}) == 5


def test_other_arrays_of_an_npz_file_are_no_names(tmp_path):
    x, Y = linear_table()
    np.savez(tmp_path / "t.npz", x=x, Y=Y, names=["p", "q"], inputs=np.arange(7))
    assert tables.read_npz(tmp_path / "t.npz").keys() == {"x", "Y"}


def test_gaps_of_classes_are_gaps_beside_texts_too():
    Path("t.csv").write_text("x,n,t\n1,0,a\n2,-1,b\n3,NA,nan\n4,1,a\n5,1,\n")
    found = tables.read_csv("t.csv", ["n", "t"], classes=True)
    assert found["Y"].tolist() == [["0", "a"], ["", "b"], ["", ""], ["1", "a"], ["1", ""]]


def test_a_number_is_one_class_however_it_is_written(capsys):
    Path("t.csv").write_text("x,n,t\n1,1,a\n2,1.0,NULL\n3,2.0,None\n4,1e0,b\n5,#N/A,b\n")
    found = tables.read_csv("t.csv", ["n", "t"], classes=True)
    assert found["Y"].tolist() == [["1", "a"], ["1", ""], ["2", ""], ["1", "b"], ["", "b"]]
    assert "taken as missing labels: #N/A, NULL, None" in capsys.readouterr().out


def test_codes_that_are_no_numbers_or_too_long_for_one_stay_texts():
    Path("t.csv").write_text("x,n,t\n1,1_11,900000000000000003\n2,11_1,900000000000000004\n")
    found = tables.read_csv("t.csv", ["n", "t"], classes=True)
    assert found["Y"].tolist() == [
        ["1_11", "900000000000000003"], ["11_1", "900000000000000004"]]
    found = tables.read_csv("t.csv", ["t"], classes=True, drop=["n"])
    assert len(set(found["Y"].ravel().tolist())) == 2
    with pytest.raises(ValueError, match="column n, line 2: found '1_11', expected a number"):
        tables.read_csv("t.csv", ["t"], classes=True)


@pytest.mark.parametrize("of_text", ["u", "1"])
def test_numbers_that_are_no_classes_are_named_beside_texts_too(capsys, of_text):
    rows = [[i, of_text, 0.5 * i, 2 * (i % 2) - 1] for i in range(20)]
    write_csv([["x", "t", "price", "sign"], *rows])
    flags = ["--likelihood", "categorical", "--targets", "t"]
    assert "price has numbers that are no" in refused(capsys, "table.csv", *flags, "price")
    assert "sign has the class 1" in refused(capsys, "table.csv", *flags, "sign")


def test_a_quote_that_does_not_end_is_told(capsys):
    write_csv([["x", "y"], [1, 2], [3, 4]])
    assert run.main(["tasks", "table.csv", "--targets", '"y']) == 2
    assert "names of columns" in capsys.readouterr().err
