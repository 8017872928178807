"""maps.py -- the last linear layer alone: a map trained through sparse fits, on given features.

    z (N, d)     standardised factors of 20,000 images of 3D Shapes
    X (N, d')    features that hold them, whitened: "factors", z mixed at random; "encoder", those
                 of an encoder that was trained without penalty
    V (d', m)    the map; F = X V are the features that are scored
    P (K, d)     the coefficients of a pool of K tasks            S (K, d)   supports, a mask
    A (d, m)     the factors regressed on the features, both standardised: w.z = (w A).F

A run takes seconds, so that what the theory of [L23, Secs. 3.2, 3.3, B.4, B.5] predicts can be
tried on many pools, sets of supports and inner problems. The method is sparsedis's, on this map.
"""
import dataclasses
import functools
import hashlib
from collections import namedtuple
from typing import ClassVar

import numpy as np

import data
import metrics
import sparsedis
from experiments import disentangle, inner_problems, results, settings, tell
from experiments.settings import option
from solvers import NotIdentified
from sparsetasks.rotation import unmix

ON = "features: the factors, mixed, or those of an encoder trained without penalty"
TASKS = ("usual", "pool", "sets", "example")
TASK = "tasks: as the main job's; a pool; supports that violate 3.6; App. B.4's three"
START = ("where the map starts: at random, at the factors, or where inner-Lasso ends; left at once "
         "where eps rises from 0, so give --warmup 0")
SOLVED = "unfinished: relative violation at which the Lasso is left"
UNFINISHED, OF_SIZE = "unfinished", "subset-size"
HEADS = ("inner-lasso", "inner-ridge", *inner_problems.HEADS, OF_SIZE, UNFINISHED, "step")
MANY, FRESH = 20_000, 1000  # images; tasks of the rotation


@dataclasses.dataclass(frozen=True)
class Maps(settings.CPURunSettings):
    """Train a linear map through sparse fits on given features, and score what it puts out."""

    numbers: ClassVar[tuple] = ("mcc", "r", "loss", "loss_at_truth", "inside")
    on: str = option("factors", ON, choices=("factors", "encoder"))
    rho: float = option(0.9, "correlation of the factors in training", 0, 0.9999)
    tasks: str = option("usual", TASK, choices=TASKS)
    count: int = option(200, "pool: how many tasks", 1, 100_000)
    world: int = option(0, "pool, sets: which of them", 0)
    head: str = option("inner-lasso", "how a task's predictor is fitted", choices=HEADS)
    eps: float = option(0.3, disentangle.EPS, 0, 1)
    tolerance: float = option(1e-3, SOLVED, 0, 1)
    start: str = option("random", START, choices=("random", "factors", "lasso"))
    warmup: float = option(0.5, disentangle.WARMUP, 0, 1)
    steps: int = option(400, "outer steps", 1)
    lr: float = option(0.1, "Adam's learning rate at the start of its cosine decay", 1e-12, 10)
    samples: int = option(25, "images per set", 7)


AND_ENCODER = "{}, and with --on encoder its training, one to three minutes, if it is not there"


def command(config):
    """Run, and tell the scores."""
    tell.announce(config, AND_ENCODER.format("a few seconds"))
    result, run = maps(config)
    print(f"MCC {result['mcc']:.4f}   R {result['r']:.4f}   rotated {result['mcc_rotated']:.4f}   "
          f"loss {result['loss']:.5f}, of the factors {result['loss_at_truth']:.5f}")
    run.tell_files()


def maps(config):
    """Train, score  ->  the content of result.json, and its results.Run."""
    if config.on == "encoder" and config.tasks == "example":
        raise ValueError("--on encoder: App. B.4's three tasks (--tasks example) are of factors")
    run = results.Run(config)
    kept = run.kept()
    if kept:
        return kept, run
    with run, sparsedis.cpu_threads(config.threads):
        given = given_features(config)
        tasks = tasks_of(config, given.z)
        V, path = learn(config, given, tasks)
        result = scores(config, given, V) | path | {"encoder": given.encoder}
        keys = ("seed", "on", "rho", "tasks", "count", "world", "head", "eps", "start", "tolerance")
        return run.finish(result | {key: getattr(config, key) for key in keys}), run


# ------------------------------------------------------------------------------ what is given

# Factors and features of images of the training distribution, and of uniform ones; whose they are.
Given = namedtuple("Given", "z X z_uniform X_uniform encoder", defaults=("",))


def given_features(config):
    """The Given of a run; of App. B.4 three factors."""
    given = features_of_images(config.on, config.rho, config.seed, config.results)
    if config.tasks != "example":
        return given
    return mixed_factors(given.z[:, :3], given.z_uniform[:, :3], config.seed)


@functools.lru_cache(maxsize=4)
def features_of_images(on, rho, seed, folder):
    """The Given of all factors."""
    if on == "factors":
        seen, uniform, z = drawn_images(rho, seed)
        return mixed_factors(z[seen], z[uniform], seed)
    given = encoded_images("inner-lasso", 0.0, rho, seed, folder)
    return whitened(given)


def drawn_images(rho, seed):
    """Rows of images of the training distribution, rows of uniform ones, and all z."""
    z, p = data.latents(data.Shapes3D(), 1.0, rho)
    rng = np.random.default_rng([seed, 7])
    return rng.choice(len(p), MANY, p=p), rng.integers(len(p), size=MANY), z


def encoded_images(head, eps, rho, seed, folder):
    """The Given of the main job's encoder, which is trained where `folder` does not have it."""
    seen, uniform, z = drawn_images(rho, seed)
    config = disentangle.Disentangle(
        head=head, eps=eps, rho=rho, seed=seed, threads=1, results=folder)
    run = disentangle.other_run(config)
    end, encoder, *_ = results.load_checkpoint(run.path("checkpoint.npz"))
    index = np.concatenate([seen, uniform])
    X = encoder.encode(end.params, end.state, data.Shapes3D().images, index).astype(np.float64)
    X = (X - X[:MANY].mean(axis=0)) / X[:MANY].std(axis=0)
    return Given(z[seen], X[:MANY], z[uniform], X[MANY:], f"{run.name}-{digest_of(end.params)}")


def digest_of(params):
    """A digest of an encoder's parameters: on another machine they are other ones, and what is
    compared should be of one encoder."""
    values = b"".join(params[name].tobytes() for name in sorted(params))
    return hashlib.sha256(values).hexdigest()[:10]


def mixed_factors(z, z_uniform, seed):
    """The Given of factors that are whitened, then rotated at random."""
    given = whitened(Given(z, z, z_uniform, z_uniform))
    normal = np.random.default_rng([seed, 8]).standard_normal((z.shape[1],) * 2)
    mix = np.linalg.qr(normal)[0]
    return given._replace(X=given.X @ mix, X_uniform=given.X_uniform @ mix)


def whitened(given):
    """The Given with features that are uncorrelated and of unit variance in training, so that from
    a random start every direction is learned at the same pace."""
    mean = given.X.mean(axis=0)
    _, size, Vt = np.linalg.svd(given.X - mean, full_matrices=False)
    white = Vt.T * (np.sqrt(len(given.X)) / size)
    return given._replace(X=(given.X - mean) @ white, X_uniform=(given.X_uniform - mean) @ white)


# ------------------------------------------------------------------------------ tasks


class DrawnTasks(data.Tasks):
    """data.Tasks whose coefficients come from draw(rng, T) -> w (T, d)."""

    def __init__(self, z, draw, sets, samples, per_set=16):
        super().__init__(z, np.full(len(z), 1 / len(z)), sets, samples, per_set)
        self.draw = draw

    def sample_coefficients(self, rng):
        w = self.draw(rng, self.sets * self.per_set)
        return w.reshape(self.sets, self.per_set, 1, -1)


def tasks_of(config, z, sets=4, per_set=16):
    """The distribution of tasks of a run."""
    return DrawnTasks(z, draw_of(config, z.shape[1]), sets, config.samples, per_set)


def draw_of(config, d):
    """draw(rng, T) -> w (T, d) of a run's tasks."""
    if config.tasks == "usual":
        return lambda rng, T: data.sample_tasks(rng, T, d)
    if config.tasks == "sets":
        S = violating_supports(config.world, d)
        return lambda rng, T: rng.standard_normal((T, d)) * S[rng.integers(len(S), size=T)]
    P = EXAMPLE if config.tasks == "example" else pool_of(config.world, config.count, d)
    return lambda rng, T: P[rng.integers(len(P), size=T)]


# Three tasks that meet Assumption 3.6 and not 3.5: a mixing L keeps every ||w||_0. [L23, B.4, (63)]
EXAMPLE = np.array([[1.0, 1, 0], [1, 0, 1], [0, 1, 1]])


def pool_of(world, count, d):
    """The coefficients P (count, d) of a pool."""
    return data.sample_tasks(np.random.default_rng([world, count]), count, d)


def violating_supports(world, d):
    """Up to six different supports (K, d), drawn at random until they hold every factor and violate
    Assumption 3.6."""
    rng = np.random.default_rng([world, 9])
    while True:
        S = np.unique(data.nonempty(rng, rng.random((rng.integers(3, 7), d)) < 0.5), axis=0)
        if S.any(axis=0).all() and not metrics.supports_are_sufficient(S):
            return S


def may_mix(S):
    """Over the features of which factors i factor j may be spread, (d, d), [j, i]: of those that
    are in every support with j. The identity where Assumption 3.6 holds.
                            [L23, (54): predictors as sparse as the truth, under Assumption 3.5]
    """
    without = S.T.astype(int) @ ~S                                  # supports with j and without i
    return without == 0


# ------------------------------------------------------------------------------ training


def learn(config, given, tasks):
    """The map V at the end, and how the training went: the step at which MCC was first seen at 0.9
    or above, and errors of the gradient and of the support where the Lasso is left unfinished."""
    encoder = sparsedis.mlp([given.X.shape[1], given.z.shape[1]])
    params, state = encoder.init(np.random.default_rng(config.seed), dtype=np.float64)
    params |= start_of(config, given, tasks)
    objective, reached, errors = Objective(config), [], []

    def sample(step):
        rng = np.random.default_rng([config.seed, step])
        W = tasks.sample_coefficients(rng)
        index, y = tasks.sample_labels(rng, W)
        return [given.X[index.ravel()]], (y, sizes_of(W))

    def report(snapshot, loss, info):
        if snapshot.step % 20 == 0:
            F = given.X_uniform[:2000] @ snapshot.params[WEIGHTS]
            if metrics.mcc(given.z_uniform[:2000], F) >= 0.9:
                reached.append(snapshot.step)
            if config.head in (UNFINISHED, "step"):
                errors.append(objective.error())

    training = sparsedis.Training(encoder, sample, objective, config.steps, config.lr)
    end = sparsedis.train(training, sparsedis.Snapshot(params, state, None, 0), report)
    path = {"steps_to_0.9": min(reached, default=None)}
    if errors:
        gradient, support = np.mean(errors, axis=0)
        path |= {"gradient_error": float(gradient), "support_error": float(support)}
    return end.params[WEIGHTS], path


WEIGHTS = "linear1.W"  # the map, among the encoder's parameters


def start_of(config, given, tasks):
    """The map to start from, unless at random."""
    if config.start == "factors":
        return {WEIGHTS: regression(given.X, given.z)}
    if config.start == "lasso":
        before = dataclasses.replace(config, head="inner-lasso", eps=0.3, start="random",
                                     warmup=Maps.warmup, lr=Maps.lr)
        return {WEIGHTS: learn(before, given, tasks)[0]}
    return {}


def sizes_of(W):
    """How many factors each task has, (T,), of coefficients W (G, K, k, d)."""
    return (W != 0).any(axis=2).sum(axis=-1).ravel()


class Objective:
    """sparsedis.task_objective for the heads here; y is (y, size): labels (G, K, n), and the number
    of factors (T,) of each task, which the head subset-size is told."""

    def __init__(self, config):
        self.config, self.last = config, None

    def __call__(self, progress, features, y, params):
        F, = features
        y, size = y
        config, (G, _, n) = self.config, y.shape
        now = config.eps * sparsedis.rise(progress, config.warmup)
        F_sets = F.reshape(G, n, -1)
        self.last = F_sets, y, now
        loss, dF, info = sparsedis.head_on_sets(*head_of(config, size), F_sets, y, now)
        return loss, [dF.reshape(F.shape)], {}, info

    def error(self):
        """Of the last step: the relative error of the gradient, and the share of weights that are
        0 in one of this fit and the exact one and not in the other."""
        F_sets, y, now = self.last
        _, dF, info = sparsedis.head_on_sets(*head_of(self.config, None), F_sets, y, now)
        _, exact, solved = sparsedis.head_on_sets(*sparsedis.HEADS["inner-lasso"], F_sets, y, now)
        wrong = np.mean((info["w"] != 0) != (solved["w"] != 0))
        off, size = np.linalg.norm(dF - exact), np.linalg.norm(exact)
        return off / size if size else float(off > 0), wrong        # 0, where all weights are


def head_of(config, size):
    """A head and the scale of its strength."""
    if config.head == OF_SIZE:
        def of_size(F, y, lam, n_support=None):
            return inner_problems.head_of_size(F, y, size, n_support)

        return of_size, lambda F, y: np.zeros(len(F))
    if config.head in (UNFINISHED, "step"):
        tolerance = config.tolerance if config.head == UNFINISHED else "step"
        return inner_problems.unfinished_head(tolerance), sparsedis.HEADS["inner-lasso"][1]
    return (sparsedis.HEADS | inner_problems.HEADS)[config.head]


def regression(X, z):
    """The map (d', d) of least squares from X to z."""
    return np.linalg.lstsq(X - X.mean(axis=0), z - z.mean(axis=0), rcond=None)[0]


# ------------------------------------------------------------------------------ scores


def scores(config, given, V):
    """MCC and R on uniform images; MCC also on those of the training distribution, after ICA and
    after a rotation to the same tasks; the outer loss, and what it is at the factors (as well as
    the features hold them); the share of |A| where the theory lets factors mix."""
    F, F_seen, z = given.X_uniform @ V, given.X @ V, given.z_uniform
    allowed = may_mix(supports_of(config, z.shape[1]))
    found = {"mcc": metrics.mcc(z, F), "r": metrics.r_score(z, F)}
    found |= {"mcc_seen": metrics.mcc(given.z, F_seen), "inside": share_inside(z, F, allowed)}
    by_ica = metrics.ica(given.X_uniform, given.X)
    found |= {"mcc_ica": metrics.mcc(z, by_ica), "inside_ica": share_inside(z, by_ica, allowed)}
    rotated, identified = rotation(config, given)
    found |= {"mcc_rotated": metrics.mcc(z, rotated), "identified": identified,
              "inside_rotated": share_inside(z, rotated, allowed)}
    mixed = np.linalg.qr(np.random.default_rng(config.seed).standard_normal((z.shape[1],) * 2))[0]
    found |= {"inside_chance": share_inside(z, z @ mixed, allowed),
              "allowed": float(allowed.mean())}
    many = tasks_of(config, given.z, sets=40)
    found |= {"loss": outer_loss(config, given.X @ V, many),
              "loss_at_truth": outer_loss(config, given.X @ regression(given.X, given.z), many)}
    return found | {"fails": failing_assumption(config, z.shape[1])}


def supports_of(config, d):
    """The supports (K, d) that a run's tasks have."""
    if config.tasks == "usual":
        return inner_problems.supports(d)[1:]
    if config.tasks == "sets":
        return violating_supports(config.world, d)
    return (EXAMPLE if config.tasks == "example" else pool_of(config.world, config.count, d)) != 0


def failing_assumption(config, d):
    """The first of the assumptions 3.4, 3.6 and 3.5 that a run's tasks violate, as a number; 0."""
    draw = draw_of(config, d)(np.random.default_rng(0), 4000)
    verdicts = metrics.assumptions(np.eye(d), draw)
    return next((float(name) for name in ("3.4", "3.6", "3.5") if not verdicts[name][0]), 0.0)


def share_inside(z, F, allowed):
    """The share of |A| where factor j, [j, i], may be in the feature of factor i."""
    A = np.abs(metrics.coefficients(F, z))                          # (d, m)
    _, feature = metrics.match(metrics.correlation(z, F))
    A = A[:, feature]
    return float(A[allowed].sum() / max(A.sum(), 1e-300))


def rotation(config, given):
    """X of uniform images, unmixed by FRESH tasks of a run, or by each of its pool; and how many
    features are identified. As it is where the tasks tell no basis."""
    rng, d = np.random.default_rng(config.seed + 1), given.z.shape[1]
    W = draw_of(config, d)(rng, FRESH)
    if config.tasks in ("pool", "example"):
        W = pool_of(config.world, config.count, d) if config.tasks == "pool" else EXAMPLE
    try:
        found = unmixed(given, W, rng)
    except NotIdentified:
        return given.X_uniform, 0
    return given.X_uniform @ found.M, int(found.identified.sum())


def unmixed(given, W, rng):
    """The Rotation of X by tasks of coefficients W (T, d), of 50 images each."""
    tasks = DrawnTasks(given.z, None, sets=len(W), samples=50, per_set=1)
    index, y = tasks.sample_labels(rng, W[:, None, None, :])
    return unmix(given.X, y[:, 0], index, widths=(0.0,), splits=3, starts=10)


def outer_loss(config, F, tasks):
    """The outer loss of a run's head, at full strength, on 640 tasks."""
    rng = np.random.default_rng(10_000)
    W = tasks.sample_coefficients(rng)
    index, y = tasks.sample_labels(rng, W)
    head = head_of(config, sizes_of(W))
    loss, _, _ = sparsedis.head_on_sets(*head, F[index], y, config.eps)
    return float(loss)
