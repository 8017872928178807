"""exercise.py -- write it yourself: eight functions, checked, and what is wrong told in words.

    run.py exercise                  the eight
    run.py exercise 3                what to write
    run.py exercise 3 mine.py        the starter file, where there is no mine.py yet; else: is it
                                     right, and if not, what is wrong

    theirs, ours     functions by name: those of the file, and the code's own
    trial            a title, and a function that returns what is wrong, or None

What is asked of a function is in experiments/exercise_trials.py: optimality, or the cases of
gradcheck.py with the function in the place of the code's own. Here: the command, and the file.
"""
import contextlib
import dataclasses
import importlib.util
import shutil
import sys
import textwrap
import traceback
from pathlib import Path

import numpy as np

import sparsedis
from experiments import settings
from experiments.exercise_trials import EXERCISES
from experiments.exercise_words import Wrong
from experiments.settings import option

UNWRITTEN = "is not written yet"
STARTERS = settings.ROOT / "docs" / "exercises"
WHICH = "its number, and the file that you write it in; the list of all when not given"


@dataclasses.dataclass(frozen=True)
class ExerciseSettings:
    """Write one of eight functions of the method yourself, and hear what is wrong with it.

    Exit status 1 if something is. The file is run as it is: check no file that you do not trust.
    """

    exercise: tuple = option((), WHICH, positional=True)


def exercise(config):
    """List, explain or check; returns the exit status."""
    if not config.exercise:
        tell_all()
        return 0
    number, *files = config.exercise
    if number not in map(str, EXERCISES) or len(files) > 1:
        raise ValueError(
            f"found {' '.join(config.exercise)}, expected a number from 1 to {len(EXERCISES)} and "
            "a file")
    if not files:
        explain(int(number))
        return 0
    path = Path(files[0])
    if path.suffix != ".py":
        raise ValueError(f"{path}: expected a file of Python, .py")
    if path.exists():
        return check_file(int(number), path.absolute())
    shutil.copyfile(starter_of(int(number)), path)
    print(f"{path}: written, to be filled in; then the same command checks it")
    return 0


def starter_of(number):
    """The path of a starter file."""
    return STARTERS / f"{number}_{EXERCISES[number].name}.py"


def tell_all():
    """The list."""
    for number, own in EXERCISES.items():
        print(f"{number}  {own.name:<20} {own.title}")
    print("\npython run.py exercise N          what to write\n"
          "python run.py exercise N mine.py  writes the starter file; then, checks what you wrote")


def explain(number):
    """What to write, and where ours is, to be read afterwards."""
    own = EXERCISES[number]
    print(starter_of(number).read_text())
    print(f"# Ours, for afterwards: {own.read}")


# ------------------------------------------------------------------------------ a file is checked


def check_file(number, path):
    """Try what a file holds, and tell; returns the exit status."""
    own = EXERCISES[number]
    theirs = {name: careful(f, str(path)) for name, f in functions_of(path, own.ours).items()}
    print(f"{own.name}: {own.title}")
    told, off = {}, set()                                           # title -> words; titles
    with sparsedis.cpu_threads(1):
        for title, trial in own.trials(theirs):
            print(f"  {title:<32}", end="", flush=True)             # before it runs: it may not end
            words, has_numbers = outcome(trial)
            print(f"\n{34 * ' '}".join(textwrap.wrap(words or "right", 66)))
            told[title] = words
            off |= {title} if words and has_numbers else set()
    tell_end(own, told, off)
    return int(any(told.values()))


def tell_end(own, told, off):
    """The last lines: what the wrong trials have in common. A hint is of its first trial, of which
    the numbers are off, and of others that fail with it."""
    written = {title: words for title, words in told.items() if words != UNWRITTEN}
    failed = {title for title, words in written.items() if words}
    if not written:
        print("Nothing is written yet.")
    elif failed:
        hints = [words for words, where in own.hints.items()
                 if where[0] in off and failed <= set(where)]
        print(f"Wrong only {hints[0]}" if hints else "Something is wrong.")
    elif len(written) < len(told):
        print("What is written is right; the rest is to be written.")
    else:
        print(f"All is right. Ours: {own.read}")


def outcome(trial):
    """What is wrong, or None; and whether there were numbers to be judged."""
    try:
        with np.errstate(all="ignore"):
            return trial(), True
    except Wrong as wrong:
        return str(wrong), wrong.has_numbers


def functions_of(path, names):
    """The functions of these names in a file; ValueError where it does not run or lacks one."""
    spec = importlib.util.spec_from_file_location("theirs", path)
    module = sys.modules["theirs"] = importlib.util.module_from_spec(spec)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{path}: {told_error(error, str(path))}") from None
    missing = [name for name in names if not callable(getattr(module, name, None))]
    if missing:
        raise ValueError(f"{path}: found no function {', '.join(missing)}")
    return {name: getattr(module, name) for name in names}


def careful(f, path):
    """f of a file on copies of its arguments; Wrong where it fails, or changes one of them."""
    def called(*args):
        copies = [np.copy(a) if isinstance(a, np.ndarray) else a for a in args]
        try:
            with contextlib.redirect_stdout(sys.stderr):
                out = f(*copies)
        except NotImplementedError:
            raise Wrong(UNWRITTEN) from None
        except (Exception, SystemExit) as error:
            raise Wrong(told_error(error, path)) from None
        if not all(np.array_equal(a, copy) for a, copy in zip(args, copies, strict=True)):
            raise Wrong("changes one of its arguments: work on a copy")
        return out

    return called


def told_error(error, path):
    """An exception in one line, with the last line of the file on the way to it."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} (line {error.lineno})"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
             if frame.filename == path]
    return f"{type(error).__name__}: {error}" + (f" (line {lines[-1]})" if lines else "")
