"""Sweeps at tiny settings: which runs, the table, workers, interruptions, the choice of eps."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

import data
import run
from experiments import disentangle, settings, sweeps

ONE_HEAD = {"quick": [sweeps.Part([{"rho": 0.9}], ("inner-lasso",), (0.1, 0.3), 2)]}


@pytest.fixture
def one_head(tiny_sweeps, monkeypatch):
    """A sweep `main` of one head and one cell, two eps and two seeds."""
    monkeypatch.setitem(sweeps.SWEEPS, "main", ONE_HEAD)


def finished():
    return sorted(Path("results").glob("disentangle/*/result.json"))


def test_a_sweep_fills_its_table_and_resumes(tiny_sweeps, capsys):
    assert run.main(["sweep", "blocks", "--index", "3"]) == 0
    assert len(finished()) == 1
    assert run.main(["sweep", "fig8"]) == 0  # by its figure's name
    assert len(finished()) == 3 * 2
    assert "6 runs, 1 there already" in capsys.readouterr().out
    times = [path.stat().st_mtime_ns for path in finished()]
    assert run.main(["sweep", "blocks"]) == 0
    assert [path.stat().st_mtime_ns for path in finished()] == times
    with open("results/blocks-quick.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    names = {"mcc", "r", "mcc_ica", "block_share_2", "tasks", "seed", "code"}
    assert len(rows) == 6 and names <= rows[0].keys()
    assert not {"folder", "image_sets", "threads"} & rows[0].keys()


def test_the_table_tells_what_each_run_is_and_which_code_made_it(one_head):
    assert run.main(["sweep", "main", "--index", "0"]) == 0
    (path,) = finished()
    (row,) = sweeps.read_table("main", "quick", "results")
    content = json.loads(path.read_text())
    assert row["folder"] == str(path.parent) and content.items() <= row.items()
    assert row["code"] == settings.code_digest(disentangle.Disentangle)
    with open("results/main-quick.csv", newline="") as file:
        (told,) = csv.DictReader(file)
    assert float(told["mcc"]) == row["mcc"]  # all digits
    assert (told["head"], told["code"]) == ("inner-lasso", row["code"])
    made_by = json.loads((path.parent / "config.json").read_text()) | {"code": "other"}
    (path.parent / "config.json").write_text(json.dumps(made_by))
    (row,) = sweeps.read_table("main", "quick", "results")
    assert row["code"] == "other"  # of the result, not of what is here now


def test_a_table_alone_tells_of_runs_made_elsewhere(one_head, capsys):
    assert run.main(["sweep", "main"]) == 0
    table = Path("results/main-quick.csv")
    there = sweeps.read_table("main", "quick", "results")
    first = there[0]["code"]
    like_a_number = "12345678e9012345"
    table.write_text(table.read_text().replace(first, like_a_number))
    shutil.rmtree("results/disentangle")
    told = sweeps.read_table("main", "quick", "results")
    elsewhere = {"folder": None, "code": like_a_number}
    assert told == [row | elsewhere for row in there]
    assert run.main(["sweep", "main"]) == 0 and not finished()
    assert "4 there already" in capsys.readouterr().out
    assert sweeps.read_table("main", "quick", "results") == told
    assert run.main(["choose-eps"]) == 2  # which needs the encoders
    few = table.read_text().splitlines()[:3]
    table.write_text("\n".join(few) + "\n")
    assert run.main(["sweep", "main"]) == 0 and len(finished()) == 2


def test_a_table_of_other_settings_tells_nothing(one_head, monkeypatch):
    assert run.main(["sweep", "main", "--index", "0"]) == 0
    shutil.rmtree("results/disentangle")
    assert len(sweeps.read_table("main", "quick", "results")) == 1
    monkeypatch.setitem(sweeps.SCALES, "quick", sweeps.SCALES["quick"] | {"steps": 2})
    assert sweeps.read_table("main", "quick", "results") == []


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "run,code,mcc\nx,y,much\n", "run,mcc\nx,1\n"])
def test_another_table_is_refused(one_head, capsys, text):
    Path("results").mkdir()
    Path("results/main-quick.csv").write_text(text)
    assert run.main(["sweep", "main"]) == 2 and run.main(["figure", "fig4"]) == 2
    assert "not a table of this program" in capsys.readouterr().err


def test_the_tables_in_docs_are_read():
    rows = sweeps.read_table("main", "quick", settings.ROOT / "docs")
    (default,) = sweeps.where(rows, {"rho": 0.9, "alpha": 1.0, "head": "inner-lasso", "eps": 0.3,
                                     "seed": 0})
    assert default["mcc"] > 0.96 and default["folder"] is None


def test_without_a_penalty_lasso_and_ridge_are_run_once(tiny_sweeps, monkeypatch):
    both = {"quick": [sweeps.Part([{"rho": 0.9}], sweeps.INNER, (0.0, 0.3), 1)]}
    monkeypatch.setitem(sweeps.SWEEPS, "main", both)
    assert run.main(["sweep", "main"]) == 0 and len(finished()) == 3
    rows = sweeps.read_table("main", "quick", "results")
    assert [row["head"] for row in rows] == ["inner-lasso"] * 2 + ["inner-ridge"] * 2
    lasso, _, ridge, _ = rows
    assert lasso == ridge | {"head": "inner-lasso"} and ridge["eps"] == 0
    (config,) = [own for own in sweeps.sweep_configs("main", "quick", "results")
                 if (own.head, own.eps) == ("inner-ridge", 0)]
    scores = disentangle.disentangle(config)[0]  # it is so
    assert scores["mcc"] == lasso["mcc"] and scores["r"] == lasso["r"]


def test_texts_with_commas_survive_the_table(tmp_path):
    rows = [{"seed": 0, "note": 'a, "b"', "mcc": 1 / 3}, {"seed": 1, "more": 2}]
    sweeps.write_table(rows, tmp_path / "t.csv", settings.RunSettings)
    with open(tmp_path / "t.csv", newline="") as file:
        told = list(csv.DictReader(file))
    assert told[0] == {"seed": "0", "note": 'a, "b"', "mcc": repr(1 / 3), "more": ""}
    assert told[1] == {"seed": "1", "note": "", "mcc": "", "more": "2"}


QUICK = {"main": 270, "blocks": 108, "laplace": 198, "outer": 36, "responses": 4}
PAPER = {"main": 1200, "blocks": 360, "laplace": 1200, "outer": 120, "responses": 4}
QUICK |= {"glyphs": 18, "shapes": 4, "sharing": 33}
PAPER |= {"glyphs": 30, "shapes": 20, "sharing": 33}
QUICK |= {"rotation": 102, "protocol": 17, "variants": 24, "idea": 2}
MAPS = {"problem4": 306, "pools": 200, "mixing": 215, "exactness": 72, "patience": 66}
MAPS |= {"transfer": 18, "encoders": 36, "shared": 125, "penalties": 128, "subsets": 30}
QUICK |= MAPS
PAPER |= {"rotation": 340, "protocol": 17, "variants": 70, "idea": 2} | MAPS


@pytest.mark.parametrize("scale, counts", [("quick", QUICK), ("paper", PAPER)])
def test_the_runs_of_a_sweep_differ(scale, counts):
    assert counts.keys() == set(sweeps.NAMES)
    for name, expected in counts.items():
        configs = sweeps.sweep_configs(name, scale, "results")
        assert len(configs) == len(set(configs)) == expected
        assert {type(config).__name__ for config in configs} <= sweeps.EXPERIMENTS.keys()
        assert len({sweeps.run_of(config).name for config in configs}) >= 0.8 * expected


def test_the_runs_of_the_papers_response_figures_are_runs_of_main():
    main = sweeps.sweep_configs("main", "quick", "results")
    shown = sweeps.sweep_configs("responses", "quick", "results")
    assert set(shown) <= set(main)
    assert [config.head for config in shown] == [f"inner-{w}" for w in "lasso ridge".split()] * 2
    assert [config.rho for config in shown] == [0.0, 0.0, 0.9, 0.9] and shown[1].eps == 0


def test_a_table_tells_the_settings_in_which_its_rows_differ(tmp_path):
    rows = [{"run": norm, "mcc": 0.5, "code": "c", **vars(disentangle.Disentangle(norm=norm))}
            for norm in ("batch", "layer")]
    sweeps.write_table(rows, tmp_path / "t.csv", disentangle.Disentangle)
    head = (tmp_path / "t.csv").read_text().split("\n")[0].split(",")
    assert {"norm", "rho", "mcc"} <= set(head) and not {"shift", "lr", "results"} & set(head)
    told = sweeps.read_told(tmp_path / "t.csv")
    assert told["layer"] == {"mcc": 0.5, "code": "c", "kernel": ""}


def test_every_method_is_searched_alike():
    """Each head of a cell has the same eps and seeds; what the curves choose from is everywhere."""
    for scale, values in (("quick", sweeps.CURVE_EPS), ("paper", sweeps.EPS)):
        runs = {}
        for config in sweeps.sweep_configs("main", scale, "results"):
            own = runs.setdefault((config.rho, config.alpha), {})
            own.setdefault(config.head, set()).add((config.eps, config.seed))
        assert len(runs) == (10 if scale == "paper" else 8)
        for heads in runs.values():
            assert heads["inner-lasso"] == heads["inner-ridge"]
            assert set(values) <= {eps for eps, _ in heads["inner-lasso"]}


def test_a_trial_of_every_sweep_is_short():
    for name in sweeps.NAMES:
        configs = sweeps.sweep_configs(name, "tiny", "results")
        assert configs and all(getattr(config, "steps", 0) <= 2 for config in configs)


@pytest.mark.slow
def test_two_workers_fill_the_same_table(one_head):
    assert run.main(["sweep", "main", "--jobs", "2"]) == 0
    contents = [json.loads(path.read_text()) for path in finished()]
    cells = sorted((content["eps"], content["seed"]) for content in contents)
    assert cells == [(0.1, 0), (0.1, 1), (0.3, 0), (0.3, 1)]
    with open("results/main-quick.csv", newline="") as file:
        told = sorted((float(row["eps"]), int(row["seed"])) for row in csv.DictReader(file))
    assert told == cells


def test_an_interrupted_sweep_goes_on(one_head, monkeypatch):
    plain, count = disentangle.disentangle, []

    def stop_at_the_third(config):
        count.append(config)
        if len(count) == 3:
            raise KeyboardInterrupt
        return plain(config)

    monkeypatch.setattr(disentangle, "disentangle", stop_at_the_third)
    assert run.main(["sweep", "main"]) == 130 and len(finished()) == 2
    assert run.main(["sweep", "main"]) == 0 and len(finished()) == 4


def test_runs_that_fail_are_named_at_the_end_and_stop_no_other(one_head, capsys):
    assert run.main(["sweep", "main"]) == 0
    first, second, *_ = finished()
    (first.parent / "checkpoint.npz").write_bytes(b"x")
    first.unlink()
    second.write_text("{}")  # damaged, too
    table = Path("results/main-quick.csv")
    told = sweeps.read_told(table)
    capsys.readouterr()
    assert run.main(["sweep", "main"]) == 1 and sweeps.read_told(table) == told  # its row is kept
    assert "1 of 1 runs failed" in capsys.readouterr().err
    table.unlink()  # whose rows count as finished
    assert run.main(["sweep", "main"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "2 of 2 runs failed" in error
    assert str(first.parent) in error and str(second.parent) in error
    assert len(sweeps.read_told(Path("results/main-quick.csv"))) == 2


def test_no_more_workers_are_asked_for_than_there_are_runs(one_head, monkeypatch):
    asked, parallel = [], sweeps.joblib.Parallel

    def noting(n_jobs, **options):
        asked.append(n_jobs)
        return parallel(n_jobs=1, **options)

    monkeypatch.setattr(sweeps.joblib, "Parallel", noting)
    assert run.main(["sweep", "main", "--index", "0", "--jobs", "30"]) == 0
    assert run.main(["sweep", "main", "--jobs", "2"]) == 0
    assert asked == [1, 2]


def test_a_run_of_a_sweep_prints_nothing(capsys, monkeypatch):
    def loud(config):
        print("training", config.seed)
        return {}, None

    monkeypatch.setattr(disentangle, "disentangle", loud)
    sweeps.run_one("Disentangle", {"seed": 3})
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", sweeps.EXPERIMENTS)
def test_every_experiment_of_a_sweep_has_its_function(name):
    module = sweeps.EXPERIMENTS[name]
    config = getattr(module, name)()
    assert callable(getattr(module, settings.experiment_of(config)))


@pytest.mark.slow  # ten seconds of waiting
def test_an_unreachable_scheduler_is_one_line(tiny_sweeps, capsys):
    assert run.main(["sweep", "main", "--dask", "tcp://127.0.0.1:1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("flags", [["--jobs", "0"], ["--index", "99"], ["--index", "-2"]])
def test_a_sweep_refuses_impossible_numbers(tiny_sweeps, capsys, flags):
    assert run.main(["sweep", "main", *flags]) == 2
    assert flags[0] in capsys.readouterr().err and not finished()


def test_choosing_eps_reads_the_sweep(one_head, capsys):
    assert run.main(["choose-eps"]) == 2 and "two finished seeds" in capsys.readouterr().err
    assert run.main(["sweep", "main"]) == 0 and run.main(["choose-eps"]) == 0
    out = capsys.readouterr().out
    assert "UDR chooses eps" in out and "below the best" in out
    assert run.main(["choose-eps", "--rho", "0.5"]) == 2


def test_choosing_eps_needs_two_seeds(capsys):
    rng = np.random.default_rng(0)
    z = rng.standard_normal((300, 4))
    cells = [(eps, seed) for eps in (0.1, 0.3) for seed in (0, 1)]
    runs = [{"eps": eps, "mcc": 0.9 - eps, "seed": seed} for eps, seed in cells]

    def features(row):  # at 0.3 the seeds agree
        if row["eps"] == 0.3:
            return z[:, :: 1 - 2 * row["seed"]]
        return z @ np.random.default_rng(row["seed"]).standard_normal((4, 4))

    sweeps.tell_agreement(runs, features)
    out = capsys.readouterr().out
    assert "chooses eps 0.3: MCC 0.6000, 0.2000 below the best, eps 0.1" in out
    with pytest.raises(ValueError, match="two finished seeds"):
        sweeps.tell_agreement(runs[:1], features)


def test_rows_of_runs_made_elsewhere_stay_in_the_table(tiny_sweeps, capsys):
    """Of `responses`, whose figures need the runs: these are made again, one by one."""
    assert run.main(["sweep", "responses"]) == 0
    table = Path("results/responses-quick.csv")
    told = sweeps.read_told(table)
    shutil.rmtree("results/disentangle")
    assert run.main(["figure", "fig11"]) == 2
    capsys.readouterr()
    assert run.main(["sweep", "responses", "--index", "0"]) == 0
    assert "1 runs, 0 there already" in capsys.readouterr().out
    assert sweeps.read_told(table).keys() == told.keys() and len(told) > 1


def test_a_row_tells_all_codes_that_made_it(one_head):
    assert run.main(["sweep", "main", "--index", "0"]) == 0
    config = next(Path("results").glob("*/*/config.json"))
    content = json.loads(config.read_text())
    config.write_text(json.dumps(content | {"code_before": ["older"], "device": "gpu"}))
    row, = sweeps.read_table("main", "quick", "results")
    assert row["code"] == f"older+{content['code']}"
    assert row["kernel"] == f"gpu, {content['kernel']}"


def test_rows_of_other_runs_are_kept_aside(one_head, capsys):
    assert run.main(["sweep", "main", "--index", "0"]) == 0
    table = Path("results/main-quick.csv")
    names, row = table.read_text().splitlines()
    table.write_text(f"{names}\nother{row[5:]}\n")
    shutil.rmtree("results/disentangle")
    assert run.main(["sweep", "main", "--index", "1"]) == 0
    assert "kept as results/main-quick.old.csv" in capsys.readouterr().out
    assert Path("results/main-quick.old.csv").read_text().splitlines()[1].startswith("other")
    assert len(table.read_text().splitlines()) == 2
    table.write_text(f"{names}\nthird{row[5:]}\n")  # nor is that table lost to the next one
    assert run.main(["sweep", "main", "--index", "1"]) == 0
    kept = [Path(f"results/main-quick.old{n}.csv").read_text() for n in ("", "1")]
    assert [text.splitlines()[1][:5] for text in kept] == ["other", "third"]


def test_a_run_that_fails_leaves_the_table(one_head, monkeypatch):
    assert run.main(["sweep", "main", "--index", "0"]) == 0
    before = Path("results/main-quick.csv").read_text()

    def fail(config):
        raise ValueError("stop")

    monkeypatch.setattr(disentangle, "disentangle", fail)
    monkeypatch.setattr(sweeps, "read_table", lambda *args, **more: [])
    assert run.main(["sweep", "main", "--index", "1"]) == 1
    assert Path("results/main-quick.csv").read_text() == before


def test_indices_are_of_different_runs(tiny_sweeps):
    """At eps 0 Lasso and ridge are one run."""
    for index in ("0", "1", "2"):
        assert run.main(["sweep", "fig8", "--scale", "tiny", "--index", index]) == 0
        assert len(finished()) == int(index) + 1


@pytest.mark.parametrize("line", ["run,mcc,code\na,0.5,b,c\n", "run,mcc\na,0.5\n"])
def test_a_table_of_another_form_is_named(line, tiny_sweeps, capsys):
    Path("results").mkdir()
    Path("results/main-quick.csv").write_text(line)
    assert run.main(["sweep", "main"]) == 2
    assert "not a table of this program" in capsys.readouterr().err


def test_encoders_that_only_a_table_tells_of_cannot_be_compared(one_head, capsys):
    assert run.main(["sweep", "main"]) == 0
    shutil.rmtree("results/disentangle")
    assert run.main(["choose-eps"]) == 2 and "encoders are needed" in capsys.readouterr().err


def test_eps_is_chosen_by_regression_and_told_by_means_over_seeds(capsys):
    """Seeds at 0.1 have the correlated factors, at 0.3 mixtures that are not correlated."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((2000, 5)) @ np.linalg.cholesky(0.2 * np.eye(5) + 0.8).T
    white = (z - z.mean(axis=0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(z.T)).T)
    runs = [
        {"eps": eps, "seed": seed, "mcc": 1 - eps - seed / 10}
        for eps in (0.1, 0.3)
        for seed in range(3)
    ]

    def features(row):
        rng = np.random.default_rng(row["seed"])
        if row["eps"] == 0.1:
            return z[:, rng.permutation(5)]
        return white @ np.linalg.qr(rng.standard_normal((5, 5)))[0]

    sweeps.tell_agreement(runs, features)
    out = capsys.readouterr().out
    assert "chooses eps 0.1: MCC 0.8000, 0.0000 below the best" in out and "MCC 0.6000" in out


def test_the_agreement_of_an_eps_is_that_of_its_middle_seed(capsys, monkeypatch):
    told = {0.1: [0.2, 0.5, 0.99], 0.3: [0.6, 0.6, 0.7]}
    monkeypatch.setattr(sweeps.metrics, "udr", lambda F, by: np.array(told[F[0]]))
    runs = [{"eps": eps, "seed": seed, "mcc": 0.5} for eps in told for seed in range(3)]
    sweeps.tell_agreement(runs, lambda row: row["eps"])
    out = capsys.readouterr().out
    assert "UDR 0.500" in out and "UDR 0.600" in out and "chooses eps 0.3" in out


def test_choosing_eps_encodes_images_as_trained_on_by_the_runs_asked_for(monkeypatch):
    rows = [
        {
            "run": f"{head}{rho}{alpha}{seed}",
            "folder": "f",
            "eps": 0.1,
            "seed": seed,
            "mcc": 0.5,
            "rho": rho,
            "alpha": alpha,
            "head": head,
        }
        for head in sweeps.INNER
        for rho in (0.0, 0.9)
        for alpha in (0.0, 1.0)
        for seed in (0, 1)
    ]
    seen, compared = [], []
    monkeypatch.setattr(sweeps, "read_table", lambda *args: rows)
    monkeypatch.setattr(data.Shapes3D, "images", lambda self, index: seen.append(index))
    monkeypatch.setattr(sweeps.apply, "encode_images", lambda path, images: images)
    monkeypatch.setattr(sweeps, "tell_agreement", lambda there, features: compared.extend(there))
    sweeps.choose_eps(sweeps.ChooseEps())
    assert [row["run"] for row in compared] == ["inner-lasso0.91.00", "inner-lasso0.91.01"]
    C = np.corrcoef(data.Shapes3D().factors[seen[0]].T)
    assert C[~np.eye(6, dtype=bool)].mean() > 0.7 and len(seen[0]) == 2000


TABLES = [
    path
    for path in sorted((ROOT / "docs").glob("*-*.csv"))
    if path.stem.rpartition("-")[0] in sweeps.NAMES
    and path.read_text().startswith("run,")
]


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_the_tables_of_docs_are_of_the_sweeps_as_they_are(path):
    """A changed cell, default or protocol would leave the pages with numbers of another run."""
    name, _, scale = path.stem.rpartition("-")
    runs = {sweeps.run_of(own).name for own in sweeps.sweep_configs(name, scale, "unused")}
    with open(path, newline="") as file:
        told = {row["run"] for row in csv.DictReader(file)}
    assert len(TABLES) >= 14 and told <= runs and len(told) >= 0.3 * len(runs)


def test_main_is_made_with_the_eps_of_the_curves():
    rows = sweeps.read_table("main", "quick", ROOT / "docs")
    told = {row["eps"] for row in rows if row["rho"] == 0.95}
    assert told and told <= set(sweeps.CURVE_EPS) and {0.03, 0.1, 0.3} == set(sweeps.CURVE_EPS)


@pytest.mark.parametrize("name", ["problem4", "pools", "exactness"])
def test_maps_on_one_encoder_s_features_have_one_r(name):
    """A map cannot change R: rows that tell two were made on two encoders, and do not compare."""
    with open(ROOT / "docs" / f"{name}-quick.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["on"] == "encoder"]
    found = {}
    for row in rows:
        found.setdefault((row["rho"], row["seed"]), []).append(float(row["r"]))
    assert found and all(max(r) - min(r) < 1e-9 for r in found.values())
