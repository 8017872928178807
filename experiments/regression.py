"""regression.py -- Fig. 1: sparse linear tasks on disentangled and entangled features.

    z (n, m)   disentangled features, m = 100; the entangled ones are a random rotation of them
    y (n,)     labels, w.z + noise, where w has `active` entries of m

Lasso profits from few active features only where features are disentangled; ridge sees no rotation.
[L23, Sec. 2.2, App. D.1, Fig. 1]
"""
import itertools
import warnings
from collections import namedtuple

import joblib
import numpy as np
from sklearn.linear_model import LassoCV, RidgeCV

from experiments import plots

# What features are fitted by which penalty, and how its line is drawn.
Estimator = namedtuple("Estimator", "features penalty style color")


ESTIMATORS = (
    Estimator("disentangled", "lasso", "o-", "C1"), Estimator("entangled", "lasso", "o-", "C0"),
    Estimator("disentangled", "ridge", "^--", "C1"), Estimator("entangled", "ridge", "^--", "C0"))
PERCENTS, SIZES = (5, 20, 80), (25, 50, 75, 100, 125, 150)
SEEDS = 10


def gaussian_task(rng, n, m=100, active=5, covariance="ar", noise=0.04):
    """Features z (n, m), labels y (n,) and coefficients w (m,) of one sparse task.

    z ~ N(0, Sigma), Sigma_ij = 0.9^|i-j| ("ar") or I ("identity"); w has `active` entries N(0, 1);
    y = w.z + N(0, noise).                                          [L23, App. D.1]
    """
    Sigma = np.eye(m)
    if covariance == "ar":
        Sigma = 0.9 ** np.abs(np.subtract.outer(np.arange(m), np.arange(m)))
    z = rng.standard_normal((n, m)) @ np.linalg.cholesky(Sigma).T
    w = np.zeros(m)
    w[rng.choice(m, active, replace=False)] = rng.standard_normal(active)
    return z, z @ w + noise ** 0.5 * rng.standard_normal(n), w


def scores_of_task(covariance, percent, n, seed, m=100):
    """R^2 of each estimator on 1,000 test samples of one task, penalties by 5-fold CV."""
    warnings.simplefilter("ignore")                                 # of fits that stop early
    rng = np.random.default_rng([seed, percent, n])
    z, y, _ = gaussian_task(rng, n + 1000, m, percent * m // 100, covariance)
    rotation, _ = np.linalg.qr(rng.standard_normal((m, m)))
    scores = []
    for estimator in ESTIMATORS:
        X = z if estimator.features == "disentangled" else z @ rotation
        if estimator.penalty == "lasso":
            fit = LassoCV(cv=5, max_iter=5000)
        else:
            fit = RidgeCV(np.logspace(-4, 5, 40), cv=5)
        scores.append(fit.fit(X[:n], y[:n]).score(X[n:], y[n:]))
    return scores


def draw_fig1(covariance, jobs, path, seeds=SEEDS, percents=PERCENTS, sizes=SIZES):
    """R^2 against the number of samples, a panel for each sparsity, mean and standard error.

    Returns the scores (percents, sizes, seeds, estimators).
    """
    cells = itertools.product(percents, sizes, range(seeds))
    tasks = (joblib.delayed(scores_of_task)(covariance, *cell) for cell in cells)
    scores = joblib.Parallel(n_jobs=jobs)(tasks)
    scores = np.reshape(scores, (len(percents), len(sizes), seeds, len(ESTIMATORS)))
    fig, axes = plots.subplots(1, len(percents), (3.7 * len(percents), 3.2))
    axes = np.atleast_1d(axes)
    for ax, percent, told in zip(axes, percents, scores, strict=True):
        mean, error = told.mean(axis=1), told.std(axis=1) / seeds ** 0.5
        for k, (features, penalty, style, color) in enumerate(ESTIMATORS):
            print(
                f"l/m = {percent} %, n = {sizes[0]}, {features}-{penalty}: "
                f"R^2 {mean[0, k]:.2f} +- {error[0, k]:.2f}")
            label = f"{features}-{penalty.capitalize()}"
            ax.errorbar(
                sizes, mean[:, k], error[:, k], fmt=style, color=color, capsize=3, label=label)
        ax.set(title=f"$\\ell/m$ = {percent} %", xlabel="samples", ylim=(-0.3, 1.02))
    axes[0].set_ylabel("$R^2$")
    axes[-1].legend(fontsize=8)
    plots.save(fig, path)
    return scores
