"""render.py -- the rendered 3D Shapes written as a file in the official HDF5 layout.

images (N, 64, 64, 3) uint8 and labels (N, 6) float64, the values of the factors: what data.Shapes3D
and every other reader of the data set expect. The renderer itself is the last part of data.py.
"""
from dataclasses import dataclass

import h5py
import numpy as np

import data
from experiments import results
from experiments.settings import option


@dataclass(frozen=True)
class Render:
    """Write the rendered data set in the official HDF5 layout."""

    out: str = option(None, "the file to write")
    limit: int = option(data.N_IMAGES, "rows, spread at random where not all", 1, data.N_IMAGES)


def render(config):
    """Write the file."""
    print(f"{config.out}: {write_hdf5(config.out, config.limit)} rows")


def write_hdf5(path, count=data.N_IMAGES, seed=0):
    """Write `count` images in file order, spread at random where not all; returns `count`.

    The file is made in memory, 0.3 GB for all: HDF5 crashes on a disk that is full.
    """
    shapes = data.Shapes3D()
    index = np.arange(len(shapes))
    if count < len(shapes):
        index = np.sort(np.random.default_rng(seed).choice(len(shapes), count, replace=False))
    factors = shapes.factors[index]
    with h5py.File("in memory", "w", driver="core", backing_store=False) as file:
        images = file.create_dataset(
            "images", (count, data.SIDE, data.SIDE, 3), np.uint8, compression="gzip",
            compression_opts=4, chunks=(min(512, count), 16, 16, 3))    # neighbours are alike
        columns = [values[factors[:, k]] for k, values in enumerate(data.LABEL_VALUES)]
        file["labels"] = np.stack(columns, axis=1)
        for rows in results.progress(data.row_blocks(images, 512), "rendering"):
            images[rows] = np.round(shapes.images(index[rows]) * 255).astype(np.uint8)
        file.flush()
        content = file.id.get_file_image()
    results.write_atomically(path, lambda file: file.write(content))
    return count
