"""What each of two processes does for `test_resnet_processes`: fits, and what they end with."""

import sys

import numpy as np
import torch

from sknn_resid import ResNetClassifier

BASE = {"depth": 8, "width": 4, "batch_size": 12, "max_iter": 2, "random_state": 0}
CASES = {
    "plain": {"augmentation": None},
    "everything": {
        "augmentation": "crop_flip",
        "mixup": 0.4,
        "drop_path": 0.3,
        "shortcut": "B",
        "class_weight": "balanced",
        "clip_norm": 1.0,
        "label_smoothing": 0.1,
        "average_fraction": 0.5,
        "early_stopping": True,
        "validation_fraction": 0.2,
        "record_gradients": True,
    },
    "odd": {"batch_size": 11, "preactivation": True, "solver": "adamw"},
    "few": {"batch_size": 3, "max_iter": 1, "record_gradients": True},
}


def data():
    rng = np.random.default_rng(0)
    X = rng.integers(0, 256, (36, 8, 8, 3), dtype=np.uint8)
    y = np.arange(36) % 3
    y[:6] = 0
    return X, y


def fit_all(**more):
    """State and curve of each case, in float64 so that only the order of sums differs."""
    found = {}
    for name, params in CASES.items():
        clf = ResNetClassifier(**(BASE | params), dtype="float64", **more).fit(*data())
        found |= {f"{name}:{key}": array for key, array in clf.state_dict_.items()}
        found[f"{name}:curve"] = np.array(clf.loss_curve_)
        if clf.record_gradients:
            found[f"{name}:flow"] = clf.gradient_history_.values
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else None
    assert rank is None  # each fit makes its group and leaves none
    import os

    np.savez(f"{sys.argv[1]}/rank{os.environ['RANK']}.npz", **fit_all(data_parallel=True))
    assert not torch.distributed.is_initialized()
    # Time is up in one process only: both stop.
    limit = {"max_time": 1e-9} if os.environ["RANK"] == "0" else {"max_time": 1e9}
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        late = ResNetClassifier(**BASE, data_parallel=True, **limit).fit(*data())
    assert late.n_iter_ == 1, late.n_iter_
