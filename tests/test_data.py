"""Latents and tasks, the data sets and their files, the renderer against real images."""

import os
import shutil
import zipfile

import h5py
import numpy as np
import pytest

import data
from experiments.render import write_hdf5


@pytest.fixture(scope="module")
def shapes():
    return data.Shapes3D()


def row(*factors):
    return int(np.ravel_multi_index(factors, data.LEVELS))


def test_the_renderer_reproduces_real_images(shapes, real_data):
    with np.load(real_data("3dshapes_real_images.npz")) as file:
        real, factors = file["images"], file["factors"]
    ours = 255 * shapes.images(np.ravel_multi_index(factors.T, data.LEVELS))
    psnr = 10 * np.log10(255**2 / ((ours - real) ** 2).mean(axis=(1, 2, 3)))
    print(
        f"PSNR of {len(real)} real images: mean {psnr.mean():.2f} dB, minimum {psnr.min():.2f} dB"
    )
    assert psnr.mean() >= 38 and psnr.min() >= 34


def test_geometries_are_what_they_were():
    """Pinned: mean light of each map, and one projection that sees every pixel's place."""
    place = np.cos(np.arange(64 * 64))
    for geometry, means, projection in PINNED:
        maps = data.geometry_maps()[geometry].astype(np.float64)
        np.testing.assert_allclose(maps.mean(axis=0), means, atol=2e-6)
        np.testing.assert_allclose(place @ maps.sum(axis=1), projection, atol=2e-3)


PINNED = [  # (geometry, means, projection)
    (0, [0.278895, 0.293495, 0.294955, 0.067826, 0.003366], -0.2875),
    (97, [0.276049, 0.304098, 0.34226, 0.065013, 0.00425], 2.3168),
    (205, [0.278975, 0.28778, 0.309176, 0.094615, 0.001552], 2.3017),
    (318, [0.279356, 0.268622, 0.266505, 0.13125, 0.006181], 0.5502),
    (479, [0.228846, 0.273061, 0.207747, 0.192754, 0.003637], 2.2421),
]


def test_images_are_quantised_and_coloured_by_their_factors(shapes):
    x = shapes.images(np.array([row(0, 3, 6, 7, 2, 7), row(5, 3, 6, 7, 2, 7)]))
    assert x.shape == (2, 64, 64, 3) and x.dtype == np.float32 and 0 <= x.min() and x.max() <= 1
    np.testing.assert_allclose(x * 255, np.round(x * 255), atol=1e-3)
    assert (
        x[0, -1, 0].argmax() == 0 and x[0, -1, 0, 1:].max() == 0
    )  # floor hue 0 is red, without green or blue
    np.testing.assert_array_equal(x[0, :20], x[1, :20])  # the floor's hue touches only the floor
    sky = np.round(255 * x[0, 0, 32])
    np.testing.assert_allclose(sky, data.SKY)


def test_scale_shape_and_orientation_change_the_picture(shapes):
    base = [1, 2, 3, 4, 1, 7]
    x = shapes.images(np.array([row(*base)]))
    for k in (3, 4, 5):
        other = list(base)
        other[k] = 0
        assert np.abs(shapes.images(np.array([row(*other)])) - x).max() > 0.2


def test_a_written_file_reads_back(tmp_path, shapes):
    assert write_hdf5(tmp_path / "some.h5", 40) == 40
    with h5py.File(tmp_path / "some.h5") as file:
        assert (
            file["images"].dtype == np.uint8
            and file["labels"].dtype == np.float64
            and file["images"].compression == "gzip"
        )
        labels = file["labels"][:]
    some = data.Shapes3D(tmp_path / "some.h5")
    assert len(some) == 40 and isinstance(some.stored, data.StoredImages)
    for k, values in enumerate(data.LABEL_VALUES):
        np.testing.assert_allclose(values[some.factors[:, k]], labels[:, k])
    index = np.array([3, 39, 3, 0])
    rows = np.ravel_multi_index(some.factors[index].T.astype(int), data.LEVELS)
    np.testing.assert_array_equal(some.images(index), shapes.images(rows))
    written = (tmp_path / "some.h5.images.npy").stat().st_mtime_ns
    data.Shapes3D(tmp_path / "some.h5")  # the second time nothing is unpacked
    assert (tmp_path / "some.h5.images.npy").stat().st_mtime_ns == written
    names = ["some.h5", "some.h5.images.npy", "some.h5.images.npz"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names


def test_a_changed_file_is_unpacked_again(tmp_path):

    write_hdf5(tmp_path / "a.h5", 5)
    data.Shapes3D(tmp_path / "a.h5")
    write_hdf5(tmp_path / "a.h5", 6)
    later = (tmp_path / "a.h5.images.npy").stat().st_mtime + 5
    os.utime(tmp_path / "a.h5", (later, later))
    assert data.Shapes3D(tmp_path / "a.h5").stored.shape[0] == 6


def test_a_damaged_cache_is_written_again(tmp_path):
    write_hdf5(tmp_path / "a.h5", 5)
    before = data.Shapes3D(tmp_path / "a.h5").images(np.arange(5))
    cache = tmp_path / "a.h5.images.npy"
    for content in (b"", b"not an array", cache.read_bytes()[:-7]):
        cache.write_bytes(content)
        np.testing.assert_array_equal(data.Shapes3D(tmp_path / "a.h5").images(np.arange(5)), before)


def other_images(path, count, seed):
    """A file of other images, of the same size."""
    write_hdf5(path, count)
    with h5py.File(path, "a") as file:
        file["images"][...] = np.random.default_rng(seed).integers(256, size=(count, 64, 64, 3))


@pytest.mark.parametrize("how", ["mv", "cp -p", "ln"])
def test_an_older_file_in_its_place_is_unpacked_again(how, tmp_path):
    """Its labels are read anew: images of the former file beside them would be wrong numbers."""
    path, old = tmp_path / "data.h5", tmp_path / "old.h5"
    other_images(old, 5, seed=1)
    expected = data.Shapes3D(old).images(np.arange(5))
    os.utime(old, (1e9, 1e9))
    other_images(path, 5, seed=2)
    names = {data.Shapes3D(path).fingerprint()}
    if how == "mv":
        old.replace(path)
    elif how == "cp -p":
        shutil.copy2(old, path)
    else:
        path.unlink()
        path.symlink_to(old)
    now = data.Shapes3D(path)
    np.testing.assert_array_equal(now.images(np.arange(5)), expected)
    assert now.fingerprint() not in names


def test_a_cache_damaged_at_the_same_size_is_noticed(tmp_path):
    write_hdf5(tmp_path / "a.h5", 5)
    cache = data.Shapes3D(tmp_path / "a.h5").stored.path
    status, content = cache.stat(), bytearray(cache.read_bytes())
    content[-100] ^= 1
    cache.write_bytes(content)
    os.utime(cache, ns=(status.st_atime_ns, status.st_mtime_ns))
    grid = data.Shapes3D(tmp_path / "a.h5")
    grid.images(np.arange(4))
    with pytest.raises(ValueError, match="row 4 is damaged"):
        grid.images([4])


def test_one_changed_image_is_other_data(tmp_path):
    write_hdf5(tmp_path / "a.h5", 40)
    before = data.Shapes3D(tmp_path / "a.h5").fingerprint()
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["images"][6] = 255 - file["images"][6]  # one that no sample of a few would hold
    assert data.Shapes3D(tmp_path / "a.h5").fingerprint() != before


def test_a_planted_cache_folder_is_refused(tmp_path, monkeypatch):
    """Where PATH's folder cannot be written, images lie in a folder that is the user's alone."""
    write_hdf5(tmp_path / "a.h5", 3)
    monkeypatch.setattr(data.os, "access", lambda *args: False)
    monkeypatch.setattr(data.tempfile, "gettempdir", lambda: str(tmp_path))
    cache = data.Shapes3D(tmp_path / "a.h5").stored.path
    assert cache.parent.parent == tmp_path and cache.parent.stat().st_mode & 0o777 == 0o700
    cache.parent.chmod(0o777)
    with pytest.raises(ValueError, match="yours alone"):
        data.Shapes3D(tmp_path / "a.h5")


def test_a_file_and_the_renderer_are_indexed_alike(tmp_path, shapes):
    write_hdf5(tmp_path / "a.h5", 6)
    file = data.Shapes3D(tmp_path / "a.h5")
    all_of_them = file.images(np.arange(6))
    mask = np.array([0, 1, 0, 0, 1, 0], bool)
    for index in (mask, [-1, 2], slice(1, 5, 2), np.array([[0, 1], [2, -3]]), 3, []):
        index = np.array(index, int) if isinstance(index, list) else index
        np.testing.assert_array_equal(file.images(index), all_of_them[index])
    whole = shapes.images(np.arange(6))
    long_mask = np.arange(len(shapes)) < 3
    for index, same in ((long_mask, slice(3)), (slice(2, 5), slice(2, 5)), (4, 4)):
        np.testing.assert_array_equal(shapes.images(index), whole[same])
    last = shapes.images(np.array([len(shapes) - 1]))
    np.testing.assert_array_equal(shapes.images(np.array([-1])), last)
    for grid in (file, shapes, data.DSprites()):
        for index in (1.7, np.array([0.0]), np.array([len(grid)]), "1"):
            with pytest.raises(IndexError):
                grid.images(index)


def damaged(path, kind):
    if kind == "missing":
        return
    if kind == "text":
        path.write_text("not HDF5")
        return
    write_hdf5(path, 5)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-2000])
    else:
        with h5py.File(path, "a") as file:
            if kind == "labels":
                file["labels"][2, 3] = 0.8
            elif kind == "no images":
                del file["images"]
            elif kind == "shape":
                del file["images"]
                file["images"] = np.zeros((5, 32, 32, 3), np.uint8)
            elif kind == "dtype":
                del file["images"]
                file["images"] = np.zeros((5, 64, 64, 3), np.float32)


@pytest.mark.parametrize(
    "kind", ["missing", "text", "truncated", "labels", "no images", "shape", "dtype"]
)
def test_a_file_that_is_not_3d_shapes_is_refused_by_name(tmp_path, kind):
    damaged(tmp_path / "bad.h5", kind)
    with pytest.raises(ValueError, match="bad.h5") as error:
        data.Shapes3D(tmp_path / "bad.h5")
    assert "\n" not in str(error.value)


def test_latents_are_standardised_and_weighted(shapes):
    z, p = data.latents(shapes, alpha=0.0, rho=0.0)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(z.std(axis=0), 1, atol=1e-9)
    np.testing.assert_allclose(p.sum(), 1)
    np.testing.assert_allclose(
        np.log(p[0] / p[7]), ((z[7] ** 2).sum() - (z[0] ** 2).sum()) / 2
    )  # a standard Gaussian's density


def test_correlation_of_the_weights_grows_with_rho(shapes):
    told = [data.describe_latents(*data.latents(shapes, 1.0, rho)) for rho in (0.0, 0.5, 0.9)]
    assert (
        abs(told[0]["realised_correlation"]) < 0.01 and 0.2 < told[1]["realised_correlation"] < 0.5
    )
    assert (
        0.8 < told[2]["realised_correlation"] < 0.84 and 2500 < told[2]["effective_images"] < 3100
    )


def test_the_noise_caps_the_correlation_as_computed(shapes):
    z, _ = data.latents(shapes, alpha=1.0, rho=0.0)
    for k, levels in enumerate(data.LEVELS):
        v = (levels**2 - 1) / 12
        np.testing.assert_allclose(
            np.corrcoef(z[:, k], shapes.factors[:, k])[0, 1], np.sqrt(v / (v + 1 / 12)), atol=1e-3
        )


def test_noise_is_drawn_once_per_image(shapes):
    np.testing.assert_array_equal(
        data.latents(shapes, 1.0, 0.0)[0], data.latents(shapes, 1.0, 0.5)[0]
    )


@pytest.mark.parametrize(
    "alpha, rho", [(1.5, 0), (-0.1, 0), (1, 1.0), (1, -0.2), (float("nan"), 0)]
)
def test_impossible_latents_are_refused(shapes, alpha, rho):
    with pytest.raises(ValueError, match="alpha|rho"):
        data.latents(shapes, alpha, rho)


def test_tasks_have_half_their_coefficients_and_never_none():
    w = data.sample_tasks(np.random.default_rng(0), 20_000, 6)
    assert ((w != 0).sum(axis=1) >= 1).all()
    counts = np.bincount((w != 0).sum(axis=1), minlength=7) / 20_000
    expected = (
        np.array([0, 7, 15, 20, 15, 6, 1]) / 64
    )  # binomial, the empty support counted with one
    np.testing.assert_allclose(counts, expected, atol=0.012)
    np.testing.assert_allclose(w[w != 0].std(), 1, atol=0.02)


def test_sampled_labels_are_the_tasks_signal_and_noise(shapes):
    z, p = data.latents(shapes, 1.0, 0.9)
    tasks = data.Tasks(z, p, sets=3, samples=200, per_set=5)
    index, y = tasks.sample(np.random.default_rng(0))
    assert index.shape == (3, 200) and y.shape == (3, 5, 200)
    for g in range(3):
        Z = np.c_[z[index[g]], np.ones(200)]
        residual = y[g] - (Z @ np.linalg.lstsq(Z, y[g].T)[0]).T
        np.testing.assert_allclose(residual.std(axis=1) / y[g].std(axis=1), 0.1, atol=0.03)
    again, y_again = tasks.sample(np.random.default_rng(0))
    assert np.array_equal(index, again) and np.array_equal(y, y_again)


def test_images_are_drawn_by_their_weight(shapes):
    z, p = data.latents(shapes, 1.0, 0.9)
    tasks = data.Tasks(z, p, sets=40, samples=500)
    index = np.concatenate([tasks.sample(np.random.default_rng(s))[0].ravel() for s in range(5)])
    C = np.corrcoef(z[index].T)
    assert (
        abs(C[~np.eye(6, dtype=bool)].mean() - data.describe_latents(z, p)["realised_correlation"])
        < 0.01
    )
    assert p[index].min() > 0


def test_task_distributions():
    rng = np.random.default_rng(0)
    w = {
        kind: data.sample_tasks(rng, 4000, 6, kind)
        for kind in ("laplace", "gauss", "sphere", "blocks-2", "blocks-6", "fixed-2", "finite-3")
    }
    for kind in ("laplace", "gauss"):
        assert (w[kind] != 0).all() and abs(w[kind].std() - 1) < 0.05
    assert (
        np.mean(w["laplace"] ** 4) > 4 > np.mean(w["gauss"] ** 4) > 2.5
    )  # 6 and 3 for unit variance
    np.testing.assert_allclose(np.linalg.norm(w["sphere"], axis=1), 1)
    S = w["blocks-2"] != 0
    assert (S[:, 0::2] == S[:, 1::2]).all() and (S.sum(axis=1) == 2).all()  # one block of three
    assert np.abs(S.mean(axis=0) - 1 / 3).max() < 0.05
    assert (w["blocks-6"] != 0).all() and ((w["fixed-2"] != 0).sum(axis=1) == 2).all()
    assert len(np.unique(w["finite-3"], axis=0)) == 3
    for kind in ("blocks-4", "fixed-7", "fixed-0", "finite-0", "finite-x", "gaussian", ""):
        with pytest.raises(ValueError, match="--tasks"):
            data.sample_tasks(rng, 5, 6, kind)


def test_categorical_labels_follow_the_softmax(shapes):
    z, p = data.latents(shapes, 1.0, 0.0)
    index, y = data.Tasks(
        z, p, sets=2, samples=300, per_set=4, outputs=3, likelihood="categorical"
    ).sample(np.random.default_rng(0))
    assert y.shape == (2, 4, 300, 3) and (y.sum(axis=3) == 1).all()
    _, y = data.Tasks(z, p, sets=2, samples=30, per_set=4, outputs=3).sample(
        np.random.default_rng(0)
    )
    assert y.shape == (2, 4, 30, 3)


def test_shift_moves_each_set_towards_its_tasks(shapes):
    z, p = data.latents(shapes, 1.0, 0.0)
    tasks = data.Tasks(z, p, sets=40, samples=100, per_set=1, kind="fixed-1", shift=1.5)
    rng = np.random.default_rng(0)
    w = tasks.sample_coefficients(rng)
    mean = z[tasks.sample_images(rng, w)].mean(axis=1)  # (G, 6)
    on = w[:, 0, 0] != 0
    assert mean[on].mean() > 0.6 and abs(mean[~on].mean()) < 0.1


@pytest.mark.parametrize("k", [1, 2, 5])
def test_binary_tasks_join_thresholds_by_and(k):
    shapes = data.Shapes3D()
    tasks = data.BinaryTasks(shapes.factors, np.full(len(shapes), 1 / len(shapes)), k, 20)
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


def test_no_image_is_drawn_twice_for_a_task_and_no_test_task_is_a_flipped_training_task():
    shapes = data.Shapes3D()
    _, p = data.latents(shapes, 1.0, 0.9)
    tasks = data.BinaryTasks(shapes.factors, p, 4, 30)
    index, _ = tasks.sample(np.random.default_rng(0), range(30), 13, 20)
    assert (
        all(len(set(i)) > 0.9 * len(i) for i in index)
        and np.mean([len(set(i)) == len(i) for i in index]) > 0.8
    )
    single = data.BinaryTasks(shapes.factors, p, 1, 40).tasks
    assert len({task[:2] for task in single}) == 40


def test_impossible_tasks_are_refused():
    factors = np.stack(np.unravel_index(np.arange(12), (3, 4)), axis=1)
    with pytest.raises(ValueError, match="--factors"):
        data.BinaryTasks(factors, np.full(12, 1 / 12), 3, 5)
    with pytest.raises(ValueError, match="only 5 different"):
        data.BinaryTasks(factors, np.full(12, 1 / 12), 1, 50)


def test_dsprites_have_the_published_form():
    grid = data.DSprites()
    assert len(grid) == 737_280 and grid.factors.max(axis=0).tolist() == [2, 5, 39, 31, 31]
    index = np.random.default_rng(0).integers(len(grid), size=300)
    x = grid.images(index)
    assert (
        x.shape == (300, 64, 64, 3)
        and set(np.unique(x)) == {0, 1}
        and (x[..., 0] == x[..., 2]).all()
    )
    assert (
        abs(data.sprites().sum() / 720 / 4096 - 0.0425) < 0.002
    )  # the published mean of all pixels
    assert abs(x.sum() / x.size - 0.0425) < 0.006  # no sprite leaves the image
    ink = [np.argwhere(image[..., 0]).mean(axis=0) for image in x]
    centre = np.array([[y, x] for y, x in ink])
    assert (
        np.abs(centre - 16 - grid.factors[index][:, [4, 3]]).max() < 3
    )  # y down, x right, a pixel a step
    area = data.sprites().reshape(3, 6, 40, -1).sum(axis=3)
    assert (np.diff(area.mean(axis=2), axis=1) > 0).all() and area[:, 5].std() < 0.05 * area[
        :, 5
    ].mean()
    first, last = (
        grid.images(np.ravel_multi_index((2, 3, turn, 9, 9), grid.levels)[None]) for turn in (0, 39)
    )
    assert (first == last).all()  # 0 and 2 pi, as in the file


def official(path, rows, spoil=lambda a: a):
    grid = data.DSprites()
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
    grid, rendered = data.DSprites(tmp_path / "d.npz"), data.DSprites()
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
        data.DSprites(tmp_path / "d.npz")
    (tmp_path / "e.npz").write_bytes((tmp_path / "d.npz").read_bytes()[:200])
    with pytest.raises(ValueError, match="e.npz"):
        data.DSprites(tmp_path / "e.npz")
    assert not list(tmp_path.glob("*.new")) and zipfile.is_zipfile(tmp_path / "d.npz")


def test_the_same_tasks_on_images_drawn_uniformly(shapes):
    _, p = data.latents(shapes, 1.0, 0.9)
    tasks = data.BinaryTasks(shapes.factors, p, 2, 5)
    even = tasks.uniform()
    assert even.tasks == tasks.tasks
    drawn = []
    for own in (tasks, even):
        index = data.draw_index(np.random.default_rng(0), own.cumulative, 4000)
        C = np.corrcoef(shapes.factors[index].T.astype(float))
        drawn.append(np.abs(C[~np.eye(6, dtype=bool)]).mean())
    assert drawn[0] > 0.6 and drawn[1] < 0.05
