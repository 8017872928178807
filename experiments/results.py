"""results.py -- the folder of a run, RESULTS/<experiment>/<name>/.

    config.json       the settings, and a digest of the code that made the result
    metrics.jsonl     25 lines or more, one a step at most: step, loss, nonzero, scores, seconds,
                      unsolved
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
import errno
import json
import math
import os
import shutil
import sys
import time
from collections import namedtuple
from pathlib import Path

import filelock
import numpy as np
from tqdm import tqdm

import metrics
import sparsedis
from experiments import settings
from experiments.episode_networks import ENCODERS

RESPONSES = "responses.png"
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
    """Write JSON; ValueError names a number that is not finite."""
    try:
        text = json.dumps(content, indent=1, allow_nan=False)
    except ValueError:
        bad = [k for k, x in content.items() if isinstance(x, float) and not math.isfinite(x)]
        raise ValueError(f"{path}: not finite: {', '.join(bad)}") from None
    write_text(path, text + "\n")


REMEDY = "damaged, or of another version: remove its folder, or run its command with --force"


def read_json(path, numbers=(), others=()):
    """The dict of a JSON file, with finite numbers and other values of some names; ValueError names
    a file of another form."""
    try:
        content = json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {REMEDY} ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: {REMEDY} (no dict)")
    bad = [name for name in numbers if not is_number(content.get(name))]
    bad += [name for name in others if name not in content]
    if bad:
        raise ValueError(f"{path}: {REMEDY} (no {', '.join(bad)})")
    return content


def is_number(value):
    """Whether a value read from JSON is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def read_lines(path, until=math.inf, numbers=("step", "seconds")):
    """The lines of metrics.jsonl up to a step: what was written after the checkpoint is dropped,
    half a line at the end too. ValueError names a file that holds anything else."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    try:
        rows = [json.loads(line) for line in lines]
    except ValueError as error:
        raise ValueError(f"{path}: {REMEDY} ({error})") from None
    for row in rows:
        if not isinstance(row, dict) or not all(is_number(row.get(name)) for name in numbers):
            raise ValueError(f"{path}: {REMEDY} (a line without {', '.join(numbers)})")
    return [row for row in rows if row["step"] <= until]


class Lines(tqdm):
    """Progress as plain lines, for a log: one every 5 %, but none within 10 s of the last."""

    def display(self, msg=None, pos=None):
        if 0 < self.n < self.total:
            print(self, file=self.fp, flush=True)

    def close(self):
        self.disable = True                                         # without a last line


def progress(steps, what, total=None, there=0):
    """A progress bar on a terminal, lines elsewhere; so many steps are there already."""
    total = len(steps) if total is None else total
    told = {"desc": what, "total": total, "initial": there}
    if sys.stderr.isatty():
        return tqdm(steps, **told)
    return Lines(steps, ascii=True, mininterval=10, miniters=max(1, total // 20), **told)


class AtWork(ValueError):
    """Another process is at work on a result."""


def acquire_lock(path):
    """Hold the lock of a run's folder; AtWork where another process does."""
    lock = filelock.FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise AtWork(f"{path.parent}: another process is at work on this result") from None
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise                                                   # but a network disk's
        print(f"{path.parent}: files cannot be locked here: start no second process on it")
    return lock


# ------------------------------------------------------------------------------ checkpoints

GROUPS = ("params", "state", "adam_mean", "adam_square", "moments")


# What a checkpoint holds: sparsedis.Snapshot (SGD keeps its velocity as Adam's mean), the encoder,
# the run's seed, and, of a run of `tasks`, the moments by which it standardises rows and features,
# and the names of its columns.
Checkpoint = namedtuple("Checkpoint", "snapshot encoder seed moments inputs")


def save_checkpoint(path, snapshot, spec, seed, moments=None, inputs=()):
    """Write a snapshot of a run; its step s draws from the generator (seed, s)."""
    opt = snapshot.opt
    parts = snapshot.params, snapshot.state, opt.mean, opt.square, moments or {}
    groups = zip(GROUPS, parts, strict=True)
    arrays = {"adam_step": opt.step, "step": snapshot.step, "seed": seed}
    arrays |= {"encoder": json.dumps(spec), "inputs": json.dumps(list(inputs))}
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
        raise ValueError(f"{path}: not a checkpoint of this program ({error!r})") from None


def read_checkpoint(arrays, xp, device):
    """The Checkpoint that save_checkpoint made these arrays of."""
    step, seed, adam_step = (read_count(arrays[name]) for name in ("step", "seed", "adam_step"))
    spec = sparsedis.Spec(*json.loads(str(arrays["encoder"])))
    groups = {group: {} for group in GROUPS}
    for name, a in arrays.items():
        group, _, key = name.partition("/")
        if group in groups:
            groups[group][key] = a
    encoder = sparsedis.build(spec, ENCODERS)
    check_arrays(groups, encoder)
    for group, named in groups.items():
        groups[group] = {key: xp.asarray(a, device=device) for key, a in named.items()}
    opt = sparsedis.OptimiserState(adam_step, groups["adam_mean"], groups["adam_square"])
    snapshot = sparsedis.Snapshot(groups["params"], groups["state"], opt, step)
    inputs = json.loads(str(arrays.get("inputs", "[]")))
    return Checkpoint(snapshot, encoder, seed, groups["moments"], inputs)


def read_count(a):
    """A number that counts, from 0 on."""
    if a.shape != () or a.dtype.kind not in "iu" or a < 0:
        raise ValueError(f"found {a.shape} {a.dtype}, expected a count")
    return int(a)


def check_arrays(groups, encoder):
    """Refuse arrays that are not finite numbers of the shapes that the encoder has."""
    for group, named in groups.items():
        for name, a in named.items():
            if a.dtype.kind not in "fiu" or not np.isfinite(a).all():
                raise ValueError(f"{group}/{name} holds {a.dtype}, or values that are not finite")
    params, state = encoder.init(np.random.default_rng(0))
    expected = {"params": params, "state": state}
    for group, arrays in expected.items():
        for name, a in arrays.items():
            found = groups[group].get(name)
            if found is None or (found.shape, found.dtype.kind) != (a.shape, a.dtype.kind):
                raise ValueError(f"{group}/{name} is missing, or is not {a.shape} {a.dtype}")
    shapes = {name: a.shape for name, a in groups["params"].items()}
    for group in ("adam_mean", "adam_square"):
        own = {name: a.shape for name, a in groups[group].items()}
        if own not in (shapes, {}):
            raise ValueError(f"{group} does not fit the parameters")


# ------------------------------------------------------------------------------ a run


class Run:
    """The folder of one run of an experiment; `data` names the content of the data it runs on.

    `file` is that of the experiment's code and `numbers` are what its result tells, where they are
    not those of its settings class.
    """

    def __init__(self, config, data="rendered", file=None, numbers=None):
        self.config, self.numbers = config, numbers or config.numbers
        self.content, self.name = settings.identify(config, data=data)
        self.folder = Path(config.results) / settings.experiment_of(config) / self.name
        self.code = settings.code_digest(type(config), file)

    def path(self, name):
        """The path of a file of this run."""
        return self.folder / name

    def result(self):
        """The finished result, or None."""
        path = self.path("result.json")
        return read_json(path, self.numbers) if path.exists() else None

    def made_by(self):
        """What config.json tells: the settings, and the digest of the code that wrote it."""
        return read_json(self.path("config.json"), others=("code",))

    def kept(self):
        """The finished result, if it is to be kept, which is said; None where there is work."""
        result = None if self.config.force else self.result()
        if result is not None:
            made = ", made by other code" if self.made_by()["code"] != self.code else ""
            print(f"already there{made} (--force runs it again)")
        return result

    def __enter__(self):
        self.made = [folder for folder in (self.folder.parent, self.folder.parent.parent)
                     if not folder.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = acquire_lock(self.path(".lock"))
        if self.config.force:
            self.empty()
        for left_by_a_kill in self.folder.rglob(".*.new"):
            left_by_a_kill.unlink()
        before = self.made_before()
        codes = [code for code in codes_of(before) if code != self.code]
        kernels = [*before.get("kernel", "").split("+"), settings.blas_kernels()]
        made_by = {"version": self.config.version, "device": self.config.device,
                   "code": self.code, "kernel": "+".join(filter(None, dict.fromkeys(kernels))),
                   "libraries": settings.libraries()}
        if codes:
            print("going on from a checkpoint that was made by other code")
            made_by["code_before"] = codes
        write_json(self.path("config.json"), self.content | made_by)
        return self

    def made_before(self):
        """What config.json tells of what this run goes on from; empty where it begins."""
        return self.made_by() if any(self.folder.rglob("checkpoint.npz")) else {}

    def __exit__(self, *error):
        if any(error) and not any(self.folder.rglob("checkpoint.npz")):
            shutil.rmtree(self.folder, ignore_errors=True)          # nothing is lost
            for folder in self.made:
                with contextlib.suppress(OSError):                  # not empty
                    folder.rmdir()
        self.lock.release()                                         # last: the next may enter

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
        start = self.start(folder, training, xp, device, extra or {})
        log = Log(folder, training, measure, start, self.config.seed)
        with log.bar:
            end = sparsedis.train(training, start, log.report)
        tell_unsolved(np.mean([row.get("unsolved", 0) for row in log.rows]))
        return end, log.rows

    def start(self, folder, training, xp, device, extra):
        """The checkpoint's snapshot, or a fresh one; ValueError where the checkpoint is another
        run's."""
        encoder = training.encoder
        rng = np.random.default_rng(self.config.seed)               # as step 0's, [seed, 0]
        params, state = encoder.init(rng, xp=xp, device=device)
        for name, value in extra.items():
            params[name] = xp.asarray(value, dtype=xp.float32, device=device)
        path = folder / "checkpoint.npz"
        if not path.exists():
            return sparsedis.Snapshot(params, state, None, 0)
        snapshot, its_encoder, seed, *_ = load_checkpoint(path, xp, device)
        mine = self.config.seed, json.dumps(encoder.spec), layout(params)
        its = seed, json.dumps(its_encoder.spec), layout(snapshot.params)
        if its != mine or not 0 < snapshot.step <= training.steps:
            raise ValueError(f"{path}: a checkpoint of another run: --force runs it again")
        return snapshot

    def finish(self, result):
        """Write result.json; returns its content."""
        write_json(self.path("result.json"), result)
        return result

    def tell_files(self):
        """Print the folder and the names of its files."""
        names = sorted(file.name for file in self.folder.iterdir() if file.name != ".lock")
        print(f"{self.folder}{os.sep}: {', '.join(names)}")
        if RESPONSES in names:
            print(f"open {self.path(RESPONSES)}: each row is a feature, "
                  "and a good one moves in one column")


def codes_of(made_by):
    """The digests of all codes that made a result, by its config.json, the last one last."""
    codes = [*made_by.get("code_before", ()), made_by.get("code")]
    return list(filter(None, dict.fromkeys(codes)))


def layout(arrays):
    """The shape and dtype of each of named arrays."""
    return {name: (tuple(a.shape), str(a.dtype)) for name, a in arrays.items()}


def tell_unsolved(share):
    """Say which share of the fits of a run was not solved, if any."""
    if share:
        print(f"warning: {100 * share:.2g} % of the fits were not solved, and had no gradient")


class Log:
    """At least 25 lines of metrics.jsonl and checkpoints, evenly spaced, and a progress bar."""

    def __init__(self, folder, training, measure, start, seed):
        self.folder, self.training = folder, training
        self.measure, self.seed = measure, seed
        self.rows = read_lines(folder / "metrics.jsonl", start.step)
        if start.step != (self.rows[-1]["step"] if self.rows else 0):
            raise ValueError(f"{folder / 'metrics.jsonl'}: does not reach the checkpoint; {REMEDY}")
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        write_text(folder / "metrics.jsonl", text)
        spent = self.rows[-1]["seconds"] if self.rows else 0
        self.began = time.perf_counter() - spent
        self.losses, self.unsolved = [], []
        self.bar = progress(range(training.steps), "training", there=start.step)

    def report(self, now, loss, info):
        """Hear of a step: sparsedis.train calls this with its Snapshot, loss and info."""
        self.bar.update()
        self.losses.append(loss)
        self.unsolved.append(int(info.get("unsolved", 0)) / len(info["w"]) if "w" in info else 0)
        every = max(1, self.training.steps // LINES)
        if now.step % every and now.step != self.training.steps:
            return
        row = self.line(now, info)
        self.losses.clear()
        self.unsolved.clear()
        self.rows.append(row)
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
        save_checkpoint(self.folder / "checkpoint.npz", now, self.training.encoder.spec, self.seed)
        shown = [key for key in ("loss", "nonzero", "mcc", "accuracy") if key in row]
        self.bar.set_postfix_str(", ".join(f"{key} {row[key]:.3f}" for key in shown), refresh=False)

    def line(self, now, info):
        """A line of metrics.jsonl."""
        row = {"step": now.step, "loss": float(np.mean(self.losses)), "nonzero": 1.0}
        if "w" in info:
            row["nonzero"] = float(np.mean(metrics.to_numpy(info["w"] != 0)))
        row |= self.measure(now.params, now.state, info)
        row["seconds"] = round(time.perf_counter() - self.began, 2)
        row["unsolved"] = float(np.mean(self.unsolved))             # the share of all fits
        return row
