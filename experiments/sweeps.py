"""sweeps.py -- the runs behind the figures: which they are, on how many processes or machines.

    run.py sweep NAME --scale quick|paper      runs what is missing, writes RESULTS/NAME-SCALE.csv
    run.py choose-eps                          eps without ground truth, from the runs of `main`

    sweep     a list of settings of one experiment: Disentangle, FewShot, Sharing, Maps, ...
    cell      the settings that vary in a sweep besides head, eps and seed, as a dict
    table     a row for each finished run: its name and settings, its scores, its code's digest

A run is kept as soon as it is finished: whatever interrupts a sweep, the same command goes on, on
another machine too, where RESULTS holds the table: what its rows tell need not be run again, but
where a figure is drawn from more than rows (not in ROWS_ONLY).
figures.py draws from read_table.
"""
import contextlib
import csv
import dataclasses
import io
import itertools
import json
import os
import shutil
import sys
from collections import namedtuple
from functools import partial
from pathlib import Path

import joblib
import numpy as np

import data
import metrics
from experiments import (
    apply,
    disentangle,
    fewshot,
    maps,
    nuisance,
    penalties,
    process,
    results,
    settings,
    shared_maps,
    sharing,
    subsets,
    transfer,
)
from experiments.settings import option

# ------------------------------------------------------------------------------ which runs

INNER, OUTER = ("inner-lasso", "inner-ridge"), ("outer-lasso", "outer-ridge")

# What all runs of a scale have in common. The text of [L23] gives n = 50, a data set for each task
# and the ranges of rho and alpha; all else of PAPER, the eps and the levels of rho and alpha are of
# its published code, the number of seeds is ours.
TINY = {"steps": 2, "image_sets": 1, "samples": 12, "tasks_per_set": 2, "eval_images": 60}
QUICK = {"steps": 800}
PAPER = {"steps": 20_000, "image_sets": 8, "samples": 50, "tasks_per_set": 1, "warmup": 0.0,
         "lr": 1e-3, "flat": 1.0, "beta1": 0.9, "beta2": 0.999}
SCALES = {"tiny": TINY, "quick": QUICK, "paper": PAPER}             # tiny: to try how sweeps run

EPS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
OUTER_EPS = (0.0, 1e-4, 1e-3, 0.01, 0.1, 0.3)                       # ours
BEST = (0.0, 0.1, 0.3)                                              # of experiments/rotation.py

CORNERS = [{"rho": 0.0}, {"rho": 0.9}, {"rho": 0.9, "alpha": 0.0}]  # as bars, over eps
BETWEEN = [{"rho": rho} for rho in (0.5, 0.8, 0.95, 0.99)]          # on the curves only
BETWEEN += [{"rho": 0.9, "alpha": 0.5}]
QUARTERS = [{"rho": 0.9, "alpha": alpha} for alpha in (0.25, 0.75)] # at paper scale only
ALL = CORNERS + BETWEEN + QUARTERS
CURVE_EPS = (0.03, 0.1, 0.3)                                        # of which curves take the best
BLOCKS = [{"rho": 0.0, "tasks": f"blocks-{size}"} for size in (2, 3, 6)]

# Runs of all cells with all heads, eps and seeds.
Part = namedtuple("Part", "cells heads eps seeds")


def laplace(cells):
    """The cells with Laplace coefficients."""
    return [cell | {"tasks": "laplace"} for cell in cells]


def shown(head, eps, rho):
    """One run, whose latent responses are drawn."""
    return Part([{"rho": rho}], [head], [eps], 1)


# Of experiments/rotation.py; where inner-Lasso has one eps, it is the best of `main`.
RHOS = (0.0, 0.5, 0.9, 0.95)
SAMPLES = (10, 25, 50, 100, 400)
USUAL_SAMPLES = 25
POOLS = (10, 100, 1000)


def sets_of(n):
    """Sets of n images, 100 a step or one set of more, at every scale."""
    sets = max(1, 100 // n)
    return {"samples": n, "image_sets": sets, "tasks_per_set": 64 // sets}


BY_RHO = [{"rho": rho} | sets_of(USUAL_SAMPLES) for rho in RHOS]
BY_SAMPLES = [{"rho": 0.9} | sets_of(n) for n in SAMPLES if n != USUAL_SAMPLES]
BY_POOL = [{"rho": 0.9, "tasks": f"finite-{K}"} | sets_of(50) for K in POOLS]

# One thing of the default changed: another norm, p(x | W) that moves with the task, App. B.6's
# coefficients, classes, and what is ours: warm-up, and tasks that share images.
VARIANTS = [
    {"norm": "layer"}, {"norm": "none"}, {"shift": 1.0}, {"tasks": "sphere"},
    {"rho": 0.0, "outputs": 3, "likelihood": "categorical"},
    {"warmup": 0.0}, {"tasks_per_set": 4}, {"tasks_per_set": 1}]

# Figs. 11 to 14, in this order; eps is the best of docs/main-quick.csv, 0 in Fig. 12; of ridge the
# best of an earlier table (of the newest: 0.1), for the long run is of that.
RESPONSES = [shown("inner-lasso", 0.3, 0.0), shown("inner-ridge", 0.0, 0.0),
             shown("inner-lasso", 0.3, 0.9), shown("inner-ridge", 0.03, 0.9)]

# The README's picture: Lasso and ridge, each with its best eps of six, of this seed.
IDEA = [RESPONSES[2], shown("inner-ridge", 0.1, 0.9)]


def protocol(steps, seeds):
    """The paper's protocol up to a step (its learning rate is constant, so that a long run begins
    as a short one): the runs of RESPONSES, and inner-Ridge at all eps, one seed."""
    def begun(part):
        return part._replace(cells=[cell | PAPER | {"steps": steps} for cell in part.cells])

    more = Part(RESPONSES[3].cells, ["inner-ridge"], EPS, 1)
    return [begun(part._replace(seeds=seeds)) for part in RESPONSES] + [begun(more)]


# The sweeps of Disentangle: their parts at quick and at paper scale.
SWEEPS = {
    "main": {
        "quick": [Part(CORNERS, INNER, EPS, 5), Part(BETWEEN, INNER, CURVE_EPS, 3)],
        "paper": [Part(ALL, INNER, EPS, 10)]},
    "blocks": {"quick": [Part(BLOCKS, INNER, EPS, 3)], "paper": [Part(BLOCKS, INNER, EPS, 10)]},
    "outer": {
        "quick": [Part([{"rho": 0.9}], OUTER, OUTER_EPS, 3)],
        "paper": [Part([{"rho": 0.9}], OUTER, OUTER_EPS, 10)]},
    "laplace": {
        "quick": [
            Part(laplace(CORNERS), INNER, EPS, 3), Part(laplace(BETWEEN), INNER, CURVE_EPS, 3)],
        "paper": [Part(laplace(ALL), INNER, EPS, 10)]},
    "responses": {"quick": RESPONSES, "paper": RESPONSES},
    "idea": {"quick": IDEA, "paper": IDEA},
    "protocol": {"quick": protocol(1500, 3), "paper": protocol(20_000, 3)},
    "variants": {
        scale: [Part(VARIANTS, INNER[:1], (0.3,), seeds)]
        for scale, seeds in (("quick", 3), ("paper", 10))},
    "rotation": {
        scale: [Part(BY_RHO, INNER, BEST, seeds),
                Part(BY_POOL, INNER[:1], (0.0, 0.3), seeds),
                Part(BY_SAMPLES, INNER[:1], (0.3,), seeds)]
        for scale, seeds in (("quick", 3), ("paper", 10))}}

# A sweep of FewShot over eps: its settings, its steps and seeds at quick scale.
Episodes = namedtuple("Episodes", "cell steps eps seeds")
GLYPHS = {"source": "glyphs", "noise": 0.5, "test_episodes": 500}
SHAPES = {"source": "shapes", "encoder": "cnn", "lr": 5e-3, "way": 2, "shot": 15, "episodes": 16}
EPISODE_SWEEPS = {
    "glyphs": Episodes(GLYPHS, 200, (0.0, 0.05, 0.1, 0.2, 0.3, 0.5), 3),
    "shapes": Episodes(SHAPES, 400, (0.0, 0.03, 0.1, 0.3), 1)}


def crossed(**lists):
    """All combinations of settings, as cells; the last varies fastest."""
    return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]


# The sweeps of docs/beyond.md, of Maps, Transfer, Nuisance and SharedMaps: their cells, the same at
# every scale.
ON, THREE, FIVE = ("factors", "encoder"), range(3), range(5)
POOL_SIZES = (2, 3, 4, 6, 8, 12, 20, 50, 200)
KEEP_START = {"warmup": 0.0, "lr": 0.02}                            # where eps rises it is left
INNER_PROBLEMS = [
    *crossed(head=["inner-lasso"], eps=[0.1, 0.3], start=["random", "factors"]),
    *crossed(head=["subset"], eps=[0.01, 0.1], start=["random", "lasso", "factors"]),
    *crossed(head=["subset-size"], eps=[0.0], start=["random", "lasso", "factors"]),
    *crossed(head=["relaxed"], eps=[0.1], start=["lasso", "factors"]),
    *crossed(head=["mcp"], eps=[0.3], start=["lasso", "factors"])]
MAP_SWEEPS = {
    "problem4": [
        cell | (KEEP_START if cell["start"] != "random" else {})
        for cell in (own | more for own in crossed(on=ON, rho=[0.0, 0.9, 0.95], seed=THREE)
                     for more in INNER_PROBLEMS)],
    "pools": [
        own | {"world": own["seed"]} | more for own in crossed(on=ON, seed=FIVE)
        for more in (*crossed(tasks=["pool"], count=POOL_SIZES, eps=[0.1, 0.3]),
                     *crossed(eps=[0.1, 0.3]))],
    "mixing": [
        *crossed(tasks=["sets"], seed=FIVE, world=range(20), eps=[0.1, 0.3]),
        *crossed(tasks=["example"], seed=FIVE, head=["inner-lasso"], eps=[0.1, 0.3]),
        *crossed(tasks=["example"], seed=FIVE, head=["subset-size"], eps=[0.0])],
    "exactness": [
        *crossed(on=ON, seed=THREE, eps=[0.1, 0.3], head=["unfinished"],
                 tolerance=[1e-1, 1e-2, 1e-3, 1e-6, 1e-12]),
        *crossed(on=ON, seed=THREE, eps=[0.1, 0.3], head=["step"])]}
STEPS, MORE_STEPS = [400, 1600], [400, 1600, 4000]
LONGER = [                                                          # from random starts
    *crossed(head=["subset-size"], eps=[0.0], rho=[0.9], steps=MORE_STEPS, seed=THREE),
    *crossed(head=["subset-size"], eps=[0.0], rho=[0.95], steps=STEPS, seed=THREE),
    *crossed(head=["inner-lasso"], eps=[0.1, 0.3], rho=[0.0, 0.9], steps=STEPS, seed=THREE),
    *crossed(head=["subset"], eps=[0.01], steps=STEPS, seed=THREE),
    *crossed(head=["unfinished"], tolerance=[1e-1, 1e-2], steps=STEPS, seed=THREE),
    *crossed(head=["step"], steps=MORE_STEPS, seed=THREE)]
TRANSFER = crossed(seed=THREE, method=transfer.METHODS)
ENCODERS = [*crossed(seed=THREE, needed=[6], features=[4, 6, 8, 12], eps=[0.0, 0.3]),
            *crossed(seed=THREE, needed=[4], features=[4, 6], eps=[0.0, 0.3])]
SHARED = [
    *crossed(seed=FIVE, m=[10, 20], alpha=[0.03, 0.1], beta=[0.0, 0.02, 0.1]),
    *crossed(seed=FIVE, m=[10], factors=[1, 3], beta=[0.0, 0.02, 0.1]),
    *crossed(seed=FIVE, m=[10], shot=[5], beta=[0.0, 0.02, 0.1]),
    *crossed(seed=FIVE, m=[10, 20], method=["lasso", "erm"])]
PENALTIES = [
    given | {"seed": seed} | own
    for given in ({"rho": 0.0}, {"rho": 0.9}, {"rho": 0.9, "samples": 8}, {"on": "encoder"})
    for seed in range(2)
    for own in (*crossed(held_out=[False, True], eps=[0.01, 0.03, 0.1, 0.2, 0.3, 0.5]),
                *crossed(held_out=[False, True], eps=[0.03, 0.3], learn=[True]))]
AFTER_LASSO = {"start": "lasso", "steps": 400, "lr": 2e-3, "warmup": 0.0}
SUBSETS = [
    {"seed": seed} | own for seed in THREE
    for own in (*crossed(rho=[0.9, 0.0], head=["subset-size"]),
                *(AFTER_LASSO | more for more in crossed(rho=[0.9, 0.0], head=["subset-size"])),
                {"head": "subset", "eps": 0.01},
                *(AFTER_LASSO | {"head": head, "eps": eps} for head, eps in
                  (("inner-lasso", 0.3), ("inner-lasso", 0.1), ("subset", 0.1), ("relaxed", 0.1),
                   ("mcp", 0.3))))]
QUESTIONS = {name: (maps.Maps, cells) for name, cells in MAP_SWEEPS.items()}
QUESTIONS |= {"patience": (maps.Maps, LONGER), "transfer": (transfer.Transfer, TRANSFER),
              "encoders": (nuisance.Nuisance, ENCODERS),
              "shared": (shared_maps.SharedMaps, SHARED),
              "penalties": (penalties.Penalties, PENALTIES),
              "subsets": (subsets.Subsets, SUBSETS)}

# The cells of the sweep of Sharing: seeds; alpha and beta; factors per task; beside [L23].
SHARING_SWEEP = [
    *({"method": method, "seed": seed} for seed in range(5) for method in ("sharing", "erm")),
    *({"alpha": alpha, "beta": beta}
      for alpha in (0.03, 0.1, 0.2) for beta in (0.0, 0.02, 0.05, 0.1)),
    {"factors": 1, "pool": 30, "test_tasks": 18},
    *({"factors": factors} for factors in (3, 4, 5)),
    *({"method": method, "rho": rho, "seed": seed}
      for seed in (0, 1) for rho in (0.0, 0.9) for method in sharing.METHODS)]

SHORT = {maps.Maps: {"steps": TINY["steps"]}, transfer.Transfer: {"draws": 1},
         nuisance.Nuisance: TINY, shared_maps.SharedMaps: {"steps": TINY["steps"]},
         penalties.Penalties: {"steps": TINY["steps"]}, subsets.Subsets: {"steps": TINY["steps"]}}

NAMES = (*SWEEPS, *EPISODE_SWEEPS, *QUESTIONS, "sharing")
FIGURES_OF = {  # sweep: the figures that are drawn from its table
    "main": ("fig4", "fig6", "fig15", "rho", "seen"), "glyphs": ("fig5",),
    "blocks": ("fig8", "blocks"), "laplace": ("fig9",), "outer": ("fig10",),
    "responses": ("fig11", "fig12", "fig13", "fig14"), "idea": ("idea",), "rotation": ("rotation",),
    "shapes": ("conjecture",), "sharing": ("sharing", "methods"),
    **{name: (name,) for name in QUESTIONS}}
ROWS_ONLY = (                                                       # figures need no more
    "main", "blocks", "laplace", "outer", "sharing", "rotation", "variants", "protocol",
    *QUESTIONS)
SWEEP_OF = {figure: name for name, figures in FIGURES_OF.items() for figure in figures}


def sweep_configs(name, scale, folder):
    """The settings of a sweep's runs, in order: of a part all cells of one seed, then the next."""
    elsewhere = {"threads": 1, "results": folder}                   # no part of a result's name
    if name == "sharing":
        steps = {"tiny": 2, "quick": 600, "paper": 20_000}[scale]
        configs = [sharing.Sharing(steps=steps, **elsewhere, **cell) for cell in SHARING_SWEEP]
        return list(dict.fromkeys(configs))                         # some cells come twice
    if name in QUESTIONS:
        own, cells = QUESTIONS[name]
        if scale == "tiny":
            cells = [cell | SHORT[own] for cell in cells[:2]]
        return [own(**elsewhere, **cell) for cell in cells]
    if name in EPISODE_SWEEPS:
        own = EPISODE_SWEEPS[name]
        quick = own.steps, own.seeds
        steps, seeds = {"tiny": (2, 1), "quick": quick, "paper": (20_000, 5)}[scale]
        return [fewshot.FewShot(eps=eps, seed=seed, steps=steps, **elsewhere, **own.cell)
                for seed in range(seeds) for eps in own.eps]
    short = {"steps": TINY["steps"]} if scale == "tiny" else {}
    configs = [
        disentangle.Disentangle(
            head=head, eps=eps, seed=seed, **elsewhere, **SCALES[scale] | cell | short)
        for part in parts_of(name, scale)
        for seed, cell, head, eps in itertools.product(
            range(part.seeds), part.cells, part.heads, part.eps)]
    return list(dict.fromkeys(configs))


def parts_of(name, scale):
    """The parts of a sweep of Disentangle; tiny: quick's first eps and seed."""
    if scale != "tiny":
        return SWEEPS[name][scale]
    return [part._replace(eps=part.eps[:1], seeds=1) for part in SWEEPS[name]["quick"]]


# ------------------------------------------------------------------------------ running them


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Run what is missing of a sweep, on processes of this machine or on a Dask cluster."""

    name: str = option(
        None, "a sweep, or a figure that is drawn from it", positional=True,
        choices=tuple(dict.fromkeys((*NAMES, *SWEEP_OF))))
    scale: str = option(
        "quick", "quick: minutes a run; paper: the paper's steps and seeds; tiny: seconds, a trial",
        choices=tuple(SCALES))
    jobs: int = option(1, "processes; 1: one, with all cores", 1, 1024)
    dask: str = option("", "address of a Dask scheduler, tcp://HOST:PORT; workers see this folder")
    index: int = option(
        -1, "only this run, for SLURM arrays (then, once, without it: the table); -1: all", -1)
    results: str = option("results", "folder of the results")


def sweep(config):
    """Run the sweep and write its table."""
    name = SWEEP_OF.get(config.name, config.name)
    asked = sweep_configs(name, config.scale, config.results)
    runs = {run.name: run.config for run in map(run_of, asked)}
    if config.index >= len(runs):
        raise ValueError(f"--index: found {config.index}, expected -1 to {len(runs) - 1}")
    chosen = list(runs) if config.index < 0 else [list(runs)[config.index]]
    path = table_of(name, config.scale, config.results)
    keep_others(path, runs)
    table = partial(read_table, name, config.scale, config.results, lenient=True)
    there = {row["run"] for row in drawn_from(name, table())}.intersection(chosen)
    missing = [runs[run] for run in chosen if run not in there]
    print(f"sweep {name}, {config.scale}: {len(chosen)} runs, {len(there)} there already",
          flush=True)

    failed = []
    for error in run_all(missing, config, f"sweep {name}"):
        failed += [error] if error else []
        write_table(table(), path, type(asked[0]))                  # kept, whatever comes
    rows = table()
    write_table(rows, path, type(asked[0]))
    if rows:
        print(path)
    if failed:
        told = f"run.py sweep: {len(failed)} of {len(missing)} runs failed: {'; '.join(failed)}"
        print(told, file=sys.stderr)
        return 1


def keep_others(path, runs):
    """Copy a table that tells of other runs, of settings that are no longer the sweep's."""
    if read_told(path).keys() - runs.keys():
        names = (path.with_suffix(f".old{number or ''}.csv") for number in itertools.count())
        aside = next(name for name in names if not name.exists())
        shutil.copy(path, aside)
        print(f"{path} tells of runs that are not of this sweep: kept as {aside}")


def run_of(config):
    """The Run of settings; at eps = 0 Lasso and ridge are one problem, which is run once."""
    if getattr(config, "eps", 1) == 0 and getattr(config, "head", "").endswith("-ridge"):
        config = dataclasses.replace(config, head=config.head.replace("ridge", "lasso"))
    return results.Run(config)


def run_all(configs, config, what):
    """Run settings side by side, on all cores together; yields, whenever one is done, what went
    wrong with it, or nothing.

    A worker gets plain values and a local function, which joblib sends as code: a machine of a
    cluster need not know where this project lies before that function tells it.
    """
    root = str(settings.ROOT)
    jobs = max(1, min(config.jobs, len(configs)))
    threads = 1 if config.dask else max(1, os.cpu_count() // jobs)  # a cluster's machines differ
    elsewhere = {"threads": threads, "results": str(Path(config.results).resolve())}

    of_ours, quiet = jobs > 1 and not config.dask, not config.dask

    def run_there(experiment, values):
        sys.path.insert(0, root)
        from experiments.sweeps import run_one

        return run_one(experiment, values, of_ours, quiet)

    one = joblib.delayed(run_there)
    tasks = [one(type(own).__name__, dataclasses.asdict(own) | elsewhere) for own in configs]
    try:
        with backend_of(config.dask):
            parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")
            yield from results.progress(parallel(tasks), what, len(tasks))
    except joblib.externals.loky.process_executor.TerminatedWorkerError:
        raise ValueError(
            "a worker was killed; finished runs are kept, the same command goes on") from None


def backend_of(address):
    """Where joblib runs: on processes of this machine, or on the workers of a Dask scheduler."""
    if not address:
        return contextlib.nullcontext()
    try:
        import distributed

        client = distributed.Client(address, timeout=10)
    except (ImportError, OSError) as error:
        raise ValueError(f"--dask {address}: {error}") from None
    return joblib.parallel_config("dask", client=client)


EXPERIMENTS = {
    "Disentangle": disentangle, "FewShot": fewshot, "Sharing": sharing, "Maps": maps,
    "Transfer": transfer, "Nuisance": nuisance,
    "SharedMaps": shared_maps, "Penalties": penalties, "Subsets": subsets}


def run_one(experiment, values, of_ours=False, quiet=True):
    """A run of the experiment whose settings class has that name; what ends it is told in one line.

    of_ours    in a process of this sweep's, which ends with it
    quiet      what it prints is dropped; not where a process has runs in several threads
    """
    if of_ours:
        process.end_with_parent()
    module = EXPERIMENTS[experiment]
    config = getattr(module, experiment)(**values)
    run = getattr(module, settings.experiment_of(config))
    with silence() if quiet else contextlib.nullcontext():
        try:
            run(config)
        except (ValueError, OSError, FloatingPointError, MemoryError) as error:
            folder, told = str(run_of(config).folder), str(error) or repr(error)
            return told if folder in told else f"{folder}: {told}"


@contextlib.contextmanager
def silence():
    """Drop what is printed."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


# ------------------------------------------------------------------------------ the table


# Settings that every table tells; others where its rows differ in them.
TOLD = {"steps", "seed", "rho", "alpha", "samples", "head", "eps", "tasks", "method", "beta",
        "factors"}


def table_of(name, scale, folder):
    """The path of a sweep's table."""
    return Path(folder) / f"{name}-{scale}.csv"


def read_table(name, scale, folder, lenient=False):
    """The rows of a sweep's runs, of some only from the table there: their folder is None.
    ValueError names a damaged result; if lenient, the table's row is its, of folder ""."""
    told = read_told(table_of(name, scale, folder))
    rows = [read_row(config, told, lenient) for config in sweep_configs(name, scale, folder)]
    return [row for row in rows if row]


def drawn_from(name, rows):
    """The rows from which a figure of the sweep can be drawn: those of ROWS_ONLY, or of folders."""
    return [row for row in rows if row["folder"] or row["folder"] is None and name in ROWS_ONLY]


def read_row(config, told, lenient):
    """A run's name, settings, scores, what made it, and its folder, see read_table; None for a run
    that is not finished."""
    run, folder = run_of(config), None
    try:
        scores = result_of(run)
    except ValueError:
        if not lenient:
            raise
        scores, folder = None, ""
    if scores is None and run.name in told:
        scores = told[run.name] | {"folder": folder}
    return scores and {"run": run.name} | scores | settings.identify(config)[0]


def result_of(run):
    """The scores of a run, the digests of all codes that made it, its kernels, and its folder; None
    where it is not finished."""
    scores = run.result()
    if scores is None:
        return None
    made_by = run.made_by()
    machine = made_by.get("device"), made_by.get("kernel")
    kernel = ", ".join(name for name in machine if name and name != "cpu")
    made = {"code": "+".join(results.codes_of(made_by)), "kernel": kernel}
    return scores | made | {"folder": str(run.folder)}


def read_told(path):
    """The rows of a table by the names of their runs, without settings; none if it is not there."""
    if not path.exists():
        return {}
    try:
        with open(path, newline="") as file:
            return {row.pop("run"): read_cells(row) for row in csv.DictReader(file)}
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise ValueError(f"{path}: not a table of this program ({error!r})") from None


SETTINGS = TOLD | {
    field.name for name, module in EXPERIMENTS.items()
    for field in dataclasses.fields(getattr(module, name))}


def read_cells(row):
    """The scores of a row, numbers and lists; a digest, which may look like a number, as it is."""
    texts = {key: row.pop(key, "") for key in ("code", "kernel")}
    if not texts["code"]:
        raise KeyError("code")
    if "encoder" in row:
        texts["encoder"] = row.pop("encoder")
    scores = {k: json.loads(text) for k, text in row.items() if text and k not in SETTINGS}
    return scores | texts


def where(rows, cell):
    """The rows whose settings are those of a cell."""
    return [row for row in rows if all(row[key] == value for key, value in cell.items())]


def write_table(rows, path, settings_class):
    """Rows, where there are any, as CSV, without folders and without settings that are not TOLD and
    everywhere alike."""
    if not rows:
        return
    names = {field.name for field in dataclasses.fields(settings_class)}
    hidden = {name for name in names - TOLD if len({row.get(name) for row in rows}) < 2}
    columns = dict.fromkeys(itertools.chain.from_iterable(rows))    # in the order of the rows
    columns = [key for key in columns if key not in hidden | {"folder"}]
    text = io.StringIO()
    table = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    results.write_text(path, text.getvalue())


# ------------------------------------------------------------------------------ choosing eps


@dataclasses.dataclass(frozen=True)
class ChooseEps:
    """Choose eps without ground truth: the one whose seeds agree most, by UDR.

    By regression, on images as trained on: by correlation it chooses another one there, see
    docs/beyond.md. Tells how far its MCC, which needs the ground truth, is from the best.
    """

    rho: float = option(0.9, "correlation of the factors", 0, 0.9999)
    head: str = option("inner-lasso", "how predictors were fitted", choices=INNER)
    scale: str = option("quick", "of the sweep main", choices=tuple(SCALES))
    results: str = option("results", "folder of the results")


def choose_eps(config):
    """Compare the finished runs of the sweep main, by their features of 2,000 images."""
    wanted = {"rho": config.rho, "alpha": 1.0, "head": config.head}
    rows = where(read_table("main", config.scale, config.results), wanted)
    there = [row for row in rows if row["folder"]]                  # their features are needed
    if rows and not there:
        raise ValueError(
            f"{config.results}: only a table tells of these runs, and their encoders are needed: "
            f"run.py sweep main --scale {config.scale} --results FOLDER, a new one")
    if len(there) < len(rows):
        print(f"{len(rows) - len(there)} of {len(rows)} runs are left out, without encoders here")
    shapes = data.Shapes3D()
    _, p = data.latents(shapes, 1.0, config.rho)
    images = shapes.images(np.random.default_rng(0).choice(len(p), size=2000, p=p))

    F = {row["run"]: apply.encode_images(Path(row["folder"]) / "checkpoint.npz", images)
         for row in results.progress(there, "encoding")}
    tell_agreement(there, lambda row: F[row["run"]])


# How well the runs of one eps, a seed each, agree by UDR, and their mean MCC.
Agreement = namedtuple("Agreement", "udr mcc")


def tell_agreement(rows, features):
    """Print UDR and MCC of each eps with two seeds or more, and which of them UDR chooses.

    features(row) -> features of a run, of the same images for all.    [Duan et al. 2020]
    """
    agreements = {}
    for eps in sorted({row["eps"] for row in rows}):
        same = [row for row in rows if row["eps"] == eps]
        if len(same) > 1:
            agreement = np.median(metrics.udr([features(row) for row in same], "regression"))
            agreements[eps] = Agreement(agreement, np.mean([row["mcc"] for row in same]))
    if not agreements:
        raise ValueError("at least two finished seeds per eps are needed: run.py sweep main")
    for eps, (agreement, mcc) in agreements.items():
        print(f"eps {eps:<6} UDR {agreement:.3f}   MCC {mcc:.4f}")
    chosen = max(agreements, key=lambda eps: agreements[eps].udr)
    best = max(agreements, key=lambda eps: agreements[eps].mcc)
    mcc, below = agreements[chosen].mcc, agreements[best].mcc - agreements[chosen].mcc
    print(f"UDR chooses eps {chosen}: MCC {mcc:.4f}, {below:.4f} below the best, eps {best}")
