"""sharing_features.py -- sparse heads that share, on precomputed features.       [F23, our reading]

    x (N, d)   features of any backbone, y (N,) classes, place (N,) the domain or group of each row
    F (N, m)   features of an MLP encoder that is trained on x
    Y (T, n, 1)  labels of tasks of telling two classes apart, support samples first

Each domain is left out in turn, or the rows of split "test" are held out. Three methods, with the
same encoder: `sharing`; `erm`, plain cross-entropy; `erm-even`, the same on rows spread evenly over
classes and places, which tells what the sampling does from what sharing does.
"""
import dataclasses
import hashlib
from typing import NamedTuple

import numpy as np

import metrics
import sparsedis
from experiments import results, settings, sharing, tell
from experiments.episodes import support_first
from experiments.sharing import Sharing, fit_heads, objective_of

TRAINED = ("sharing", "erm", "erm-even")  # the methods
IMAGES_ONLY = ("method", "rho", "factors", "pool", "test_tasks", "eps", "eval_images")
FEATURE_SCORES = ("accuracy", "worst_group", "refit_worst_group", "few_shot")


# ------------------------------------------------------------------------------ data


class Features(NamedTuple):
    """Precomputed features; `places` names the domains (one empty name where there are groups)."""

    x: np.ndarray
    y: np.ndarray
    place: np.ndarray
    kind: str
    names: np.ndarray
    test: np.ndarray

    @property
    def places(self):
        return [str(name) for name in self.names] if self.kind == "domain" else [""]

    @property
    def k(self):
        return int(self.y.max()) + 1

    def held_out(self, i):
        """The rows (N,) held out of run i, a mask."""
        return self.place == i if self.kind == "domain" else self.test

    def fingerprint(self):
        arrays = [a.tobytes() for a in (self.x, self.y, self.place, self.test)]
        names = "\n".join([self.kind, *map(str, self.names)])
        return hashlib.sha256(b"".join(arrays) + names.encode()).hexdigest()[:10]


def load_features(path):
    """Features of an npz file: x (N, d) real, y (N,) classes, and domain (N,), or group (N,) and
    split (N,), whose rows named "test" are held out. ValueError names the file and what is wrong.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        return parse_features(found)
    except Exception as error:
        raise ValueError(
            f"{path}: expected an npz file with x, y and domain, or group and split ({error})"
        ) from None


def parse_features(found):
    """The Features of an npz file's arrays; ValueError says what is wrong."""
    kind = "domain" if "domain" in found else "group"
    if kind == "domain" and ("group" in found or "split" in found):
        raise ValueError("beside domain, no group and no split")
    x, y, place = (found[name] for name in ("x", "y", kind))
    split = found["split"] if kind == "group" else np.full(y.shape, "train")
    if x.ndim != 2 or 0 in x.shape or x.dtype.kind != "f":
        raise ValueError(f"x: found {x.shape} {x.dtype}, expected real (N, d)")
    with np.errstate(over="ignore"):
        x = x.astype(np.float32)
    if not np.isfinite(x).all():
        raise ValueError("x holds values that are not finite in single precision")
    for name, a in (("y", y), (kind, place), ("split", split)):
        if a.shape != x.shape[:1] or a.dtype.kind not in "biuSU":
            raise ValueError(f"{name}: found {a.shape} {a.dtype}, expected ({len(x)},) integers or "
                             "names")
    test = split.astype(str) == "test"
    if not np.isin(split[~test].astype(str), "train").all():
        raise ValueError('split: expected "train" and "test" (leave out the rows of others)')
    if (place.astype(str) == "").any():
        raise ValueError(f"{kind}: found an empty name")
    _, y = np.unique(y, return_inverse=True)
    place = place.astype(str) if place.dtype.kind == "S" else place
    names, place = np.unique(place, return_inverse=True)
    if y.max() < 1 or not (test.any() and not test.all() if kind == "group" else place.max() > 0):
        raise ValueError('two classes are needed, and two domains or rows of split "test"')
    return Features(x, y, place, kind, names, test)


class FeatureTasks:
    """Tasks of telling two classes apart, on rows (R,) of labels y (N,) and places (N,).

    domain  a task's support comes from one domain and its query from the others, as far as the
            classes have them
    group   its support comes from all rows of the classes, its query evenly from their groups
    """

    def __init__(self, y, place, kind, rows):
        self.kind, self.cells = kind, {}                            # class -> place -> rows
        for c in np.unique(y[rows]):
            own = rows[y[rows] == c]
            self.cells[c] = {e: own[place[own] == e] for e in np.unique(place[own])}

    def sample(self, rng, T, shot, query):
        """index (T, n) and Y (T, n, 1) of `shot` support rows of each class, first, and `query`
        others; a row is in both only where a class has too few others."""
        tasks = [self.sample_task(rng, shot, query) for _ in range(T)]
        index, Y = zip(*tasks, strict=True)
        return np.stack(index), np.stack(Y)[..., 1:]

    def sample_task(self, rng, shot, query):
        classes = rng.choice(list(self.cells), 2, replace=False)
        pair = [self.cells[c] for c in classes]
        homes = sorted(set(pair[0]) & set(pair[1])) if self.kind == "domain" else []
        home = rng.choice(homes) if homes else None
        rows = [self.sample_class(rng, cells, home, shot, query) for cells in pair]
        return support_first(np.stack(rows), shot)

    def sample_class(self, rng, cells, home, shot, query):
        """Support rows of one class, from its home domain if it has one, then query rows."""
        pool = cells[home] if home is not None else np.concatenate(list(cells.values()))
        support = rng.choice(pool, shot, replace=len(pool) <= shot)
        left = {e: own[~np.isin(own, support)] for e, own in cells.items()}
        left = {e: own for e, own in left.items() if len(own)}
        others = [own for e, own in left.items() if e != home]
        return np.append(support, spread(rng, others or list(left.values()) or [pool], query))

    def rows(self, rng, n, even):
        """n rows: as they come, or evenly from every class and place."""
        cells = [rows for c in self.cells.values() for rows in c.values()]
        return spread(rng, cells if even else [np.concatenate(cells)], n)


def spread(rng, cells, n):
    """n rows, each of a random cell."""
    return np.array([rng.choice(cells[i]) for i in rng.integers(len(cells), size=n)])


# ------------------------------------------------------------------------------ the experiment


def command(config):
    """Run on images (sharing.py), or on precomputed features, where a file of them is given."""
    tell.announce(config, "some minutes")
    if config.source == "features":
        tell_features(config)
    else:
        sharing.tell_images(config)


def tell_features(config):
    """Run, and tell accuracy, worst group and few-shot accuracy of each method."""
    result, run = sharing_on_features(config)
    places = result["places"] if result["kind"] == "domain" else []
    for place in ["", *places]:
        if place:
            print(f"domain {place} left out")
        elif result["kind"] == "group":
            print("rows held out")
        else:
            print("mean over the domains left out")
        for method in TRAINED:
            tell_method(config, result, method, f"_{place}" if place else "")
    run.tell_files()


def tell_method(config, result, method, suffix):
    """The scores of a method in one line."""
    percent = {key: 100 * result[f"{method}_{key}{suffix}"] for key in FEATURE_SCORES}
    print(
        f"  {method:<9} accuracy {percent['accuracy']:.2f} %   worst group "
        f"{percent['worst_group']:.2f} %, with a head refitted on even rows "
        f"{percent['refit_worst_group']:.2f} %   "
        f"up to {config.shot}-shot {percent['few_shot']:.2f} %")


def sharing_on_features(config):
    """Train and score each method on every domain left out, or on the test rows -> result, Run."""
    check(config)
    features = load_features(config.data)
    for i in range(len(features.places)):
        check_rows(config, features, i)
    sharing.check_memory(config, 8 * (features.x.shape[1] + 64 + features.k))
    keys = [f"{method}_{key}" for method in TRAINED for key in FEATURE_SCORES]
    run = results.Run(config, features.fingerprint(), __file__, ("steps", *keys))
    kept = run.kept()
    if kept:
        return kept, run
    result = {"kind": features.kind, "places": features.places}
    result |= {"steps": config.steps, "seed": config.seed}
    with run, sparsedis.cpu_threads(config.threads):
        for method in TRAINED:
            found = [features_run(config, features, i, method, run)
                     for i in range(len(features.places))]
            for key in FEATURE_SCORES:
                values = [scores[key] for scores in found]
                result[f"{method}_{key}"] = float(np.mean(values))
                if features.kind == "domain":
                    pairs = zip(features.places, values, strict=True)
                    result |= {f"{method}_{key}_{place}": value for place, value in pairs}
        return run.finish(result), run


def check(config):
    """Refuse settings that apply to images only, and those without a file."""
    if not config.data:
        raise ValueError("--data: needed with --source features")
    for field in dataclasses.fields(Sharing):
        if field.name in IMAGES_ONLY and getattr(config, field.name) != field.default:
            raise ValueError(f"{settings.flag_of(field.name)}: does not apply to --source features")


def check_rows(config, features, i):
    """Refuse a run that leaves too few rows to train on, or to fit heads and score them."""
    held = features.held_out(i)
    _, counts = np.unique(features.y[held], return_counts=True)
    if counts.sum() == support_counts(config, counts).sum():
        raise ValueError(
            f"{config.data}: only {counts.sum()} rows are held out, too few to fit and score")
    if len(counts) < 2:
        raise ValueError(f"{config.data}: only 1 class is held out, expected at least 2")
    if len(np.unique(features.y[~held])) < 2:
        raise ValueError(f"{config.data}: only 1 class is left to train on, expected at least 2")
    unseen = len(np.setdiff1d(features.y[held], features.y[~held]))
    if unseen:
        raise ValueError(f"{config.data}: {unseen} of {len(counts)} classes held out are in no row "
                         "that is left to train on")


def support_counts(config, counts):
    """How many of so many rows of each class heads are fitted on."""
    return np.maximum(1, np.minimum(config.shot, np.asarray(counts) // 2))


def features_run(config, features, i, method, run):
    """Train one MLP encoder on the rows not held out, and score it on those: see FEATURE_SCORES."""
    xp, device = settings.device_of(config.device)
    x, y = features.x, features.y
    held = features.held_out(i)
    rows = np.flatnonzero(held)
    tasks = FeatureTasks(y, features.place, features.kind, np.flatnonzero(~held))
    sizes, k = [x.shape[1], 64, config.features], features.k
    encoder = sparsedis.mlp(sizes)
    net = encoder if method == "sharing" else sparsedis.mlp(sizes, classes=k)

    def rows_of(index):
        return xp.asarray(x[index], device=device)

    def sample(step):
        rng = np.random.default_rng([config.seed, step])
        if method == "sharing":
            index, Y = tasks.sample(rng, config.tasks, config.shot, config.query)
            return [rows_of(index.ravel())], (xp.asarray(Y, device=device), None)
        n = 2 * (config.shot + config.query) * config.tasks
        index = tasks.rows(rng, n, method == "erm-even")
        return [rows_of(index)], xp.asarray(np.eye(k)[y[index]], device=device)

    objective = objective_of(config, method) if method == "sharing" else plain_objective
    training = sparsedis.Training(net, sample, objective, config.steps, config.lr)
    end, _ = run.train(training, no_scores, xp, device, part=f"{method}-{i}")
    F = metrics.to_numpy(encoder.encode(end.params, {}, rows_of, np.arange(len(x))))
    even = tasks.rows(np.random.default_rng(20_000), 1000, True)
    refit = predict(F, y, k, even, rows) == y[rows]
    right = refit                                                   # sharing has no head to keep
    if method != "sharing":
        logits = metrics.to_numpy(net.encode(end.params, {}, rows_of, rows))
        right = logits.argmax(axis=1) == y[rows]
    return {
        "accuracy": float(right.mean()),
        "worst_group": worst_group(right, features, rows),
        "refit_worst_group": worst_group(refit, features, rows),
        "few_shot": few_shot(config, F, y, k, rows)}


def no_scores(params, state, info):
    """Nothing is measured on the way."""
    return {}


def plain_objective(progress, features, Y, params):
    """Cross-entropy of what the encoder puts out, logits (n, k), with Y (n, k) one-hot: ERM."""
    logits, = features
    loss, dZ = sparsedis.score_loss(logits[None, ...], Y[None, ...])
    return loss, [dZ[0, ...]], {}, {}


def predict(F, y, k, fit, rows):
    """The class (rows,) that heads fitted on some rows give to others: one head for two classes,
    else one for each class among those rows, against all others. Heads have no intercept: rows of
    the rarer classes are repeated until all have as many."""
    own = [fit[y[fit] == c] for c in np.unique(y[fit])]
    fit = np.concatenate([np.resize(a, max(map(len, own))) for a in own])
    some = np.append(fit, rows)
    classes = np.array([1]) if k == 2 else np.unique(y[fit])
    Y = np.stack([y[some] == c for c in classes])[..., None].astype(float)
    F_some = np.broadcast_to(F[some], (len(classes), len(some), F.shape[1]))
    Z, _ = fit_heads(F_some, Y, len(fit))
    return (Z[0] > 0).astype(int) if k == 2 else classes[Z.argmax(axis=0)]


def worst_group(right, features, rows):
    """The least accuracy over the places and classes of some rows."""
    place, y = features.place[rows], features.y[rows]
    cells = np.unique(np.stack([place, y]), axis=1).T
    return float(min(right[(place == e) & (y == c)].mean() for e, c in cells))


def few_shot(config, F, y, k, rows):
    """The mean accuracy of heads fitted on `shot` of these rows of each class, on the rest, over 20
    draws that are the same for every method."""
    rng, accuracy = np.random.default_rng(20_001), []
    for _ in range(20):
        order = rng.permutation(rows)
        own = [order[y[order] == c] for c in np.unique(y[rows])]
        counts = support_counts(config, [len(members) for members in own])
        support = np.concatenate([a[:n] for a, n in zip(own, counts, strict=True)])
        rest = np.setdiff1d(rows, support)
        accuracy.append((predict(F, y, k, support, rest) == y[rest]).mean())
    return float(np.mean(accuracy))
