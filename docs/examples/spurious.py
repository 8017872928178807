"""Precomputed features with a spurious attribute: sparse heads that share, beside ERM.     [F23]

    python docs/examples/spurious.py [SEEDS [ROWS [STEPS ...]]]

One direction of x tells the label, with noise; a second one, with less, wherever the attribute
agrees with the label. "group": so do 95 % of the training rows and half of the test rows, and the
worst of the four groups is scored. "domain": 95, 60 and 10 % of three domains do, and each of these
is left out in turn. Each seed has data of its own. Writes spurious.csv, a row a method and run.
"""
import csv
import itertools
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from experiments.sharing import Sharing
from experiments.sharing_features import FEATURE_SCORES, TRAINED, sharing_on_features


def spurious(path, kind, N=3000, d=20, seed=0):
    """Write x (N, d), labels y and group and split, or domain, as npz; the first direction alone
    tells 89 % of the labels."""
    rng = np.random.default_rng(seed)
    y, domain, test = rng.integers(2, size=N), rng.integers(3, size=N), np.arange(N) < N // 3
    agree = np.where(test, 0.5, 0.95) if kind == "group" else np.array([0.95, 0.6, 0.1])[domain]
    a = np.where(rng.random(N) < agree, y, 1 - y)
    x = rng.standard_normal((N, d))
    x[:, 0] = 2 * y - 1 + 0.8 * rng.standard_normal(N)
    x[:, 1] = 1.5 * (2 * a - 1) + 0.4 * rng.standard_normal(N)
    x = x @ np.linalg.qr(rng.standard_normal((d, d)))[0]
    places = {"domain": domain}
    if kind == "group":
        places = {"group": 2 * y + a, "split": np.where(test, "test", "train")}
    np.savez(path, x=x, y=y, **places)


def scores(kind, N, steps, seed):
    """The rows of one data set: every method's scores, means over the domains left out."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.npz")
        spurious(path, kind, N, seed=seed)
        result, _ = sharing_on_features(Sharing(
            source="features", data=str(path), steps=steps, seed=seed, results=folder))
    for method in TRAINED:
        told = [result[f"{method}_{key}"] for key in FEATURE_SCORES]
        yield kind, steps, seed, method, *told


def main(seeds=5, N=3000, *steps):
    """The table, written as it grows."""
    with open("spurious.csv", "w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["data", "steps", "seed", "method", *FEATURE_SCORES])
        for kind, count, seed in itertools.product(
                ("group", "domain"), steps or (60, 300), range(seeds)):
            for row in scores(kind, N, count, seed):
                table.writerow(row)
                print(*row, flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
