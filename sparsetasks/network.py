"""network.py -- an encoder trained on the targets of rows, again and again.

    known, labels    (N, K) and (N, K[, k]), of targets.Targets
    rows(index)      rows as the encoder takes them

The method is sparsedis.task_objective; a step draws sets of rows, and targets for each of them.
"""
import functools
import time
import warnings

import numpy as np

from sparsedis import Snapshot, Training, adam, cosine, cpu_threads, task_objective, train

LOOKS = 25  # at the rows held out, in a training
PATIENCE = 10  # looks without a better score, then training ends


def fit(encoder, rows, known, labels, errors, settings, seed, xp):
    """The Snapshot of the step at which the mean of errors(snapshot) is least, and all losses.

    Ends early where that has not improved for long; where errors are none, that of the last step.
    settings has the names of SparseTasks.
    """
    params, state = encoder.init(np.random.default_rng(seed), xp=xp)
    watch = Watch(errors, settings)
    try:
        with cpu_threads():
            train(
                training(encoder, rows, known, labels, settings, seed, xp),
                Snapshot(params, state, None, 0), watch.report)
    except StopIteration:                                           # no better for long
        pass
    if watch.unsolved:
        warnings.warn(f"{watch.unsolved} fits of the training were not solved", stacklevel=2)
    return watch.best, watch.losses


class Watch:
    """Hears of every step: keeps its loss, and the Snapshot of least errors."""

    def __init__(self, errors, settings):
        self.errors, self.settings = errors, settings
        self.losses, self.best, self.least, self.waited = [], None, np.inf, 0
        self.unsolved = 0
        self.told = time.monotonic()

    def report(self, now, loss, info):
        """sparsedis.train calls this; StopIteration ends it."""
        self.losses.append(loss)
        if info["eps"] > 0:                                         # else F may separate classes
            self.unsolved += int(info["unsolved"])
        steps = self.settings.steps
        if now.step % -(-steps // LOOKS) and now.step != steps:
            return
        errors = self.errors(now)
        error = errors.mean() if len(errors) else -now.step         # none: the last is the best
        self.waited += 1
        if self.best is None or error < self.least:
            self.best, self.least, self.waited = now, error, 0
        if self.is_to_tell():
            held_out = f", on rows held out R^2 {1 - error:.3f}" if len(errors) else ""
            print(f"step {now.step} of {steps}: loss {loss:.4f}{held_out}")
        if self.waited >= PATIENCE:
            raise StopIteration

    def is_to_tell(self):
        """At verbose 1 every 10 seconds, above at every look."""
        now = time.monotonic()
        if self.settings.verbose > 1 or (self.settings.verbose and now > self.told + 10):
            self.told = now
            return True
        return False


def training(encoder, rows, known, labels, settings, seed, xp):
    """What sparsedis.train needs."""
    head = settings.head if labels.ndim == 2 else "inner-group-logistic"
    size = rows_of_a_set(known, settings.samples)
    split = min(settings.split, size - 1) if settings.split else None
    objective = task_objective(head, settings.eps, settings.warmup, split, masked=True)
    adam_with_decay = functools.partial(
        decayed, decay=settings.weight_decay, beta1=settings.beta1, beta2=settings.beta2)
    optimiser = adam_with_decay, functools.partial(cosine, flat=settings.flat)

    def sample(step):
        rng = np.random.default_rng([seed, step])
        sets = [draw(rng, known, labels, size, settings.tasks_per_set)
                for _ in range(settings.image_sets)]
        index, y, on = (np.stack(parts) for parts in zip(*sets, strict=True))
        return [xp.asarray(rows(index.ravel()))], (xp.asarray(y), xp.asarray(on))

    return Training(encoder, sample, objective, settings.steps, settings.lr, optimiser)


def decayed(params, grads, opt, lr, decay, **betas):
    """A step of Adam, and lr times decay of each parameter off.    [Loshchilov and Hutter 2019]"""
    stepped, opt = adam(params, grads, opt, lr, **betas)
    if decay:
        stepped = {name: a - lr * decay * params[name] for name, a in stepped.items()}
    return stepped, opt


def rows_of_a_set(known, most):
    """Rows of a set: `most`, but no more than half of the targets have labels."""
    return max(2, int(min(most, np.median(known.sum(axis=0)))))


def draw(rng, known, labels, size, count):
    """A set's rows (size,), the labels (count, size[, k]) of `count` targets, and their mask.

    All rows have a label of one target, drawn from those with so many; the others are drawn from
    those that have labels in half of the rows or more.
    """
    first = rng.choice(np.flatnonzero(known.sum(axis=0) >= size))
    index = rng.choice(np.flatnonzero(known[:, first]), size, replace=False)
    known, labels = known[index], labels[index]
    others = rng.permutation(np.flatnonzero(known.mean(axis=0) >= 0.5))
    count = min(count, known.shape[1])
    tasks = np.resize([first, *others[others != first]], count)     # again, if too few
    return index, np.swapaxes(labels[:, tasks], 0, 1), known[:, tasks].T
