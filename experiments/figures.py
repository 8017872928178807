"""figures.py -- the figures, each drawn from the table of its sweep.

    run.py sweep main --jobs 2        the runs; then
    run.py figure fig4                the figure, from all that are finished

    FIGURES   name -> draw(rows, path), of the rows of the table of the sweep SWEEP_OF[name]
    ALONE     name -> draw(path), figures that need no runs
    cell      settings that rows have in common, as a dict
    panels    what a row of axes shows, a column each: title -> cell, or variable -> cell

Figs. 1 to 3 are drawn in regression.py and theory.py, Fig. 5 in fewshot.py, [F23]'s in sharing.py.
The runs are listed in sweeps.py. A method has one colour in every figure.
"""
import dataclasses
import os
from collections import namedtuple
from functools import partial
from pathlib import Path

import numpy as np
from sklearn.linear_model import lasso_path

import data
import metrics
import solvers
from experiments import fewshot, plots, regression, sharing, theory
from experiments.apply import encode_images
from experiments.settings import option
from experiments.sweeps import SCALES, SWEEP_OF, read_table, sweep_configs, where

# A line or a bar: what the name of its heads ends with, what its scores' do, label and colour.
Method = namedtuple("Method", "penalty suffix label color")
LASSO, RIDGE = Method("lasso", "", "Lasso", "C0"), Method("ridge", "", "Ridge", "C1")
LASSO_ICA = Method("lasso", "_ica", "Lasso + ICA", "C9")
RIDGE_ICA = Method("ridge", "_ica", "Ridge + ICA", "C3")
METHODS = (LASSO, LASSO_ICA, RIDGE, RIDGE_ICA)

LABELS = {
    "mcc": "MCC", "r": "R", "dci_d": "DCI disentanglement", "dci_c": "DCI completeness",
    "off": "share of features off"}


def of_method(rows, method):
    """The rows of a method's heads."""
    return [row for row in rows if row["head"].endswith(method.penalty)]


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
    """Scores, a row of axes each, against eps; panels title -> cell.  [L23, Figs. 4, 6, 14, 15]"""
    size = 4.2 * len(panels), 2.6 * len(scores) + 0.6
    fig, axes = plots.subplots(len(scores), len(panels), size)
    axes = np.reshape(axes, (len(scores), len(panels)))
    for column, (title, cell) in zip(axes.T, panels.items(), strict=True):
        inside = where(rows, cell)
        for ax, score in zip(column, scores, strict=True):
            draw_groups(ax, inside, score)
        column[0].set_title(title)
        column[-1].set_xlabel("$\\lambda/\\lambda_{max}$")
    for ax, score in zip(axes[:, 0], scores, strict=True):
        ax.set_ylabel(LABELS[score])
    save_with_legend(fig, axes[0, -1], path, columns=5 if len(panels) > 1 else 2)


def draw_groups(ax, rows, score):
    """For each eps a group of bars, one for each method: mean and deviation over seeds."""
    eps = sorted({row["eps"] for row in rows})
    kind = rows[0]["head"].split("-")[0] if rows else ""            # inner or outer
    for j, method in enumerate(METHODS):
        if score == "r" and method.suffix:
            continue                                                # R does not see a linear map
        own = of_method(rows, method)
        groups = [scores_at(own, e, score + method.suffix) for e in eps]
        place = np.arange(len(eps)) + 0.2 * (j - 1.5)
        means = [np.mean(group) for group in groups]
        spreads = [np.std(group) for group in groups]
        label = f"{kind}-{method.label}"
        ax.bar(place, means, 0.18, yerr=spreads, capsize=2, color=method.color, label=label)
    ax.set_ylim(0, 1.02)
    ax.set_xticks(range(len(eps)), eps)
    if score == "mcc":
        draw_chance(ax)


def scores_at(rows, eps, key):
    """A score of the runs at an eps; NaN where there is none."""
    return [row[key] for row in where(rows, {"eps": eps})] or [np.nan]


# ------------------------------------------------------------------------------ lines


def draw_best(rows, path, panels):
    """MCC and R of the best eps against a setting; panels variable -> cell.    [L23, Fig. 7]"""
    fig, axes = plots.subplots(2, len(panels), (max(5.4, 4.2 * len(panels)), 5.2))
    axes = np.reshape(axes, (2, len(panels)))
    for column, (variable, cell) in zip(axes.T, panels.items(), strict=True):
        inside = where(rows, cell)
        for ax, score in zip(column, ("mcc", "r"), strict=True):
            for method in METHODS:
                draw_best_line(ax, of_method(inside, method), variable, method, score)
            ax.set(ylim=(0.3, 1.02), xlabel=variable, ylabel=f"{LABELS[score]}, best eps")
        draw_chance(column[0])
    save_with_legend(fig, axes[0, 0], path, columns=5 if len(panels) > 1 else 3)


def draw_best_line(ax, rows, variable, method, score):
    """A score of the best runs of a method against a variable."""
    levels = sorted({row[variable] for row in rows})
    groups = [best_of_seeds(where(rows, {variable: level}), method, score) for level in levels]
    plots.draw_line(ax, levels, groups, f"inner-{method.label}", method.color)


def best_of_seeds(rows, method, score):
    """For each seed, a score of its run of highest MCC."""
    best = {}
    for row in sorted(rows, key=lambda row: row["mcc" + method.suffix]):
        best[row["seed"]] = row[score + method.suffix]              # the last one stays
    return list(best.values())


def draw_blocks(rows, path):
    """MCC, R and the share of |L| inside the blocks, against the blocks' size.  [L23, Fig. 8]"""
    fig, axes = plots.subplots(1, 3, (11, 3))
    for ax, score in zip(axes, ("mcc", "r", "block_share"), strict=True):
        sizes = [2, 3] if score == "block_share" else [2, 3, 6]
        for method in (LASSO, RIDGE):
            draw_block_lines(ax, of_method(rows, method), method, score, sizes)
        title = LABELS.get(score, "share of |L| inside blocks")
        ax.set(xlabel="block size", ylim=(0, 1.03), xticks=sizes, title=title)
    draw_chance(axes[0])
    axes[2].plot([2, 3], [2 / 6, 3 / 6], color="grey", ls=":", label="spread evenly")
    axes[0].legend(fontsize=7)
    axes[2].legend(fontsize=7)
    plots.save(fig, path)


def draw_block_lines(ax, rows, method, score, sizes):
    """A score of a method against the size of blocks, a line for each eps."""
    eps = sorted({row["eps"] for row in rows})
    styles = ("o--", "s-", "^:", "v-.", "d-", "x-")
    for e, style in zip(eps, styles, strict=False):
        groups = []
        for size in sizes:
            key = f"block_share_{size}" if score == "block_share" else score
            cell = {"eps": e, "tasks": f"blocks-{size}"}
            groups.append([row[key] for row in where(rows, cell)])
        label = f"inner-{method.label}, eps {e}"
        plots.draw_line(ax, sizes, groups, label, method.color, style)


def draw_against_eps(rows, path, keys):
    """Scores of few-shot runs against eps, mean and deviation over seeds."""
    fig, ax = plots.subplots(1, 1, (5.2, 3.4))
    eps = sorted({row["eps"] for row in rows})
    for k, key in enumerate(keys):
        groups = [scores_at(rows, e, key) for e in eps]
        plots.draw_line(ax, range(len(eps)), groups, LABELS.get(key, key), f"C{k}")
    draw_chance(ax)
    ax.set(xlabel="$\\lambda_1/\\lambda_{max}$", ylim=(0, 1.02))
    ax.set_xticks(range(len(eps)), eps)
    fig.legend(fontsize=7, ncols=3, loc="outside upper center")
    plots.save(fig, path)


# ------------------------------------------------------------------------------ latent responses


def draw_best_responses(rows, path, cell):
    """Latent responses of a cell's run of highest MCC.    [L23, Figs. 11 to 13]"""
    inside = where(rows, cell)
    if not inside:
        raise ValueError(f"no finished run with {cell}: run its sweep first")
    best = max(inside, key=lambda row: row["mcc"])
    checkpoint = Path(best["folder"]) / "checkpoint.npz"
    shapes = data.Shapes3D()
    z, _ = data.latents(shapes)

    def features(index):
        return encode_images(checkpoint, shapes.images(index))

    index = np.random.default_rng(0).integers(data.N_IMAGES, size=2000)
    F = features(index)
    matched = metrics.match(metrics.correlation(z[index], F))
    plots.draw_responses(features, shapes.factors, data.FACTORS, F, matched, path)


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

RHO_0, RHO_9 = {"rho": 0.0, "alpha": 1.0}, {"rho": 0.9, "alpha": 1.0}
ALPHA_0 = {"rho": 0.0, "alpha": 0.0}                                # in RHO_0, alpha is 1
BY_RHO = {"rho = 0": RHO_0, "rho = 0.9": RHO_9}
BY_ALPHA = {"alpha = 0": ALPHA_0, "alpha = 1": RHO_0}
BY_BOTH = BY_RHO | {"alpha = 0": ALPHA_0}
AT_RHO_9 = {"rho = 0.9": RHO_9}
AGAINST_RHO, AGAINST_ALPHA = {"rho": {"alpha": 1.0}}, {"alpha": {"rho": 0.0}}
MCC_R = ("mcc", "r")

FIGURES = {
    "fig4": partial(draw_bars, panels=BY_RHO, scores=MCC_R),
    "fig5": fewshot.draw_fig5,
    "fig6": partial(draw_bars, panels=BY_ALPHA, scores=MCC_R),
    "fig7": partial(draw_best, panels=AGAINST_RHO | AGAINST_ALPHA),
    "fig8": draw_blocks,
    "fig9": partial(draw_bars, panels=AT_RHO_9, scores=MCC_R),      # Laplace coefficients
    "fig10": partial(draw_bars, panels=AT_RHO_9, scores=MCC_R),     # outer regularisation
    "fig11": partial(draw_best_responses, cell={"head": "inner-lasso", **RHO_0}),
    "fig12": partial(draw_best_responses, cell={"head": "inner-lasso", **RHO_9}),
    "fig13": partial(draw_best_responses, cell={"head": "inner-ridge", **RHO_9}),
    "fig14": partial(draw_bars, panels=BY_BOTH, scores=["dci_d"]),
    "fig15": partial(draw_bars, panels=BY_BOTH, scores=["dci_c"]),
    "rho": partial(draw_best, panels=AGAINST_RHO),
    "conjecture": partial(draw_against_eps, keys=(*MCC_R, "dci_d", "accuracy", "off")),
    "sharing": sharing.draw_sharing,
    "methods": sharing.print_methods}

ALONE = {"fig2": theory.draw_fig2, "fig3": theory.draw_fig3, "thresholds": draw_thresholds}


@dataclasses.dataclass(frozen=True)
class Figure:
    """Draw a figure of [L23] or [F23] from its sweep's table, or one that needs no runs."""

    name: str = option(
        None, "a figure of [L23] by its number, or one of ours", positional=True,
        choices=("fig1", *ALONE, *FIGURES))
    cov: str = option("ar", "fig1: covariance of the factors", choices=("ar", "identity"))
    jobs: int = option(os.cpu_count() or 1, "fig1: processes", 1)
    scale: str = option("quick", "of the sweep", choices=tuple(SCALES))
    out: str = option("", "the file to write; in the folder of results when not given")
    results: str = option("results", "folder of the results")


def figure(config):
    """Draw it, and print where it is."""
    name, folder = config.name, Path(config.results)
    folder.mkdir(parents=True, exist_ok=True)
    if name == "fig1":
        path = Path(config.out or folder / f"fig1-{config.cov}.png")
        regression.draw_fig1(config.cov, config.jobs, path)
    elif name in ALONE:
        path = Path(config.out or folder / f"{name}.png")
        ALONE[name](path)
    else:
        path = Path(config.out or folder / f"{name}-{config.scale}.png")
        rows = finished_rows(config)
        FIGURES[name](rows, path)
        if name == "methods":                                       # a table, which is printed
            path = f"{len(rows)} runs"
    print(path)


def finished_rows(config):
    """The rows of a figure's sweep; says how many of its runs are missing."""
    sweep = SWEEP_OF[config.name]
    configs = sweep_configs(sweep, config.scale, config.results)
    rows = read_table(configs)
    command = f"run.py sweep {sweep} --scale {config.scale}"
    if not rows:
        raise ValueError(f"{config.results}: no run of sweep {sweep} is finished; {command}")
    if len(rows) < len(configs):
        print(f"{len(configs) - len(rows)} of {len(configs)} runs are missing: {command}")
    return rows
