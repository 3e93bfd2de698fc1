"""The benchmark of the linear models runs, and its contestants agree."""

from script_runner import run_benchmark


def test_linear_benchmark_runs_and_all_give_the_same_result(tmp_path):
    rows = run_benchmark(tmp_path, "linear.py", "--smoke", "--repeats", "2")["rows"]
    assert {row["kind"] for row in rows} == {"ridgecv", "ols", "plain"}
    for row in rows:
        assert row["equal"], row
        assert len(row["seconds"]) == 2
    references = [row for row in rows if row["contestant"] != "ours"]
    assert {row["versus_reference"] for row in references} == {None}
