"""The experiment of He et al. (2015) in small: what the identity is for.

The picture, over three seeds, is examples/plot_degradation.py.
"""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from sknn_resid import MLPResidualClassifier

PAPER = {
    "n_estimators": 1,
    "hidden_factor": 1.0,
    "preactivation": True,
    "init": "he",
    "numeric_embedding": None,
    "dropout": 0.0,
    "label_smoothing": 0.0,
    "average_fraction": 0.0,
    "early_stopping": False,
    "solver": "sgd",
    "momentum": 0.9,
    "learning_rate": "cosine",
    "learning_rate_init": 0.03,
    "warmup_fraction": 0.0,
    "weight_decay": 0.0,
    "batch_size": 128,
    "max_iter": 10,
    "random_state": 0,
}


def training_error(**params):
    """Per cent of the training rows that are wrong after training."""
    X, y = load_digits(return_X_y=True)
    X = X[:1437].astype(np.float32)
    return 100 * (1 - MLPResidualClassifier(**PAPER | params).fit(X, y[:1437]).score(X, y[:1437]))


def test_depth_hurts_plain_networks_and_not_residual_ones():
    error = {
        (skip, blocks): training_error(skip=skip, n_blocks=blocks)
        for skip in ("none", "identity")
        for blocks in (9, 27)
    }
    assert error["none", 27] >= error["none", 9] + 20
    assert error["identity", 27] <= error["identity", 9] + 1


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"normalization": None, "skip": "rezero", "solver": "adam", "learning_rate_init": 0.003},
        {"normalization": None, "solver": "adam", "learning_rate_init": 0.001, "init": "auto"},
    ],
    ids=["batch norm", "rezero", "branches that begin at zero"],
)
def test_110_layers_train(params):
    assert training_error(n_blocks=54, width=32, **params) < 10


def test_plain_twin_has_the_same_parameters():
    X, y = load_digits(return_X_y=True)
    counts = {
        MLPResidualClassifier(**PAPER | {"skip": skip, "n_blocks": 3, "max_iter": 1})
        .fit(X[:200], y[:200])
        .n_parameters_
        for skip in ("identity", "none")
    }
    assert len(counts) == 1
