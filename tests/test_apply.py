"""A trained encoder on images of the user's, and runs side by side."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, arrays_of, result_of
from matplotlib import pyplot

import data
import metrics
import run
from experiments import apply, plots


@pytest.fixture
def checkpoint(finished, tmp_path, monkeypatch):
    """The path of a finished run's checkpoint, in a new folder to work in."""
    monkeypatch.chdir(tmp_path)
    return str(result_of(finished[0])[1] / "checkpoint.npz")


def test_encode_writes_the_encoders_features(checkpoint):
    images = np.random.default_rng(0).integers(256, size=(7, 64, 64, 3)).astype(np.uint8)
    np.savez("images.npz", images=images)
    np.savez("real.npz", images=images / np.float32(255))
    assert run.main(["encode", checkpoint, "images.npz", "--out", "F.npz"]) == 0
    assert run.main(["encode", checkpoint, "real.npz", "--out", "G.npz"]) == 0
    F, G = arrays_of("F.npz")["F"], arrays_of("G.npz")["F"]
    assert F.shape == (7, 6) and np.isfinite(F).all()
    np.testing.assert_allclose(F, G, rtol=1e-5, atol=1e-5)


def test_curves_of_runs_are_drawn(finished, checkpoint, tmp_path):
    assert run.main([*TINY, "--warmup", "0"]) == 0
    folders = [str(result_of(folder)[1]) for folder in (finished[0], tmp_path)]
    assert run.main(["curves", *folders, "--out", "c.png"]) == 0
    assert Path("c.png").read_bytes()[:4] == b"\x89PNG"
    assert run.main(["curves", f"ours={folders[0]}", *folders[1:], "--log"]) == 0
    config = result_of(tmp_path)[1] / "config.json"  # went on under other code, and has a setting
    content = json.loads(config.read_text()) | {"code_before": ["x"], "needed": 4}
    config.write_text(json.dumps(content))
    assert run.main(["curves", *folders[::-1]]) == 0
    assert run.main(["curves", "nowhere"]) == 2
    shutil.copytree(folders[0], "lr=0.01")
    assert run.main(["curves", "lr=0.01", "x=lr=0.01"]) == 0  # the folder, also of a label


def test_curves_that_cannot_be_drawn_are_refused(finished, tmp_path, capsys):
    folder = str(result_of(finished[0])[1])
    assert run.main(["curves", folder, "--out", "c.csv"]) == 2
    assert "expected a name of a picture" in capsys.readouterr().err and not Path("c.csv").exists()
    (tmp_path / "other").mkdir()  # a run of another command is not called damaged
    (tmp_path / "other" / "config.json").write_text("{}")
    (tmp_path / "other" / "metrics.jsonl").write_text('{"step": 1, "seconds": 2.0, "loss": 1}\n')
    assert run.main(["curves", str(tmp_path / "other")]) == 2
    assert "no run that tells an MCC" in capsys.readouterr().err


def test_curves_show_all_of_a_run_and_its_name(finished, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(plots, "save", lambda fig, path: seen.append(fig.axes[0]))
    folder = result_of(finished[0])[1]
    lines = [json.loads(line) | {"mcc": 0.1} for line in (folder / "metrics.jsonl").open()]
    low = shutil.copytree(folder, tmp_path / "low")
    (low / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run.main(["curves", str(low)]) == run.main(["curves", f"_a={low}", f"b={folder}"]) == 0
    assert seen[0].get_ylim()[0] == 0.1 and seen[0].get_legend_handles_labels()[1][0] == "low"
    assert [text.get_text() for text in seen[1].get_legend().get_texts()][:2] == [" _a", "b"]


def test_chance_is_that_of_a_run_s_factors_and_features():
    mine, theirs, few = {"features": 8}, {"source": "dsprites", "m": 10}, {"needed": 4}
    found = [apply.chance_of(content) for content in (mine, theirs, few | mine, {})]
    assert found == [metrics.chance(*pair) for pair in ((6, 8), (5, 10), (4, 8), (6, 6))]


def test_runs_of_one_label_have_one_colour_and_one_line_in_the_legend():
    _, ax = plots.subplots(1, 1, (3, 2))
    rows = [{"step": 1, "seconds": 60, "mcc": 0.5}, {"step": 2, "seconds": 180, "mcc": 0.6}]
    apply.draw_runs(ax, ["a", "$b", "a"], [rows] * 3, "minutes")
    drawn = [line for line in ax.lines if len(line.get_xdata())]
    assert [line.get_color() for line in drawn] == ["C0", "C1", "C0"]
    assert [list(line.get_xdata()) for line in drawn] == [[1, 3]] * 3
    assert ax.get_legend_handles_labels()[1] == ["a", r"\$b"]
    pyplot.close("all")


def test_when_a_run_reached_a_level(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(apply, "REACHED", (0.5, 0.7, 0.9))
    runs = [
        [{"step": 1, "seconds": 30, "mcc": 0.6}, {"step": 2, "seconds": 60, "mcc": 0.4}],
        [{"step": 1, "seconds": 3, "mcc": 0.1}, {"step": 5, "seconds": 9, "mcc": 0.7}],
    ]
    apply.write_reached(tmp_path / "c.csv", ["a, b", "c"], runs)
    lines = (tmp_path / "c.csv").read_text().splitlines()
    assert lines[0] == "label,mcc,step,minutes"
    assert lines[1:] == ['"a, b",0.5,1,0.500', "c,0.5,5,0.150", "c,0.7,5,0.150"]
    assert "a, b: MCC 0.5 after 0.5 minutes, 1 steps" in capsys.readouterr().out


def test_real_images_beside_their_renders(checkpoint, capsys, real_data):
    assert run.main(["real", checkpoint, str(real_data("3dshapes_real_images.npz"))]) == 0
    assert Path("results/real.png").exists()
    assert capsys.readouterr().out.count("correlation of real and rendered") == 6
    assert run.main(["real", checkpoint, checkpoint]) == 2


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 64, 64)),
        np.zeros((0, 64, 64, 3)),
        np.zeros((2, 64, 64, 3), int),
        np.full((2, 64, 64, 3), 200.0),
        np.full((2, 64, 64, 3), -0.5),
        np.full((2, 64, 64, 3), np.nan),
    ],
)
def test_images_of_another_form_are_refused(images, tmp_path):
    np.savez(tmp_path / "a.npz", images=images)
    with pytest.raises(ValueError, match="images"):
        apply.read_images(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="images and factors"):
        apply.read_images(tmp_path / "a.npz", "factors")


@pytest.mark.parametrize(
    "factors",
    [
        np.full((2, 6), 99),
        np.full((2, 6), -1),
        np.zeros((2, 6), bool),
        np.full((2, 6), 0.5),
        np.full((2, 6), np.nan),
        np.zeros((2, 5), int),
        np.zeros((3, 6), int),
        np.array(1),
    ],
)
def test_factors_that_are_no_indices_are_refused(factors, checkpoint, capsys):
    np.savez("a.npz", images=np.zeros((2, 64, 64, 3), np.uint8), factors=factors)
    assert run.main(["real", checkpoint, "a.npz"]) == 2
    err = capsys.readouterr().err
    assert "a.npz: expected factors" in err and err.count("\n") == 1


def test_an_encoder_of_other_inputs_is_refused(checkpoint, capsys):
    for shape in ((2, 32, 32, 3), (2, 64, 64, 1)):
        np.savez("a.npz", images=np.zeros(shape, np.uint8))
        assert run.main(["encode", checkpoint, "a.npz"]) == 2
        assert "does not take images" in capsys.readouterr().err


def test_outputs_are_tried_before_the_work(checkpoint, capsys):
    np.savez("a.npz", images=np.zeros((2, 64, 64, 3), np.uint8))
    for words in (["theory"], ["encode", checkpoint, "a.npz"], ["bench"], ["render"]):
        assert run.main([*words, "--out", "missing/x.png"]) == 2
        assert "--out missing/x.png: cannot be written" in capsys.readouterr().err


def test_real_images_are_compared_in_deviations_of_rendered_ones(tmp_path, monkeypatch, capsys):
    """Features that are an image's mean colours; the real images are darker by a tenth."""
    shapes = data.Shapes3D()
    rows = np.random.default_rng(1).integers(len(shapes), size=40)
    x, told = shapes.images(rows), {}
    np.savez(tmp_path / "a.npz", images=np.float32(0.9 * x), factors=shapes.factors[rows])
    monkeypatch.setattr(apply, "encode_images", lambda path, x: 7 + 5 * x.mean(axis=(1, 2)))
    monkeypatch.setattr(apply.plots, "save", lambda fig, path: told.update(axes=fig.axes))
    apply.real(apply.Real("c", str(tmp_path / "a.npz"), str(tmp_path / "r.png")))
    colours = shapes.images(np.random.default_rng(0).integers(len(shapes), size=2000))
    mean, deviation = (f(colours.mean(axis=(1, 2)), axis=0) for f in (np.mean, np.std))
    own = x.mean(axis=(1, 2))
    off = np.sqrt(np.mean((0.1 * own / deviation) ** 2, axis=0))
    lines = capsys.readouterr().out.splitlines()
    for j in range(3):
        assert lines[j] == (f"feature {j}: correlation of real and rendered 1.000, "
                            f"root mean square difference {off[j]:.3f} standard deviations")
        shown = told["axes"][1 + j].lines[0].get_xdata()
        np.testing.assert_allclose(shown, ((own - mean) / deviation)[:, j], atol=1e-3)


def test_agreement_is_correlation_row_by_row(tmp_path, monkeypatch, capsys):
    F = np.random.default_rng(0).standard_normal((50, 2))
    monkeypatch.setattr(apply.plots, "save", lambda fig, path: None)
    apply.draw_real(np.c_[-2 * F[:, 0], F[:, 1] + 1], F, np.zeros((2, 2, 3)), Path("r.png"))
    first, second = capsys.readouterr().out.splitlines()
    assert "rendered -1.000" in first and "rendered 1.000" in second
    assert "difference 1.000 standard" in second
