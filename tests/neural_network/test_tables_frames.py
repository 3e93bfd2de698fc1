"""TableEncoder: frames of any library, arrays, lists and sparse matrices are one table."""

import pickle
import subprocess
import sys
import tracemalloc

import array_api_strict
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from scipy import sparse
from sklearn import config_context

from sknn_resid.neural_network import TableEncoder, _blocks

N = 40
PARAMS = {"numeric_embedding": "piecewise", "n_bins": 4}


def data(n=N, seed=0):
    """Columns as lists of Python objects, None for missing."""
    rng = np.random.default_rng(seed)

    def holes(values, share=0.2):
        return [None if rng.random() < share else v for v in values.tolist()]

    return {
        "int": rng.integers(-5, 9, n).tolist(),
        "float": holes(rng.normal(size=n)),
        "nullable": holes(rng.integers(0, 1000, n)),
        "flag": (rng.random(n) < 0.4).tolist(),
        "maybe": holes(rng.random(n) < 0.4),
        "word": holes(rng.choice(["x", "y", "z"], n)),
        "level": holes(rng.choice(["lo", "mid", "hi"], n)),
    }


def as_pandas(columns):
    frame = pd.DataFrame(columns)
    return frame.astype({"level": "category"})


def as_nullable(columns):
    frame = pd.DataFrame(columns).convert_dtypes()
    return frame.astype({"level": "category"})


def as_objects(columns):
    return pd.DataFrame({k: pd.Series(v, dtype=object) for k, v in columns.items()})


def as_old_strings(columns):
    text = {"word": "string[python]", "level": object}
    return pd.DataFrame(columns).astype(text)


def as_arrow_dtypes(columns):
    return pa.table(columns).to_pandas(types_mapper=pd.ArrowDtype)


def as_arrow_dictionary_dtype(columns):
    return as_arrow(columns).to_pandas(types_mapper=pd.ArrowDtype)


def as_polars(columns):
    return pl.DataFrame(columns).with_columns(pl.col("level").cast(pl.Categorical))


def as_polars_enum(columns):
    return pl.DataFrame(columns).with_columns(pl.col("level").cast(pl.Enum(["mid", "lo", "hi"])))


def as_arrow(columns):
    table = pa.table(columns)
    level = pa.array(columns["level"], pa.string()).dictionary_encode()
    return table.set_column(6, "level", level)


def as_batch(columns):
    return as_arrow(columns).to_batches()[0]


FRAMES = [
    as_pandas,
    as_nullable,
    as_objects,
    as_old_strings,
    as_arrow_dtypes,
    as_arrow_dictionary_dtype,
    as_polars,
    as_polars_enum,
    as_arrow,
    as_batch,
]


def expected(columns):
    """The same table as an array of objects."""
    return np.array([*columns.values()], dtype=object).T


@pytest.mark.parametrize("make", FRAMES)
def test_frames_of_any_library_are_the_same_table(make):
    columns = data()
    reference = TableEncoder(**PARAMS).fit(expected(columns))
    encoder = TableEncoder(**PARAMS).fit(make(columns))
    Z = reference.transform(expected(columns))
    np.testing.assert_array_equal(encoder.transform(make(columns)), Z)
    np.testing.assert_array_equal(encoder.kinds_, reference.kinds_)
    assert list(encoder.feature_names_in_) == list(columns)
    # One row, and rows of another library than in fit.
    one = {name: values[7:8] for name, values in columns.items()}
    np.testing.assert_array_equal(encoder.transform(make(one)), Z[7:8])
    np.testing.assert_array_equal(encoder.transform(as_pandas(columns)), Z)


@pytest.mark.parametrize("make", FRAMES)
def test_weights_with_frames_of_any_library(make):
    columns = data()
    weights = np.random.default_rng(1).integers(0, 3, N)
    reference = TableEncoder(**PARAMS).fit(expected(columns), sample_weight=weights)
    encoder = TableEncoder(**PARAMS).fit(make(columns), sample_weight=weights)
    np.testing.assert_array_equal(
        encoder.transform(make(columns)), reference.transform(expected(columns))
    )


@pytest.mark.parametrize(
    "X",
    [
        pl.DataFrame({"a": ["2020-01-01", None]}).with_columns(pl.col("a").str.to_date()),
        pl.DataFrame({"a": ["2020-01-01", None]}).with_columns(pl.col("a").str.to_datetime()),
        pl.DataFrame({"a": [1, 2]}).with_columns(pl.duration(days="a").alias("a")),
        pl.DataFrame({"a": [1, 2]}).with_columns(pl.time("a").alias("a")),
        pa.table({"a": pa.array([1, 2], pa.date32())}),
        pa.table({"a": pa.array([1, None], pa.timestamp("ns"))}),
        pa.table({"a": pa.array([1, 2], pa.duration("s"))}),
        pa.table({"a": pa.array([1, 2], pa.time32("s"))}),
        pa.table({"a": pa.array([1, 2], pa.date32())}).to_pandas(types_mapper=pd.ArrowDtype),
        pa.table({"a": pa.array([1, 2], pa.duration("s"))}).to_pandas(types_mapper=pd.ArrowDtype),
    ],
    ids=lambda X: type(X).__module__,
)
def test_dates_of_any_library_are_refused(X):
    with pytest.raises(TypeError, match="column 'a' holds dates or times"):
        TableEncoder().fit(X)


@pytest.mark.parametrize(
    "X",
    [
        pl.DataFrame({"a": ["1.5", "2.5", None, "4"]}).cast(pl.Decimal(10, 2)),
        pa.table({"a": ["1.5", "2.5", None, "4"]}).cast(pa.schema({"a": pa.decimal128(10, 2)})),
        pa.table({"a": ["1.5", "2.5", None, "4"]})
        .cast(pa.schema({"a": pa.decimal128(10, 2)}))
        .to_pandas(types_mapper=pd.ArrowDtype),
    ],
    ids=lambda X: type(X).__module__,
)
def test_decimals_are_numbers(X):
    np.testing.assert_array_equal(
        TableEncoder().fit_transform(X), TableEncoder().fit_transform([[1.5], [2.5], [None], [4.0]])
    )


def test_missing_dictionary_entries_of_arrow_stay_missing():
    X = pa.table({"a": pa.array(["x", None, "y", "z"]).dictionary_encode()})
    Z = TableEncoder().fit_transform(X)
    np.testing.assert_array_equal(Z, [[1, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 1]])


def test_numbers_in_a_dictionary_are_categories():
    codes = pa.array([3, None, 5, 7]).dictionary_encode()
    for X in (pa.table({"a": codes}), pa.table({"a": codes}).to_pandas(types_mapper=pd.ArrowDtype)):
        (column,) = TableEncoder().fit(X).columns_
        assert column.kind == "category"
        assert column.levels == (3, 5, 7)


def test_nested_columns_are_refused():
    for X in (pl.DataFrame({"a": [[1], [2, 3]]}), pa.table({"a": [[1], [2, 3]]})):
        with pytest.raises(TypeError, match=r"column 'a': float\(\) argument must be"):
            TableEncoder().fit(X)


def test_an_empty_polars_column():
    X = pl.DataFrame({"a": [None, None], "b": [1, 2]})
    assert [c.kind for c in TableEncoder().fit(X).columns_] == ["empty", "numeric"]


def test_lazy_frames_are_refused():
    with pytest.raises(TypeError, match=r"LazyFrame.*X\.collect\(\)"):
        TableEncoder().fit(pl.LazyFrame({"a": [1, 2]}))


def test_polars_is_read_without_pyarrow():
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "import polars as pl\n"
        "from sknn_resid.neural_network import TableEncoder\n"
        "X = pl.DataFrame({'a': [1, None, 3], 's': ['x', None, 'y'], 'b': [True, None, False]})\n"
        "X = X.with_columns(c=pl.col('s').cast(pl.Categorical))\n"
        "print(TableEncoder().fit_transform(X).tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    X = pd.DataFrame({"a": [1, None, 3], "s": ["x", None, "y"], "b": [True, None, False]})
    expected = TableEncoder().fit_transform(X.assign(c=X["s"]))
    assert done.stdout.strip() == str(expected.tolist())


# -- arrays, lists, sparse matrices ----------


def test_lists_arrays_and_frames_agree():
    X = np.random.default_rng(0).normal(size=(30, 3)).round(1)
    X[3, 1] = np.nan
    encoder = TableEncoder(**PARAMS).fit(X)
    Z = encoder.transform(X)
    for same in (X.tolist(), X.astype(object), np.asfortranarray(X), X[::-1].copy()[::-1]):
        np.testing.assert_array_equal(TableEncoder(**PARAMS).fit(same).transform(same), Z)
    frame = pd.DataFrame(X)
    np.testing.assert_array_equal(TableEncoder(**PARAMS).fit(frame).transform(frame), Z)


@pytest.mark.parametrize("dispatch", [False, True])
@pytest.mark.parametrize("library", [torch, array_api_strict])
def test_tensors_are_arrays(library, dispatch):
    X = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    w = np.arange(30.0) % 3
    Z = TableEncoder(**PARAMS).fit(X, sample_weight=w).transform(X)
    with config_context(array_api_dispatch=dispatch):
        tensor = library.asarray(X)
        encoder = TableEncoder(**PARAMS).fit(tensor, sample_weight=library.asarray(w))
        found = encoder.transform(tensor)
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, Z)


def test_read_only_input_is_left_alone():
    X = np.random.default_rng(0).normal(size=(30, 3))
    X[4, 1] = np.nan
    before = X.copy()
    X.setflags(write=False)
    TableEncoder(**PARAMS).fit(X).transform(X)
    np.testing.assert_array_equal(X, before)
    frame = as_pandas(data())
    copy = frame.copy()
    TableEncoder(**PARAMS).fit(frame).transform(frame)
    pd.testing.assert_frame_equal(frame, copy)


@pytest.mark.parametrize("container", [sparse.csr_matrix, sparse.csr_array, sparse.csc_array])
def test_sparse_matrices(container):
    X = sparse.random(50, 8, density=0.2, random_state=0).toarray().round(1)
    encoder = TableEncoder(**PARAMS).fit(container(X))
    reference = TableEncoder(**PARAMS).fit(X)
    assert encoder.columns_ == reference.columns_
    Z = reference.transform(X)
    np.testing.assert_array_equal(encoder.transform(container(X)), Z)
    np.testing.assert_array_equal(encoder.transform(X), Z)
    frame = pd.DataFrame.sparse.from_spmatrix(sparse.csr_array(X))
    np.testing.assert_array_equal(encoder.transform(frame), Z)


def test_entries_stored_twice_and_stored_zeros():
    X = sparse.csr_array(([1.0, 2, 0, 5, 1], [0, 0, 0, 1, 1], [0, 2, 3, 5]), shape=(3, 2))
    encoder = TableEncoder().fit(X)
    assert encoder.columns_ == TableEncoder().fit(X.toarray()).columns_
    np.testing.assert_array_equal(encoder.transform(X), encoder.transform(X.toarray()))
    assert X.nnz == 5


def test_categories_and_missing_values_in_a_sparse_matrix():
    X = np.array([[0, 1.0, np.nan], [2, 0, 3], [0, 0, 1], [5, 1, 0]])
    params = {"categorical_features": [0], **PARAMS}
    encoder = TableEncoder(**params).fit(sparse.csr_array(X))
    assert encoder.columns_[0].levels == (0.0, 2.0, 5.0)
    reference = TableEncoder(**params).fit(X)
    np.testing.assert_array_equal(encoder.transform(sparse.csr_array(X)), reference.transform(X))


def test_infinity_in_a_sparse_matrix():
    X = sparse.csr_array(np.array([[0, 1.0], [np.inf, 0]]))
    with pytest.raises(ValueError, match="infinity in column 0"):
        TableEncoder().fit(X)


def test_wide_sparse_input_takes_no_more_memory_than_its_output():
    """200 MB if all were made dense and copied at once; the output is 32 MB."""
    X = sparse.random(2000, 2000, density=0.002, random_state=0, format="csr")
    encoder = TableEncoder(dtype="float64").fit(X)
    tracemalloc.start()
    Z = encoder.transform(X)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < Z.nbytes + 64 * 2**20


@pytest.mark.parametrize("n", [1, 2, 5])
def test_chunks_of_rows_change_nothing(monkeypatch, n):
    X = as_pandas(data(97))
    encoder = TableEncoder(**PARAMS).fit(X)
    whole = encoder.transform(X)
    monkeypatch.setattr(_blocks, "CHUNK", n * whole.shape[1])
    np.testing.assert_array_equal(encoder.transform(X), whole)


# -- dtypes ----------


@pytest.mark.parametrize(
    ("dtypes", "out"),
    [
        (["float32"], "float32"),
        (["float64"], "float64"),
        (["float16"], "float64"),
        (["int64"], "float64"),
        (["int8"], "float64"),
        (["float32", "float64"], "float64"),
        (["float32", "int16"], "float32"),
        (["float32", "int64"], "float64"),
        (["float32", "str"], "float32"),
        (["Float32", "Int8"], "float32"),
        (["str"], "float64"),
        (["float32", "object"], "float64"),
    ],
)
def test_the_dtype_follows_the_columns_of_numbers(dtypes, out):
    X = pd.DataFrame({i: pd.Series([1, 2, 4]).astype(d) for i, d in enumerate(dtypes)})
    if "object" not in dtypes:
        X.loc[:, "text"] = ["a", "b", "c"]
        X.columns = X.columns.astype(str)
    encoder = TableEncoder().fit(X)
    assert encoder.dtype_ == out
    assert encoder.transform(X).dtype == out
    for dtype in ("float32", np.float64):
        assert TableEncoder(dtype=dtype).fit_transform(X).dtype == dtype


def test_float32_is_rounded_once():
    X = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    Z = TableEncoder(**PARAMS).fit_transform(X)
    assert Z.dtype == np.float32
    exact = TableEncoder(**PARAMS).fit_transform(X.astype(np.float64))
    np.testing.assert_array_equal(Z, exact.astype(np.float32))


# -- names of columns ----------


def test_names_that_repeat_are_refused():
    X = pd.DataFrame([[1, 2, 3]], columns=["a", "b", "a"])
    with pytest.raises(ValueError, match=r"X has column names more than once: \['a'\].*Rename"):
        TableEncoder().fit(X)
    encoder = TableEncoder().fit(X.iloc[:, :2])
    with pytest.raises(ValueError, match="more than once"):
        encoder.transform(X)
    with pytest.raises(ValueError, match="more than once"):
        TableEncoder().fit(pa.Table.from_arrays([[1, 2], [1, 2]], names=["a", "a"]))


def test_names_of_strings_and_others_are_refused():
    with pytest.raises(TypeError, match="Feature names are only supported if all"):
        TableEncoder().fit(pd.DataFrame({"a": [1, 2], 0: [1, 2]}))


@pytest.mark.parametrize("names", [[10, 20], [("a", 1), ("a", 2)], [1.5, 2.5]])
def test_names_without_strings_are_no_names(names):
    X = pd.DataFrame([[1.0, "x"], [2.0, "y"], [4.0, "z"]], columns=names)
    encoder = TableEncoder().fit(X)
    assert not hasattr(encoder, "feature_names_in_")
    assert list(encoder.get_feature_names_out())[:2] == ["x0", "x1_x"]
    assert [c.name for c in encoder.columns_] == [0, 1]
    X.iloc[0, 0] = np.inf
    with pytest.raises(ValueError, match="infinity in column"):
        encoder.transform(X)


def test_the_names_of_fit_are_checked():
    X = pd.DataFrame({"a": [1, 2], "b": [3, 4]})
    encoder = TableEncoder().fit(X)
    with pytest.raises(ValueError, match="feature names should match"):
        encoder.transform(X[["b", "a"]])
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        encoder.transform(X.to_numpy())
    assert not hasattr(encoder.fit(X.to_numpy()), "feature_names_in_")
    with pytest.raises(ValueError, match="expecting 2 features"):
        encoder.transform(X.to_numpy()[:, :1])


@pytest.mark.parametrize(
    "X", [pd.DataFrame({"a": []}), pd.DataFrame(index=range(3)), np.empty((0, 2))]
)
def test_empty_tables_are_refused(X):
    with pytest.raises(ValueError, match="while a minimum of 1 is required"):
        TableEncoder().fit(X)


@pytest.mark.parametrize("X", [pd.Series([1, 2, 3]), [1, 2, 3], np.ones((2, 2, 2)), 5.0, ["a"]])
def test_other_shapes_are_refused(X):
    with pytest.raises(ValueError, match=r"2D|2-dim|dim"):
        TableEncoder().fit(X)


def test_pickle_keeps_everything():
    X = as_pandas(data())
    encoder = TableEncoder(**PARAMS).fit(X)
    copy = pickle.loads(pickle.dumps(encoder))
    np.testing.assert_array_equal(copy.transform(X), encoder.transform(X))
    assert copy.columns_ == encoder.columns_
