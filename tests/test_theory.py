"""The paper's formal claims, and their figures."""

from pathlib import Path

import numpy as np

import run
from experiments import theory


def test_figures_of_the_assumptions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("fig2", "fig3"):
        assert (
            run.main(["figure", name]) == 0
            and Path(f"results/{name}.png").read_bytes()[:4] == b"\x89PNG"
        )


def test_every_claim_of_the_theory_holds(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run.main(["theory"]) == 0 and "FAILS" not in capsys.readouterr().out
    assert len(list(theory.theory(seed=1))) >= 10 and all(
        claim.holds for claim in theory.theory(seed=1)
    )


def test_a_bound_that_is_too_low_fails(monkeypatch):
    assert all(holds for _, _, holds in theory.support_variability_bound(np.random.default_rng(0)))
    monkeypatch.setattr(theory, "variability_bound", lambda m, p, T: 0.0)
    assert not all(
        holds for _, _, holds in theory.support_variability_bound(np.random.default_rng(0))
    )
