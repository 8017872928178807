"""report.py -- what `tasks` found, in the terminal, as CSV, and as one HTML file.

    result     the content of result.json, tasks.score
    W (K, m)   weights of the targets, in their deviations a deviation of a feature
    C (m, d)   correlation of features and inputs

report.html holds its pictures and needs no network.
"""
import base64
import csv
import html
import io

import numpy as np

from experiments import plots, results
from sparsetasks.targets import class_name, standardised

ROWS = 12  # targets in the terminal
FOLLOWED = 4  # inputs of a feature
NARROW = 30  # characters
MANY = 40  # targets, from where on a picture does not name them
LESS = 0.01  # of R^2, from where on the raw input is said to predict better
TITLES = {"score": "features", "raw": "ridge, raw", "pls": "PLS, raw"}


def tell(result):
    """Print what was found."""
    what = measure(result)
    features = counted(result["stability"], "feature")
    print(f"{result['encoder']} encoder, {features}{told_choice(result)}")
    print(f"{what} on {result['test_rows']} rows held out:")
    header, *lines, mean = target_table(result)
    more = len(lines) - ROWS
    left_out = [[f"({more} more: targets.csv)", *[""] * (len(mean) - 1)]] if more > 0 else []
    tell_table(header, [*lines[:ROWS], *left_out, mean])
    print()
    tell_table(*feature_table(result))
    used = result["used"]
    print(f"{100 * result['zero']:.0f} % of the weights are zero; a target uses "
          f"{np.mean(used):.1f} of {result['features']} features ({min(used)} to {max(used)})")
    if "new" in result:
        print(f"\n{what} of {result['new']['count']} targets that the encoder never saw, mean:")
        tell_table(*new_table(result))
    if "mcc" in result:
        print(f"MCC {result['mcc']:.4f}   R {result['r']:.4f}      (a random mixing of the "
              f"factors: MCC {result['chance']:.2f})")
    for note in result["notes"]:
        print(f"note: {note}")


def measure(result):
    """What scores are."""
    return "accuracy" if result["likelihood"] == "categorical" else "R^2"


def told_choice(result):
    """How the encoder was chosen, where there was a choice."""
    held = result["held_out"]
    told = ", ".join(f"{name} {value:.3f}" for name, value in held.items())
    return f" (R^2 on rows held out of its fit: {told})" if told else ""


def verdict(result):
    """Whether to predict from the features, in plain words: alike is within two standard errors."""
    ours, raw, what = result["score"], result["raw"], measure(result)
    model = "logistic regression" if what == "accuracy" else "ridge"
    numbers = f"{what} {ours:.3f} on the features, {raw:.3f} by {model} on it"
    margin = max(LESS, 2 * result["margin"])
    if raw > ours + margin:
        return f"The raw input predicts better ({numbers}): to predict, take {model}."
    if ours > raw + margin:
        return f"The features predict better than the raw input ({numbers})."
    return f"The features predict as well as the raw input ({numbers})."


# ------------------------------------------------------------------------------ tables


def target_table(result):
    """A line of names, a line for each target, and the mean."""
    scores = result["scores"]
    titles = TITLES | ({"raw": "logistic, raw"} if measure(result) == "accuracy" else {})
    lines = [[name, *(f"{scores[key][k]:.3f}" for key in scores)]
             for k, name in enumerate(result["targets"])]
    mean = ["mean", *(f"{result[key]:.3f}" for key in scores)]
    return [["target", *(titles[key] for key in scores)], *lines, mean]


def feature_table(result):
    """Names, then a line for each feature: stability, and the inputs that it follows most."""
    header, lines = ["feature", "stability", "identified"], []
    for j, stability in enumerate(result["stability"]):
        told = "" if stability is None else f"{stability:.2f}"
        lines.append([f"feature{j}", told, "yes" if result["identified"][j] else "no"])
    if not any(result["follows"]):                                  # images
        return header, lines
    told = [", ".join(f"{name} {value:+.2f}" for name, value in found)
            for found in result["follows"]]
    lines = [[*line, its] for line, its in zip(lines, told, strict=True)]
    return [*header, "follows (correlation)"], lines


def new_table(result):
    """Names, then a line for each number of labelled rows."""
    lines = [[size, *(f"{value:.3f}" for value in values)]
             for size, values in result["new"]["scores"].items()]
    return ["labelled rows", *(f"on {name}" for name in result["new"]["on"])], lines


def tell_table(header, lines):
    """Print a table, narrow columns to the right, for these are numbers."""
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    for line in (header, *lines):
        cells = [cell.rjust(width) if width < NARROW else cell.ljust(width)
                 for cell, width in zip(line, widths, strict=True)]
        cells[0] = line[0].ljust(widths[0])
        print("   ".join(cells).rstrip())


# ------------------------------------------------------------------------------ files


def write(path, model, rows, F, result):
    """report.html, targets.csv, features.csv and the pictures; path(name) is a file's. Adds
    `follows` to the result: name and correlation of the inputs that each feature follows most."""
    names, W = named_weights(model, result)
    C = correlations(F[~rows.test], rows)
    table = rows.x.ndim == 2
    inputs = (rows.inputs or [f"x{i}" for i in range(C.shape[1])]) if table else []
    result["follows"] = [followed(inputs, c) if table else [] for c in C]
    write_tables(path, result, names, W, inputs, C)
    draw_weights(W, names, path("weights.png"))
    if not table:
        draw_maps(C, rows.x.shape[1:], path("maps.png"))
    if model.encoder_ != "linear":
        draw_loss(model.loss_curve_, path("training.png"))
    pictures = [path(f"{name}.png") for name in ("weights", "maps", "training")]
    page = html_of(result, names, W, [picture for picture in pictures if picture.exists()])
    results.write_text(path("report.html"), page)


def followed(inputs, c):
    """Names and correlations (d,) of the inputs that a feature follows most."""
    return [(inputs[i], round(float(c[i]), 4)) for i in np.argsort(-np.abs(c))[:FOLLOWED]]


def write_tables(path, result, names, W, inputs, C):
    """targets.csv, weights.csv and features.csv."""
    features = [f"feature{j}" for j in range(len(C))]
    scores = result["scores"]
    lines = zip(result["targets"], *scores.values(), strict=True)
    write_csv(path("targets.csv"), ["target", *scores], lines)
    write_csv(path("weights.csv"), ["target", *features], zip(names, *W.T, strict=True))
    known = [result["stability"], result["identified"]]
    lines = zip(features, *known, *(C.T if inputs else ()), strict=True)
    write_csv(path("features.csv"), ["feature", "stability", "identified", *inputs], lines)


def named_weights(model, result):
    """Names of targets, or of their classes, and their weights W."""
    if model.classes_ is None:
        return result["targets"], model.coef_ / model.target_scale_[:, None]
    pairs = zip(result["targets"], model.classes_, model.coef_, strict=True)
    found = [(f"{target}: {class_name(names[i])}", W[i])
             for target, names, W in pairs for i in range(len(names))]
    return [name for name, _ in found], np.stack([w for _, w in found])


def correlations(F, rows):
    """C (m, d), of features with inputs or pixels in the rows of training."""
    X = standardised(rows.x[~rows.test].reshape(len(F), -1).astype(np.float64))
    return standardised(F).T @ X / len(F)


def write_csv(path, header, lines):
    """A table of names, numbers and texts."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([[f"{a:.6g}" if isinstance(a, float) else a for a in line] for line in lines])
    results.write_text(path, file.getvalue())


# ------------------------------------------------------------------------------ pictures


def draw_weights(W, names, path):
    """Signed weights of targets (columns, sorted by their strongest feature) by features (rows),
    each as a share of the target's largest."""
    share = W / np.maximum(np.abs(W).max(axis=1, keepdims=True), 1e-300)
    order = np.lexsort(((W == 0).sum(axis=1), np.abs(W).argmax(axis=1)))
    K, m = W.shape
    longest = max(map(len, names)) if K <= MANY else 0
    height = max(2.8, 1.6 + 0.3 * m) + 0.06 * min(longest, 40)
    size = min(14, max(4.5, 3 + 0.2 * K)), height
    fig, ax = plots.subplots(1, 1, size)
    image = ax.imshow(share[order].T, aspect="auto", cmap="RdBu_r", vmin=-1, vmax=1)
    ax.set(xlabel="target, sorted by the feature that it uses most", xticks=[])
    ax.set_yticks(range(m), [f"feature{j}" for j in range(m)])
    if K <= MANY:
        told = [names[k][:40] for k in order]
        ax.set_xticks(range(K), told, rotation=90, fontsize=7, parse_math=False)
    fig.colorbar(image, label="weight / the target's largest")
    plots.save(fig, path)


def draw_maps(C, shape, path):
    """Correlation of each feature with each pixel, the mean over channels."""
    maps = C.reshape(len(C), *shape[:2], -1).mean(axis=-1)
    fig, axes = plots.subplots(1, len(C), (max(4.5, 1.6 * len(C)), 2.2), squeeze=False)
    for j, ax in enumerate(axes[0]):
        image = ax.imshow(maps[j], cmap="RdBu_r", vmin=-1, vmax=1)
        ax.set(title=f"feature{j}", xticks=[], yticks=[])
    fig.colorbar(image, label="correlation")
    plots.save(fig, path)


def draw_loss(losses, path):
    """The network's outer loss against the step."""
    fig, ax = plots.subplots(1, 1, (4.5, 2.8))
    ax.plot(range(1, len(losses) + 1), losses, lw=0.8)
    ax.set(xlabel="step", title="the network's outer loss (rises with eps)")
    ax.set_ylim(0, 1.1 * np.quantile(losses, 0.99))
    plots.save(fig, path)


# ------------------------------------------------------------------------------ HTML

STYLE = """body{font:15px/1.45 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0;display:block;overflow-x:auto}
td,th{padding:.15rem .6rem;text-align:right;white-space:nowrap}
td:first-child,th:first-child,.text{text-align:left}
th{border-bottom:1px solid #999}img{max-width:100%}p.note{color:#a40}"""


def html_of(result, names, W, pictures):
    """The page."""
    what, (header, *lines) = typeset(measure(result)), target_table(result)
    targets, features = counted(result["targets"], "target"), counted(W.T, "feature")
    parts = [
        f"<h1>{targets}, {features}</h1>",
        f"<p>{typeset(verdict(result))}</p>",
        f"<p>Encoder: {result['encoder']}{typeset(told_choice(result))}.</p>",
        *(f"<p class=note>{escaped(note)}</p>" for note in result["notes"])]
    if "mcc" in result:
        parts.append(f"<p>MCC {result['mcc']:.4f}, R {result['r']:.4f}; a random mixing of the "
                     f"factors has MCC {result['chance']:.2f}.</p>")
    parts += ["<h2>Features</h2><p>Stability: the encoder is kept, and features are found twice, "
              "from each half of the rows (and of the targets, where these are many); it is the "
              "correlation of the two.</p>",
              table_of(*feature_table(result)),
              f"<h2>{what} of each target, on {result['test_rows']} rows held out</h2>",
              table_of(header, lines)]
    if "new" in result:
        parts += [f"<h2>{result['new']['count']} targets that the encoder never saw</h2>",
                  table_of(*new_table(result))]
    unit = "Logits" if what == "accuracy" else "Deviations of the target"
    parts += [f"<h2>Weights</h2><p>{unit} for a deviation of the feature.</p>",
              weights_of(names, W)]
    for picture in pictures:
        data = base64.b64encode(picture.read_bytes()).decode()
        parts.append(f"<p><img alt={picture.stem} src=data:image/png;base64,{data}></p>")
    head = f"<!doctype html><meta charset=utf-8><title>tasks</title><style>{STYLE}</style>"
    return "\n".join([head, *parts, ""])


def counted(things, name):
    """1 target, 2 targets."""
    return f"{len(things)} {name}" + ("" if len(things) == 1 else "s")


def typeset(text):
    """A text of ours as HTML."""
    return escaped(text).replace("R^2", "R²")


def escaped(text):
    """A text as HTML."""
    return html.escape(str(text))


def table_of(header, lines):
    """An HTML table."""
    rows = ["<tr>" + "".join(f"<th>{escaped(name)}</th>" for name in header) + "</tr>"]
    rows += ["<tr>" + "".join(f"<td>{escaped(cell)}</td>" for cell in line) + "</tr>"
             for line in lines]
    return "<table>" + "".join(rows) + "</table>"


def weights_of(names, W):
    """An HTML table of signed weights, coloured by their share of the target's largest."""
    header = "".join(f"<th>feature{j}</th>" for j in range(W.shape[1]))
    lines = [f"<tr><th>target</th>{header}</tr>"]
    for name, w in zip(names, W, strict=True):
        share = w / max(np.abs(w).max(), 1e-300)
        cells = "".join(
            f"<td style=background:{colour(s)}>{value:+.2f}</td>" if value else "<td></td>"
            for s, value in zip(share, w, strict=True))
        lines.append(f"<tr><td>{escaped(name)}</td>{cells}</tr>")
    return "<table>" + "".join(lines) + "</table>"


def colour(share):
    """Red above 0, blue below, the stronger the larger."""
    return f"rgba({'214,96,77' if share > 0 else '67,147,195'},{abs(share):.2f})"
