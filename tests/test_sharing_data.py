"""Binary tasks on known factors; dSprites, rendered and from its file."""

import zipfile

import numpy as np
import pytest

import data
from experiments import sharing_data


@pytest.fixture(scope="module")
def shapes():
    return data.Shapes3D()


@pytest.mark.parametrize("k", [1, 2, 5])
def test_binary_tasks_join_thresholds_by_and(k, shapes):
    tasks = sharing_data.BinaryTasks(shapes.factors, np.full(len(shapes), 1 / len(shapes)), k, 20)
    assert len(set(tasks.tasks)) == 20
    index, Y = tasks.sample(np.random.default_rng(0), [3, 7], 5, 4)
    assert index.shape == (2, 18) and Y.shape == (2, 18, 1)
    assert (Y[:, :10].sum(axis=1) == 5).all() and (
        Y[:, 10:].sum(axis=1) == 4
    ).all()  # both halves are balanced
    for t, i, y in zip((3, 7), index, Y[..., 0]):
        on, threshold, side = tasks.tasks[t]
        assert len(on) == k
        for image, label in zip(i, y):
            told = [(shapes.factors[image, f] > c) == s for f, c, s in zip(on, threshold, side)]
            assert all(told) == bool(label)


def test_few_images_are_drawn_twice_for_a_task_and_no_test_task_is_a_flipped_one(shapes):
    _, p = data.latents(shapes, 1.0, 0.9)
    tasks = sharing_data.BinaryTasks(shapes.factors, p, 4, 30)
    index, _ = tasks.sample(np.random.default_rng(0), range(30), 13, 20)
    assert (
        all(len(set(i)) > 0.9 * len(i) for i in index)
        and np.mean([len(set(i)) == len(i) for i in index]) > 0.8
    )
    single = sharing_data.BinaryTasks(shapes.factors, p, 1, 40).tasks
    assert len({task[:2] for task in single}) == 40


def test_impossible_tasks_are_refused():
    factors = np.stack(np.unravel_index(np.arange(12), (3, 4)), axis=1)
    with pytest.raises(ValueError, match="--factors"):
        sharing_data.BinaryTasks(factors, np.full(12, 1 / 12), 3, 5)
    with pytest.raises(ValueError, match="only 5 different"):
        sharing_data.BinaryTasks(factors, np.full(12, 1 / 12), 1, 50)


def test_dsprites_have_the_published_form():
    grid = sharing_data.DSprites()
    assert len(grid) == 737_280 and grid.factors.max(axis=0).tolist() == [2, 5, 39, 31, 31]
    index = np.random.default_rng(0).integers(len(grid), size=300)
    x = grid.images(index)
    assert (
        x.shape == (300, 64, 64, 3)
        and set(np.unique(x)) == {0, 1}
        and (x[..., 0] == x[..., 2]).all()
    )
    assert (
        abs(sharing_data.sprites().sum() / 720 / 4096 - 0.0425) < 0.002
    )  # the published mean of all pixels
    assert abs(x.sum() / x.size - 0.0425) < 0.006  # no sprite leaves the image
    ink = [np.argwhere(image[..., 0]).mean(axis=0) for image in x]
    centre = np.array([[y, x] for y, x in ink])
    assert (
        np.abs(centre - 16 - grid.factors[index][:, [4, 3]]).max() < 3
    )  # y down, x right, a pixel a step
    area = sharing_data.sprites().reshape(3, 6, 40, -1).sum(axis=3)
    assert (np.diff(area.mean(axis=2), axis=1) > 0).all() and area[:, 5].std() < 0.05 * area[
        :, 5
    ].mean()
    first, last = (
        grid.images(np.ravel_multi_index((2, 3, turn, 9, 9), grid.levels)[None]) for turn in (0, 39)
    )
    assert (first == last).all()  # 0 and 2 pi, as in the file


def official(path, rows, spoil=lambda a: a):
    grid = sharing_data.DSprites()
    factors = np.concatenate(
        [np.zeros((len(rows), 1), np.int64), grid.factors[rows].astype(np.int64)], axis=1
    )
    images = grid.images(rows)[..., 0].astype(np.uint8)
    arrays = spoil(
        {"imgs": images, "latents_values": factors.astype(float), "latents_classes": factors}
    )
    np.savez_compressed(path, **arrays)


def test_the_official_dsprites_file_reads_as_rendered(tmp_path):
    rows = np.sort(np.random.default_rng(0).choice(737_280, 700, replace=False))
    official(tmp_path / "d.npz", rows)
    grid, rendered = sharing_data.DSprites(tmp_path / "d.npz"), sharing_data.DSprites()
    assert (grid.factors == rendered.factors[rows]).all() and len(grid) == 700
    some = np.array([5, 600, 5, 0])
    assert (grid.images(some) == rendered.images(rows[some])).all()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda a: {k: v for k, v in a.items() if k != "imgs"},
        lambda a: a | {"imgs": a["imgs"].astype(float)},
        lambda a: a | {"latents_classes": a["latents_classes"] + 40},
        lambda a: a | {"imgs": a["imgs"][:3]},
        lambda a: a | {"imgs": np.asfortranarray(a["imgs"])},
        lambda a: a | {"imgs": 255 * a["imgs"]},
        lambda a: a | {"latents_classes": a["latents_classes"] + 0.5},
        lambda a: a | {"latents_classes": a["latents_classes"] * np.nan},
    ],
)
def test_a_damaged_dsprites_file_is_refused_in_one_line(spoil, tmp_path):
    official(tmp_path / "d.npz", np.arange(5), spoil)
    with pytest.raises(ValueError, match="d.npz"):
        sharing_data.DSprites(tmp_path / "d.npz")
    (tmp_path / "e.npz").write_bytes((tmp_path / "d.npz").read_bytes()[:200])
    with pytest.raises(ValueError, match="e.npz"):
        sharing_data.DSprites(tmp_path / "e.npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.npz", "e.npz"]
    assert zipfile.is_zipfile(tmp_path / "d.npz")


def test_tasks_on_a_file_that_lacks_levels_differ():
    rng = np.random.default_rng(0)
    factors = np.c_[rng.choice([0, 9], 2000), rng.integers(0, 10, 2000), np.full(2000, 5)]
    p = np.full(2000, 1 / 2000)
    tasks = sharing_data.BinaryTasks(factors, p, 2, 30)
    labels = np.stack([tasks.labels(task, slice(None)) for task in tasks.tasks])
    assert len(np.unique(labels, axis=0)) == 30
    with pytest.raises(ValueError, match="expected 1 to 2"):  # the third never varies
        sharing_data.BinaryTasks(factors, p, 3, 4)


def test_the_same_tasks_on_images_drawn_uniformly(shapes):
    _, p = data.latents(shapes, 1.0, 0.9)
    tasks = sharing_data.BinaryTasks(shapes.factors, p, 2, 5)
    even = tasks.uniform()
    assert even.tasks == tasks.tasks
    drawn = []
    for own in (tasks, even):
        index = data.draw_index(np.random.default_rng(0), own.cumulative, 4000)
        C = np.corrcoef(shapes.factors[index].T.astype(float))
        drawn.append(np.abs(C[~np.eye(6, dtype=bool)]).mean())
    assert drawn[0] > 0.6 and drawn[1] < 0.05


def test_support_and_query_share_no_image_but_an_only_one():
    for size, shot, query in ((20, 4, 6), (10, 4, 6), (7, 4, 6), (6, 5, 1), (2, 4, 6)):
        part = sharing_data.in_two(np.arange(size), shot, query)
        assert len(part) == shot + query and not set(part[:shot]) & set(part[shot:])
    np.testing.assert_array_equal(sharing_data.in_two(np.arange(20), 4, 6), np.arange(10))
    assert set(sharing_data.in_two(np.arange(1), 4, 6)) == {0}
