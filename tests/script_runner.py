"""Scripts of examples/ and benchmarks/ run in the interpreter of the tests.

Each gets a namespace, arguments and warning filters of its own. Another interpreter for each took
longer than most of the scripts: it imports torch and scikit-learn anew. One example and one
benchmark are still started as commands, where they are tested.
"""

import json
import os
import runpy
import sys
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"


def run_script(path, *arguments):
    """Run a script as ``python path arguments`` would; a warning that a user would see is an error.

    Raises SystemExit where the script ends itself.
    """
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        patch.setattr(sys, "path", [str(path.parent), *sys.path])
        warnings.simplefilter("error")
        # As Python does outside of tests: these are for developers.
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning):
            warnings.simplefilter("ignore", category)
        known, environment = set(sys.modules), dict(os.environ)
        try:
            runpy.run_path(str(path), run_name="__main__")
        finally:
            os.environ.clear()
            os.environ.update(environment)
            # Modules beside the script are its own: the next script finds none of them.
            for name in set(sys.modules) - known:
                file = getattr(sys.modules[name], "__file__", None)
                if file is not None and Path(file).parent == path.parent:
                    del sys.modules[name]


def run_benchmark(folder, name, *arguments):
    """Run a benchmark, its workers included, and return the JSON that it writes."""
    output = folder / "results.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(BENCHMARKS))
        import _harness

        patch.setattr(_harness, "run_worker", _worker_here(folder))
        try:
            run_script(BENCHMARKS / name, *arguments, "--output", output)
        finally:
            del sys.modules["_harness"]
    return json.loads(output.read_text())


def _worker_here(folder):
    """`_harness.run_worker` without another process (`test_benchmarks` has one with)."""

    def run_worker(script, arguments, threads):
        path = folder / "rows.json"
        run_script(Path(script), *arguments, "--worker-output", path)
        return json.loads(path.read_text())

    return run_worker
