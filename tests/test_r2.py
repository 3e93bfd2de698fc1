"""R2 without the checks of scikit-learn's function is scikit-learn's R2, bit for bit."""

import itertools

import numpy as np
import pytest
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import r2_score

from sknn_resid._r2 import r2_of_checked

FLOATS = (np.float32, np.float64)


@pytest.mark.parametrize("shape", [(2,), (17,), (200,), (17, 1), (17, 3), (200, 2)])
@pytest.mark.parametrize("weighted", [None, np.float32, np.float64, np.int64])
@pytest.mark.parametrize("types", [*itertools.product(FLOATS, FLOATS), (np.int64, np.float32)])
def test_is_scikit_learns(shape, weighted, types):
    rng = np.random.default_rng(len(shape) + shape[0])
    y = (10 * rng.normal(size=shape) + 1e3).astype(types[0])
    predicted = (y + rng.normal(size=shape)).astype(types[1])
    weight = None if weighted is None else (5 * rng.random(shape[0]) + 1).astype(weighted)
    if weight is not None and len(weight) > 2:
        weight[1] = 0
    ours = r2_of_checked(y, predicted, weight)
    assert isinstance(ours, float)
    assert ours == r2_score(y, predicted, sample_weight=weight)


@pytest.mark.parametrize("weight", [None, np.array([1.0, 2.0, 0.0, 1.0])])
def test_constant_targets_and_exact_predictions(weight):
    constant = np.full(4, 3.0)
    other = np.array([1.0, 2.0, 3.0, 5.0])
    for y, predicted in itertools.product((constant, other), repeat=2):
        assert r2_of_checked(y, predicted, weight) == r2_score(y, predicted, sample_weight=weight)
    targets, predicted = np.c_[constant, other], np.c_[other, other]
    assert r2_of_checked(targets, predicted, weight) == 0.5
    # Memory by columns is summed as scikit-learn sums it.
    targets = np.asfortranarray(targets)
    assert r2_of_checked(targets, predicted + 0.1, weight) == r2_score(
        targets, predicted + 0.1, sample_weight=weight
    )


def test_one_row_is_not_defined():
    with pytest.warns(UndefinedMetricWarning):
        assert np.isnan(r2_of_checked(np.ones(1), np.ones(1)))
