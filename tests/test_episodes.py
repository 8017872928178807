"""Few-shot episodes: glyphs, Omniglot, npz files of labelled images and 3D Shapes."""

import io
import itertools
import os
import pickle
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

import data
from experiments import episodes


@pytest.fixture(scope="module")
def glyphs():
    return episodes.glyphs()


def test_glyphs_have_16_fonts_and_scripts_apart(glyphs):
    assert {split: len(np.unique(labels)) for split, (_, labels) in glyphs.items()}[
        "test"
    ] == 57  # Cyrillic
    for x, labels in glyphs.values():
        assert x.shape[1:] == (28, 28, 1) and x.dtype == np.uint8 and x.max() == 255
        assert (np.unique(labels, return_counts=True)[1] == 16).all()
    episodes.refuse_shared(glyphs)


def test_an_episode_is_disjoint_and_seeded(glyphs):
    source = episodes.ImageEpisodes(glyphs)
    index, Y = source.sample(np.random.default_rng(0), "train", 5, 3, 4)
    assert index.shape == (35,) and len(set(index)) == 35 and Y.shape == (35, 5)
    assert (Y[:15].sum(axis=0) == 3).all() and (Y[15:].sum(axis=0) == 4).all()  # support first
    labels = glyphs["train"][1][index]
    for c in range(5):
        assert len(set(labels[Y[:, c] == 1])) == 1
    assert len(set(labels)) == 5
    again, _ = source.sample(np.random.default_rng(0), "train", 5, 3, 4)
    assert np.array_equal(index, again)
    with pytest.raises(ValueError, match="--way"):
        source.sample(np.random.default_rng(0), "test", 5, 10, 10)  # 16 fonts only


def test_training_images_move_and_others_do_not(glyphs):
    source = episodes.ImageEpisodes(glyphs)
    index = np.arange(40)
    still, moved = (
        source.images("train", index),
        source.images("train", index, rng=np.random.default_rng(0)),
    )
    np.testing.assert_array_equal(still, glyphs["train"][0][index].astype(np.float32) / 255)
    assert (
        moved.shape == still.shape
        and 0.3 < (moved != still).any(axis=(1, 2, 3)).mean()
        and moved.max() <= 1
    )


def test_noise_has_its_deviation_and_is_drawn_once(glyphs):
    grey = {split: (np.full((50, 9, 9, 1), 128, np.uint8), labels[:50])
            for split, (_, labels) in glyphs.items()}
    noisy = episodes.with_noise(grey, 0.1)
    for split, (x, labels) in noisy.items():
        assert x.dtype == np.uint8 and labels is grey[split][1]
        assert abs(x.std() / 255 - 0.1) < 0.005 and abs(x.mean() - 127.5) < 1.5
    assert np.array_equal(noisy["test"][0], episodes.with_noise(grey, 0.1)["test"][0])
    assert not np.array_equal(noisy["test"][0], noisy["val"][0])
    black = {"train": (np.zeros((50, 9, 9, 1), np.uint8), None)}
    assert 0.4 < np.mean(episodes.with_noise(black, 0.5)["train"][0] == 0) < 0.6  # cut, not wrapped


def test_colour_jitter_stays_in_range_and_mirrors_half():
    x = np.random.default_rng(0).integers(256, size=(400, 6, 6, 3)).astype(np.uint8)
    out = episodes.jitter_colours(np.random.default_rng(1), x, strength=0.0).astype(int)
    same = (np.abs(out - x) <= 1).all(axis=(1, 2, 3))
    mirrored = (np.abs(out - x[:, :, ::-1]) <= 1).all(axis=(1, 2, 3))
    assert (same | mirrored).all() and 0.4 < mirrored.mean() < 0.6
    assert episodes.jitter_colours(np.random.default_rng(1), x).dtype == np.uint8


def test_omniglot_is_split_by_alphabet(real_data):
    splits = episodes.omniglot(
        [real_data("images_background_small1.zip"), real_data("images_background_small2.zip")]
    )
    alphabets = {
        split: {name.split("/")[0] for name in labels} for split, (_, labels) in splits.items()
    }
    assert (
        sum(len(names) for names in alphabets.values()) == 8 == len(set.union(*alphabets.values()))
    )  # Greek and Latin merged
    assert [len(alphabets[split]) for split in ("train", "val", "test")] == [5, 1, 2]
    episodes.refuse_shared(splits)
    x, labels = splits["test"]
    assert (np.unique(labels, return_counts=True)[1] == 20).all() and x.shape[1:] == (28, 28, 1)
    assert x.mean() < 60  # white ink on black


def test_splits_that_share_a_class_or_an_image_are_refused(glyphs):
    x, labels = glyphs["val"]
    for other in ((x[:16], np.array(["new"] * 16)), (255 - x[:16], labels[:16])):
        with pytest.raises(ValueError, match="two splits share"):
            episodes.refuse_shared({"train": (x, labels), "test": other})


def drawings(alphabets, extra=()):
    """A zip of two characters of each alphabet, four drawings each, all different."""
    out, rng = io.BytesIO(), np.random.default_rng(0)
    with zipfile.ZipFile(out, "w") as file:
        for a, c, d in itertools.product(alphabets, (1, 2), range(4)):
            name = f"{a}/character0{c}/0{d}.png"
            picture = io.BytesIO()
            Image.fromarray(rng.integers(256, size=(35, 35), dtype=np.uint8)).save(picture, "PNG")
            file.writestr(f"images/{name}", picture.getvalue())
        for name, content in extra:
            file.writestr(name, content)
    return out.getvalue()


def test_omniglot_zips_as_people_have_them(tmp_path):
    path = tmp_path / "o.zip"
    of_macos = ("__MACOSX/images/a/character01/._01.png", "images/a/character01/._01.png")
    path.write_bytes(drawings("abc", [(name, b"no image") for name in of_macos]))
    splits = episodes.omniglot([path])
    assert all(len(x) for x, _ in splits.values())  # three alphabets, one for each split
    with zipfile.ZipFile(path) as file:
        image = file.read("images/a/character01/00.png")
    more = [(f"images/{a}/character03/0{d}.png", image) for a in "bc" for d in range(2)]
    path.write_bytes(drawings("abc", more))
    splits = episodes.omniglot([path])
    episodes.refuse_shared(splits)


def test_only_png_is_opened(tmp_path):
    """Of an EPS Pillow would start Ghostscript."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n"
    large = io.BytesIO()
    Image.new("1", (5000, 5000)).save(large, "PNG")
    for content in (eps, large.getvalue(), b""):
        (tmp_path / "o.zip").write_bytes(drawings("abc", [("i/a/character01/09.png", content)]))
        with pytest.raises(ValueError, match="o.zip"):
            episodes.omniglot([tmp_path / "o.zip"])


def write_splits(folder):
    """A small data set in three npz files named as MetaOptNet's miniImageNet."""
    rng = np.random.default_rng(0)
    for split, count in (("train_phase_train", 8), ("val", 6), ("test", 6), ("train_phase_val", 3)):
        colour = rng.random((count, 1, 1, 1, 3)) * 200
        x = (colour + 55 * rng.random((count, 20, 84, 84, 3))).astype(np.uint8)
        np.savez(
            folder / f"miniImageNet_category_split_{split}.npz",
            data=x.reshape(-1, 84, 84, 3),
            labels=np.repeat(np.arange(count), 20),
        )


def test_npz_files_of_three_splits_are_read(tmp_path):
    write_splits(tmp_path)
    (tmp_path / "._miniImageNet_category_split_train_phase_train.npz").write_bytes(b"macOS")
    splits = episodes.load_splits(tmp_path)
    assert {
        split: (x.shape[0], len(np.unique(labels))) for split, (x, labels) in splits.items()
    } == {"train": (160, 8), "val": (120, 6), "test": (120, 6)}
    source = episodes.ImageEpisodes(splits, 8, True)
    index, _ = source.sample(np.random.default_rng(0), "train", 5, 1, 2)
    assert source.images("train", index, rng=np.random.default_rng(0)).shape == (15, 84, 84, 3)
    shutil.copy(next(tmp_path.glob("mini*val.npz")), tmp_path / "CIFAR_FS_val.npz")
    with pytest.raises(ValueError, match="several files of the val split"):
        episodes.load_splits(tmp_path)


class Hostile:
    def __reduce__(self):
        return os.system, ("touch RAN",)


X = np.zeros((2, 4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    "arrays, said",
    [
        ({"data": np.array([Hostile(), 1]), "labels": [0, 1]}, "not an npz"),
        ({"data": X, "labels": np.array([Hostile(), 1])}, "not an npz"),
        ({"data": X}, "labels"),
        ({"data": X.astype(float), "labels": [0, 1]}, "uint8"),
        ({"data": X, "labels": [0.5, 1]}, "labels"),
        ({"data": X, "labels": [0, 1, 2]}, "labels"),
    ],
)
def test_a_hostile_or_damaged_npz_is_refused(arrays, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("x.npz", **arrays)
    with pytest.raises(ValueError, match=f"x.npz.*{said}"):
        episodes.load_split("x.npz")
    assert not (tmp_path / "RAN").exists()


def test_a_pickle_is_not_read_and_the_error_says_how_to_convert_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val", "test"):
        content = {"data": X + len(split), "labels": Hostile() if split == "val" else [0, 1]}
        (tmp_path / f"X_{split}.pickle").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match="no train split.*numpy.savez") as error:
        episodes.load_splits(".")
    assert not (tmp_path / "RAN").exists()
    convert = str(error.value).partition("trust: ")[2].replace("; ", "\n")
    content = {"data": X, "labels": [0, 1]}
    (tmp_path / "X_val.pickle").write_bytes(pickle.dumps(content))
    for split in ("train", "val", "test"):
        exec("import pickle, numpy\n" + convert.replace("PATH", f"'X_{split}.pickle'"))
    x, labels = episodes.load_splits(".")["val"]
    assert (x == X).all() and labels.tolist() == ["val/0", "val/1"]


def test_classes_of_shapes_are_sparse_linear_functions_of_the_factors():
    from sklearn.svm import LinearSVC

    shapes = data.Shapes3D()
    source, z = episodes.ShapesEpisodes(shapes), data.latents(shapes, 0.0, 0.0)[0]
    for seed in range(12):
        split = ("train", "val", "test")[seed % 3]
        index, Y = source.sample(np.random.default_rng(seed), split, 3, 20, 30)
        assert (
            len(set(index)) == 150
            and (Y[:60].sum(axis=0) == 20).all()
            and np.isin(index, source.members[split]).all()
        )
        fit = LinearSVC(
            C=1e3, multi_class="crammer_singer", fit_intercept=False, max_iter=100_000
        ).fit(z[index], Y.argmax(axis=1))
        assert fit.score(z[index], Y.argmax(axis=1)) > 0.97  # no intercept needed
    assert len(np.unique(np.concatenate(list(source.members.values())))) == len(shapes)
    with pytest.raises(ValueError, match="--way"):
        source.check("test", 40, 5, 5)


def test_splits_of_different_image_sizes_are_refused(tmp_path):
    for split, side in (("train", 8), ("val", 8), ("test", 6)):
        x = np.random.default_rng(side).integers(256, size=(4, side, side, 3), dtype=np.uint8)
        np.savez(tmp_path / f"X_{split}.npz", data=x + len(split), labels=np.arange(4) % 2)
    with pytest.raises(ValueError, match="images of different sizes, .*'test': .6, 6."):
        episodes.load_splits(tmp_path)


def test_labels_of_bytes_that_are_no_text_are_refused_by_name(tmp_path):
    x = np.zeros((2, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "x.npz", data=x, labels=np.array([b"\xc3", b"a"]))
    with pytest.raises(ValueError, match="x.npz"):
        episodes.load_split(tmp_path / "x.npz")


def test_a_transparent_background_is_paper():
    strokes = np.zeros((20, 20, 4), np.uint8)
    strokes[5:15, 5:15, 3] = 255  # black, where it is not transparent
    file = io.BytesIO()
    Image.fromarray(strokes).save(file, "PNG")
    drawing = episodes.read_drawing(file.getvalue(), 20)
    assert (drawing[5:15, 5:15] == 255).all() and drawing.sum() == 100 * 255


def test_images_move_as_far_to_every_side():
    x = np.zeros((400, 7, 7, 1), np.uint8)
    x[:, 3, 3] = 1
    moved = np.argwhere(episodes.shift_images(np.random.default_rng(0), x, 2))[:, 1:3] - 3
    assert len(moved) == 400 and {tuple(by) for by in moved.tolist()} == {
        (down, right) for down in range(-2, 3) for right in range(-2, 3)}


def test_light_and_its_spread_are_scaled_up_and_down():
    """By 0.6 to 1.4, the spread by both factors; values are whole numbers."""
    rng, grey = np.random.default_rng(0), np.full((600, 2, 2, 3), 100, np.uint8)
    light = episodes.jitter_colours(rng, grey)[:, 0, 0, 0] / 100
    assert 0.59 <= light.min() < 0.62 and 1.38 < light.max() <= 1.4
    halves = grey + 30 * np.uint8(np.indices((2, 2))[0])[:, :, None]
    colour = grey + np.array([0, 0, 30], np.uint8)
    for x in (halves, colour):
        found = episodes.jitter_colours(rng, x).astype(float)
        spread = np.ptp(found.reshape(600, -1), axis=1) / 30
        assert spread.min() < 0.5 and spread.max() > 1.7 and 0.9 < spread.mean() < 1.1


def test_splits_of_shapes_have_70_10_and_20_percent_of_the_images():
    source = episodes.ShapesEpisodes(data.Shapes3D())
    assert [len(source.members[split]) for split in ("train", "val", "test")] == [
        336_000, 48_000, 96_000]
