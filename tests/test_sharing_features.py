"""Sparse heads that share, on precomputed features."""

import json
import sys

import numpy as np
import pytest
from conftest import ROOT

import run
from experiments import sharing, sharing_features
from experiments.sharing_features import Features, FeatureTasks

sys.path.insert(0, str(ROOT / "docs" / "examples"))
from spurious import spurious


@pytest.mark.slow
def test_tasks_whose_queries_are_even_over_groups_beat_erm_on_the_worst_group(tmp_path, capsys):
    spurious(tmp_path / "x.npz", "group")
    args = [
        "sharing",
        "--source",
        "features",
        "--data",
        str(tmp_path / "x.npz"),
        "--steps",
        "60",
        "--features",
        "8",
        "--threads",
        "1",
        "--results",
        str(tmp_path / "r"),
    ]
    assert run.main(args) == 0
    out = capsys.readouterr().out
    result = json.loads(next((tmp_path / "r").rglob("result.json")).read_text())
    assert (
        result["sharing_worst_group"] > result["erm_worst_group"] + 0.1
    )  # the best possible is near 0.89
    assert (
        result["sharing_worst_group"] > result["erm_refit_worst_group"] + 0.05
    )  # with the same head: the encoder is better
    assert (
        result["sharing_worst_group"] > 0.7
        and result["sharing_few_shot"] > result["erm_few_shot"]
        and "worst group" in out
    )
    assert run.main(args) == 0 and "already there" in capsys.readouterr().out


def run_tiny(folder, steps):
    """Train on the table of a folder, m = 4; the results are in the folder too."""
    flags = {"source": "features", "data": folder / "x.npz", "steps": steps, "features": 4}
    flags |= {"threads": 1, "results": folder}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    assert run.main(["sharing", *words]) == 0


def test_every_domain_is_left_out_in_turn(tmp_path, capsys):
    spurious(tmp_path / "x.npz", "domain", N=600)
    run_tiny(tmp_path, 5)
    out = capsys.readouterr().out
    assert (
        all(f"domain {i} left out" in out for i in range(3))
        and sum(line.startswith("  erm-even") for line in out.splitlines()) == 4
    )


def test_feature_tasks_cross_domains_and_spread_over_groups():
    rng = np.random.default_rng(0)
    y, place = rng.integers(3, size=900), rng.integers(4, size=900)
    rows = np.flatnonzero(place != 3)
    tasks = FeatureTasks(y, place, "domain", rows)
    index, Y = tasks.sample(rng, 6, 5, 7)
    assert Y.shape == (6, 24, 1) and (place[index] != 3).all()
    for i, t in zip(index, Y[..., 0]):
        home = set(place[i[:10]])
        assert len(home) == 1 and home.isdisjoint(place[i[10:]]) and set(i[:10]).isdisjoint(i[10:])
        assert (
            len(set(y[i[t == 1]])) == 1
            and len(set(y[i[t == 0]])) == 1
            and set(y[i[t == 1]]) != set(y[i[t == 0]])
        )
    lone = np.where(
        (y == 2) & (place != 1), -1, y
    )  # class 2 only in domain 1: no other domain for its queries
    tasks = FeatureTasks(lone, place, "domain", np.flatnonzero((place != 3) & (lone >= 0)))
    for i in tasks.sample(rng, 60, 5, 7)[0]:
        classes = lone[i]
        assert set(i[:10]).isdisjoint(i[10:]) and (2 not in classes or set(place[i[:10]]) == {1})
    group = np.where(rng.random(900) < 0.95, 0, 1)
    tasks = FeatureTasks(y % 2, group, "group", np.arange(900))
    index, _ = tasks.sample(rng, 40, 5, 20)
    assert abs(group[index[:, 10:]].mean() - 0.5) < 0.05 and group[index[:, :10]].mean() < 0.15
    assert (
        abs(group[tasks.rows(rng, 4000, True)].mean() - 0.5) < 0.05
        and group[tasks.rows(rng, 4000, False)].mean() < 0.1
    )


@pytest.mark.parametrize(
    "spoil, said",
    [
        ({"x": None}, "x.npz"),
        ({"domain": None}, "x.npz"),
        ({"split": np.full(9, "test")}, "no split"),
        ({"group": np.zeros(9)}, "no group"),
        ({"x": np.full((9, 2), np.nan)}, "finite"),
        ({"y": np.zeros(8, int)}, "x.npz"),
        ({"y": np.zeros(9, int)}, "two classes"),
        ({"domain": np.zeros(9, int)}, "two domains"),
        ({"x": np.zeros((9, 2), int)}, "real"),
        ({"x": np.full((9, 2), 1e39)}, "finite"),
        ({"x": np.zeros((9, 0))}, "real"),
        ({"x": np.zeros(())}, "real"),
        ({"y": np.full(9, np.nan)}, "integers"),
        ({"domain": np.arange(9) % 3 + 0.5}, "integers"),
    ],
)
def test_damaged_features_are_refused_in_one_line(spoil, said, tmp_path, capsys):
    good = {
        "x": np.random.default_rng(0).standard_normal((9, 2)),
        "y": np.arange(9) % 2,
        "domain": np.arange(9) % 3,
    }
    np.savez(tmp_path / "x.npz", **{k: v for k, v in {**good, **spoil}.items() if v is not None})
    assert (
        run.main(
            [
                "sharing",
                "--source",
                "features",
                "--data",
                str(tmp_path / "x.npz"),
                "--results",
                str(tmp_path / "r"),
            ]
        )
        == 2
    )
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not (tmp_path / "r").exists()


@pytest.mark.slow
def test_several_classes_and_labels_of_text(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.integers(4, size=400)
    x = np.eye(4)[y] * 3 + rng.standard_normal((400, 4))
    np.savez(
        tmp_path / "x.npz",
        x=x,
        y=np.array(["cat", "cow", "dog", "elk"])[y],
        domain=np.array(["art", "photo"])[rng.integers(2, size=400)],
    )
    run_tiny(tmp_path, 40)
    result = json.loads(next(tmp_path.rglob("result.json")).read_text())
    assert result["sharing_accuracy"] > 0.8 and result["erm_accuracy"] > 0.8


def test_renamed_domains_are_other_data(tmp_path):
    x, y = np.random.default_rng(0).standard_normal((12, 2)), np.arange(12) % 2
    names = set()
    for domains in (["a", "b", "c"], ["a", "b", "d"]):
        np.savez(tmp_path / "x.npz", x=x, y=y, domain=np.repeat(domains, 4))
        names.add(sharing_features.load_features(tmp_path / "x.npz").fingerprint())
    assert len(names) == 2


def test_heads_without_intercept_are_fitted_on_classes_of_one_size():
    """Ten rows of class 0 for one of class 1, side by side: the border is between them."""
    rng = np.random.default_rng(0)
    y = np.arange(2200) % 11 // 10
    F = rng.standard_normal((2200, 2)) + 2 * y[:, None]
    found = sharing_features.predict(F, y, 2, np.arange(1100), np.arange(1100, 2200))
    right = found == y[1100:]
    assert min(right[y[1100:] == c].mean() for c in (0, 1)) > 0.85


ROWS = {"x": np.random.default_rng(0).standard_normal((90, 3)), "y": np.arange(90) % 2}


@pytest.mark.parametrize(
    "arrays, said",
    [
        ({"group": np.arange(90) % 4, "split": np.array(["train", "val", "test"] * 30)}, "split"),
        ({"domain": np.array(["", "a", "b"])[np.arange(90) % 3]}, "domain: found an empty name"),
        ({"domain": np.arange(90) // 30, "y": np.arange(90) % 2 + (np.arange(90) < 9)},
         "1 of 3 classes held out are in no row"),
    ],
)
def test_files_that_would_train_or_score_something_else_are_refused(
        arrays, said, tmp_path, capsys):
    np.savez(tmp_path / "a.npz", **ROWS | arrays)
    line = f"sharing --source features --data {tmp_path / 'a.npz'} --results {tmp_path / 'r'}"
    assert run.main(line.split()) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "r").exists()


def test_a_class_that_no_row_scored_has_is_not_predicted():
    rng, y = np.random.default_rng(0), np.arange(300) % 3
    F = np.eye(3)[y] - 1 / 3 + rng.standard_normal((300, 3))        # of some rows no score is high
    fit, rows = np.arange(60), np.arange(60, 300)
    told = sharing_features.predict(F, y + (y == 2), 5, fit, rows)  # classes 0, 1, 3 of five
    assert set(told) == {0, 1, 3}


def test_names_of_bytes_are_names():
    found = {name: a for name, a in ROWS.items() if name != "group"}
    found["domain"] = np.array([b"a", b"b"])[np.arange(len(ROWS["y"])) % 2]
    assert sharing_features.parse_features(found).places == ["a", "b"]


def test_features_need_a_file(tmp_path, capsys):
    assert run.main(["sharing", "--source", "features", "--results", str(tmp_path)]) == 2
    assert "--data: needed with --source features" in capsys.readouterr().err


def test_the_worst_group_is_that_of_least_accuracy_among_the_rows_scored():
    y, place = np.array([0, 0, 1, 1, 0, 0, 1, 1]), np.array([0, 0, 0, 0, 1, 1, 1, 1])
    features = Features(None, y, place, "group", None, None)
    right = np.array([1, 1, 1, 0, 1, 1, 1, 1], bool)
    assert sharing_features.worst_group(right, features, np.arange(8)) == 0.5
    rows = np.array([0, 1, 4, 5, 7])
    assert sharing_features.worst_group(right[rows], features, rows) == 1


def test_few_shot_heads_are_scored_on_rows_that_they_were_not_fitted_on(monkeypatch):
    rows, y, seen = np.arange(10, 60), np.arange(60) % 2, []

    def predict(F, y, k, fit, rest):
        seen.append((fit, rest))
        return np.zeros(len(rest), int)

    monkeypatch.setattr(sharing_features, "predict", predict)
    told = sharing_features.few_shot(sharing.Sharing(shot=5), None, y, 2, rows)
    assert told == 0.5 and len(seen) == 20 and len({tuple(fit) for fit, _ in seen}) == 20
    for fit, rest in seen:
        assert np.bincount(y[fit]).tolist() == [5, 5] and not set(fit) & set(rest)
        assert sorted([*fit, *rest]) == rows.tolist()


def test_a_run_is_scored_on_rows_held_out_by_its_own_head_and_one_refitted_on_others(
        tmp_path, monkeypatch):
    """Domain 1 is held out, of labels that are the others' turned: all is wrong there."""
    rng = np.random.default_rng(0)
    y, place = np.arange(400) % 2, np.arange(400) // 2 % 3
    x = np.where(place == 1, -1, 1)[:, None] * (2 * y - 1)[:, None] * np.ones(3)
    x = (x + 0.1 * rng.standard_normal(x.shape)).astype(np.float32)
    features = Features(x, y, place, "domain", np.arange(3), np.zeros(400, bool))
    config = sharing.Sharing(
        source="features", features=4, steps=40, results=str(tmp_path), threads=1)
    fit = []

    def predict(F, y, k, rows, rest):
        fit.append(rows)
        return 1 - y[rest]

    monkeypatch.setattr(sharing_features, "predict", predict)
    with sharing_features.results.Run(config) as run:
        found = sharing_features.features_run(config, features, 1, "erm", run)
    assert (place[fit[0]] != 1).all()  # the refitted head
    assert found["refit_worst_group"] == found["few_shot"] == 0
    assert found["accuracy"] < 0.1 and found["worst_group"] < 0.1
    with sharing_features.results.Run(config) as run:
        found = sharing_features.features_run(
            config, features._replace(x=np.abs(x) * (2 * y - 1)[:, None]), 1, "erm-even", run)
    assert found["accuracy"] > 0.9 and found["refit_worst_group"] == 0


def test_each_domain_has_its_own_scores(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", x=rng.standard_normal((90, 3)), y=np.arange(90) % 2,
             domain=np.array(["a", "b", "c"])[np.arange(90) // 2 % 3])
    monkeypatch.setattr(
        sharing_features, "features_run",
        lambda config, features, i, method, run: dict.fromkeys(
            sharing_features.FEATURE_SCORES, i / 10 + (method == "erm")))
    config = sharing.Sharing(
        source="features", data=str(tmp_path / "x.npz"), results=str(tmp_path), threads=1)
    result, _ = sharing_features.sharing_on_features(config)
    told = [result[f"sharing_accuracy_{place}"] for place in "abc"]
    assert told == [0, 0.1, 0.2] and result["sharing_accuracy"] == pytest.approx(0.1)
    assert result["erm_worst_group_c"] == 1.2


def test_the_scores_of_a_method_stand_under_their_names(capsys):
    result = {f"erm_{key}_a": k / 10 for k, key in enumerate(sharing_features.FEATURE_SCORES, 1)}
    sharing_features.tell_method(sharing.Sharing(shot=5), result, "erm", "_a")
    assert capsys.readouterr().out == (
        "  erm       accuracy 10.00 %   worst group 20.00 %, with a head refitted on even rows "
        "30.00 %   up to 5-shot 40.00 %\n")
