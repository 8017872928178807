"""Your own images and factors: hand `train` a function that samples image sets and the labels of tasks on them.

    python docs/examples/your_images.py

Here an image is 16 x 16 with a soft blob whose row, column and brightness are the factors.
"""
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import data
import metrics
import sparsedis

rng = np.random.default_rng(0)
factors = rng.uniform(-1, 1, (4000, 3))                                     # row, column, brightness
grid = np.arange(16)
rows, columns = (np.exp(-(grid[None, :] - 8 - 4 * factors[:, i:i + 1]) ** 2 / 8) for i in (0, 1))
images = ((1.5 + factors[:, 2])[:, None, None] * rows[:, :, None] * columns[:, None, :])[..., None].astype(np.float32)
z = metrics.standardise(factors)
tasks = data.Tasks(z, np.full(len(z), 1 / len(z)), sets=2, samples=50, per_set=16)

encoder = sparsedis.Encoder([("flatten", "flatten", {}, {})] + sparsedis.mlp([256, 64, 3]).layers)


def sample(step):
    index, y = tasks.sample(np.random.default_rng([0, step]))
    return [images[index.ravel()]], y


training = sparsedis.Training(encoder, sample, sparsedis.task_objective("inner-lasso", eps=0.3), steps=400, lr=5e-3)
params, state = encoder.init(np.random.default_rng(0))
before = metrics.scores(z, encoder.forward(params, state, images, train=False)[0])
params, state, *_ = sparsedis.train(training, (params, state, None, 0))
after = metrics.scores(z, encoder.forward(params, state, images, train=False)[0])
print(f"MCC {before['mcc']:.3f} before training, {after['mcc']:.3f} after; R {after['r']:.3f}, DCI-D {after['dci_d']:.3f}")
