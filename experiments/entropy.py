"""entropy.py -- does the entropy of the importances tell disentanglement?       [F23, our reading]

    z (N, 6)     independent factors of images of 3D Shapes
    F = z Q(t)   features, from the factors, t = 0, to a random rotation of them, t = 1
    d_used       how many of the factors the tasks are about: 2, 3, 4 or all 6
    H, DCI-D     entropy of the importances of heads that are fitted one by one, without sharing;
                 and the disentanglement of F

[F23] reports that its sharing penalty and DCI go together, at 94.7. Nothing is trained here, so
that all that differs is how far the factors are mixed.
"""
import numpy as np
from scipy.linalg import expm
from scipy.stats import pearsonr

import data
import metrics
from experiments import plots, results, sharing
from experiments.sharing_data import BinaryTasks
from experiments.sharing_solver import sharing_entropy

USED = (2, 3, 4, 6)
ROTATIONS, PATH = 3, (0, 0.05, 0.1, 0.2, 0.4, 0.7, 1)
TASKS, SCORED = 40, 5000  # binary tasks of two factors; images of DCI
KEYS = ("used", "rotation", "t", "H", "dci_d", "accuracy", "correlation")


def turning(rng, d):
    """Q(t), from the identity to a random rotation of d factors."""
    A = rng.standard_normal((d, d))
    return lambda t: expm(t * (A - A.T) / 2)


def tasks_about(grid, p, used):
    """Binary tasks about the first `used` factors only."""
    factors = np.where(np.arange(grid.factors.shape[1]) < used, grid.factors, 0)
    return BinaryTasks(factors, p, 2, TASKS)


def rows_of(used, grid, z, p):
    """Rows of KEYS but the last: each rotation, all the way."""
    tasks, config = tasks_about(grid, p, used), sharing.Sharing()
    index = np.random.default_rng(20_000).integers(len(z), size=SCORED)
    for rotation in range(ROTATIONS):
        Q = turning(np.random.default_rng(rotation), z.shape[1])
        for t in PATH if rotation == 0 else PATH[1:]:               # t = 0 is one point of all
            F = z @ Q(t)
            accuracy, phi = sharing.accuracies(config, F.__getitem__, tasks, np.arange(TASKS))
            dci_d, _ = metrics.dci(z[index], F[index])
            H = float(sharing_entropy(phi[:, None]))
            yield used, rotation, t, H, float(dci_d), float(accuracy.mean())


def draw_entropy(path):
    """DCI-D against H for tasks about some and about all factors, with the correlation of the two;
    beside it, as CSV, the points."""
    grid = data.Shapes3D()
    z, p = data.latents(grid, 1.0, 0.0)
    fig, axes = plots.subplots(1, len(USED), (3 * len(USED), 3.4), sharey=True)
    lines = [",".join(KEYS)]
    for ax, used in zip(axes, USED, strict=True):
        rows = list(rows_of(used, grid, z, p))
        _, _, t, H, D, _ = np.array(rows).T
        correlation = float(pearsonr(H, D).statistic)
        lines += [",".join(map(str, (*row, correlation))) for row in rows]
        points = ax.scatter(H, D, c=t, cmap="viridis")
        ax.axvline(np.log(used), color="grey", ls=":", label=f"log {used}")
        ax.set(title=f"tasks about {used} factors:\ncorrelation {correlation:.2f}",
               xlabel="entropy H of the importances", ylim=(0, 1.02), xlim=(0.5, 1.9))
        ax.legend(fontsize=8)
    axes[0].set_ylabel("DCI-D")
    fig.colorbar(points, ax=axes, label="how far the factors are mixed, t")
    plots.save(fig, path)
    results.write_text(path.with_suffix(".csv"), "\n".join(lines) + "\n")
