"""page.py -- a page to play with: finished runs in one HTML file, computed live in a browser.

    run.py page [RUN ...]              RESULTS/page.html

    scene    the five maps of light of all 480 geometries, and the colours
    draws    2,000 images, half drawn uniformly, half as in training: factors, z, their features
    run      an encoder's weights, its scores, |correlation|, and how its features are shown
    M        (m, m) the matrix that unmixes the features of one run, made part of its last layer

page.html is the template: it composes the images, runs the encoders and fits the tasks by the
formulas of data.py, sparsedis.py and solvers.py. Arrays are little-endian, in base64; weights are
rounded to 8 bits, and all that is told of features is of the encoders so rounded.
"""
import base64
import dataclasses
import importlib
import inspect
import json
import os
import subprocess
import zlib
from pathlib import Path

import numpy as np

import data
import metrics
import sparsedis
from experiments import disentangle, plots, results, settings
from experiments.settings import OUT, option, out_path
from sparsetasks.rotation import unmix

UNIFORM, TRAINING = 1000, 1000                                      # draws
MOST_RUNS = 3                                                       # colours that are told apart
CAUSES = ("floor hue", "wall hue", "object hue", "scale", "shape", "orientation")
HUES = ("red", "orange", "yellow-green", "green", "mint", "cyan", "blue", "indigo", "violet",
        "pink")


@dataclasses.dataclass(frozen=True)
class Page:
    """Write finished runs as a page to play with, one HTML file that needs no network."""

    runs: tuple = option(
        (), "folders of one to three finished runs on 3D Shapes; when not given, the default run, "
        "one with --head inner-ridge --eps 0.1, and one with --eps 0, unmixed afterwards",
        positional=True)
    unmix: bool = option(False, "unmix the last of the runs named, by a rotation", group="method")
    train: bool = option(False, "train what is missing of these three", group="method")
    source: str = option(
        "", "where the page's links to the code lead, https://HOST/PROJECT/blob/main; this folder "
        "when not given", group="output")
    out: str = option("", OUT)
    results: str = option("results", "folder of the results")


def page(config):
    """Pack the runs, and write the page."""
    if config.runs and config.train:
        raise ValueError("--train: found runs that are named; it trains the three of no name")
    folders = [Path(run) for run in config.runs] or default_runs(config)
    if len(folders) > MOST_RUNS:
        raise ValueError(f"runs: found {len(folders)}, expected at most {MOST_RUNS}")
    trained = [read_run(folder) for folder in folders]
    path = out_path(config, "page.html")
    with sparsedis.cpu_threads():
        if config.unmix or not config.runs:
            trained[-1] = unmixed(trained[-1])
        html = render(trained, config.source or os.path.relpath(settings.ROOT, path.parent))
    results.write_text(path, html)
    print(f"{path}: {len(html) / 1e6:.1f} MB; open it in a browser")


# What the page shows when no run is named; at this eps ridge finds all causes, and mixes them.
DEFAULT_RUNS = (
    {"head": "inner-lasso"}, {"head": "inner-ridge", "eps": 0.1},
    {"head": "inner-lasso", "eps": 0.0})


def default_runs(config):
    """The folders of the DEFAULT_RUNS; ValueError where one is missing and is not to be trained."""
    configs = [disentangle.Disentangle(results=config.results, **own) for own in DEFAULT_RUNS]
    missing = [own for own in configs if results.Run(own).result() is None]
    if missing and not config.train:
        flags = " and ".join(f"--head {own.head} --eps {own.eps}" for own in missing)
        raise ValueError(
            f"no finished run with {flags} in {config.results}; --train trains it first, which "
            "takes one to two minutes a run on two cores; or name the folders of finished runs")
    for own in missing:
        disentangle.command(own)
    return [results.Run(own).folder for own in configs]


def render(trained, source):
    """The page of some runs, as text."""
    shapes, first = data.Shapes3D(), trained[0].config
    z, p = data.latents(shapes, first["alpha"], first["rho"])
    realised = abs(plots.realised_correlation(first["rho"], first["alpha"]))
    drawn = draw_images(shapes, p)
    seen = {(run.config["rho"], run.config["alpha"]) for run in trained}
    of_whom = " of the first network" if len(seen) > 1 else ""
    content = {
        "names": CAUSES, "levels": data.LEVELS, "values": told_values(),
        "scene": pack_scene(), "draws": pack_draws(shapes, z, drawn),
        "runs": [pack_run(run, shapes, z, drawn) for run in trained],
        "told_source": "Independent: every combination has the same probability. As in training"
                       f"{of_whom}: causes are correlated at {realised:.2f}.",
        "code": code_links(source), "commit": commit()}
    tell_apart(content["runs"])
    template = Path(__file__).with_name("page.html").read_text()
    packed = json.dumps(content, allow_nan=False).replace("<", "\\u003c")
    return template.replace("{{CONTENT}}", packed)


def commit():
    """The name of the commit that is checked out, or nothing where git does not tell."""
    words = ["git", "-C", str(settings.ROOT), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def tell_apart(runs):
    """Number the runs whose titles are those of others."""
    titles = [run["title"] for run in runs]
    for i, run in enumerate(runs):
        if titles.count(run["title"]) > 1:
            run["title"] += f" ({i + 1})"


def told_values():
    """What the sliders tell of each level of each factor."""
    sizes = [f"{scale:.2f}" for scale in data.SCALES]
    angles = [f"{degrees:.0f}°" for degrees in data.ORIENTATIONS]
    return [HUES, HUES, HUES, sizes, data.SHAPES, angles]


def code_links(source):
    """Name of a function -> its address under the source."""
    names = (
        "data.compose", "sparsedis.cnn", "sparsedis.conv2d", "solvers.lasso",
        "solvers.lasso_lambda_max", "solvers.ridge", "metrics.match", "experiments.page.page")
    return {name: link_of(name, source) for name in names}


def link_of(name, source):
    """The address of a function's file, on a host of its first line."""
    module, _, function = name.rpartition(".")
    found = inspect.unwrap(getattr(importlib.import_module(module), function))
    line = f"#L{inspect.getsourcelines(found)[1]}" if "://" in source else ""   # else it moves on
    return f"{source}/{module.replace('.', '/')}.py{line}"


# ------------------------------------------------------------------------------ images


def pack_scene():
    """The maps (5, 480, 4096) as whole numbers times a step, a twelfth of one of the picture's 256
    levels: of each size of the object the difference to the size before, and of that for each
    orientation, whose zeros deflate well; first all low bytes, then all high ones."""
    maps = np.moveaxis(data.geometry_maps(), -1, 0).reshape(5, *data.LEVELS[3:], -1)
    step = np.abs(maps).max() / (2 ** 12 - 1)
    levels = np.diff(np.diff(np.round(maps / step), axis=1, prepend=0), axis=3, prepend=0)
    planes = levels.astype("<i2").reshape(-1).view(np.uint8).reshape(-1, 2).T
    return {
        "maps": text_of(zlib.compress(planes.tobytes(), 9)), "step": float(step),
        "palette": data.PALETTE.tolist(), "sky": data.SKY.tolist(), "white": data.WHITE.tolist()}


def draw_images(shapes, p):
    """Rows of images, UNIFORM drawn uniformly, then TRAINING of them by their weights p."""
    rng = np.random.default_rng(30_000)
    uniform = rng.integers(len(shapes), size=UNIFORM)
    return np.concatenate([uniform, rng.choice(len(shapes), TRAINING, p=p)])


def pack_draws(shapes, z, drawn):
    """Factors and latents of the images drawn."""
    return {
        "uniform": UNIFORM, "factors": text_of(shapes.factors[drawn].astype(np.uint8).tobytes()),
        "z": pack(z[drawn])}


def pack(a):
    """An array as the page reads it, in single precision."""
    return text_of(np.ascontiguousarray(a, "<f4").tobytes())


def text_of(content):
    """Bytes as text."""
    return base64.b64encode(content).decode()


# ------------------------------------------------------------------------------ runs


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished run: its settings and scores, its encoder and its parameters; M (m, m), if its
    features were unmixed."""

    config: dict
    result: dict
    encoder: sparsedis.Encoder
    params: dict
    M: np.ndarray | None = None


def read_run(folder):
    """The Trained of a run's folder; ValueError where it is not a finished one on 3D Shapes."""
    path = folder / "result.json"
    if not results.read_json(path).keys() >= {"mcc", "r"}:
        raise ValueError(f"{folder}: expected a run on 3D Shapes, found one without MCC and R")
    result = results.read_json(path, ("mcc", "r"))
    config = results.read_json(
        folder / "config.json", ("rho", "alpha", "eps", "steps", "seed"), ("head", "norm", "tasks"))
    snapshot, encoder, *_ = results.load_checkpoint(folder / "checkpoint.npz")
    spec = encoder.spec
    if spec.name != "cnn" or spec.sizes["channels"] != 3 or config["norm"] != "batch":
        raise ValueError(f"{folder}: expected a run on 3D Shapes with --norm batch")
    return Trained(config, result, encoder, snapshot.params)


def pack_run(run, shapes, z, drawn):
    """All that the page needs of a run. Features are shown in the place of the factor they go with,
    with its sign; then those that go with none."""
    params, packed = pack_encoder(run)
    F = features_on_page(run, params, shapes, drawn)
    if not np.isfinite(F).all():
        raise ValueError(f"the run {settings_in_words(run)}: its features are not finite")
    uniform, own = F[:UNIFORM], z[drawn[:UNIFORM]]
    C = metrics.correlation(own, uniform)
    factors, matched = (a.tolist() for a in metrics.match(C))
    spare = [j for j in range(F.shape[1]) if j not in matched]
    signed = metrics.standardise(own).T @ metrics.standardise(uniform)          # 0 if constant
    signs = [-1.0 if signed[k, j] < 0 else 1.0 for k, j in zip(factors, matched, strict=True)]
    return {
        "title": title_of(run), "settings": settings_in_words(run),
        "mcc": metrics.mcc(own, uniform), "r": metrics.r_score(own, uniform),
        "matrix": None if run.M is None else run.M.tolist(),
        "correlation": C.tolist(), "order": [*matched, *spare],
        "sign": [*signs, *(1.0 for _ in spare)], "factors": [*factors, *(-1 for _ in spare)],
        "rows": [*(CAUSES[k] for k in factors), *(f"spare {j}" for j in spare)],
        "mean": uniform.mean(axis=0).tolist(), "deviation": deviation_of(uniform).tolist(),
        "draws": pack(F), **packed}


def title_of(run):
    """A run's name on the page."""
    if run.M is not None:
        return "unmixed"
    head = run.config["head"].replace("lasso", "Lasso").removeprefix("inner-")
    return head if run.config["eps"] else "no penalty"


def settings_in_words(run):
    """What tells a run from others, in words."""
    config = run.config
    realised = abs(plots.realised_correlation(config["rho"], config["alpha"]))
    words = f"penalty {config['eps']:g}, {config['steps']} steps of training, random seed "
    words += f"{config['seed']}; causes correlated at {realised:.2f}"
    return words if config["tasks"] == "bernoulli-gauss" else f"{words}, tasks {config['tasks']}"


def deviation_of(F):
    """The standard deviation of each feature; 1 for one that is constant."""
    return metrics.moments(F)[1]


def features_on_page(run, params, shapes, index):
    """Features (N, m) of images."""
    return run.encoder.encode(params, {}, shapes.images, index)


def unmixed(run):
    """The Trained with features that are unmixed by a rotation to the sparse weights of tasks on
    images of its training distribution, as the main job scores it.  [docs/derivations.md, 10]"""
    shapes, fields = data.Shapes3D(), dataclasses.fields(disentangle.Disentangle)
    own = {field.name: run.config[field.name] for field in fields if field.name in run.config}
    config = disentangle.Disentangle(**own)
    z, p = data.latents(shapes, config.alpha, config.rho)
    seen = np.random.default_rng(30_001).choice(len(shapes), SEEN, p=p)
    F = features_on_page(run, run.params, shapes, seen)
    found = unmix(F, *disentangle.fresh_tasks(config, z[seen], 1000), widths=(0.0,), starts=10)
    W, b = LAST
    params = run.params | {
        W: (run.params[W] @ found.M).astype(np.float32),
        b: ((run.params[b] - found.mean) @ found.M).astype(np.float32)}
    return dataclasses.replace(run, params=params, M=deviation_of(F)[:, None] * found.M)


LAST = ("linear2.W", "linear2.b")                                   # of sparsedis.cnn
SEEN = 10_000


def rounded(a):
    """Weights (..., outputs) as numbers of 8 bits, and the scale of each output."""
    scale = np.abs(a).max(axis=tuple(range(a.ndim - 1))) / 127
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    return np.round(a / scale).astype(np.int8), scale


def pack_encoder(run):
    """The parameters as the page has them, and the layers of sparsedis.cnn: of each the weights
    (outputs, inputs), deflated, after one another; then all scales, and all biases."""
    params = dict(run.params)
    weights, scales, biases = [], [], []
    packed = {"convolutions": [], "linear": []}
    for layer in layers_with_weights(run.encoder.layer):
        name, bias = layer.shapes
        levels, scale = rounded(params[name])
        params[name] = levels * scale
        k, W = levels.shape[0], np.moveaxis(levels, -1, 0)          # from (k, k, C, O) or (a, c)
        own = {"shape": [len(W), W.size // len(W)]}
        if W.ndim == 4:
            asked = {"stride": 1, "pad": 0} | layer.settings
            own |= {"k": k, "stride": asked["stride"], "pad": asked["pad"]}
        packed["convolutions" if W.ndim == 4 else "linear"].append(own)
        weights.append(W.tobytes())
        scales.append(scale)
        biases.append(params[bias])
    return params, packed | {
        "weights": text_of(zlib.compress(b"".join(weights), 9)),
        "scales": pack(np.concatenate(scales)),
        "biases": pack(np.concatenate(biases))}


def layers_with_weights(layer):
    """The innermost layers that have parameters, in order."""
    if isinstance(layer, sparsedis.Layer):
        return [layer] if layer.shapes else []
    inside = layer.layers if isinstance(layer, sparsedis.Sequential) else [layer.layer]
    return [leaf for one in inside for leaf in layers_with_weights(one)]
