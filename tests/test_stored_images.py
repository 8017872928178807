"""Files of images, and their caches: read back, changed, damaged, planted."""

import os
import shutil

import h5py
import numpy as np
import pytest

import data
from experiments import sharing_data
from experiments.render import write_hdf5


@pytest.fixture(scope="module")
def shapes():
    return data.Shapes3D()


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
    for grid in (file, shapes, sharing_data.DSprites()):
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
