"""penalties.py -- eps of the sparse fits learned by its hypergradient, or chosen.  [L23, (7)]

    X, V, F      given features, the map and its features F = X V, as in maps.py
    n            samples that a task is fitted on; held out are as many others
    lam_t        eps lambda_max of task t                          dlam (T,)   dL/dlam_t
    dL/dlog eps  sum_t dlam_t lam_t, with lambda_max a constant, as everywhere

Moments of features and labels are of all samples of a set, held out or not. A run trains five
maps, from other starts and on other tasks, on the same features, so that they can be compared by
UDR: by correlation on images of independent factors, and ("seen") by correlation and by regression
on those of the training distribution, which is what who does not know the factors has. Seed 0 has
starts 0 to 4, on which eps is chosen; seed 1 has 5 to 9, whose scores are told.
"""
import dataclasses
from typing import ClassVar

import numpy as np

import metrics
import solvers
import sparsedis
from experiments import disentangle, maps, results, settings, tell
from experiments.settings import option

STARTS = 5
COMPARED = 2000  # images of UDR
LOG_EPS = "head.log_eps"  # among the parameters


@dataclasses.dataclass(frozen=True)
class Penalties(settings.CPURunSettings):
    """Train linear maps through Lassos whose penalty is given, or learned, and compare them."""

    numbers: ClassVar[tuple] = (
        "mcc", "r", "udr", "udr_seen", "udr_regressed", "loss", "eps_end")
    on: str = option("factors", maps.ON, choices=("factors", "encoder"))
    rho: float = option(0.9, "correlation of the factors in training", 0, 0.9999)
    eps: float = option(0.3, disentangle.EPS, 1e-6, 1)
    learn: bool = option(False, "learn eps, which starts as given, by its hypergradient")
    held_out: bool = option(False, "score on other samples than those of the fit, Problem (7)")
    samples: int = option(25, "samples that a task is fitted on, n", 7, 1000)
    warmup: float = option(0.5, disentangle.WARMUP, 0, 1)
    steps: int = option(400, "outer steps", 1)
    lr: float = option(0.1, "Adam's learning rate at the start of its cosine decay", 1e-12, 10)


def command(config):
    """Run, and tell the scores."""
    tell.announce(config, maps.AND_ENCODER.format("half a minute"))
    result, run = penalties(config)
    print(f"MCC {result['mcc']:.4f}   R {result['r']:.4f}   UDR {result['udr']:.4f}, on images as "
          f"trained on {result['udr_seen']:.4f}, by regression {result['udr_regressed']:.4f}   "
          f"loss on held-out samples {result['loss']:.5f}   eps {result['eps_end']:.4f}")
    run.tell_files()


def penalties(config):
    """Train the maps, score them  ->  the content of result.json, and its results.Run."""
    run = results.Run(config)
    kept = run.kept()
    if kept:
        return kept, run
    with run, sparsedis.cpu_threads(config.threads):
        given = maps.features_of_images(config.on, config.rho, 0, config.results)
        ends = [learn(config, given, config.seed * STARTS + start) for start in range(STARTS)]
        F = [given.X_uniform @ V for V, _ in ends]
        F_seen = [given.X @ V for V, _ in ends]
        scores = [metrics.mcc(given.z_uniform, a) for a in F]
        losses = [held_out_loss(given, V, eps, config.samples) for V, eps in ends]
        result = {
            "mcc": float(np.mean(scores)), "mccs": scores,
            "r": metrics.r_score(given.z_uniform, F[0]),
            "udr": agreement(F), "udr_seen": agreement(F_seen),
            "udr_regressed": agreement(F_seen, "regression"),
            "encoder": given.encoder, "loss": float(np.mean(losses)),
            "eps_end": float(np.mean([eps for _, eps in ends]))}
        keys = ("seed", "on", "rho", "eps", "learn", "held_out", "samples")
        return run.finish(result | {key: getattr(config, key) for key in keys}), run


def agreement(F, by="correlation"):
    """The median UDR of models' features, of the same images."""
    return float(np.median(metrics.udr([a[:COMPARED] for a in F], by)))


def centred_labels(tasks, rng):
    """index (G, n) and y (G, K, n) of a step, each task's labels of mean 0, as its features are:
    where not all are fitted, predictors have no intercept to make up for it."""
    index, y = tasks.sample_labels(rng, tasks.sample_coefficients(rng))
    return index, y - y.mean(axis=-1, keepdims=True)


def learn(config, given, start):
    """The map V and eps at the end of a training."""
    m = given.z.shape[1]
    encoder = sparsedis.mlp([given.X.shape[1], m])
    params, state = encoder.init(np.random.default_rng(start), dtype=np.float64)
    if config.learn:
        params |= {LOG_EPS: np.log(np.array(config.eps))}
    n = config.samples
    images = 2 * n if config.held_out else n                        # of a set
    tasks = maps.tasks_of(maps.Maps(samples=images), given.z)

    def sample(step):
        index, y = centred_labels(tasks, np.random.default_rng([start, step]))
        return [given.X[index.ravel()]], y

    objective = objective_of(config.eps, config.warmup, n if config.held_out else None)
    training = sparsedis.Training(encoder, sample, objective, config.steps, config.lr)
    end = sparsedis.train(training, sparsedis.Snapshot(params, state, None, 0)).params
    return end[maps.WEIGHTS], float(np.exp(end.get(LOG_EPS, np.log(config.eps))))


def objective_of(eps, warmup, n_support):
    """sparsedis.task_objective of inner-Lasso, in which eps is learned where params have it."""
    def objective(progress, features, y, params):
        F, = features
        learned = LOG_EPS in params
        now = np.exp(params[LOG_EPS]) if learned else eps
        now = now * sparsedis.rise(progress, warmup)
        F_sets = F.reshape(len(y), y.shape[2], -1)
        loss, dF, info = sparsedis.head_on_sets(
            lasso_and_penalty, solvers.lasso_lambda_max, F_sets, y, now, n_support)
        dparams = {LOG_EPS: info["dlog_lam"]} if learned else {}
        return loss, [dF.reshape(F.shape)], dparams, info

    return objective


def lasso_and_penalty(F, y, lam, n_support=None):
    """sparsedis.inner_lasso, whose info also has dL/dlog lam = sum_t dlam_t lam_t."""
    def fit_vjp(F, y, lam, w, dw, info):
        dF, _, dlam = solvers.lasso_vjp(F, y, lam, w, dw)
        return dF, {"dlog_lam": (dlam * lam).sum()}

    loss, dF, dlog, info = sparsedis.bilevel(
        solvers.lasso, fit_vjp, sparsedis.squared_error, F, y, lam, n_support)
    return loss, dF, {}, info | dlog


def held_out_loss(given, V, eps, n):
    """The loss of Problem (7) at a map, on 640 tasks, the same for all."""
    tasks = maps.tasks_of(maps.Maps(samples=2 * n), given.z, sets=40)
    index, y = centred_labels(tasks, np.random.default_rng(10_000))
    loss, _, _ = sparsedis.head_on_sets(
        sparsedis.inner_lasso, solvers.lasso_lambda_max, (given.X @ V)[index], y, eps, n)
    return float(loss)
