"""run.py -- the command line: experiments -> results/ (figures, JSON), nothing else.

    python run.py [disentangle] [--rho 0.9 ...]     the main job: disentangle 3D Shapes with inner-Lasso
    python run.py fewshot [--source omniglot ...]   few-shot learning with sparse SVMs
    python run.py sharing [--features FILE.npz]     sparse heads that share features
    python run.py render --out FILE.h5              write the rendered data set in the official layout
    python run.py encode CHECKPOINT IMAGES.npz      features of your own images
    python run.py real CHECKPOINT IMAGES.npz        real images beside renders of the same factors
    python run.py curves FOLDER ... --out FILE.png  training curves of several runs
    python run.py sweep NAME --jobs N               the runs behind the paper's figures
    python run.py figure NAME                       a figure, from the runs of its sweep
    python run.py theory                            the paper's formal claims, on numbers
    python run.py choose-eps                        choose eps without ground truth, by UDR
    python run.py gradcheck                         every derivative against central differences
    python run.py bench                             timings, side by side with scikit-learn and PyTorch
"""
import argparse
import contextlib
import dataclasses
import functools
import hashlib
import importlib
import io
import json
import os
import shutil
import sys
import time
import warnings
from pathlib import Path

import numpy as np

import data
import metrics
import sparsedis
from metrics import load_checkpoint, read_rows, save_checkpoint, write_atomically, write_json

# ------------------------------------------------------------------------------------------------- settings


def option(default, help, low=None, high=None, choices=None, **metadata):
    """A field of a settings class: its default, help text and what values it takes."""
    return dataclasses.field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices, **metadata})


ELSEWHERE = {"in_hash": False}                                              # settings that do not change the result


@dataclasses.dataclass(frozen=True)
class Common:
    seed: int = option(0, "seed of parameters, images and tasks", 0)
    device: str = option("cpu", "where to compute", choices=("cpu", "gpu"), **ELSEWHERE)
    threads: int = option(0, "CPU threads; 0: one per core", 0, **ELSEWHERE)
    results: str = option("results", "folder of the results", **ELSEWHERE)
    force: bool = option(False, "run again even if the result exists", **ELSEWHERE)


@dataclasses.dataclass(frozen=True)
class Disentangle(Common):
    """Train an encoder through many sparse linear fits and score its features.   [L23, Sec. 5.1]"""
    rho: float = option(0.9, "correlation of the factors in training, 0 <= rho < 1", 0, 0.9999)
    alpha: float = option(1.0, "noise on the factors, in steps between their levels", 0, 1)
    tasks: str = option("bernoulli-gauss", f"distribution of the tasks' coefficients: {data.TASKS}")
    outputs: int = option(1, "outputs of a task, or classes", 1)
    likelihood: str = option("gaussian", "of the labels; categorical: fitted by group-Lasso logistic regression", choices=("gaussian", "categorical"))
    shift: float = option(0.0, "how far a set's images are tilted towards its tasks' factors: p(x | W) differs between tasks", 0, 5)
    head: str = option("inner-lasso", "how a task's predictor is fitted", choices=("inner-lasso", "inner-ridge", "outer-lasso", "outer-ridge"))
    eps: float = option(0.3, "strength of the penalty, a fraction of lambda_max; 0 fits without penalty", 0, 1)
    warmup: float = option(0.5, "share of the steps over which eps rises from 0 (ours); 0: constant eps, as in the paper", 0, 1)
    steps: int = option(2400, "outer steps", 1)
    lr: float = option(5e-3, "Adam's learning rate at the start of its cosine decay (the paper: 1e-3)", 1e-12)
    image_sets: int = option(2, "image sets per step (the paper: 8)", 1)
    samples: int = option(50, "images per set", 2)
    tasks_per_set: int = option(16, "tasks that share a set's images (ours; the paper: 1)", 1)
    split: int = option(0, "fit on this many samples and score on the others, Problem (7); 0: both on all, Problem (6)", 0)
    norm: str = option("batch", "features are normalised over a set's samples, or each sample's to a sum of 0", choices=("batch", "layer"))
    features: int = option(6, "features of the encoder, m", 1)
    eval_images: int = option(20_000, "images of the final scores, drawn uniformly", 2)
    data: str = option("", "the official 3dshapes.h5, or one with fewer rows; rendered when not given", **ELSEWHERE)


def add_options(parser, settings):
    for field in dataclasses.fields(settings):
        flag, meta = "--" + field.name.replace("_", "-"), field.metadata
        if field.type is bool:
            parser.add_argument(flag, action="store_true", help=meta["help"])
        else:
            parser.add_argument(flag, type=field.type, default=field.default, choices=meta["choices"], metavar=field.name.upper(),
                                help=f"{meta['help']} (default: {field.default}{'; one of ' + ', '.join(meta['choices']) if meta['choices'] else ''})")


def read_settings(settings, args):
    """The settings of a parsed command line, with their bounds checked."""
    config = settings(**{field.name: getattr(args, field.name) for field in dataclasses.fields(settings)})
    for field in dataclasses.fields(settings):
        value, low, high = getattr(config, field.name), field.metadata["low"], field.metadata["high"]
        if low is not None and not low <= value <= (float("inf") if high is None else high):
            expected = f"{low} to {high}" if high is not None else f"at least {low}"
            raise ValueError(f"--{field.name.replace('_', '-')}: found {value}, expected {expected}")
    return config


def hashed(config, **more):
    """What determines a result, as JSON, and a short name for it."""
    content = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.metadata.get("in_hash", True)} | more
    text = json.dumps({"experiment": type(config).__name__.lower(), **content}, sort_keys=True)
    return content, hashlib.sha256(text.encode()).hexdigest()[:10]


def code_digest():
    """A digest of the five files, so that a result made by other code can be told."""
    files = [Path(__file__).parent / f"{name}.py" for name in ("sparsedis", "solvers", "data", "metrics", "run")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def device_of(name):
    """The array library and device of --device."""
    if name == "cpu":
        import array_api_compat.numpy as xp
        return xp, "cpu"
    try:
        import cupy
    except ImportError:
        raise ValueError("--device gpu: CuPy is not installed (pip install cupy-cuda13x, or cupy-cuda12x)") from None
    if not cupy.is_available():
        raise ValueError("--device gpu: CuPy finds no GPU on this machine")
    import array_api_compat.cupy as xp
    return xp, cupy.cuda.Device()


# ---------------------------------------------------------------------------------------------- disentangle


def disentangle(config):
    """Train, score, draw; returns the content of result.json and its folder."""
    if config.split and not config.split < config.samples:
        raise ValueError(f"--split: found {config.split}, expected less than --samples, {config.samples}")
    if config.norm == "layer" and config.features == 1:
        raise ValueError("--features: found 1, expected at least 2 with --norm layer")
    head = head_of(config)
    xp, device = device_of(config.device)
    shapes = data.Shapes3D(config.data or None)
    content, name = hashed(config, data="rendered" if not config.data else shapes.fingerprint())
    folder = Path(config.results) / "disentangle" / name
    if finished(config, folder):
        return json.loads((folder / "result.json").read_text()), folder
    z, p = data.latents(shapes, config.alpha, config.rho)
    tasks = data.Tasks(z, p, config.image_sets, config.samples, config.tasks_per_set, config.tasks, config.outputs, config.likelihood,
                       config.shift)
    print("training images: " + ", ".join(f"{k.replace('_', ' ')} {v:.4g}" for k, v in metrics.describe_latents(z, p).items()))
    print("assumptions of [L23]: " + metrics.describe_assumptions(z, data.sample_tasks(np.random.default_rng(0), 4000, 6, config.tasks), config.likelihood))
    _lock = open_folder(config, folder, content)
    encoder = sparsedis.cnn(config.features)
    objective = sparsedis.task_objective(head, config.eps, config.warmup, config.split or None, 1 if config.norm == "batch" else 2)

    def sample(step):
        index, y = tasks.sample(np.random.default_rng([config.seed, step]))
        return [shapes.images(index.ravel(), xp, device)], xp.asarray(y, device=device)

    def measure(params, state, info):
        return {"eps": info["eps"], "mcc": metrics.mcc(z[on_the_way], features(params, on_the_way))}
    with sparsedis.cpu_threads(config.threads or os.cpu_count()):
        features = functools.partial(encode_images, encoder, shapes, config.norm, xp, device)
        on_the_way = np.random.default_rng(1000).integers(len(shapes), size=1000)       # images of the MCC on the way
        training = sparsedis.Training(encoder, sample, objective, config.steps, config.lr)
        start, rows = train_with_files(config, encoder, training, measure, folder, xp, device)
        metrics.draw_training(rows, folder / "training.png")
        result = {**score_and_draw(config, functools.partial(features, start[0]), shapes, z, p, folder), "steps": config.steps,
                  "seconds": rows[-1]["seconds"], "nonzero": rows[-1]["nonzero"],
                  **{key: content[key] for key in ("seed", "rho", "alpha", "head", "eps", "tasks")}}
    write_json(folder / "result.json", result)
    return result, folder


def finished(config, folder):
    """Whether a run's result is there and is to be kept; says so."""
    if not (folder / "result.json").exists() or config.force:
        return False
    other = json.loads((folder / "config.json").read_text())["code"] != code_digest()
    print(f"already there{', made by other code' * other} (--force runs it again)")
    return True


def open_folder(config, folder, content):
    """The folder of a run's files, emptied with --force, and its config.json; the lock that is returned is ours as long as it lives."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = metrics.locked(folder)
    for file in folder.iterdir() if config.force else ():
        shutil.rmtree(file) if file.is_dir() else file.unlink() if file.name != ".lock" else None
    write_json(folder / "config.json", {**content, "device": config.device, "code": code_digest()})
    return lock


def score_and_draw(config, features, shapes, z, p, folder):
    """The scores of features(index) on images drawn uniformly, also after ICA fitted on the training distribution."""
    index = np.random.default_rng(20_000).integers(len(shapes), size=config.eval_images)
    F = features(index)
    if not np.isfinite(F).all():
        raise FloatingPointError("the encoder's features are not finite")
    C = metrics.correlation(z[index], F)
    matched = metrics.match(C)
    metrics.draw_correlation(C, matched, shapes.names, folder / "correlation.png")
    metrics.draw_responses(features, shapes.factors, shapes.names, F, matched, folder / "responses.png")
    drawn = np.random.default_rng(20_001).choice(len(shapes), min(10_000, config.eval_images), p=p)
    seen = features(drawn)
    C_seen = metrics.correlation(z[drawn], seen)
    return {**metrics.scores(z[index], F), **{f"{k}_ica": v for k, v in metrics.scores(z[index], metrics.ica(F, seen)).items()},
            **{f"seen_{shapes.names[i]}": float(C_seen[i, j]) for i, j in zip(*matched)},   # on the training distribution
            **{f"block_share_{size}": metrics.block_share(z[index], F, size) for size in (1, 2, 3)},
            **{f"mcc_{shapes.names[i]}": float(C[i, j]) for i, j in zip(*matched)}}


def in_batches(encoder, params, state, images, index, batch=400):
    """Features (N, m), as NumPy, of images(index) in evaluation, a batch at a time."""
    parts = (images(index[i:i + batch]) for i in range(0, len(index), batch))
    return np.concatenate([metrics.to_numpy(encoder.forward(params, state, x, train=False)[0]) for x in parts])


def encode_images(encoder, shapes, norm, xp, device, params, index):
    """Features (N, m) of the images of an index, as NumPy. Batch norm, affine, changes no score; layer norm is applied."""
    F = in_batches(encoder, params, {}, lambda i: shapes.images(i, xp, device), index)
    return F if norm == "batch" else sparsedis.normalise(F[None], 2)[0][0]


def head_of(config):
    """The head that fits the chosen tasks."""
    if config.outputs == 1 and config.likelihood == "gaussian":
        return config.head
    if config.head != "inner-lasso":
        raise ValueError(f"--head: found {config.head}, expected inner-lasso for tasks of several outputs or classes")
    return "inner-group-logistic" if config.likelihood == "categorical" else "inner-group-lasso"


def train_with_files(config, encoder, training, measure, folder, xp, device, **more_params):
    """sparsedis.train with checkpoints, metrics.jsonl and a progress line; resumes from what an interrupted run left.
    measure(params, state, info) -> what a row of metrics.jsonl tells besides step, loss, sparsity and seconds."""
    if (folder / "checkpoint.npz").exists():
        start = load_checkpoint(folder / "checkpoint.npz", xp, device)
    else:
        params, state = encoder.init(np.random.default_rng(config.seed), xp=xp, device=device)
        start = ({**params, **{k: xp.asarray(v, dtype=xp.float32, device=device) for k, v in more_params.items()}}, state, None, 0)
    rows = read_rows(folder / "metrics.jsonl", start[3])
    write_atomically(folder / "metrics.jsonl", lambda file: file.write("".join(json.dumps(row) + "\n" for row in rows).encode()))
    began = time.perf_counter() - (rows[-1]["seconds"] if rows else 0)
    every, losses, bar = max(1, config.steps // 25), [], data.progress(range(config.steps), "training")
    bar.update(start[3])

    def report(now, loss, info):
        bar.update()
        losses.append(loss)
        if now[3] % every and now[3] != config.steps:
            return
        row = {"step": now[3], "loss": float(np.mean(losses)), "nonzero": float(xp.mean(xp.astype(info["w"] != 0, xp.float64))) if "w" in info else 1.0,
               **measure(now[0], now[1], info), "seconds": round(time.perf_counter() - began, 2)}
        if "converged" in info:
            row["unsolved"] = int(np.sum(~np.asarray(metrics.to_numpy(info["converged"]), bool)))
        losses.clear()
        rows.append(row)
        with open(folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
        save_checkpoint(folder / "checkpoint.npz", now, config.seed)
        bar.set_postfix_str(", ".join(f"{key} {value:.3f}" for key, value in row.items() if key in ("loss", "nonzero", "mcc", "accuracy")))

    with bar:
        return sparsedis.train(training, start, report), rows


# ------------------------------------------------------------------------------------- sweeps and their figures
# A sweep is a list of settings, of Disentangle or FewShot; its table is the result.json of each. Figures draw from the table.

SCALES = {"quick": ({"steps": 800}, 2, {"main": (0.01, 0.1, 0.3), "rho": (0.3,), "other": (0.1, 0.3)}),
          "paper": ({"steps": 20_000, "image_sets": 8, "tasks_per_set": 1, "lr": 1e-3, "warmup": 0.0}, 10,
                    {"main": (0.0, 0.01, 0.03, 0.1, 0.3, 1.0), "other": (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)})}
INNER, OUTER = ("inner-lasso", "inner-ridge"), ("outer-lasso", "outer-ridge")
SWEEPS = {                                                                  # name: heads, and what varies besides eps and seed
    "main": (INNER, {"quick": [{"rho": 0.0}, {"rho": 0.9}, {"rho": 0.0, "alpha": 0.0}],
                     "paper": [{"rho": rho} for rho in (0.0, 0.5, 0.8, 0.9, 0.95, 0.99)]
                     + [{"rho": 0.0, "alpha": alpha} for alpha in (0.0, 0.25, 0.5, 0.75)]}),
    "blocks": (INNER, [{"rho": 0.0, "tasks": f"blocks-{size}"} for size in (2, 3, 6)]),
    "laplace": (INNER, [{"rho": 0.9, "tasks": "laplace"}]),
    "outer": (OUTER, [{"rho": 0.9}]),
    "rho": (INNER, [{"rho": rho} for rho in (0.0, 0.5, 0.8, 0.9, 0.95)]),
}


EPISODE_SWEEPS = {                                                          # name: settings, steps at quick scale, values of eps
    "glyphs": ({"source": "glyphs"}, 400, (0.0, 0.003, 0.01, 0.02, 0.05)),
    "shapes": ({"source": "shapes", "encoder": "cnn", "lr": 5e-3, "way": 2, "shot": 15, "episodes": 16}, 400, (0.0, 0.03, 0.1, 0.3)),
}


SHARING_SWEEP = (                                                           # seeds, alpha and beta, factors per task, beside [L23]
    [{"method": method, "seed": seed} for seed in range(5) for method in ("sharing", "erm")]
    + [{"alpha": alpha, "beta": beta} for alpha in (0.03, 0.1, 0.2) for beta in (0.0, 0.02, 0.05, 0.1)]
    + [{"factors": 1, "pool": 30, "test_tasks": 18}] + [{"factors": factors} for factors in (3, 4, 5)]
    + [{"method": method, "rho": rho, "seed": seed} for seed in (0, 1) for rho in (0.0, 0.9) for method in ("sharing", "lasso", "erm")])


def sweep_configs(name, scale, results):
    """The runs of a sweep, in order: first every setting of one seed, then the next."""
    if name == "sharing":
        configs = [Sharing(steps=600 if scale == "quick" else 20_000, threads=1, results=results, **cell) for cell in SHARING_SWEEP]
        return list(dict.fromkeys(configs))
    if name in EPISODE_SWEEPS:
        (cell, quick, values), paper = EPISODE_SWEEPS[name], scale == "paper"
        return [FewShot(eps=e, seed=seed, steps=20_000 if paper else quick, threads=1, results=results, **cell)
                for seed in range(5 if paper else 1) for e in values]
    fixed, seeds, eps = SCALES[scale]
    heads, cells = SWEEPS[name]
    cells = cells[scale] if isinstance(cells, dict) else cells
    return [Disentangle(head=head, eps=e, seed=seed, threads=1, results=results, **cell, **fixed)
            for seed in range(seeds) for cell in cells for head in heads for e in eps.get(name, eps["other"])]


def result_folder(config):
    """Where the result of a run on rendered or drawn data lies."""
    return Path(config.results) / type(config).__name__.lower() / hashed(config, data="rendered")[1]


def read_table(configs):
    """The rows of a sweep's table: settings and scores of every finished run."""
    done = [(config, result_folder(config) / "result.json") for config in configs]
    return [{**hashed(config)[0], **json.loads(path.read_text()), "folder": str(path.parent)} for config, path in done if path.exists()]


def run_quietly(root, experiment, settings):
    """One run of a sweep, on any machine that sees this folder; what it prints is dropped."""
    sys.path.insert(0, root)
    import run
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        getattr(run, experiment.lower())(getattr(run, experiment)(**settings))


def sweep(name, scale, jobs, results, dask="", index=-1):
    """Run what is missing of a sweep, on `jobs` processes or a Dask cluster; whatever interrupts it, the same command goes on."""
    import joblib
    configs = sweep_configs(name, scale, results)
    if jobs < 1 or not -1 <= index < len(configs):
        raise ValueError(f"--jobs and --index: found {jobs} and {index}, expected at least 1, and 0 to {len(configs) - 1} (-1 for all)")
    configs = configs if index < 0 else configs[index:index + 1]
    threads = max(1, os.cpu_count() // jobs)
    missing = [(type(config).__name__, dataclasses.asdict(config) | {"threads": threads, "results": str(Path(results).resolve())})
               for config in configs if not (result_folder(config) / "result.json").exists()]
    print(f"sweep {name}, {scale}: {len(configs)} runs, {len(configs) - len(missing)} there already", flush=True)
    backend = contextlib.nullcontext()
    if dask:
        try:
            import distributed
            client = distributed.Client(dask, timeout=10)                   # joblib finds it as long as it lives
        except (ImportError, OSError) as error:
            raise ValueError(f"--dask {dask}: {error}") from None
        backend = joblib.parallel_config("dask", client=client)
    try:
        with backend:
            tasks = (joblib.delayed(run_quietly)(str(Path(__file__).resolve().parent), *run) for run in missing)
            for _ in data.progress(joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")(tasks), f"sweep {name}", len(missing)):
                continue
    except joblib.externals.loky.process_executor.TerminatedWorkerError:
        raise ValueError("a worker was killed; finished runs are kept, the same command goes on") from None
    rows = read_table(sweep_configs(name, scale, results))
    if rows:
        metrics.write_table(rows, Path(results) / f"{name}-{scale}.csv", {f.name for f in dataclasses.fields(type(configs[0]))})


def draw_best_responses(rows, cell, path):
    """Latent responses of the run of highest MCC among some."""
    inside = [row for row in rows if all(row[key] == value for key, value in cell.items())]
    if not inside:
        raise ValueError(f"no finished run with {cell}: run its sweep first")
    shapes, index = data.Shapes3D(), np.random.default_rng(0).integers(data.N_IMAGES, size=2000)
    best = Path(max(inside, key=lambda row: row["mcc"])["folder"]) / "checkpoint.npz"
    F, features = encode(best, shapes.images(index)), lambda index: encode(best, shapes.images(index))
    metrics.draw_responses(features, shapes.factors, data.FACTORS, F, metrics.match(metrics.correlation(data.latents(shapes)[0][index], F)), path)


RHO = [("rho = 0", {"rho": 0.0, "alpha": 1.0}), ("rho = 0.9", {"rho": 0.9, "alpha": 1.0})]
ALPHA = [("alpha = 0", {"rho": 0.0, "alpha": 0.0}), ("alpha = 1", {"rho": 0.0, "alpha": 1.0})]
FIGURES = {                                                                 # name: its sweep, how it is drawn
    "fig4": ("main", lambda rows, path: metrics.draw_bars(rows, RHO, ("mcc", "r"), path)),
    "fig5": ("glyphs", metrics.draw_fig5),
    "conjecture": ("shapes", lambda rows, path: metrics.draw_against_eps(rows, ("mcc", "r", "dci_d", "accuracy", "off"), path)),
    "sharing": ("sharing", metrics.draw_sharing),
    "methods": ("sharing", metrics.print_methods),
    "fig6": ("main", lambda rows, path: metrics.draw_bars(rows, ALPHA, ("mcc", "r"), path)),
    "fig7": ("main", lambda rows, path: metrics.draw_best(rows, [("rho", {"alpha": 1.0}), ("alpha", {"rho": 0.0})], path)),
    "rho": ("rho", lambda rows, path: metrics.draw_best(rows, [("rho", {"alpha": 1.0})], path)),
    "fig8": ("blocks", metrics.draw_blocks),
    "fig9": ("laplace", lambda rows, path: metrics.draw_bars(rows, RHO[1:], ("mcc", "r"), path)),
    "fig10": ("outer", lambda rows, path: metrics.draw_bars(rows, RHO[1:], ("mcc", "r"), path)),
    "fig11": ("main", lambda rows, path: draw_best_responses(rows, {"head": "inner-lasso", "rho": 0.0, "alpha": 1.0}, path)),
    "fig12": ("main", lambda rows, path: draw_best_responses(rows, {"head": "inner-lasso", "rho": 0.9, "alpha": 1.0}, path)),
    "fig13": ("main", lambda rows, path: draw_best_responses(rows, {"head": "inner-ridge", "rho": 0.9, "alpha": 1.0}, path)),
    "fig14": ("main", lambda rows, path: metrics.draw_bars(rows, RHO + ALPHA[:1], ("dci_d",), path)),
    "fig15": ("main", lambda rows, path: metrics.draw_bars(rows, RHO + ALPHA[:1], ("dci_c",), path)),
}


def draw_figure(name, scale, results, out):
    """Draw a figure of [L23] from its sweep's table; says how many of its runs are missing."""
    source, draw = FIGURES[name]
    configs = sweep_configs(source, scale, results)
    rows = read_table(configs)
    if not rows:
        raise ValueError(f"{results}: no run of sweep {source} is finished; run.py sweep {source} --scale {scale}")
    if len(rows) < len(configs):
        print(f"{len(configs) - len(rows)} of {len(configs)} runs are missing: run.py sweep {source} --scale {scale}")
    path = Path(out or Path(results) / f"{name}-{scale}.png")
    draw(rows, path)
    print(path if path.exists() else f"{len(rows)} runs")


def choose_eps(scale, results, rho, head):
    """Choose eps without ground truth: the one whose seeds agree most, by UDR, and how far that is, in MCC, from the best."""
    rows = [row for row in read_table(sweep_configs("main", scale, results)) if row["rho"] == rho and row["alpha"] == 1 and row["head"] == head]
    shapes, index = data.Shapes3D(), np.random.default_rng(0).integers(data.N_IMAGES, size=2000)
    metrics.choose_eps(rows, lambda row: encode(Path(row["folder"]) / "checkpoint.npz", shapes.images(index)))


# ------------------------------------------------------------------------------------------------- few-shot


@dataclasses.dataclass(frozen=True)
class FewShot(Common):
    """Train an encoder through group-Lasso multiclass SVMs (or other classifiers) of few-shot episodes.   [L23, Sec. 5.2]"""
    source: str = option("glyphs", "of the episodes; pickles: a folder of MetaOptNet's", choices=("glyphs", "omniglot", "pickles", "shapes"))
    encoder: str = option("conv4", "the network; cnn is that of 3D Shapes, with --features", choices=("conv4", "resnet12", "cnn"))
    features: int = option(6, "features of cnn, m", 2)
    head: str = option("svm", "how an episode's classifier is fitted", choices=tuple(sparsedis.EPISODE_HEADS))
    eps: float = option(0.02, "lam1 as a fraction of svm_lambda_max (logistic: of its own); 0: the dense SVM", 0, 1)
    lam1: float = option(0.0, "svm: a number to add to that lam1", 0)
    lam2: float = option(1.0, "svm and ridge: weight of ||W||^2/2", 1e-3)
    learn_lams: bool = option(False, "svm: learn factors of lam1 and lam2 by their hypergradients")
    way: int = option(5, "classes of an episode", 2)
    shot: int = option(5, "support samples of a class in evaluation", 1)
    train_shot: int = option(0, "support samples of a class in training; 0: as in evaluation", 0)
    query: int = option(10, "query samples of a class in evaluation", 1)
    train_query: int = option(0, "query samples of a class in training; 0: as in evaluation", 0)
    episodes: int = option(8, "episodes per step", 1)
    steps: int = option(500, "outer steps", 1)
    optimiser: str = option("adam", "with cosine decay, or SGD with MetaOptNet's schedule (lr 0.1)", choices=tuple(sparsedis.OPTIMISERS))
    lr: float = option(1e-2, "learning rate at the start", 1e-12)
    smoothing: float = option(0.1, "of the labels of the query loss, in training", 0, 0.99)
    test_episodes: int = option(1000, "episodes of the evaluation", 2)
    data: str = option("", "omniglot: zips, separated by commas; pickles: the folder; shapes: 3dshapes.h5 (rendered when not given)", **ELSEWHERE)


def episodes_of(config):
    """The source of episodes, and a name of its content."""
    if config.source == "shapes":
        shapes = data.Shapes3D(config.data or None)
        return data.ShapesEpisodes(shapes), shapes.fingerprint() if config.data else "rendered"
    if config.source != "glyphs" and not config.data:
        raise ValueError(f"--data: needed with --source {config.source}")
    splits = data.glyphs() if config.source == "glyphs" else data.omniglot(config.data.split(",")) if config.source == "omniglot" \
        else data.load_splits(config.data)
    name = hashlib.sha256(b"".join(x[:: max(1, len(x) // 50)].tobytes() for x, _ in splits.values())).hexdigest()[:10]
    side = splits["train"][0].shape[1]
    source = data.ImageEpisodes(splits, 8 if side >= 64 else 2 if side < 32 else 4, config.source == "pickles")
    return source, "rendered" if config.source == "glyphs" else name


def encoder_of(config, image_shape):
    """The chosen network for images of a shape (H, W, C), refused where it does not fit."""
    H, W, channels = image_shape
    if config.encoder == "cnn" and image_shape != (64, 64, 3):
        raise ValueError(f"--encoder cnn: takes images (64, 64, 3), this source has {image_shape}")
    if config.encoder != "cnn" and min(H, W) < 16:
        raise ValueError(f"--encoder {config.encoder}: images of at least 16 x 16 are needed, found {H} x {W}")
    return sparsedis.cnn(config.features, norm=True) if config.encoder == "cnn" else getattr(sparsedis, config.encoder)(channels)


def strengths(config, dense=False):
    """lam(F, Y) of the head for support features F (T, n, m); dense: with lam1 = 0."""
    def lam(F, Y):
        if config.head == "svm":
            return (0.0 if dense else config.lam1 + config.eps * sparsedis.solvers.svm_lambda_max(F, Y)), config.lam2
        return config.eps * sparsedis.solvers.group_lasso_lambda_max(F, Y, "logistic") if config.head == "logistic" else config.lam2 / F.shape[1]
    return lam


def evaluate(config, encoder, source, params, state, split, count, xp, device, dense=(False,)):
    """For each of `dense`, per episode (T,): accuracy and whether its problem was solved; per feature (T, m): used, and 0 on all support."""
    rng = np.random.default_rng(30_000)
    index, Y = (np.stack(a) for a in zip(*(source.sample(rng, split, config.way, config.shot, config.query) for _ in range(count))))
    images, place = np.unique(index, return_inverse=True)
    F = in_batches(encoder, params, state, lambda i: source.images(split, i, xp, device), images, batch=200)
    head = {name[5:]: metrics.to_numpy(a).astype(np.float64) for name, a in params.items() if name.startswith("head.")}
    n_support, told, place = config.way * config.shot, {flag: [] for flag in dense}, place.reshape(index.shape)
    for i in range(0, count, 25):
        F_i, Y_i = F[place[i:i + 25]].astype(np.float64), Y[i:i + 25]                   # (25, n, m)
        for flag in dense:
            lam = strengths(config, flag)(F_i[:, :n_support], Y_i[:, :n_support])
            info = sparsedis.EPISODE_HEADS[config.head](F_i, Y_i, lam, n_support, head)[3]
            right = info["logits"].argmax(axis=2) == Y_i[:, n_support:].argmax(axis=2)
            told[flag].append((right.mean(axis=1), info.get("converged", np.ones(len(Y_i), bool)), (info["w"] != 0).any(axis=1),
                               (F_i[:, :n_support] == 0).all(axis=1)))
    return [tuple(np.concatenate(a) for a in zip(*told[flag])) for flag in dense]


def fewshot(config):
    """Train, evaluate on test episodes of unseen classes, draw; returns the content of result.json and its folder."""
    xp, device = device_of(config.device)
    source, fingerprint_of_data = episodes_of(config)
    content, name = hashed(config, data=fingerprint_of_data)
    folder = Path(config.results) / "fewshot" / name
    if finished(config, folder):
        return json.loads((folder / "result.json").read_text()), folder
    encoder = encoder_of(config, source.image_shape)
    shot, query, rng = config.train_shot or config.shot, config.train_query or config.query, np.random.default_rng(0)
    for split, *sizes in (("train", shot, query), ("val", config.shot, config.query), ("test", config.shot, config.query)):
        source.sample(rng, split, config.way, *sizes)                                   # refuses the impossible now
    learned = {"head.scale": 4.0} | ({"head.log_lam1": 0.0, "head.log_lam2": 0.0} if config.learn_lams and config.head == "svm" else {})
    _lock = open_folder(config, folder, content)

    def sample(step):
        rng = np.random.default_rng([config.seed, step])
        index, Y = (np.stack(a) for a in zip(*(source.sample(rng, "train", config.way, shot, query) for _ in range(config.episodes))))
        parts = index[:, :config.way * shot], index[:, config.way * shot:]
        return [source.images("train", part.ravel(), xp, device, rng) for part in parts], xp.asarray(Y, device=device)

    def measure(params, state, info):
        accuracy = evaluate(config, encoder, source, params, state, "val", 50, xp, device)[0][0]
        return {"accuracy": float(accuracy.mean()), "scale": float(params["head.scale"])}
    with sparsedis.cpu_threads(config.threads or os.cpu_count()):
        training = sparsedis.Training(encoder, sample, sparsedis.episode_objective(config.head, strengths(config), config.smoothing),
                                      config.steps, config.lr, config.optimiser)
        (params, state, *_), rows = train_with_files(config, encoder, training, measure, folder, xp, device, **learned)
        dense = (False, True) if config.head == "svm" and config.eps + config.lam1 > 0 else (False,)
        (accuracy, solved, used, dead), *others = evaluate(config, encoder, source, params, state, "test", config.test_episodes, xp, device, dense)
        mean, interval = metrics.mean_ci(accuracy)
        result = {"accuracy": mean, "accuracy_ci": interval, "off": float((~used & ~dead).sum() / max((~dead).sum(), 1)),
                  "dead": float(dead.mean()), "unsolved": int((~solved).sum())}
        for dense in others:                                                            # of the same encoder and episodes
            result["gain_over_dense"], result["gain_over_dense_ci"] = metrics.mean_ci(accuracy - dense[0])
        if config.source == "shapes":
            index = np.random.default_rng(20_000).integers(len(source.shapes), size=5000)
            F = in_batches(encoder, params, state, lambda i: source.images("test", i, xp, device), index)
            result |= metrics.scores(source.shapes.factors[index].astype(float), F)
    write_atomically(folder / "episodes.npz", lambda file: np.savez_compressed(file, accuracy=accuracy, used=used, dead=dead))
    metrics.draw_training(rows, folder / "training.png", ("loss", "nonzero", "accuracy"))
    metrics.draw_usage([(f"eps {config.eps}", used, dead)], [], folder / "usage.png")
    result |= {"steps": config.steps, "seconds": rows[-1]["seconds"], **{key: content[key] for key in ("seed", "source", "encoder", "head", "eps", "lam2")}}
    write_json(folder / "result.json", result)
    return result, folder


# -------------------------------------------------------------------------------- sparse and shared features


@dataclasses.dataclass(frozen=True)
class Sharing(Common):
    """Train an encoder through sparse heads that share features, on binary tasks of a few factors each: our reading of [F23]."""
    source: str = option("shapes", "of the images", choices=("shapes", "dsprites"))
    data: str = option("", "3dshapes.h5, or dSprites' npz; rendered when not given", **ELSEWHERE)
    features: str = option("", "an npz file of precomputed features x, y, domain or group, split: learn on these instead of images", **ELSEWHERE)
    method: str = option("sharing", "what trains the encoder: heads that share, Lasso [L23], or plain cross-entropy", choices=("sharing", "lasso", "erm"))
    alpha: float = option(0.1, "sharing: weight of the heads' L1 norm", 1e-6, 10)
    beta: float = option(0.02, "sharing: weight of the entropy of the features' importances", 0, 10)
    per_head: bool = option(False, "sharing: importances averaged over heads, instead of shares in the sum of all heads")
    one_step: bool = option(False, "sharing: the cheap and inexact one-step hypergradient")
    eps: float = option(0.3, "lasso: strength as a fraction of lambda_max", 0, 1)
    ramp: float = option(0.5, "share of the steps over which alpha, beta and eps rise", 0, 1)
    factors: int = option(2, "factors of a task, joined by AND", 1, 6)
    tasks: int = option(8, "tasks per step", 1)
    shot: int = option(13, "support samples of each class", 2)
    query: int = option(13, "query samples of each class, in training", 1)
    pool: int = option(40, "tasks to train on", 1)
    test_tasks: int = option(40, "unseen tasks to test on", 1)
    m: int = option(10, "features of the encoder", 2)
    rho: float = option(0.0, "correlation of the factors in training", 0, 0.9999)
    steps: int = option(800, "outer steps", 1)
    lr: float = option(5e-3, "Adam's learning rate at the start of its cosine decay", 1e-12)
    eval_images: int = option(10_000, "images of the final scores, drawn uniformly", 2)


GRIDS = {"shapes": data.Shapes3D, "dsprites": data.DSprites}


def objective_of(config, method):
    how = {"pooled": not config.per_head, "one_step": config.one_step}
    return sparsedis.binary_objective(method, config.alpha, config.beta, config.eps, config.ramp, 2 * config.shot, **how)


TEST_ALPHA = 0.1                                                             # of heads fitted for scores, the same for all runs


def fit_heads(F, Y, n_support):
    """Each task (T, n, m), Y (T, n, 1), fitted alone, without sharing: logits of its other samples (T, n - n_support), and heads (T, m)."""
    F, _ = sparsedis.normalise(F.astype(np.float64), n_support=n_support)
    phi, _ = sparsedis.solvers.sparse_sharing(F[:, :n_support], Y[:, :n_support], TEST_ALPHA, 0.0)
    return (F[:, n_support:] @ np.swapaxes(phi, 1, 2))[..., 0], phi[:, 0]


def accuracies(config, features, tasks, numbers, query=50):
    """Accuracy (T,) and heads (T, m) of tasks fitted one by one on images they draw."""
    told, n = [], 2 * config.shot
    for some in np.array_split(numbers, -(-len(numbers) // 10)):
        index, Y = tasks.sample(np.random.default_rng(30_000 + some[0]), some, config.shot, query)
        Z, phi = fit_heads(features(index.ravel()).reshape(*index.shape, -1), Y, n)
        told.append((((Z > 0) == Y[:, n:, 0]).mean(axis=1), phi))
    return [np.concatenate(a) for a in zip(*told)]


def sharing(config):
    """Train, score, test on unseen tasks and on the other data set, draw; returns the content of result.json and its folder."""
    if config.features:
        return sharing_on_features(config)
    (xp, device), grid = device_of(config.device), GRIDS[config.source](config.data or None)
    content, name = hashed(config, data=grid.fingerprint() if config.data else "rendered")
    folder = Path(config.results) / "sharing" / name
    if finished(config, folder):
        return json.loads((folder / "result.json").read_text()), folder
    z, p = data.latents(grid, 1.0, config.rho)
    tasks = data.BinaryTasks(grid.factors, p, config.factors, config.pool + config.test_tasks)
    _lock = open_folder(config, folder, content)
    encoder, untimed, spent = sparsedis.cnn(config.m), objective_of(config, config.method), []      # seconds of each step's inner problem
    heads = {"head.W": np.random.default_rng(config.seed).standard_normal((config.pool, config.m)) / 10} if config.method == "erm" else {}

    def objective(*args):
        began, told = time.perf_counter(), untimed(*args)
        spent.append(time.perf_counter() - began)
        return told

    def sample(step):
        rng = np.random.default_rng([config.seed, step])
        some = rng.choice(config.pool, min(config.tasks, config.pool), replace=False)
        index, Y = tasks.sample(rng, some, config.shot, config.query)
        return [grid.images(index.ravel(), xp, device)], (xp.asarray(Y, device=device), xp.asarray(some, device=device))

    def measure(params, state, info):
        return metrics.scores(z[on_the_way], features(params, on_the_way))
    with sparsedis.cpu_threads(config.threads or os.cpu_count()):
        features = functools.partial(encode_images, encoder, grid, "batch", xp, device)
        on_the_way = np.random.default_rng(1000).integers(len(grid), size=1000)
        training = sparsedis.Training(encoder, sample, objective, config.steps, config.lr)
        (params, *_), rows = train_with_files(config, encoder, training, measure, folder, xp, device, **heads)
        trained = functools.partial(features, params)
        result = score_and_draw(config, trained, grid, z, p, folder) | score_heads(config, trained, grid, tasks, folder)
        result |= transfer(config, lambda other, index: encode_images(encoder, other, "batch", xp, device, params, index))
    metrics.draw_training(rows, folder / "training.png")
    result |= {"inner_ms": 1e3 * float(np.mean(spent or [0])), "signatures": metrics.signatures(result, config.m), "steps": config.steps,
               "seconds": rows[-1]["seconds"], **{k: content[k] for k in ("seed", "source", "method", "alpha", "beta", "rho", "factors")}}
    write_json(folder / "result.json", result)
    return result, folder


def score_heads(config, features, grid, tasks, folder):
    """Accuracy on tasks trained on, on images of the training distribution, and on unseen ones, on uniform images; how the latter's heads
    share features, also drawn."""
    seen, _ = accuracies(config, features, tasks, np.arange(config.pool))
    tasks.cumulative, unseen = np.arange(1, len(grid) + 1) / len(grid), config.pool + np.arange(config.test_tasks)
    accuracy, phi = accuracies(config, features, tasks, unseen)
    q = sparsedis.solvers.importances(phi[:, None], False)[0]
    perplexity = np.exp(-np.sum(q * np.log(np.where(q > 0, q, 1)), axis=1))[q.any(axis=1)]
    metrics.draw_importances(phi, ["+".join(grid.names[i] for i in tasks.tasks[t][0]) for t in unseen], folder / "importances.png")
    return {"accuracy_seen": float(seen.mean()), "accuracy": float(accuracy.mean()), "accuracy_ci": metrics.mean_ci(accuracy)[1],
            "entropy": float(sparsedis.solvers.sharing_entropy(phi[:, None])), "zeros": float((phi == 0).mean()),
            "unused": float((phi == 0).all(axis=0).mean()), "features_per_head": float(np.mean(perplexity) if len(perplexity) else 0)}


def transfer(config, encode):
    """Scores of the features, encode(grid, index), on the data set that was not trained on, and the accuracy of at most 40 tasks there."""
    grid, count = GRIDS["dsprites" if config.source == "shapes" else "shapes"](), min(config.test_tasks, 40)
    index, features = np.random.default_rng(20_000).integers(len(grid), size=5000), functools.partial(encode, grid)
    tasks = data.BinaryTasks(grid.factors, np.full(len(grid), 1 / len(grid)), min(config.factors, len(grid.names)), count)
    scores = metrics.scores(grid.factors[index].astype(float), features(index))
    scores["accuracy"] = float(accuracies(config, features, tasks, np.arange(count))[0].mean())
    return {f"transfer_{key}": value for key, value in scores.items()}


def sharing_on_features(config):
    """Heads that share, plain ERM and ERM on rows spread evenly over classes and places, on precomputed features: accuracy on every domain
    left out in turn, or on the test rows and their worst group, by an encoder's own head and by one refitted on even rows; few-shot accuracy."""
    fixed = [f.name for f in dataclasses.fields(Sharing) if f.name in ("method", "source", "rho", "factors", "pool", "test_tasks", "eps")
             and getattr(config, f.name) != f.default]
    if fixed:
        raise ValueError(f"--{fixed[0].replace('_', '-')}: does not apply to --features")
    x, y, place, kind, names, test = data.load_features(config.features)
    content, name = hashed(config, data=hashlib.sha256(b"".join(a.tobytes() for a in (x, y, place, test)) + kind.encode()).hexdigest()[:10])
    folder, k = Path(config.results) / "sharing" / name, int(y.max()) + 1
    if finished(config, folder):
        return json.loads((folder / "result.json").read_text()), folder
    _lock = open_folder(config, folder, content)
    places = [str(a) for a in names] if kind == "domain" else [""]
    result = {"kind": kind, "places": places, "steps": config.steps, "seed": config.seed}
    for method in ("sharing", "erm", "erm-even"):
        told = [features_run(config, x, y, place, kind, place == i if kind == "domain" else test, method, k, folder / f"{method}-{i}")
                for i in range(len(places))]
        for key in told[0]:
            result[f"{method}_{key}"] = float(np.mean([t[key] for t in told]))
            result |= {f"{method}_{key}_{i}": t[key] for i, t in zip(places, told) if kind == "domain"}
    write_json(folder / "result.json", result)
    return result, folder


def features_run(config, x, y, place, kind, held, method, k, folder):
    """Train one MLP encoder on the rows not held out, and score it on those: see sharing_on_features."""
    xp, device = device_of(config.device)
    tasks, n, rows = data.FeatureTasks(y, place, kind, np.flatnonzero(~held)), 2 * (config.shot + config.query), np.flatnonzero(held)
    encoder = sparsedis.mlp([x.shape[1], 64, config.m])
    net = encoder if method == "sharing" else sparsedis.Encoder(encoder.layers + [("head", "linear", {"W": (config.m, k), "b": (k,)}, {})])

    rows_of = lambda index: xp.asarray(x[index], device=device)

    def sample(step):
        rng = np.random.default_rng([config.seed, step])
        if method == "sharing":
            index, Y = tasks.sample(rng, config.tasks, config.shot, config.query)
            return [rows_of(index.ravel())], (xp.asarray(Y, device=device), None)
        index = tasks.rows(rng, config.tasks * n, method == "erm-even")
        return [rows_of(index)], xp.asarray(np.eye(k)[y[index]], device=device)
    folder.mkdir(exist_ok=True)
    objective = objective_of(config, method) if method == "sharing" else sparsedis.plain_objective
    with sparsedis.cpu_threads(config.threads or os.cpu_count()):
        (params, *_), _ = train_with_files(config, net, sparsedis.Training(net, sample, objective, config.steps, config.lr), lambda *_: {}, folder, xp, device)
        F = in_batches(encoder, params, {}, rows_of, np.arange(len(x)))
        refit = predict(F, y, k, tasks.rows(np.random.default_rng(20_000), 1000, True), rows) == y[rows]
        own = refit if method == "sharing" else in_batches(net, params, {}, rows_of, rows).argmax(axis=1) == y[rows]
    rng, few, classes = np.random.default_rng(20_001), [], np.unique(y[rows])
    for order in (rng.permutation(rows) for _ in range(20)):                # the same rows for every method
        support = np.concatenate([own_class[:max(1, min(config.shot, len(own_class) // 2))] for own_class in (order[y[order] == c] for c in classes)])
        if len(rest := np.setdiff1d(rows, support)) == 0:
            raise ValueError(f"{config.features}: only {len(rows)} rows are held out, too few to fit and score")
        few.append((predict(F, y, k, support, rest) == y[rest]).mean())
    cells = [cell for g in np.unique(place[rows]) for c in classes if (cell := (place[rows] == g) & (y[rows] == c)).any()]
    worst = [float(min(right[cell].mean() for cell in cells)) for right in (own, refit)]
    return {"accuracy": float(own.mean()), "worst_group": worst[0], "refit_worst_group": worst[1], "few_shot": float(np.mean(few))}


def predict(F, y, k, fit, rows):
    """The class (rows,) that heads fitted on some rows, one for each class against the others (or one for two classes), give to others."""
    some, classes = np.append(fit, rows), range(1, 2) if k == 2 else range(k)
    Y = np.stack([y[some] == c for c in classes])[..., None].astype(float)
    Z, _ = fit_heads(np.broadcast_to(F[some], (len(classes), len(some), F.shape[1])), Y, len(fit))
    return (Z[0] > 0).astype(int) if k == 2 else Z.argmax(axis=0)


# --------------------------------------------------------------------------------------------- the commands


def encode(checkpoint, images, out=None):
    """Features F (N, m) of images: what a trained encoder puts out, before any normalisation; written as an npz file where `out` names one."""
    params, state, _, _ = load_checkpoint(checkpoint)
    encoder = sparsedis.cnn(len(params["linear2.b"]))
    F = in_batches(encoder, params, state, lambda i: images[i], np.arange(len(images)))
    if out:
        write_atomically(Path(out), lambda file: np.savez(file, F=F))
        print(f"{out}: F {F.shape}")
    return F


def real(checkpoint, images, out):
    """A trained encoder on real images beside renders of their factors: images (N, 64, 64, 3), factors (N, 6) of an npz file."""
    shapes, (x, factors) = data.Shapes3D(), metrics.read_images(images, "factors")
    index, F_real = np.ravel_multi_index(factors.T, data.LEVELS), encode(checkpoint, x)
    everywhere, F = (encode(checkpoint, shapes.images(i)) for i in (np.random.default_rng(0).integers(len(shapes), size=2000), index))
    F_real, F = ((a - everywhere.mean(axis=0)) / everywhere.std(axis=0) for a in (F_real, F))
    metrics.draw_real(F_real, F, Path(out))
    print(out)


def from_tests(name):
    """A module of tests/, which holds what commands and tests share."""
    sys.path.insert(0, str(Path(__file__).parent / "tests"))
    return importlib.import_module(name)


class Parser(argparse.ArgumentParser):
    """argparse, with errors in one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}\n")


def tell_disentangle(config, r):
    print(f"MCC {r['mcc']:.4f}   R {r['r']:.4f}   DCI-D {r['dci_d']:.4f}   DCI-C {r['dci_c']:.4f}      {r['steps']} steps in {r['seconds']:.0f} s")
    print("matched |correlation|: " + ", ".join(f"{key[4:]} {r[key]:.3f}" for key in r if key.startswith("mcc_") and key != "mcc_ica"))


def tell_fewshot(config, r):
    print(f"accuracy {100 * r['accuracy']:.2f} +- {100 * r['accuracy_ci']:.2f} % on {config.test_episodes} test episodes; "
          f"{100 * r['off']:.1f} % of features off, {100 * r['dead']:.1f} % dead      {r['steps']} steps in {r['seconds']:.0f} s")
    if "gain_over_dense" in r:
        print(f"over the dense SVM on the same features and episodes: {100 * r['gain_over_dense']:+.2f} +- {100 * r['gain_over_dense_ci']:.2f} points")
    if "mcc" in r:
        print(f"MCC {r['mcc']:.4f}   R {r['r']:.4f}   DCI-D {r['dci_d']:.4f}   DCI-C {r['dci_c']:.4f}")


def tell_sharing(config, r):
    if config.features:
        for place in ["", *(r["places"] if r["kind"] == "domain" else [])]:
            print(f"domain {place} left out" if place else "rows held out" if r["kind"] == "group" else "mean over the domains left out")
            for method in ("sharing", "erm", "erm-even"):
                told = {key: 100 * r[f"{method}_{key}{'_' * bool(place)}{place}"] for key in ("accuracy", "worst_group", "refit_worst_group", "few_shot")}
                print(f"  {method:<9} accuracy {told['accuracy']:.2f} %   worst group {told['worst_group']:.2f} %, with a head refitted on even rows "
                      f"{told['refit_worst_group']:.2f} %   {config.shot}-shot {told['few_shot']:.2f} %")
        return
    tell_disentangle(config, r)
    print(f"unseen tasks: accuracy {100 * r['accuracy']:.2f} +- {100 * r['accuracy_ci']:.2f} % (seen {100 * r['accuracy_seen']:.2f} %); entropy "
          f"{r['entropy']:.2f} of at most {np.log(config.m):.2f}, {100 * r['zeros']:.0f} % of weights 0, {100 * r['unused']:.0f} % of features unused")
    print(f"the other data set: MCC {r['transfer_mcc']:.4f}   DCI-D {r['transfer_dci_d']:.4f}   accuracy {100 * r['transfer_accuracy']:.2f} %")
    print("\n".join(f"warning: {text}" for text in r["signatures"]) or "no sign of failure")


def run_figure(args):
    Path(args.results).mkdir(parents=True, exist_ok=True)
    alone = {"fig1": functools.partial(metrics.draw_fig1, data.gaussian_task, args.cov, args.jobs), "fig2": metrics.draw_fig2,
             "thresholds": metrics.draw_thresholds, "fig3": lambda path: metrics.draw_fig3({kind: data.sample_tasks(np.random.default_rng(0), 24, 6, kind) != 0
                                                     for kind in ("bernoulli-gauss", "blocks-2", "fixed-1")}, path)}
    if args.name in alone:
        path = Path(args.out or Path(args.results) / (args.name + (f"-{args.cov}" if args.name == "fig1" else "") + ".png"))
        alone[args.name](path)
        print(path)
    else:
        draw_figure(args.name, args.scale, args.results, args.out)


def parser():
    """The command line; args.run(args) runs a command and returns its exit status, None for 0."""
    top = Parser(prog="run.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(dest="command", parser_class=Parser)

    def command(name, run, help, source):
        p = commands.add_parser(name, help=help, description=source.__doc__)
        p.set_defaults(run=run)
        return p
    def experiment(settings, run, tell, help):
        def run_it(args):
            config = read_settings(settings, args)
            print(f"{args.command} " + " ".join(f"{k}={v}" for k, v in dataclasses.asdict(config).items() if v != ""))
            result, folder = run(config)
            tell(config, result)
            print(f"{folder}{os.sep}: " + ", ".join(sorted(file.name for file in folder.iterdir() if file.name != ".lock")))
        add_options(command(settings.__name__.lower(), run_it, help, settings), settings)
    experiment(Disentangle, disentangle, tell_disentangle, "the main job, and the default command")
    experiment(FewShot, fewshot, tell_fewshot, "few-shot learning with group-Lasso SVMs")
    experiment(Sharing, sharing, tell_sharing, "sparse and shared features [F23]")
    p = command("render", lambda args: print(f"{args.out}: {data.write_hdf5(args.out, args.limit)} rows"), "write the rendered data set as HDF5",
                data.write_hdf5)
    p.add_argument("--out", required=True, help="the file to write")
    p.add_argument("--limit", type=int, help="only this many rows, spread at random")
    p = command("encode", lambda args: encode(args.checkpoint, *metrics.read_images(args.images), args.out) is None, "features of your own images", encode)
    p.add_argument("checkpoint")
    p.add_argument("images", help="an npz file with images (N, 64, 64, 3)")
    p.add_argument("--out", default="F.npz", help="the file to write (default: F.npz)")
    p = command("real", lambda args: real(args.checkpoint, args.images, args.out), "real images beside renders of the same factors", real)
    p.add_argument("checkpoint")
    p.add_argument("images", help="an npz file with images and factors")
    p.add_argument("--out", default="real.png", help="the file to write (default: real.png)")
    p = command("curves", lambda args: metrics.draw_curves(args.folders, args.out), "MCC against the step of finished runs, in one figure", metrics.draw_curves)
    p.add_argument("folders", nargs="+", help="folders of results")
    p.add_argument("--out", default="curves.png", help="the file to write (default: curves.png)")
    p = command("sweep", lambda args: sweep(FIGURES[args.name][0] if args.name in FIGURES else args.name, args.scale, args.jobs, args.results,
                                            args.dask, args.index), "the runs behind the figures", sweep)
    p.add_argument("name", choices=(*SWEEPS, *EPISODE_SWEEPS, *FIGURES), help="a sweep, or the figure it is for")
    p.add_argument("--jobs", type=int, default=1, help="processes (default: 1, with all cores)")
    p.add_argument("--dask", default="", help="address of a Dask scheduler, tcp://HOST:PORT; its workers see this folder")
    p.add_argument("--index", type=int, default=-1, help="only this run of the sweep, for SLURM arrays")
    q = command("figure", run_figure, "a figure of the paper", draw_figure)
    q.add_argument("name", choices=("fig1", "fig2", "fig3", "thresholds", *FIGURES))
    q.add_argument("--cov", choices=("ar", "identity"), default="ar", help="fig1: covariance of the factors")
    q.add_argument("--jobs", type=int, default=os.cpu_count(), help="fig1: processes")
    q.add_argument("--out", default="", help="the file to write (default: in the folder of results)")
    r = command("choose-eps", lambda args: choose_eps(args.scale, args.results, args.rho, args.head), "choose eps without ground truth", choose_eps)
    r.add_argument("--rho", type=float, default=0.9)
    r.add_argument("--head", choices=INNER, default="inner-lasso")
    for p in (p, q, r):
        p.add_argument("--scale", choices=tuple(SCALES), default="quick", help="quick: minutes a run; paper: the paper's steps and seeds")
        p.add_argument("--results", default="results", help="folder of the results (default: results)")
    p = command("theory", lambda args: int(not metrics.print_theory(args.out)), "the formal claims, on numbers", metrics.print_theory)
    p.add_argument("--out", default="theory.png", help="the picture of Prop. B.7 (default: theory.png)")
    command("gradcheck", lambda args: int(not from_tests("gradient_cases").gradcheck()), "every derivative against central differences", from_tests)
    p = command("bench", lambda args: from_tests("benchmark").bench(args.threads, Path(args.out)), "timings beside other libraries, and how they grow", from_tests)
    p.add_argument("--out", default="bench.png", help="the growth curves (default: bench.png)")
    p.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (default: one per core)")
    return top, commands.choices


def main(argv):
    top, names = parser()
    if not argv or argv[0] not in (*names, "-h", "--help"):
        argv = ["disentangle", *argv]
    args = top.parse_args(argv)
    try:
        return args.run(args) or 0
    except (ValueError, OSError) as error:
        print(f"run.py {args.command}: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"run.py {args.command}: {error}; the last checkpoint is kept", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


if __name__ == "__main__":
    warnings.simplefilter("ignore", RuntimeWarning)                         # training itself refuses what is not finite
    sys.exit(main(sys.argv[1:]))
