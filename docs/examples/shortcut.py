"""Five steps instead of a solve: how wrong the published shortcut for SVMs is.     [L23, App. D.3]

    python docs/examples/shortcut.py FOLDER [STEPS ...]

FOLDER is a finished run of `run.py fewshot --source glyphs`. The shortcut takes projected gradient
steps on the dual, from the centre of the simplices, and differentiates where they end; errors are
relative to the exact solution and gradient, for eight episodes. Writes shortcut.csv.
"""
import csv
import json
import sys
from pathlib import Path

import array_api_compat.numpy as xp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import solvers
from experiments import bench, fewshot, results


def trained_problem(folder):
    """F, Y, lam1 and lam2 of eight test episodes on a run's features."""
    told = json.loads((folder / "config.json").read_text())
    config = fewshot.FewShot(noise=told.get("noise", 0.0), eps=told["eps"])
    source, _ = fewshot.source_of(config)
    encoder = fewshot.encoder_of(config, source.image_shape)
    end = results.load_checkpoint(folder / "checkpoint.npz", xp).snapshot
    size = fewshot.Size(config.way, config.shot, 1)
    index, Y = fewshot.draw_episodes(np.random.default_rng(0), source, "test", size, 8)

    def images(some):
        return source.images("test", some)

    encoded = fewshot.encode_episodes(encoder, end.params, end.state, images, index, Y)
    support = slice(config.way * config.shot)
    F = encoded.F[encoded.place].astype(np.float64)[:, support]
    Y = Y[:, support].astype(np.float64)
    return F, Y, config.eps * solvers.svm_lambda_max(F, Y), config.lam2


def main(folder, counts):
    """The rows of the table."""
    F, Y, lam1, lam2 = bench.svm_problem(1600)
    problems = [("random-ReLU", F, Y, lam1, k * lam2) for k in (1, 10, 62.5)]
    F, Y, lam1, lam2 = trained_problem(folder)
    problems += [("trained-conv4", F, Y, lam1, k * lam2) for k in (1, 10, 1000)]
    with open("shortcut.csv", "w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["features", "m", "lam2", "steps", "error_W", "error_dF"])
        for name, F, Y, lam1, lam2 in problems:
            for steps, error_W, error_dF in bench.shortcut(F, Y, lam1, lam2, counts):
                table.writerow([name, F.shape[2], lam2, steps, error_W, error_dF])
                print(f"{name}, lam2 {lam2:g}, {steps} steps: W {error_W:.2g}, dF {error_dF:.2g}",
                      flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(word) for word in sys.argv[2:]] or (5, 50, 500, 5000))
