"""The benchmark of recording runs at its smallest and finds the same weights with and without."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_recording_benchmark_runs(tmp_path):
    output = tmp_path / "results.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "recording.py"), "--smoke"]
    command += ["--repeats", "2", "--threads", "1", "--output", str(output)]
    environment = dict(os.environ) | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    }
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    (row,) = json.loads(output.read_text())["rows"]
    assert row["same_weights"]
    assert {who: len(times) for who, times in row["seconds"].items()} == {
        "plain": 2,
        "recording": 2,
    }
    assert "same weights" in done.stdout
