"""What the accuracy benchmark computes is what it says. Which scores come out is no test."""

import doctest
import importlib
import json
import math
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import rankdata
from script_runner import BENCHMARKS, run_script
from sklearn.metrics import accuracy_score, log_loss, r2_score, root_mean_squared_error

MODULES = ("_tabular_sets", "_tabular_scores", "_tabular_contestants", "_tabular_torch")


@pytest.fixture
def load(monkeypatch):
    """Import one of the benchmark's files, and forget all of them afterwards."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module
    for name in ("_harness", "_tabular_report", "_tabular_runs", "tabular_defaults", *MODULES):
        sys.modules.pop(name, None)


def mixed_frame(rows, seed=0):
    """Numbers, strings, truth values, gaps in both, a constant column and an empty one."""
    random = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "number": random.standard_normal(rows),
            "gappy": np.where(random.random(rows) < 0.2, np.nan, random.standard_normal(rows)),
            "level": random.choice(["a", "b", "c"], rows),
            "flag": random.random(rows) < 0.5,
            "constant": 1.0,
            "empty": np.nan,
        }
    )
    frame.loc[::7, "level"] = None
    return frame


# ---- splits --------------------------------------------------------------------------------------


def test_splits_are_disjoint_repeatable_stratified_and_capped(load):
    sets = load("_tabular_sets")
    random = np.random.default_rng(0)
    for rows in (100, 1030, 20_000):
        X = pd.DataFrame({"row": np.arange(rows)})
        y = random.choice(["rare", "usual"], rows, p=[0.1, 0.9]).astype(object)
        part = sets.split(X, y, 11, classes=True)
        train, test = set(part.X_train["row"]), set(part.X_test["row"])
        assert not train & test
        assert len(train) == min(4_000, math.floor(0.7 * rows))
        assert len(test) == min(10_000, math.ceil(0.3 * rows))
        assert list(part.y_train) == list(y[part.X_train["row"]])
        share = (y == "rare").mean()
        assert abs((part.y_train == "rare").sum() - share * len(train)) <= 1
        assert abs((part.y_test == "rare").sum() - share * len(test)) <= 1
        again = sets.split(X, y, 11, classes=True)
        assert list(again.X_test["row"]) == list(part.X_test["row"])
        assert set(sets.split(X, y, 12, classes=True).X_test["row"]) != test


def test_a_second_target_is_no_feature(load, tmp_path):
    sets = load("_tabular_sets")
    frame = pd.DataFrame({"x": [1.0, 2.0], "target_cooling": [3.0, 4.0], "target": [5.0, 6.0]})
    frame.to_parquet(tmp_path / "energy_two_targets.parquet")
    X, y = sets.read(tmp_path, sets.Table("energy_two_targets", "regression", 2))
    assert list(X.columns) == ["x"]
    np.testing.assert_array_equal(y, [[3.0, 5.0], [4.0, 6.0]])


def test_columns_without_numbers_are_categorical(load):
    frame = mixed_frame(20)
    assert load("_tabular_sets").categorical_columns(frame) == ["level", "flag"]
    assert load("_tabular_sets").categorical_columns(frame.astype({"level": "category"})) == [
        "level",
        "flag",
    ]


# ---- scores --------------------------------------------------------------------------------------


def test_scores_are_scikit_learns(load):
    scores = load("_tabular_scores")
    random = np.random.default_rng(0)
    classes = np.array(["a", "b", "c"], dtype=object)
    y = random.choice(classes, 50)
    p = random.dirichlet(np.ones(3), 50)
    found = scores.class_scores(y, p, classes)
    assert found["score"] == accuracy_score(y, classes[p.argmax(axis=1)])
    assert found["loss"] == pytest.approx(log_loss(y, p, labels=classes), rel=1e-12)
    for shape in ((50,), (50, 2)):
        true, predicted = random.standard_normal(shape), random.standard_normal(shape)
        found = scores.regression_scores(true, predicted)
        assert found["score"] == pytest.approx(r2_score(true, predicted), rel=1e-12)
        flat = root_mean_squared_error(true.ravel(), predicted.ravel())
        assert found["loss"] == pytest.approx(flat, rel=1e-12)


def test_what_cannot_be_scored_is_refused(load):
    scores = load("_tabular_scores")
    classes = np.array(["a", "b"], dtype=object)
    with pytest.raises(ValueError, match="not seen"):
        scores.class_scores(np.array(["c"], dtype=object), np.array([[0.5, 0.5]]), classes)
    with pytest.raises(ValueError, match="not finite"):
        scores.class_scores(np.array(["a"], dtype=object), np.array([[np.nan, 0.5]]), classes)
    with pytest.raises(ValueError, match="not finite"):
        scores.regression_scores(np.array([1.0, 2.0]), np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="shape"):
        scores.regression_scores(np.zeros((2, 2)), np.zeros(2))


def records_of(errors, task="binary"):
    """Records with the given losses: {method: {(set, seed): loss}}; None for a failure."""
    return [
        {"set": name, "seed": seed, "method": method, "task": task}
        | (
            {"error": "ValueError: no"}
            if value is None
            else {"score": 1 - value, "loss": value, "fit_seconds": 2.0, "calibration": 0.1}
        )
        for method, runs in errors.items()
        for (name, seed), value in runs.items()
    ]


def test_ranks_share_ties_as_scipys_do(load):
    scores = load("_tabular_scores")
    values = [0.5, 0.1, 0.5, 0.9, 0.1, 0.1]
    assert scores.ranks(values, higher_is_better=False) == list(rankdata(values))
    assert scores.ranks(values, higher_is_better=True) == list(rankdata([-v for v in values]))


def test_only_runs_that_all_have_finished_are_compared(load):
    scores = load("_tabular_scores")
    records = records_of(
        {
            "one": {("x", 11): 0.1, ("x", 12): 0.2, ("y", 11): 0.3, ("z", 11): 0.2},
            "two": {("x", 11): 0.2, ("x", 12): 0.2, ("y", 11): None, ("z", 11): 0.1},
        }
    )
    runs = scores.common_runs(records, ["one", "two"])
    assert set(runs) == {("x", 11), ("x", 12), ("z", 11)}
    assert set(scores.common_runs(records, ["one", "two"], ["z"])) == {("z", 11)}
    for key in ("score", "loss"):
        assert scores.mean_ranks(runs, ["one", "two"], key) == {"one": 1.5, "two": 1.5}
        assert scores.wins(runs, ["one", "two"], key) == {"one": 1.5, "two": 1.5}


def test_paired_effect_of_ten_per_cent_less_error(load):
    scores = load("_tabular_scores")
    base = {("x", 11): 0.1, ("x", 12): 0.4, ("y", 11): 0.9, ("z", 11): 0.5}
    for task in ("binary", "regression"):
        ours = {run: math.exp(-0.1) * value for run, value in base.items()}
        runs = scores.by_run(records_of({"ours": ours, "peer": base}, task))
        found = scores.paired_effect(runs, "ours", "peer")
        assert found == pytest.approx(
            {"mean": -10, "se": 0, "median": -10, "better": 1, "sets": 3}, abs=1e-9
        )
        assert scores.paired_effect(runs, "peer", "ours")["mean"] == pytest.approx(10)
    # The two seeds of x count as one set: changes 0 (x: +5 and -5), 10, 20.
    change = {("x", 11): 0.05, ("x", 12): -0.05, ("y", 11): 0.1, ("z", 11): 0.2}
    ours = {run: math.exp(change[run]) * value for run, value in base.items()}
    runs = scores.by_run(records_of({"ours": ours, "peer": base}))
    found = scores.paired_effect(runs, "ours", "peer")
    assert found["mean"] == pytest.approx(10)
    assert found["se"] == pytest.approx(10 / math.sqrt(3))
    assert found["sets"] == 3
    assert scores.paired_effect(runs, "ours", "nobody") is None


def test_seconds_are_corrected_by_the_speed_of_the_machine(load):
    scores = load("_tabular_scores")
    records = records_of({"one": {("x", 11): 0.1, ("y", 11): 0.1, ("z", 11): None}})
    records[1] |= {"calibration": 0.2, "fit_seconds": 4.0}  # the machine at half its speed
    corrected = scores.corrected_seconds(records)
    assert corrected["x", 11, "one"] == pytest.approx(corrected["y", 11, "one"])
    assert set(corrected) == {("x", 11, "one"), ("y", 11, "one")}
    assert scores.calibrate() > 0


# ---- contestants ---------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [True, False])
def test_scikit_learns_mlp_takes_the_raw_frame(load, classes):
    contestants = load("_tabular_contestants")
    X, new = mixed_frame(60), mixed_frame(30, seed=1)
    new.loc[0, ["level", "number"]] = ["unseen", np.nan]
    y = np.where(X["number"] > 0, "yes", "no").astype(object) if classes else X["number"] * 1e3
    model = contestants.contestant("sklearn_mlp", classes=classes, seed=0)
    model.fit(X, np.asarray(y))
    found = model.predict_proba(new) if classes else model.predict(new)
    assert np.isfinite(found).all()
    fitted = model.predict_proba(X) if classes else model.predict(X)
    if classes:
        assert (fitted.argmax(axis=1) == (X["number"] > 0)).mean() > 0.9
    else:  # a target of this scale is out of reach unless it is scaled
        assert r2_score(y, fitted) > 0.9


def test_category_frame_keeps_its_levels_and_fills_with_its_medians(load):
    frame = load("_tabular_contestants").CategoryFrame
    X, new = mixed_frame(40), mixed_frame(10, seed=1)
    new.loc[0, "level"] = "unseen"
    new.loc[1, "number"] = np.nan
    plain = frame().fit(X).transform(new)
    assert list(plain.columns) == list(X.columns)
    assert list(plain["level"].cat.categories) == ["a", "b", "c"]
    assert pd.isna(plain.loc[0, "level"])
    assert plain["gappy"].isna().equals(new["gappy"].isna())
    filled = frame(impute=True).fit(X).transform(new)
    assert "empty" not in filled
    assert not filled.select_dtypes("number").isna().any().any()
    assert filled.loc[1, "number"] == X["number"].median()
    assert list(filled["gappy is missing"]) == list(new["gappy"].isna())


def test_encoder_of_the_torch_peers(load):
    encoder = load("_tabular_torch").Encoder()
    X, new = mixed_frame(300), mixed_frame(10, seed=1)
    new.loc[0, "level"] = "unseen"
    new.loc[1, "level"] = None
    numbers, _ = encoder.fit(X).transform(X)
    assert encoder.numbers == ["number", "gappy"]
    assert abs(numbers.mean()) < 0.1
    assert abs(numbers[:, 0].std() - 1) < 0.1
    assert encoder.cardinalities == [4, 3, 2]  # level, flag, gappy's gaps
    numbers, codes = encoder.transform(new)
    assert torch.isfinite(numbers).all()
    assert codes[:2, 0].tolist() == [3, 3]
    assert codes[:, 2].tolist() == new["gappy"].isna().astype(int).tolist()


def test_training_loop_keeps_the_best_epoch_and_stops_after_patience(load):
    peers = load("_tabular_torch")
    module = torch.nn.Linear(1, 1, bias=False)
    seen = []

    def judge():
        seen.append(module.weight.item())
        return 3.0 if len(seen) == 3 else 1.0

    epochs = peers._train(
        peers.Recipe(Batch(module), rate=0.1, decay=0.0, clip=None),
        (torch.ones(8, 1), torch.empty(8, 0)),
        torch.full((8, 1), 100.0),
        loss=peers._squared_loss,
        judge=judge,
    )
    assert epochs == 3 + peers.PATIENCE + 1
    assert module.weight.item() == seen[2]
    assert seen[2] != seen[-1]


class Batch(torch.nn.Module):
    """A linear layer with the members' axis that the loop expects."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, numbers, codes):
        return self.body(numbers)[:, None]


def test_a_change_of_defaults_is_read_as_literals(load, monkeypatch):
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(variable, "1")  # the file sets them; this gives them back afterwards
    parse = load("tabular_defaults").parse_change
    assert parse("dropout=0.0, numeric_embedding=None, skip='none'") == {
        "dropout": 0.0,
        "numeric_embedding": None,
        "skip": "none",
    }
    for wrong in ("dropout", "1", "dropout=print", "dropout=0.0)", "**{}"):
        with pytest.raises(SystemExit, match="Python literals"):
            parse(wrong)


def test_examples_of_the_docstrings(load):
    for name in MODULES:
        assert doctest.testmod(load(name)).failed == 0


# ---- the command ---------------------------------------------------------------------------------


def records_in(output, method):
    return json.loads((output / f"tabular_accuracy_{method}.json").read_text())["records"]


def test_command_runs_what_is_not_there_yet(tmp_path, monkeypatch, capsys):
    def run_benchmark(*arguments):
        run_script(BENCHMARKS / "tabular_accuracy.py", "--output", output, *arguments)
        return capsys.readouterr().out

    monkeypatch.setenv("SKNN_RESID_DATA", str(tmp_path))
    folder = tmp_path / "tabular"
    folder.mkdir()
    X = mixed_frame(60)
    for name, target in (("classes", np.where(X["flag"], "yes", "no")), ("numbers", X["number"])):
        X.assign(target=target).to_parquet(folder / f"{name}.parquet")
    index = [
        {"name": "numbers", "task": "regression", "n_rows": 60},
        {"name": "classes", "task": "binary", "n_rows": 60},
    ]
    (folder / "index.json").write_text(json.dumps(index))
    output = tmp_path / "results"

    run_benchmark("--methods", "sklearn_mlp", "--seeds", "11")
    first = records_in(output, "sklearn_mlp")
    assert [(r["set"], r["seed"]) for r in first] == [("classes", 11), ("numbers", 11)]
    assert all(r["train_rows"] == 42 and r["categorical"] == 2 for r in first)
    assert all(r["fit_seconds"] > 0 and r["calibration"] > 0 for r in first)

    both = ["--methods", "sklearn_mlp", "hist_gradient_boosting", "--sets", "classes"]
    printed = run_benchmark(*both, "--again", "--seeds", "11")
    again = records_in(output, "sklearn_mlp")
    assert again[1] == first[1]  # another set: left alone
    assert again[0]["score"] == first[0]["score"]
    assert again[0]["fit_seconds"] != first[0]["fit_seconds"]
    (failed,) = records_in(output, "hist_gradient_boosting")  # the empty column
    assert "error" in failed
    assert "raised" in printed

    stored = [path.read_text() for path in sorted(output.iterdir())]
    run_benchmark(*both, "--seeds", "11")
    assert [path.read_text() for path in sorted(output.iterdir())] == stored

    with pytest.raises(SystemExit) as ended:
        run_benchmark("--sets", "iris")
    assert ended.value.code not in (0, None)
    assert "'iris'" in f"{ended.value} {capsys.readouterr().err}"
