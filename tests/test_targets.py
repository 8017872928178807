"""Targets of SparseTasks: gaps, classes, units."""

import numpy as np
import pytest

from sparsetasks import targets
from sparsetasks.targets import FEW, Targets, mean_and_scale, some


def test_what_stands_in_a_gap_is_never_seen():
    rng = np.random.default_rng(1)
    Y, gaps = rng.standard_normal((40, 4)), rng.random((40, 4)) < 0.3
    targets = Targets(np.where(gaps, np.nan, Y))
    assert (targets.known == ~gaps).all() and not targets.labels[gaps].any()
    assert np.isnan(targets.columns[gaps]).all()
    np.testing.assert_allclose(targets.labels[~gaps[:, 0], 0].std(), 1)
    masked = Targets(np.ma.masked_array(np.where(gaps, 1e9, Y), gaps))
    np.testing.assert_array_equal(masked.labels, targets.labels)


def test_a_target_without_labels_leaves_the_labels_of_others():
    Y = np.random.default_rng(0).standard_normal((20, 2))
    with_gap = np.stack([Y[:, 0], np.full(20, np.nan)], axis=1)
    labels = Targets(with_gap, least=0).labels
    np.testing.assert_allclose(labels[:, 0], Targets(Y).labels[:, 0])
    assert not labels[:, 1].any()


@pytest.mark.parametrize(
    "missing, Y",
    [
        (-1, np.array([[2, 0], [2, -1], [7, 1], [7, 1]])),
        (np.nan, np.array([[2, 0], [2, np.nan], [7, 1], [7, 1]])),
        ("", np.array([["2", "0"], ["2", ""], ["7", "1"], ["7", "1"]])),
        (None, np.array([["2", "0"], ["2", None], ["7", "1"], ["7", "1"]], object)),
    ],
    ids=["negative", "NaN", "empty", "None"],
)
def test_classes_are_what_they_are_called(missing, Y):
    targets = Targets(Y, "categorical")
    assert [[int(c) for c in names] for names in targets.classes] == [[2, 7], [0, 1]]
    assert targets.codes.tolist() == [[0, 0], [0, -1], [1, 1], [1, 1]]
    assert targets.labels.shape == (4, 2, 2) and not targets.known[1, 1]


def test_masked_texts_are_missing_classes():
    Y = np.ma.masked_array(["a", "b", "a", "b", "x"], [0, 0, 0, 0, 1])
    targets = Targets(Y, "categorical")
    assert list(targets.classes[0]) == ["a", "b"] and targets.known[:, 0].tolist()[-2:] == [1, 0]


def test_classes_of_one_row_each_are_refused():
    with pytest.raises(ValueError, match="no target has two classes of two rows"):
        _ = Targets(np.arange(5), "categorical").columns


@pytest.mark.parametrize("rare", ["a", "z"])
def test_of_two_classes_both_have_two_rows_whatever_their_names(rare):
    Y = np.array([["m", "0"]] * 4 + [["m", "1"]] * 4 + [[rare, "1"]])
    assert Targets(Y, "categorical").columns.shape == (9, 1)
    with pytest.raises(ValueError, match="two classes of two rows"):
        _ = Targets(Y[:, 0], "categorical").columns


def test_a_class_of_one_row_is_no_column():
    targets = Targets(np.array([0, 0, 1, 1, 2]), "categorical")
    assert targets.one and targets.columns.shape == (5, 2) and FEW > 2


@pytest.mark.parametrize(
    "Y, told",
    [
        (np.ones((2, 2, 2)), "Y: found"),
        (np.ones((5, 0)), "Y: found"),
        (np.array([["a"], ["b"]]), "classes: likelihood"),
        (np.array([[1.0], [np.inf]]), "infinity"),
        (np.array([[1.0, np.nan], [2.0, np.nan]]), "column 1 has fewer than 2"),
    ],
)
def test_what_are_no_targets_is_refused(Y, told):
    with pytest.raises(ValueError, match=told):
        Targets(Y)


@pytest.mark.parametrize("unit", [1e-30, 1e-9, 1.0, 1e30])
def test_a_column_is_constant_in_all_units_or_in_none(unit):
    rng = np.random.default_rng(0)
    X = np.c_[rng.standard_normal(50), np.full(50, 0.1), 1e6 + rng.standard_normal(50)] * unit
    _, scale = mean_and_scale(X)
    np.testing.assert_allclose(scale[[0, 2]], X[:, [0, 2]].std(axis=0), rtol=1e-6)
    assert scale[1] == 1
    mean, scale = mean_and_scale(np.full((3_000_000, 1), 0.1, np.float32))
    assert mean[0] == np.float32(0.1) and scale[0] == 1


def test_a_column_that_only_rounding_moves_is_constant():
    X = np.full((60, 2), 0.3)
    X[::2, 0], X[::2, 1] = np.nextafter(0.3, 1), 0.3 + 1e-12
    mean, scale = mean_and_scale(X)
    assert scale[0] == 1 and scale[1] == pytest.approx(0.5e-12, rel=1e-3)
    np.testing.assert_allclose(mean, 0.3)
    mean, scale = mean_and_scale(np.full((3, 1), np.nan))  # of nothing
    assert (mean, scale) == (0, 1)


def test_moments_of_many_values_are_those_of_few(monkeypatch):
    X = np.random.default_rng(0).standard_normal((50, 4, 3))
    X[::7, 1, 2] = np.nan
    whole = mean_and_scale(X)
    np.testing.assert_allclose(whole, (np.nanmean(X, (0, 1)), np.nanstd(X, (0, 1))))
    monkeypatch.setattr(targets, "AT_ONCE", 100)
    np.testing.assert_allclose(mean_and_scale(X), whole, rtol=1e-13)


def test_the_first_of_many_names_are_told():
    names = [f"a{i}" for i in range(9)]
    assert some(names[:8]) == ", ".join(names[:8])
    assert some(names) == ", ".join(names[:8]) + ", ... (9 in all)"


def test_of_two_classes_one_column_tells_both():
    Y = np.array([["a", "x"], ["b", "y"], ["a", "z"], ["b", "x"], ["a", "y"], ["b", "z"]])
    columns = Targets(Y, "categorical").columns
    assert columns.shape == (6, 1 + 3)
    np.testing.assert_allclose(columns[:, 0], [-1, 1, -1, 1, -1, 1])


@pytest.mark.parametrize("column", [
    np.array(["a", 1, "b"], dtype=object), np.array(["2020-01-01"] * 3, dtype="datetime64[D]"),
    np.array([b"a", b"b", b"a"])], ids=["mixed", "dates", "bytes"])
def test_classes_that_are_neither_numbers_nor_texts_are_refused(column):
    with pytest.raises(ValueError, match="column 0 has classes"):
        Targets(column, "categorical")


def test_classes_of_minus_1_and_1_are_refused():
    with pytest.raises(ValueError, match="column 0 has the class 1 alone"):
        Targets(np.array([-1, 1, 1, -1]), "categorical")
    assert Targets(np.array([-1, 1, 1, 0]), "categorical").known.sum() == 3


REAL_BESIDE_TEXTS = np.array([[0.25, "a"], [-1.5, "b"], [0.75, "a"], [2.0, "b"]], object)


@pytest.mark.parametrize("bad", [np.array([0, 0, 1, 1, np.inf]), np.array([0, 0, 1, 1, 1j])])
def test_numbers_that_are_no_classes_are_refused_in_any_column(bad):
    for Y in (bad, REAL_BESIDE_TEXTS):
        with pytest.raises(ValueError, match="column 0"):
            Targets(Y, "categorical")


def test_gaps_of_pandas_are_gaps_in_any_array():
    pandas = pytest.importorskip("pandas")
    Y = np.array([[0, 1.5], [1, pandas.NA], [0, 2.5], [pandas.NA, 3.5]], object)
    assert Targets(Y, least=0).known.sum() == 6
    assert Targets(Y[:, :1], "categorical").codes[:, 0].tolist() == [0, 1, 0, -1]


def test_a_list_of_texts_and_numbers_keeps_its_gaps():
    found = Targets([["a", 0], ["b", -1], [float("nan"), 1], ["a", 1], ["b", 0]], "categorical")
    assert [list(names) for names in found.classes] == [["a", "b"], [0, 1]]
    assert found.codes.tolist() == [[0, 0], [1, -1], [-1, 1], [0, 1], [1, 0]]


def test_dates_are_no_targets():
    with pytest.raises(ValueError, match="real numbers"):
        Targets(np.array(["2020-01-01", "NaT", "2020-01-05"], "datetime64[D]"))
