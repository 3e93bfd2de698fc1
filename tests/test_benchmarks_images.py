"""The benchmark of image networks runs, and its figures are what they are called."""

import importlib
import sys

import numpy as np
import pytest
from script_runner import BENCHMARKS, run_benchmark


@pytest.fixture
def cifar10(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("cifar10")
    for name in ("cifar10", "_harness", "_cifar10_pretrained"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("recipe", ["paper", "fast", "subset"])
def test_a_recipe_runs(tmp_path, recipe):
    rows = run_benchmark(tmp_path, "cifar10.py", "--smoke", "--recipe", recipe)["rows"]
    assert len({row["net"] for row in rows}) == len(rows)
    for row in rows:
        assert 0 <= row["train_error"] <= 100
        assert len(row["test_scores"]) == row["epochs"] == 1
        # The last look and the score afterwards are one figure: 64 images are one batch.
        assert np.isclose(100 * (1 - row["test_scores"][-1]), row["test_error"], atol=4)


def test_published_weights_are_counted(tmp_path, data_dir):
    """On a few images: to the image on all of them is what the benchmark itself is for."""
    arguments = ("--pretrained", "--test-rows", "60", "--device", "cpu")
    rows = run_benchmark(tmp_path, "cifar10.py", *arguments)["rows"]
    assert {row["depth"] for row in rows} == {20, 56}
    for depth in (20, 56):
        wrong = {row["way"]: row["wrong"] for row in rows if row["depth"] == depth}
        assert wrong["module"] == wrong["float32"] <= 9
        assert abs(wrong["bfloat16"] - wrong["float32"]) <= 1


def test_speed_benchmark_runs_and_all_give_the_same(tmp_path):
    document = run_benchmark(
        tmp_path,
        "resnet.py",
        "--smoke",
        *("--nets", "cifar20", "--tasks", "inference", "training"),
    )
    tasks = {}
    for row in document["rows"]:
        tasks.setdefault(row["task"], {})[row["contestant"]] = row
    assert set(tasks["inference"]) == {"eager", "ours", "ours_bfloat16"}
    assert set(tasks["training"]) == {"eager", "ours"}
    assert tasks["inference"]["ours"]["relative_error"] < 1e-5
    assert tasks["inference"]["ours_bfloat16"]["relative_error"] < 0.05


def test_the_paper_s_schedule(cifar10):
    """64,000 steps of 128 of 50,000 images."""
    paper = cifar10.PAPER
    steps = paper["max_iter"] * -(-50_000 // paper["batch_size"])
    assert abs(steps - 64_000) < 391
    assert paper["milestones"] == (32_000 / 64_000, 48_000 / 64_000)


def test_the_images_are_cifar10(cifar10, data_dir):
    """As many as there are, ten classes of equal size, and the channel means that are known."""
    for part, n in (("train", 50_000), ("test", 10_000)):
        X, y = cifar10.read_images(data_dir, part)
        assert X.shape == (n, 32, 32, 3)
        assert X.dtype == np.uint8
        assert np.bincount(y).tolist() == [n // 10] * 10
        if part == "train":
            some = X[::20].reshape(-1, 3).astype(np.float32)
            assert np.allclose(some.mean(0), [125.3, 123.0, 113.9], atol=2)
            assert np.allclose(some.std(0), [63.0, 62.1, 66.7], atol=1)


def test_verdicts(cifar10):
    row = {"recipe": "paper", "n_train": 50_000, "seed": 0, "train_error": 1.0}
    rows = [
        row | {"net": "resnet20", "test_error": 8.7},
        row | {"net": "resnet56", "test_error": 7.2},
        row | {"net": "plain20", "test_error": 9.0},
        row | {"net": "plain56", "test_error": 13.0, "train_error": 5.0},
    ]
    assert cifar10.verdicts(rows) == [
        "resnet20, seed 0: test error <= 8.75 %: met",
        "resnet56, seed 0: test error <= 6.97 %: MISSED",
        "paper: training error of plain56 above that of plain20: met",
        "paper: training error of plain56 above that of resnet56: met",
    ]
