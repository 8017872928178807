"""How many targets it takes, and how sparse: planted factors in linear mixtures.

    python docs/examples/how_many_targets.py [SEEDS [ROWS [LINES]]]

1,000 rows of 20 mixtures of factors whose correlation is 0.8; a target uses one or two of them, or
each with probability p; noise of 0.05 of its deviation. The encoder is linear, as the mixtures are.
Writes own-data.csv, a row a data set.
"""
import csv
import itertools
import sys
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import metrics
from sparsetasks import SparseTasks

COLUMNS = "factors targets p seed mcc identified least_stability m_auto".split()
BY_COUNT = [(d, K, "one_or_two") for d in (4, 5) for K in (6, 8, 12, 16, 24, 40)]
BY_SPARSITY = [(5, K, p) for p in (0.5, 0.6, 0.8, 1.0) for K in (40, 400)]


def planted(rng, N, d, K, p):
    """Factors z (N, d), inputs x (N, 20), targets Y (N, K)."""
    z = rng.multivariate_normal(np.zeros(d), 0.2 * np.eye(d) + 0.8, N)
    on = np.zeros((K, d), bool)
    for row in on:
        while not row.any():
            if p == "one_or_two":
                row[rng.choice(d, rng.integers(1, 3), replace=False)] = True
            else:
                row[:] = rng.random(d) < p
    Y = z @ (on * rng.standard_normal((K, d))).T
    Y += 0.05 * Y.std(axis=0) * rng.standard_normal(Y.shape)
    return z, z @ rng.standard_normal((d, 20)), Y


def scores(N, d, K, p, seed):
    """A row of the table."""
    z, x, Y = planted(np.random.default_rng(seed), N, d, K, p)
    model = SparseTasks(n_components=d, encoder="linear").fit(x, Y)
    auto = SparseTasks(encoder="linear").fit(x, Y).n_components_ if p == "one_or_two" else ""
    return (d, K, p, seed, metrics.mcc(z, model.transform(x)), int(model.identified_.sum()),
            model.stability_.min(), auto)


def main(seeds=6, N=1000, lines=None):
    """The table, written as it grows; lines: its first cells only."""
    cells = (*BY_COUNT, *BY_SPARSITY)[:lines]
    with open("own-data.csv", "w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for (d, K, p), seed in itertools.product(cells, range(seeds)):
            row = scores(N, d, K, p, seed)
            table.writerow(row)
            print(*row, flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(*map(int, sys.argv[1:]))
