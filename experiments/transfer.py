"""transfer.py -- Section 2 of [L23] with learned features: new sparse tasks from few samples.

    F (N, m)     features of images, of the training distribution and uniform ones
    n            samples of a new task: 5 to 200          R^2 on 1,000 others, drawn likewise: of
                 200 samples 7 % of these at rho 0.9 are fitted on, too, at 0.99 nine in ten

    lasso        the main job's encoder, trained through Lasso fits         ridge   through ridge
    none         without penalty        rotated, ica        the same encoder, unmixed afterwards
    factors      the factors themselves, which is the most there is

Section 2 takes features as given, disentangled or not; Section 3 learns them. Also told: MCC and R
on both distributions.
"""
import dataclasses
import warnings
from typing import ClassVar

import numpy as np
from sklearn.linear_model import LassoCV, RidgeCV

import data
import metrics
import sparsedis
from experiments import maps, results, settings, tell
from experiments.settings import option

ENCODERS = {  # method: head and eps of the encoder; eps of Lasso and ridge is the best of `main`
    "lasso": ("inner-lasso", 0.3), "ridge": ("inner-ridge", 0.1), "none": ("inner-lasso", 0.0),
    "rotated": ("inner-lasso", 0.0), "ica": ("inner-lasso", 0.0)}
METHODS = (*ENCODERS, "factors")
SIZES = (5, 10, 25, 50, 100, 200)
TEST = 1000
NOISE = 0.1  # of a label's signal, as in training


@dataclasses.dataclass(frozen=True)
class Transfer(settings.CPURunSettings):
    """Learn new sparse tasks on features that were learned before, from few samples."""

    numbers: ClassVar[tuple] = ("mcc", "r", "mcc_seen", "r_seen")
    method: str = option("lasso", "what the features are of", choices=METHODS)
    rho: float = option(0.9, "correlation of the factors in training", 0, 0.9999)
    draws: int = option(10, "new tasks", 1, 1000)


def command(config):
    """Run, and tell the scores."""
    tell.announce(config, "about a minute, and the encoder's training where it is not there")
    result, run = transfer(config)
    for n in SIZES:
        told = [f"{key} {result[f'{key}_{n}']:.3f}" for key in ("lasso", "ridge")]
        print(f"R^2 of {n:>3} samples: {', '.join(told)}, on uniform images "
              f"{result[f'lasso_{n}_uniform']:.3f}, {result[f'ridge_{n}_uniform']:.3f}")
    run.tell_files()


def transfer(config):
    """Fit, score  ->  the content of result.json, and its results.Run."""
    run = results.Run(config)
    kept = run.kept()
    if kept:
        return kept, run
    with run, sparsedis.cpu_threads(config.threads):
        given = features_of(config)
        result = {"method": config.method, "rho": config.rho, "seed": config.seed}
        result |= {"encoder": given.encoder}
        for name, z, F in (("", given.z_uniform, given.X_uniform), ("_seen", given.z, given.X)):
            result |= {f"mcc{name}": metrics.mcc(z, F), f"r{name}": metrics.r_score(z, F)}
        for name, z, F in (("", given.z, given.X), ("_uniform", given.z_uniform, given.X_uniform)):
            scores = r2_of_tasks(z, F, config.draws, config.seed)   # (draws, sizes, 2)
            for j, n in enumerate(SIZES):
                lasso, ridge = scores[:, j].mean(axis=0)
                result |= {f"lasso_{n}{name}": float(lasso), f"ridge_{n}{name}": float(ridge)}
        return run.finish(result), run


def features_of(config):
    """The maps.Given of a method."""
    if config.method == "factors":
        seen, uniform, z = maps.drawn_images(config.rho, config.seed)
        return maps.Given(z[seen], z[seen], z[uniform], z[uniform])
    head, eps = ENCODERS[config.method]
    given = maps.encoded_images(head, eps, config.rho, config.seed, config.results)
    if config.method == "ica":
        both = metrics.ica(np.concatenate([given.X, given.X_uniform]), given.X)
        return given._replace(X=both[:len(given.X)], X_uniform=both[len(given.X):])
    if config.method == "rotated":
        rng = np.random.default_rng([config.seed, 11])
        W = data.sample_tasks(rng, maps.FRESH, given.z.shape[1])
        M = maps.unmixed(given, W, rng).M
        return given._replace(X=given.X @ M, X_uniform=given.X_uniform @ M)
    return given


def r2_of_tasks(z, F, draws, seed):
    """R^2 (draws, sizes, 2) of Lasso and ridge, their penalties by the squared error of five folds,
    on new tasks."""
    scores = np.empty((draws, len(SIZES), 2))
    for i in range(draws):
        rng = np.random.default_rng([seed, i, 12])
        w = data.sample_tasks(rng, 1, z.shape[1])[0]
        rows = rng.choice(len(z), max(SIZES) + TEST, replace=False)
        y = z[rows] @ w
        y = y + NOISE * y.std() * rng.standard_normal(len(y))
        X, test = F[rows], slice(max(SIZES), None)
        for j, n in enumerate(SIZES):
            for k, model in enumerate(models()):
                scores[i, j, k] = fitted(model, X[:n], y[:n]).score(X[test], y[test])
    return scores


def models():
    """Lasso and ridge that choose their penalties alike: RidgeCV's own way, by R^2, has none of a
    fold of one sample."""
    ridge = RidgeCV(np.logspace(-4, 4, 33), cv=5, scoring="neg_mean_squared_error")
    return LassoCV(cv=5), ridge


def fitted(model, X, y):
    """The model, fitted without the warnings of fits that stop early."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(X, y)
