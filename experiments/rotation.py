"""rotation.py -- is training through sparse fits needed, or will a rotation afterwards do?

    run.py sweep rotation       the encoders: without penalty, through ridge, through the Lasso
    run.py figure rotation      rotates their features by ever more tasks, and draws three curves

    point     MCC of a run's features rotated by T fresh tasks, each on n images of its own: a row
              of RESULTS/rotation-points-SCALE.csv, made once
    pool      an encoder trained on the same K tasks again and again, --tasks finite-K, and rotated
              by these

Of inner-Lasso the curves show what training itself reaches: with n images a set, and on a pool of K
tasks. Where there are several eps the one of the best MCC is shown, for every method. The rotation
is sparsetasks.rotation.unmix; its tasks are disentangle.fresh_tasks.       [docs/rotation.md]
"""
import csv
import io
from collections import namedtuple
from functools import partial
from pathlib import Path

import numpy as np

import data
import metrics
import sparsedis
from experiments import disentangle, plots, results
from experiments.sweeps import RHOS, SAMPLES, USUAL_SAMPLES, where

TASKS, IMAGES = 1000, 50  # of the curves along which the other varies
EVALUATED = 20_000
FEWER = (10, 30, 100, 300)
SHORT = 200, 25  # fewer of both, for docs/rotation.md
HARD = 0.9  # the rho of the first two curves
USUAL = "bernoulli-gauss"

# code is the digest of the code that made the run's encoder; tables of older code do not tell it.
Point = namedtuple(
    "Point", "run rho head eps seed trained T n mcc identified stability code", defaults=("",))


# ------------------------------------------------------------------------------ points


def points_of(rows, path):
    """The Points of a sweep's runs; the table's, and those that it has not yet, added to it; says
    of how many runs they are missing for want of a checkpoint."""
    points = of_these_runs(read_points(path), rows)
    there = {(point.run, point.T, point.n) for point in points}
    missing, gone = {}, set()
    for row in rows:
        grid = [(T, n) for T, n in grid_of(row) if (row["run"], T, n) not in there]
        if grid and row["folder"]:
            missing[row["run"]] = row, grid
        elif grid:
            gone.add(row["run"])
    if gone:
        print(f"{len(gone)} runs are told by a table alone, and cannot be rotated")
    shapes = data.Shapes3D()
    for row, grid in results.progress(list(missing.values()), "rotations"):
        points += rotated(row, grid, shapes)
        write_points(points, path)
    return points


def of_these_runs(points, rows):
    """The points but those of a run that is here, and was made anew since by other code."""
    made_by = {row["run"]: row["code"] for row in rows if row["folder"]}
    return [point for point in points
            if point.code in ("", made_by.get(point.run, point.code))]


def grid_of(row):
    """The pairs (T, n) by which a run's features are rotated."""
    if row["tasks"] != USUAL:                                       # by the pool's own tasks
        return [] if row["eps"] else [(pool_of(row["tasks"]), IMAGES)]
    if row["samples"] != USUAL_SAMPLES:
        return []
    if row["rho"] != HARD:
        return [(TASKS, IMAGES), SHORT]
    return [*((TASKS, n) for n in SAMPLES), *((T, IMAGES) for T in FEWER), SHORT]


def rotated(row, grid, shapes):
    """The Points of a run."""
    z, p = data.latents(shapes, row["alpha"], row["rho"])
    checkpoint = results.load_checkpoint(Path(row["folder"]) / "checkpoint.npz")
    features = partial(
        disentangle.features_of, checkpoint.encoder, shapes, "batch", np, None,
        checkpoint.snapshot.params)
    rng = np.random.default_rng([30_000, row["seed"]])
    index = rng.integers(len(shapes), size=EVALUATED)
    seen = rng.choice(len(shapes), 10_000, p=p)
    with sparsedis.cpu_threads():
        F, F_seen = features(index), features(seen)
    points = []
    for T, n in grid:
        config = disentangle.Disentangle(tasks=row["tasks"], samples=n)
        tasks = disentangle.fresh_tasks(config, z[seen], T, seed=[30_001, row["seed"]])
        scores = disentangle.score_rotation(F, z[index], F_seen, tasks)
        points.append(Point(
            row["run"], row["rho"], head_of(row), row["eps"], row["seed"], row["tasks"], T, n,
            scores["mcc_rotated"], scores["identified"], scores["stability"], row["code"]))
    return points


def read_points(path):
    """The Points of a table; none if it is not there."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    kinds = dict.fromkeys(("seed", "T", "n", "identified"), int)
    kinds |= dict.fromkeys(("run", "head", "trained", "code"), str)
    return [Point(**{k: kinds.get(k, float)(text) for k, text in row.items()}) for row in rows]


def write_points(points, path):
    """The table of Points."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerows([Point._fields, *points])
    results.write_text(path, text.getvalue())


# ------------------------------------------------------------------------------ curves

Curve = namedtuple("Curve", "label color style groups")             # groups: x -> values of seeds
Panel = namedtuple("Panel", "title xlabel cell trained")            # see PANELS

PANELS = {  # what varies: the cell of its points; what varies in training, and the cell of its runs
    "n": Panel(
        f"{TASKS:,} tasks, $\\rho$ = {HARD}", "images of a task",
        {"T": TASKS, "rho": HARD}, ("samples", {"tasks": USUAL, "rho": HARD})),
    "T": Panel(
        f"{IMAGES} images a task, $\\rho$ = {HARD}", "tasks",
        {"n": IMAGES, "rho": HARD}, ("pool", {"rho": HARD, "samples": IMAGES})),
    "rho": Panel(
        f"{TASKS:,} tasks of {IMAGES} images", "correlation of the factors, $\\rho$",
        {"T": TASKS, "n": IMAGES}, ("rho", {"tasks": USUAL, "samples": USUAL_SAMPLES}))}


def curves(rows, points, variable):
    """The Curves of MCC against n, T or rho."""
    panel = PANELS[variable]
    rows = [row | {"head": head_of(row), "pool": pool_of(row["tasks"])} for row in rows]
    points = [point._asdict() for point in points]
    fresh = where(points, panel.cell | {"trained": USUAL})
    trained_by, cell = panel.trained
    lasso = where(rows, cell | {"head": "inner-lasso"})
    lasso = [row for row in lasso if trained_by != "pool" or row["pool"]]

    def rotated(head):
        return best(where(fresh, {"head": head}), variable, "mcc")

    found = [
        Curve("inner-Lasso, not rotated", "C0", "o-", best(lasso, trained_by, "mcc")),
        Curve("no penalty + rotation", "C4", "s-", rotated("none")),
        Curve("inner-Ridge + rotation", "C2", "^-", rotated("inner-ridge")),
        Curve("inner-Lasso + rotation", "C9", "v-", rotated("inner-lasso"))]
    ica = best(where(rows, {"head": "inner-ridge"}), "rho", "mcc_ica")
    if variable == "T":
        pool = [point for point in points if pool_of(point["trained"])]
        label = "no penalty on this pool + rotation"
        found.append(Curve(label, "C4", "s:", best(pool, "T", "mcc")))
    if variable != "rho":
        ica = {level: ica.get(HARD, [np.nan]) for level in found[1].groups}
    return [*found, Curve("inner-Ridge + ICA", "C3", "x--", ica)]


def head_of(row):
    """The head of a run; without penalty all are one."""
    return row["head"] if row["eps"] else "none"


def pool_of(kind):
    """K of the tasks finite-K, None of others."""
    name, _, number = kind.rpartition("-")
    return int(number) if name == "finite" else None


def best(rows, variable, key):
    """Level of a variable -> the values, over seeds, of the eps of the highest mean there."""
    found = {}
    for level in sorted({row[variable] for row in rows}):
        there = where(rows, {variable: level})
        each = [where(there, {"eps": eps}) for eps in sorted({row["eps"] for row in there})]
        found[level] = max(([row[key] for row in same] for same in each), key=np.mean)
    return found


def draw(rows, path, table):
    """MCC against images a task, tasks, and rho: trained through the Lasso, or rotated after; the
    points are kept in a table."""
    points = points_of(rows, table)
    fig, axes = plots.subplots(1, 3, (11, 3.9))
    for ax, (variable, panel) in zip(axes, PANELS.items(), strict=True):
        for label, color, style, groups in curves(rows, points, variable):
            plots.draw_line(ax, list(groups), groups.values(), label, color, style)
        ax.axhline(metrics.chance(6, 6), **plots.CHANCE)
        ax.set(title=panel.title, xlabel=panel.xlabel, ylim=(0.5, 1))
        if variable == "rho":
            plots.tell_realised(ax, RHOS)
        else:
            ax.set_xscale("log")
    axes[0].set_ylabel("MCC")
    handles, labels = axes[1].get_legend_handles_labels()
    fig.legend(handles, labels, fontsize=8, ncols=4, loc="outside upper center")
    plots.save(fig, path)
