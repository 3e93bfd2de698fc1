"""TableEncoder among scikit-learn's tools, on files, and on real tables."""

import json
import os
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn import config_context
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import (
    check_get_feature_names_out_error,
    check_global_output_transform_pandas,
    check_param_validation,
    check_set_output_transform,
    check_set_output_transform_pandas,
    check_set_output_transform_polars,
    check_transformer_get_feature_names_out,
    check_transformer_get_feature_names_out_pandas,
    estimator_checks_generator,
    parametrize_with_checks,
)

import sknn_resid
from sknn_resid.neural_network import TableEncoder
from sknn_resid.neural_network._table_state import encoder_from_state, encoder_state

VARIANTS = [
    TableEncoder(),
    TableEncoder(numeric_embedding="piecewise"),
    TableEncoder(categorical_features=None, dtype="float64"),
]


@parametrize_with_checks(VARIANTS)
def test_check(estimator, check):
    check(estimator)


# scikit-learn runs these on its own transformers; `parametrize_with_checks` leaves them out.
FURTHER_CHECKS = [
    check_get_feature_names_out_error,
    check_global_output_transform_pandas,
    check_param_validation,
    check_set_output_transform,
    check_set_output_transform_pandas,
    check_set_output_transform_polars,
    check_transformer_get_feature_names_out,
    check_transformer_get_feature_names_out_pandas,
]


# Some of them fit a frame and transform an array or the reverse: every estimator warns of that.
@pytest.mark.filterwarnings("ignore:X .*feature names:UserWarning")
@pytest.mark.parametrize("check", FURTHER_CHECKS, ids=lambda check: check.__name__)
def test_further_check(check):
    check("TableEncoder", TableEncoder(numeric_embedding="piecewise"))


def test_the_interesting_checks_are_asked_for():
    names = []
    for _, check in estimator_checks_generator(TableEncoder()):
        while hasattr(check, "func"):
            check = check.func
        names.append(check.__name__)
    assert {
        "check_sample_weight_equivalence_on_dense_data",
        "check_sample_weight_equivalence_on_sparse_data",
        "check_all_zero_sample_weights_error",
        "check_transformer_general",
        "check_transformer_preserve_dtypes",
        "check_dtype_object",
    } <= set(names)


def test_the_public_name():
    assert sknn_resid.TableEncoder is TableEncoder
    assert "TableEncoder" in dir(sknn_resid)


def table(n=80):
    rng = np.random.default_rng(0)
    X = pd.DataFrame(
        {
            "x": np.where(rng.random(n) < 0.1, np.nan, rng.normal(size=n)),
            "c": rng.choice(["a", "b", "c", None], n),
            "f": rng.random(n) < 0.5,
        }
    )
    return X, ((X["c"] == "a") | (X["x"] > 0.5)).to_numpy().astype(int)


def test_in_a_pipeline_and_a_search():
    X, y = table()
    model = make_pipeline(TableEncoder(), LogisticRegression())
    grid = {"tableencoder__numeric_embedding": [None, "piecewise"]}
    search = GridSearchCV(model, grid, cv=3, error_score="raise").fit(X, y)
    assert search.best_score_ > 0.8
    assert search.predict(X).shape == (80,)


def test_weights_are_routed():
    X, y = table()
    w = np.arange(len(X)) % 3.0
    with config_context(enable_metadata_routing=True):
        encoder = TableEncoder(numeric_embedding="piecewise").set_fit_request(sample_weight=True)
        final = LogisticRegression().set_fit_request(sample_weight=False)
        model = make_pipeline(encoder, final).fit(X, y, sample_weight=w)
    expected = TableEncoder(numeric_embedding="piecewise").fit(X, sample_weight=w)
    assert model[0].columns_ == expected.columns_


def test_after_a_column_transformer():
    X, _ = table()
    days = FunctionTransformer(feature_names_out="one-to-one")
    both = ColumnTransformer([("days", days, ["x"])], remainder="passthrough")
    both.set_output(transform="pandas")
    model = make_pipeline(both, TableEncoder())
    names = model.fit(X)[-1].get_feature_names_out()
    assert list(names)[:2] == ["days__x", "missingindicator_days__x"]


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_output_as_a_frame(library):
    X, _ = table()
    encoder = TableEncoder(numeric_embedding="piecewise").set_output(transform=library)
    frame = encoder.fit_transform(X)
    assert list(frame.columns) == list(encoder.get_feature_names_out())
    if library == "pandas":
        assert list(frame.index) == list(X.index)


def test_a_fitted_encoder_can_be_fitted_again():
    X, _ = table()
    encoder = TableEncoder().fit(X)
    again = encoder.fit(X[["x"]])
    assert again is encoder
    assert encoder.n_features_in_ == 1
    assert set(encoder.source_) == {0}
    assert vars(clone(encoder)) == encoder.get_params()


# -- plain data for files ----------


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"numeric_embedding": "piecewise", "dtype": np.float32},
        {"categorical_features": np.array(["c", "f"]), "min_frequency": 0.01},
        {"categorical_features": np.array([False, True, True]), "max_categories": np.int64(2)},
    ],
)
def test_state_through_json(params):
    X, _ = table()
    X["e"], X["k"], X["v"] = None, pd.Categorical(X["x"].round()), X["f"].astype(float) / 3
    X = X if isinstance(params.get("categorical_features", ""), str) else X[["x", "c", "f"]]
    encoder = TableEncoder(**params).fit(X)
    text = json.dumps(encoder_state(encoder), allow_nan=False)
    loaded = encoder_from_state(json.loads(text))
    assert loaded.columns_ == encoder.columns_
    Z = loaded.transform(X)
    assert Z.dtype == encoder.dtype_
    np.testing.assert_array_equal(Z, encoder.transform(X))
    for name in ("kinds_", "source_", "feature_names_in_", "is_categorical_"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(encoder, name))
    assert list(loaded.get_feature_names_out()) == list(encoder.get_feature_names_out())
    loaded.fit(X)
    assert loaded.columns_ == encoder.columns_


def test_state_without_names():
    X = np.random.default_rng(0).normal(size=(20, 3))
    encoder = TableEncoder().fit(X)
    loaded = encoder_from_state(json.loads(json.dumps(encoder_state(encoder))))
    np.testing.assert_array_equal(loaded.transform(X), encoder.transform(X))
    assert not hasattr(loaded, "feature_names_in_")


def test_levels_that_are_objects_have_no_plain_state():
    X = pd.DataFrame({"a": pd.cut([1.0, 2, 3, 9], 3)})
    encoder = TableEncoder().fit(X)
    with pytest.raises(ValueError, match=r"column 'a' has levels of type Interval.*astype\(str\)"):
        encoder_state(encoder)


# -- real tables ----------


def real_tables():
    folder = os.environ.get("SKNN_RESID_DATA")
    if not folder:
        return []
    with open(os.path.join(folder, "tabular", "index.json"), encoding="utf-8") as file:
        return [entry["name"] for entry in json.load(file)]


@pytest.mark.parametrize("name", real_tables() or [None])
def test_every_real_table(data_dir, name):
    """Raw columns in; finite out; one row alone as among all; unseen rows and levels too."""
    X = pd.read_parquet(data_dir / "tabular" / f"{name}.parquet").iloc[:, :-1]
    train, test = X.iloc[::2][:4000], X.iloc[1::2][:4000]
    encoder = TableEncoder(numeric_embedding="piecewise").fit(train)
    Z = encoder.transform(test)
    assert np.isfinite(Z).all()
    assert Z.shape == (len(test), len(encoder.kinds_))
    assert encoder.source_.max() < X.shape[1]
    np.testing.assert_array_equal(encoder.transform(test.iloc[5:6]), Z[5:6])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an array has no names
        as_objects = test.iloc[:200].to_numpy(dtype=object)
        np.testing.assert_array_equal(encoder.transform(as_objects), Z[:200])
    fitted = encoder.transform(train)
    assert abs(fitted[:, encoder.kinds_ == "numeric"]).max(initial=0) <= 3
    # Every output says something about the rows of fit.
    assert (fitted.max(axis=0) > fitted.min(axis=0)).all()
    weights = np.random.default_rng(0).integers(0, 3, len(train))
    by_weight = TableEncoder(numeric_embedding="piecewise").fit(train, sample_weight=weights)
    by_rows = TableEncoder(numeric_embedding="piecewise").fit(
        train.iloc[np.repeat(np.arange(len(train)), weights)]
    )
    assert by_weight.columns_ == by_rows.columns_
