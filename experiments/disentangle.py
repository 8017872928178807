"""disentangle.py -- the main job: an encoder trained through many sparse linear fits.

    images of 3D Shapes with correlated factors, sparse tasks on them  ->  MCC, R, DCI

    z (N, 6), p (N,)   standardised factors of all N = 480,000 images; their probabilities
    G, n, K            image sets per step (4), images per set (25), tasks on each set (16)
    F (N, m)           features of images, m = 6

[L23, Sec. 5.1]. The method is sparsedis.task_objective; tasks and latents are data.Tasks and
data.latents; the folder of a run is results.Run. Other experiments use score_features.
"""
import contextlib
import dataclasses
import functools
import io
import time
from typing import ClassVar

import numpy as np

import data
import metrics
import sparsedis
from experiments import plots, results, settings, tell
from experiments.settings import ELSEWHERE, option
from solvers import NotIdentified
from sparsetasks.rotation import unmix

HEADS = ("inner-lasso", "inner-ridge", "outer-lasso", "outer-ridge")
EPS = "strength of the penalty, a fraction of lambda_max; 0 fits without penalty"
WARMUP = "share of the steps over which eps rises from 0 (ours); 0: constant eps, as in the paper"
SPLIT = "fit on this many samples and score on the others, Problem (7); 0: both on all, Problem (6)"
NORM = "features are normalised over a set's samples, or each sample's to a sum of 0, or not"
FLAT = "share of the steps at the full learning rate, before half a cosine to 0; 1: constant"
IMAGE_BYTES = 200_000  # at least, in training: the pixels, the first layer's outputs
SHIFT = "how far a set's images are tilted towards its tasks' factors: p(x | W) differs by set"


@dataclasses.dataclass(frozen=True)
class Disentangle(settings.RunSettings):
    """Train an encoder through many sparse linear fits and score its features.   [L23, Sec. 5.1]"""

    version: ClassVar[int] = 2                                      # other blocks-B, other defaults
    numbers: ClassVar[tuple] = ("steps", "seconds", *tell.SCORES)
    rho: float = option(0.9, "correlation of the factors in training, 0 <= rho < 1", 0, 0.9999)
    alpha: float = option(1.0, "noise on the factors, in steps between their levels", 0, 1)
    tasks: str = option("bernoulli-gauss", f"distribution of the coefficients: {data.TASK_KINDS}")
    outputs: int = option(1, "outputs of a task, or classes", 1)
    likelihood: str = option(
        "gaussian", "of the labels; categorical: fitted by group-Lasso logistic regression",
        choices=data.LIKELIHOODS)
    shift: float = option(0.0, SHIFT, 0, 5)
    head: str = option("inner-lasso", "how a task's predictor is fitted", choices=HEADS)
    eps: float = option(0.3, EPS, 0, 1)
    warmup: float = option(0.5, WARMUP, 0, 1)
    steps: int = option(800, "outer steps", 1)
    lr: float = option(8e-3, "Adam's learning rate at the start (published: 1e-3)", 1e-12, 1000)
    flat: float = option(0.3, FLAT, 0, 1)
    beta1: float = option(0.85, "Adam's decay of the mean (the usual: 0.9)", 0, 0.9999)
    beta2: float = option(0.99, "Adam's decay of the square (the usual: 0.999)", 0, 0.99999)
    image_sets: int = option(4, "image sets per step (the paper's code: 8)", 1)
    samples: int = option(25, "images per set (the paper's code: 50)", 2)
    tasks_per_set: int = option(16, "tasks that share a set's images (ours; the paper: 1)", 1)
    split: int = option(0, SPLIT, 0)
    norm: str = option("batch", NORM, choices=("batch", "layer", "none"))
    features: int = option(6, "features of the encoder, m", 1)
    eval_images: int = option(20_000, "images of the final scores, drawn uniformly", 2)
    data: str = option(
        "", "the official 3dshapes.h5, or one with fewer rows; rendered when not given",
        **ELSEWHERE)


def command(config):
    """Run, and tell the scores."""
    tell.announce(config, "one to three minutes")
    result, run = disentangle(config)
    tell.scores(result)
    run.tell_files()


def disentangle(config):
    """Train, score, draw  ->  the content of result.json, and its results.Run."""
    check(config)
    xp, device = settings.device_of(config.device)
    shapes = data.Shapes3D(config.data or None)
    run = results.Run(config, shapes.fingerprint() if config.data else "rendered")
    kept = run.kept()
    if kept:
        return kept, run
    z, p = data.latents(shapes, config.alpha, config.rho)
    check_images(config, p)
    tasks = tasks_of(config, z, p)
    describe(config, z, p)
    encoder = sparsedis.cnn(config.features)
    features = functools.partial(features_of, encoder, shapes, config.norm, xp, device)

    some = min(1000, config.eval_images)
    on_the_way = np.random.default_rng(1000).integers(len(shapes), size=some)

    def measure(params, state, info):
        F = features(params, on_the_way)
        size = float(np.sqrt(np.mean(F * F)))                       # grows without a norm
        return {"eps": info["eps"], "mcc": metrics.mcc(z[on_the_way], F), "size": size}

    training = training_of(config, encoder, sampler(config, tasks, shapes, xp, device))
    with run, sparsedis.cpu_threads(config.threads):
        end, rows = run.train(training, measure, xp, device)
        draw_training(rows, run.path("training.png"), metrics.chance(z.shape[1], config.features))
        trained = functools.partial(features, end.params)
        fresh = functools.partial(fresh_tasks, config)
        result = score_features(trained, shapes, z, p, config.eval_images, run, fresh)
        result |= {key: rows[-1][key] for key in ("seconds", "nonzero")}
        keys = ("steps", "seed", "rho", "alpha", "head", "eps", "tasks")
        return run.finish(result | {key: getattr(config, key) for key in keys}), run


def sampler(config, tasks, shapes, xp, device):
    """sample(step) of a training: images and labels."""
    def sample(step):
        index, y = tasks.sample(np.random.default_rng([config.seed, step]))
        if config.split and config.likelihood == "gaussian":
            y = y - y.mean(axis=2, keepdims=True)                   # there is no intercept
        return [shapes.images(index.ravel(), xp, device)], xp.asarray(y, device=device)

    return sample


def other_run(config):
    """The results.Run of these settings, for an experiment that goes on from it: made where it is
    not there, without a word; waited for where another process is at work on it."""
    while True:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                return disentangle(config)[1]
        except results.AtWork:
            time.sleep(5)


def training_of(config, encoder, sample, objective=None):
    """The sparsedis.Training of settings; the objective is Problem (6) or (7), unless given."""
    objective = objective or sparsedis.task_objective(
        head_of(config), config.eps, config.warmup, config.split or None, config.norm)
    optimiser = (
        functools.partial(sparsedis.adam, beta1=config.beta1, beta2=config.beta2),
        functools.partial(sparsedis.cosine, flat=config.flat))
    return sparsedis.Training(encoder, sample, objective, config.steps, config.lr, optimiser)


def check(config):
    """Refuse settings that do not go together, with the flag's name."""
    if config.split and not config.split < config.samples:
        raise ValueError(
            f"--split: found {config.split}, expected less than --samples, {config.samples}")
    if config.norm == "layer" and config.features == 1:
        raise ValueError("--features: found 1, expected at least 2 with --norm layer")
    head_of(config)
    images = config.image_sets * config.samples                     # of a step
    numbers = images * config.tasks_per_set * (config.features + config.outputs)
    numbers += config.eval_images * config.features + 4000 * config.outputs
    settings.check_memory(config, IMAGE_BYTES * images + 1000 * config.features + 24 * numbers)
    check_eval_images(config)


def check_eval_images(config):
    """Refuse scores on so few images that any feature fits any factor."""
    refuse_few(config, "--eval-images", config.eval_images)


def refuse_few(config, flag, count):
    """ValueError where there are fewer images than five a feature."""
    least = 5 * max(config.features, len(data.FACTORS))
    if count < least:
        raise ValueError(
            f"{flag}: found {count} images, expected at least {least}, five a feature")


def check_images(config, p):
    """Refuse files of so few images that any feature fits any factor, and weights that leave fewer
    than there are factors."""
    refuse_few(config, f"--data {config.data}", len(p))
    refuse_few_effective(f"--rho {config.rho} --alpha {config.alpha}", p)


def refuse_few_effective(flags, p):
    """ValueError where weights p leave fewer effective images than there are factors."""
    effective = 1 / np.sum(p ** 2)
    if effective < len(data.FACTORS):
        raise ValueError(f"{flags}: leaves {effective:.1f} effective images")


def head_of(config):
    """The head that fits the chosen tasks."""
    if config.outputs == 1 and config.likelihood == "gaussian":
        return config.head
    if config.head != "inner-lasso":
        raise ValueError(
            f"--head: found {config.head}, expected inner-lasso for tasks of several outputs or "
            "classes")
    several = {"gaussian": "inner-group-lasso", "categorical": "inner-group-logistic"}
    return several[config.likelihood]


def tasks_of(config, z, p):
    """The distribution of tasks that the settings ask for."""
    return data.Tasks(
        z, p, sets=config.image_sets, samples=config.samples, per_set=config.tasks_per_set,
        kind=config.tasks, outputs=config.outputs, likelihood=config.likelihood,
        shift=config.shift)


def describe(config, z, p):
    """Print how many images the weights leave, and which assumptions the tasks meet."""
    several = tasks_of(dataclasses.replace(config, image_sets=1, tasks_per_set=4000), z, p)
    W, = several.sample_coefficients(np.random.default_rng(0))      # (4000, k, 6)
    some = np.random.default_rng(0).integers(len(z), size=1000)
    verdicts = metrics.assumptions(z[some], W, config.likelihood)
    tell.training_data(data.describe_latents(z, p), verdicts)


def draw_training(rows, path, chance):
    """Loss, sparsity and MCC against the step."""
    titles = {
        "loss": "outer loss (rises with eps)",
        "nonzero": "share of weights not zero",
        "mcc": "MCC (at most 1,000 images)"}
    plots.draw_training(rows, path, titles, chance)


# ------------------------------------------------------------------------------ scores


def features_of(encoder, shapes, norm, xp, device, params, index):
    """Features (N, m), as NumPy, of the images of an index.

    Batch norm, a scale and a shift of each feature, changes no score and is left out; layer norm is
    applied.
    """
    def images(i):
        return shapes.images(i, xp, device)

    F = metrics.to_numpy(encoder.encode(params, {}, images, index))
    return sparsedis.normalise(F[None], "layer")[0][0] if norm == "layer" else F


def scored_images(p, count, count_seen=10_000):
    """The images of the scores, the same for all runs: so many drawn uniformly, and by p."""
    return (np.random.default_rng(20_000).integers(len(p), size=count),
            np.random.default_rng(20_001).choice(len(p), min(count, count_seen), p=p))


def score_features(features, shapes, z, p, count, run, tasks_on=None):
    """Scores of features(index) on `count` images drawn uniformly; two figures in a run's folder.

    The scores are also those after linear ICA (NAME_ica), fitted on the training distribution p,
    and, given tasks_on(z, count), after a rotation to sparse weights of these (NAME_rotated).
    Per factor: mcc_NAME, the |correlation| with its matched feature, and seen_NAME, that under p.
    """
    index, drawn = scored_images(p, count)
    F = features(index)
    if not np.isfinite(F).all():
        raise FloatingPointError("the encoder's features are not finite")
    C = metrics.correlation(z[index], F)
    matched = metrics.match(C)
    plots.draw_correlation(C, matched, shapes.names, run.path("correlation.png"))
    plots.draw_responses(features, shapes, F, matched, run.path("responses.png"))
    F_seen = features(drawn)
    C_seen = metrics.correlation(z[drawn], F_seen)
    scores = metrics.scores(z[index], F)
    by_ica = metrics.scores(z[index], metrics.ica(F, F_seen))
    scores |= {f"{name}_ica": value for name, value in by_ica.items()}
    if tasks_on:
        scores |= score_rotation(F, z[index], F_seen, tasks_on(z[drawn], count // 20))
    for size in (1, 2, 3):
        scores[f"block_share_{size}"] = metrics.block_share(z[index], F, size)
    for factor, feature in zip(*matched, strict=True):
        scores[f"seen_{shapes.names[factor]}"] = float(C_seen[factor, feature])
    for factor, feature in zip(*matched, strict=True):
        scores[f"mcc_{shapes.names[factor]}"] = float(C[factor, feature])
    return scores


def fresh_tasks(config, z, count, seed=20_002):
    """Labels Y (T, n) and index (T, n) of `count` tasks as a run's, each on its own images, of
    latents z; at most 1,000. Of several outputs each is a task. Of finitely many tasks, which are
    of one output, each comes once, whatever the count."""
    rng = np.random.default_rng(seed)
    uniform = np.full(len(z), 1 / len(z))
    one_each = dataclasses.replace(config, image_sets=min(1000, max(1, count)), tasks_per_set=1)
    tasks = tasks_of(one_each, z, uniform)
    W = tasks.sample_coefficients(rng)                              # (T, 1, k, d)
    if config.tasks.startswith("finite") and config.outputs == 1:
        W = data.finite_tasks(config.tasks, z.shape[1])[:1000, None, None, :]
    index, y = tasks.sample_labels(rng, W)                          # (T, n), (T, 1, n[, k])
    Y = y.reshape(*index.shape, -1).transpose(2, 0, 1)              # (k, T, n)
    return Y.reshape(-1, index.shape[1]), np.tile(index, (len(Y), 1))


def score_rotation(F, z, F_seen, tasks):
    """Scores of F (N, m) rotated to sparse weights of tasks on F_seen, how many of its `features`
    the rotation calls identified, and its least stability; unrotated, and the least 0, where no
    basis can be told."""
    identified, stability = 0, 0.0
    try:
        rotation = unmix(F_seen, *tasks, widths=(0.0,), splits=3, starts=10)
        F = F @ rotation.M
        identified = int(np.sum(rotation.identified))
        stability = float(np.nan_to_num(rotation.stability).min())
    except NotIdentified:                                           # too few tasks, or too short
        pass
    scores = {f"{name}_rotated": value for name, value in metrics.scores(z, F).items()}
    return scores | {"identified": identified, "stability": stability, "features": F.shape[1]}
