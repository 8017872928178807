"""run.py tasks: the user's own table or images, in one command."""

import csv
import json
import types
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_wine
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from test_estimator import planted
from test_tables import FAST, linear_table, write_csv

import run
from experiments import report, tables, tasks

LINEAR = ["--encoder", "linear", *FAST]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def result():
    (path,) = Path("results").glob("tasks/*/result.json")
    return json.loads(path.read_text()), path.parent


def lines_of(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def write_planted(**more):
    X, Y, z = planted(0)
    np.savez("table.npz", x=X, Y=Y, factors=z, **more)
    return X, Y, z


def test_a_table_becomes_a_report(capsys):
    write_planted()
    assert run.main(["tasks", "table.npz", *LINEAR]) == 0
    out = capsys.readouterr().out
    told, folder = result()
    assert told["mcc"] > 0.99 and 0.7 < told["chance"] < 0.9 and told["features"] == 5
    assert len(told["targets"]) == 40 and told["test_rows"] == 200 and 0.1 < told["zero"] < 0.9
    assert all(len(values) == 40 for values in told["scores"].values())
    assert min(told["score"], told["raw"], told["pls"]) > 0.9
    assert "(28 more: targets.csv)" in out and "MCC 0.99" in out and "feature4" in out
    assert out.splitlines()[-1].startswith("The features predict as well as the raw input")
    files = {path.name for path in folder.iterdir()}
    assert files >= {"report.html", "weights.png", "features.npz", "checkpoint.npz"}
    weights = lines_of(folder / "weights.csv")
    assert weights[0] == ["target", *(f"feature{j}" for j in range(5))] and len(weights) == 41
    W = np.array(weights[1:])[:, 1:].astype(float)
    assert (W < 0).any() and (W == 0).mean() == pytest.approx(told["zero"])
    assert len(lines_of(folder / "features.csv")) == 6
    with np.load(folder / "features.npz") as file:
        F, W, b, test = (file[name] for name in ("F", "W", "b", "test"))
    Y = np.load("table.npz")["Y"]
    on = test & np.isfinite(Y[:, 3])
    found = r2_score(Y[on, 3], F[on] @ W[3] + b[3])
    assert told["scores"]["score"][3] == pytest.approx(found)
    assert run.main(["encode", str(folder / "checkpoint.npz"), "table.npz", "--out", "F.npz"]) == 0
    assert "Y (1000, 40)" in capsys.readouterr().out
    with np.load("F.npz") as file:
        np.testing.assert_allclose(file["F"], F, atol=1e-8)
        np.testing.assert_allclose(file["Y"], F @ W.T + b, atol=1e-8)
        assert file["targets"][3] == "target 3"
    (folder / "features.npz").rename("kept.npz")  # without predictors features alone
    assert run.main(["encode", str(folder / "checkpoint.npz"), "table.npz", "--out", "G.npz"]) == 0
    assert np.load("G.npz").files == ["F"]
    Path("kept.npz").rename(folder / "features.npz")
    capsys.readouterr()
    assert run.main(["tasks", "table.npz", *LINEAR]) == 0
    again = capsys.readouterr().out
    assert "already there" in again and again.splitlines()[3:] == out.splitlines()[2:]


@pytest.mark.slow
def test_targets_that_the_encoder_never_saw_are_learned_from_few_labels(capsys):
    X, Y, _ = write_planted()
    assert run.main(["tasks", "table.npz", "--new-targets", "0.25", *LINEAR]) == 0
    told, _ = result()
    assert len(told["targets"]) == 30 and told["new"]["count"] == 10
    assert list(told["new"]["scores"]) == ["10", "20", "50", "all"]
    ten = told["new"]["scores"]["10"]
    assert ten[0] > 0.9 > ten[2] + 0.05  # few labels: the features are better than the raw input
    assert "10 targets that the encoder never saw" in capsys.readouterr().out
    Y = np.where(np.isin(np.arange(40), [int(n.split()[1]) for n in told["targets"]]), Y, 99.0)
    np.savez("other.npz", x=X, Y=Y + np.arange(1000)[:, None], factors=X)  # the new ones are others
    config = tasks.TableTasks(data="table.npz", new_targets=0.25)
    new = tasks.new_targets(config, tables.read_rows(config))
    assert new.sum() == 10 and (Y[0, new] == 99).all()
    assert run.main(["tasks", "table.npz", "--new-targets", "0.001", *LINEAR]) == 2
    assert "--new-targets 0.001: none of 40" in capsys.readouterr().err


def test_the_last_line_says_where_the_raw_input_predicts_better(capsys):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 6))
    np.savez("table.npz", x=x, Y=x @ np.linalg.qr(rng.standard_normal((6, 6)))[0])
    assert run.main(["tasks", "table.npz", "--features", "2", *LINEAR]) == 0  # too few
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith("The raw input predicts better (R^2 0.")
    assert out.splitlines()[-1].endswith("to predict, take ridge.")
    assert "note: not identified" in out


def test_the_order_of_rows_does_not_choose_a_rival():
    """Folds of rows that are sorted by a target would be told by others of other values."""
    values = load_wine().data
    x, Y = np.delete(values, np.s_[2::3], axis=1), values[:, 2::3]
    test, scores = np.random.default_rng(0).permutation(len(x)) % 4 == 0, []
    for order in (np.arange(len(x)), np.argsort(Y[:, 0])):
        rows = tables.Rows(x[order], Y[order], np.isfinite(Y), None, test[order], list("abcd"), [])
        found = tasks.peers(tasks.raw_input(rows), rows, np.arange(4), False)["pls"]
        scores.append(r2_score(rows.Y[rows.test], found))
    assert scores[1] == pytest.approx(scores[0], abs=0.05)


def test_a_target_of_one_value_is_in_no_mean(capsys):
    x, Y = linear_table(N=60)
    np.savez("table.npz", x=x, Y=np.c_[Y, np.ones(60)])
    assert run.main(["tasks", "table.npz", "--features", "3", *LINEAR]) == 0
    found, _ = result()
    assert found["score"] == pytest.approx(np.mean(found["scores"]["score"][:3]))
    assert "of one value in the rows held out, and in no mean: target 3" in capsys.readouterr().out


def test_within_two_standard_errors_the_last_line_says_alike():
    told = {"likelihood": "gaussian", "score": 0.9, "raw": 0.93, "margin": 0.014}
    assert report.verdict(told).startswith("The raw input predicts better")
    assert report.verdict(told | {"margin": 0.016}).startswith("The features predict as well")
    alike = report.verdict(told | {"raw": 0.895, "margin": 0.0})
    assert alike.startswith("The features predict as well")
    rng = np.random.default_rng(0)
    Y, differences = rng.standard_normal((400, 300, 2)), []
    for y in Y:  # of many draws the deviation of the difference of two mean R^2
        rows = tables.Rows(None, y, np.isfinite(y), None, np.full(300, True), ["a", "b"], [])
        ours, raw = (y + 0.5 * rng.standard_normal(y.shape) for _ in range(2))
        error = tasks.standard_error(rows, [0, 1], ours, raw, False)
        differences.append(r2_score(y, ours) - r2_score(y, raw))
    assert error == pytest.approx(np.std(differences), rel=0.15)
    right = Y[0] > 0
    rows = rows._replace(Y=right, known=np.full(right.shape, True))
    half = np.where(np.arange(300)[:, None] < 75, ~right, right)
    error = tasks.standard_error(rows, [0, 1], half, right, True)  # a quarter of the rows is wrong
    assert error == pytest.approx((0.25 * 0.75 / 299) ** 0.5)
    Y = np.c_[Y[0][:, 0], np.zeros(300)]                            # R^2 of a constant target is 0
    rows, errors = rows._replace(Y=Y, known=np.isfinite(Y)), []
    for size in (0, 100):
        ours = Y + 0.1 * rng.standard_normal(Y.shape) * [1, size]
        errors.append(tasks.standard_error(rows, [0, 1], ours, 0.9 * Y, False))
    assert errors[1] == pytest.approx(errors[0], rel=0.3)


def test_a_column_of_a_csv_file_says_what_is_held_out(capsys):
    x, Y = linear_table(N=40, missing=0)
    late = (np.arange(40) >= 30).astype(int)
    write_csv([["a", "b", "c", "d", "y", "late"], *np.c_[x, Y[:, 0], late].tolist()])
    line = ["tasks", "table.csv", "--targets", "y", "--features", "1", *LINEAR]
    assert run.main([*line, "--test", "late"]) == 0
    told, folder = result()
    assert told["test_rows"] == 10 and np.load(folder / "features.npz")["test"].tolist() == [
        False] * 30 + [True] * 10
    rows = tables.read_csv("table.csv", ["y"], test="late")
    assert rows["inputs"] == ["a", "b", "c", "d"]
    assert run.main([*line, "--test", "a"]) == 2 and run.main([*line, "--test", "later"]) == 2
    err = capsys.readouterr().err
    assert "expected True or False" in err and "did you mean late?" in err
    np.savez("table.npz", x=x, Y=Y)
    assert run.main(["tasks", "table.npz", "--test", "late", *LINEAR]) == 2


@pytest.mark.parametrize("rows", [4, 2])
def test_a_few_rows_are_enough(capsys, rows):
    x, Y = linear_table(N=10, missing=0)
    np.savez("table.npz", x=x, Y=Y, test=np.arange(10) >= rows)
    assert run.main(["tasks", "table.npz", "--features", "1", *LINEAR]) == 0


def test_a_warning_names_the_target_that_it_is_of():
    notes = "told by their share alone: 2 of target 1 (in 2 of 160 rows), a of target 0 (in 1)"
    found = tasks.with_names(notes, ["p", "q"])
    assert "2 of q (in 2 of 160 rows), a of p (in 1)" in found
    assert tasks.with_names("not identified: feature0 (too few targets tell it apart)", []) == (
        "not identified: feature0 (too few targets tell it apart)")
    rare = "told by their share alone: target 77 of target 0 (in 2 of 60 rows)"
    assert tasks.with_names(rare, ["p"]).endswith("target 77 of p (in 2 of 60 rows)")


def test_only_our_own_squares_are_typeset():
    assert report.typeset("R^2 <") == "R² &lt;" and report.escaped("R^2") == "R^2"


def test_whole_numbers_are_named_as_they_are_written():
    model = types.SimpleNamespace(
        classes_=[np.array([0.0, 1.0]), np.array(["a", "b"])], coef_=np.zeros((2, 2, 3)))
    names, _ = report.named_weights(model, {"targets": ["k", "t"]})
    assert names == ["k: 0", "k: 1", "t: a", "t: b"]


def test_the_report_of_a_linear_encoder_has_no_network(capsys):
    x, Y = linear_table(N=700)
    np.savez("table.npz", x=x, Y=Y)
    flags = ["--features", "3", "--steps", "3", "--hidden", "4", *FAST]
    assert run.main(["tasks", "table.npz", *flags]) == 0
    told, folder = result()
    assert told["encoder"] == "linear" and "mlp" in told["held_out"]
    assert not (folder / "training.png").exists()


def test_ridge_of_the_raw_input_is_on_the_rows_with_labels():
    x, Y = linear_table(missing=0.3)
    rows = tables.checked({"x": x * 3 + 5, "Y": Y}, False, 0)
    found = tasks.peers(tasks.raw_input(rows), rows, np.arange(3), False)
    for k in range(3):
        on = ~rows.test & np.isfinite(Y[:, k])
        own = Ridge(1e-3).fit(x[on], Y[on, k]).predict(x[rows.test])
        np.testing.assert_allclose(found["raw"][:, k], own, atol=0.1)
    assert found["pls"].shape == found["raw"].shape
    assert tasks.score_of(rows, 0, found["pls"][:, 0], False) > 0.95


def test_a_csv_file_with_awkward_names(capsys):
    x, Y = linear_table()
    names = ["a", "b", "<c>", "price_$", "CA$_$ x", "$$", "y, 2"]
    write_csv([["", *names], *np.c_[np.arange(80), x, Y].tolist()], delimiter=";")
    words = ["--targets", "CA$_$ x", "$$", '"y, 2"', "--features", "2", *LINEAR]
    assert run.main(["tasks", "table.csv", *words]) == 0
    out = capsys.readouterr().out
    assert "left out: column 1, which has no name" in out and "<c> " in out
    told, folder = result()
    assert told["targets"] == ["CA$_$ x", "$$", "y, 2"]
    page = (folder / "report.html").read_text()
    assert "&lt;c&gt;" in page and "<c>" not in page and "data:image/png;base64" in page
    assert "http" not in page
    header = lines_of(folder / "features.csv")[0]
    assert header == ["feature", "stability", "identified", "a", "b", "<c>", "price_$"]
    swapped = np.stack([x[:, 3], x[:, 2], Y[:, 0], x[:, 1], x[:, 0]], axis=1)
    write_csv([["price_$", "<c>", "more", "b", "a"], *swapped.tolist()], "new.csv")
    checkpoint = str(folder / "checkpoint.npz")
    assert run.main(["encode", checkpoint, "new.csv", "--out", "F.npz"]) == 0
    assert "left out: more" in capsys.readouterr().out
    found, expected = (np.load(path)["F"] for path in ("F.npz", folder / "features.npz"))
    np.testing.assert_allclose(found, expected, atol=1e-8)
    write_csv([["price_$", "b", "a"], *x[:, [3, 1, 0]].tolist()], "short.csv")
    assert run.main(["encode", checkpoint, "short.csv"]) == 2
    assert "no column <c>" in capsys.readouterr().err
    np.savez("wrong.npz", x=x[:, :3])
    assert run.main(["encode", checkpoint, "wrong.npz"]) == 2


def test_classes_of_a_csv_file(capsys):
    x, Y = linear_table(N=300)
    words = np.where(Y[:, :2] > 0, "yes", "no").astype(object)
    words[::9, 0] = ""
    write_csv([["a", "b", "c", "d", "one", "two"], *np.c_[x.astype(object), words].tolist()])
    flags = ["--targets", "one", "two", "--likelihood", "categorical", "--features", "2", *LINEAR]
    assert run.main(["tasks", "table.csv", *flags, "--new-targets", "0.5"]) == 0
    out = capsys.readouterr().out
    told, folder = result()
    assert told["score"] > 0.85 and told["raw"] > 0.85 and "pls" not in told
    assert "logistic, raw" in out and "accuracy on 60 rows" in out
    names = [line[0] for line in lines_of(folder / "weights.csv")[1:]]
    assert [name.split(": ")[1] for name in names] == ["no", "yes"]
    assert len(told["new"]["scores"]["50"]) == 2
    with np.load(folder / "features.npz") as kept:
        assert kept["W"].shape == (1, 2, 2) and kept["b"].shape == kept["fitted"].shape == (1, 2)
        assert kept["targets"].tolist() == told["targets"]
        assert kept["classes.0"].tolist() == ["no", "yes"]
        logits = kept["F"] @ kept["W"][0].T + kept["b"][0]
        asked = words[:, ["one", "two"].index(*told["targets"])]
        right = kept["classes.0"][logits.argmax(axis=1)] == asked
    assert right.mean() > 0.8
    assert run.main(["encode", str(folder / "checkpoint.npz"), "table.csv", "--out", "F.npz"]) == 0
    with np.load("F.npz") as file:
        assert ((file["Y"][:, 0] == asked) == right).all() and len(file["Y"]) == 300


@pytest.mark.parametrize("encoder", ["linear", "convnet"])
def test_images_become_a_report(encoder):
    rng = np.random.default_rng(0)
    place = rng.integers(2, 8, size=(200, 2))
    x = np.exp(-((np.indices((10, 10)) - place[..., None, None]) ** 2).sum(axis=1) / 4)
    Y = place @ rng.standard_normal((2, 5))
    np.savez("images.npz", x=(255 * x).astype(np.uint8), Y=Y, factors=place)
    words = ["--encoder", encoder, "--features", "2", "--steps", "5", *FAST]
    assert run.main(["tasks", "images.npz", *words]) == 0
    told, folder = result()
    assert told["encoder"] == encoder and (folder / "maps.png").exists()
    assert (folder / "training.png").exists() == (encoder == "convnet")
    checkpoint = str(folder / "checkpoint.npz")
    assert run.main(["encode", checkpoint, "images.npz", "--out", "F.npz"]) == 0
    np.testing.assert_allclose(
        np.load("F.npz")["F"], np.load(folder / "features.npz")["F"], atol=1e-4)
    assert run.main(["encode", checkpoint, "table.csv"]) == 2


@pytest.mark.parametrize("K", [1, 3])
def test_few_targets_are_drawn_whole(K, monkeypatch):
    """The picture is wide enough for its texts, and signed."""
    x, Y = linear_table(K=K)
    np.savez("few.npz", x=x, Y=Y[:, 0] if K == 1 else Y)
    drawn = []
    monkeypatch.setattr(report.plots, "save", lambda fig, path: drawn.append(fig))
    monkeypatch.setattr(report.results, "write_text", lambda *_: None)
    assert run.main(["tasks", "few.npz", "--features", "1", *LINEAR]) == 0
    fig, = drawn
    fig.canvas.draw()
    box = fig.get_tightbbox()
    assert box.x0 > -0.05 and box.x1 < fig.get_figwidth() + 0.05
    assert box.y0 > -0.05 and box.y1 < fig.get_figheight() + 0.05
    assert fig.axes[0].images[0].get_clim() == (-1, 1)


def test_settings_that_do_not_fit_are_one_line(capsys):
    x, Y = linear_table()
    np.savez("table.npz", x=x, Y=(Y > 0).astype(int))
    for words, told in (
            (["--likelihood", "categorical", "--head", "inner-ridge"], "head: found 'inner-ridge'"),
            (["--features", "many"], "--features: found many"),
            (["--features", "0"], "--features: found 0"),
            (["--features", "5", "--encoder", "linear"], "at most the rank of X, 4"),
            (["--encoder", "convnet"], "encoder: found 'convnet'")):
        assert run.main(["tasks", "table.npz", *words, *FAST]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and told in err


def test_weights_are_in_deviations_and_correlations_of_the_rows_of_training():
    X, Y, _ = planted(0)
    np.savez("table.npz", x=X, Y=Y)
    assert run.main(["tasks", "table.npz", *LINEAR]) == 0
    (path,) = Path("results").glob("tasks/*/result.json")
    told, folder = json.loads(path.read_text()), path.parent
    with np.load(folder / "features.npz") as file:
        F, W, test = (file[name] for name in ("F", "W", "test"))
    shown = np.array(lines_of(folder / "weights.csv")[1:])[:, 1:].astype(float)
    deviation = np.nanstd(Y[~test], axis=0)
    np.testing.assert_allclose(shown * deviation[:, None], W, rtol=1e-4, atol=1e-9)
    C = np.array(lines_of(folder / "features.csv")[1:])[:, 3:].astype(float)
    m = F.shape[1]
    np.testing.assert_allclose(
        C, np.corrcoef(F[~test].T, X[~test].T)[:m, m:], rtol=1e-4, atol=1e-5)
    for c, found in zip(C, told["follows"], strict=True):
        first = np.argsort(-np.abs(c))[:4]
        assert [name for name, _ in found] == [f"x{i}" for i in first]
        assert [value for _, value in found] == pytest.approx(c[first].tolist(), abs=1e-4)
    assert any(value < 0 for found in told["follows"] for _, value in found)


def test_the_raw_input_is_in_units_of_the_rows_of_training():
    x, Y = linear_table(missing=0)
    x[:8] *= 100
    rows = tables.checked({"x": x, "Y": Y, "test": np.arange(80) < 8}, False, 0)
    X = tasks.raw_input(rows)
    np.testing.assert_allclose(X[8:].mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(X[8:].std(axis=0), 1)


def test_new_targets_are_fitted_on_rows_of_training_and_told_in_their_units(monkeypatch):
    x, Y = linear_table(N=120, missing=0.2)
    rows = tables.checked({"x": x, "Y": 7 * Y + 1000}, False, 0)
    new, on = np.array([False, True, True]), []
    fits = tasks.fits_of_new

    def spy(F, raw, rows, k, some, classes):
        on.append((k, some))
        return fits(F, raw, rows, k, some, classes)

    monkeypatch.setattr(tasks, "fits_of_new", spy)
    settings = types.SimpleNamespace(likelihood="gaussian", seed=0)
    told = tasks.scores_of_new(rows, x, x, new, settings)
    assert told["count"] == 2 and list(told["scores"]) == ["10", "20", "50", "all"]
    assert {len(some) for _, some in on[:6]} == {10, 20, 50}
    for k, some in on:
        assert k in (1, 2) and not rows.test[some].any() and rows.known[some, k].all()
    assert min(told["scores"]["all"]) > 0.95


def test_the_inputs_that_a_feature_follows_are_those_of_largest_correlation():
    names = ["a", "b", "c", "d", "e"]
    found = report.followed(names, np.array([0.1, -0.9, 0.5, 0.0, -0.2]))
    assert found == [("b", -0.9), ("c", 0.5), ("e", -0.2), ("a", 0.1)]


def test_a_feature_is_called_identified_where_it_is():
    told = {"stability": [0.5, None], "identified": [False, True], "follows": [[], []]}
    _, lines = report.feature_table(told)
    assert lines == [["feature0", "0.50", "no"], ["feature1", "", "yes"]]
