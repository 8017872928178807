"""Figures panels from tables: of tiny sweeps, and of rows made by hand."""

import types
from pathlib import Path

import numpy as np
import pytest
from conftest import line_of
from matplotlib import pyplot

import data
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
    for name in ("fig4", "fig6", "fig15", "rho"):
        assert run.main(["figure", name]) == 0 and is_png(f"results/{name}-quick.png")
    assert run.main(["figure", "fig12"]) == 2  # its eps is not in this sweep
    assert "no finished run with" in capsys.readouterr().err
    assert run.main(["figure", "fig13"]) == 0 and is_png("results/fig13-quick.png")
    assert run.main(["sweep", "outer", "--index", "0"]) == 0
    assert run.main(["figure", "fig10", "--out", "here.png"]) == 0 and is_png("here.png")


def test_fig5_is_drawn_from_its_sweep(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = {"episodes": 1, "query": 2, "test_episodes": 4, "way": 2, "shot": 2}
    glyphs, shapes = {"source": "glyphs"}, {"source": "shapes", "encoder": "cnn"}
    few = {
        "glyphs": sweeps.Episodes(glyphs | small, 1, (0.0, 0.3), 1),
        "shapes": sweeps.Episodes(shapes | small, 1, (0.1,), 1),
    }
    for name, sweep in few.items():
        monkeypatch.setitem(sweeps.EPISODE_SWEEPS, name, sweep)
    assert run.main(["sweep", "fig5"]) == 0 and run.main(["sweep", "shapes"]) == 0
    table = Path("results/glyphs-quick.csv").read_text()
    assert len(table.splitlines()) == 3 and "gain_over_dense" in table
    assert run.main(["figure", "fig5"]) == 0 and run.main(["figure", "conjecture"]) == 0
    assert "against the least eps" in capsys.readouterr().out
    assert is_png("results/fig5-quick.png") and is_png("results/conjecture-quick.png")


def test_every_figure_has_a_sweep_and_a_drawing():
    assert figures.FIGURES.keys() == sweeps.SWEEP_OF.keys()
    assert {*sweeps.SWEEP_OF.values(), "protocol", "variants"} == set(sweeps.NAMES)
    numbers = {f"fig{i}" for i in range(1, 16)}
    assert numbers <= {"fig1", *figures.ALONE, *figures.FIGURES}


def test_the_operators_are_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run.main(["figure", "thresholds"]) == 0 and is_png("results/thresholds.png")
    assert capsys.readouterr().out == f"{Path('results/thresholds.png')}\n"


# ------------------------------------------------------------------------------ by hand


def row(head, eps, seed, rho=0.0, tasks="blocks-2", **scores):
    return {"head": head, "eps": eps, "seed": seed, "rho": rho, "tasks": tasks, **scores}


def test_bars_are_means_over_seeds(panels):
    rows = [
        row("inner-ridge", eps, seed, mcc=eps + 0.1 * seed, mcc_ica=1.0, mcc_rotated=0.9, r=0.5)
        for eps in (0.1, 0.3)
        for seed in (0, 1)
    ]
    figures.draw_bars(rows, None, {"all": {"rho": 0.0}, "none": {"rho": 0.5}}, ("mcc", "r"))
    ((mcc, empty, _, _),) = panels
    by_method = [[bar.get_height() for bar in bars] for bars in mcc.containers if len(bars) == 2]
    np.testing.assert_allclose(by_method[1:], [[0.15, 0.35], [1, 1], [0.9, 0.9]])
    _, labels = mcc.get_legend_handles_labels()
    afterwards = {"inner-Ridge + ICA", "inner-Ridge + rotation"}
    assert {"random mixing", "inner-Lasso", "inner-Ridge", *afterwards} == set(labels)
    assert mcc.get_title() == "all" and not empty.patches


def test_a_deviation_is_that_of_a_sample():
    assert plots.sample_deviation([1.0, 3.0]) == pytest.approx(2**0.5)
    assert plots.sample_deviation([1.0]) == 0


def test_bands_show_the_cells_of_the_paper(panels):
    """Fig. 4: above rho at alpha = 1, below alpha at rho = 0.9."""
    cells = [(0.0, 1.0), (0.5, 1.0), (0.9, 1.0), (0.9, 0.5), (0.9, 0.0)]
    rows = [
        row("inner-lasso", eps, 0, rho=rho, alpha=alpha, mcc=rho + alpha / 10 + eps / 100)
        for rho, alpha in cells
        for eps in (0.1, 0.3)
    ]
    figures.FIGURES["fig4"](rows, None)
    ((left, middle, right, low, low_middle, low_right),) = panels
    titles = [ax.get_title() for ax in (left, middle, low, low_middle)]
    assert titles == [r"$\rho$ = 0", r"$\rho$ = 0.9", r"$\alpha$ = 0", r"$\alpha$ = 1"]
    heights = [ax.patches[1].get_height() for ax in (left, middle, low, low_middle)]
    np.testing.assert_allclose(heights, [0.103, 1.003, 0.903, 1.003])
    by_rho, by_alpha = (ax.lines[0].get_xydata() for ax in (right, low_right))
    np.testing.assert_allclose(by_rho, [[0, 0.103], [0.5, 0.603], [0.9, 1.003]])
    np.testing.assert_allclose(by_alpha, [[0, 0.903], [0.5, 0.953], [1, 1.003]])


def test_the_best_eps_is_one_that_every_level_has():
    rows = [
        row("inner-ridge", 0.1, 0, rho=0.0, mcc=0.5, mcc_ica=0.9),
        row("inner-ridge", 0.3, 0, rho=0.0, mcc=0.7, mcc_ica=0.1),
        row("inner-ridge", 1.0, 0, rho=0.0, mcc=1.0, mcc_ica=1.0),  # only here
        row("inner-ridge", 0.1, 0, rho=0.9, mcc=0.6, mcc_ica=0.2),
        row("inner-ridge", 0.1, 1, rho=0.9, mcc=0.6, mcc_ica=0.2),
        row("inner-ridge", 0.3, 0, rho=0.9, mcc=0.8, mcc_ica=0.3),  # of one seed the best,
        row("inner-ridge", 0.3, 1, rho=0.9, mcc=0.3, mcc_ica=0.4),  # not on average
    ]
    uniform, correlated = figures.searched_alike(rows, "rho").values()
    assert {r["eps"] for r in uniform} == {0.1, 0.3}
    assert [r["mcc"] for r in figures.best_eps(correlated, "mcc")] == [0.6, 0.6]
    assert [r["mcc_ica"] for r in figures.best_eps(correlated, "mcc_ica")] == [0.3, 0.4]
    assert figures.best_of_seeds(correlated, "mcc") == [0.8, 0.6]  # of each seed its own
    assert figures.best_of_seeds(uniform, "mcc_ica") == [0.9]


def test_a_curve_needs_levels_in_between(panels):
    _, ax = plots.subplots(1, 1, (2, 2))
    figures.draw_best(ax, [row("inner-lasso", 0.1, 0, mcc=0.5)], "rho", "mcc")
    assert not ax.axison


def test_shares_inside_blocks_are_those_of_their_size(panels):
    shares = {"block_share_2": 0.2, "block_share_3": 0.3, "mcc": 0.5, "r": 0.6}
    rows = [row("inner-lasso", 0.1, 0, tasks=f"blocks-{size}", **shares) for size in (2, 3, 6)]
    figures.draw_block_share(rows, None)
    ((of_2, of_3),) = panels
    assert [ax.patches[0].get_height() for ax in (of_2, of_3)] == [0.2, 0.3]


def test_chance_is_that_of_six_features(panels):
    _, ax = plots.subplots(1, 1, (2, 2))
    figures.draw_chance(ax)
    assert 0.6 < ax.lines[0].get_ydata()[0] < 0.65


@pytest.mark.slow
def test_the_latents_are_those_of_the_pairs(panels):
    figures.draw_latents(None)
    (((uniform, noisy), (_, correlated)),) = [np.reshape(axes[:4], (2, 2)) for axes in panels]
    assert uniform.get_title().startswith(r"$\rho$ = 0, $\alpha$ = 0")
    assert correlated.get_title() == r"$\rho$ = 0.9, $\alpha$ = 1, realised correlation 0.82"
    n, floor, orientation = figures.BINS, 0, 5
    taken = []
    for ax in (uniform, noisy, correlated):
        tile = np.nan_to_num(ax.images[0].get_array().filled(0))
        assert tile.shape == (6 * n, 6 * n)
        pair = tile[floor * n : n, orientation * n :]
        np.testing.assert_allclose(pair.sum(), 1)
        taken.append(np.count_nonzero(pair))
    assert taken[0] <= 10 * 15 < taken[1]  # a grid of levels; the noise fills it


def test_curves_take_each_seeds_best_eps_and_the_thin_line_the_one_of_the_best_mcc():
    scores = {
        (0.1, 0): (0.9, 1.0),
        (0.1, 1): (0.2, 0.8),
        (0.3, 0): (0.5, 0.4),
        (0.3, 1): (0.8, 0.6),
    }
    rows = [
        row("inner-lasso", eps, seed, rho=rho, mcc=mcc, r=r)
        for rho in (0.0, 0.5, 0.9)
        for (eps, seed), (mcc, r) in scores.items()
    ]
    for score, best, thin in (("mcc", (0.9, 0.8), 0.65), ("r", (1.0, 0.8), 0.5)):
        _, ax = plots.subplots(1, 1, (2, 2))
        figures.draw_best(ax, rows, "rho", score)
        xs, means, spreads = line_of(ax.containers[0])
        np.testing.assert_allclose(xs, [0, 0.5, 0.9])
        np.testing.assert_allclose(means, np.mean(best))
        np.testing.assert_allclose(spreads, np.std(best, ddof=1))
        one_eps = next(line for line in ax.lines if line.get_linewidth() == 0.7)
        np.testing.assert_allclose(one_eps.get_ydata(), thin)  # of eps 0.3, for either score
        pyplot.close("all")


def test_bars_have_the_deviation_of_their_seeds():
    rows = [
        row("inner-lasso", 0.1, seed, mcc=mcc) for seed, mcc in enumerate((0.5, 0.7, 0.6))
    ]
    _, ax = plots.subplots(1, 1, (2, 2))
    figures.draw_groups(ax, rows, "mcc")
    bars = next(c for c in ax.containers if getattr(c, "errorbar", None))
    _, means, spreads = (
        line_of(bars.errorbar)
        if bars.errorbar.lines[0]
        else (
            0,
            [bars[0].get_height()],
            [(b[1] - a[1]) / 2 for a, b in bars.errorbar.lines[2][0].get_segments()],
        )
    )
    np.testing.assert_allclose([means[0], spreads[0]], [0.6, 0.1])
    pyplot.close("all")


def test_curves_are_of_their_own_band_alone(panels):
    """Against rho at alpha = 1, against alpha at rho = 0.9, where other rows score more."""
    cells = [(0.0, 1.0), (0.5, 1.0), (0.9, 1.0), (0.9, 0.5), (0.9, 0.0)]
    rows = [
        row("inner-lasso", 0.1, 0, rho=rho, alpha=alpha, r=0.9 - rho / 2 - alpha / 10)
        for rho, alpha in cells
    ]
    figures.FIGURES["fig6"](rows, None)
    figures.draw_against_rho([own | {"mcc": own["r"]} for own in rows], None)
    by_rho = [[0, 0.8], [0.5, 0.55], [0.9, 0.35]]
    for ax in (panels[0][2], *panels[1]):
        np.testing.assert_allclose(ax.lines[0].get_xydata(), by_rho)
    np.testing.assert_allclose(
        panels[0][5].lines[0].get_xydata(), [[0, 0.45], [0.5, 0.4], [1, 0.35]]
    )
    assert [panels[0][i].get_ylabel() for i in (0, 3)] == ["R", "R"]


def test_fig15_is_of_both_scores_of_dci(panels):
    rows = [
        row("inner-lasso", 0.1, 0, rho=rho, alpha=alpha, dci_d=rho / 2, dci_c=alpha / 2)
        for rho, alpha in [(0.0, 1.0), (0.5, 1.0), (0.9, 1.0), (0.9, 0.5), (0.9, 0.0)]
    ]
    figures.FIGURES["fig15"](rows, None)
    axes = np.reshape(panels[0], (4, 3))
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["DCI-D", "DCI-C"] * 2
    curves = [ax.lines[0].get_xydata()[:, 1] for ax in axes[:, 2]]
    by_rho, by_alpha = [0, 0.25, 0.45], [0, 0.25, 0.5]
    np.testing.assert_allclose(curves, [by_rho, [0.5] * 3, [0.45] * 3, by_alpha])


def test_the_printed_numbers_stand_beside_their_runs():
    """[L23, Figs. 11 to 14] and Sec. 7 of the design: Lasso 0.99 and 0.96, ridge 0.63 and 0.79."""
    told = {}
    for number in (11, 12, 13, 14):
        (cell,), (head,), _, _ = figures.FIGURES[f"fig{number}"].keywords["part"]
        told[head, cell["rho"]] = figures.FIGURES[f"fig{number}"].keywords["printed"]
    assert told == {
        ("inner-lasso", 0.0): 0.99,
        ("inner-ridge", 0.0): 0.63,
        ("inner-lasso", 0.9): 0.96,
        ("inner-ridge", 0.9): 0.79,
    }


def test_the_idea_names_ridge_and_lasso_as_they_are(panels, monkeypatch):
    def row_of(rows, part, sweep):
        return {"mcc": {"inner-ridge": 0.25, "inner-lasso": 0.75}[part.heads[0]]}

    images = figures.EncodedImages(None, None, np.eye(6), (np.arange(6), np.arange(6)))
    monkeypatch.setattr(figures, "row_of", row_of)
    monkeypatch.setattr(figures, "encoded", lambda row, shapes: images)
    figures.draw_idea([], None)
    titles = [ax.get_title() for ax in panels[0]]
    assert titles[1:] == ["through ridge fits: MCC 0.25", "through Lasso fits: MCC 0.75"]


def test_rows_of_other_codes_are_told(monkeypatch, capsys):
    rows = [{"code": code, "folder": "there"} for code in "baa"]
    monkeypatch.setattr(figures, "read_table", lambda *args: rows)
    assert figures.finished_rows(figures.Figure("fig11")) == rows
    out = capsys.readouterr().out
    assert "2 different codes: a, b" in out and "1 of 4 runs are missing" in out


def test_few_shot_lines_are_means_over_seeds(panels):
    rows = [
        {"eps": eps, "mcc": eps + 0.1 * seed, "r": 0.5} for eps in (0.0, 0.3) for seed in (0, 1)
    ]
    figures.draw_against_eps(rows, None, ("mcc", "r"))
    _, means, spreads = line_of(panels[0][0].containers[0])
    np.testing.assert_allclose(means, [0.05, 0.35])
    np.testing.assert_allclose(spreads, plots.sample_deviation([0, 0.1]))


def test_matched_features_stand_in_their_factors_place():
    C = np.array([[0.1, 0.9, 0.2, 0.0], [0.3, 0.1, 0.8, 0.1], [0.7, 0.2, 0.1, 0.3]])
    _, ax = plots.subplots(1, 1, (2, 2))
    plots.show_correlation(ax, C, ([0, 1, 2], [1, 2, 0]), "abc")
    panels = np.asarray(ax.images[0].get_array())
    np.testing.assert_array_equal(panels, C[:, [1, 2, 0, 3]])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "2", "0", "3"]
    pyplot.close("all")


def test_encoders_that_were_trained_twice_are_told(capsys):
    rows = [{"encoder": name} for name in ("", "a-1", "a-1", "b-2")] + [{}]
    figures.tell_encoders(rows)
    assert capsys.readouterr().out == ""
    figures.tell_encoders([*rows, {"encoder": "b-3"}])
    assert capsys.readouterr().out.endswith("with other features: b\n")


def test_responses_are_in_deviations_of_each_feature_in_its_factors_place(panels, pictures):
    """Two features of two factors, in the other order, of mean 5 and of deviations 2 and 3."""
    factors = np.stack(np.unravel_index(np.arange(12), (3, 4)), axis=1)

    def features(index):
        return 5 + factors[index][:, ::-1] * [2.0, 3.0]

    class Grid(types.SimpleNamespace):
        def __len__(self):
            return 12

    grid = Grid(names=("a", "b"), factors=factors,
                images=lambda index: np.zeros((len(index), 8, 8, 3)))
    F = features(np.arange(12))
    plots.draw_responses(features, grid, F, ([0, 1], [1, 0]), None)
    axes = np.reshape(panels[0][:6], (3, 2))
    assert axes[1, 0].get_ylabel() == "feature 1" and axes[1, 0].get_title() == "a varied"
    one, other = (ax.lines[0].get_ydata() for ax in (axes[1, 0], axes[2, 1]))
    np.testing.assert_allclose(one, (np.arange(3) - 1) / np.std(np.arange(3)))
    np.testing.assert_allclose(other, (np.arange(4) - 1.5) / np.std(np.arange(4)))
    assert np.ptp(axes[1, 1].lines[0].get_ydata()) == 0  # feature 1 follows a alone
    shaded = [ax.get_facecolor() == axes[1, 0].get_facecolor() for ax in axes[1:].ravel()]
    assert shaded == [True, False, False, True]


def test_the_matrix_of_correlations_tells_their_mcc(panels, pictures):
    C = np.array([[0.9, 0.8], [0.85, 0.1]])
    plots.draw_correlation(C, (np.array([0, 1]), np.array([1, 0])), "ab", None)
    assert panels[0][0].get_title() == "|correlation|, MCC 0.825"  # not the mean of the largest


def test_a_runs_features_are_matched_with_the_factors_of_the_same_images(monkeypatch):
    """Of images that are their factors, in the other order."""
    shapes = data.Shapes3D()
    monkeypatch.setattr(shapes, "images", lambda index: shapes.factors[index].astype(float))
    monkeypatch.setattr(figures, "encode_images", lambda path, x: -x[:, ::-1])
    own = figures.encoded({"folder": "there"}, shapes)
    assert own.F.shape == (2000, 6) and own.matched[1].tolist() == [5, 4, 3, 2, 1, 0]
    assert own.C[own.matched].min() > 0.9


def test_a_training_is_drawn_with_its_eps_and_chance(panels, pictures):
    rows = [{"step": s, "loss": s / 10, "nonzero": s / 20, "mcc": s / 30, "eps": s / 40}
            for s in (1, 5)]
    plots.draw_training(rows, None, {"loss": "a", "nonzero": "b", "mcc": "c"}, 0.6)
    lines = [[line.get_xydata().tolist() for line in ax.lines] for ax in panels[0]]
    loss, nonzero, mcc, eps = ([[s, s / by] for s in (1, 5)] for by in (10, 20, 30, 40))
    assert lines[0] == [loss] and lines[1] == [nonzero, eps] and lines[2][0] == mcc
    assert [y for _, y in lines[2][1]] == [0.6, 0.6]
    assert [ax.get_title() for ax in panels[0]] == ["a", "b", "c"]
