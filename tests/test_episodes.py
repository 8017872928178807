"""Few-shot episodes: glyphs, Omniglot, pickles of MetaOptNet and 3D Shapes."""

import os

import numpy as np
import pytest

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


def write_pickles(folder, protocol=2):
    """A small data set in the layout of MetaOptNet's miniImageNet files."""
    import pickle

    rng = np.random.default_rng(0)
    for split, count in (("train_phase_train", 8), ("val", 6), ("test", 6), ("train_phase_val", 3)):
        x = (
            rng.random((count, 1, 1, 1, 3)) * 200 + 55 * rng.random((count, 20, 84, 84, 3))
        ).astype(np.uint8)
        content = {
            "data": x.reshape(-1, 84, 84, 3),
            "labels": np.repeat(np.arange(count), 20).tolist(),
            "label2catname": {},
        }
        (folder / f"miniImageNet_category_split_{split}.pickle").write_bytes(
            pickle.dumps(content, protocol)
        )


def test_the_pickles_of_metaoptnet_are_read(tmp_path):
    write_pickles(tmp_path)
    splits = episodes.load_splits(tmp_path)
    assert {
        split: (x.shape[0], len(np.unique(labels))) for split, (x, labels) in splits.items()
    } == {"train": (160, 8), "val": (120, 6), "test": (120, 6)}
    source = episodes.ImageEpisodes(splits, 8, True)
    index, _ = source.sample(np.random.default_rng(0), "train", 5, 1, 2)
    assert source.images("train", index, rng=np.random.default_rng(0)).shape == (15, 84, 84, 3)


def test_a_hostile_or_damaged_pickle_is_refused(tmp_path):
    import pickle

    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    for content, said in (
        (pickle.dumps({"data": Hostile()}), "arrays only"),
        (pickle.dumps({"data": np.zeros(3)}), "labels"),
        (b"\x80", "not a pickle"),
        (pickle.dumps({"data": np.zeros((2, 4, 4, 3)), "labels": [0, 1]}), "uint8"),
    ):
        (tmp_path / "x.pickle").write_bytes(content)
        with pytest.raises(ValueError, match=said):
            episodes.load_split(tmp_path / "x.pickle")
    assert not (tmp_path / "ran").exists()


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
        source.sample(np.random.default_rng(0), "test", 40, 5, 5)
