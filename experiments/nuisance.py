"""nuisance.py -- tasks that need only some of what the images show: f is not invertible.

    z (N, 6)     the factors of an image, of which the first `needed` enter the tasks' labels
    m            features of the encoder; the others of z are nuisance

[L23, Sec. 3.2 (i)] does not assume that images are a function of the factors alone; its trials do.
The main job otherwise: disentangle.py's encoder, tasks and training.
"""
import dataclasses
import functools
from typing import ClassVar

import numpy as np

import data
import metrics
import sparsedis
from experiments import disentangle, results, settings, tell
from experiments.settings import option


@dataclasses.dataclass(frozen=True)
class Nuisance(disentangle.Disentangle):
    """The main job with tasks that need only the first few factors of the images."""

    version: ClassVar[int] = 1
    numbers: ClassVar[tuple] = ("steps", "seconds", "mcc", "r", "mcc_rotated", "leak")
    needed: int = option(4, "factors that the tasks need", 2, 6)


def command(config):
    """Run, and tell the scores."""
    tell.announce(config, "one to three minutes")
    result, run = nuisance(config)
    print(f"MCC {result['mcc']:.4f}   R {result['r']:.4f} of the {config.needed} factors needed, "
          f"rotated {result['mcc_rotated']:.4f}; R {result['leak']:.4f} of the others")
    run.tell_files()


def nuisance(config):
    """Train, score  ->  the content of result.json, and its results.Run."""
    disentangle.check(config)
    xp, device = settings.device_of(config.device)
    shapes = data.Shapes3D(config.data or None)
    run = results.Run(config, shapes.fingerprint() if config.data else "rendered")
    kept = run.kept()
    if kept:
        return kept, run
    z_all, p = data.latents(shapes, config.alpha, config.rho)
    disentangle.check_images(config, p)
    z = z_all[:, :config.needed]
    tasks = disentangle.tasks_of(config, z, p)
    encoder = sparsedis.cnn(config.features)
    features = functools.partial(
        disentangle.features_of, encoder, shapes, config.norm, xp, device)

    on_the_way = np.random.default_rng(1000).integers(len(shapes), size=500)

    def measure(params, state, info):
        return {"mcc": metrics.mcc(z[on_the_way], features(params, on_the_way))}

    sample = disentangle.sampler(config, tasks, shapes, xp, device)
    training = disentangle.training_of(config, encoder, sample)
    with run, sparsedis.cpu_threads(config.threads):
        end, rows = run.train(training, measure, xp, device)
        count = config.eval_images
        index, seen = disentangle.scored_images(p, count)
        F, F_seen = features(end.params, index), features(end.params, seen)
        result = metrics.scores(z[index], F)
        fresh = disentangle.fresh_tasks(config, z[seen], count // 20)
        result |= disentangle.score_rotation(F, z[index], F_seen, fresh)
        result |= {"leak": leak(z_all[index], F, config.needed), "seconds": rows[-1]["seconds"]}
        keys = ("steps", "seed", "rho", "head", "eps", "needed")
        result |= {key: getattr(config, key) for key in keys}
        return run.finish(result), run


def leak(z, F, needed):
    """R of the factors that no task needs, given the features, 0 where all are needed; images are
    uniform, so that nothing of them is told by the others."""
    return metrics.r_score(z[:, needed:], F) if needed < z.shape[1] else 0.0
