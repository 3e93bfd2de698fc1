"""The backend is known to joblib without torch, and after any use of the package."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("code", "torch_loaded"),
    [
        ("from sknn_resid import stacked\nwith stacked(): pass", False),
        ("from sknn_resid import stacked\nwith stacked(max_stack=3): stacked", False),
        (
            "import sknn_resid; sknn_resid.stacked\nimport joblib\n"
            "with joblib.parallel_config(backend='stacked', max_stack=4): pass",
            False,
        ),
        (
            "from sknn_resid import MLPClassifier\nimport joblib\n"
            "with joblib.parallel_config(backend='stacked'): pass",
            True,
        ),
        (
            "from sknn_resid import stacked\nimport joblib\n"
            "with stacked(): print(joblib.Parallel()(joblib.delayed(abs)(i) for i in (-1, 1)))",
            False,
        ),
    ],
)
def test_what_is_loaded(code, torch_loaded):
    code += "\nimport sys; assert ('torch' in sys.modules) is " + str(torch_loaded)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
