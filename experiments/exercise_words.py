"""exercise_words.py -- what is wrong with a student's array or gradient, in words.

    found, wanted    an array of theirs, and what it should be
    mistakes         words -> what an array is if that mistake is made
    sizes            name -> number, by which a result may be too large or too small

Found by comparison: with usual mistakes, with multiples of what is wanted, with parts of it. That a
gradient is wrong, gradcheck's differences say.
"""
import numpy as np

from experiments import gradcheck


class Wrong(Exception):
    """What is wrong with a function, in words."""

    has_numbers = False


class NotFinite(Wrong):
    """Numbers, but not to be compared."""

    has_numbers = True


# ------------------------------------------------------------------------------ words for arrays


def fault(found, wanted, mistakes=None, sizes=None, rounding=1e-10):
    """What is wrong with an array, in words, or None."""
    found = as_numbers(found, wanted)
    if near(found, wanted, rounding=rounding):
        return None
    for words, other in (mistakes or {}).items():
        if near(found, other) and (np.any(found) or not np.ndim(found)):    # an array of 0: below
            return words
    if np.linalg.norm(wanted) <= 1e-10:
        return "should be 0" if np.ndim(found) else f"is {found:.2g}, and should be 0"
    if not np.any(found):
        return "is 0, and should not be"
    return multiple(found, wanted, sizes or {}) or partly(found, wanted)


def as_numbers(found, wanted):
    """As an array of the shape that is wanted; Wrong where it is none."""
    try:
        if found is None:
            raise TypeError
        found = np.asarray(found, dtype=np.float64)
    except (TypeError, ValueError):
        raise Wrong(f"is {type(found).__name__}, expected {form(wanted)}") from None
    if found.shape != np.shape(wanted):
        turned = ": transposed?" if found.T.shape == np.shape(wanted) else ""
        raise Wrong(f"has shape {found.shape}, expected {form(wanted)}{turned}")
    if not np.isfinite(found).all():
        raise NotFinite("holds values that are not finite: is something divided by 0, or does the "
                        "iteration diverge?")
    return found


def form(wanted):
    """The shape of an array, in words."""
    return f"an array {np.shape(wanted)}" if np.ndim(wanted) else "a number"


def near(found, wanted, share=1e-6, rounding=1e-10):
    """Whether two arrays are the same, but for a share of their size and rounding."""
    size = max(np.linalg.norm(wanted), np.linalg.norm(found))
    return np.linalg.norm(np.subtract(found, wanted)) <= share * size + rounding


def multiple(found, wanted, sizes):
    """What a result is too large or too small by, if it is a multiple of what is wanted; a single
    number always is one: of it only factors that have a name."""
    c = np.sum(found * wanted) / np.sum(np.square(wanted))
    size, sign = factor(abs(c), sizes), "has the wrong sign" if c < 0 else ""
    if not size and np.size(wanted) > 1:
        size = f"{abs(c):.4g} " + ("of what it should be" if abs(c) < 1 else "times too large")
    told = [sign] if np.isclose(abs(c), 1) else [f"is {size}" if size else "", sign]
    if not near(found, c * wanted) or not told[0]:
        return None
    return ", and ".join(filter(None, told))


def factor(c, sizes):
    """c in words, if it has a name."""
    for name, size in {"2": 2, **sizes}.items():
        if size != 1 and np.isclose(c, size):
            return f"{name} times too large"
        if size != 1 and np.isclose(c, 1 / size):
            return f"1/{name} of what it should be"


def partly(found, wanted):
    """How far an array is off, and where it is right."""
    right = np.isclose(found, wanted, rtol=1e-6, atol=1e-9 * np.abs(wanted).max(initial=1e-300))
    off = np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), 1e-300)
    told = f"; {right.mean():.0%} of its numbers are right" if right.any() else ""
    return f"is off by {off:.2g} of its length{told}"


def parts(out, **wanted):
    """Results of the shapes of arrays, by name; Wrong where one has another."""
    if not isinstance(out, tuple | list) or len(out) != len(wanted):
        names = ", ".join(f"d{name}" for name in wanted)
        count = len(out) if isinstance(out, tuple | list) else 1
        raise Wrong(f"gives {count} result{'s' * (count != 1)}, expected {len(wanted)}: {names}")
    found = []
    for (name, like), a in zip(wanted.items(), out, strict=True):
        try:
            found.append(as_numbers(a, like))
        except Wrong as wrong:
            raise Wrong(f"d{name}: {wrong}") from None
    return found


# ------------------------------------------------------------------------------ words for gradients


def gradient_fault(case_of, theirs, ours, mistakes, sizes=None):
    """What is wrong with a backward function, or None: by differences on the case that
    case_of(backward) makes. mistakes(*its arguments) -> name of an array -> words -> array."""
    calls = []

    def noted(*args):
        calls.append(args)
        return theirs(*args)

    wanted = gradients_of(case_of(ours))
    case = case_of(noted)
    found = gradients_of(case)
    wrong = [name for name, a in wanted.items() if not near(found[name], a)]
    if not wrong:
        zero = all(near(a, 0 * a) for a in wanted.values())         # differences are rounding there
        right = zero or gradcheck.passes(gradcheck.check_gradient(case.f, case.arrays))
        return None if right else "differs from central differences"
    usual = mistakes(*calls[0])
    told = {}                                                       # words -> names
    for name in wrong:
        words = (common_fault(found, wrong, usual)
                 or fault(found[name], wanted[name], usual.get(name), sizes))
        told.setdefault(words, []).append(f"d{name}")
    return "; ".join(f"{', '.join(names)}: {words}" for words, names in told.items())


def common_fault(found, wrong, usual):
    """The one mistake that explains all arrays that are wrong, if there is one."""
    for words in usual.get(wrong[0], {}) if len(wrong) > 1 else ():
        others = {name: usual.get(name, {}).get(words) for name in wrong}
        if all(a is not None and near(found[name], a) for name, a in others.items()):
            return words


def gradients_of(case):
    """name -> gradient, of a gradcheck.Case."""
    _, gradients, _ = case.f(case.arrays)
    return gradients()
