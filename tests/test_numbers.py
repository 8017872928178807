"""Numbers that the pages quote: docs/quote.py finds each in its table, and none without one."""

import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "docs"))
import quote

TEXT = "MCC 0.664<!-- main-quick.csv head=inner-lasso rho=0.9 eps=0.3 alpha=1 mcc mean .3f -->"


@pytest.mark.parametrize("path", quote.PAGES, ids=lambda path: path.name)
def test_numbers_are_those_of_their_tables(path):
    text = path.read_text()
    told, unlike = quote.requoted(text)
    assert not unlike and told == text
    assert not quote.unlike_their_rows(text)


@pytest.mark.parametrize("path", quote.PAGES, ids=lambda path: path.name)
def test_no_number_is_without_a_source(path):
    assert not quote.bare(path.read_text())


def test_a_wrong_number_is_noticed_and_mended():
    told, unlike = quote.requoted(TEXT)
    assert told != TEXT and not unlike and told.startswith("MCC 0.9")
    for was, becomes, said in (
        ("rho=0.9", "rho=0.7", "no row"),
        ("rho=", "rhoo=", "KeyError"),
        ("main", "none", "No such"),
    ):
        text = TEXT.replace(was, becomes)
        told, unlike = quote.requoted(text)
        assert told == text and said in unlike[0]
    _, unlike = quote.requoted(TEXT.replace("mean .3f", "mean±sd .3f"))
    assert "expected 0.9" in unlike[0]


def small(monkeypatch, text):
    """Every table is this one."""
    monkeypatch.setattr(quote, "read", lambda table: quote.rows_of(text.splitlines()))


def test_every_statistic(monkeypatch):
    small(monkeypatch, "seed,eps,mcc,r\n0,0.1,0.5,1\n1,0.1,0.25,2\n0,0.3,0.25,3\n1,0.3,0.5,4\n")
    for words, told in (
        ("mcc mean .3f", "0.375"),
        ("eps=0.1 mcc mean±sd .2f", "0.38 ± 0.18"),
        ("eps=0.1|0.3 r mean .1f", "1.5, 3.5"),
        ("eps=0.1 mcc|r max .2f", "0.50, 2.00"),
        ("seed=0 mcc each .2f", "0.50, 0.25"),
        ("mcc best±sd .2f", "0.50 ± 0.00"),  # of each seed, then their mean
        ("mcc range .1%", "25.0 to 50.0"),
        ("r count d", "4"),
        ("mcc~r correlation .2f", "0.00"),
        ("eps=0.1|0.3 mcc~r correlation .0f", "-1, 1"),
    ):
        text, unlike = quote.requoted(f"so {told}<!-- t.csv {words} --> it is")
        assert text.startswith(f"so {told}<!--") and not unlike
        other = told.replace("5", "6").replace("4", "7")
        assert quote.requoted(f"so {other}<!-- t.csv {words} --> it is")[0] == text


def test_tables_have_the_numbers_of_their_rows(monkeypatch):
    small(monkeypatch, "name,mcc,r\na,0.1234,1\nb,0.5678,2\n")
    page = "<!-- rows t.csv -->\n| n | mcc |\n|---|---|\n| a | 0.123 |\n| b | {} |\n"
    assert not quote.unlike_their_rows(page.format("0.568"))
    assert len(quote.unlike_their_rows(page.format("0.567"))) == 1
    assert len(quote.unlike_their_rows(page.format("0.123"))) == 1  # another row's
    missing = page.format("0.568").replace("| a | 0.123 |\n", "")
    assert quote.unlike_their_rows(missing)


def test_what_needs_a_source():
    for text in (
        "MCC 0.664 there",
        "at rho = 0.9 it is 0.664",
        "| 0.664 |",
        "-0.05 ± 0.11 points",
        "from 0.1 to 0.5 of it",
    ):
        assert quote.bare(text), text
    for text in (
        "`0.664`",
        "$`0.5`$",
        "```\nMCC 0.6\n```",
        '"MCC 0.664" it says',
        "at rho = 0.9, 0.95 and 0.99",
        "eps 0.1 to 0.3",
        "alpha at 0.5",
        "2.5 minutes",
        "Theorems B.4, B.5 and 3.1",
        "Assumption 3.6",
        "0.79<!-- L23, Fig. 14 -->",
        TEXT,
        "[text](a0.5.md)",
        "<!-- timings -->\n| 0.5 | 2.31 |\n",
    ):
        assert not quote.bare(text), text


def test_the_command_mends_and_tells_each_kind_of_wrong_number(tmp_path, monkeypatch, capsys):
    rows = quote.rows_of(["name,mcc", "a,0.1234"])
    monkeypatch.setattr(quote, "read", lambda table: rows)
    page = tmp_path / "page.md"
    monkeypatch.setattr(quote, "PAGES", [page])
    good = "so 0.123<!-- t.csv name=a mcc mean .3f --> it is\n"
    page.write_text(good.replace("0.123", "0.999"))
    assert not quote.main() and page.read_text() == good
    assert capsys.readouterr().out.strip() == ""
    for wrong, told in (
        (good.replace("=a", "=b"), "no row"),
        (good + "and 0.77 of them\n", "0.77"),
        (good + "<!-- rows t.csv -->\n| n | mcc |\n|---|---|\n| a | 0.124 |\n", "0.124 in"),
    ):
        page.write_text(wrong)
        assert quote.main() and told in capsys.readouterr().out and page.read_text() == wrong


def test_empty_cells_are_no_values(monkeypatch):
    rows = quote.rows_of(["seed,mcc,r", "0,0.5,", "1,,", "2,0.25,"])
    monkeypatch.setattr(quote, "read", lambda table: rows)
    assert quote.quoted("t.csv", "mcc mean .3f") == "0.375"
    assert quote.quoted("t.csv", "seed=0/1 mcc count d") == "1"
    with pytest.raises(ValueError, match="no row with .* and a r"):
        quote.quoted("t.csv", "r mean .3f")


def test_a_star_stands_for_the_mean_of_all_columns_that_begin_so(monkeypatch):
    rows = quote.rows_of(["seed,seen_a,seen_b,seen", "0,0.5,1,9", "1,,0.25,9"])
    monkeypatch.setattr(quote, "read", lambda table: rows)
    assert quote.quoted("t.csv", "seen_* each .3f") == "0.750, 0.250"
    assert quote.quoted("t.csv", "seen_*~seen_b correlation .1f") == "1.0"
    with pytest.raises(ValueError, match="no row with .* and a mcc_"):
        quote.quoted("t.csv", "mcc_* mean .3f")
