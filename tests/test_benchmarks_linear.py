"""The benchmark of the linear models runs, and its contestants agree."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_linear_benchmark_runs_and_all_give_the_same_result(tmp_path):
    path = tmp_path / "linear.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "linear.py"), "--smoke"]
    command += ["--repeats", "2", "--output", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())["rows"]
    assert {row["kind"] for row in rows} == {"ridgecv", "ols", "plain"}
    for row in rows:
        assert row["equal"], row
        assert len(row["seconds"]) == 2
    references = [row for row in rows if row["contestant"] != "ours"]
    assert {row["versus_reference"] for row in references} == {None}
