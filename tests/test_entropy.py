"""Whether the entropy of the importances tells how far the factors are mixed."""

import csv

import numpy as np
import pytest

import data
import metrics
from experiments import entropy


@pytest.fixture
def grid():
    return data.Shapes3D()


@pytest.fixture
def latents(grid):
    return data.latents(grid, 1.0, 0.0)


def test_the_way_starts_at_the_factors_and_only_turns_them():
    Q = entropy.turning(np.random.default_rng(0), 6)
    np.testing.assert_allclose(Q(0), np.eye(6))
    np.testing.assert_allclose(Q(0.7) @ Q(0.7).T, np.eye(6), atol=1e-12)
    np.testing.assert_allclose(Q(0.4) @ Q(0.3), Q(0.7), atol=1e-12)
    assert np.abs(Q(1) - np.eye(6)).max() > 0.5


def test_tasks_are_about_the_first_factors_only(grid, latents):
    tasks = entropy.tasks_about(grid, latents[1], 3)
    assert {f for task in tasks.tasks for f in task.factors} == {0, 1, 2}
    assert len(tasks.tasks) == entropy.TASKS


def test_the_entropy_sees_mixing_only_where_some_factors_are_not_asked_for(
    grid, latents, tmp_path, monkeypatch
):
    monkeypatch.setattr(entropy, "ROTATIONS", 1)
    monkeypatch.setattr(entropy, "PATH", (0, 1))
    monkeypatch.setattr(entropy, "USED", (2, 6))
    monkeypatch.setattr(entropy, "SCORED", 1000)
    entropy.draw_entropy(tmp_path / "e.png")
    rows = list(entropy.rows_of(2, grid, *latents))
    monkeypatch.setattr(entropy, "ROTATIONS", 2)
    more = list(entropy.rows_of(2, grid, *latents))
    assert more[:2] == rows and [row[1:3] for row in more[2:]] == [(1, 1)]  # t = 0 is one point
    with open(tmp_path / "e.csv", newline="") as file:
        two, two_mixed, six, six_mixed = csv.DictReader(file)
    assert float(two["H"]) < 1 < 1.3 < float(two_mixed["H"])
    assert float(six["H"]) == pytest.approx(float(six_mixed["H"]), abs=0.05)
    assert float(six["dci_d"]) > 0.99 > 0.3 > float(six_mixed["dci_d"])
    assert float(two["correlation"]) == pytest.approx(-1)


def test_rows_have_the_disentanglement_of_their_features(monkeypatch):
    monkeypatch.setattr(entropy, "ROTATIONS", 1)
    monkeypatch.setattr(entropy, "PATH", (0.2,))
    monkeypatch.setattr(entropy, "SCORED", 500)
    grid = data.Shapes3D()
    z, p = data.latents(grid, 1.0, 0.0)
    ((used, _, t, _, dci_d, accuracy),) = entropy.rows_of(3, grid, z, p)
    index = np.random.default_rng(20_000).integers(len(z), size=500)
    F = z[index] @ entropy.turning(np.random.default_rng(0), 6)(0.2)
    d, c = metrics.dci(z[index], F)
    assert (used, t) == (3, 0.2) and dci_d == d != c and 0.7 < accuracy < 1
