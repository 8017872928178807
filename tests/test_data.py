"""The renderer against real images, the official file layout, latents and tasks."""
import os

import h5py
import numpy as np
import pytest

import data
import metrics


@pytest.fixture(scope="module")
def shapes():
    return data.Shapes3D()


def row(*factors):
    return int(np.ravel_multi_index(factors, data.LEVELS))


# ----------------------------------------------------------------------------------------------- renderer


def test_the_renderer_reproduces_real_images(shapes, real_data):
    with np.load(real_data("3dshapes_real_images.npz")) as file:
        real, factors = file["images"], file["factors"]
    ours = 255 * shapes.images(np.ravel_multi_index(factors.T, data.LEVELS))
    psnr = 10 * np.log10(255 ** 2 / ((ours - real) ** 2).mean(axis=(1, 2, 3)))
    print(f"PSNR of {len(real)} real images: mean {psnr.mean():.2f} dB, minimum {psnr.min():.2f} dB")
    assert psnr.mean() >= 38 and psnr.min() >= 34


def test_geometries_are_what_they_were():
    """Pinned: mean light of each map, and one projection that sees every pixel's place."""
    place = np.cos(np.arange(64 * 64))
    for geometry, means, projection in PINNED:
        maps = data.geometry_maps()[geometry].astype(np.float64)
        np.testing.assert_allclose(maps.mean(axis=0), means, atol=2e-6)
        np.testing.assert_allclose(place @ maps.sum(axis=1), projection, atol=2e-3)


PINNED = [                                                                  # (geometry, means, projection)
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
    assert x[0, -1, 0].argmax() == 0 and x[0, -1, 0, 1:].max() == 0         # floor hue 0 is red, without green or blue
    np.testing.assert_array_equal(x[0, :20], x[1, :20])                     # the floor's hue touches only the floor
    sky = np.round(255 * x[0, 0, 32])
    np.testing.assert_allclose(sky, data.SKY)


def test_scale_shape_and_orientation_change_the_picture(shapes):
    base = [1, 2, 3, 4, 1, 7]
    x = shapes.images(np.array([row(*base)]))
    for k in (3, 4, 5):
        other = list(base)
        other[k] = 0
        assert np.abs(shapes.images(np.array([row(*other)])) - x).max() > 0.2


# ------------------------------------------------------------------------------------------------ HDF5


def test_a_written_file_reads_back(tmp_path, shapes):
    assert data.write_hdf5(tmp_path / "some.h5", 40) == 40
    with h5py.File(tmp_path / "some.h5") as file:
        assert file["images"].dtype == np.uint8 and file["labels"].dtype == np.float64 and file["images"].compression == "gzip"
        labels = file["labels"][:]
    some = data.Shapes3D(tmp_path / "some.h5")
    assert len(some) == 40 and isinstance(some.stored, data.StoredImages)
    for k, values in enumerate(data.LABEL_VALUES):
        np.testing.assert_allclose(values[some.factors[:, k]], labels[:, k])
    index = np.array([3, 39, 3, 0])
    rows = np.ravel_multi_index(some.factors[index].T.astype(int), data.LEVELS)
    np.testing.assert_array_equal(some.images(index), shapes.images(rows))
    written = (tmp_path / "some.h5.images.npy").stat().st_mtime_ns
    data.Shapes3D(tmp_path / "some.h5")                                     # the second time nothing is unpacked
    assert (tmp_path / "some.h5.images.npy").stat().st_mtime_ns == written
    assert sorted(p.name for p in tmp_path.iterdir()) == ["some.h5", "some.h5.images.npy"]


def test_a_changed_file_is_unpacked_again(tmp_path):
    import os
    data.write_hdf5(tmp_path / "a.h5", 5)
    data.Shapes3D(tmp_path / "a.h5")
    data.write_hdf5(tmp_path / "a.h5", 6)
    later = (tmp_path / "a.h5.images.npy").stat().st_mtime + 5
    os.utime(tmp_path / "a.h5", (later, later))
    assert data.Shapes3D(tmp_path / "a.h5").stored.shape[0] == 6


def test_a_damaged_cache_is_written_again(tmp_path):
    data.write_hdf5(tmp_path / "a.h5", 5)
    before = data.Shapes3D(tmp_path / "a.h5").images(np.arange(5))
    cache = tmp_path / "a.h5.images.npy"
    for content in (b"", b"not an array", cache.read_bytes()[:-7]):
        cache.write_bytes(content)
        np.testing.assert_array_equal(data.Shapes3D(tmp_path / "a.h5").images(np.arange(5)), before)


def damaged(path, kind):
    if kind == "missing":
        return
    if kind == "text":
        path.write_text("not HDF5")
        return
    data.write_hdf5(path, 5)
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


@pytest.mark.parametrize("kind", ["missing", "text", "truncated", "labels", "no images", "shape", "dtype"])
def test_a_file_that_is_not_3d_shapes_is_refused_by_name(tmp_path, kind):
    damaged(tmp_path / "bad.h5", kind)
    with pytest.raises(ValueError, match="bad.h5") as error:
        data.Shapes3D(tmp_path / "bad.h5")
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------- latents and tasks


def test_latents_are_standardised_and_weighted(shapes):
    z, p = data.latents(shapes, alpha=0.0, rho=0.0)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(z.std(axis=0), 1, atol=1e-9)
    np.testing.assert_allclose(p.sum(), 1)
    np.testing.assert_allclose(np.log(p[0] / p[7]), ((z[7] ** 2).sum() - (z[0] ** 2).sum()) / 2)    # a standard Gaussian's density


def test_correlation_of_the_weights_grows_with_rho(shapes):
    told = [metrics.describe_latents(*data.latents(shapes, 1.0, rho)) for rho in (0.0, 0.5, 0.9)]
    assert abs(told[0]["realised_correlation"]) < 0.01 and 0.2 < told[1]["realised_correlation"] < 0.5
    assert 0.8 < told[2]["realised_correlation"] < 0.84 and 2500 < told[2]["effective_images"] < 3100


def test_the_noise_caps_the_correlation_as_computed(shapes):
    z, _ = data.latents(shapes, alpha=1.0, rho=0.0)
    for k, levels in enumerate(data.LEVELS):
        v = (levels ** 2 - 1) / 12
        np.testing.assert_allclose(np.corrcoef(z[:, k], shapes.factors[:, k])[0, 1], np.sqrt(v / (v + 1 / 12)), atol=1e-3)


def test_noise_is_drawn_once_per_image(shapes):
    np.testing.assert_array_equal(data.latents(shapes, 1.0, 0.0)[0], data.latents(shapes, 1.0, 0.5)[0])


@pytest.mark.parametrize("alpha, rho", [(1.5, 0), (-0.1, 0), (1, 1.0), (1, -0.2), (float("nan"), 0)])
def test_impossible_latents_are_refused(shapes, alpha, rho):
    with pytest.raises(ValueError, match="alpha|rho"):
        data.latents(shapes, alpha, rho)


def test_tasks_have_half_their_coefficients_and_never_none():
    w = data.sample_tasks(np.random.default_rng(0), 20_000, 6)
    assert ((w != 0).sum(axis=1) >= 1).all()
    counts = np.bincount((w != 0).sum(axis=1), minlength=7) / 20_000
    expected = np.array([0, 7, 15, 20, 15, 6, 1]) / 64                      # binomial, the empty support counted with one
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
    assert abs(C[~np.eye(6, dtype=bool)].mean() - metrics.describe_latents(z, p)["realised_correlation"]) < 0.01
    assert p[index].min() > 0


def test_task_distributions():
    rng = np.random.default_rng(0)
    w = {kind: data.sample_tasks(rng, 4000, 6, kind) for kind in ("laplace", "gauss", "sphere", "blocks-2", "blocks-6", "fixed-2", "finite-3")}
    for kind in ("laplace", "gauss"):
        assert (w[kind] != 0).all() and abs(w[kind].std() - 1) < 0.05
    assert np.mean(w["laplace"] ** 4) > 4 > np.mean(w["gauss"] ** 4) > 2.5                  # 6 and 3 for unit variance
    np.testing.assert_allclose(np.linalg.norm(w["sphere"], axis=1), 1)
    S = w["blocks-2"] != 0
    assert (S[:, 0::2] == S[:, 1::2]).all() and S.any(axis=1).all() and 0.4 < S.mean() < 0.65
    assert (w["blocks-6"] != 0).all() and ((w["fixed-2"] != 0).sum(axis=1) == 2).all()
    assert len(np.unique(w["finite-3"], axis=0)) == 3
    for kind in ("blocks-4", "fixed-7", "fixed-0", "finite-0", "finite-x", "gaussian", ""):
        with pytest.raises(ValueError, match="--tasks"):
            data.sample_tasks(rng, 5, 6, kind)


def test_categorical_labels_follow_the_softmax(shapes):
    z, p = data.latents(shapes, 1.0, 0.0)
    index, y = data.Tasks(z, p, sets=2, samples=300, per_set=4, outputs=3, likelihood="categorical").sample(np.random.default_rng(0))
    assert y.shape == (2, 4, 300, 3) and (y.sum(axis=3) == 1).all()
    _, y = data.Tasks(z, p, sets=2, samples=30, per_set=4, outputs=3).sample(np.random.default_rng(0))
    assert y.shape == (2, 4, 30, 3)


def test_shift_moves_each_set_towards_its_tasks(shapes):
    z, p = data.latents(shapes, 1.0, 0.0)
    tasks = data.Tasks(z, p, sets=40, samples=100, per_set=1, kind="fixed-1", shift=1.5)
    rng = np.random.default_rng(0)
    w = tasks.sample_coefficients(rng)
    mean = z[tasks.sample_images(rng, w)].mean(axis=1)                                      # (G, 6)
    on = w[:, 0, 0] != 0
    assert mean[on].mean() > 0.6 and abs(mean[~on].mean()) < 0.1


def test_a_gaussian_task_is_as_described():
    rng = np.random.default_rng(0)
    z, y, w = data.gaussian_task(rng, 20_000, m=10, active=3, covariance="ar")
    np.testing.assert_allclose(np.cov(z.T)[0, :3], [1, 0.9, 0.81], atol=0.05)
    assert np.count_nonzero(w) == 3 and abs((y - z @ w).var() - 0.04) < 0.003


# ------------------------------------------------------------------------------------------ few-shot episodes


@pytest.fixture(scope="module")
def glyphs():
    return data.glyphs()


def test_glyphs_have_16_fonts_and_scripts_apart(glyphs):
    assert {split: len(np.unique(labels)) for split, (_, labels) in glyphs.items()}["test"] == 57           # Cyrillic
    for x, labels in glyphs.values():
        assert x.shape[1:] == (28, 28, 1) and x.dtype == np.uint8 and x.max() == 255
        assert (np.unique(labels, return_counts=True)[1] == 16).all()
    data.refuse_shared(glyphs)


def test_an_episode_is_disjoint_and_seeded(glyphs):
    source = data.ImageEpisodes(glyphs)
    index, Y = source.sample(np.random.default_rng(0), "train", 5, 3, 4)
    assert index.shape == (35,) and len(set(index)) == 35 and Y.shape == (35, 5)
    assert (Y[:15].sum(axis=0) == 3).all() and (Y[15:].sum(axis=0) == 4).all()                              # support first
    labels = glyphs["train"][1][index]
    for c in range(5):
        assert len(set(labels[Y[:, c] == 1])) == 1
    assert len(set(labels)) == 5
    again, _ = source.sample(np.random.default_rng(0), "train", 5, 3, 4)
    assert np.array_equal(index, again)
    with pytest.raises(ValueError, match="--way"):
        source.sample(np.random.default_rng(0), "test", 5, 10, 10)          # 16 fonts only


def test_training_images_move_and_others_do_not(glyphs):
    source = data.ImageEpisodes(glyphs)
    index = np.arange(40)
    still, moved = source.images("train", index), source.images("train", index, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(still, glyphs["train"][0][index].astype(np.float32) / 255)
    assert moved.shape == still.shape and 0.3 < (moved != still).any(axis=(1, 2, 3)).mean() and moved.max() <= 1


def test_colour_jitter_stays_in_range_and_mirrors_half():
    x = np.random.default_rng(0).integers(256, size=(400, 6, 6, 3)).astype(np.uint8)
    out = data.jittered(np.random.default_rng(1), x, strength=0.0).astype(int)
    same = (np.abs(out - x) <= 1).all(axis=(1, 2, 3))
    mirrored = (np.abs(out - x[:, :, ::-1]) <= 1).all(axis=(1, 2, 3))
    assert (same | mirrored).all() and 0.4 < mirrored.mean() < 0.6
    assert data.jittered(np.random.default_rng(1), x).dtype == np.uint8


def test_omniglot_is_split_by_alphabet(real_data):
    splits = data.omniglot([real_data("images_background_small1.zip"), real_data("images_background_small2.zip")])
    alphabets = {split: {name.split("/")[0] for name in labels} for split, (_, labels) in splits.items()}
    assert sum(len(names) for names in alphabets.values()) == 8 == len(set.union(*alphabets.values()))      # Greek and Latin merged
    assert [len(alphabets[split]) for split in ("train", "val", "test")] == [5, 1, 2]
    data.refuse_shared(splits)
    x, labels = splits["test"]
    assert (np.unique(labels, return_counts=True)[1] == 20).all() and x.shape[1:] == (28, 28, 1)
    assert x.mean() < 60                                                                                    # white ink on black


def test_splits_that_share_a_class_or_an_image_are_refused(glyphs):
    x, labels = glyphs["val"]
    for other in ((x[:16], np.array(["new"] * 16)), (255 - x[:16], labels[:16])):
        with pytest.raises(ValueError, match="two splits share"):
            data.refuse_shared({"train": (x, labels), "test": other})


def write_pickles(folder, protocol=2):
    """A small data set in the layout of MetaOptNet's miniImageNet files."""
    import pickle
    rng = np.random.default_rng(0)
    for split, count in (("train_phase_train", 8), ("val", 6), ("test", 6), ("train_phase_val", 3)):
        x = (rng.random((count, 1, 1, 1, 3)) * 200 + 55 * rng.random((count, 20, 84, 84, 3))).astype(np.uint8)
        content = {"data": x.reshape(-1, 84, 84, 3), "labels": np.repeat(np.arange(count), 20).tolist(), "label2catname": {}}
        (folder / f"miniImageNet_category_split_{split}.pickle").write_bytes(pickle.dumps(content, protocol))


def test_the_pickles_of_metaoptnet_are_read(tmp_path):
    write_pickles(tmp_path)
    splits = data.load_splits(tmp_path)
    assert {split: (x.shape[0], len(np.unique(labels))) for split, (x, labels) in splits.items()} == {
        "train": (160, 8), "val": (120, 6), "test": (120, 6)}
    source = data.ImageEpisodes(splits, 8, True)
    index, _ = source.sample(np.random.default_rng(0), "train", 5, 1, 2)
    assert source.images("train", index, rng=np.random.default_rng(0)).shape == (15, 84, 84, 3)


def test_a_hostile_or_damaged_pickle_is_refused(tmp_path):
    import pickle

    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)
    for content, said in ((pickle.dumps({"data": Hostile()}), "arrays only"), (pickle.dumps({"data": np.zeros(3)}), "labels"), (b"\x80", "not a pickle"),
                          (pickle.dumps({"data": np.zeros((2, 4, 4, 3)), "labels": [0, 1]}), "uint8")):
        (tmp_path / "x.pickle").write_bytes(content)
        with pytest.raises(ValueError, match=said):
            data.load_split(tmp_path / "x.pickle")
    assert not (tmp_path / "ran").exists()


def test_classes_of_shapes_are_sparse_linear_functions_of_the_factors(shapes):
    from sklearn.svm import LinearSVC
    source, z = data.ShapesEpisodes(shapes), data.latents(shapes, 0.0, 0.0)[0]
    for seed in range(12):
        split = ("train", "val", "test")[seed % 3]
        index, Y = source.sample(np.random.default_rng(seed), split, 3, 20, 30)
        assert len(set(index)) == 150 and (Y[:60].sum(axis=0) == 20).all() and np.isin(index, source.members[split]).all()
        fit = LinearSVC(C=1e3, multi_class="crammer_singer", fit_intercept=False, max_iter=100_000).fit(z[index], Y.argmax(axis=1))
        assert fit.score(z[index], Y.argmax(axis=1)) > 0.97                 # no intercept needed
    assert len(np.unique(np.concatenate(list(source.members.values())))) == len(shapes)
    with pytest.raises(ValueError, match="--way"):
        source.sample(np.random.default_rng(0), "test", 40, 5, 5)
