"""Your own images and factors: hand `train` a function that samples images and labels of tasks.

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
factors = rng.uniform(-1, 1, (4000, 3))  # row, column, brightness
grid = np.arange(16)
rows, columns = (np.exp(-(grid - 8 - 4 * factors[:, i:i + 1]) ** 2 / 8) for i in (0, 1))
images = (1.5 + factors[:, 2])[:, None, None] * rows[:, :, None] * columns[:, None, :]
images = images[..., None].astype(np.float32)
z = metrics.standardise(factors)
tasks = data.Tasks(z, np.full(len(z), 1 / len(z)), sets=2, samples=50, per_set=16)

layers = sparsedis.Sequential(sparsedis.FLATTEN, sparsedis.mlp([256, 64, 3]).layer)
encoder = sparsedis.Encoder(layers)


def sample(step):
    index, y = tasks.sample(np.random.default_rng([0, step]))
    return [images[index.ravel()]], y


objective = sparsedis.task_objective("inner-lasso", eps=0.3)
training = sparsedis.Training(encoder, sample, objective, steps=400, lr=5e-3)
params, state = encoder.init(np.random.default_rng(0))
start = sparsedis.Snapshot(params, state, None, 0)
end = sparsedis.train(training, start)
told = []
for at in (start, end):
    F, _, _ = encoder.forward(at.params, at.state, images, train=False)
    told.append(metrics.scores(z, F))
before, after = told
print(f"MCC {before['mcc']:.3f} before training, {after['mcc']:.3f} after; "
      f"R {after['r']:.3f}, DCI-D {after['dci_d']:.3f}")
