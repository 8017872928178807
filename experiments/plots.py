"""plots.py -- what several experiments draw: a run's training, correlations and latent responses.

    C (d, m)     |correlation| of factors and features       matched   metrics.match(C)
    F (N, m)     features of many images                     features(index) -> (len(index), m)
    rho          correlation of the factors, as a parameter; the realised one is less

Figures are written as PNG, whole or not at all. Those of the paper are in figures.py.
"""
import functools

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot

import data
import metrics
from experiments.results import write_atomically

CHANCE = {"color": "grey", "ls": ":", "label": "random mixing"}


def subplots(rows, columns, size, **options):
    """A figure and its axes, size in inches."""
    return pyplot.subplots(rows, columns, figsize=size, layout="constrained", **options)


def save(fig, path):
    """Write a figure and close it."""
    write_atomically(path, lambda file: fig.savefig(file, dpi=130, format="png"))
    pyplot.close(fig)


def draw_line(ax, xs, groups, label, color, style="o-"):
    """Mean and deviation of each group of values against x; a gap where a group is empty."""
    filled = [group or [np.nan] for group in groups]
    means = [np.mean(group) for group in filled]
    spreads = [sample_deviation(group) for group in filled]
    ax.errorbar(xs, means, spreads, fmt=style, color=color, capsize=3, label=label)


def sample_deviation(values):
    """The standard deviation with one less than the number of values below; 0 of one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def tell_realised(ax, levels):
    """Under each rho the correlation that the weights on the images really make."""
    told = [f"{rho:g}: {abs(realised_correlation(rho)):.2f}" for rho in levels]
    ax.set_xticks(levels, told, fontsize=6, rotation=90)
    ax.set_xlabel("$\\rho$, and the correlation that it makes")


@functools.cache
def realised_correlation(rho, alpha=1.0):
    """The mean correlation of the latents under the weights of rho."""
    z, p = data.latents(data.Shapes3D(), alpha, rho)
    return data.describe_latents(z, p)["realised_correlation"]


def draw_training(rows, path, titles, chance=None):
    """Keys of metrics.jsonl against the step, titles key -> title; eps beside the second, and
    chance in the third."""
    fig, axes = subplots(1, len(titles), (3.4 * len(titles), 2.8))
    steps = [row["step"] for row in rows]
    for ax, (key, title) in zip(axes, titles.items(), strict=True):
        ax.plot(steps, [row[key] for row in rows])
        ax.set(xlabel="step", title=title)
        ax.set_ylim(0, None if key == "loss" else 1.02)
    if "eps" in rows[0]:
        axes[1].plot(steps, [row["eps"] for row in rows], "--")
        axes[1].legend(["nonzero", "eps"])
    if chance is not None and len(titles) > 2:
        axes[2].axhline(chance, **CHANCE)
        axes[2].legend(["features", "random mixing"], loc="lower right")
    save(fig, path)


def draw_correlation(C, matched, names, path):
    """C with factors as rows, the matched features in their factor's place."""
    fig, ax = subplots(1, 1, (4.6, 3.8))
    image = show_correlation(ax, C, matched, names)
    ax.set(xlabel="feature", title=f"|correlation|, MCC {C[matched].sum() / len(C):.3f}")
    fig.colorbar(image)
    save(fig, path)


def show_correlation(ax, C, matched, names):
    """C on axes, with its numbers."""
    rest = [j for j in range(C.shape[1]) if j not in matched[1]]
    order = [*matched[1], *rest]
    image = ax.imshow(C[:, order], vmin=0, vmax=1, cmap="viridis")
    for (i, j), value in np.ndenumerate(C[:, order]):
        color = "black" if value > 0.6 else "white"
        ax.text(j, i, f"{value:.2f}", ha="center", va="center", color=color, fontsize=8)
    ax.set(xticks=range(len(order)), xticklabels=order, yticks=range(len(names)))
    ax.set(yticklabels=names)
    return image


def draw_responses(features, shapes, F, matched, path, title=""):
    """Each matched feature's response (row) to one factor that varies (column), in a few images.

    The images come first, each framed in the colour of its lines. Its other factors stay as they
    are; responses are in standard deviations of the feature over F.  [L23, App. D.2.6, Fig. 11]
    """
    order, names = [int(j) for j in matched[1]], shapes.names
    some = np.random.default_rng(0).integers(len(shapes), size=len(names))
    mean, deviation = metrics.moments(F)
    rows_of = Grid(shapes.factors)
    fig, axes = subplots(len(order) + 1, len(names), (10, 1.35 * len(order) + 2.1))
    for ax, image, color in zip(axes[0], shapes.images(some), COLORS, strict=False):
        show_framed(ax, image, color)
    reach = 2.7
    for k, name in enumerate(names):
        for base, color in zip(shapes.factors[some], COLORS, strict=False):
            levels, index = rows_of.varied(base, k)
            response = (features(index) - mean) / deviation
            reach = max(reach, 1.05 * np.abs(response[:, order]).max())     # no line leaves a frame
            for ax, j in zip(axes[1:, k], order, strict=True):
                ax.plot(levels, response[:, j], lw=1, color=color)
        axes[1, k].set_title(f"{name} varied", fontsize=10)
    for i, k in np.ndindex(len(order), len(names)):
        axes[i + 1, k].set(ylim=(-reach, reach), xticks=[], yticks=[-2, 0, 2] if k == 0 else [])
        if k == matched[0][i]:
            axes[i + 1, k].set_facecolor("#eef4ff")
    for ax, j in zip(axes[1:, 0], order, strict=True):
        ax.set_ylabel(f"feature {j}", fontsize=9)
    fig.suptitle(title, fontsize=11)
    fig.supxlabel(
        "level of the factor that is varied, in the image framed in the line's colour; shaded: the "
        "matched factor", fontsize=9)
    save(fig, path)


COLORS = [f"C{i}" for i in range(10)]


def show_framed(ax, image, color):
    """An image in a frame of a colour."""
    ax.imshow(np.clip(image.squeeze(), 0, 1), cmap="gray")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(color=color, linewidth=3)


class Grid:
    """Which row of factors (N, d) holds a combination; a data file may have gaps, and any order."""

    def __init__(self, factors):
        self.levels = factors.max(axis=0).astype(int) + 1
        self.rows = np.full(self.levels.prod(), -1)
        self.rows[self.numbers(factors)] = np.arange(len(factors))

    def numbers(self, factors):
        """The numbers of combinations, the last factor running fastest."""
        return np.ravel_multi_index(factors.T.astype(int), self.levels)

    def varied(self, base, k):
        """The levels of factor k that exist with base's other factors, and their rows."""
        combinations = np.repeat(base[None], self.levels[k], axis=0)
        combinations[:, k] = np.arange(self.levels[k])
        rows = self.rows[self.numbers(combinations)]
        return combinations[rows >= 0, k], rows[rows >= 0]
