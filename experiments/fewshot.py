"""fewshot.py -- few-shot learning with group-Lasso multiclass SVMs.               [L23, Sec. 5.2]

    T          episodes; way classes, shot support and query other samples of each
    F (T, n, m)  features, support first       Y (T, n, way)  one-hot labels
    W (T, way, m)  a classifier of each episode; lam1 switches features off as groups
    used, dead (T, m)  features with W_j != 0; features that are 0 on the whole support set

The episodes are drawn by a source of episodes.py; the heads are those of episode_heads.py, the
networks those of episode_networks.py.
"""
import dataclasses
import functools
import hashlib
import itertools
from collections import namedtuple
from pathlib import Path
from typing import ClassVar

import numpy as np

import data
import metrics
import solvers
import sparsedis
from experiments import episode_networks, episodes, plots, results, settings, tell
from experiments.episode_heads import EPISODE_HEADS, episode_objective, head_params
from experiments.episode_networks import OPTIMISERS
from experiments.settings import ELSEWHERE, option

EPS = "svm: lam1 as a fraction of svm_lambda_max, 0 for a dense one; logistic: of its own"
DATA = "omniglot: zips, separated by commas; npz: the folder; shapes: 3dshapes.h5 (or rendered)"
NOISE = "deviation of Gaussian noise on the images, whose values are 0 to 1; not of shapes"
OPTIMISER = "Adam with cosine decay, or SGD with MetaOptNet's schedule (for --lr 0.1)"
HEADS_WITH = {                                                      # the heads that a setting is of
    "learn_lams": ("svm",), "lam1": ("svm",), "lam2": ("svm", "ridge"), "eps": ("svm", "logistic")}
PIXEL_BYTES = {"conv4": 550, "cnn": 75, "resnet12": 4300}  # of training images, kept for backward


@dataclasses.dataclass(frozen=True)
class FewShot(settings.RunSettings):
    """Train an encoder through the group-Lasso SVMs (or other classifiers) of few-shot episodes.

    [L23, Sec. 5.2]
    """

    numbers: ClassVar[tuple] = ("steps", "seconds", "accuracy", "accuracy_ci", "off", "dead")
    source: str = option(
        "glyphs", "of the episodes; npz: a folder of three splits, as miniImageNet's",
        choices=("glyphs", "omniglot", "npz", "shapes"))
    encoder: str = option(
        "conv4", "the network; cnn is that of 3D Shapes, with --features",
        choices=("conv4", "resnet12", "cnn"))
    features: int = option(6, "features of cnn, m", 2)
    head: str = option(
        "svm", "how an episode's classifier is fitted", choices=tuple(EPISODE_HEADS))
    eps: float = option(0.02, EPS, 0, 1)
    lam1: float = option(0.0, "svm: a number to add to that lam1", 0, 1e9)
    lam2: float = option(1.0, "svm and ridge: weight of ||W||^2/2", 1e-3, 1e9)
    learn_lams: bool = option(False, "svm: learn factors of lam1 and lam2 by their hypergradients")
    way: int = option(5, "classes of an episode", 2)
    shot: int = option(5, "support samples of a class in evaluation", 1)
    train_shot: int = option(0, "support samples of a class in training; 0: as in evaluation", 0)
    query: int = option(10, "query samples of a class in evaluation", 1)
    train_query: int = option(0, "query samples of a class in training; 0: as in evaluation", 0)
    noise: float = option(0.0, NOISE, 0, 10)
    episodes: int = option(8, "episodes per step", 1)
    steps: int = option(500, "outer steps", 1)
    optimiser: str = option("adam", OPTIMISER, choices=tuple(OPTIMISERS))
    lr: float = option(1e-2, "learning rate at the start", 1e-12, 1000)
    smoothing: float = option(0.1, "of the labels of the query loss, in training", 0, 0.99)
    test_episodes: int = option(1000, "episodes of the evaluation", 2)
    data: str = option("", DATA, **ELSEWHERE)


def command(config):
    """Run, and tell the accuracy."""
    tell.announce(config, "three minutes to half an hour")
    result, run = fewshot(config)
    print(
        f"accuracy {in_percent(result, 'accuracy')} on {config.test_episodes} test episodes; "
        f"{100 * result['off']:.1f} % of live features off, {100 * result['dead']:.1f} % dead"
        f"      {result['steps']} steps, {result['seconds']:.0f} s of training")
    if result["unsolved"]:
        print(f"warning: the fits of {result['unsolved']} test episodes were not solved")
    if "gain_over_dense" in result:
        gain = f"{100 * result['gain_over_dense']:+.2f} +- {100 * result['gain_over_dense_ci']:.2f}"
        print(f"over the dense SVM on the same features and episodes: {gain} points")
    if "mcc" in result:
        print("   ".join(f"{name} {result[key]:.4f}" for key, name in tell.SCORES.items()))
    run.tell_files()


def in_percent(result, key):
    """A score and its interval."""
    return f"{100 * result[key]:.2f} +- {100 * result[key + '_ci']:.2f} %"


def fewshot(config):
    """Train, evaluate on test episodes of unseen classes, draw  ->  result, and its results.Run."""
    check(config)
    xp, device = settings.device_of(config.device)
    source, name = source_of(config)
    run = results.Run(config, name)
    kept = run.kept()
    if kept:
        return kept, run
    encoder = encoder_of(config, source.image_shape)
    train_size = Size(config.way, config.train_shot or config.shot,
                      config.train_query or config.query)
    check_sizes(config, source, train_size)
    n_support = train_size.way * train_size.shot

    def sample(step):
        rng = np.random.default_rng([config.seed, step])
        index, Y = draw_episodes(rng, source, "train", train_size, config.episodes)
        parts = index[:, :n_support], index[:, n_support:]
        x = [source.images("train", part.ravel(), xp, device, rng) for part in parts]
        return x, xp.asarray(Y, device=device)

    def encode(params, state, split, count):
        """`count` episodes of a split, EncodedEpisodes, the same ones at every call."""
        size = Size(config.way, config.shot, config.query)
        index, Y = draw_episodes(np.random.default_rng(30_000), source, split, size, count)
        images = functools.partial(source.images, split, xp=xp, device=device)
        return encode_episodes(encoder, params, state, images, index, Y)

    def measure(params, state, info):
        accuracy = evaluate(config, encode(params, state, "val", 50)).accuracy
        return {"accuracy": float(accuracy.mean()), "scale": float(params["head.scale"])}

    objective = episode_objective(config.head, strengths(config), config.smoothing)
    training = sparsedis.Training(
        encoder, sample, objective, config.steps, config.lr, OPTIMISERS[config.optimiser])
    with run, sparsedis.cpu_threads(config.threads):
        end, rows = run.train(training, measure, xp, device, head_start(config))
        result = score(config, run, encode(end.params, end.state, "test", config.test_episodes))
        if config.source == "shapes":
            result |= score_factors(encoder, source, end, xp, device)
        draw_training(rows, run.path("training.png"))
        keys = ("steps", "seed", "source", "encoder", "head", "eps", "lam2")
        result |= {"seconds": rows[-1]["seconds"]} | {key: getattr(config, key) for key in keys}
        return run.finish(result), run


def check(config):
    """Refuse settings that the chosen encoder or head does not have."""
    settings.refuse_without_effect(config, "encoder", {"features": ("cnn",)})
    settings.refuse_without_effect(config, "head", HEADS_WITH)
    if config.head == "logistic" and config.eps == 0:
        raise ValueError("--eps 0: not with --head logistic, which has no fit of separable classes")


# How many classes an episode has, and samples of each.
Size = namedtuple("Size", "way shot query")


def source_of(config):
    """The source of episodes, and a name of its content."""
    if config.source == "shapes":
        if config.noise:
            raise ValueError("--noise: not with --source shapes")
        shapes = data.Shapes3D(config.data or None)
        name = shapes.fingerprint() if config.data else "rendered"
        return episodes.ShapesEpisodes(shapes), name
    if config.source == "glyphs":
        if config.data:
            raise ValueError("--data: needs --source omniglot, npz or shapes")
        splits, name = episodes.glyphs(), "rendered"
    elif not config.data:
        raise ValueError(f"--data: needed with --source {config.source}")
    elif config.source == "omniglot":
        splits = episodes.omniglot(config.data.split(","))
        name = fingerprint(splits)
    else:
        splits = episodes.load_splits(config.data)
        name = fingerprint(splits)
    splits = episodes.with_noise(splits, config.noise) if config.noise else splits
    side = splits["train"][0].shape[1]
    shifts = [pixels for least, pixels in ((0, 2), (32, 4), (64, 8)) if side >= least]
    return episodes.ImageEpisodes(splits, shifts[-1], config.source == "npz"), name


def fingerprint(splits):
    """Names the content of labelled images: all images and class names of each split."""
    digest = hashlib.sha256()
    for x, labels in splits.values():
        digest.update(np.ascontiguousarray(x))
        digest.update("\n".join(labels.tolist()).encode())
    return digest.hexdigest()[:10]


def encoder_of(config, image_shape):
    """The chosen network for images of a shape (H, W, C), refused where it does not fit."""
    H, W, channels = image_shape
    if config.encoder == "cnn":
        if image_shape != (64, 64, 3):
            raise ValueError(
                f"--encoder cnn: takes images (64, 64, 3), this source has {image_shape}")
        return episode_networks.cnn(config.features, norm=True)
    if min(H, W) < 16:
        raise ValueError(
            f"--encoder {config.encoder}: images of at least 16 x 16 are needed, found {H} x {W}")
    return episode_networks.ENCODERS[config.encoder](channels)


def check_sizes(config, source, train_size):
    """Refuse episodes that memory does not hold, that a split does not have, or may fail to give
    at some step."""
    own = train_size.way * (train_size.shot + train_size.query)
    tested = config.test_episodes * config.way * (config.shot + config.query)
    unknowns = config.way * config.way * max(config.shot, train_size.shot)      # of an SVM's system
    dense = 64 * unknowns ** 2 if config.head == "svm" else 0
    H, W, _ = source.image_shape
    kept = PIXEL_BYTES[config.encoder] * H * W * own * config.episodes
    settings.check_memory(config, kept + 24 * tested + dense)
    size = Size(config.way, config.shot, config.query)
    for split, own in (("train", train_size), ("val", size), ("test", size)):
        source.check(split, *own)


def draw_episodes(rng, source, split, size, count):
    """index (T, n) of images and Y (T, n, way) of `count` episodes."""
    drawn = [source.sample(rng, split, *size) for _ in range(count)]
    index, Y = zip(*drawn, strict=True)
    return np.stack(index), np.stack(Y)


def head_start(config):
    """The head's own parameters at the start (MetaOptNet's scale starts at 1)."""
    start = {"head.scale": 4.0}
    if config.learn_lams and config.head == "svm":
        start |= {"head.log_lam1": 0.0, "head.log_lam2": 0.0}
    return start


def strengths(config, dense=False):
    """lam(F, Y) of the head for support features F (T, n, m); dense: the SVM without lam1."""
    def lam(F, Y):
        if config.head == "svm" and dense:
            return 0.0, config.lam2
        if config.head == "svm":
            return config.lam1 + config.eps * solvers.svm_lambda_max(F, Y), config.lam2
        if config.head == "logistic":
            return config.eps * solvers.group_lasso_lambda_max(F, Y, "logistic")
        return config.lam2 / F.shape[1]

    return lam


# ------------------------------------------------------------------------------ evaluation


# Per episode (T,): accuracy, and whether its problem was solved; per feature (T, m): whether it is
# used, and whether it is dead, 0 on the whole support set.
Evaluation = namedtuple("Evaluation", "accuracy solved used dead")


# Episodes in features: those of all different images (images, m), the rows of each episode's
# samples (T, n), their labels (T, n, way), and the head's own parameters.
EncodedEpisodes = namedtuple("EncodedEpisodes", "F place Y head")


def encode_episodes(encoder, params, state, images, index, Y):
    """The episodes of images(index), index (T, n) and Y (T, n, way), EncodedEpisodes."""
    different, place = np.unique(index, return_inverse=True)
    F = metrics.to_numpy(encoder.encode(params, state, images, different, batch=200))
    own = head_params(params)
    head = {name: metrics.to_numpy(a).astype(np.float64) for name, a in own.items()}
    return EncodedEpisodes(F, place.reshape(index.shape), Y, head)


def evaluate(config, encoded, dense=False):
    """The Evaluation of EncodedEpisodes episodes, 25 at a time."""
    parts = []
    for i in range(0, len(encoded.Y), 25):
        F = encoded.F[encoded.place[i:i + 25]].astype(np.float64)   # (25, n, m)
        parts.append(evaluate_some(config, F, encoded.Y[i:i + 25], encoded.head, dense))
    return Evaluation(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def evaluate_some(config, F, Y, head, dense):
    """The Evaluation of some episodes at once."""
    n_support = config.way * config.shot
    F_support, Y_support = F[:, :n_support], Y[:, :n_support]
    lam = strengths(config, dense)(F_support, Y_support)
    _, _, _, info = EPISODE_HEADS[config.head](F, Y, lam, n_support, head, fit_only=True)
    right = info["scores"].argmax(axis=2) == Y[:, n_support:].argmax(axis=2)
    solved = info.get("converged", np.ones(len(Y), bool))
    used = (info["w"] != 0).any(axis=1)
    return Evaluation(right.mean(axis=1), solved, used, (F_support == 0).all(axis=1))


def score(config, run, encoded):
    """Accuracy on test episodes with its interval, shares of features, and what the dense SVM does
    on the same features and episodes; also figures and arrays."""
    evaluation = evaluate(config, encoded)
    accuracy, interval = metrics.mean_ci(evaluation.accuracy)
    off = (~evaluation.used & ~evaluation.dead).sum() / max((~evaluation.dead).sum(), 1)
    result = {
        "accuracy": accuracy, "accuracy_ci": interval, "off": float(off),
        "dead": float(evaluation.dead.mean()), "unsolved": int((~evaluation.solved).sum())}
    if config.head == "svm" and config.eps + config.lam1 > 0:
        dense = evaluate(config, encoded, dense=True).accuracy
        gain, interval = metrics.mean_ci(evaluation.accuracy - dense)
        result |= {"gain_over_dense": gain, "gain_over_dense_ci": interval}
    arrays = {"accuracy": evaluation.accuracy, "used": evaluation.used, "dead": evaluation.dead}
    results.write_atomically(
        run.path("episodes.npz"), lambda file: np.savez_compressed(file, **arrays))
    usage = Usage(f"eps {config.eps}", evaluation.used, evaluation.dead)
    draw_usage([usage], [], run.path("usage.png"))
    return result


def score_factors(encoder, source, end, xp, device):
    """MCC, R and DCI of the features of 5,000 images of all 3D Shapes, also of training's; none of
    over 1,000 features, which would fit any factor."""
    shapes = source.shapes
    index = np.random.default_rng(20_000).integers(len(shapes), size=5000)

    def images(some):
        return source.images("test", some, xp, device)

    F = metrics.to_numpy(encoder.encode(end.params, end.state, images, index))
    if 5 * F.shape[1] > len(index):
        return {}
    return metrics.scores(shapes.factors[index].astype(float), F)


# ------------------------------------------------------------------------------ figures


def draw_training(rows, path):
    """Loss, sparsity and accuracy against the step."""
    titles = {
        "loss": "outer loss", "nonzero": "share of weights not zero",
        "accuracy": "accuracy (50 validation episodes)"}
    plots.draw_training(rows, path, titles)


# Which features the episodes of a run use, and which are dead, (T, m).
Usage = namedtuple("Usage", "label used dead")


# A share of features off, an accuracy, and its interval, or its deviation over encoders.
Point = namedtuple("Point", "label off accuracy interval")


def draw_usage(runs, points, path):
    """[L23, Fig. 5]: left, the share of episodes that use each feature, sorted, a curve for each
    Usage; right, if there are points, accuracy against the share of features that are off (in the
    paper of meta-validation episodes, here of test episodes)."""
    panels = 2 if points else 1
    fig, axes = plots.subplots(1, panels, (4.6 * panels, 3.2))
    axes = np.atleast_1d(axes)
    for label, used, dead in runs:
        share = np.sort(used.mean(axis=0))[::-1]
        axes[0].plot(share, label=f"{label} ({100 * dead.mean():.0f} % dead)")
    axes[0].set(xlabel="feature, sorted", ylabel="share of tasks that use it", ylim=(-0.02, 1.02))
    fig.legend(fontsize=8, ncols=3, loc="outside upper center")    # the points' colours, too
    for label, off, accuracy, interval in points:
        axes[1].errorbar(
            [100 * off], [100 * accuracy], [100 * interval], fmt="o", capsize=3, label=label)
    if points:
        axes[1].set(xlabel="% of live features off, on average", ylabel="accuracy, %")
    plots.save(fig, path)


def draw_fig5(rows, path):
    """Fig. 5 from a sweep's table: mean and deviation over the encoders of each eps, the first
    one's usage. Prints each run's accuracy against that of its seed's densest run on the same
    episodes, with the interval over them."""
    usage, points = {}, {}
    for _, same in itertools.groupby(sorted(rows, key=by_seed), key=lambda row: row["seed"]):
        densest = None
        for row in same:
            accuracy, used = load_episodes(row)
            densest = accuracy if densest is None else densest
            tell_gain(row, accuracy - densest)
            usage.setdefault(row["eps"], used)
            points.setdefault(row["eps"], []).append((row["off"], row["accuracy"]))
    means = []
    for eps, of_eps in points.items():
        off, accuracy = zip(*of_eps, strict=True)
        deviation = plots.sample_deviation(accuracy)
        means.append(Point(f"eps {eps}", np.mean(off), np.mean(accuracy), deviation))
    draw_usage(list(usage.values()), means, path)


def by_seed(row):
    """Sorts rows: all eps of one seed, then of the next."""
    return row["seed"], row["eps"]


def tell_gain(row, gains):
    """Print a run's shares and accuracy, and what it gains (T,) on each episode."""
    gain, interval = metrics.mean_ci(gains)
    print(
        f"eps {row['eps']:<5} seed {row['seed']}: {100 * row['off']:5.1f} % off, "
        f"{100 * row['dead']:4.1f} % dead, accuracy {100 * row['accuracy']:.2f}; "
        f"{100 * gain:+.2f} +- {100 * interval:.2f} against the least eps")


def load_episodes(row):
    """The accuracies (T,) of a finished run's test episodes, and its Usage."""
    with np.load(Path(row["folder"]) / "episodes.npz") as file:
        return file["accuracy"], Usage(f"eps {row['eps']}", file["used"], file["dead"])
