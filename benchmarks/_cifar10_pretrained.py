"""Errors of published weights on the CIFAR-10 test set, to the image: ``cifar10.py --pretrained``.

The files in ``weights/`` of the data folder, read by `ResNetClassifier.from_pretrained`. The number
of errors in float32 must be the published one, by the ordinary module and by the folded form in
which the estimator predicts; bfloat16 and mirror images are reported.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

# Wrong of 10,000 (8.27 % and 6.61 %, as published with the weights), by depth.
PUBLISHED = {20: 827, 56: 661}


def measure_pretrained(
    data: Path, images: np.ndarray, codes: np.ndarray, device: str
) -> list[dict[str, Any]]:
    """One row for each file and each way to predict."""
    from sknn_resid import ResNetClassifier

    rows = []
    for path in sorted((data / "weights").glob("*.th")):
        ways = {
            "module": lambda path=path: _by_the_module(path, images),
            "float32": _estimator(path, images, device, "float32", None),
            "bfloat16": _estimator(path, images, device, "bfloat16", None),
            "float32, flip": _estimator(path, images, device, "float32", "flip"),
        }
        depth = ResNetClassifier.from_pretrained(path).depth
        for way, predict in ways.items():
            begun = time.perf_counter()
            predicted = predict()
            seconds = time.perf_counter() - begun
            rows.append(
                {
                    "file": path.name,
                    "depth": depth,
                    "way": way,
                    "n_images": len(codes),
                    "wrong": int((predicted != codes).sum()),
                    "published": PUBLISHED.get(depth),
                    "seconds": seconds,
                }
            )
    return rows


def _estimator(path: Path, images: np.ndarray, device: str, dtype: str, views: str | None) -> Any:
    def predict() -> np.ndarray:
        from sknn_resid import ResNetClassifier

        est = ResNetClassifier.from_pretrained(path, dtype=dtype, device=device)
        return est.set_params(test_augmentation=views).predict(images)

    return predict


def _by_the_module(path: Path, images: np.ndarray) -> np.ndarray:
    """Plain torch from the file to the class, on the CPU."""
    import torch

    from sknn_resid.engine.resnet import ResNet, load_arrays
    from sknn_resid.neural_network._weight_files import read_weights
    from sknn_resid.neural_network._weight_specs import infer_spec

    file = read_weights(path)
    module = ResNet(infer_spec(file.arrays))
    load_arrays(module, file.arrays)
    module.eval()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    found = []
    with torch.no_grad():
        for part in torch.from_numpy(images).split(250):
            x = (part.float() / 255 - mean) / std
            found.append(module(x.permute(0, 3, 1, 2)).argmax(1).numpy())
    return np.concatenate(found)


def pretrained_verdicts(rows: list[dict[str, Any]]) -> list[str]:
    """Whether the float32 errors are the published ones; only on the whole test set."""
    return [
        f"depth {row['depth']}, {row['way']}: {row['wrong']} wrong, published {row['published']}: "
        + ("met" if row["wrong"] == row["published"] else "MISSED")
        for row in rows
        if row["published"] is not None
        and row["n_images"] == 10_000
        and row["way"] in ("module", "float32")
    ]


def pretrained_table(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headers and cells."""
    headers = ["file", "way", "images", "wrong", "published", "seconds"]
    return headers, [
        [
            row["file"],
            row["way"],
            f"{row['n_images']:,}",
            str(row["wrong"]),
            str(row["published"] or "-"),
            f"{row['seconds']:.1f}",
        ]
        for row in rows
    ]
