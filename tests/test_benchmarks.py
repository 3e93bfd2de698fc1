"""The benchmarks run, and what they compare is comparable. How fast anything is, is no test."""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from script_runner import run_benchmark
from sklearn.metrics import log_loss
from sklearn.neural_network import MLPClassifier as ScikitLearnMLPClassifier
from sklearn.utils import shuffle

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def harness(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("_harness")
    for name in ("_harness", "mlp_fit"):
        sys.modules.pop(name, None)


SMALLEST = ("--smoke", "--repeats", "2", "--threads", "1")


def run_as_a_command(name, folder, *arguments):
    """Run a benchmark at its smallest, on one thread, and return the JSON it writes."""
    output = folder / "results.json"
    command = [sys.executable, str(BENCHMARKS / name), *SMALLEST]
    command += ["--output", str(output), *arguments]
    environment = dict(os.environ) | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    document = json.loads(output.read_text())
    assert document["environment"]["versions"]["torch"] != "not installed"
    assert str(output) in done.stdout
    return document


def expected_contestants():
    installed = {"skorch"} if importlib.util.find_spec("skorch") else set()
    return {"ours", "sklearn", "torch"} | installed


def test_fit_benchmark_runs_and_all_reach_the_same_loss(tmp_path):
    document = run_as_a_command(
        "mlp_fit.py", tmp_path, "--device", "cpu", "--shapes", "digits", "binary", "wide"
    )
    groups = {}
    for row in document["rows"]:
        groups.setdefault((row["shape"], row["dtype"]), []).append(row)
        assert len(row["seconds"]) == 2
        assert all(seconds >= 0 for seconds in row["seconds"])
        assert row["loss_agrees"], row
    bfloat16 = groups.pop(("wide", "bfloat16"), None)
    assert set(groups) == {
        (shape, dtype) for shape in ("digits", "binary", "wide") for dtype in ("float32", "float64")
    }
    for rows in groups.values():
        assert {row["contestant"] for row in rows} == expected_contestants()
    if bfloat16 is None:  # then the run says why
        assert any("bfloat16" in note for note in document["notes"])
    else:
        assert [row["contestant"] for row in bfloat16] == ["ours"]


def test_predict_benchmark_runs_and_all_give_the_same_result(tmp_path):
    document = run_benchmark(
        tmp_path, "mlp_predict.py", *SMALLEST, "--dtypes", "float32", "float64"
    )
    for row in document["rows"]:
        assert row["equal"], row
    assert {row["contestant"] for row in document["rows"]} == expected_contestants()
    assert {row["method"] for row in document["rows"]} == {"predict", "predict_proba"}
    # In one process two rounds each; many rows also once alone, in a process of their own.
    found = {(row["rows"], row["setting"], len(row["seconds"])) for row in document["rows"]}
    assert found == {(1, "together", 2), (300, "together", 2), (300, "alone", 1)}
    times_one = [r["versus_sklearn"] for r in document["rows"] if r["contestant"] == "sklearn"]
    assert times_one
    assert all(ratio is None for ratio in times_one)


def test_search_benchmark_runs_and_all_find_the_same(tmp_path):
    chosen = ("--shapes", "iris", "hundred", "--dtypes", "float64")
    document = run_benchmark(tmp_path, "stacked_search.py", *SMALLEST, *chosen)
    assert [row["contestant"] for row in document["rows"]] == ["sklearn", "ours", "stacked"] * 2
    assert [row["score_difference"] for row in document["rows"]] == [0] * 6


def test_bfloat16_is_refused_without_its_reference(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "mlp_fit.py"), "--dtypes", "bfloat16"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "bfloat16 is measured beside float32" in done.stderr


def test_initial_weights_are_those_of_scikit_learn(harness):
    X, y = np.random.RandomState(1).standard_normal((30, 4)), np.arange(30) % 3
    # Steps of 1e-300 change no digit: what is left is the initialisation.
    net = ScikitLearnMLPClassifier(
        (5, 6), solver="sgd", learning_rate_init=1e-300, max_iter=1, random_state=7
    ).fit(X, y)
    coefs, intercepts, state = harness.initial_weights((4, 5, 6, 3), 7)
    for ours, theirs in zip(coefs + intercepts, net.coefs_ + net.intercepts_, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # One epoch's shuffle later, scikit-learn's random state stands where ours will.
    state.permutation(30)
    np.testing.assert_array_equal(state.uniform(size=3), net._random_state.uniform(size=3))


def test_orders_are_those_of_scikit_learn(harness):
    next_order = importlib.import_module("mlp_fit").next_order
    ours = theirs = np.arange(50)
    state, reference = np.random.RandomState(3), np.random.RandomState(3)
    for _ in range(4):
        ours = next_order(ours, state)
        theirs = shuffle(theirs, random_state=reference)
        np.testing.assert_array_equal(ours, theirs)


def test_cross_entropy_is_log_loss(harness):
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), size=40)
    y = np.arange(40) % 4
    assert harness.cross_entropy(y, p) == pytest.approx(log_loss(y, p), rel=1e-12)
    second = p[:, 0]
    assert harness.cross_entropy(y % 2, second) == pytest.approx(log_loss(y % 2, second), rel=1e-12)
    assert np.isfinite(harness.cross_entropy(np.array([0]), np.array([[0.0, 1.0]])))


def test_contestants_take_turns_and_the_first_one_changes(harness):
    ticks = iter(range(1000))
    calls = []
    seconds, results = harness.time_interleaved(
        {name: (lambda name=name: calls.append(name) or name) for name in "abc"},
        repeats=3,
        clock=lambda: float(next(ticks)),
        calls=2,
    )
    assert "".join(calls) == "aabbcc" + "bbccaa" + "ccaabb"
    assert results == {name: name for name in "abc"}
    assert seconds == {name: [0.5, 0.5, 0.5] for name in "abc"}


def test_ratio_is_that_of_the_medians_with_the_range_of_the_rounds(harness):
    seconds = {"fast": [1.0, 2.0, 4.0], "slow": [3.0, 8.0, 6.0]}
    assert harness.ratio(seconds, "fast", "slow") == {"median": 3.0, "low": 1.5, "high": 4.0}
    assert harness.ratio(seconds, "slow", "slow") is None
    assert harness.ratio(seconds, "fast", "absent") is None


def test_losses_agree_within_one_percent_and_only_if_finite(harness):
    assert harness.agrees(1.009, 1.0)
    assert not harness.agrees(1.011, 1.0)
    assert not harness.agrees(float("nan"), 1.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.5, "2.5 s"), (0.0123, "12.3 ms"), (4.56e-5, "45.6 us"), (1234.5, "1234 s")],
)
def test_seconds_are_written_with_their_unit(harness, seconds, text):
    assert harness.format_seconds(seconds) == text


def test_table_columns_are_aligned(harness):
    lines = harness.format_table(["a", "bb"], [["long cell", "x"], ["", "y"]]).splitlines()
    assert [line.find(mark) for line, mark in zip(lines[2:], "xy", strict=True)] == [11, 11]
    assert set(lines[1]) == {"-", " "}
