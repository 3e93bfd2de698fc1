"""Ctrl-C, as a real signal in a process of its own: the end comes soon, and nothing is left."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PRELUDE = """
import faulthandler, signal, sys, threading, time, warnings
faulthandler.dump_traceback_later(240, exit=True)
signal.signal(signal.SIGINT, signal.default_int_handler)
import joblib
import numpy as np
from sklearn.model_selection import GridSearchCV, cross_validate
from sknn_resid import MLPClassifier, MLPRegressor, stacked
from sknn_resid.engine import runner

rng = np.random.RandomState(0)
X = rng.normal(size=(400, 5))
y = X[:, 0] + rng.normal(size=400)
real = runner.train_jobs

def announced(jobs, interrupted=None):
    print("training", len(jobs), flush=True)
    return real(jobs, interrupted)

runner.train_jobs = announced
for_hours = MLPRegressor(max_iter=10**7, n_iter_no_change=np.inf, batch_size=20, random_state=0)
grid = {"alpha": [0.1, 0.2, 0.3]}
filters = warnings.filters
pressed = []

def report(name):
    workers = [t for t in threading.enumerate() if t.name.startswith("sknn_resid")]
    print(name, len(workers), warnings.filters is filters, flush=True)

def main(program):
    with stacked():
        try:
            program()
            report("ended")
        except KeyboardInterrupt:
            report("interrupted")
            for _ in range(6):  # a further Ctrl-C, if there is one
                try:
                    time.sleep(0.05)
                except KeyboardInterrupt:
                    pass
        quick = MLPRegressor(max_iter=400, tol=0.5, n_iter_no_change=1, random_state=0)
        scores = cross_validate(quick, X, y, cv=3)["test_score"]
    print("afterwards", np.isfinite(scores).all(), flush=True)
    for_hours.set_params(early_stopping=False).set_callbacks()
"""

PROGRAMS = {
    "search": "main(lambda: GridSearchCV(for_hours, grid, cv=2).fit(X, y))",
    "nested search": """
        inner = GridSearchCV(for_hours, grid, cv=2)
        main(lambda: cross_validate(inner, X, y, cv=3))
    """,
    "lbfgs": """
        Y = np.sin(3 * X @ rng.normal(size=(5, 3)))
        net = MLPRegressor(
            hidden_layer_sizes=(200, 200), solver="lbfgs", max_iter=10**7, max_fun=10**8, tol=0
        )
        main(lambda: GridSearchCV(net, grid, cv=2).fit(X, Y))
    """,
    "callback in each epoch": """
        class Watch:
            def setup(self, estimator, context): pass
            def teardown(self, estimator, context): pass
            def on_fit_task_begin(self, estimator, context): pass
            def on_fit_task_end(self, estimator, context): pass
        for_hours.set_callbacks(Watch())
        main(lambda: GridSearchCV(for_hours, grid, cv=2).fit(X, y))
    """,
    "fit in a callback": """
        class Fitter(Watch):
            def on_fit_task_end(self, estimator, context):
                MLPRegressor(max_iter=10**7, n_iter_no_change=np.inf, random_state=0).fit(X, y)
        for_hours.set_callbacks(Fitter())
        main(lambda: GridSearchCV(for_hours, grid, cv=2).fit(X, y))
    """,
    "early stopping": """
        for_hours.set_params(early_stopping=True)
        main(lambda: GridSearchCV(for_hours, grid, cv=2).fit(X, y))
    """,
    "few at a time": """
        def program():
            with stacked(2), joblib.parallel_config(backend="stacked", max_stack=2):
                GridSearchCV(for_hours, grid, cv=2).fit(X, y)
        main(program)
    """,
    "processes": """
        def program():
            print("training", flush=True)
            GridSearchCV(for_hours, grid, cv=2, n_jobs=2).fit(X, y)
        main(program)
    """,
    "two kinds of tasks": """
        def outer(i):
            if i == 0:
                return GridSearchCV(for_hours, grid, cv=2).fit(X, y)
            return for_hours.fit(X, y)
        main(lambda: joblib.Parallel()(joblib.delayed(outer)(i) for i in range(3)))
    """,
}


# Name of a program -> how often Ctrl-C is pressed, in quick succession.
PRESSED = dict.fromkeys(PROGRAMS, 1)
PROGRAMS["again and again"] = PROGRAMS["nested search"]
PRESSED["again and again"] = 3
# The turn is somebody's who does not know of us: the second Ctrl-C does not wait for him.
PROGRAMS["foreign task"] = """
    def foreign(i):
        if i == 1:
            print("training", flush=True)
            time.sleep(200)
    try:
        with stacked():
            joblib.Parallel()(joblib.delayed(foreign)(i) for i in range(3))
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        print("afterwards", flush=True)
"""
PRESSED["foreign task"] = 3  # the last one: it leaves a thread behind


def press(child, times):
    """Wait until training has begun, press Ctrl-C; the lines until the end, and the seconds."""
    first = child.stdout.readline()
    assert first.startswith("training"), first + child.stderr.read()
    time.sleep(0.2)
    begun, seconds, lines = time.monotonic(), None, [first]
    for _ in range(times):
        child.send_signal(signal.SIGINT)
        time.sleep(0.05)
    while not lines[-1].startswith("afterwards"):
        lines.append(child.stdout.readline())
        assert lines[-1], "".join(lines) + child.stderr.read()
        if lines[-1].startswith("interrupted"):
            seconds = time.monotonic() - begun
    return [line.strip() for line in lines], seconds


@pytest.fixture(scope="module")
def interrupted():
    """Lines and seconds of each program, run one after another in one process."""
    code = PRELUDE + "".join(map(textwrap.dedent, PROGRAMS.values()))
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    try:
        yield {name: press(child, PRESSED[name]) for name in PROGRAMS}
    finally:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("name", [name for name in PROGRAMS if PRESSED[name] == 1])
def test_ctrl_c_ends_soon_and_leaves_nothing(interrupted, name):
    lines, seconds = interrupted[name]
    assert "interrupted 0 True" in lines  # no thread left, same filters
    assert lines[-1] == "afterwards True"  # and it works as before
    assert seconds < 60  # a single fit would take hours


@pytest.mark.parametrize("name", [name for name in PROGRAMS if PRESSED[name] > 1])
def test_impatient(interrupted, name):
    _, seconds = interrupted[name]
    assert seconds < 60
