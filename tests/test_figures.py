"""Figures drawn from tables: of tiny sweeps, and of rows made by hand."""

from pathlib import Path

import numpy as np
import pytest

import run
from experiments import figures, plots, sweeps


def is_png(path):
    return Path(path).read_bytes()[:4] == b"\x89PNG"


def test_figures_are_drawn_from_the_table(tiny_sweeps, capsys):
    assert run.main(["figure", "fig4"]) == 2 and "sweep main" in capsys.readouterr().err
    assert run.main(["sweep", "main", "--index", "0"]) == 0
    assert run.main(["figure", "fig4"]) == 0
    assert "3 of 4 runs are missing" in capsys.readouterr().out
    assert run.main(["sweep", "main"]) == 0
    for name in ("fig4", "fig6", "fig7", "fig11", "fig12", "fig13", "fig14", "fig15"):
        assert run.main(["figure", name]) == 0 and is_png(f"results/{name}-quick.png")
    assert run.main(["sweep", "outer", "--index", "0"]) == 0
    assert run.main(["figure", "fig10", "--out", "here.png"]) == 0 and is_png("here.png")


def test_fig5_is_drawn_from_its_sweep(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = {"episodes": 1, "query": 2, "test_episodes": 4, "way": 2, "shot": 2}
    glyphs, shapes = {"source": "glyphs"}, {"source": "shapes", "encoder": "cnn"}
    few = {
        "glyphs": sweeps.Episodes(glyphs | small, 1, (0.0, 0.3)),
        "shapes": sweeps.Episodes(shapes | small, 1, (0.1,)),
    }
    for name, sweep in few.items():
        monkeypatch.setitem(sweeps.EPISODE_SWEEPS, name, sweep)
    assert run.main(["sweep", "fig5"]) == 0 and run.main(["sweep", "shapes"]) == 0
    table = Path("results/glyphs-quick.csv").read_text()
    assert len(table.splitlines()) == 3 and "gain_over_dense" in table
    assert run.main(["figure", "fig5"]) == 0 and run.main(["figure", "conjecture"]) == 0
    assert "against eps 0.0" in capsys.readouterr().out
    assert is_png("results/fig5-quick.png") and is_png("results/conjecture-quick.png")


def test_every_figure_has_a_sweep_and_a_drawing():
    assert figures.FIGURES.keys() == sweeps.SWEEP_OF.keys()
    assert set(sweeps.SWEEP_OF.values()) == set(sweeps.NAMES)
    numbers = {f"fig{i}" for i in range(1, 16)}
    assert numbers <= {"fig1", *figures.ALONE, *figures.FIGURES}


def test_the_operators_are_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run.main(["figure", "thresholds"]) == 0 and is_png("results/thresholds.png")
    assert capsys.readouterr().out == f"{Path('results/thresholds.png')}\n"


# ------------------------------------------------------------------------------ by hand


def row(head, eps, seed, rho=0.0, tasks="blocks-2", **scores):
    return {"head": head, "eps": eps, "seed": seed, "rho": rho, "tasks": tasks, **scores}


@pytest.fixture
def drawn(monkeypatch):
    """The axes of every figure that is saved."""
    seen = []
    monkeypatch.setattr(plots, "save", lambda fig, path: seen.append(fig.axes))
    return seen


def test_bars_are_means_over_seeds(drawn):
    rows = [
        row("inner-lasso", eps, seed, mcc=eps + 0.1 * seed, mcc_ica=1.0, r=0.5)
        for eps in (0.1, 0.3)
        for seed in (0, 1)
    ]
    figures.draw_bars(rows, None, {"all": {"rho": 0.0}, "none": {"rho": 0.5}}, ("mcc", "r"))
    ((mcc, empty, r, _),) = drawn
    heights = [bar.get_height() for bar in mcc.patches[:2]]
    np.testing.assert_allclose(heights, [0.15, 0.35])
    _, labels = mcc.get_legend_handles_labels()
    assert {"random mixing", "inner-Lasso", "inner-Lasso + ICA"} <= set(labels)
    assert len(r.containers) < len(mcc.containers)  # R does not see ICA
    assert mcc.get_title() == "all" and not empty.patches


def test_the_best_run_of_each_seed_counts(drawn):
    rows = [
        row("inner-lasso", 0.1, 0, mcc=0.5, r=0.9, mcc_ica=0.8),
        row("inner-lasso", 0.3, 0, mcc=0.7, r=0.6, mcc_ica=0.1),
        row("inner-lasso", 0.1, 1, mcc=0.9, r=0.8, mcc_ica=0.2),
    ]
    assert figures.best_of_seeds(rows, figures.LASSO, "mcc") == [0.7, 0.9]
    assert sorted(figures.best_of_seeds(rows, figures.LASSO, "r")) == [0.6, 0.8]
    assert sorted(figures.best_of_seeds(rows, figures.LASSO_ICA, "mcc")) == [0.2, 0.8]


def test_shares_inside_blocks_are_those_of_their_size(drawn):
    shares = {"block_share_2": 0.2, "block_share_3": 0.3, "mcc": 0.5, "r": 0.6}
    rows = [row("inner-lasso", 0.1, 0, tasks=f"blocks-{size}", **shares) for size in (2, 3, 6)]
    figures.draw_blocks(rows, None)
    ((mcc, _, share),) = drawn
    assert [list(ax.lines[0].get_ydata()) for ax in (mcc, share)] == [[0.5] * 3, [0.2, 0.3]]


def test_chance_is_that_of_six_features(drawn):
    _, ax = plots.subplots(1, 1, (2, 2))
    figures.draw_chance(ax)
    assert 0.6 < ax.lines[0].get_ydata()[0] < 0.65


def test_a_cell_without_runs_is_named():
    with pytest.raises(ValueError, match="no finished run with"):
        figures.draw_best_responses([], None, {"rho": 0.0})
