"""beyond.py -- questions that the papers leave open, as figures.                 [docs/beyond.md]

    run.py sweep NAME     the runs: problem4, pools, mixing, exactness, patience (of maps.py),
                          encoders (of nuisance.py), transfer, shared (of shared_maps.py),
                          penalties, subsets
    run.py figure NAME    the figure, from the sweep's table; seen, from that of main

    rows      a sweep's finished runs, as dicts; ON the features that the maps were trained on
"""
import itertools

import numpy as np
from scipy import stats

import metrics
from experiments import plots, results, transfer
from experiments.sweeps import ON, POOL_SIZES, where
from experiments.theory import variability_bound

ON_TITLES = {"factors": "the factors, mixed", "encoder": "an encoder's features"}
FAILS = {3.4: ("C3", "3.4 fails"), 3.6: ("C1", "3.6 fails"), 3.5: ("C0", "3.5 fails"),
         0.0: ("C2", "all hold")}


def groups_of(rows, keys, score):
    """The scores of rows by the values of some settings, in the order of their first row."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row[score])
    return groups


# ------------------------------------------------------------------------------ Problem (4)

STARTS = {"random": "C0", "lasso": "C1", "factors": "C2"}


def draw_problem4(rows, path):
    """MCC of each inner problem by where its training starts, on mixed factors and on an encoder's
    features (rows), at each rho (columns); dotted the R of the features, the most there is."""
    rhos = sorted({row["rho"] for row in rows})
    fig, axes = plots.subplots(len(ON), len(rhos), (4 * len(rhos), 6.6), sharey=True,
                               squeeze=False)
    for ax, (on, rho) in zip(axes.flat, itertools.product(ON, rhos), strict=True):
        draw_starts(ax, where(rows, {"on": on, "rho": rho}))
        ax.set(title=f"{ON_TITLES[on]}, $\\rho$ = {rho:g}", ylim=(0.5, 1.03))
    axes[0, 0].set_ylabel("MCC")
    axes[1, 0].set_ylabel("MCC")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, fontsize=8, ncols=4, loc="outside upper center")
    plots.save(fig, path)


def draw_starts(ax, rows):
    """A group of bars for each head and eps, a bar for each start."""
    kinds = list(dict.fromkeys((row["head"], row["eps"]) for row in rows))
    for k, (start, color) in enumerate(STARTS.items()):
        own = groups_of(where(rows, {"start": start}), ("head", "eps"), "mcc")
        places = [n + 0.27 * (k - 1) for n, kind in enumerate(kinds) if kind in own]
        values = [own[kind] for kind in kinds if kind in own]
        if not places:
            continue
        spreads = [plots.sample_deviation(group) for group in values]
        ax.bar(places, [np.mean(group) for group in values], 0.25, yerr=spreads, capsize=2,
               color=color, label=f"from {start}")
    if rows:
        ax.axhline(np.mean([row["r"] for row in rows]), color="grey", ls=":", label="R")
    names = [f"{head}\n{eps:g}" if eps else head for head, eps in kinds]
    ax.set_xticks(range(len(kinds)), names, fontsize=7, rotation=30)


def draw_subsets(rows, path):
    """MCC of encoders trained through other inner problems, by where training starts, as above."""
    rhos = sorted({row["rho"] for row in rows}, reverse=True)
    fig, axes = plots.subplots(1, len(rhos), (9, 3.6), sharey=True, squeeze=False,
                               width_ratios=(3, 1)[:len(rhos)])
    for ax, rho in zip(axes.flat, rhos, strict=True):
        draw_starts(ax, where(rows, {"rho": rho}))
        ax.set(title=f"$\\rho$ = {rho:g}", ylim=(0.5, 1.03))
    axes[0, 0].set_ylabel("MCC")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, fontsize=8, ncols=3, loc="outside upper center")
    plots.save(fig, path)


# ------------------------------------------------------------------------------ how many tasks


def draw_pools(rows, path):
    """MCC against the tasks of a pool: trained (the best eps of each pool) and rotated, each point
    in the colour of the assumption that fails; dashed, the probability that 3.6 holds."""
    fig, axes = plots.subplots(1, len(ON), (11, 4), sharey=True)
    for ax, on in zip(axes, ON, strict=True):
        inside = where(rows, {"on": on})
        for key, marker, label in (("mcc", "o", "trained"), ("mcc_rotated", "^", "rotated")):
            best = best_of_worlds(inside, key)
            draw_pool_points(ax, best, marker, label)
        bound = 1 - variability_bound(6, 0.5, POOL_SIZES)
        ax.plot(range(len(POOL_SIZES)), bound, "--", color="grey", label="P(3.6 holds) at least")
        ax.axhline(metrics.chance(6, 6), **plots.CHANCE)
        ax.set(title=ON_TITLES[on], xlabel="tasks of the pool", ylim=(0, 1.02))
        ax.set_xticks(range(len(POOL_SIZES) + 1), [*POOL_SIZES, "new"])
    axes[0].set_ylabel("MCC")
    handles, labels = axes[0].get_legend_handles_labels()
    for color, label in FAILS.values():
        handles.append(axes[0].scatter([], [], color=color))
        labels.append(label)
    fig.legend(handles, labels, fontsize=8, ncols=4, loc="outside upper center")
    plots.save(fig, path)


def best_of_worlds(rows, key):
    """(place, world) -> the largest score of any eps, and the assumption that fails."""
    best = {}
    for row in rows:
        usual = row["tasks"] == "usual"
        place = len(POOL_SIZES) if usual else POOL_SIZES.index(row["count"])
        at = place, row["world"]
        best[at] = max(best.get(at, (0, row["fails"])), (row[key], row["fails"]))
    return best


def draw_pool_points(ax, best, marker, label):
    """The points, and a line through the means."""
    places = sorted({place for place, _ in best})
    means = [np.mean([score for (place, _), (score, _) in best.items() if place == here])
             for here in places]
    ax.plot(places, means, color="k", lw=1, marker=marker, mfc="none", label=label)
    shift = {"o": -0.12, "^": 0.12}[marker]
    for (place, _), (score, fails) in best.items():
        ax.scatter(place + shift, score, marker=marker, s=18, color=FAILS[fails][0], zorder=3)


# ------------------------------------------------------------------------------ what mixes

WAYS = {"inside": ("trained", "C0", "o"), "inside_rotated": ("rotated", "C2", "^"),
        "inside_ica": ("ICA", "C3", "x"), "inside_chance": ("a random mixing", "grey", ".")}


def draw_mixing(rows, path):
    """The share of |A| where the proof of Theorem B.5 lets factors mix, for 20 sets of supports
    that violate Assumption 3.6; and the MCC of App. B.4's three tasks, which violate 3.5."""
    sets = where(rows, {"tasks": "sets", "eps": 0.3})
    worlds = sorted({row["world"] for row in sets})
    fig, (left, right) = plots.subplots(1, 2, (11, 4), width_ratios=(3, 1))
    for k, (key, (label, color, marker)) in enumerate(WAYS.items()):
        groups = groups_of(sets, ("world",), key)
        means = [np.mean(groups[(world,)]) for world in worlds]
        spreads = [plots.sample_deviation(groups[(world,)]) for world in worlds]
        places = np.arange(len(worlds)) + 0.15 * (k - 1.5)
        left.errorbar(places, means, spreads, fmt=marker, color=color, label=label, capsize=2)
    allowed = groups_of(sets, ("world",), "allowed")
    left.plot(range(len(worlds)), [np.mean(allowed[(world,)]) for world in worlds], "_", ms=14,
              color="k", label="its share of all pairs")
    left.set(xlabel="set of supports", ylabel="share of |A| inside the pattern", ylim=(0, 1.02))
    left.set_xticks(range(len(worlds)), worlds)
    left.legend(fontsize=7, ncols=5, loc="lower left")
    draw_example(right, where(rows, {"tasks": "example"}))
    plots.save(fig, path)


def draw_example(ax, rows):
    """MCC on App. B.4's three tasks, a point a seed."""
    for k, ((head, eps), scores) in enumerate(groups_of(rows, ("head", "eps"), "mcc").items()):
        ax.scatter([k] * len(scores), scores, color="C0")
        ax.text(k, 0.02, f"{head}\n{eps:g}" if eps else head, ha="center", fontsize=7)
    ax.axhline(metrics.chance(3, 3), **plots.CHANCE)
    ax.set(title="App. B.4, (63)", ylabel="MCC", ylim=(0, 1.02), xticks=[], xlim=(-0.6, 2.6))


# ------------------------------------------------------------------------------ exactness


def draw_exactness(rows, path):
    """MCC, the error of the gradient and that of the support against the violation at which the
    Lasso is left, and after one proximal step."""
    fig, axes = plots.subplots(1, 3, (12, 3.8))
    tolerances = sorted({row["tolerance"] for row in where(rows, {"head": "unfinished"})})
    cells = [*({"head": "unfinished", "tolerance": t} for t in tolerances), {"head": "step"}]
    labels = {"mcc": "MCC", "gradient_error": "relative error of the gradient",
              "support_error": "share of weights with a wrong zero"}
    for ax, (key, label) in zip(axes, labels.items(), strict=True):
        kinds = dict.fromkeys((row["on"], row["eps"]) for row in rows)
        for k, (on, eps) in enumerate(kinds):
            own = where(rows, {"on": on, "eps": eps})
            groups = [[row.get(key, np.nan) for row in where(own, cell)] for cell in cells]
            title = f"{ON_TITLES[on]}, eps {eps:g}"
            plots.draw_line(ax, range(len(groups)), groups, title, f"C{k}")
        names = [f"{t:g}" for t in tolerances] + ["one step"]
        ax.set_xticks(range(len(names)), names, fontsize=8)
        ax.set(xlabel="relative violation", ylabel=label)
    axes[1].set_yscale("log")
    axes[0].legend(fontsize=7)
    plots.save(fig, path)


# ------------------------------------------------------------------------------ patience


def draw_patience(rows, path):
    """MCC against the steps of a training from a random start, for each inner problem and rho."""
    fig, ax = plots.subplots(1, 1, (7, 3.8))
    keys, styles = ("head", "eps", "tolerance", "rho"), {0.0: "o:", 0.9: "o-", 0.95: "o--"}
    for k, head in enumerate(dict.fromkeys((row["head"], row["eps"], row["tolerance"])
                                           for row in rows)):
        for rho, style in styles.items():
            cell = dict(zip(keys, (*head, rho), strict=True))
            groups = groups_of(where(rows, cell), ("steps",), "mcc")
            name = f"{head[0]}, eps {head[1]:g}" if head[1] else head[0]
            name += f", left at {head[2]:g}" if head[0] == "unfinished" else ""
            if groups:
                steps = [steps for steps, in groups]
                plots.draw_line(ax, steps, list(groups.values()), f"{name}, $\\rho$ = {rho:g}",
                                f"C{k}", style)
    ax.set_xscale("log")
    ax.set_xticks([400, 1600, 4000], ["400", "1,600", "4,000"])
    ax.minorticks_off()
    ax.set(xlabel="steps", ylabel="MCC", title=ON_TITLES["factors"])
    fig.legend(fontsize=7, loc="outside right upper")
    plots.save(fig, path)


# ------------------------------------------------------------------------------ encoders

SCORED = {"mcc": ("MCC", "C0"), "mcc_rotated": ("MCC, rotated", "C2"), "r": ("R", "C1"),
          "leak": ("R of what no task needs", "C7")}


def draw_encoders(rows, path):
    """MCC, R and what leaks, for encoders of too few and too many features, and for tasks that need
    four of six factors; through Lasso fits (left) and without penalty (right)."""
    kinds = list(dict.fromkeys((row["needed"], row["features"]) for row in rows))
    fig, axes = plots.subplots(1, 2, (11, 3.8), sharey=True)
    for ax, eps in zip(axes, (0.3, 0.0), strict=True):
        inside = where(rows, {"eps": eps})
        for k, (key, (label, color)) in enumerate(SCORED.items()):
            groups = groups_of(inside, ("needed", "features"), key)
            values = [groups.get(kind, [np.nan]) for kind in kinds]
            ax.bar(np.arange(len(kinds)) + 0.2 * (k - 1.5), [np.mean(v) for v in values], 0.18,
                   yerr=[plots.sample_deviation(v) for v in values], capsize=2, color=color,
                   label=label)
        chances = [metrics.chance(needed, m) for needed, m in kinds]
        ax.plot(range(len(kinds)), chances, "_", ms=30, color="k", label="random mixing")
        ax.set_xticks(range(len(kinds)), [f"{m} features,\n{needed} needed" for needed, m in kinds],
                      fontsize=7)
        ax.set(title=f"inner-Lasso, eps {eps:g}" if eps else "no penalty", ylim=(0, 1.02))
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, fontsize=8, ncols=5, loc="outside upper center", markerscale=0.5)
    plots.save(fig, path)


# ------------------------------------------------------------------------------ [F23]

GAINS = {"mcc": "MCC", "dci_d": "DCI-D", "dci_d_matched": "DCI-D, matched",
         "accuracy_5": "accuracy of 5 samples", "unused": "unused features"}


def draw_shared(rows, path):
    """What beta > 0 adds to beta = 0, paired by seed, mean and deviation, in each setting."""
    ours = where(rows, {"method": "sharing"})
    keys = ("m", "alpha", "factors", "shot")
    cells = list(dict.fromkeys(tuple(row[key] for key in keys) for row in ours))
    fig, axes = plots.subplots(1, len(GAINS), (3 * len(GAINS), 4), sharey=True)
    for ax, (key, label) in zip(axes, GAINS.items(), strict=True):
        for k, beta in enumerate((0.02, 0.1)):
            gains = [gains_of(where(ours, dict(zip(keys, cell, strict=True))), beta, key)
                     or [np.nan] for cell in cells]
            means = [np.mean(gain) for gain in gains]
            spreads = [plots.sample_deviation(gain) for gain in gains]
            places = np.arange(len(cells)) + 0.2 * (k - 0.5)
            ax.errorbar(means, places, xerr=spreads, fmt="o", color=f"C{k}", capsize=2,
                        label=f"beta {beta}")
        ax.axvline(0, color="grey", lw=0.7)
        ax.set_xlabel(f"{label}, less that of beta 0", fontsize=8)
    names = [f"m {m}, alpha {alpha:g},\nfactors: {factors}, samples: {shot}"
             for m, alpha, factors, shot in cells]
    axes[0].set_yticks(range(len(cells)), names, fontsize=7)
    axes[0].legend(fontsize=7)
    plots.save(fig, path)
    write_gains(ours, cells, keys, path.with_name(f"{path.stem}-gains.csv"))


def write_gains(rows, cells, keys, path):
    """As CSV: the mean of what beta adds to each score, paired by seed, and half its 95 % interval
    over the pairs; of each cell, and of all together."""
    lines = [f"{','.join(keys)},score,beta,gain,half,pairs"]
    for key, beta in itertools.product((*GAINS, "accuracy_13", "accuracy_50"), (0.02, 0.1)):
        pairs = {cell: gains_of(where(rows, dict(zip(keys, cell, strict=True))), beta, key)
                 for cell in cells}
        pairs[("all",) * len(keys)] = sum(pairs.values(), [])
        pairs = {cell: gains for cell, gains in pairs.items() if len(gains) > 1}
        for cell, gains in pairs.items():
            half = stats.sem(gains) * stats.t.ppf(0.975, len(gains) - 1)
            told = f"{key},{beta},{np.mean(gains):.6f},{half:.6f},{len(gains)}"
            lines.append(f"{','.join(map(str, cell))},{told}")
    results.write_text(path, "\n".join(lines) + "\n")


def gains_of(rows, beta, key):
    """A score at beta less that at beta = 0, of each seed that has both."""
    with_it, without = ({row["seed"]: row[key] for row in where(rows, {"beta": value})}
                        for value in (beta, 0.0))
    return [with_it[seed] - without[seed] for seed in with_it if seed in without]


# ------------------------------------------------------------------------------ learned penalties

WAYS_TO_CHOOSE = {  # of the runs on which eps is chosen; the scores told are of others
    "factors known": ("mcc", max, "s"), "UDR": ("udr", max, "x"),
    "UDR on images as trained on": ("udr_seen", max, "D"),
    "the same by regression": ("udr_regressed", max, "+"), "held-out loss": ("loss", min, "v")}
PROBLEMS = {False: ("Problem (6)", "C0"), True: ("Problem (7)", "C1")}


def draw_penalties(rows, path):
    """MCC against eps, fitted and scored on the same samples or on others; where each way to choose
    eps ends, and where it goes when it is learned. Beside it, as CSV, what was chosen."""
    kinds = list(dict.fromkeys((row["on"], row["rho"], row["samples"]) for row in rows))
    fig, axes = plots.subplots(1, len(kinds), (4 * len(kinds), 4), sharey=True, squeeze=False)
    lines = ["on,rho,samples,held_out,way,eps,mcc,sd"]
    for ax, (on, rho, samples) in zip(axes.flat, kinds, strict=True):
        own = where(rows, {"on": on, "rho": rho, "samples": samples})
        for held_out, (label, color) in PROBLEMS.items():
            inside = where(own, {"held_out": held_out})
            told = where(inside, {"seed": 1, "learn": False})
            plots.draw_line(ax, [row["eps"] for row in told], [row["mccs"] for row in told],
                            label, color)
            for way, eps, scores, marker in choices(inside):
                spread = plots.sample_deviation(scores)
                ax.plot(eps, np.mean(scores), marker, ms=9, mfc="none", color=color)
                lines.append(f"{on},{rho},{samples},{held_out},{way.replace(' ', '-')},{eps:.6g},"
                             f"{np.mean(scores):.6f},{spread:.6f}")
        ax.axhline(metrics.chance(6, 6), **plots.CHANCE)
        ax.set(title=f"{ON_TITLES[on]},\n$\\rho$ = {rho:g}, {samples} samples a task",
               xscale="log", xlabel="$\\epsilon$", ylim=(0.3, 1.02))
    axes[0, 0].set_ylabel("MCC")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    markers = {way: marker for way, (_, _, marker) in WAYS_TO_CHOOSE.items()} | {"learned": "*"}
    for way, marker in markers.items():
        handles += axes[0, 0].plot([], [], marker, ms=9, mfc="none", color="k")
        labels.append(way)
    fig.legend(handles, labels, fontsize=8, ncols=7, loc="outside upper center")
    plots.save(fig, path)
    results.write_text(path.with_name(f"{path.stem}-choices.csv"), "\n".join(lines) + "\n")


def choices(rows):
    """Of each way to choose eps its name, eps, MCC of the runs that are scored, and marker; of eps
    that have both, those to choose on and those that are scored."""
    chosen_on, scored = where(rows, {"seed": 0}), where(rows, {"seed": 1})
    mccs = {row["eps"]: row["mccs"] for row in where(scored, {"learn": False})}
    given = [row for row in where(chosen_on, {"learn": False}) if row["eps"] in mccs]
    for way, (key, best, marker) in WAYS_TO_CHOOSE.items() if given else ():
        eps = best(given, key=lambda row: row[key])["eps"]
        yield way, eps, mccs[eps], marker
    for row in where(scored, {"learn": True}):
        yield f"learned from {row['eps']:g}", row["eps_end"], row["mccs"], "*"


# ------------------------------------------------------------------------------ transfer

METHOD_COLORS = dict(zip(transfer.METHODS, ("C0", "C1", "C7", "C2", "C3", "k"), strict=True))


def draw_transfer(rows, path):
    """R^2 of new sparse tasks against their samples, by Lasso and by ridge (columns), on images of
    the training distribution and on uniform ones (rows), a line for each kind of features."""
    fig, axes = plots.subplots(2, 2, (9, 6.6), sharex=True, sharey=True)
    for (i, j), ax in np.ndenumerate(axes):
        penalty, on = ("lasso", "ridge")[j], ("", "_uniform")[i]
        for method, color in METHOD_COLORS.items():
            own = where(rows, {"method": method})
            groups = [[row[f"{penalty}_{n}{on}"] for row in own] for n in transfer.SIZES]
            plots.draw_line(ax, range(len(groups)), groups, method, color)
        where_told = "uniform images" if on else "the training distribution"
        ax.set(title=f"{penalty}, {where_told}", ylim=(-0.5, 1.02))
        ax.set_xticks(range(len(transfer.SIZES)), transfer.SIZES)
    for ax in axes[1]:
        ax.set_xlabel("samples of the new task")
    for ax in axes[:, 0]:
        ax.set_ylabel("$R^2$")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, fontsize=8, ncols=6, loc="outside upper center")
    plots.save(fig, path)


# ------------------------------------------------------------------------------ which images


def mcc_seen(row):
    """MCC on images as trained on."""
    return np.mean([value for key, value in row.items() if key.startswith("seen_")])


SEEN = (("MCC, uniform images", "C0", lambda row: row["mcc"]),
        ("MCC, as trained on", "C9", mcc_seen), ("R, uniform images", "C1", lambda row: row["r"]))


def draw_seen(rows, path):
    """MCC on uniform images and on images as trained on, against rho, of a penalty of eps 0.3; R is
    the most that MCC can be on uniform ones. Features are matched on uniform images."""
    fig, axes = plots.subplots(1, 2, (7.6, 3.4), sharey=True)
    for ax, head in zip(axes, ("inner-lasso", "inner-ridge"), strict=True):
        own = where(rows, {"head": head, "eps": 0.3, "alpha": 1.0})
        by_rho = {rho: where(own, {"rho": rho}) for rho in sorted({row["rho"] for row in own})}
        for label, color, score_of in SEEN:
            groups = [[score_of(row) for row in same] for same in by_rho.values()]
            plots.draw_line(ax, list(by_rho), groups, label, color)
        ax.axhline(metrics.chance(6, 6), **plots.CHANCE)
        ax.set(title=head, ylim=(0, 1.02))
        plots.tell_realised(ax, list(by_rho))
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, fontsize=8, ncols=4, loc="outside upper center")
    plots.save(fig, path)
