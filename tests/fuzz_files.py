"""Damaged and hostile files and arguments: `python tests/fuzz_files.py [count] [seed]`.

Every input goes through run.main, as a user's would. It must end within 60 seconds, with status 0
or with status 1 or 2 and one line; nothing that a file names may run, and finished results stay.
"""

import contextlib
import hashlib
import io
import itertools
import os
import shutil
import signal
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import run  # noqa: E402
from experiments.render import write_hdf5  # noqa: E402

TINY = "--steps 3 --samples 6 --image-sets 1 --tasks-per-set 2 --eval-images 40 --threads 1".split()
FEWSHOT = "--way 2 --shot 1 --query 2 --episodes 1 --steps 2 --test-episodes 3 --threads 1".split()


class Runs:
    """Unpickled by NumPy's or Python's own loader, this would leave a file."""

    def __reduce__(self):
        return os.system, ("touch RAN",)


# ------------------------------------------------------------------------ files that are right


def write_files(folder):
    """One right file of every kind; returns the command that reads each."""
    rng = np.random.default_rng(0)
    write_hdf5(folder / "shapes.h5", 30)
    images = rng.integers(256, size=(6, 64, 64, 3), dtype=np.uint8)
    np.savez(folder / "images.npz", images=images, factors=rng.integers(4, size=(6, 6)))
    classes = np.stack([rng.integers(1, top + 1, 40) - 1 for top in (1, 3, 6, 40, 32, 32)], axis=1)
    sprites = rng.integers(2, size=(40, 64, 64), dtype=np.uint8)
    np.savez_compressed(folder / "sprites.npz", imgs=sprites, latents_classes=classes)
    x, y = rng.standard_normal((80, 4)), np.arange(80) % 2
    np.savez(folder / "table.npz", x=x, y=y, domain=np.arange(80) // 2 % 2)
    with zipfile.ZipFile(folder / "omniglot.zip", "w") as file:
        for name in itertools.product("abc", range(3), range(4)):
            picture = io.BytesIO()
            noise = rng.integers(256, size=(20, 20), dtype=np.uint8)
            Image.fromarray(noise).save(picture, "PNG")
            file.writestr("images/{}/character{}/{}.png".format(*name), picture.getvalue())
    for split in ("train", "val", "test"):
        x = rng.integers(256, size=(12, 32, 32, 3), dtype=np.uint8)
        np.savez(folder / f"X_{split}.npz", data=x, labels=np.repeat(np.arange(3), 4))
    main(TINY, folder)
    for file in next((folder / "results/disentangle").iterdir()).iterdir():
        shutil.copy(file, folder)
    return {
        "shapes.h5": [*TINY, "--rho", "0", "--data", "shapes.h5"],
        "images.npz": ["real", "checkpoint.npz", "images.npz"],
        "sprites.npz": ["sharing", "--source", "dsprites", "--data", "sprites.npz", "--steps", "1",
                        "--tasks", "1", "--pool", "1", "--shot", "2", "--query", "1",
                        "--features", "2", "--test-tasks", "2", "--eval-images", "20",
                        "--threads", "1"],
        "table.npz": ["sharing", "--source", "features", "--data", "table.npz", "--features", "2",
                      "--steps", "1", "--threads", "1"],
        "omniglot.zip": ["fewshot", "--source", "omniglot", "--data", "omniglot.zip", *FEWSHOT],
        "X_train.npz": ["fewshot", "--source", "npz", "--data", ".", *FEWSHOT],
        "checkpoint.npz": ["encode", "checkpoint.npz", "images.npz"],
        "result.json": TINY, "config.json": TINY, "metrics.jsonl": ["curves", "results"]}


# ------------------------------------------------------------------------ what is done to them


def damage(rng, content):
    """Bytes cut, flipped, repeated, or replaced."""
    content, kind = bytearray(content), rng.integers(6)
    if kind == 0:
        return bytes(content[: rng.integers(len(content) + 1)])
    if kind == 1:
        for i in rng.integers(len(content), size=rng.integers(1, 20)):
            content[i] = rng.integers(256)
    elif kind == 2:                                                 # among the first bytes
        for i in rng.integers(min(len(content), 200), size=3):
            content[i] = rng.integers(256)
    elif kind == 3:
        at = rng.integers(len(content))
        content[at:at] = bytes(rng.integers(256, size=50, dtype=np.uint8))
    elif kind == 4:
        return rng.choice([b"", b"{}", b"[]", b"null", b"{", b"\x00" * 99, b"PK\x05\x06", b"%!PS"])
    else:
        a, b = np.sort(rng.integers(len(content), size=2))
        del content[a:b]
    return bytes(content)


def other_array(rng, a):
    """An array of another dtype, shape or range."""
    if a.dtype.kind in "US":                                        # a checkpoint's encoder
        others = (np.array("[]"), np.array('["cnn", {}]'), np.array(3), np.zeros(2))
        return others[rng.integers(len(others))]
    a = np.atleast_1d(a)
    kinds = (
        lambda: a.astype(complex), lambda: a.astype(str), lambda: a.ravel(), lambda: a[:0],
        lambda: np.array(3), lambda: a.astype(float) * np.nan, lambda: a.astype(float) + 0.5,
        lambda: -a.astype(np.int64) - 1, lambda: a.astype(bool), lambda: a.astype(float) * 1e39,
        lambda: a[..., None], lambda: np.array([Runs()], object), lambda: a[:1], lambda: a.T,
        lambda: a.astype(np.int64) + 1000)
    return kinds[rng.integers(len(kinds))]()


def reshape_arrays(rng, path):
    """One array of an npz or HDF5 file replaced or removed."""
    if path.suffix == ".h5":
        with h5py.File(path, "a") as file:
            name = rng.choice(list(file))
            a = file[name][:]
            del file[name]
            if rng.random() < 0.8:
                with contextlib.suppress(TypeError):                # HDF5 has no such dtype
                    file[name] = other_array(rng, a)
        return
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    name = rng.choice(sorted(arrays))
    if rng.random() < 0.2:
        del arrays[name]
    else:
        arrays[name] = other_array(rng, arrays[name])
    np.savez(path, **arrays)


NUMBERS = ("-1", "0", "1", "2", "nan", "inf", "1e400", "1e-300", "x", "", "99999", "0.999")
FLAGS = ("--rho", "--alpha", "--eps", "--lr", "--steps", "--samples", "--features", "--seed",
         "--image-sets", "--tasks-per-set", "--warmup", "--split", "--outputs", "--shift",
         "--eval-images", "--threads", "--tasks", "--head", "--norm", "--likelihood", "--data")


def arguments(rng):
    """A command line of the main job with one or two flags of odd values."""
    words = list(TINY)
    for _ in range(rng.integers(1, 3)):
        words += [str(rng.choice(FLAGS)), str(rng.choice(NUMBERS))]
    large = {"--steps", "--samples", "--image-sets", "--tasks-per-set", "--eval-images",
             "--features", "--outputs"}
    pairs = itertools.pairwise(words)
    return None if any(a in large and b == "99999" for a, b in pairs) else words   # slow, not wrong


# ------------------------------------------------------------------------ the fuzz


def main(args, folder):
    """run.main in a folder: its status and what it printed to stderr."""
    out, err, here = io.StringIO(), io.StringIO(), os.getcwd()
    os.chdir(folder)
    signal.alarm(60)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = run.main(args)
    except SystemExit as stop:                                      # argparse
        status = stop.code
    finally:
        signal.alarm(0)
        os.chdir(here)
    return status, err.getvalue()


def too_long(number, frame):
    raise TimeoutError("more than 60 s")


def digest(folder):
    """Of all files of finished results."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest()


def fuzz(count, seed):
    """Try `count` inputs; returns what went wrong."""
    wrong, statuses = [], {}
    with tempfile.TemporaryDirectory() as name:
        base = Path(name) / "right"
        base.mkdir()
        commands = write_files(base)
        finished = next((base / "results/disentangle").iterdir())
        for kind, words in commands.items():                        # undamaged, each is read
            shutil.copytree(base, Path(name) / "now")
            words = [str(finished) if word == "results" else word for word in words]
            status, err = main(words, Path(name) / "now")
            shutil.rmtree(Path(name) / "now")
            assert status == 0, (kind, err)
        for i in range(count):
            rng = np.random.default_rng([seed, i])
            folder = Path(name) / "now"
            shutil.copytree(base, folder)
            kind = str(rng.choice([*commands, "arguments"]))
            result = folder / finished.relative_to(base)
            if kind == "arguments":
                words = arguments(rng)
            else:
                words = commands[kind]
                in_result = kind in ("result.json", "config.json", "metrics.jsonl")
                path = (result if in_result else folder) / kind
                arrays = kind.endswith((".npz", ".h5")) and rng.random() < 0.5
                if arrays:
                    reshape_arrays(rng, path)
                else:
                    path.write_bytes(damage(rng, path.read_bytes()))
                words = [str(result) if word == "results" else word for word in words]
            if words is not None:
                before = digest(result)
                try:
                    status, err = main(words, folder)
                    lines = err.strip().splitlines()
                    if status not in (0, 1, 2) or (status and len(lines) != 1):
                        wrong.append((i, kind, status, err[-300:]))
                    statuses[kind, status] = statuses.get((kind, status), 0) + 1
                except BaseException as error:
                    wrong.append((i, kind, "raised", repr(error)))
                if list(folder.rglob("RAN")):
                    wrong.append((i, kind, "ran", ""))
                if digest(result) != before:
                    wrong.append((i, kind, "changed a result", ""))
            shutil.rmtree(folder)
    for (kind, status), number in sorted(statuses.items()):
        print(f"{kind:<16} status {status}: {number}")
    return wrong


if __name__ == "__main__":
    signal.signal(signal.SIGALRM, too_long)
    warnings.simplefilter("ignore")
    count, seed = (int(a) for a in (*sys.argv[1:], *("2000", "0")[len(sys.argv) - 1:]))
    wrong = fuzz(count, seed)
    print(f"{count} inputs, {len(wrong)} went wrong", *wrong, sep="\n  ")
    sys.exit(bool(wrong))
