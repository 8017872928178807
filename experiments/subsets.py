"""subsets.py -- encoders trained through best subsets and other inner problems.    [L23, (4)]

    start     random: from scratch; lasso: from the main job's encoder, at eps = 0.3
    sizes     how many factors each task has (T,), which the head subset-size is told

The main job otherwise, as it is by default: its images, tasks, encoder and training. Inner problems
are those of maps.py, where only the last linear layer is trained.
"""
import dataclasses
from typing import ClassVar

import numpy as np

import data
import metrics
import sparsedis
from experiments import disentangle, inner_problems, maps, results, settings, tell
from experiments.settings import option


@dataclasses.dataclass(frozen=True)
class Subsets(settings.CPURunSettings):
    """Train an encoder through best subsets, refitted Lassos or a concave penalty."""

    numbers: ClassVar[tuple] = ("mcc", "r", "dci_d", "loss", "loss_at_truth")
    rho: float = option(0.9, "correlation of the factors in training", 0, 0.9999)
    head: str = option(
        maps.OF_SIZE, "how a task's predictor is fitted",
        choices=("inner-lasso", *inner_problems.HEADS, maps.OF_SIZE))
    eps: float = option(0.0, disentangle.EPS, 0, 1)
    start: str = option("random", "from scratch, or where inner-Lasso ends",
                        choices=("random", "lasso"))
    warmup: float = option(0.5, disentangle.WARMUP, 0, 1)
    steps: int = option(800, "outer steps", 1)
    lr: float = option(8e-3, "Adam's learning rate at the start", 1e-12, 1000)


def command(config):
    """Run, and tell the scores."""
    tell.announce(config, "one to three minutes, and the Lasso's encoder where it is not there")
    result, run = subsets(config)
    print(f"MCC {result['mcc']:.4f}   R {result['r']:.4f}   DCI-D {result['dci_d']:.4f}   "
          f"loss {result['loss']:.5f}, of the factors {result['loss_at_truth']:.5f}")
    run.tell_files()


def subsets(config):
    """Train, score  ->  the content of result.json, and its results.Run."""
    if not config.eps and config.head != maps.OF_SIZE:
        raise ValueError(f"--eps: found 0, expected more with --head {config.head}")
    run = results.Run(config)
    kept = run.kept()
    if kept:
        return kept, run
    usual = lasso_of(config)                                        # the main job's settings
    shapes = data.Shapes3D()
    z, p = data.latents(shapes, usual.alpha, config.rho)
    tasks, encoder = disentangle.tasks_of(usual, z, p), sparsedis.cnn(usual.features)

    def features(params, index):
        return encoder.encode(params, {}, shapes.images, index).astype(np.float64)

    on_the_way = np.random.default_rng(1000).integers(len(z), size=500)

    def measure(params, state, info):
        return {"mcc": metrics.mcc(z[on_the_way], features(params, on_the_way))}

    own = dataclasses.replace(usual, steps=config.steps, lr=config.lr)
    sample = sampler(config.seed, tasks, shapes)
    training = disentangle.training_of(own, encoder, sample, maps.Objective(config))
    extra = trained_params(usual) if config.start == "lasso" else {}
    with run, sparsedis.cpu_threads(config.threads):
        end, rows = run.train(training, measure, extra=extra)
        index, seen = disentangle.scored_images(p, usual.eval_images, 5000)
        result = metrics.scores(z[index], features(end.params, index))
        result |= losses(config, z[seen], features(end.params, seen))
        keys = ("seed", "rho", "head", "eps", "start", "steps", "lr")
        result |= {"seconds": rows[-1]["seconds"]}
        return run.finish(result | {key: getattr(config, key) for key in keys}), run


def sampler(seed, tasks, shapes):
    """sample(step) of a training: images, and their labels with the sizes of tasks."""
    def sample(step):
        rng = np.random.default_rng([seed, step])
        W = tasks.sample_coefficients(rng)
        index, y = tasks.sample_labels(rng, W)
        return [shapes.images(index.ravel())], (y, maps.sizes_of(W))

    return sample


def lasso_of(config):
    """The settings of the main job's run from whose end start=lasso goes on."""
    return disentangle.Disentangle(
        rho=config.rho, seed=config.seed, threads=config.threads, results=config.results)


def trained_params(usual):
    """The parameters at the end of a run of the main job."""
    checkpoint = disentangle.other_run(usual).path("checkpoint.npz")
    return results.load_checkpoint(checkpoint).snapshot.params


def losses(config, z, F):
    """The outer loss of 640 tasks at full strength, on features F (N, m), and on the factors z."""
    tasks = maps.tasks_of(maps.Maps(), z, sets=40)
    return {"loss": maps.outer_loss(config, F, tasks),
            "loss_at_truth": maps.outer_loss(config, z, tasks)}
