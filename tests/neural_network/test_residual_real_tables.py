"""Every real table with text or missing values goes in as it is."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from sknn_resid import MLPResidualClassifier, MLPResidualRegressor

# Enough to meet every column; what is learned is measured by benchmarks/tabular_accuracy.py.
BRIEF = {"n_estimators": 1, "width": 8, "max_iter": 2, "random_state": 0}
ROWS = 600


def table(folder, name):
    frame = pd.read_parquet(folder / "tabular" / f"{name}.parquet")
    frame = frame.sample(min(len(frame), ROWS), random_state=0).reset_index(drop=True)
    X, y = frame.drop(columns="target"), frame["target"]
    if pd.api.types.is_numeric_dtype(y) and y.nunique() > 30:
        return MLPResidualRegressor(**BRIEF), X, y.to_numpy(dtype=float)
    return MLPResidualClassifier(**BRIEF), X, y.to_numpy()


def test_every_table_fits_and_predicts(data_dir):
    names = [entry["name"] for entry in json.loads((data_dir / "tabular/index.json").read_text())]
    assert len(names) > 30
    raw = 0
    for name in names:
        model, X, y = table(data_dir, name)
        raw += bool(X.isna().to_numpy().any() or X.select_dtypes(exclude="number").shape[1])
        predicted = model.fit(X, y).predict(X)
        assert predicted.shape == y.shape, name
        if isinstance(model, MLPResidualClassifier):
            p = model.predict_proba(X)
            assert np.isfinite(p).all(), name
            np.testing.assert_allclose(p.sum(axis=1), 1, err_msg=name)
        else:
            assert np.isfinite(predicted).all(), name
    assert raw > 10


@pytest.mark.parametrize("name", ["horse_colic", "soybean", "titanic", "credit_g"])
def test_inside_a_pipeline_and_a_search(data_dir, name):
    model, X, y = table(data_dir, name)
    step = type(model).__name__.lower()
    pipeline = make_pipeline(FunctionTransformer(), model)
    search = GridSearchCV(pipeline, {f"{step}__n_blocks": [1, 2]}, cv=2, error_score="raise")
    assert search.fit(X, y).predict(X).shape == y.shape
