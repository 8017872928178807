"""sharing.py -- sparse heads that share features, on images of known factors.   [F23, our reading]

    T, k       tasks a step, T = 8; factors of a task, joined by AND, k = 2
    F (T, n, m)  features, m = 10, support samples first         Y (T, n, 1)  of 0 and 1
    phi (T, m)   heads of tasks                                  H   entropy of the importances

    method   sharing: heads fitted jointly, sparse and shared, sparse_sharing
             lasso: a Lasso on labels -1 and 1, [L23]            erm: plain cross-entropy

Tasks are BinaryTasks on 3D Shapes or dSprites. On precomputed features: sharing_features.py.
"""
import dataclasses
import functools
import time
from typing import ClassVar

import numpy as np
from array_api_compat import device as device_of
from scipy.stats import pearsonr

import data
import metrics
import solvers
import sparsedis
from experiments import plots, results, settings, tell
from experiments.disentangle import (
    IMAGE_BYTES,
    check_eval_images,
    draw_training,
    features_of,
    refuse_few,
    refuse_few_effective,
    score_features,
)
from experiments.episode_heads import sharing_episode
from experiments.settings import ELSEWHERE, option
from experiments.sharing_data import BinaryTasks, DSprites
from experiments.sharing_solver import sharing_entropy, sparse_sharing

SOURCE = "images, or precomputed features of your own"
DATA = "3dshapes.h5, or dSprites' npz, rendered when not given; features: an npz file"
METHOD = "what trains the encoder: heads that share, Lasso [L23], or plain cross-entropy"
METHODS = ("sharing", "lasso", "erm")
METHODS_WITH = {                                                    # the methods of a setting
    "alpha": ("sharing",), "beta": ("sharing",), "one_step": ("sharing",), "eps": ("lasso",)}
GRIDS = {"shapes": data.Shapes3D, "dsprites": DSprites}
OTHER_GRID = {"shapes": "dsprites", "dsprites": "shapes"}
TEST_ALPHA = 0.1  # of heads fitted for scores, the same for all runs


@dataclasses.dataclass(frozen=True)
class Sharing(settings.RunSettings):
    """Train an encoder through sparse heads that share features, on binary tasks of a few factors.

    Our reading of [F23]. Tasks are of a seed of their own, the same in all runs.
    """

    version: ClassVar[int] = 2
    numbers: ClassVar[tuple] = (
        "steps", "seconds", *tell.SCORES, "accuracy", "accuracy_ci", "accuracy_seen", "entropy",
        "zeros", "unused", "transfer_mcc", "transfer_dci_d", "transfer_accuracy")
    source: str = option("shapes", SOURCE, choices=("shapes", "dsprites", "features"))
    data: str = option("", DATA, **ELSEWHERE)
    method: str = option("sharing", METHOD, choices=METHODS)
    alpha: float = option(
        0.1, "sharing: weight of the heads' L1 norm", 1e-6, 10, group="method")
    beta: float = option(0.02, "sharing: weight of the entropy of the importances", 0, 10)
    one_step: bool = option(False, "sharing: the cheap and inexact one-step hypergradient")
    eps: float = option(0.3, "lasso: strength as a fraction of lambda_max", 0, 1)
    ramp: float = option(0.5, "share of the steps over which alpha, beta and eps rise", 0, 1)
    factors: int = option(2, "factors of a task, joined by AND", 1, 6)
    tasks: int = option(8, "tasks per step", 1)
    shot: int = option(13, "support samples of each class", 2)
    query: int = option(13, "query samples of each class, in training", 1)
    pool: int = option(40, "tasks to train on", 1, 5000)
    test_tasks: int = option(40, "unseen tasks to test on", 2, 5000)
    features: int = option(10, "features of the encoder, m", 2, name="m")
    rho: float = option(0.0, "correlation of the factors in training", 0, 0.9999)
    steps: int = option(800, "outer steps", 1)
    lr: float = option(5e-3, "Adam's learning rate at the start of its cosine decay", 1e-12, 1000)
    eval_images: int = option(10_000, "images of the final scores, drawn uniformly", 2)


def tell_images(config):
    """Run on images, and tell the scores."""
    result, run = sharing(config)
    tell.scores(result)
    unseen = f"{100 * result['accuracy']:.2f} +- {100 * result['accuracy_ci']:.2f} %"
    print(
        f"unseen tasks: accuracy {unseen} (seen {100 * result['accuracy_seen']:.2f} %); "
        f"entropy {result['entropy']:.2f} of at most {np.log(config.features):.2f}, "
        f"{100 * result['zeros']:.0f} % of weights 0, "
        f"{100 * result['unused']:.0f} % of features unused")
    print(
        f"the other data set: MCC {result['transfer_mcc']:.4f}   "
        f"DCI-D {result['transfer_dci_d']:.4f}   "
        f"accuracy {100 * result['transfer_accuracy']:.2f} %")
    warnings = [f"warning: {text}" for text in result["signatures"]]
    print("\n".join(warnings) or "no sign of failure")
    run.tell_files()


def sharing(config):
    """Train, score, test on unseen tasks and the other data set, draw  ->  result, results.Run."""
    check(config)
    xp, device = settings.device_of(config.device)
    grid = GRIDS[config.source](config.data or None)
    refuse_few(config, f"--data {config.data}", len(grid))
    run = results.Run(config, grid.fingerprint() if config.data else "rendered")
    kept = run.kept()
    if kept:
        return kept, run
    z, p = data.latents(grid, 1.0, config.rho)
    refuse_few_effective(f"--rho {config.rho}", p)
    tasks = BinaryTasks(grid.factors, p, config.factors, config.pool + config.test_tasks)
    elsewhere = tasks_elsewhere(config)                             # refused now, or never
    encoder = sparsedis.cnn(config.features)
    objective = Timed(objective_of(config, config.method))
    encode = functools.partial(features_of, encoder, xp=xp, device=device, norm="batch")

    def sample(step):
        rng = np.random.default_rng([config.seed, step])
        some = rng.choice(config.pool, config.tasks, replace=False)
        index, Y = tasks.sample(rng, some, config.shot, config.query)
        y = xp.asarray(Y, device=device), xp.asarray(some, device=device)
        return [grid.images(index.ravel(), xp, device)], y

    some = min(1000, config.eval_images)
    on_the_way = np.random.default_rng(1000).integers(len(grid), size=some)

    def measure(params, state, info):
        F = encode(shapes=grid, params=params, index=on_the_way)
        return metrics.scores(z[on_the_way], F) | {"inner_ms": objective.mean_ms()}

    training = sparsedis.Training(encoder, sample, objective, config.steps, config.lr)
    with run, sparsedis.cpu_threads(config.threads):
        end, rows = run.train(training, measure, xp, device, head_start(config))

        def trained(grid, index):
            return encode(shapes=grid, params=end.params, index=index)

        result = score_all(config, run, trained, grid, z, p, tasks)
        result |= transfer(config, *elsewhere, trained)
        draw_training(rows, run.path("training.png"), metrics.chance(z.shape[1], config.features))
        result["inner_ms"] = float(np.mean([row["inner_ms"] for row in rows]))
        result["signatures"] = signatures(result, config.features)
        result["seconds"] = rows[-1]["seconds"]
        keys = ("steps", "seed", "source", "method", "alpha", "beta", "rho", "factors")
        return run.finish(result | {key: getattr(config, key) for key in keys}), run


def score_all(config, run, trained, grid, z, p, tasks):
    """The scores of features, of the matched ones alone, and of heads, on the images of training's
    grid; draws figures. trained(grid, index) -> features."""
    here = functools.partial(trained, grid)
    result = score_features(here, grid, z, p, config.eval_images, run)
    result |= score_matched(here, grid, z)
    return result | score_heads(config, here, grid, tasks, run)


def check(config):
    """Refuse settings that the method does not have, or that memory, the pool or the scores do not
    allow."""
    settings.refuse_without_effect(config, "method", METHODS_WITH)
    check_memory(config, IMAGE_BYTES)
    check_eval_images(config)
    if config.tasks > config.pool:
        raise ValueError(f"--tasks: found {config.tasks}, expected at most --pool {config.pool}")


def check_memory(config, row_bytes):
    """Refuse sizes that this machine's memory does not hold, of rows of so many bytes a sample."""
    rows = 2 * (config.shot + max(config.query, 50)) * config.tasks
    numbers = (rows + config.eval_images + 256) * config.features
    settings.check_memory(config, row_bytes * rows + 24 * numbers)


def head_start(config):
    """Learned heads, for plain cross-entropy: a row for each task of the pool."""
    if config.method != "erm":
        return {}
    rng = np.random.default_rng([config.seed, 0, 1])                # not the encoder's numbers
    return {"head.W": rng.standard_normal((config.pool, config.features)) / 10}


class Timed:
    """An objective that tells how long its calls take: the inner problem and its adjoint."""

    def __init__(self, objective):
        self.objective, self.spent = objective, []

    def __call__(self, *args):
        began = time.perf_counter()
        result = self.objective(*args)
        self.spent.append(time.perf_counter() - began)
        return result

    def mean_ms(self):
        """Milliseconds a call since this was last asked."""
        spent, self.spent = self.spent, []
        return 1e3 * float(np.mean(spent or [0]))


# ------------------------------------------------------------------------------ the objective


def objective_of(config, method):
    """The objective of a method, with the settings that it uses."""
    return binary_objective(
        method, config.alpha, config.beta, config.eps, config.ramp, 2 * config.shot,
        config.one_step)


def binary_objective(method, alpha, beta, eps, ramp, n_support, one_step=False):
    """Binary tasks on one batch; y is Y (T, n, 1) and the numbers (T,) of the tasks.

    method   sharing: sparse heads that share, fitted on the support, cross-entropy of the others
             lasso: a Lasso on labels -1 and 1, squared error of the others    [L23, Problem (7)]
             erm: cross-entropy of all samples, task t's head being row t of params["head.W"]
    Features are normalised by each task's support. alpha (from a tenth on), beta and eps rise over
    the share `ramp` of the steps.                                               [F23]
    """
    def objective(progress, features, y, params):
        F, = features
        Y, tasks = y
        xp, now = solvers.array_namespace(F), sparsedis.rise(progress, ramp)
        F_raw = xp.reshape(F, (Y.shape[0], Y.shape[1], -1))
        F_task, cache = sparsedis.normalise(F_raw, n_support=n_support)       # (T, n, m)
        if method == "sharing":
            lam = alpha * max(now, 0.1), beta * now
            fitted = sharing_episode(F_task, Y, lam, n_support, one_step=one_step)
        elif method == "lasso":
            signs = 2 * Y[..., 0] - 1
            top = solvers.lasso_lambda_max(F_task[:, :n_support, :], signs[:, :n_support])
            fitted = sparsedis.inner_lasso(F_task, signs, eps * now * top, n_support)
        else:
            fitted = learned_heads(F_task, Y, tasks, params["head.W"])
        loss, dF, dparams, info = fitted
        grads = {"head.W": dparams["W"]} if "W" in dparams else {}
        dF = sparsedis.normalise_backward(dF, cache)[0]
        return loss, [xp.reshape(dF, F.shape)], grads, info

    return objective


def learned_heads(F, Y, tasks, W_all):
    """Cross-entropy of tasks (T,) whose heads are rows of the learned W_all (all tasks, m)."""
    xp = solvers.array_namespace(F)
    numbers = xp.arange(W_all.shape[0], device=device_of(F))
    picked = xp.astype(numbers == tasks[:, None], F.dtype)          # (T, all tasks)
    W = (picked @ xp.astype(W_all, F.dtype))[:, None, :]            # (T, 1, m)
    out = sparsedis.class_loss(None)(F, Y, W)
    return out.loss, out.dF, {"W": picked.T @ out.dw[:, 0, :]}, {"w": W}


# ------------------------------------------------------------------------------ scores


def score_matched(features, grid, z, count=5000):
    """DCI of the features that are matched with a factor, without the others, on uniform images."""
    index = np.random.default_rng(20_000).integers(len(grid), size=count)
    F = features(index)
    _, matched = metrics.match(metrics.correlation(z[index], F))
    disentanglement, completeness = metrics.dci(z[index], F[:, matched])
    return {"dci_d_matched": disentanglement, "dci_c_matched": completeness}


def fit_heads(F, Y, n_support):
    """Each task (T, n, m), Y (T, n, 1), fitted alone, without sharing, on its support samples.

    Returns the logits of its other samples (T, n - n_support) and the heads phi (T, m).
    """
    F, _ = sparsedis.normalise(F.astype(np.float64), n_support=n_support)
    phi, _ = sparse_sharing(F[:, :n_support], Y[:, :n_support], TEST_ALPHA, 0.0)
    return solvers.scores(F[:, n_support:], phi)[..., 0], phi[:, 0]


def accuracies(config, features, tasks, numbers, query=50):
    """Accuracy (T,) and heads (T, m) of tasks fitted one by one on images that they draw."""
    n_support = 2 * config.shot
    accuracy, heads = [], []
    for some in np.array_split(numbers, -(-len(numbers) // 10)):
        rng = np.random.default_rng(30_000 + some[0])
        index, Y = tasks.sample(rng, some, config.shot, query)
        F = features(index.ravel()).reshape(*index.shape, -1)
        Z, phi = fit_heads(F, Y, n_support)
        accuracy.append(((Z > 0) == Y[:, n_support:, 0]).mean(axis=1))
        heads.append(phi)
    return np.concatenate(accuracy), np.concatenate(heads)


def score_heads(config, features, grid, tasks, run):
    """Accuracy on tasks trained on, on images of the training distribution, and on unseen ones, on
    uniform images; how the latter's heads share features, also drawn."""
    seen, _ = accuracies(config, features, tasks, np.arange(config.pool))
    unseen = config.pool + np.arange(config.test_tasks)
    accuracy, phi = accuracies(config, features, tasks.uniform(), unseen)
    names = [task_name(tasks.tasks[t], grid.names) for t in unseen]
    draw_importances(phi, names, feature_names(features, grid), run.path("importances.png"))
    mean, interval = metrics.mean_ci(accuracy)
    return {
        "accuracy_seen": float(seen.mean()), "accuracy": mean, "accuracy_ci": interval,
        "entropy": float(sharing_entropy(phi[:, None])),
        "zeros": float((phi == 0).mean()), "unused": float((phi == 0).all(axis=0).mean()),
        "features_per_head": features_per_head(phi)}


def task_name(task, names):
    """The factors of a sharing_data.BinaryTask."""
    return "+".join(names[factor] for factor in task.factors)


def features_per_head(phi):
    """Heads (T, m) -> the perplexity of |phi|, averaged over the heads that are not 0."""
    total = np.abs(phi).sum(axis=1, keepdims=True)
    q = np.abs(phi) / np.where(total > 0, total, 1)
    entropy = -np.sum(q * np.log(np.where(q > 0, q, 1)), axis=1)
    alive = q.any(axis=1)
    return float(np.exp(entropy[alive]).mean()) if alive.any() else 0.0


def tasks_elsewhere(config):
    """The data set that is not trained on, and at most 40 tasks on it."""
    grid = GRIDS[OTHER_GRID[config.source]]()
    N, k = len(grid), min(config.factors, len(grid.names))
    return grid, BinaryTasks(grid.factors, np.full(N, 1 / N), k, min(config.test_tasks, 40))


def transfer(config, grid, tasks, features):
    """Scores of features(grid, index) on the other data set, and the accuracy of its tasks."""
    there = functools.partial(features, grid)
    index = np.random.default_rng(20_000).integers(len(grid), size=5000)
    scores = metrics.scores(grid.factors[index].astype(float), there(index))
    accuracy, _ = accuracies(config, there, tasks, np.arange(len(tasks.tasks)))
    scores["accuracy"] = float(accuracy.mean())
    return {f"transfer_{key}": value for key, value in scores.items()}


def signatures(result, m):
    """What has gone wrong, as far as the scores tell, one line each."""
    per_head, unused = result["features_per_head"], result["unused"]
    seen, accuracy = result["accuracy_seen"], result["accuracy"]
    lines = []
    if per_head > 0.8 * m:
        lines.append(f"importances all alike: a head weighs {per_head:.1f} of {m} features alike")
    if unused > 0.5:
        lines.append(f"most features unused: {100 * unused:.0f} % by no head")
    if seen < 0.65:
        lines.append(f"poor on the tasks trained on: {100 * seen:.1f} %")
    if accuracy < 0.65:
        lines.append(f"poor on unseen tasks: {100 * accuracy:.1f} %")
    return lines


# ------------------------------------------------------------------------------ figures


def feature_names(features, grid):
    """The number of each feature, and the factor that it is matched with, if any."""
    index = np.random.default_rng(0).integers(len(grid), size=2000)
    F = features(index)
    names = [str(j) for j in range(F.shape[1])]
    pairs = metrics.match(metrics.correlation(grid.factors[index], F))
    for factor, feature in zip(*pairs, strict=True):
        names[feature] = f"{grid.names[factor]} {feature}"
    return names


def draw_importances(phi, names, features, path):
    """|phi| of heads (T, m), each as a share of its sum: features (rows) by tasks (columns), sorted
    by their factors."""
    order = sorted(range(len(names)), key=lambda t: names[t])
    total = np.abs(phi).sum(axis=1, keepdims=True)
    shares = np.abs(phi) / np.maximum(total, 1e-300)
    size = 1.5 + 0.22 * len(names), 1.6 + 0.25 * phi.shape[1]
    fig, ax = plots.subplots(1, 1, size)
    image = ax.imshow(shares[order].T, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    ax.set(xticks=range(len(names)), yticks=range(phi.shape[1]), yticklabels=features)
    ax.set(ylabel="feature, with its factor", title="importance of each feature for unseen tasks")
    ax.set_xticklabels([names[t] for t in order], rotation=90, fontsize=6)
    fig.colorbar(image, label="share of the head's weights")
    plots.save(fig, path)


def draw_sharing(rows, path):
    """DCI-D of runs of `sweep sharing`: against alpha and beta; against the entropy H of the
    importances; against the factors of a task, with MCC and accuracy; and what a step costs."""
    ours = [row for row in rows if row["method"] == "sharing" and row["rho"] == 0]
    if not ours:
        raise ValueError("sharing: no run of method sharing at rho 0 is finished")
    pairs = [row for row in ours if row["factors"] == 2]
    grid = [row for row in pairs if row["seed"] == 0]
    betas = sorted({row["beta"] for row in grid})
    fig, axes = plots.subplots(1, 4, (15, 3.4))
    draw_grid(axes[0], pairs, betas)
    draw_entropy(axes[1], grid, betas)
    first = ours[0]["alpha"], ours[0]["beta"]
    draw_factors(axes[2], [row for row in ours if (row["alpha"], row["beta"]) == first])
    for beta in betas:
        costs = [row["inner_ms"] for row in grid if row["beta"] == beta]
        axes[3].bar(
            f"{beta}", np.mean(costs), yerr=plots.sample_deviation(costs), capsize=3, color="C0")
    axes[3].set(xlabel="beta", ylabel="ms a step", title="inner problem and its adjoint")
    plots.save(fig, path)


def draw_grid(ax, rows, betas):
    """DCI-D against alpha, a line for each beta: mean and deviation where there are seeds."""
    alphas = sorted({row["alpha"] for row in rows})
    for k, beta in enumerate(betas):
        groups = [[row["dci_d"] for row in rows if (row["alpha"], row["beta"]) == (alpha, beta)]
                  for alpha in alphas]
        places = np.arange(len(alphas)) + 0.04 * (k - 1.5)          # no bar hides another
        plots.draw_line(ax, places, groups, f"beta {beta}", f"C{k}")
    ax.set(xlabel="alpha", ylabel="DCI disentanglement", ylim=(0, None))
    ax.set_xticks(range(len(alphas)), alphas)
    ax.legend(fontsize=7)


def draw_entropy(ax, grid, betas):
    """DCI-D against H, with the correlation and its 95 % interval, also printed."""
    H, D = [row["entropy"] for row in grid], [row["dci_d"] for row in grid]
    ax.scatter(H, D, c=[f"C{betas.index(row['beta'])}" for row in grid])
    text = ""
    if len(grid) > 3:
        correlation = pearsonr(H, D)
        low, high = correlation.confidence_interval()
        text = f"correlation {correlation.statistic:.2f}, 95 % from {low:.2f} to {high:.2f}"
    print(
        f"DCI-D and the entropy of {len(grid)} runs: {text or 'too few runs'}; "
        "[F23] reports 94.7 for the sharing penalty")
    ax.set(xlabel="entropy H of the importances (not from 0)", ylim=(0, None))
    ax.set_title(text, fontsize=9)


def draw_factors(ax, rows):
    """DCI-D, MCC and accuracy against the number of factors of a task."""
    sizes = sorted({row["factors"] for row in rows})
    labels = {"dci_d": "DCI disentanglement", "mcc": "MCC", "accuracy": "accuracy, unseen tasks"}
    for k, (key, label) in enumerate(labels.items()):
        groups = {size: [] for size in sizes}
        for row in rows:
            groups[row["factors"]].append(row[key])
        plots.draw_line(ax, sizes, groups.values(), label, f"C{k}")
    ax.set(xlabel="factors per task", xticks=sizes, ylim=(0, 1.02))
    ax.legend(fontsize=7)


def print_methods(rows, path):
    """[F23] beside [L23] and plain cross-entropy on the same tasks and encoder: mean and deviation
    over seeds, as text; nothing is drawn."""
    keys = ("mcc", "dci_d", "dci_c", "accuracy_seen", "accuracy", "seconds")
    print(f"{'rho':>4}  {'method':<9}" + "".join(f"{key:>17}" for key in keys))
    rows = [row for row in rows if row["factors"] == 2]
    for rho, method in sorted({(row["rho"], row["method"]) for row in rows}):
        same = [row for row in rows if (row["rho"], row["method"]) == (rho, method)]
        first = same[0]["alpha"], same[0]["beta"]
        same = [row for row in same if (row["alpha"], row["beta"]) == first]
        columns = ""
        for key in keys:
            values = [row[key] for row in same]
            columns += f"{np.mean(values):>9.3f} +- {plots.sample_deviation(values):.3f}"
        print(f"{rho:>4}  {method:<9}{columns}   ({len(same)} seeds)")
