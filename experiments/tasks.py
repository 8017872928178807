"""tasks.py -- your own table or images with many targets: what the method finds in them.

    python run.py tasks DATA.npz                        x, Y, and where there are: factors, test
    python run.py tasks DATA.csv --targets y1 y2        columns; an empty cell is a missing label
                                 --test late            and one of 1 in rows that are held out, or 0

In an npz file:

    x (N, d) or (N, H, W[, C])   a table, or images from 8 x 8 pixels on, uint8 or real
    Y (N, K)          real targets, NaN where missing; with --likelihood categorical classes,
                      numbers or texts, missing where negative, NaN or empty
    factors (N, f)    what the features should be, to score them: never used in training
    test (N,)         True in the rows that are held out; a fifth, at random, if not given

In the run's folder: report.html, the same as targets.csv, weights.csv and features.csv, and
features.npz with F (N, m) features, test, the names of the targets that the encoder saw, and their
predictors, W (K, m) and b (K,), Y ~ F W' + b. Of classes W is (K, k, m), F W' + b are logits, of a
class whose `fitted` (K, k) is False b is the logarithm of its share, and classes.0 ... their names.
`run.py encode` gives F and the targets of new rows. The method is SparseTasks.
"""
import dataclasses
import re
import time
import warnings
from typing import ClassVar

import numpy as np
from sklearn.cross_decomposition import PLSRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold

import metrics
from experiments import report, results, settings, tables, tell
from experiments.disentangle import EPS, FLAT, SPLIT, WARMUP
from experiments.settings import ELSEWHERE, option
from sparsedis import OptimiserState, Snapshot, cpu_threads
from sparsetasks import linear, predictors
from sparsetasks.estimator import REAL_HEADS, SparseTasks
from sparsetasks.targets import mean_and_scale, some

FEW = (10, 20, 50)                                                  # labelled rows of a new target
WIDE = 100                                                          # components of wider inputs
HELD_OUT = "CSV: a column of 1 in the rows to hold out, and 0; a fifth, at random, when not given"
NAMES = "CSV: the columns that are {}, spaces or commas between them"


@dataclasses.dataclass(frozen=True)
class TableTasks(settings.RunSettings):
    """Features of your own rows of which each target needs few: an npz or CSV file."""

    experiment: ClassVar[str] = "tasks"
    version: ClassVar[int] = 2
    numbers: ClassVar[tuple] = ("seconds", "score", "raw", "margin", "zero")
    data: str = option(None, "npz or CSV file", positional=True, **ELSEWHERE)
    targets: tuple = option((), NAMES.format("targets"))
    inputs: tuple = option((), NAMES.format("inputs") + "; all others, when not given")
    drop: tuple = option((), NAMES.format("neither"))
    test: str = option("", HELD_OUT, **ELSEWHERE)                   # is in the data's fingerprint
    new_targets: float = option(
        0.0, "share of the targets that the encoder never sees, to be learned from few labels",
        0, 0.9)
    features: str = option("auto", "features, m; auto: as many as held-out rows ask for")
    likelihood: str = option(
        "gaussian", "of the targets: real numbers, or classes", choices=("gaussian", "categorical"))
    encoder: str = option(
        "auto", "auto: linear, or the network that fits x, by rows held out of training",
        choices=("auto", "linear", "mlp", "convnet"))
    no_rotate: bool = option(False, "leave the features as the encoder gives them")
    validation: float = option(0.1, "share of the training rows held out by the encoder", 0, 0.5)
    head: str = option("inner-lasso", "how a target is fitted", choices=REAL_HEADS)
    eps: float = option(0.5, EPS, 0, 1)
    warmup: float = option(0.5, WARMUP, 0, 1)
    split: int = option(25, SPLIT, 0)
    steps: int = option(800, "networks: outer steps", 1)
    lr: float = option(8e-3, "Adam's learning rate at the start", 1e-12, 1000)
    flat: float = option(0.3, FLAT, 0, 1)
    weight_decay: float = option(0.0, "of a network's parameters", 0, 1000)
    samples: int = option(50, "rows per set", 2)
    image_sets: int = option(4, "sets of rows per step", 1)
    tasks_per_set: int = option(16, "targets fitted on each set", 1)
    hidden: int = option(128, "units of a network's hidden layers", 1)


def command(config):
    """Run, and tell what was found."""
    tell.announce(config, "seconds to minutes")
    result, run = tasks(config)
    report.tell(result)
    run.tell_files()
    print(report.verdict(result))


def tasks(config):
    """Fit, score, report  ->  the content of result.json, and its results.Run."""
    rows = tables.read_rows(config)
    run = results.Run(config, rows.fingerprint())
    kept = run.kept()
    if kept:
        return kept, run
    model, new = model_of(config), new_targets(config, rows)
    settings.device_of(config.device)
    with run, cpu_threads(config.threads):
        began = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            model.fit(rows.x[~rows.test], rows.Y[~rows.test][:, ~new])
        seen = [name for name, hidden in zip(rows.names, new, strict=True) if not hidden]
        notes = [with_names(str(w.message), seen) for w in caught if w.category is UserWarning]
        seconds = time.perf_counter() - began
        F = model.transform(rows.x)
        arrays = {"F": F, "W": model.coef_, "b": model.intercept_, "test": rows.test}
        arrays |= {"targets": np.array(seen)}
        if model.classes_ is not None:
            arrays |= {"fitted": model.fitted_}
            arrays |= {f"classes.{k}": names for k, names in enumerate(model.classes_)}
        results.write_atomically(run.path("features.npz"), lambda file: np.savez(file, **arrays))
        result = score(model, rows, F, new, config) | {"notes": notes, "seconds": seconds}
        report.write(run.path, model, rows, F, result)
        save_model(run.path("checkpoint.npz"), model, rows, config.seed)    # it is not gone on from
        return run.finish(result), run


def with_names(note, names):
    """A warning of SparseTasks with the names of targets in the place of their numbers."""
    return re.sub(r"(?<= of )target (\d+)(?= \(in )", lambda found: names[int(found[1])], note)


def model_of(config):
    """The SparseTasks of these settings."""
    names = {field.name for field in dataclasses.fields(SparseTasks)}
    own = {name: a for name, a in dataclasses.asdict(config).items() if name in names}
    m = config.features
    if m != "auto" and not (m.isdecimal() and int(m) > 0):
        raise ValueError(f"--features: found {m}, expected auto, or a number from 1")
    return SparseTasks(**own | {
        "n_components": m if m == "auto" else int(m), "rotate": not config.no_rotate,
        "split": config.split or None, "random_state": config.seed, "verbose": 1})


def new_targets(config, rows):
    """A mask (K,) of the targets that the encoder is not to see."""
    K = len(rows.names)
    count = round(config.new_targets * K)
    if config.new_targets and not 0 < count < K:
        raise ValueError(f"--new-targets {config.new_targets}: none of {K} targets, or all")
    return np.random.default_rng(config.seed).permutation(K) < count


# ------------------------------------------------------------------------------ the checkpoint


def save_model(path, model, rows, seed):
    """A checkpoint of all that transform needs."""
    moments = {"input.mean": model.input_mean_, "input.scale": model.input_scale_,
               "feature.mean": model.mean_, "feature.deviation": model.deviation_,
               "rotation": model.rotation_, "input.shape": np.array(model.input_shape_)}
    end = Snapshot(model.params_, model.state_, OptimiserState(0, {}, {}), len(model.loss_curve_))
    results.save_checkpoint(path, end, model.network_.spec, seed, moments, rows.inputs)


def encode_rows(checkpoint, folder, data):
    """Arrays F (N, m), Y (N, K) and targets, of the rows of an npz or CSV file, by a run's
    Checkpoint and the predictors in its folder: features of mean 0 and variance 1 over the rows
    that it was fitted on, targets as predicted and their names."""
    x = rows_to_encode(checkpoint, data)
    moments, model = checkpoint.moments, SparseTasks()
    model.network_, model.rotation_ = checkpoint.encoder, moments["rotation"]
    model.params_, model.state_ = checkpoint.snapshot.params, checkpoint.snapshot.state
    model.input_mean_, model.input_scale_ = moments["input.mean"], moments["input.scale"]
    model.mean_, model.deviation_ = moments["feature.mean"], moments["feature.deviation"]
    F = model.features_of(x)
    beside = folder / "features.npz"
    if not beside.exists():
        return {"F": F}
    model.coef_, model.intercept_, names = tables.read_arrays(beside, "W", "b", "targets")
    if model.coef_.ndim == 3:
        model.likelihood, model.one_target_ = "categorical", False
        keys = [f"classes.{k}" for k in range(len(names))]
        model.fitted_, *model.classes_ = tables.read_arrays(beside, "fitted", *keys)
    return {"F": F, "Y": model.predict_from(F), "targets": names}


def rows_to_encode(checkpoint, path):
    """x of an npz or CSV file, as the run of a checkpoint was fitted on."""
    moments = checkpoint.moments
    if not path.lower().endswith(".npz"):
        if not checkpoint.inputs:
            raise ValueError(f"{path}: expected npz with x, as the run was fitted on")
        x = tables.read_inputs(path, checkpoint.inputs)
    else:
        x, = tables.read_arrays(path, "x")
    shape = tuple(moments["input.shape"])
    x = x[..., None] if x.ndim == len(shape) else x                 # grey images
    if x.shape[1:] != shape or x.dtype.kind not in "biuf" or not np.isfinite(x).all():
        raise ValueError(f"{path}: expected finite x (N, {', '.join(map(str, shape))}), found "
                         f"{x.shape} {x.dtype}")
    return x


# ------------------------------------------------------------------------------ scores


def score(model, rows, F, new, config):
    """The content of result.json: of every target and every feature, on rows held out."""
    seen = np.flatnonzero(~new)
    classes, used = config.likelihood == "categorical", model.coef_ != 0
    used = used.any(axis=1) if classes else used                    # (K, m)
    raw = raw_input(rows)
    found = {"score": model.predict(rows.x[rows.test]).reshape(-1, len(seen))}
    found |= peers(raw, rows, seen, classes)
    scores = {name: [score_of(rows, k, its, classes) for k, its in zip(seen, a.T, strict=True)]
              for name, a in found.items()}
    result = {
        "likelihood": config.likelihood, "encoder": model.encoder_, "held_out": model.held_out_,
        "features": model.n_components_, "test_rows": int(rows.test.sum()),
        "targets": [rows.names[k] for k in seen], "scores": scores, "zero": float(1 - used.mean()),
        "used": used.sum(axis=1).tolist(), "identified": model.identified_.tolist(),
        "stability": [round(s, 4) if np.isfinite(s) else None for s in model.stability_.tolist()]}
    vary = np.array([varies(rows, k) for k in seen])
    if not vary.all():
        print(f"of one value in the rows held out, and in no mean: "
              f"{some([rows.names[k] for k in seen[~vary]])}")
    told = vary if vary.any() else ~vary
    result |= {name: float(np.mean(np.array(values)[told])) for name, values in scores.items()}
    result["margin"] = standard_error(
        rows, seen[told], found["score"][:, told], found["raw"][:, told], classes)
    if new.any():
        result["new"] = scores_of_new(rows, F, raw, new, config)
    if rows.factors is not None:
        z = rows.factors[rows.test]
        result |= metrics.scores(z, F[rows.test])
        result["chance"] = chance(metrics.standardise(z), model.n_components_)
    return result


def chance(z, m, draws=100):
    """The mean MCC of a random Gaussian mixing of these factors into m features."""
    rng, mccs = np.random.default_rng(0), []
    for _ in range(draws):
        mccs.append(metrics.mcc(z, z @ rng.standard_normal((z.shape[1], m))))
    return float(np.mean(mccs))


def score_of(rows, k, found, classes):
    """R^2, or the accuracy, of what was found of target k in the rows held out."""
    y, on = rows.Y[rows.test, k], rows.known[rows.test, k]
    return float(np.mean(y[on] == found[on]) if classes else r2_score(y[on], found[on]))


def varies(rows, k):
    """Whether target k has two values in the rows held out."""
    return len(np.unique(rows.Y[rows.test, k][rows.known[rows.test, k]])) > 1


def standard_error(rows, targets, ours, raw, classes):
    """Of the difference of two mean scores of targets, on the same rows held out."""
    Y, known = (a[np.ix_(rows.test, targets)] for a in (rows.Y, rows.known))
    if classes:
        losses = [np.where(known, Y != found, 0.0) for found in (ours, raw)]
    else:
        deviation = np.nanstd(np.where(known, Y, np.nan), axis=0)
        scale = np.where(deviation > 0, deviation, np.inf)          # none varies
        losses = [np.where(known, (Y - found) / scale, 0.0) ** 2 for found in (ours, raw)]
    of_rows = ((losses[0] - losses[1]) / known.sum(axis=0)).mean(axis=1)
    return float(of_rows.std(ddof=1) * len(of_rows) ** 0.5)


def raw_input(rows):
    """Standardised x (N, d) by the rows of training, or its WIDE largest principal components."""
    x = rows.x.reshape(len(rows.x), -1).astype(np.float64)
    mean, scale = mean_and_scale(x[~rows.test])
    x = (x - mean) / scale
    if rows.x.ndim > 2 and x.shape[1] > WIDE:
        x = x @ linear.principal(x[~rows.test], WIDE)
    return x


def peers(X, rows, targets, classes):
    """What plain models of the raw input X say of some targets in the rows held out: ridge and PLS,
    of classes logistic regression."""
    train, test = ~rows.test, rows.test
    if classes:
        labelled = [np.flatnonzero(train & rows.known[:, k]) for k in targets]
        found = [classified(X[on], rows.Y[on, k], X[test])
                 for k, on in zip(targets, labelled, strict=True)]
        return {"raw": np.stack(found, axis=1)}
    Y = rows.Y[np.ix_(train, targets)]
    mean, scale = mean_and_scale(Y)
    ridge = ridge_on(X[train], (Y - mean) / scale, X)
    filled = np.where(np.isfinite(Y), (Y - mean) / scale, ridge[train])
    pls = fitted_pls(X[train], filled).predict(X[test]).reshape(-1, len(targets))
    return {"raw": ridge[test] * scale + mean, "pls": pls * scale + mean}


def ridge_on(X, Y, X_new):
    """Predictions (., K) of ridge, a penalty a target, each on its own rows."""
    B = linear.ridge(X, Y, linear.penalties(X, Y))
    left, _ = mean_and_scale(Y - X @ B)                             # the intercepts
    return X_new @ B + left


def fitted_pls(X, Y):
    """PLS on all targets, gaps filled in by ridge; components by 5-fold cross-validation."""
    most = min(20, X.shape[1], int(0.7 * len(X)))
    sizes = [k for k in (1, 2, 3, 4, 6, 8, 10, 14, 20) if k <= most]
    if len(sizes) == 1:
        return PLSRegression(1, scale=False).fit(X, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                             # of surplus components
        folds = KFold(min(5, len(X)), shuffle=True, random_state=0)
        search = GridSearchCV(PLSRegression(scale=False), {"n_components": sizes}, cv=folds)
        return search.fit(X, Y)


def classified(X, y, X_new):
    """Classes (.,) of new rows by logistic regression."""
    names, count = np.unique(y, return_counts=True)
    if len(names) == 1:
        return np.full(len(X_new), names[0])
    model = LogisticRegression(max_iter=1000)
    if count.min() >= 5:
        folds = StratifiedKFold(5, shuffle=True, random_state=0)
        model = GridSearchCV(model, {"C": np.logspace(-3, 1, 5)}, cv=folds, scoring="neg_log_loss")
    return model.fit(X, y).predict(X_new)


def scores_of_new(rows, F, raw, new, config):
    """Labelled rows -> mean scores of targets that the encoder never saw, each fitted on so many:
    on the features, by ridge on them, and on the raw input."""
    classes, table = config.likelihood == "categorical", {}
    labelled = {k: np.flatnonzero(rows.known[:, k] & ~rows.test) for k in np.flatnonzero(new)}
    for size in (*FEW, "all"):
        if size != "all" and min(map(len, labelled.values())) < size:
            continue
        found = []
        for k, its in labelled.items():
            on = np.random.default_rng([config.seed, k]).permutation(its)
            on = its if size == "all" else on[:size]
            fits = fits_of_new(F, raw, rows, k, on, classes)
            found.append([score_of(rows, k, a, classes) for a in fits])
        table[str(size)] = np.mean(found, axis=0).tolist()
    on = CLASSIFIED_ON if classes else FITTED_ON
    return {"count": int(new.sum()), "on": on, "scores": table}


FITTED_ON = ("the features", "the features, by ridge", "the raw input")
CLASSIFIED_ON = ("the features", "the raw input")


def fits_of_new(F, raw, rows, k, on, classes):
    """What fits of target k on some rows say of it in the rows held out, as FITTED_ON."""
    y, test = rows.Y[on, k], rows.test
    if classes:
        return [classified(X[on], y, X[test]) for X in (F, raw)]
    mean, scale = mean_and_scale(y[:, None])
    y, found = (y[:, None] - mean) / scale, []
    for head in ("inner-lasso", "inner-ridge"):
        W, b = predictors.of_numbers(F[on], y, head)
        found.append((F[test] @ W.T + b)[:, 0])
    found.append(ridge_on(raw[on], y, raw[test])[:, 0])
    return [a * scale[0] + mean[0] for a in found]
