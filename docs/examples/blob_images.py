"""Grey images of a blob and targets of its row, column and brightness, as `run.py tasks` reads.

    python docs/examples/blob_images.py && python run.py tasks blobs.npz --steps 400

3,000 images of 28 x 28 with noise; the three factors are correlated at 0.8. Of 30 targets, each of
one or two of them, three in ten labels are missing.
"""
import numpy as np

rng = np.random.default_rng(0)
N, side = 3000, np.arange(28)
z = rng.multivariate_normal(np.zeros(3), 0.2 * np.eye(3) + 0.8, N)
row, column, brightness = np.clip(z, -2.5, 2.5).T[..., None]
vertical = np.exp(-(side - 14 - 4 * row) ** 2 / 8)
horizontal = np.exp(-(side - 14 - 4 * column) ** 2 / 8)
x = (1.5 + 0.5 * brightness)[..., None] * vertical[:, :, None] * horizontal[:, None, :]
x += 0.1 * rng.standard_normal(x.shape)

W = np.zeros((30, 3))
for task in W:
    on = rng.choice(3, rng.integers(1, 3), replace=False)
    task[on] = rng.standard_normal(len(on))
Y = z @ W.T
Y += 0.1 * Y.std(axis=0) * rng.standard_normal(Y.shape)
Y[rng.random(Y.shape) < 0.3] = np.nan
np.savez("blobs.npz", x=x.astype(np.float32), Y=Y, factors=z)
print("blobs.npz: x", x.shape, "Y", Y.shape)
