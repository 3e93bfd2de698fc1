"""The benchmark of recording runs at its smallest and finds the same weights with and without."""

from script_runner import run_benchmark


def test_recording_benchmark_runs(tmp_path, capsys):
    arguments = ("--smoke", "--repeats", "2", "--threads", "1")
    (row,) = run_benchmark(tmp_path, "recording.py", *arguments)["rows"]
    assert row["same_weights"]
    assert {who: len(times) for who, times in row["seconds"].items()} == {
        "plain": 2,
        "recording": 2,
    }
    assert "same weights" in capsys.readouterr().out
