"""regression.py -- Fig. 1: sparse linear tasks on disentangled and entangled features.

    z (n, m)   disentangled features, m = 100; the entangled ones are a random rotation of them
    y (n,)     labels, w.z + noise, where w has `active` entries of m

Lasso profits from few active features only where features are disentangled; ridge sees no rotation.
[L23, Sec. 2.2, App. D.1, Fig. 1]

fig1_printed.json has the numbers of the printed figure, from the published repository (MIT,
github.com/tristandeleu/synergies-disentanglement-sparsity, figures/synthetic/logs.p).
"""
import itertools
import json
import warnings
from collections import namedtuple
from pathlib import Path

import joblib
import numpy as np
from sklearn.linear_model import LassoCV, RidgeCV
from sklearn.model_selection import KFold

from experiments import plots, results

# What features are fitted by which penalty, and how its line is drawn.
Estimator = namedtuple("Estimator", "features penalty style color")


ESTIMATORS = (
    Estimator("disentangled", "lasso", "o-", "C1"), Estimator("entangled", "lasso", "o-", "C0"),
    Estimator("disentangled", "ridge", "s-", "C1"), Estimator("entangled", "ridge", "^--", "C0"))
PERCENTS, SIZES = (5, 20, 80), (25, 50, 75, 100, 125, 150)
SEEDS = 10


def gaussian_task(rng, n, m=100, active=5, covariance="ar", noise="absolute"):
    """Features z (n, m), labels y (n,) and coefficients w (m,) of one sparse task.

    z ~ N(0, Sigma), Sigma_ij = 0.9^|i-j| ("ar") or I ("identity"); w has `active` entries N(0, 1);
    y = w.z + noise of variance 0.04 ("absolute") or 0.04 Var(w.z) ("relative"; ours, docs/errata.md
    says why).                                                      [L23, App. D.1]
    """
    Sigma = np.eye(m)
    if covariance == "ar":
        Sigma = 0.9 ** np.abs(np.subtract.outer(np.arange(m), np.arange(m)))
    z = rng.standard_normal((n, m)) @ np.linalg.cholesky(Sigma).T
    w = np.zeros(m)
    w[rng.choice(m, active, replace=False)] = rng.standard_normal(active)
    variance = 0.04 * (w @ Sigma @ w if noise == "relative" else 1)
    return z, z @ w + variance ** 0.5 * rng.standard_normal(n), w


# What may differ between the seeds: all; or, of one task whose w and data are kept, one thing only.
VARIES = ("all", "rotation", "folds", "test")


def scores_of_task(covariance, noise, varies, percent, n, seed, task=0, m=100):
    """R^2 of each estimator on 1,000 test samples of one task, penalties by 5-fold CV."""
    warnings.simplefilter("ignore")                                 # of fits that stop early
    kind = m, percent * m // 100, covariance, noise
    if varies == "all":
        rng = np.random.default_rng([seed, percent, n])
        z, y, _ = gaussian_task(rng, n + 1000, *kind)
        test = slice(n, None)
    else:
        most = max(SIZES)                                           # test sets follow, one a seed
        z, y, _ = gaussian_task(np.random.default_rng([task, percent]), most + 1000 * SEEDS, *kind)
        first = most + 1000 * (seed if varies == "test" else 0)
        test = slice(first, first + 1000)
        rng = np.random.default_rng(seed if varies == "rotation" else 0)
    folds = KFold(5, shuffle=True, random_state=seed) if varies == "folds" else 5
    rotation, _ = np.linalg.qr(rng.standard_normal((m, m)))
    scores = []
    for estimator in ESTIMATORS:
        X = z if estimator.features == "disentangled" else z @ rotation
        if estimator.penalty == "lasso":
            fit = LassoCV(cv=folds, max_iter=5000)
        else:
            fit = RidgeCV(np.logspace(-4, 5, 40), cv=folds)         # by R^2, as is its default
        scores.append(fit.fit(X[:n], y[:n]).score(X[test], y[test]))
    return scores


def printed():
    """Mean R^2 and standard error of the printed figure (2, percents, sizes, estimators)."""
    panels = json.loads(Path(__file__).with_name("fig1_printed.json").read_text())["panels"]
    values = [[[panels[f"{percent / 100:g}"][f"{features}-{penalty}"][kind]
                for features, penalty, _, _ in ESTIMATORS] for percent in PERCENTS]
              for kind in ("mean", "se")]
    return np.swapaxes(values, 2, 3)


def scores_of_seeds(covariance, noise, varies, jobs, task=0, seeds=SEEDS, percents=PERCENTS,
                    sizes=SIZES):
    """R^2 (percents, sizes, seeds, estimators)."""
    cells = list(itertools.product(percents, sizes, range(seeds)))
    tasks = (joblib.delayed(scores_of_task)(covariance, noise, varies, *cell, task)
             for cell in cells)
    parallel = joblib.Parallel(n_jobs=jobs, return_as="generator")
    scores = list(results.progress(parallel(tasks), "fits", len(cells)))
    return np.reshape(scores, (len(percents), len(sizes), seeds, len(ESTIMATORS)))


def mean_and_error(scores):
    """Over the seeds, and the standard error."""
    return scores.mean(axis=2), scores.std(axis=2, ddof=1) / scores.shape[2] ** 0.5


def draw_fig1(covariance, noise, varies, jobs, path, seeds=SEEDS, percents=PERCENTS, sizes=SIZES):
    """R^2 against the number of samples, a panel for each sparsity, mean and standard error, above
    the printed figure; the numbers beside it as CSV.

    Returns the scores (percents, sizes, seeds, estimators).
    """
    scores = scores_of_seeds(covariance, noise, varies, jobs, 0, seeds, percents, sizes)
    mean, error = mean_and_error(scores)
    write_rows(path.with_suffix(".csv"), percents, sizes, mean, error)
    for percent, means, spread in zip(percents, mean[:, 0], error[:, 0], strict=True):
        for estimator, r2, se in zip(ESTIMATORS, means, spread, strict=True):
            print(f"l/m = {percent} %, n = {sizes[0]}, {estimator.features}-{estimator.penalty}: "
                  f"R^2 {r2:.2f} +- {se:.2f}")
    fig, axes = plots.subplots(2, len(PERCENTS), (10, 5.4))
    draw_panels(axes[0], percents, sizes, mean, error)
    draw_panels(axes[1], PERCENTS, SIZES, *printed())
    axes[0, 0].set_ylabel(f"ours: {covariance}, {noise} noise\n$R^2$ on test samples")
    axes[1, 0].set_ylabel("printed\n$R^2$ on test samples")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, fontsize=8, ncols=4, loc="outside upper center")
    plots.save(fig, path)
    return scores


def write_rows(path, percents, sizes, mean, error):
    """Mean and standard error as CSV, the printed ones beside them."""
    of_print = np.stack(printed())                                  # (2, percents, sizes, ...)
    lines = ["percent,n,estimator,mean,se,printed_mean,printed_se"]
    for (i, percent), (j, n) in itertools.product(enumerate(percents), enumerate(sizes)):
        theirs = of_print[:, PERCENTS.index(percent), SIZES.index(n)]
        for k, (features, penalty, _, _) in enumerate(ESTIMATORS):
            numbers = mean[i, j, k], error[i, j, k], *theirs[:, k]
            told = ",".join(f"{number:.4g}" for number in numbers)
            lines.append(f"{percent},{n},{features}-{penalty},{told}")
    results.write_text(path, "\n".join(lines) + "\n")


def draw_panels(axes, percents, sizes, mean, error):
    """A row of panels, mean and error (percents, sizes, estimators)."""
    for ax, percent, means, spread in zip(axes, percents, mean, error, strict=False):
        for k, (features, penalty, style, color) in enumerate(ESTIMATORS):
            label = f"{features}-{penalty.capitalize()}"
            ax.errorbar(
                sizes, means[:, k], spread[:, k], fmt=style, color=color, capsize=3, label=label)
        ax.set(title=f"$\\ell/m$ = {percent} %", xlabel="training samples n", ylim=(-0.3, 1.02))
