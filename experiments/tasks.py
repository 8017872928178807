"""tasks.py -- your own table or images with many targets: what the method finds in them.

    python run.py tasks DATA.npz                        x, Y, and where there are: factors, test
    python run.py tasks DATA.csv --targets y1,y2        columns; an empty cell is a missing label

In the file:

    x (N, d) or (N, H, W[, C])   a table, or images from 8 x 8 pixels on, uint8 or real
    Y (N, K)          real targets, NaN where missing; classes 0, 1, ... with --likelihood
                      categorical, negative where missing
    factors (N, f)    what the features should be, to score them: never used in training
    test (N,)         True in the rows that are held out; a fifth, at random, if not given

In the run's folder, features.npz: F (N, m) features, W (K, m) and b (K,) the predictors of the
targets, Y ~ F W' + b, and test. `run.py encode` gives the F of new rows, from its checkpoint.

The method is SparseTasks, here with a folder, a log, scores and pictures.
"""
import csv
import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from sklearn.decomposition import PCA
from sklearn.metrics import accuracy_score, r2_score

import metrics
from experiments import plots, results, settings
from experiments.apply import read_columns
from experiments.disentangle import EPS, FLAT, HEADS, SPLIT, WARMUP
from experiments.settings import ELSEWHERE, option
from sparsedis import cpu_threads
from sparsetasks.estimator import SparseTasks, Targets

FEW = (10, 20, 50)                                                  # labelled rows of a target
WIDE = 100                                                          # components of wider inputs


@dataclasses.dataclass(frozen=True)
class TableTasks(settings.RunSettings):
    """Features of your own rows, from many sparse fits of their targets: an npz or CSV file."""

    experiment: ClassVar[str] = "tasks"
    numbers: ClassVar[tuple] = ("steps", "seconds", "score", "zero")
    data: str = option(None, "npz or CSV file", positional=True, **ELSEWHERE)
    targets: str = option("", "CSV: the columns that are targets, with commas between them")
    features: int = option(6, "features of the encoder, m", 1)
    likelihood: str = option(
        "gaussian", "of the targets: real numbers, or classes", choices=("gaussian", "categorical"))
    head: str = option("inner-lasso", "how a target's predictor is fitted", choices=HEADS)
    eps: float = option(0.5, EPS, 0, 1)
    warmup: float = option(0.5, WARMUP, 0, 1)
    split: int = option(25, SPLIT, 0)
    steps: int = option(800, "outer steps", 1)
    lr: float = option(8e-3, "Adam's learning rate at the start", 1e-12)
    flat: float = option(0.3, FLAT, 0, 1)
    samples: int = option(50, "rows per set", 2)
    image_sets: int = option(4, "sets of rows per step", 1)
    tasks_per_set: int = option(16, "targets fitted on each set", 1)
    encoder: str = option("auto", "auto: by the shape of x", choices=("auto", "mlp", "convnet"))
    hidden: int = option(128, "units of its hidden layers", 1)


def command(config):
    """Run, and tell what was found."""
    settings.announce(config)
    result, run = tasks(config)
    tell(result)
    run.tell_files()


def tell(result):
    """What was found, in a few lines and a table; raw inputs wider than WIDE are their largest
    principal components."""
    what = "accuracy" if result["likelihood"] == "categorical" else "R^2"
    print(f"{what} of {result['targets']} targets on {result['test_rows']} rows held out, mean:")
    print("labelled rows   on the features   ridge on them   on the raw input")
    for size in (*FEW, "all"):
        if f"score_{size}" in result:
            values = (result[f"{name}_{size}"] for name in ("score", "ridge", "raw"))
            print(f"{size:>13}" + "".join(f"{value:>16.3f}" for value in values))
    print(f"{100 * result['zero']:.0f} % of the weights are zero; a target uses "
          f"{result['used']:.1f} of {result['features']} features ({result['used_least']} to "
          f"{result['used_most']})")
    if "mcc" in result:
        print(f"MCC {result['mcc']:.4f}   R {result['r']:.4f}      (a random mixing of the "
              f"factors: MCC {result['chance']:.2f})")
    print(f"{result['steps']} steps in {result['seconds']:.1f} s")


def tasks(config):
    """Train, score, draw  ->  the content of result.json, and its results.Run."""
    rows = read_rows(config)
    run = results.Run(config, rows.fingerprint())
    kept = run.kept()
    if kept:
        return kept, run
    names = {field.name for field in dataclasses.fields(SparseTasks)}
    own = {name: a for name, a in dataclasses.asdict(config).items() if name in names}
    xp, device = settings.device_of(config.device)
    model = SparseTasks(**own | {
        "n_components": config.features, "split": config.split or None,
        "random_state": config.seed})
    train, test = ~rows.test, rows.test
    x, Y = rows.x[train], rows.Y[train]
    with run, cpu_threads(config.threads):
        training = model.prepare(x, Y)
        measure = functools.partial(measure_rows, model, rows)
        end, lines = run.train(training, measure, xp, device)
        model.conclude(end, x, Y)
        save_model(run, model, end, config.seed)
        F = model.transform(rows.x)
        arrays = {"F": F, "W": model.coef_, "b": model.intercept_, "test": test}
        path = run.path("features.npz")
        results.write_atomically(path, lambda file: np.savez(file, **arrays))
        result = score_model(model, rows, F, config)
        draw_training(lines, run.path("training.png"), result)
        draw_weights(model.coef_, rows.names, run.path("weights.png"))
        result |= {key: lines[-1][key] for key in ("seconds", "nonzero")}
        result |= {"steps": config.steps, "seed": config.seed, "head": config.head}
        return run.finish(result), run


def save_model(run, model, end, seed):
    """The checkpoint, with the moments of input and features, for `encode`."""
    moments = {"input.mean": model.input_mean_, "input.scale": model.input_scale_,
               "feature.mean": model.mean_, "feature.deviation": model.deviation_}
    results.save_checkpoint(run.path("checkpoint.npz"), end, model.encoder_.spec, seed, moments)


# ------------------------------------------------------------------------------ the file


class Rows(NamedTuple):
    """What a file holds; factors are None where it has none, and names those of the targets."""

    x: np.ndarray
    Y: np.ndarray
    factors: object
    test: np.ndarray
    names: list

    def fingerprint(self):
        digest = hashlib.sha256()
        for a in (self.x, self.Y, self.test, self.factors):
            digest.update(f"{np.shape(a)} {getattr(a, 'dtype', '')}".encode())
            digest.update(b"" if a is None else a.tobytes())
        return digest.hexdigest()[:10]


def read_rows(config):
    """The Rows of an npz or a CSV file; ValueError names the file, the column and what is wrong."""
    path = Path(config.data)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    names = None
    if path.suffix.lower() == ".csv":
        found, names = read_csv(path, config.targets)
    else:
        found = read_npz(path)
    try:
        return checked(found, names, config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_npz(path):
    """The arrays x, Y, factors and test of an npz file, as far as it has them."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as npz ({error})") from None
    missing = [name for name in ("x", "Y") if name not in found]
    if missing:
        raise ValueError(
            f"{path}: expected x and Y, found {', '.join(found) or 'nothing'}")
    return found


def read_csv(path, targets):
    """x and Y of a CSV file with a line of names first, and the names of the targets."""
    wanted, = csv.reader([targets]) if targets else [[]]
    wanted = [name.strip() for name in wanted]
    names, columns = read_columns(path, may_be_empty=wanted)
    if not wanted:
        raise ValueError(f"{path}: --targets is needed, some of {', '.join(names)}")
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise ValueError(f"{path}: no column {', '.join(unknown)}, found {', '.join(names)}")
    inputs = [name for name in names if name not in wanted]
    if not inputs:
        raise ValueError(f"{path}: all columns are targets, none is left to predict from")
    found = {"x": np.stack([columns[name] for name in inputs], axis=1),
             "Y": np.stack([columns[name] for name in wanted], axis=1)}
    return found, wanted


def checked(found, names, config):
    """Rows, of arrays that fit together."""
    x, Y = found["x"], found["Y"]
    N = len(x) if x.ndim else 0
    Y = Y[:, None] if Y.ndim == 1 else Y
    if x.ndim not in (2, 3, 4) or 0 in x.shape or x.dtype.kind not in "biuf":
        raise ValueError(f"x: found {x.shape} {x.dtype}, expected numbers (N, d) or (N, H, W[, C])")
    bad = np.argwhere(~np.isfinite(x))
    if len(bad):
        raise ValueError(f"x: row {bad[0][0]}, column {bad[0][1]} is not finite")
    if Y.ndim != 2 or len(Y) != N or Y.dtype.kind not in "biuf" or np.isinf(Y).any():
        raise ValueError(f"Y: found {Y.shape} {Y.dtype}, expected numbers ({N}, K)")
    factors = found.get("factors")
    if factors is not None:
        fits = factors.ndim == 2 and len(factors) == N and factors.dtype.kind in "biuf"
        if not fits or not np.isfinite(factors).all():
            raise ValueError(f"factors: found {factors.shape}, expected finite numbers ({N}, f)")
    test = found.get("test")
    if test is None:
        test = np.random.default_rng(config.seed).permutation(N) < N / 5
    if test.shape != (N,) or not 0 < np.count_nonzero(test) < N:
        raise ValueError(f"test: found {test.shape}, expected ({N},) with some rows held out")
    test = test.astype(bool)
    names = names or [f"target {k}" for k in range(Y.shape[1])]
    known = Y >= 0 if config.likelihood == "categorical" else ~np.isnan(Y)
    for k, name in enumerate(names):
        counts = [np.count_nonzero(known[rows, k]) for rows in (~test, test)]
        if min(counts) < 2:
            raise ValueError(
                f"{name}: {counts[0]} labels to train on and {counts[1]} held out, "
                "expected 2 or more")
    return Rows(x, Y, factors, test, names)


# ------------------------------------------------------------------------------ scores


def measure_rows(model, rows, params, state, info):
    """What a line of the log tells: eps, and with factors MCC on rows held out."""
    line = {"eps": info["eps"]}
    if rows.factors is not None:
        some = np.flatnonzero(rows.test)[:1000]
        model.params_, model.state_ = (
            {name: metrics.to_numpy(a) for name, a in arrays.items()} for arrays in (params, state))
        F = model.encode(model.check_inputs(rows.x[some], reset=False))
        line["mcc"] = metrics.mcc(rows.factors[some], F)
    return line


def score_model(model, rows, F, config):
    """The content of result.json: scores of the targets on rows held out, sparsity, MCC and R."""
    used = (model.coef_ != 0).reshape(len(rows.names), -1, config.features).any(axis=1)     # (K, m)
    counts = used.sum(axis=1)
    result = {
        "likelihood": config.likelihood, "targets": len(rows.names), "features": config.features,
        "test_rows": int(rows.test.sum()), "zero": float(1 - used.mean()),
        "used": float(counts.mean()), "used_least": int(counts.min()),
        "used_most": int(counts.max())}
    raw = metrics.standardise(rows.x.reshape(len(rows.x), -1))
    if raw.shape[1] > WIDE:
        raw = PCA(min(WIDE, sum(~rows.test)), random_state=0).fit(raw[~rows.test]).transform(raw)
    for size in (*FEW, "all"):
        result |= scores_of_size(model, rows, F, raw, size, config)
    result["score"] = result["score_all"]
    if rows.factors is not None:
        z = rows.factors[rows.test]
        result |= metrics.scores(z, F[rows.test])
        result["chance"] = chance(metrics.standardise(z), config.features)
    return result


def chance(z, m, draws=100):
    """The mean MCC of a random Gaussian mixing of these factors into m features."""
    rng, mccs = np.random.default_rng(0), []
    for _ in range(draws):
        mccs.append(metrics.mcc(z, z @ rng.standard_normal((z.shape[1], m))))
    return float(np.mean(mccs))


def scores_of_size(model, rows, F, raw, size, config):
    """Mean scores over targets of predictors that are fitted on `size` labelled rows each."""
    targets = Targets(rows.Y, config.likelihood)
    scores = {"score": [], "ridge": [], "raw": []}
    for k in range(len(rows.names)):
        labelled = np.flatnonzero(targets.known[:, k] & ~rows.test)
        if size != "all" and len(labelled) < size:
            return {}
        order = np.random.default_rng([config.seed, k]).permutation(labelled)
        fit_on = labelled if size == "all" else order[:size]
        held_out = targets.known[:, k] & rows.test
        fits = {"score": (F, fit_on, config.head), "ridge": (F, fit_on, "ridge"),
                "raw": (raw, fit_on, "ridge")}
        for name, (X, on, head) in fits.items():
            w, b = targets.predictor(X, k, on, head, config.eps)
            found = targets.predict(X[held_out], w, b)
            score = accuracy_score if targets.classes else r2_score
            scores[name].append(score(rows.Y[held_out, k], found))
    return {f"{name}_{size}": float(np.mean(values)) for name, values in scores.items()}


# ------------------------------------------------------------------------------ pictures


def draw_training(lines, path, result):
    """Loss and sparsity against the step, and MCC where there are factors."""
    titles = {"loss": "outer loss (rises with eps)", "nonzero": "share of weights not zero"}
    if "mcc" in lines[0]:
        titles["mcc"] = "MCC (rows held out)"
    plots.draw_training(lines, path, titles, result.get("chance"))


def draw_weights(W, names, path):
    """|W| of targets (columns, sorted by their strongest feature) by features (rows)."""
    size = np.abs(W) if W.ndim == 2 else np.linalg.norm(W, axis=1)  # (K, m)
    size = size / np.maximum(size.max(axis=1, keepdims=True), 1e-300)
    order = np.lexsort((-(size != 0).sum(axis=1), size.argmax(axis=1)))
    fig, ax = plots.subplots(1, 1, (min(12, 2.5 + 0.14 * len(W)), 1.4 + 0.3 * W.shape[-1]))
    image = ax.imshow(size[order].T, aspect="auto", cmap="viridis", vmin=0, vmax=1)
    ax.set(xlabel="target, sorted by the feature it uses most", ylabel="feature")
    ax.set(yticks=range(W.shape[-1]), title="|weight|, as a share of the target's largest")
    few = len(names) <= 30
    ax.set_xticks(range(len(names)) if few else [])
    if few:
        ax.set_xticklabels([names[k] for k in order], rotation=90, fontsize=7)
    fig.colorbar(image)
    plots.save(fig, path)
