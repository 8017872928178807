"""shared_maps.py -- does sharing features do anything?              [F23, our reading]

    z (N, 6)      factors of images of 3D Shapes         X = z mixed by a random rotation, (N, 6)
    V (6, m)      a linear map; F = X V (N, m) are the features: more of them, m = 10 or 20, than
                  factors, so that tasks may use the same few, or each its own
    phi (T, m)    heads of binary tasks of one to three factors, with few samples

Tasks, heads and objective are those of sharing.py, of which only the encoder is exchanged (and
unseen tasks are tested on images of the training distribution): a run takes a minute, so that alpha
and beta can be tried on a grid with five seeds, on the same tasks.
"""
import dataclasses
import time
from typing import ClassVar

import numpy as np

import data
import metrics
import sparsedis
from experiments import maps, results, settings, sharing, tell
from experiments.settings import option
from experiments.sharing_data import BinaryTasks
from solvers import NotIdentified
from sparsetasks.rotation import unmix

SHOTS = (5, 13, 50)  # support samples of each class, of unseen tasks
POOL, TEST_TASKS = 40, 40
SCORED = 5000  # images


@dataclasses.dataclass(frozen=True)
class SharedMaps(settings.CPURunSettings):
    """Train a linear map to more features than factors through sparse heads that share them."""

    experiment: ClassVar[str] = "shared_maps"
    numbers: ClassVar[tuple] = ("mcc", "r", "dci_d", "dci_d_matched", "accuracy_13", "unused")
    method: str = option("sharing", sharing.METHOD, choices=sharing.METHODS)
    alpha: float = option(0.1, "sharing: weight of the heads' L1 norm", 1e-6, 10)
    beta: float = option(0.0, "sharing: weight of the entropy of the importances", 0, 10)
    m: int = option(10, "features", 2, 100)
    factors: int = option(2, "factors of a task, joined by AND", 1, 3)
    shot: int = option(13, "support samples of each class, in training", 2, 1000)
    steps: int = option(300, "outer steps", 1)
    lr: float = option(0.03, "Adam's learning rate at the start of its cosine decay", 1e-12, 10)


def command(config):
    """Run, and tell the scores."""
    tell.announce(config, "about a minute")
    result, run = shared_maps(config)
    told = ", ".join(f"{result[f'accuracy_{shot}']:.3f} of {shot}" for shot in SHOTS)
    print(f"MCC {result['mcc']:.4f}   R {result['r']:.4f}   DCI-D {result['dci_d']:.4f}, "
          f"of matched features {result['dci_d_matched']:.4f}   unused {result['unused']:.2f}")
    print(f"accuracy on unseen tasks: {told} samples a class")
    run.tell_files()


def shared_maps(config):
    """Train, score  ->  the content of result.json, and its results.Run."""
    run = results.Run(config)
    kept = run.kept()
    if kept:
        return kept, run
    pool = min(POOL, 30) if config.factors == 1 else POOL           # of one factor there are 50
    own = sharing.Sharing(
        method=config.method, alpha=config.alpha, beta=config.beta, factors=config.factors,
        shot=config.shot, pool=pool, test_tasks=48 - pool if config.factors == 1 else TEST_TASKS,
        features=config.m, seed=config.seed)
    with run, sparsedis.cpu_threads(config.threads):
        grid = data.Shapes3D()
        z, p = data.latents(grid, 1.0, 0.0)
        X = maps.mixed_factors(z, z, config.seed).X
        tasks = BinaryTasks(grid.factors, p, config.factors, own.pool + own.test_tasks)
        began = time.perf_counter()
        V = learn(config, own, X, tasks)
        seconds = time.perf_counter() - began

        def features(index):
            return X[index] @ V

        index = np.random.default_rng(20_000).integers(len(z), size=SCORED)
        result = metrics.scores(z[index], features(index)) | {"seconds": seconds}
        result |= sharing.score_matched(features, grid, z, SCORED)
        result |= score_heads(own, features, tasks)
        result["mcc_rotated"] = rotated(config, own, X, z, index, tasks)
        keys = ("seed", "method", "alpha", "beta", "m", "factors", "shot")
        return run.finish(result | {key: getattr(config, key) for key in keys}), run


def learn(config, own, X, tasks):
    """The map V at the end of the training."""
    encoder = sparsedis.mlp([X.shape[1], config.m])
    params, state = encoder.init(np.random.default_rng(config.seed), dtype=np.float64)
    params |= sharing.head_start(own)

    def sample(step):
        rng = np.random.default_rng([config.seed, step])
        some = rng.choice(own.pool, own.tasks, replace=False)
        index, Y = tasks.sample(rng, some, own.shot, own.query)
        return [X[index.ravel()]], (Y, some)

    training = sparsedis.Training(
        encoder, sample, sharing.objective_of(own, config.method), config.steps, config.lr)
    end = sparsedis.train(training, sparsedis.Snapshot(params, state, None, 0))
    return end.params[maps.WEIGHTS]


def score_heads(own, features, tasks):
    """Accuracy on unseen tasks by their samples, and how their heads share features."""
    unseen = own.pool + np.arange(own.test_tasks)
    found = {}
    for shot in dict.fromkeys((*SHOTS, own.shot)):
        accuracy, phi = sharing.accuracies(
            dataclasses.replace(own, shot=shot), features, tasks, unseen)
        found[f"accuracy_{shot}"] = float(accuracy.mean())
        if shot == own.shot:
            found |= {"entropy": float(sharing.sharing_entropy(phi[:, None])),
                      "unused": float((phi == 0).all(axis=0).mean()),
                      "features_per_head": sharing.features_per_head(phi)}
    return found


def rotated(config, own, X, z, scored, tasks):
    """MCC of X itself, unmixed by linear weights of the training tasks' labels on 100 images of a
    class: what is there without any training. None where the tasks tell no basis."""
    rng = np.random.default_rng([config.seed, 13])
    index, Y = tasks.sample(rng, np.arange(own.pool), 100, 1)
    try:
        found = unmix(X, 2 * Y[..., 0] - 1, index, widths=(0.0, 0.2), splits=2, starts=10)
    except NotIdentified:
        return None
    return metrics.mcc(z[scored], X[scored] @ found.M)
