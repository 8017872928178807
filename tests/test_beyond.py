"""Figures of the questions that the papers leave open, from rows made by hand."""

import dataclasses
import itertools

import pytest
from matplotlib import pyplot

from experiments import beyond, figures, plots, sweeps, transfer

SCORES = (
    "mcc r mcc_seen r_seen mcc_rotated inside inside_rotated inside_ica inside_chance allowed "
    "gradient_error support_error leak dci_d dci_d_matched accuracy_5 accuracy_13 "
    "accuracy_50 unused udr udr_seen udr_regressed loss eps_end"
).split()


def rows_of(name):
    """A row for every run of a sweep; MCC grows with the seed."""
    rows = []
    ends = itertools.product(("mcc", "r"), ("_low", "_high"), ("", "_seen"))
    of_samples = itertools.product(("lasso", "ridge"), transfer.SIZES, ("", "_uniform"))
    names = [*SCORES, *map("".join, ends), *(f"{p}_{n}{on}" for p, n, on in of_samples)]
    for config in sweeps.sweep_configs(name, "quick", "unused"):
        row = dataclasses.asdict(config) | dict.fromkeys(names, 0.7)
        row |= {"mcc": 0.8 + 0.01 * config.seed, "r": 0.97, "fails": 0.0, "mccs": [0.7, 0.8]}
        if row.get("tasks") == "pool":
            row["fails"] = {2: 3.4, 8: 3.6}.get(config.count, 3.5)
        rows.append(row)
    return rows


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    saved = []
    monkeypatch.setattr(plots, "save", lambda fig, path: saved.append(fig))
    yield saved
    pyplot.close("all")


@pytest.mark.parametrize("name", [*sweeps.QUESTIONS, "seen"])
def test_every_question_has_its_figure(name, tmp_path, drawn):
    figures.FIGURES[name](rows_of(sweeps.SWEEP_OF[name]), tmp_path / "f.png")
    assert len(drawn) == 1 and all(ax.get_title() or ax.get_xlabel() for ax in drawn[0].axes)


def test_bars_are_means_of_their_start(drawn, tmp_path):
    beyond.draw_problem4(rows_of("problem4"), tmp_path / "f.png")
    ax = drawn[0].axes[1]
    assert "0.9" in ax.get_title()
    heights = {bar.get_height() for group in ax.containers for bar in getattr(group, "patches", [])}
    assert {round(height, 6) for height in heights} == {0.81}  # of seeds 0, 1, 2
    names = [tick.get_text() for tick in ax.get_xticklabels()]
    assert "subset-size" in names and "inner-lasso\n0.3" in names


def test_of_a_pool_the_best_eps_counts_and_the_assumption_is_kept():
    def row(**own):
        return {"tasks": "pool", "count": 8, "world": 0, "fails": 3.6, "mcc": 0.5} | own

    rows = [row(), row(mcc=0.7), row(world=1, mcc=0.6), row(tasks="usual", fails=0.0, mcc=0.9)]
    best = beyond.best_of_worlds(rows, "mcc")
    assert best[(4, 0)] == (0.7, 3.6) and best[(4, 1)] == (0.6, 3.6)
    assert best[(len(sweeps.POOL_SIZES), 0)] == (0.9, 0.0)


def test_gains_are_paired_by_seed():
    rows = [{"beta": b, "seed": s, "mcc": m} for b, s, m in
            ((0.0, 0, 0.5), (0.0, 1, 0.7), (0.1, 0, 0.6), (0.1, 1, 0.6), (0.1, 2, 0.9))]
    assert beyond.gains_of(rows, 0.1, "mcc") == pytest.approx([0.1, -0.1])


def test_groups_keep_the_order_of_their_rows():
    rows = [{"a": 2, "x": 0.1}, {"a": 1, "x": 0.2}, {"a": 2, "x": 0.3}]
    assert list(beyond.groups_of(rows, ("a",), "x").items()) == [((2,), [0.1, 0.3]), ((1,), [0.2])]


def test_a_table_of_gains_is_written(tmp_path):
    rows = [{"m": 10, "alpha": 0.1, "factors": 2, "shot": 13, "seed": seed, "beta": beta}
            | dict.fromkeys((*beyond.GAINS, "accuracy_13", "accuracy_50"), seed + 10 * beta)
            for seed in range(4) for beta in (0.0, 0.02, 0.1) if (seed, beta) != (3, 0.1)]
    keys = ("m", "alpha", "factors", "shot")
    beyond.write_gains(rows, [(10, 0.1, 2, 13)], keys, tmp_path / "g.csv")
    lines = (tmp_path / "g.csv").read_text().splitlines()
    assert lines[1:3] == ["10,0.1,2,13,mcc,0.02,0.200000,0.000000,4",
                          "all,all,all,all,mcc,0.02,0.200000,0.000000,4"]
    assert lines[3] == "10,0.1,2,13,mcc,0.1,1.000000,0.000000,3"
