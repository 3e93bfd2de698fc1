"""TableEncoder against the rules written out a second time, value by value, in exact arithmetic."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest

from sknn_resid.neural_network import TableEncoder


def is_missing(value):
    return value is None or value is pd.NA or value != value


def quantile(pairs, q):
    """Of (value, weight) pairs; half way between neighbours where half of the weight is below."""
    pairs = sorted(pairs)
    target, below = q * sum(w for _, w in pairs), Fraction(0)
    for i, (value, weight) in enumerate(pairs):
        below += weight
        if below == target and i + 1 < len(pairs):
            return (value + pairs[i + 1][0]) / 2
        if below >= target:
            return value
    raise AssertionError


def number_outputs(name, values, weights, n_bins, new):
    """{(kind, name of the output): encoded ``new``} of a column of numbers."""
    pairs = [
        (Fraction(v), w) for v, w in zip(values, weights, strict=True) if w and not is_missing(v)
    ]
    holes = any(is_missing(v) for v, w in zip(values, weights, strict=True) if w)
    if not pairs:
        return {}
    low, high = min(pairs)[0], max(pairs)[0]
    first, median, third = (quantile(pairs, Fraction(i, 4)) for i in (1, 2, 3))
    scale = third - first
    if scale == 0 and low < high:
        others = [(abs(v - median), w) for v, w in pairs if v != median]
        scale = min(quantile(others, Fraction(1, 2)), (high - low) / 2)
    out = {}
    if scale:
        z = [0.0 if is_missing(v) else float((Fraction(v) - median) / scale) for v in new]
        out["numeric", name] = [v / math.sqrt(1 + v * v / 9) for v in z]
    if holes:
        out["missing", f"missingindicator_{name}"] = [float(is_missing(v)) for v in new]
    distinct = sorted({v for v, _ in pairs})
    edges = distinct
    if len(distinct) > n_bins + 1:
        edges = sorted({quantile(pairs, Fraction(t, n_bins)) for t in range(n_bins + 1)})
    if len(edges) >= 3:
        lowest = edges[0] if holes else median
        x = [lowest if is_missing(v) else Fraction(v) for v in new]
        for t, (a, b) in enumerate(itertools.pairwise(edges)):
            part = [min(max((v - a) / (b - a), 0), 1) - Fraction(1, 2) for v in x]
            out["piecewise", f"{name}_bin{t}"] = [float(p) for p in part]
    return out


def level_outputs(name, values, weights, new):
    """The same of a column of categories, with the default rules for rare levels."""
    weight_of = {}
    for v, w in zip(values, weights, strict=True):
        if w and not is_missing(v):
            weight_of[v] = weight_of.get(v, 0) + w
    holes = any(is_missing(v) for v, w in zip(values, weights, strict=True) if w)
    levels = sorted(weight_of)
    if len(levels) == 2 and not holes:
        sign = {levels[0]: -1.0, levels[1]: 1.0}
        code = [0.0 if is_missing(v) else sign.get(v, 0.0) for v in new]
        return {("onehot", f"{name}_{levels[1]}"): code}
    if len(levels) == 1 and not holes:
        return {}
    if len(levels) > 10:
        levels = [v for v in levels if weight_of[v] >= 3]
    return {
        ("onehot", f"{name}_{level}"): [float(not is_missing(v) and v == level) for v in new]
        for level in levels
    }


def random_column(rng, n):
    """(is a category, values) of one of many kinds of columns."""
    kind = rng.integers(8)
    if kind == 0:
        values = rng.normal(size=n)
    elif kind == 1:
        values = rng.integers(0, rng.integers(1, 40), n)
    elif kind == 2:
        values = np.where(rng.random(n) < 0.7, 0.0, rng.exponential(size=n).round(2))
    elif kind == 3:
        values = np.exp(8 * rng.normal(size=n))
    elif kind == 4:
        values = 1e9 + rng.integers(0, 30, n) / 8
    elif kind == 5:
        values = rng.random(n) < 0.3
    elif kind == 6:
        values = np.array(list("abcdefghijklmnopqrstuvwxyz"))[
            rng.integers(0, rng.integers(1, 26), n)
        ]
    else:
        values = rng.choice(["no", "yes"], n)
    values = values.tolist()
    if rng.random() < 0.5:
        share = rng.choice([0.1, 0.5, 0.95])
        values = [None if rng.random() < share else v for v in values]
    return bool(kind >= 5), values


@pytest.mark.parametrize("seed", range(40))
def test_against_the_rules_written_twice(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.choice([1, 2, 3, 10, 60]))
    columns = {f"c{j}": random_column(rng, n) for j in range(6)}
    weights = rng.integers(0, 4, n) if rng.random() < 0.7 else np.ones(n, dtype=int)
    weights[rng.integers(n)] = 1
    X = pd.DataFrame({name: pd.Series(v, dtype=object) for name, (_, v) in columns.items()})
    n_bins = int(rng.choice([2, 5, 16]))
    encoder = TableEncoder(numeric_embedding="piecewise", n_bins=n_bins)
    encoder.fit(X, sample_weight=weights)
    exact = [Fraction(int(w)) for w in weights]
    expected = {}
    for name, (category, values) in columns.items():
        if category:
            expected |= level_outputs(name, values, exact, values)
        else:
            expected |= number_outputs(name, values, exact, n_bins, values)
    if not expected:
        expected = {("numeric", "c0"): [0.0] * n}
    found = list(zip(encoder.kinds_.tolist(), encoder.get_feature_names_out(), strict=True))
    assert sorted(found) == sorted(expected)
    Z = np.array([expected[key] for key in found]).T
    np.testing.assert_allclose(encoder.transform(X), Z, rtol=1e-9, atol=1e-9)
