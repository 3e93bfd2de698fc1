"""Every script in examples/ runs from anywhere, warns about nothing and writes where it is told."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run_example(path, folder):
    environment = dict(os.environ) | {
        "MPLBACKEND": "Agg",
        "SKNN_RESID_OUTPUT": str(folder / "written"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    return subprocess.run(
        [sys.executable, str(path)], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_there_are_examples():
    assert EXAMPLES


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(path, tmp_path):
    pytest.importorskip("matplotlib", reason="the examples draw: install the extra 'plot'")
    done = run_example(path, tmp_path)
    if done.stderr.startswith("Skipped: ") and "SKNN_RESID_DATA" not in os.environ:
        pytest.skip(done.stderr.strip())  # the example itself says what it lacks
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    pictures = list((tmp_path / "written").glob("*.png"))
    assert pictures
    for picture in pictures:
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert str(picture) in done.stdout  # the reader is told where it is
    # Nothing is left lying about in the folder the script was started from.
    assert {entry.name for entry in tmp_path.iterdir()} == {"written"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_is_a_gallery_script(path):
    lines = path.read_text().splitlines()
    assert lines[0] == '"""', "a gallery script opens with a docstring"
    title, underline = lines[1], lines[2]
    assert set(underline) == {"="}
    assert len(underline) == len(title)
    assert "# %%" in lines
