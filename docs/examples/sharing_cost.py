"""What the joint fit of [F23] costs: seconds and memory against tasks, features and factors.

    python docs/examples/sharing_cost.py [REPEATS]

T tasks, m features, k factors a task, joined by AND; 26 samples a task, features are random
functions of the factors of images of 3D Shapes. One of T = 8, m = 10, k = 2 is changed at a time.
Writes sharing-cost.csv: milliseconds of the fit and of its adjoint, iterations, largest memory.
"""
import csv
import functools
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import data
import solvers
import sparsedis
from experiments import bench
from experiments.sharing_data import BinaryTasks
from experiments.sharing_solver import sparse_sharing, sparse_sharing_vjp

ALPHA, SHOT = 0.1, 13
USUAL = {"T": 8, "m": 10, "k": 2}
GROWN = {"T": (2, 4, 8, 16, 32, 64), "m": (5, 10, 20, 40), "k": (1, 2, 3, 4)}


def problem(T, m, k):
    """F (T, 26, m) and Y (T, 26, 1)."""
    grid = data.Shapes3D()
    z, p = data.latents(grid)
    rng = np.random.default_rng(0)
    tasks = BinaryTasks(grid.factors, p, k, min(T, 40))             # there are 49 of one factor
    index, Y = tasks.sample(rng, np.arange(T) % 40, SHOT, 0)
    F = np.tanh(z[index] @ rng.standard_normal((z.shape[1], m)))
    return sparsedis.normalise(F)[0], Y


def cost(beta, **sizes):
    """A row: of the fit and of its adjoint."""
    F, Y = problem(**sizes)
    fit = functools.partial(sparse_sharing, F, Y, ALPHA, beta)
    phi, info = fit()
    vjp = functools.partial(sparse_sharing_vjp, F, Y, ALPHA, beta, phi, phi)
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    seconds = [bench.seconds_of(bench.timer(f), repeats=repeats)[0] for f in (fit, vjp)]
    fit_ms, vjp_ms = (1e3 * s for s in seconds)
    return {"beta": beta, **sizes, "fit_ms": fit_ms, "vjp_ms": vjp_ms,
            "iterations": info["n_iter"], "converged": info["converged"],
            "MB": max(map(bench.peak_bytes, (fit, vjp))) / 1e6}


def main():
    """The rows of the table."""
    rows = [cost(beta, **USUAL | {name: size})
            for beta in (0.0, 0.02) for name, sizes in GROWN.items() for size in sizes]
    with open("sharing-cost.csv", "w", newline="") as file:
        table = csv.DictWriter(file, rows[0], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    for row in rows:
        print("  ".join(f"{key} {value:.4g}" for key, value in row.items()))


if __name__ == "__main__":
    with solvers.cpu_threads(1):
        main()
