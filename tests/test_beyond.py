"""Figures of the questions that the papers leave open, from rows made by hand."""

import dataclasses
import itertools

import numpy as np
import pytest
from conftest import line_of
from matplotlib import pyplot

from experiments import beyond, figures, plots, sweeps, transfer

SCORES = (
    "mcc r mcc_seen r_seen mcc_rotated inside inside_rotated inside_ica inside_chance allowed "
    "gradient_error support_error leak dci_d dci_d_matched accuracy_5 accuracy_13 "
    "accuracy_50 unused udr udr_seen udr_regressed loss eps_end seen_floor"
).split()


def rows_of(name):
    """A row for every run of a sweep; MCC grows with the seed."""
    rows = []
    of_samples = itertools.product(("lasso", "ridge"), transfer.SIZES, ("", "_uniform"))
    names = [*SCORES, *(f"{p}_{n}{on}" for p, n, on in of_samples)]
    for config in sweeps.sweep_configs(name, "quick", "unused"):
        row = dataclasses.asdict(config) | dict.fromkeys(names, 0.7)
        row |= {"mcc": 0.8 + 0.01 * config.seed, "r": 0.97, "fails": 0.0, "mccs": [0.7, 0.8]}
        if row.get("tasks") == "pool":
            row["fails"] = {2: 3.4, 8: 3.6}.get(config.count, 3.5)
        rows.append(row)
    return rows


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    saved = []
    monkeypatch.setattr(plots, "save", lambda fig, path: saved.append(fig))
    yield saved
    pyplot.close("all")


@pytest.mark.parametrize("name", [*sweeps.QUESTIONS, "seen"])
def test_every_question_has_its_figure(name, tmp_path, drawn):
    figures.FIGURES[name](rows_of(sweeps.SWEEP_OF[name]), tmp_path / "f.png")
    assert len(drawn) == 1 and all(ax.get_title() or ax.get_xlabel() for ax in drawn[0].axes)


@pytest.mark.parametrize("name", [*sweeps.QUESTIONS, "seen"])
def test_a_sweep_that_has_begun_has_its_figure(name, tmp_path, drawn):
    for count in (1, 3, 17):
        rows = rows_of(sweeps.SWEEP_OF[name])[:count]
        for row in rows:
            row.pop("gradient_error"), row.pop("support_error")  # runs too short to measure them
        figures.FIGURES[name](rows, tmp_path / "f.png")
    assert len(drawn) == 3


def test_bars_are_means_of_their_start(drawn, tmp_path):
    beyond.draw_problem4(rows_of("problem4"), tmp_path / "f.png")
    ax = drawn[0].axes[1]
    assert "0.9" in ax.get_title()
    heights = {bar.get_height() for group in ax.containers for bar in getattr(group, "patches", [])}
    assert {round(height, 6) for height in heights} == {0.81}  # of seeds 0, 1, 2
    names = [tick.get_text() for tick in ax.get_xticklabels()]
    assert "subset-size" in names and "inner-lasso\n0.3" in names


def test_of_a_pool_the_best_eps_counts_and_the_assumption_is_kept():
    def row(**own):
        return {"tasks": "pool", "count": 8, "world": 0, "fails": 3.6, "mcc": 0.5} | own

    rows = [row(), row(mcc=0.7), row(world=1, mcc=0.6), row(tasks="usual", fails=0.0, mcc=0.9)]
    best = beyond.best_of_worlds(rows, "mcc")
    assert best[(4, 0)] == (0.7, 3.6) and best[(4, 1)] == (0.6, 3.6)
    assert best[(len(sweeps.POOL_SIZES), 0)] == (0.9, 0.0)


def test_gains_are_paired_by_seed():
    rows = [{"beta": b, "seed": s, "mcc": m} for b, s, m in
            ((0.0, 0, 0.5), (0.0, 1, 0.7), (0.1, 0, 0.6), (0.1, 1, 0.6), (0.1, 2, 0.9))]
    assert beyond.gains_of(rows, 0.1, "mcc") == pytest.approx([0.1, -0.1])


def test_groups_keep_the_order_of_their_rows():
    rows = [{"a": 2, "x": 0.1}, {"a": 1, "x": 0.2}, {"a": 2, "x": 0.3}]
    assert list(beyond.groups_of(rows, ("a",), "x").items()) == [((2,), [0.1, 0.3]), ((1,), [0.2])]


def test_a_table_of_gains_is_written(tmp_path):
    rows = [{"m": 10, "alpha": 0.1, "factors": 2, "shot": 13, "seed": seed, "beta": beta}
            | dict.fromkeys((*beyond.GAINS, "accuracy_13", "accuracy_50"), seed + 10 * beta)
            for seed in range(4) for beta in (0.0, 0.02, 0.1) if (seed, beta) != (3, 0.1)]
    keys = ("m", "alpha", "factors", "shot")
    beyond.write_gains(rows, [(10, 0.1, 2, 13)], keys, tmp_path / "g.csv")
    lines = (tmp_path / "g.csv").read_text().splitlines()
    assert lines[1:3] == ["10,0.1,2,13,mcc,0.02,0.200000,0.000000,4",
                          "all,all,all,all,mcc,0.02,0.200000,0.000000,4"]
    assert lines[3] == "10,0.1,2,13,mcc,0.1,1.000000,0.000000,3"


def test_the_interval_of_a_gain_is_students(tmp_path):
    from scipy import stats

    gains = {(10, 0.1): [0.1, 0.4, 0.2], (20, 0.1): [0.3, -0.1]}
    rows = []
    for (m, alpha), own in gains.items():
        for seed, gain in enumerate(own):
            for beta in (0.0, 0.02, 0.1):
                value = 0.5 + (gain if beta == 0.1 else 0.0)
                rows.append(
                    {"m": m, "alpha": alpha, "seed": seed, "beta": beta}
                    | dict.fromkeys((*beyond.GAINS, "accuracy_13", "accuracy_50"), value)
                )
    beyond.write_gains(rows, list(gains), ("m", "alpha"), tmp_path / "g.csv")
    lines = [line.split(",") for line in (tmp_path / "g.csv").read_text().splitlines()]
    told = {tuple(line[:4]): line[4:] for line in lines[1:]}
    for name, own in (("10,0.1", gains[10, 0.1]), ("all,all", sum(gains.values(), []))):
        gain, half, pairs = told[*name.split(","), "mcc", "0.1"]
        low, high = stats.t.interval(0.95, len(own) - 1, np.mean(own), stats.sem(own))
        assert float(gain) == pytest.approx(np.mean(own), abs=1e-6)
        assert float(half) == pytest.approx((high - low) / 2, abs=1e-6)
        assert int(pairs) == len(own)


def test_what_mixes_is_shown_at_one_eps(panels):
    keys = (*beyond.WAYS, "allowed", "mcc")
    rows = [
        {"tasks": "sets", "world": world, "eps": eps, "head": "inner-lasso"}
        | dict.fromkeys(keys, world / 10 + eps)
        for world in (0, 1)
        for eps in (0.1, 0.3)
    ]
    rows += [own | {"tasks": "example"} for own in rows[:2]]
    beyond.draw_mixing(rows, None)
    left = panels[0][0]
    np.testing.assert_allclose(line_of(left.containers[0])[1], [0.3, 0.4])


def test_encoders_are_shown_by_their_eps_with_their_chance(panels):
    import metrics

    rows = [
        {"needed": 4, "features": 6, "eps": eps, "seed": seed}
        | dict.fromkeys(beyond.SCORED, 0.5 + eps + seed / 10)
        for eps in (0.0, 0.3)
        for seed in (0, 1)
    ]
    beyond.draw_encoders(rows, None)
    for ax, mean in zip(panels[0][:2], (0.85, 0.55)):
        assert ax.patches[0].get_height() == pytest.approx(mean)
        chance = next(line for line in ax.lines if line.get_label() == "random mixing")
        assert chance.get_ydata()[0] == pytest.approx(metrics.chance(4, 6))


def test_transfer_is_shown_in_its_own_panels(panels):
    def value(penalty, n, on):
        return (penalty == "ridge") + 0.1 * transfer.SIZES.index(n) + 0.05 * bool(on)

    keys = itertools.product(("lasso", "ridge"), transfer.SIZES, ("", "_uniform"))
    scores = {f"{penalty}_{n}{on}": value(penalty, n, on) for penalty, n, on in keys}
    beyond.draw_transfer([{"method": method} | scores for method in transfer.METHODS], None)
    for ax, penalty, on in zip(panels[0], ("lasso", "ridge") * 2, ("", "", "_uniform", "_uniform")):
        means = line_of(ax.containers[0])[1]
        np.testing.assert_allclose(means, [value(penalty, n, on) for n in transfer.SIZES])
        assert ax.get_title().startswith(penalty) and ("uniform" in ax.get_title()) == bool(on)


def test_each_start_has_its_own_bars():
    rows = [
        {"head": "subset", "eps": 0.1, "start": start, "mcc": mcc, "r": 0.97}
        for start, own in zip(beyond.STARTS, ((0.5, 0.7), (0.8, 0.9), (1.0, 1.0)))
        for mcc in own
    ]
    _, ax = plots.subplots(1, 1, (2, 2))
    beyond.draw_starts(ax, rows)
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], [0.6, 0.85, 1.0])
    pyplot.close("all")


def test_the_bound_of_pools_is_of_the_probability_that_3_6_holds(panels):
    rows = [
        {
            "on": on,
            "tasks": "pool",
            "count": count,
            "world": 0,
            "fails": 3.5,
            "mcc": 0.6,
            "mcc_rotated": 0.7,
        }
        for on in sweeps.ON
        for count in sweeps.POOL_SIZES
    ]
    beyond.draw_pools(rows, None)
    bound = next(line for line in panels[0][0].lines if line.get_linestyle() == "--").get_ydata()
    assert (np.diff(bound) >= 0).all() and bound[-1] > 0.999


def test_what_is_seen_is_the_mean_over_factors_of_the_strong_penalty_with_noise(panels):
    base = {"head": "inner-ridge", "eps": 0.3, "alpha": 1.0, "rho": 0.9, "r": 0.95}
    scores = {"mcc": 0.6, "seen_floor": 0.7, "seen_wall": 0.9, "mcc_floor": 0.1}
    rows = [base | scores, base | scores | {"seen_wall": 1.0}]
    rows += [own | dict.fromkeys(scores, 0.2) for own in (
        base | {"eps": 0.1}, base | {"alpha": 0.0}, base | {"head": "inner-lasso"})]
    beyond.draw_seen(rows, None)
    heights = [line_of(bars)[1] for bars in panels[0][1].containers]
    np.testing.assert_allclose(heights, [[0.6], [0.825], [0.95]])
    assert panels[0][1].get_title() == "inner-ridge"


def test_one_step_is_shown_behind_the_tolerances(panels):
    rows = [
        {"on": "factors", "eps": 0.1, "head": "unfinished", "tolerance": t, "mcc": 0.5 - t}
        for t in (0.01, 0.1)
    ] + [{"on": "factors", "eps": 0.1, "head": "step", "tolerance": 0.01, "mcc": 0.9}]
    rows = [own | {"gradient_error": 0.1, "support_error": 0.2} for own in rows]
    beyond.draw_exactness(rows, None)
    np.testing.assert_allclose(line_of(panels[0][0].containers[0])[1], [0.49, 0.4, 0.9])


def test_gains_are_shown_as_means(panels, tmp_path):
    rows = [
        {
            "method": "sharing",
            "m": 10,
            "alpha": 0.1,
            "factors": 2,
            "shot": 13,
            "seed": seed,
            "beta": beta,
        }
        | dict.fromkeys(
            (*beyond.GAINS, "accuracy_13", "accuracy_50"), 0.5 + (0.1 + 0.2 * seed) * (beta == 0.1)
        )
        for seed in (0, 1)
        for beta in (0.0, 0.02, 0.1)
    ]
    beyond.draw_shared(rows, tmp_path / "f.png")
    small, large = panels[0][0].containers[:2]
    assert [float(c.lines[0].get_xdata()[0]) for c in (small, large)] == [0, pytest.approx(0.2)]


def test_penalties_are_scored_on_the_other_seed(panels, tmp_path):
    rows = [
        {"on": "factors", "rho": rho, "samples": 16, "held_out": held, "seed": seed,
         "learn": False, "eps": eps, "mcc": eps, "udr": -eps, "udr_seen": -eps,
         "udr_regressed": eps, "loss": eps, "mccs": [seed / 2 + eps, seed / 2 + eps + 0.2]}
        for rho in (0.0, 0.9) for held in (False, True) for seed in (0, 1) for eps in (0.1, 0.3)]
    beyond.draw_penalties(rows, tmp_path / "f.png")
    np.testing.assert_allclose(line_of(panels[0][0].containers[0])[1], [0.7, 0.9])
    lines = (tmp_path / "f-choices.csv").read_text().splitlines()
    assert lines[:3] == ["on,rho,samples,held_out,way,eps,mcc,sd",
                         "factors,0.0,16,False,factors-known,0.3,0.900000,0.141421",
                         "factors,0.0,16,False,UDR,0.1,0.700000,0.141421"]
    assert lines[5] == "factors,0.0,16,False,held-out-loss,0.1,0.700000,0.141421"
    assert len(lines) == 1 + 2 * 2 * len(beyond.WAYS_TO_CHOOSE)
