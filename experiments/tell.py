"""tell.py -- what a command that trains says to a person: what it does, and what was found.

    announce(config, takes)      what the command does and how long, the settings that were changed
    training_data                how many images the weights leave, which assumptions are met
    scores                       those of features, as they are and unmixed afterwards
"""
import dataclasses
import re

from experiments import settings

SCORES = {"mcc": "MCC", "r": "R", "dci_d": "DCI-D", "dci_c": "DCI-C"}
AFTERWARDS = ("mcc_ica", "mcc_rotated")
ASSUMPTIONS = {  # of [L23, Sec. 3.3]
    "3.2": "labels tell their parameters", "3.3": "features vary enough",
    "3.4": "tasks vary enough", "3.5": "and so do those of equal support",
    "3.6": "supports tell all factors apart"}


def announce(config, takes):
    """What the command does, how long it takes, and which settings are not the default's."""
    what, _, _ = (type(config).__doc__ or "").partition("\n")
    print(re.sub(r"\s*\[.*\]$", "", what))
    fields = [field for field in dataclasses.fields(config) if field.metadata.get("in_hash", True)]
    changed = [as_typed(field, getattr(config, field.name)) for field in fields
               if getattr(config, field.name) != field.default]
    told = ", all other settings as by default" if changed else "All settings as by default"
    print(f"It takes {takes}. {' '.join(changed)}{told} (all: config.json).")


def as_typed(field, value):
    """A setting as it stands on a command line."""
    words = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    flag = "" if field.metadata.get("positional") else settings.flag_of(field.name)
    return flag if value is True else f"{flag} {words}".strip()


def training_data(latents, verdicts):
    """data.describe_latents and metrics.assumptions of a run, in two lines."""
    print(f"training images: worth {latents['effective_images']:,.0f} different ones, factors "
          f"correlated at {abs(latents['realised_correlation']):.2f}")
    met = [f"{name} {ASSUMPTIONS[name]}" for name, (holds, _) in verdicts.items() if holds]
    missed = [f"{name} does not, {why}" for name, (holds, why) in verdicts.items() if not holds]
    print(f"what Theorem 3.1 assumes of these tasks holds: {', '.join(met)}"
          + "".join(f"; {words}" for words in missed))


def scores(result):
    """The scores of a run's features, as they are and unmixed afterwards, in two or three lines."""
    told = "   ".join(f"{name} {result[key]:.4f}" for key, name in SCORES.items())
    print(f"{told}      {result['steps']} steps, {result['seconds']:.0f} s of training")
    if result.keys() >= {*AFTERWARDS, "identified", "stability"}:   # not in older results
        rotated = (f"after a rotation: MCC {result['mcc_rotated']:.4f}, {result['identified']} of "
                   f"its {result['features']} features identified")
        rotated = rotated if result["stability"] else "no rotation can be told from these tasks"
        print(f"{rotated}   after ICA: MCC {result['mcc_ica']:.4f}")
    matched = [key for key in result if key.startswith("mcc_") and key not in AFTERWARDS]
    correlations = ", ".join(f"{key[4:]} {result[key]:.3f}" for key in matched)
    print(f"matched |correlation|: {correlations}")
