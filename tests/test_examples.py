"""Every script in examples/ runs from anywhere, warns about nothing and writes where it is told.

One of them starts an interpreter of its own, as `make demo` does, the others run in this one.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from script_runner import run_script

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
DEMO = ROOT / "examples" / "quickstart.py"


def run_as_a_command(path, folder):
    """What the script prints."""
    environment = dict(os.environ) | {
        "MPLBACKEND": "Agg",
        "SKNN_RESID_OUTPUT": str(folder / "written"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, str(path)], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


def run_here(path, folder, monkeypatch, capsys):
    """What the script prints."""
    import matplotlib
    import matplotlib.pyplot as plt

    monkeypatch.chdir(folder)
    monkeypatch.setenv("SKNN_RESID_OUTPUT", str(folder / "written"))
    with matplotlib.rc_context():
        plt.switch_backend("Agg")
        try:
            run_script(path)
        except SystemExit as end:
            if str(end).startswith("Skipped: ") and "SKNN_RESID_DATA" not in os.environ:
                pytest.skip(str(end))  # the example itself says what it lacks
            raise AssertionError(f"ended early: {end}") from end
        finally:
            plt.close("all")
    printed = capsys.readouterr()
    assert "Warning" not in printed.err
    return printed.out


def test_there_are_examples():
    assert DEMO in EXAMPLES
    assert len(EXAMPLES) > 5


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(path, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib", reason="the examples draw: install the extra 'plot'")
    if path == DEMO:
        printed = run_as_a_command(path, tmp_path)
    else:
        printed = run_here(path, tmp_path, monkeypatch, capsys)
    pictures = list((tmp_path / "written").glob("*.png"))
    assert pictures
    for picture in pictures:
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert str(picture) in printed  # the reader is told where it is
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
