"""apply.py -- a trained encoder on the user's own images, and runs side by side.

    encode CHECKPOINT IMAGES.npz       features F (N, m) of images (N, 64, 64, 3); of rows, with the
                                       targets that they predict
    real CHECKPOINT IMAGES.npz         features of real images beside those of renders
    curves FOLDER ...                  MCC against the step, or minutes, of runs, finished or not,
                                       and when it reached some levels

A checkpoint names its encoder and the sizes to build it (results.Checkpoint).
"""
import csv
import dataclasses
import io
import itertools
from pathlib import Path

import numpy as np

import data
import metrics
import sparsedis
from experiments import plots, results, tables, tasks
from experiments.settings import OUT, option, out_path
from experiments.sharing_data import DSprites


@dataclasses.dataclass(frozen=True)
class Encode:
    """Features F (N, m) of images, what a trained encoder puts out, before any normalisation; or of
    rows of your own, as `tasks` standardises them, with the targets Y (N, K) that they predict."""

    checkpoint: str = option(None, "checkpoint.npz of a run", positional=True)
    images: str = option(
        None, "npz with images (N, 64, 64, 3); for a run of `tasks` npz with x, or CSV with "
        "the columns that it had, by name",
        positional=True)
    out: str = option("", OUT)
    results: str = option("results", "folder of the results")


def encode(config):
    """Write the features of an npz file's images; or of its x, and the targets that they predict,
    where a run of `tasks` is given."""
    checkpoint = results.load_checkpoint(config.checkpoint)
    if checkpoint.moments:
        arrays = tasks.encode_rows(checkpoint, Path(config.checkpoint).parent, config.images)
    else:
        images, = read_images(config.images)
        arrays = {"F": encode_images(config.checkpoint, images)}
    path = out_path(config, "F.npz")
    results.write_atomically(path, lambda file: np.savez(file, **arrays))
    print(f"{path}: {', '.join(f'{name} {a.shape}' for name, a in arrays.items())}")


def encode_images(checkpoint, images):
    """Features (N, m) of images by the encoder of a checkpoint."""
    snapshot, encoder, *_ = results.load_checkpoint(checkpoint)
    check_input(checkpoint, encoder.spec, images.shape[1:])

    def some(index):
        return images[index]

    with sparsedis.cpu_threads():
        return encoder.encode(snapshot.params, snapshot.state, some, np.arange(len(images)))


def check_input(checkpoint, spec, shape):
    """Refuse images of a shape (H, W, C) that the encoder does not take."""
    H, W, channels = shape
    fits = "channels" in spec.sizes and channels == spec.sizes["channels"] and min(H, W) >= 16
    if not fits or (spec.name == "cnn" and (H, W) != (64, 64)):
        raise ValueError(
            f"{checkpoint}: the encoder {spec.name} {spec.sizes} does not take images {shape}")


def read_images(path, *names):
    """Images (N, H, W, C) as float32 in [0, 1], and the other arrays named, of an npz file."""
    x, *others = tables.read_arrays(path, "images", *names)
    floating = x.dtype in (np.float32, np.float64)
    if x.ndim != 4 or 0 in x.shape or not (x.dtype == np.uint8 or floating):
        raise ValueError(
            f"{path}: expected images (N, H, W, C), uint8 or real in [0, 1], "
            f"found {x.shape} {x.dtype}")
    if floating and not (x.min() >= 0 and x.max() <= 1):            # NaN is neither
        raise ValueError(
            f"{path}: real images must lie in [0, 1], found {x.min()} to {x.max()} or NaN")
    scale = 1 if floating else 255
    return x.astype(np.float32) / scale, *others


# ------------------------------------------------------------------------------ real images


@dataclasses.dataclass(frozen=True)
class Real:
    """A trained encoder on real images beside renders of the same factors."""

    checkpoint: str = option(None, "checkpoint.npz of a run on 3D Shapes", positional=True)
    images: str = option(
        None, "an npz file with images and factors (N, 6), or an HDF5 file like 3dshapes.h5",
        positional=True)
    out: str = option("", OUT)
    results: str = option("results", "folder of the results")


def real(config):
    """Draw the features of real images against those of renders, in standard deviations."""
    x, factors = read_labelled(Path(config.images))
    shapes = data.Shapes3D()
    rendered = shapes.images(np.ravel_multi_index(factors.T.astype(int), data.LEVELS))
    some = np.random.default_rng(0).integers(len(shapes), size=2000)
    everywhere = encode_images(config.checkpoint, shapes.images(some))
    mean, deviation = metrics.moments(everywhere)
    F_real = (encode_images(config.checkpoint, x) - mean) / deviation
    F = (encode_images(config.checkpoint, rendered) - mean) / deviation
    path = out_path(config, "real.png")
    draw_real(F_real, F, np.concatenate([x[0], rendered[0]]), path)
    print(path)


def read_labelled(path, most=2000):
    """Images (N, H, W, C) and their factors (N, 6); of an HDF5 file some, drawn at random."""
    if path.suffix in (".h5", ".hdf5"):
        shapes = data.Shapes3D(path)
        rows = np.random.default_rng(0).permutation(len(shapes))[:most]
        return shapes.images(rows), shapes.factors[rows]
    x, factors = read_images(path, "factors")
    check_factors(path, factors, len(x))
    return x, factors


def check_factors(path, factors, N):
    """Refuse factors that are not indices (N, 6) of the levels of 3D Shapes."""
    fits = factors.shape == (N, len(data.LEVELS)) and factors.dtype.kind in "iuf"
    if not fits or not ((factors >= 0) & (factors < data.LEVELS) & (factors % 1 == 0)).all():
        raise ValueError(
            f"{path}: expected factors ({N}, 6), whole numbers below {data.LEVELS}, found "
            f"{factors.shape} {factors.dtype}")


def draw_real(F_real, F, pair, path):
    """A pair of images, and a panel for each feature, real (N, m) against rendered (N, m); prints
    how they agree."""
    m, standard_real, standard = F.shape[1], metrics.standardise(F_real), metrics.standardise(F)
    fig, axes = plots.subplots(1, m + 1, (2 * m + 2, 2.5))
    axes[0].imshow(pair)
    axes[0].set(title="real, rendered", xticks=[], yticks=[])
    for j, ax in enumerate(axes[1:]):
        agreement = np.mean(standard_real[:, j] * standard[:, j])   # 0 where one is constant
        difference = np.sqrt(np.mean((F_real[:, j] - F[:, j]) ** 2))
        print(
            f"feature {j}: correlation of real and rendered {agreement:.3f}, "
            f"root mean square difference {difference:.3f} standard deviations")
        ax.plot(F[:, j], F_real[:, j], ".")
        ax.axline((0, 0), slope=1, color="grey", lw=0.5)
        ax.set(title=f"feature {j}", xlabel="rendered")
    axes[1].set_ylabel("real")
    plots.save(fig, path)


# ------------------------------------------------------------------------------ curves


@dataclasses.dataclass(frozen=True)
class Curves:
    """MCC against the step, or the minutes, of runs, finished or not, in one figure; beside it, as
    CSV, when each reached some levels."""

    folders: tuple = option(None, "folders of results, or LABEL=FOLDER", positional=True)
    against: str = option("step", "what MCC is drawn against", choices=("step", "minutes"))
    log: bool = option(False, "draw that on a logarithmic axis, for runs of very different lengths")
    out: str = option("", OUT)
    results: str = option("results", "folder of the results")


def curves(config):
    """Draw the runs, named by their labels, or by the settings in which they differ."""
    words = [labelled(word) for word in config.folders]
    runs = [read_run(Path(folder)) for _, folder in words]
    contents = [content for content, _ in runs]
    keys = dict.fromkeys(key for content in contents for key in content)
    differ = [key for key in keys if differs(key, contents)]
    told = [", ".join(f"{key.replace('_', ' ')} {content.get(key)}" for key in differ)
            for content in contents]
    names = [label or words or Path(folder).name
             for (label, folder), words in zip(words, told, strict=True)]
    fig, ax = plots.subplots(1, 1, (5.2, 3.4))
    draw_runs(ax, names, [rows for _, rows in runs], config.against)
    for chance in sorted(set(map(chance_of, contents))):
        ax.axhline(chance, **plots.CHANCE)
    lowest = min(row["mcc"] for _, rows in runs for row in rows)
    ax.set(xlabel=config.against, ylabel="MCC (at most 1,000 images)", ylim=(min(0.3, lowest), 1))
    ax.set_xscale("log" if config.log else "linear")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.legend(fontsize=8, loc="lower right")
    path = out_path(config, "curves.png", rows=True)
    plots.save(fig, path)
    print(path)
    labels = [label or Path(folder).name for label, folder in words]
    write_reached(path.with_name(f"{path.stem}-reached.csv"), labels, [rows for _, rows in runs])


def chance_of(content):
    """The MCC of a random mixing of a run's factors into its features."""
    grid = DSprites if content.get("source") == "dsprites" else data.Shapes3D
    factors = len(grid.names)
    features = content.get("features", content.get("m", factors))
    return metrics.chance(content.get("needed", factors), features)


def labelled(word):
    """The label and the folder of LABEL=FOLDER or FOLDER; either may have a = in it."""
    parts = word.split("=")
    ways = [("=".join(parts[:i]), "=".join(parts[i:])) for i in range(len(parts))]
    return next((way for way in ways if Path(way[1]).is_dir()), ways[-1])


def draw_runs(ax, names, runs, against):
    """MCC of runs, against the step or minutes; those of one name in one colour."""
    kinds = list(dict.fromkeys(names))
    for name, rows in zip(names, runs, strict=True):
        x = [row["step"] if against == "step" else row["seconds"] / 60 for row in rows]
        ax.plot(x, [row["mcc"] for row in rows], "o-", ms=3, color=f"C{kinds.index(name)}")
    for i, name in enumerate(kinds):
        label = name.replace("$", r"\$").replace("_", " _", name.startswith("_"))    # no TeX
        ax.plot([], [], "o-", ms=3, color=f"C{i}", label=label)     # one that begins by _ is hidden


REACHED = (0.9, 0.93, 0.95, 0.96)


def write_reached(path, labels, runs):
    """When each run's MCC first reached some levels, as CSV, also printed."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["label", "mcc", "step", "minutes"])
    for (label, rows), level in itertools.product(zip(labels, runs, strict=True), REACHED):
        there = [row for row in rows if row["mcc"] >= level]
        if there:
            step, minutes = there[0]["step"], there[0]["seconds"] / 60
            table.writerow([label, level, step, f"{minutes:.3f}"])
            print(f"{label}: MCC {level} after {minutes:.1f} minutes, {step} steps")
    results.write_text(path, text.getvalue())
    print(path)


def read_run(folder):
    """The settings and the lines of a run."""
    content = results.read_json(folder / "config.json")
    path = folder / "metrics.jsonl"
    if not any("mcc" in row for row in results.read_lines(path, numbers=("step", "seconds"))):
        raise ValueError(f"{folder}: no run that tells an MCC (metrics.jsonl)")
    return content, results.read_lines(path, numbers=("step", "seconds", "mcc"))


NO_SETTINGS = ("code", "code_before", "device", "kernel", "libraries")


def differs(key, contents):
    """Whether a setting differs between runs, and tells something of them."""
    values = {str(content.get(key)) for content in contents}
    return len(values) > 1 and key not in NO_SETTINGS
