"""Numbers that the pages quote from our tables: a comment behind each says from where.

    MCC 0.962<!-- main-quick.csv head=inner-lasso rho=0.9 eps=0.3 alpha=1.0 mcc mean .3f -->

TABLE.csv, settings of its rows, a column, a statistic (mean, sd, min, max, count) and a format.
"""

import csv
import re
import statistics

import pytest
from conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
QUOTED = re.compile(r"(-?\d[\d.]*)\s*<!-- (\S+\.csv) (.*?) -->")
STATISTICS = {
    "mean": statistics.fmean,
    "sd": statistics.stdev,
    "min": min,
    "max": max,
    "count": len,
}


def same(text, wanted):
    """Whether a cell of a table is what a comment asks for, as numbers where it is one."""
    try:
        return float(text) == float(wanted)
    except ValueError:
        return text == wanted


def recomputed(table, words):
    """What the words of a comment say, as a text."""
    *cell, column, statistic, form = words.split()
    settings = dict(word.split("=", 1) for word in cell)
    with open(ROOT / "docs" / table, newline="") as file:
        rows = list(csv.DictReader(file))
    inside = [row for row in rows if all(same(row[key], settings[key]) for key in settings)]
    values = [float(row[column]) for row in inside if row[column]]
    assert values, f"{table}: no row with {settings}"
    return format(STATISTICS[statistic](values), form)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_numbers_are_those_of_their_tables(path):
    for found, table, words in QUOTED.findall(path.read_text()):
        assert found == recomputed(table, words), f"{path.name}: {found} <!-- {table} {words} -->"


def test_a_wrong_number_is_noticed(tmp_path):
    cell = "head=inner-lasso rho=0.9 eps=0.3 alpha=1.0"
    text = f"MCC 0.664<!-- main-quick.csv {cell} mcc mean .3f -->"
    ((found, table, words),) = QUOTED.findall(text)
    right = recomputed(table, words)
    assert found != right and 0.9 < float(right) < 1
    with pytest.raises(AssertionError, match="no row"):
        recomputed(table, words.replace("0.9", "0.7"))
