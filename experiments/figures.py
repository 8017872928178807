"""figures.py -- the figures, each drawn from the table of its sweep.

    run.py sweep main --jobs 2        the runs; then
    run.py figure fig4                the figure, from all that are finished

    FIGURES   name -> draw(rows, path), of the rows of the table of the sweep SWEEP_OF[name]
    ALONE     name -> draw(path), figures that need no runs
    cell      settings that rows have in common, as a dict

Figs. 1 to 3 are drawn in regression.py and theory.py, Fig. 5 in fewshot.py, [F23]'s in sharing.py.
The runs are listed in sweeps.py. A method has one colour in every figure, bars are means over seeds
with their standard deviation, and a dotted line is the MCC of a random mixing of the factors.
"""
import dataclasses
import os
from collections import namedtuple
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.colors import LogNorm
from sklearn.linear_model import lasso_path

import data
import metrics
import solvers
from experiments import beyond, entropy, fewshot, plots, regression, rotation, sharing, theory
from experiments.apply import encode_images
from experiments.settings import option, out_path
from experiments.sweeps import (
    IDEA,
    RESPONSES,
    SCALES,
    SWEEP_OF,
    drawn_from,
    read_table,
    sweep_configs,
    where,
)

# A line or a bar: what the name of its heads ends with, what its scores' do, label and colour.
Method = namedtuple("Method", "penalty suffix label color")
LASSO, RIDGE = Method("lasso", "", "Lasso", "C0"), Method("ridge", "", "Ridge", "C1")
RIDGE_ICA = Method("ridge", "_ica", "Ridge + ICA", "C3")
RIDGE_ROTATED = Method("ridge", "_rotated", "Ridge + rotation", "C2")
SHOWN = (LASSO, RIDGE, RIDGE_ICA, RIDGE_ROTATED)

EPS_AXIS = "$\\epsilon = \\lambda/\\lambda_{max}$"
LABELS = {
    "mcc": "MCC", "r": "R", "dci_d": "DCI-D", "dci_c": "DCI-C", "off": "share of features off",
    "rho": "correlation of the factors, $\\rho$", "alpha": "noise on the factors, $\\alpha$"}


def of_method(rows, method):
    """The rows of a method's heads."""
    return [row for row in rows if row["head"].endswith(method.penalty)]


def told(rows, score, methods=SHOWN):
    """The methods of which rows tell a score: tables of older code have no rotation."""
    return [method for method in methods if any(score + method.suffix in row for row in rows)]


def draw_chance(ax):
    """The MCC of a random mixing of six factors into six features."""
    ax.axhline(metrics.chance(6, 6), **plots.CHANCE)


def save_with_legend(fig, ax, path, columns):
    """Save a figure with the legend of one of its axes above all."""
    handles, labels = ax.get_legend_handles_labels()
    fig.legend(handles, labels, fontsize=8, ncols=columns, loc="outside upper center")
    plots.save(fig, path)


# ------------------------------------------------------------------------------ bars over eps


def draw_bars(rows, path, panels, scores):
    """Scores, a row of axes each, against eps; panels title -> cell.    [L23, Figs. 8 and 10]"""
    size = max(4.6, 3.3 * len(panels)), 2.3 * len(scores) + 0.6
    fig, axes = plots.subplots(len(scores), len(panels), size)
    axes = np.reshape(axes, (len(scores), len(panels)))
    for column, (title, cell) in zip(axes.T, panels.items(), strict=True):
        for ax, score in zip(column, scores, strict=True):
            draw_groups(ax, where(rows, cell), score)
        column[0].set_title(title, fontsize=10)
        column[-1].set_xlabel(EPS_AXIS)
    for ax, score in zip(axes[:, 0], scores, strict=True):
        ax.set_ylabel(LABELS[score])
    save_with_legend(fig, axes[0, 0], path, columns=5 if len(panels) > 1 else 2)


def draw_groups(ax, rows, score, methods=SHOWN):
    """For each eps a group of bars, one for each method: mean and deviation over seeds."""
    eps = sorted({row["eps"] for row in rows})
    kind = rows[0]["head"].split("-")[0] if rows else ""            # inner or outer
    methods = told(rows, score, methods)
    width = 0.8 / max(1, len(methods))
    for j, method in enumerate(methods):
        own = of_method(rows, method)
        groups = [scores_at(own, e, score + method.suffix) for e in eps]
        place = np.arange(len(eps)) + width * (j - (len(methods) - 1) / 2)
        means = [np.mean(group) for group in groups]
        spreads = [plots.sample_deviation(group) for group in groups]
        label = f"{kind}-{method.label}"
        ax.bar(place, means, 0.9 * width, yerr=spreads, capsize=2, color=method.color, label=label)
    ax.set_ylim(0, 1.02)
    ax.set_xticks(range(len(eps)), [f"{e:g}" for e in eps])
    if score == "mcc":
        draw_chance(ax)


def scores_at(rows, eps, key):
    """A score of the runs at an eps; NaN where there is none."""
    return [row.get(key, np.nan) for row in where(rows, {"eps": eps})] or [np.nan]


def draw_block_share(rows, path):
    """The share of |L| inside the blocks in which factors come.    [L23, after Assumption 3.6]"""
    fig, axes = plots.subplots(1, 2, (7.6, 3))
    for ax, size in zip(axes, (2, 3), strict=True):
        inside = where(rows, {"tasks": f"blocks-{size}"})
        draw_groups(ax, inside, f"block_share_{size}", (LASSO, RIDGE))
        ax.axhline(size / 6, color="grey", ls="--", label="spread evenly")
        ax.set(title=f"block size {size}", xlabel=EPS_AXIS)
    axes[0].set_ylabel("share of |L| inside blocks")
    save_with_legend(fig, axes[0], path, columns=3)


# ------------------------------------------------------------------------------ Figs. 4, 6, 9, 15

# A row of axes: bars over eps in two cells, then the best eps of a cell against a variable.
Band = namedtuple("Band", "left middle variable cell")
RHO_9 = {"rho": 0.9, "alpha": 1.0}
BY_RHO = Band({"rho": 0.0, "alpha": 1.0}, RHO_9, "rho", {"alpha": 1.0})
BY_ALPHA = Band({"rho": 0.9, "alpha": 0.0}, RHO_9, "alpha", {"rho": 0.9})


def draw_bands(rows, path, lines):
    """Bars and curves of scores, a row of axes for each pair (score, band).    [L23, Fig. 4]"""
    fig, axes = plots.subplots(len(lines), 3, (10, 2.3 * len(lines) + 0.6))
    for line, (score, band) in zip(axes, lines, strict=True):
        for ax, cell in zip(line, (band.left, band.middle), strict=False):
            draw_groups(ax, where(rows, cell), score)
            ax.set(title=f"$\\{band.variable}$ = {cell[band.variable]:g}", xlabel=EPS_AXIS)
        draw_best(line[2], where(rows, band.cell), band.variable, score)
        line[0].set_ylabel(LABELS[score])
    save_with_legend(fig, axes[0, 0], path, columns=5)


def draw_best(ax, rows, variable, score):
    """A score of each method against a variable, at the eps that is best for it, of each seed by
    itself, as the published code chooses. The thin line takes one eps for all seeds: the one of the
    best mean MCC, whatever the score. No axes without values in between."""
    levels = sorted({row[variable] for row in rows})
    if len(levels) < 3:
        ax.set_axis_off()
        return
    for method in told(rows, score):
        alike, key = searched_alike(of_method(rows, method), variable), score + method.suffix
        groups = [best_of_seeds(own, key) for own in alike.values()]
        style = "x:" if method is RIDGE_ROTATED else "o-"           # Lasso's line lies under it
        plots.draw_line(ax, list(alike), groups, f"inner-{method.label}", method.color, style)
        one_eps = [best_eps(own, "mcc" + method.suffix) for own in alike.values()]
        means = [np.mean([row.get(key, np.nan) for row in same] or [np.nan]) for same in one_eps]
        ax.plot(list(alike), means, color=method.color, lw=0.7)
    if score == "mcc":
        draw_chance(ax)
    ax.set(title="best $\\epsilon$ of each seed", xlabel=LABELS[variable], ylim=(0, 1.02))
    if variable == "rho":
        plots.tell_realised(ax, levels)


def searched_alike(rows, variable):
    """Level of a variable -> its rows, of the eps that every level has."""
    levels = sorted({row[variable] for row in rows})
    tried = [{row["eps"] for row in where(rows, {variable: level})} for level in levels]
    common = set.intersection(*tried) if tried else set()
    return {level: [row for row in where(rows, {variable: level}) if row["eps"] in common]
            for level in levels}


def best_of_seeds(rows, key):
    """The largest score of each seed."""
    scores = {}
    for row in rows:
        scores.setdefault(row["seed"], []).append(row.get(key, np.nan))
    return [max(found) for found in scores.values()]


def best_eps(rows, key):
    """The rows of the eps whose mean score is highest."""
    each = [where(rows, {"eps": eps}) for eps in sorted({row["eps"] for row in rows})]
    return max(each, key=lambda same: np.mean([row.get(key, np.nan) for row in same]), default=[])


def draw_against_rho(rows, path):
    """MCC and R against the correlation of the factors: Figs. 4 and 6, right."""
    fig, axes = plots.subplots(1, 2, (7.6, 3.2))
    for ax, score in zip(axes, ("mcc", "r"), strict=True):
        draw_best(ax, where(rows, BY_RHO.cell), "rho", score)
        ax.set(ylabel=LABELS[score], title="")
    save_with_legend(fig, axes[0], path, columns=4)


def draw_against_eps(rows, path, keys):
    """Scores of few-shot runs against eps, mean and deviation over seeds."""
    fig, ax = plots.subplots(1, 1, (5.2, 3.4))
    eps = sorted({row["eps"] for row in rows})
    for k, key in enumerate(keys):
        groups = [scores_at(rows, e, key) for e in eps]
        plots.draw_line(ax, range(len(eps)), groups, LABELS.get(key, key), f"C{k}")
    draw_chance(ax)
    ax.set(xlabel="$\\epsilon = \\lambda_1/\\lambda_{max}$", ylim=(0, 1.02))
    ax.set_xticks(range(len(eps)), eps)
    fig.legend(fontsize=7, ncols=3, loc="outside upper center")
    plots.save(fig, path)


# ------------------------------------------------------------------------------ latents, responses


BINS = 30  # a side of a histogram of two factors


def draw_latents(path):
    """[L23, Fig. 7]: the joint distribution of every two factors, for four pairs of rho and alpha,
    in squares of 0.12 deviations."""
    shapes = data.Shapes3D()
    pairs = [(rho, alpha) for rho in (0.0, 0.9) for alpha in (0.0, 1.0)]
    tiles = [tile_of_pairs(*data.latents(shapes, alpha, rho)) for rho, alpha in pairs]
    levels = LogNorm(1e-6, max(map(np.max, tiles)))
    fig, axes = plots.subplots(2, 2, (10, 9.4))
    middles = BINS * (np.arange(len(shapes.names)) + 0.5) - 0.5
    for ax, tile, (rho, alpha) in zip(axes.ravel(), tiles, pairs, strict=True):
        image = ax.imshow(np.where(tile > 0, tile, np.nan), cmap="viridis", norm=levels)
        ax.set(title=f"$\\rho$ = {rho:g}, $\\alpha$ = {alpha:g}, realised correlation "
                     f"{abs(plots.realised_correlation(rho, alpha)):.2f}")
        ax.set_xticks(middles, shapes.names, fontsize=8)
        ax.set_yticks(middles, shapes.names, fontsize=8, rotation=90, va="center")
        for edge in BINS * np.arange(1, len(middles)) - 0.5:
            ax.axhline(edge, color="grey", lw=1)
            ax.axvline(edge, color="grey", lw=1)
    fig.colorbar(image, ax=axes, shrink=0.6, extend="min",
                 label="probability of a square of 0.12 deviations; down and right: larger values")
    plots.save(fig, path)


def tile_of_pairs(z, p):
    """The histograms of every two columns of z (N, d) under p, side by side, (d BINS, d BINS)."""
    edges = np.linspace(-1.8, 1.8, BINS + 1)                        # all of z is inside
    rows = [[np.histogram2d(a, b, edges, weights=p)[0] for b in z.T] for a in z.T]
    return np.block(rows)


def row_of(rows, part, sweep="responses"):
    """The row of a finished run that a part of one run of a sweep names."""
    (cell,), (head,), (eps,) = part.cells, part.heads, part.eps
    wanted = {"head": head, "eps": eps, **cell}
    inside = where(rows, wanted)
    if not inside:
        raise ValueError(f"no finished run with {wanted}: run.py sweep {sweep}")
    return inside[0]


# Features of 2,000 images by a run's encoder: F, features(index), |correlation| and its matching.
EncodedImages = namedtuple("EncodedImages", "F features C matched")


def encoded(row, shapes):
    """The EncodedImages of a run."""
    def features(index):
        return encode_images(Path(row["folder"]) / "checkpoint.npz", shapes.images(index))

    index = np.random.default_rng(0).integers(data.N_IMAGES, size=2000)
    z, _ = data.latents(shapes)
    F = features(index)
    C = metrics.correlation(z[index], F)
    return EncodedImages(F, features, C, metrics.match(C))


def draw_run_responses(rows, path, part, printed):
    """Latent responses of one run, its MCC beside the one that is printed.    [L23, Figs. 11-14]"""
    row, shapes = row_of(rows, part), data.Shapes3D()
    own = encoded(row, shapes)
    title = (f"{row['head']}, $\\epsilon$ = {row['eps']:g}, $\\rho$ = {row['rho']:g}: "
             f"MCC {row['mcc']:.3f} (the paper: {printed})")
    plots.draw_responses(own.features, shapes, own.F, own.matched, path, title)


def draw_idea(rows, path):
    """What goes in, images whose factors are correlated, and what ridge and Lasso make of it."""
    shapes = data.Shapes3D()
    _, p = data.latents(shapes, alpha=1.0, rho=0.9)
    drawn = np.random.default_rng(3).choice(len(p), size=12, p=p)
    fig, axes = plots.subplots(1, 3, (11.5, 4), width_ratios=(1.15, 1, 1))
    tiles = shapes.images(drawn).reshape(4, 3, data.SIDE, data.SIDE, 3)
    axes[0].imshow(tiles.transpose(0, 2, 1, 3, 4).reshape(4 * data.SIDE, 3 * data.SIDE, 3))
    realised = abs(plots.realised_correlation(0.9))
    title = f"training images: correlation {realised:.2f} ($\\rho$ = 0.9)"
    axes[0].set(xticks=[], yticks=[], title=title)
    for ax, part, label in ((axes[1], IDEA[1], "ridge"), (axes[2], IDEA[0], "Lasso")):
        row = row_of(rows, part, "idea")
        own = encoded(row, shapes)
        plots.show_correlation(ax, own.C, own.matched, shapes.names)
        ax.set(xlabel="feature", title=f"through {label} fits: MCC {row['mcc']:.2f}")
    caption = "|correlation| of factors and features, on images of independent factors"
    fig.supxlabel(caption, fontsize=9)
    plots.save(fig, path)


# ------------------------------------------------------------------------------ for derivations.md


def draw_thresholds(path):
    """The operators of solvers.py in pictures, and a Lasso path, whose support changes."""
    fig, axes = plots.subplots(1, 4, (14, 3.2))
    draw_soft_threshold(axes[0])
    draw_block_threshold(axes[1])
    draw_projection(axes[2])
    draw_lasso_path(axes[3])
    plots.save(fig, path)


def draw_soft_threshold(ax):
    """ST(a, 1) beside a."""
    a = np.linspace(-3, 3, 301)
    ax.plot(a, solvers.soft_threshold(a, 1.0), label="ST(a, 1)")
    ax.plot(a, a, ":", color="grey", label="a")
    ax.set(title="soft thresholding", xlabel="a")
    ax.legend()


def draw_block_threshold(ax):
    """Where BST(V, 1) moves the points of the plane."""
    grid = np.linspace(-2.5, 2.5, 11)
    V = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    moved = solvers.block_soft_threshold(V, 1.0) - V
    ax.quiver(*V.T, *moved.T, angles="xy", scale_units="xy", scale=1, width=0.004, color="C0")
    angle = np.linspace(0, 2 * np.pi, 100)
    ax.plot(np.cos(angle), np.sin(angle), color="C1")
    ax.set(title="BST(V, 1): the disc goes to 0", aspect="equal")
    ax.set(xlim=(-2.8, 2.8), ylim=(-2.8, 2.8))


def draw_projection(ax):
    """Points of the plane and their projections on the simplex."""
    points = np.random.default_rng(0).uniform(-0.6, 1.8, (14, 2))
    for v in points:
        x = solvers.project_simplex(v)
        ax.plot([v[0], x[0]], [v[1], x[1]], "-", color="C0", lw=0.8)
        ax.plot(x[0], x[1], ".", color="C1")
    ax.plot([0, 1], [1, 0], color="k")
    ax.set(title="projection on the simplex, k = 2", aspect="equal")


def draw_lasso_path(ax):
    """The solutions w of one Lasso against lam, by scikit-learn."""
    rng = np.random.default_rng(1)
    F = rng.standard_normal((40, 5)) @ np.linalg.cholesky(0.3 * np.eye(5) + 0.7).T
    w_true = [1.5, -1, 0.5, 0, 0]
    lam, w, _ = lasso_path(F, F @ w_true + 0.3 * rng.standard_normal(40))
    ax.plot(lam, w.T)
    ax.set(title="a Lasso path", xlabel="$\\lambda$", xscale="log", ylabel="w")


# ------------------------------------------------------------------------------ the command

BLOCK_SIZES = {f"block size {size}": {"tasks": f"blocks-{size}"} for size in (2, 3, 6)}
MCC_BANDS = [("mcc", BY_RHO), ("mcc", BY_ALPHA)]
DCI_BANDS = [(score, band) for band in (BY_RHO, BY_ALPHA) for score in ("dci_d", "dci_c")]
PRINTED = (0.99, 0.63, 0.96, 0.79)                                  # MCC of Figs. 11 to 14

FIGURES = {
    "fig4": partial(draw_bands, lines=MCC_BANDS),
    "fig5": fewshot.draw_fig5,
    "fig6": partial(draw_bands, lines=[("r", BY_RHO), ("r", BY_ALPHA)]),
    "fig8": partial(draw_bars, panels=BLOCK_SIZES, scores=("mcc", "r")),
    "fig9": partial(draw_bands, lines=MCC_BANDS),                   # Laplace coefficients
    "fig10": partial(draw_bars, panels={"outer regularisation": RHO_9}, scores=("mcc", "r")),
    "fig15": partial(draw_bands, lines=DCI_BANDS),
    "idea": draw_idea,
    "rho": draw_against_rho,
    "blocks": draw_block_share,
    "conjecture": partial(draw_against_eps, keys=("mcc", "r", "dci_d", "accuracy", "off")),
    "sharing": sharing.draw_sharing,
    "methods": sharing.print_methods,
    "rotation": rotation.draw, "problem4": beyond.draw_problem4, "pools": beyond.draw_pools,
    "mixing": beyond.draw_mixing, "exactness": beyond.draw_exactness,
    "patience": beyond.draw_patience,
    "encoders": beyond.draw_encoders, "shared": beyond.draw_shared,
    "penalties": beyond.draw_penalties, "subsets": beyond.draw_subsets,
    "transfer": beyond.draw_transfer, "seen": beyond.draw_seen}
for number, (part, printed) in enumerate(zip(RESPONSES, PRINTED, strict=True), 11):
    FIGURES[f"fig{number}"] = partial(draw_run_responses, part=part, printed=printed)

ALONE = {
    "fig2": theory.draw_fig2, "fig3": theory.draw_fig3, "fig7": draw_latents,
    "thresholds": draw_thresholds, "theorem": theory.draw_theorem,
    "entropy": entropy.draw_entropy}


@dataclasses.dataclass(frozen=True)
class Figure:
    """Draw a figure of [L23] or [F23] from its sweep's table, or one that needs no runs."""

    name: str = option(
        None, "a figure of [L23] by its number, or one of ours", positional=True,
        choices=("fig1", *ALONE, *FIGURES))
    cov: str = option("ar", "fig1: covariance of the factors", choices=("ar", "identity"))
    noise: str = option(
        "absolute", "fig1: a variance of 0.04, or of 0.04 of the signal's",
        choices=("absolute", "relative"))
    varies: str = option(
        "all", "fig1: what the seeds draw anew; all, or of one task whose w and data are kept",
        choices=regression.VARIES)
    jobs: int = option(os.cpu_count() or 1, "fig1: processes", 1, 1024)
    scale: str = option("quick", "of the sweep", choices=tuple(SCALES))
    out: str = option(
        "", "the picture to write; when not given it is in the folder of results, or in results/ "
        "where that folder holds tables only")
    results: str = option("results", "folder of the results")


def figure(config):
    """Draw it, and print where it is."""
    name, tables = config.name, Path(config.results)
    of_tables = name in FIGURES and not any(tables.glob("*/*/config.json"))
    folder = Path("results") if of_tables else tables               # docs/ holds tables alone
    rows = finished_rows(config) if name in FIGURES else []
    config = dataclasses.replace(config, results=str(folder))
    if name == "fig1":
        words = ["fig1", config.cov, config.noise, *([config.varies] * (config.varies != "all"))]
        path = out_path(config, f"{'-'.join(words)}.png", rows=True)
        regression.draw_fig1(config.cov, config.noise, config.varies, config.jobs, path)
    elif name in ALONE:
        path = out_path(config, f"{name}.png", rows=True)
        ALONE[name](path)
    else:
        path = out_path(config, f"{name}-{config.scale}.png", rows=True)
        more = [tables / f"rotation-points-{config.scale}.csv"] if name == "rotation" else []
        FIGURES[name](rows, path, *more)
        if name == "methods":                                       # a table, which is printed
            path = f"{len(rows)} runs"
    print(path)


def finished_rows(config):
    """The rows of a figure's sweep; says how many of its runs are missing."""
    sweep = SWEEP_OF[config.name]
    planned = len(sweep_configs(sweep, config.scale, config.results))
    rows = drawn_from(sweep, read_table(sweep, config.scale, config.results))
    command = f"run.py sweep {sweep} --scale {config.scale}"
    if not rows:
        raise ValueError(f"{config.results}: no run of sweep {sweep} is finished; {command}")
    codes = {row["code"] for row in rows}
    if len(codes) > 1:
        print(f"these runs were made by {len(codes)} different codes: {', '.join(sorted(codes))}")
    tell_encoders(rows)
    if len(rows) < planned:
        print(f"{planned - len(rows)} of {planned} runs are missing: {command}")
    return rows


def tell_encoders(rows):
    """Say which encoders, on whose features rows are, were trained more than once, with another
    outcome: what differs between these rows may be that."""
    digests = {}                                                    # run of an encoder -> digests
    for row in rows:
        run, _, digest = row.get("encoder", "").partition("-")
        digests.setdefault(run, set()).add(digest)
    twice = [run for run, of_it in digests.items() if len(of_it) > 1]
    if twice:
        print(f"of these encoders there is more than one, with other features: {', '.join(twice)}")
