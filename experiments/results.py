"""results.py -- the folder of a run, RESULTS/<experiment>/<name>/.

    config.json       the settings, and a digest of the code that made the result
    metrics.jsonl     at least 25 lines: step, loss, nonzero, scores, seconds, unsolved tasks
    checkpoint.npz    parameters, state, optimiser, step, seed, and how to build the encoder
    *.png, *.npz      figures and arrays of the experiment
    result.json       last: the scores; a run that has one is not run again
    .lock             held by the process at work

    with Run(config, data) as run:                  lock the folder, write config.json
        end, rows = run.train(training, measure)    resumes from the checkpoint, if there is one
        run.finish({"mcc": 0.96})                   write result.json

Files are written under a temporary name and moved into place: whole, or not at all.
"""
import contextlib
import json
import os
import shutil
import time
from collections import namedtuple
from pathlib import Path

import filelock
import numpy as np
from tqdm import tqdm

import metrics
import sparsedis
from experiments import settings

LINES = 25  # lines of metrics.jsonl, and checkpoints, in a run


# ------------------------------------------------------------------------------ files


@contextlib.contextmanager
def new_file(path):
    """A temporary path beside `path`, moved there when the block ends well, removed otherwise."""
    path = Path(path)
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        yield new
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def write_atomically(path, write):
    """Write a file by write(file), open for bytes, so that it is there whole or not at all."""
    with new_file(path) as new, open(new, "wb") as file:
        write(file)


def write_text(path, text):
    """Write a text, whole or not at all."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path, content):
    """Write JSON; ValueError where a number is not finite."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_lines(path, until=float("inf")):
    """The lines of metrics.jsonl up to a step: what was written after the checkpoint is dropped."""
    if not path.exists():
        return []
    whole = [line for line in path.read_text().splitlines() if line.endswith("}")]
    rows = [json.loads(line) for line in whole]
    return [row for row in rows if row["step"] <= until]


def progress(steps, what, total=None):
    """A progress bar on a terminal, silence elsewhere."""
    return tqdm(steps, desc=what, total=total, disable=None)


# ------------------------------------------------------------------------------ checkpoints

GROUPS = ("params", "state", "adam_mean", "adam_square")  # SGD keeps its velocity as the mean


# What a checkpoint holds: sparsedis.Snapshot, and the encoder's name and sizes.
Checkpoint = namedtuple("Checkpoint", "snapshot spec")


def save_checkpoint(path, snapshot, spec, seed):
    """Write a snapshot of a run; its step s draws from the generator (seed, s)."""
    opt = snapshot.opt
    groups = zip(GROUPS, (snapshot.params, snapshot.state, opt.mean, opt.square), strict=True)
    arrays = {"adam_step": opt.step, "step": snapshot.step, "seed": seed}
    arrays["encoder"] = json.dumps(spec)
    for group, named in groups:
        arrays |= {f"{group}/{name}": metrics.to_numpy(a) for name, a in named.items()}
    write_atomically(path, lambda file: np.savez(file, **arrays))


def load_checkpoint(path, xp=np, device=None):
    """A Checkpoint on a device; ValueError names a file that is missing or is none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return read_checkpoint({name: file[name] for name in file.files}, xp, device)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except Exception as error:
        raise ValueError(f"{path}: not a checkpoint of this program ({error})") from None


def read_checkpoint(arrays, xp, device):
    """The Checkpoint that save_checkpoint made these arrays of."""
    groups = {group: {} for group in GROUPS}
    for name, a in arrays.items():
        group, _, key = name.partition("/")
        if group in groups:
            groups[group][key] = xp.asarray(a, device=device)
    opt = sparsedis.Optimiser(int(arrays["adam_step"]), groups["adam_mean"], groups["adam_square"])
    step = int(arrays["step"])
    snapshot = sparsedis.Snapshot(groups["params"], groups["state"], opt, step)
    return Checkpoint(snapshot, sparsedis.Spec(*json.loads(str(arrays["encoder"]))))


# ------------------------------------------------------------------------------ a run


class Run:
    """The folder of one run of an experiment; `data` names the content of the data it runs on.

    `file` is that of the experiment's code, where it is not the one of its settings class.
    """

    def __init__(self, config, data="rendered", file=None):
        self.config = config
        self.content, self.name = settings.identify(config, data=data)
        self.folder = Path(config.results) / settings.experiment_of(config) / self.name
        self.code = settings.code_digest(type(config), file)

    def path(self, name):
        """The path of a file of this run."""
        return self.folder / name

    def result(self):
        """The finished result, or None."""
        path = self.path("result.json")
        return json.loads(path.read_text()) if path.exists() else None

    def kept(self):
        """The finished result, if it is to be kept, which is said; None where there is work."""
        result = None if self.config.force else self.result()
        if result is not None:
            other = json.loads(self.path("config.json").read_text())["code"] != self.code
            made = ", made by other code" if other else ""
            print(f"already there{made} (--force runs it again)")
        return result

    def __enter__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = filelock.FileLock(self.path(".lock"))
        try:
            self.lock.acquire(blocking=False)
        except filelock.Timeout:
            text = f"{self.folder}: another process is at work on this result"
            raise ValueError(text) from None
        if self.config.force:
            self.empty()
        made_by = {"version": self.config.version, "device": self.config.device, "code": self.code}
        write_json(self.path("config.json"), self.content | made_by)
        return self

    def __exit__(self, *error):
        self.lock.release()

    def empty(self):
        """Remove what an earlier run left, but for the lock."""
        for file in self.folder.iterdir():
            if file.is_dir():
                shutil.rmtree(file)
            elif file.name != ".lock":
                file.unlink()

    def train(self, training, measure, xp=np, device=None, extra=None, part=""):
        """Train, with checkpoints and lines of metrics.jsonl; goes on where a run was interrupted.

        measure(params, state, info) -> what a line tells besides step, loss, nonzero and seconds
        extra    parameters beside the encoder's, name -> NumPy value
        part     a subfolder, for an experiment that trains several encoders
        Returns the last sparsedis.Snapshot and all lines.
        """
        folder = self.folder / part
        folder.mkdir(exist_ok=True)
        start = self.start(folder, training.encoder, xp, device, extra or {})
        log = Log(folder, training, measure, start, self.config.seed)
        with log.bar:
            end = sparsedis.train(training, start, log.report)
        return end, log.rows

    def start(self, folder, encoder, xp, device, extra):
        """The checkpoint's snapshot, or a fresh one."""
        path = folder / "checkpoint.npz"
        if path.exists():
            return load_checkpoint(path, xp, device).snapshot
        params, state = encoder.init(np.random.default_rng(self.config.seed), xp=xp, device=device)
        for name, value in extra.items():
            params[name] = xp.asarray(value, dtype=xp.float32, device=device)
        return sparsedis.Snapshot(params, state, None, 0)

    def finish(self, result):
        """Write result.json; returns its content."""
        write_json(self.path("result.json"), result)
        return result

    def tell_files(self):
        """Print the folder and the names of its files."""
        names = sorted(file.name for file in self.folder.iterdir() if file.name != ".lock")
        print(f"{self.folder}{os.sep}: {', '.join(names)}")


class Log:
    """At least 25 lines of metrics.jsonl and checkpoints, evenly spaced, and a progress bar."""

    def __init__(self, folder, training, measure, start, seed):
        self.folder, self.training = folder, training
        self.measure, self.seed = measure, seed
        self.rows = read_lines(folder / "metrics.jsonl", start.step)
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        write_text(folder / "metrics.jsonl", text)
        spent = self.rows[-1]["seconds"] if self.rows else 0
        self.began = time.perf_counter() - spent
        self.losses = []
        self.bar = progress(range(training.steps), "training")
        self.bar.update(start.step)

    def report(self, now, loss, info):
        """Hear of a step: sparsedis.train calls this with its Snapshot, loss and info."""
        self.bar.update()
        self.losses.append(loss)
        every = max(1, self.training.steps // LINES)
        if now.step % every and now.step != self.training.steps:
            return
        row = self.line(now, info)
        self.losses.clear()
        self.rows.append(row)
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
        save_checkpoint(self.folder / "checkpoint.npz", now, self.training.encoder.spec, self.seed)
        shown = [key for key in ("loss", "nonzero", "mcc", "accuracy") if key in row]
        self.bar.set_postfix_str(", ".join(f"{key} {row[key]:.3f}" for key in shown))

    def line(self, now, info):
        """A line of metrics.jsonl."""
        row = {"step": now.step, "loss": float(np.mean(self.losses)), "nonzero": 1.0}
        if "w" in info:
            row["nonzero"] = float(np.mean(metrics.to_numpy(info["w"] != 0)))
        row |= self.measure(now.params, now.state, info)
        row["seconds"] = round(time.perf_counter() - self.began, 2)
        if "converged" in info:
            row["unsolved"] = int(np.sum(~np.asarray(metrics.to_numpy(info["converged"]), bool)))
        return row
