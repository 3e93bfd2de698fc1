"""TableEncoder: what a column is taken for, and how numbers and levels are encoded."""

import datetime
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier

from sknn_resid.neural_network import TableEncoder


def kinds(X, **params):
    return [c.kind for c in TableEncoder(**params).fit(X).columns_]


def objects(*values):
    """One column of Python objects."""
    column = np.empty((len(values), 1), dtype=object)
    for i, value in enumerate(values):
        column[i, 0] = value
    return column


# -- what a column is ----------

COLUMNS = [
    (pd.Series([1, 2, 3]), "numeric"),
    (pd.Series([1.5, None, 3]), "numeric"),
    (pd.Series([1, None, 3], dtype="Int16"), "numeric"),
    (pd.Series([1, None, 3], dtype="Float32"), "numeric"),
    (pd.Series([1, 2, 3], dtype="uint8"), "numeric"),
    (pd.Series(["a", "b", None]), "category"),
    (pd.Series(["a", "b", None], dtype="string"), "category"),
    (pd.Series(["a", "b", None], dtype="string[python]"), "category"),
    (pd.Series(["a", "b", None], dtype=object), "category"),
    (pd.Series([b"a", b"b", None], dtype=object), "category"),
    (pd.Series(["1", "2", "3"]), "category"),
    (pd.Series([True, False, True]), "category"),
    (pd.Series([True, False, None], dtype="boolean"), "category"),
    (pd.Series([True, False, None], dtype=object), "category"),
    (pd.Series(["a", "b", None], dtype="category"), "category"),
    (pd.Series([1, 2, 2], dtype="category"), "category"),
    (pd.Series(pd.cut([1, 5, 9], 3)), "category"),
    (pd.Series(pd.to_datetime(["2020-01-01", "2021-01-01", None])).astype("category"), "category"),
    (pd.Series([1, 2.5, None], dtype=object), "numeric"),
    (pd.Series([np.float32(1), 2, pd.NA], dtype=object), "numeric"),
    (pd.Series([Decimal("1.5"), Decimal(2), None], dtype=object), "numeric"),
    (pd.Series([Fraction(1, 2), 2, None], dtype=object), "numeric"),
    (pd.Series([True, 2.5, 3], dtype=object), "numeric"),
    (pd.Series([None, None, None]), "empty"),
    (pd.Series([None, None, None], dtype="str"), "empty"),
    (pd.Series([None, None, None], dtype="category"), "empty"),
    (pd.Series([np.nan] * 3), "empty"),
    (pd.Series([pd.NA] * 3, dtype="Int64"), "empty"),
    (pd.Series(pd.arrays.SparseArray([0, 0, 2.5])), "numeric"),
]


@pytest.mark.parametrize(
    ("column", "kind"), COLUMNS, ids=[f"{c.dtype}-{i}" for i, (c, _) in enumerate(COLUMNS)]
)
def test_what_a_column_is(column, kind):
    X = pd.DataFrame({"other": [1.0, 2.0, 4.0], "a": column})
    encoder = TableEncoder().fit(X)
    assert [c.kind for c in encoder.columns_] == ["numeric", kind]
    assert list(encoder.is_categorical_) == [False, kind == "category"]
    Z = encoder.transform(X)
    assert np.isfinite(Z).all()
    assert Z.shape[1] == len(encoder.kinds_) == len(encoder.source_)


def test_arrays_by_what_they_hold():
    assert kinds([[1, 2.5], [3, 4]]) == ["numeric", "numeric"]
    assert kinds([[1, "a"], [3, "b"]]) == ["numeric", "category"]
    assert kinds([["x", "a"], ["y", "b"]]) == ["category", "category"]
    assert kinds(np.array([["x", "1"], ["y", "2"]])) == ["category", "category"]
    assert kinds(np.array([[True, False], [False, True]])) == ["category", "category"]
    assert kinds(np.array([[1, "a"], [None, "b"]], dtype=object)) == ["numeric", "category"]


def test_masked_entries_are_missing():
    X = np.ma.array([[1.0, 2.0], [3.0, 5.0], [9.0, 4.0]], mask=[[0, 0], [1, 0], [0, 0]])
    expected = TableEncoder().fit_transform([[1, 2], [np.nan, 5], [9, 4]])
    np.testing.assert_array_equal(TableEncoder().fit_transform(X), expected)
    whole = np.ma.array([[1, 2], [3, 5], [9, 4]], mask=[[0, 0], [1, 0], [0, 0]])
    np.testing.assert_array_equal(TableEncoder().fit_transform(whole), expected)
    text = np.ma.array([["a"], ["b"], ["c"]], mask=[[0], [1], [0]])
    np.testing.assert_array_equal(TableEncoder().fit_transform(text), [[1, 0], [0, 0], [0, 1]])


DATES = [
    pd.Series(pd.to_datetime(["2020-01-01", "2020-02-01"])),
    pd.Series(pd.to_datetime(["2020-01-01", None])),
    pd.Series(pd.to_datetime(["2020-01-01", "2020-02-01"], utc=True)),
    pd.Series(pd.to_timedelta([1, 2], unit="D")),
    pd.Series(pd.period_range("2020-01", periods=2, freq="M")),
    pd.Series([datetime.date(2020, 1, 1), None], dtype=object),
    pd.Series([datetime.datetime(2020, 1, 1), None], dtype=object),
    pd.Series([datetime.time(1), datetime.time(2)], dtype=object),
    pd.Series([datetime.timedelta(1), None], dtype=object),
]


@pytest.mark.parametrize("column", DATES, ids=[f"{c.dtype}-{i}" for i, c in enumerate(DATES)])
def test_dates_are_refused(column):
    X = pd.DataFrame({"when": column})
    with pytest.raises(TypeError, match=r"column 'when' holds dates or times.*numbers first"):
        TableEncoder().fit(X)


@pytest.mark.parametrize("listed", [None, ["when"]])
def test_dates_are_refused_however_columns_are_chosen(listed):
    X = pd.DataFrame({"a": [1, 2], "when": pd.to_datetime(["2020-01-01", "2020-02-01"])})
    with pytest.raises(TypeError, match="column 'when' holds dates"):
        TableEncoder(categorical_features=listed).fit(X)
    with pytest.raises(TypeError, match="column 0 holds dates"):
        TableEncoder(categorical_features=listed and [0]).fit(X[["when"]].to_numpy())


@pytest.mark.parametrize("n_rows", [2, 50])
@pytest.mark.parametrize("unit", ["ns", "D"])
def test_dates_are_refused_where_fit_met_numbers(unit, n_rows):
    dates = np.full((n_rows, 1), np.datetime64("2020-01-01", unit))
    encoder = TableEncoder().fit([[1.0], [2.0]])
    with pytest.raises(TypeError, match="column 0 holds dates"):
        encoder.transform(dates)
    encoder = TableEncoder().fit(pd.DataFrame({"a": [1, 2]}))
    with pytest.raises(TypeError, match="column 'a' holds dates"):
        encoder.transform(pd.DataFrame({"a": dates[:, 0]}))
    encoder = TableEncoder().fit([["a"], ["b"], ["c"]])
    with pytest.raises(TypeError, match="column 0 held text in fit, and holds Timestamp now"):
        encoder.transform(dates)


def test_complex_numbers_are_refused():
    with pytest.raises(ValueError, match="Complex data not supported"):
        TableEncoder().fit(np.array([[1j], [2]]))
    with pytest.raises(ValueError, match="Complex data not supported: column 'z'"):
        TableEncoder().fit(pd.DataFrame({"z": [1j, 2]}))
    with pytest.raises(ValueError, match="Complex data not supported: column 0"):
        TableEncoder().fit(objects(1j, 2.0))
    with pytest.raises(ValueError, match="Complex data not supported: column 0"):
        TableEncoder().fit(objects(1.0, 2.0)).transform(objects(1j))


@pytest.mark.parametrize("values", [(1, "a"), ("a", 1.5, None), (True, "a"), ("a", b"a", 1)])
@pytest.mark.parametrize("listed", ["from_dtype", [0]])
def test_text_beside_numbers_is_refused(values, listed):
    with pytest.raises(ValueError, match=r"column 0 mixes text and other values.*astype\(str\)"):
        TableEncoder(categorical_features=listed).fit(objects(*values))


@pytest.mark.parametrize("value", [{"a": 1}, [1], ("a",), object(), {1, 2}])
def test_objects_of_no_use_are_refused(value):
    message = r"column 0: float\(\) argument must be a string or a real number, not "
    with pytest.raises(TypeError, match=message):
        TableEncoder().fit(objects(1.0, value, 2.0))
    with pytest.raises(TypeError, match=message):
        TableEncoder().fit(objects(1.0, 3.0, 2.0)).transform(objects(value))


@pytest.mark.parametrize("n_rows", [3, 100])
def test_a_level_must_be_hashable(n_rows):
    values = ["a", {"b": 1}] + ["c"] * (n_rows - 2)
    with pytest.raises(TypeError, match=r"column 0: float\(\) argument must be .*'dict'"):
        TableEncoder(categorical_features=[0]).fit(objects(*[{"b": 1}] * n_rows))
    encoder = TableEncoder().fit(objects("a", "c"))
    with pytest.raises(TypeError, match=r"column 0: float\(\) argument must be .*'dict'"):
        encoder.transform(objects(*values))


def test_numbers_beyond_float64_are_refused():
    with pytest.raises(ValueError, match="column 0: int too large"):
        TableEncoder().fit(objects(10**400, 1))


# -- which columns are categories ----------


@pytest.mark.parametrize(
    "listed",
    [["b", "c"], [1, 2], np.array([1, 2]), [False, True, True], np.array(["b", "c"], dtype=object)],
)
def test_categories_by_name_index_or_mask(listed):
    X = pd.DataFrame({"a": [1, 2, 4], "b": ["x", "y", "x"], "c": [7, 7, 9]})
    encoder = TableEncoder(categorical_features=listed).fit(X)
    assert [c.kind for c in encoder.columns_] == ["numeric", "category", "category"]
    assert encoder.columns_[2].levels == (7, 9)
    np.testing.assert_array_equal(encoder.transform(X)[:, 1:], [[-1, -1], [1, -1], [-1, 1]])


@pytest.mark.parametrize("listed", [["nope"], [5], [-1], [True, False, True], [1.5], ["a", 1]])
def test_errors_are_those_of_hist_gradient_boosting(listed):
    X = pd.DataFrame({"a": [1.0, 2, 4, 3], "b": [1.0, 0, 1, 2]})
    theirs = HistGradientBoostingClassifier(categorical_features=listed)
    # Of what kind the error is, and its words, are scikit-learn's to say.
    with pytest.raises(Exception) as expected:  # noqa: PT011
        theirs.fit(X, [0, 1, 0, 1])
    with pytest.raises(type(expected.value)) as found:
        TableEncoder(categorical_features=listed).fit(X)
    assert str(found.value) == str(expected.value)


def test_names_need_a_frame():
    with pytest.raises(ValueError, match="array of integers or as a boolean mask"):
        TableEncoder(categorical_features=["a"]).fit(np.eye(3))


@pytest.mark.parametrize("listed", [None, ["b"], []])
def test_columns_that_are_not_listed_are_numbers(listed):
    X = pd.DataFrame({"a": pd.Categorical([1, 2, 4]), "b": [True, False, True]})
    assert kinds(X, categorical_features=listed)[0] == "numeric"
    with pytest.raises(ValueError, match="column 'a' holds numbers, and the text 'x' is none"):
        TableEncoder(categorical_features=listed).fit(X.assign(a=["x", "y", "z"]))


# -- numbers ----------


def clip(z):
    z = np.asarray(z)
    return z / np.sqrt(1 + (z / 3) ** 2)


def test_numbers_by_hand():
    # Quartiles 2.5, 5, 7.5 are means of neighbours here: 1..4 and 6..9 with 4 and 6 in the middle.
    x = np.array([1.0, 2, 3, 4, 6, 7, 8, 9])
    (column,) = TableEncoder().fit(x[:, None]).columns_
    assert (column.median, column.scale) == (5.0, 5.0)
    Z = TableEncoder().fit_transform(x[:, None])
    np.testing.assert_allclose(Z[:, 0], clip((x - 5) / 5), rtol=1e-15)


def test_outliers_never_leave_the_interval():
    x = np.r_[np.arange(20.0), 1e9, -1e300, 1e308][:, None]
    Z = TableEncoder().fit_transform(x)
    assert abs(Z).max() <= 3.0
    np.testing.assert_allclose(Z[-3:, 0], [3, -3, 3], rtol=1e-15)


def test_mostly_one_value_is_scaled_by_the_others():
    # Median and quartiles 0; the others are 1, 2 and 30 away, so 2 is the scale.
    x = np.array([0.0] * 9 + [1, 30, -2])[:, None]
    encoder = TableEncoder().fit(x)
    assert encoder.columns_[0].scale == 2.0
    np.testing.assert_allclose(encoder.transform([[-2.0], [0.0], [1.0]])[:, 0], clip([-1, 0, 0.5]))
    by_weight = TableEncoder().fit(x[8:], sample_weight=[9, 1, 1, 1])
    assert by_weight.columns_ == encoder.columns_


def test_two_values_are_scaled_by_half_of_their_distance():
    x = np.array([0.0] * 9 + [4.0])[:, None]
    encoder = TableEncoder().fit(x)
    assert encoder.columns_[0].scale == 2.0
    np.testing.assert_allclose(encoder.transform([[4.0], [0.0]])[:, 0], [clip(2.0), 0])


@pytest.mark.parametrize(
    "x", [[-1.7e308, -1e308, 1e308, 1.7e308], [0, 5e-324, 1e-323, 2e-323], [1e16, 1e16 + 2, 1e16]]
)
@pytest.mark.parametrize("embedding", [None, "piecewise"])
def test_extreme_magnitudes_stay_finite(x, embedding):
    x = np.array(x, dtype=float)[:, None]
    Z = TableEncoder(numeric_embedding=embedding).fit_transform(x)
    assert np.isfinite(Z).all()
    assert abs(Z).max() <= 3


def test_missing_numbers_get_an_indicator():
    X = pd.DataFrame({"a": [1.0, 2, 3, np.nan], "b": [1.0, 2, 3, 4]})
    encoder = TableEncoder().fit(X)
    assert list(encoder.get_feature_names_out()) == ["a", "b", "missingindicator_a"]
    assert list(encoder.kinds_) == ["numeric", "numeric", "missing"]
    assert list(encoder.source_) == [0, 1, 0]
    Z = encoder.transform(X)
    np.testing.assert_array_equal(Z[:, 2], [0, 0, 0, 1])
    assert Z[3, 0] == 0.0
    # None met in fit: the median's value, and no indicator.
    assert encoder.transform(pd.DataFrame({"a": [2.0], "b": [np.nan]}))[0, 1] == 0.0


def test_constants_and_empty_columns_give_nothing():
    X = pd.DataFrame(
        {
            "x": [1.0, 2, 3, 4],
            "constant": [7, 7, 7, 7],
            "empty": [None, None, None, None],
            "word": ["a", "a", "a", "a"],
            "nan": [np.nan] * 4,
        }
    )
    encoder = TableEncoder(numeric_embedding="piecewise").fit(X)
    assert set(encoder.source_) == {0}
    other = X.assign(constant=9, empty=["?", 1, None, 2], word="b", nan=1.0)
    np.testing.assert_array_equal(encoder.transform(other), encoder.transform(X))


def test_a_constant_with_missing_values_gives_the_indicator_only():
    X = [[5.0, 1], [np.nan, 2], [5, 3]]
    encoder = TableEncoder(numeric_embedding="piecewise").fit(X)
    assert [k for k, j in zip(encoder.kinds_, encoder.source_, strict=True) if j == 0] == [
        "missing"
    ]
    np.testing.assert_array_equal(encoder.transform(X)[:, 1], [0, 1, 0])


@pytest.mark.parametrize(
    "X", [[[1.0, 2.0]], [["a"]], [[np.nan]] * 3, [[1, "x"]] * 4, [[True], [True]]]
)
def test_a_table_without_information_is_one_column_of_zeros(X):
    encoder = TableEncoder().fit(X)
    np.testing.assert_array_equal(encoder.transform(X), np.zeros((len(X), 1)))
    assert list(encoder.kinds_) == ["numeric"]
    assert len(encoder.get_feature_names_out()) == 1


@pytest.mark.parametrize("value", [np.inf, -np.inf])
@pytest.mark.parametrize("where", ["fit", "transform"])
def test_infinity_is_refused_with_the_column(value, where):
    good = pd.DataFrame({"a": [1.0, 2, 3], "b": [1.0, 5, 2], "c": ["x", "y", "x"]})
    bad = good.assign(b=[1.0, value, 2])
    encoder = TableEncoder()
    if where == "transform":
        encoder.fit(good)
    with pytest.raises(ValueError, match=r"X contains infinity in column 'b'.*NaN"):
        getattr(encoder, where)(bad)
    encoder = TableEncoder(categorical_features=["b"])
    if where == "transform":
        encoder.fit(good.drop(columns="c"))
    with pytest.raises(ValueError, match="X contains infinity in column 'b'"):
        getattr(encoder, where)(bad.drop(columns="c"))
    encoder = TableEncoder()
    if where == "transform":
        encoder.fit(good[["a", "b"]].to_numpy())
    with pytest.raises(ValueError, match="X contains infinity in column 1"):
        getattr(encoder, where)(bad[["a", "b"]].to_numpy())


# -- piecewise-linear embedding ----------


def piecewise(encoder, X):
    return encoder.transform(X)[:, encoder.kinds_ == "piecewise"]


def test_bins_between_quantiles_by_hand():
    x = np.arange(1.0, 101.0)[:, None]
    encoder = TableEncoder(numeric_embedding="piecewise", n_bins=4).fit(x)
    (column,) = encoder.columns_
    assert column.edges == (1.0, 25.5, 50.5, 75.5, 100.0)
    t = piecewise(encoder, np.array([[1.0], [13.25], [25.5], [63.0], [100.0], [-9.0], [999.0]]))
    expected = [
        [-0.5, -0.5, -0.5, -0.5],
        [0.0, -0.5, -0.5, -0.5],
        [0.5, -0.5, -0.5, -0.5],
        [0.5, 0.5, 0.0, -0.5],
        [0.5, 0.5, 0.5, 0.5],
        [-0.5, -0.5, -0.5, -0.5],
        [0.5, 0.5, 0.5, 0.5],
    ]
    np.testing.assert_allclose(t, expected, atol=1e-15)
    assert list(encoder.get_feature_names_out()) == ["x0", *(f"x0_bin{i}" for i in range(4))]


@pytest.mark.parametrize(("n_distinct", "n_parts"), [(2, 0), (3, 2), (17, 16), (18, 16)])
def test_few_distinct_values_are_the_edges(n_distinct, n_parts):
    x = np.repeat(np.arange(n_distinct) ** 2.0, 5)[:, None]
    encoder = TableEncoder(numeric_embedding="piecewise").fit(x)
    assert (encoder.kinds_ == "piecewise").sum() == n_parts
    if 3 <= n_distinct <= 17:
        assert encoder.columns_[0].edges == tuple(np.arange(n_distinct) ** 2.0)


def test_a_spike_takes_many_quantiles():
    x = np.r_[np.zeros(900), np.arange(1.0, 101.0)][:, None]
    edges = TableEncoder(numeric_embedding="piecewise").fit(x).columns_[0].edges
    assert edges == (0.0, 38.0, 100.0)  # the quantile 15/16 is the 937.5th value, rounded up


def test_a_missing_value_is_below_all_bins():
    x = np.r_[np.arange(30.0), np.nan][:, None]
    encoder = TableEncoder(numeric_embedding="piecewise").fit(x)
    np.testing.assert_array_equal(piecewise(encoder, [[np.nan]]), np.full((1, 16), -0.5))
    # Where fit met none there is nothing to tell it from the smallest value: the median.
    encoder = TableEncoder(numeric_embedding="piecewise").fit(x[:-1])
    np.testing.assert_array_equal(
        encoder.transform([[np.nan]]), encoder.transform([[encoder.columns_[0].median]])
    )


def test_the_embedding_is_monotone_and_tells_values_apart():
    x = np.random.default_rng(0).exponential(size=(300, 1))
    encoder = TableEncoder(numeric_embedding="piecewise").fit(x)
    total = piecewise(encoder, np.sort(x, axis=0)).sum(axis=1)
    assert (np.diff(total) > 0).all()


# -- levels ----------


def column(*values):
    return pd.DataFrame({"a": pd.Series(values, dtype=object)})


def test_two_levels_share_a_column():
    X = column("no", "yes", "no")
    encoder = TableEncoder().fit(X)
    assert list(encoder.get_feature_names_out()) == ["a_yes"]
    np.testing.assert_array_equal(encoder.transform(X), [[-1], [1], [-1]])
    # Neither missing nor unknown nor a lone level changes what was decided in fit.
    np.testing.assert_array_equal(
        encoder.transform(column("yes", None, "perhaps")), [[1], [0], [0]]
    )
    np.testing.assert_array_equal(encoder.transform(column("yes")), [[1]])


def test_two_levels_and_missing_values_are_two_columns():
    X = column("no", "yes", None)
    np.testing.assert_array_equal(TableEncoder().fit_transform(X), [[1, 0], [0, 1], [0, 0]])


def test_one_level_and_missing_values_is_one_column():
    encoder = TableEncoder().fit(column("x", None, "x"))
    np.testing.assert_array_equal(encoder.transform(column("x", None, "y")), [[1], [0], [0]])


def test_three_levels_in_their_order():
    encoder = TableEncoder().fit(column("c", "a", "b"))
    assert list(encoder.get_feature_names_out()) == ["a_a", "a_b", "a_c"]
    np.testing.assert_array_equal(
        encoder.transform(column("b", "c", None, "?")),
        [[0, 1, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0]],
    )


@pytest.mark.parametrize(("n_levels", "n_kept"), [(10, 10), (11, 0), (14, 3)])
def test_rare_levels_count_only_where_there_are_many(n_levels, n_kept):
    """Level i occurs i+1 times, but at most 2 in the first 11."""
    values = [f"l{i:02}" for i in range(n_levels) for _ in range(2 if i < 11 else 3)]
    encoder = TableEncoder().fit(column(*values))
    (found,) = encoder.columns_
    assert len(found.levels) == n_kept
    assert found.n_levels == n_levels
    assert set(found.counts) <= {2.0, 3.0}


def test_min_frequency_and_max_categories():
    values = [f"l{i:02}" for i in range(20) for _ in range(i + 1)]

    def levels(**params):
        return [int(v[1:]) for v in TableEncoder(**params).fit(column(*values)).columns_[0].levels]

    assert levels() == list(range(2, 20))
    assert levels(min_frequency=1) == list(range(20))
    assert levels(min_frequency=10 / 210) == list(range(9, 20))
    assert levels(max_categories=5) == list(range(15, 20))
    assert levels(max_categories=None, min_frequency=12) == list(range(11, 20))


def test_a_column_of_unique_text_gives_nothing():
    X = column(*(f"id{i}" for i in range(500))).assign(b=np.arange(500))
    encoder = TableEncoder().fit(X)
    assert list(encoder.get_feature_names_out()) == ["b"]
    assert encoder.columns_[0].n_levels == 500


def test_very_many_levels_stay_bounded():
    X = column(*(f"user{i % 5000}" for i in range(20_000)))
    Z = TableEncoder().fit_transform(X)
    assert Z.shape == (20_000, 255)
    assert Z.sum() == 255 * 4


def test_categories_that_do_not_occur_get_no_column():
    X = pd.DataFrame({"a": pd.Categorical(list("xyz"), categories=list("zyxw"))})
    encoder = TableEncoder().fit(X)
    assert encoder.columns_[0].levels == ("x", "y", "z")
    unseen = pd.DataFrame({"a": pd.Categorical(["w", "y"])})
    np.testing.assert_array_equal(encoder.transform(unseen), [[0, 0, 0], [0, 1, 0]])


@pytest.mark.parametrize("n_rows", [2, 50])
@pytest.mark.parametrize(
    ("fitted", "now", "words"),
    [
        (["1", "2"], [1, 2], "held text in fit, and holds number now"),
        (pd.Categorical([1, 2]), ["1", "2"], "held number in fit, and holds text now"),
        (["a", "b"], [True, False], "held text in fit, and holds number now"),
        (["a", "b"], pd.to_datetime(["2020-01-01"] * 2), "holds Timestamp now"),
    ],
)
def test_levels_of_another_kind_are_no_unknown_levels(fitted, now, words, n_rows):
    encoder = TableEncoder().fit(pd.DataFrame({"a": fitted}))
    X = pd.DataFrame({"a": pd.Series(now)}).iloc[np.arange(n_rows) % 2]
    with pytest.raises(TypeError, match=rf"column 'a' .*{words}"):
        encoder.transform(X)


def test_text_in_a_column_of_numbers_is_refused():
    encoder = TableEncoder().fit(pd.DataFrame({"a": [1.0, 2, 3]}))
    with pytest.raises(ValueError, match=r"column 'a' holds numbers, and the text '7'.*to_numeric"):
        encoder.transform(pd.DataFrame({"a": ["7"]}))
    # A column that is all missing may have any dtype.
    assert encoder.transform(pd.DataFrame({"a": pd.Series([None], dtype="str")})) == 0


def test_numbers_equal_across_dtypes_are_one_level():
    X = pd.DataFrame({"a": pd.Categorical([1, 2, 3])})
    encoder = TableEncoder().fit(X)
    for same in (np.array([2.0]), np.array([2], dtype="int8"), pd.array([2], dtype="Int64")):
        np.testing.assert_array_equal(encoder.transform(pd.DataFrame({"a": same})), [[0, 1, 0]])


def test_few_rows_and_many_rows_are_encoded_alike():
    """Few rows are read as Python objects, many by pandas."""
    rng = np.random.default_rng(0)
    X = pd.DataFrame(
        {
            "text": rng.choice(["a", "b", "c", None], 100),
            "cat": pd.Categorical(rng.choice([1, 2, 3], 100)),
            "flag": pd.array(rng.choice([True, False, None], 100), dtype="boolean"),
            "cut": pd.cut(rng.normal(size=100), 4),
            "old": pd.Series(rng.choice(["u", "v", None], 100), dtype=object),
            "x": np.where(rng.random(100) < 0.3, np.nan, rng.normal(size=100)),
        }
    )
    encoder = TableEncoder(numeric_embedding="piecewise").fit(X)
    whole = encoder.transform(X)
    for i in range(0, 100, 7):
        np.testing.assert_array_equal(encoder.transform(X.iloc[i : i + 1]), whole[i : i + 1])


# -- names and what can be looked at ----------


def test_names_that_collide_get_a_number():
    X = pd.DataFrame({"a_b": [1.0, 2, 3], "a": ["b", "c", "d"], "a_b#2": [3, 1, 2.0]})
    names = list(TableEncoder().fit(X).get_feature_names_out())
    assert names == ["a_b", "a_b#2", "a_b#3", "a_c", "a_d"]


def test_columns_as_a_frame():
    X = pd.DataFrame({"x": [1.0, 2, None, 5], "c": ["a", "b", "c", "a"], "e": [None] * 4})
    shown = pd.DataFrame(TableEncoder(numeric_embedding="piecewise").fit(X).columns_)
    assert list(shown["name"]) == ["x", "c", "e"]
    assert list(shown["kind"]) == ["numeric", "category", "empty"]
    assert shown["levels"][1] == ("a", "b", "c")
    assert shown["counts"][1] == (2.0, 1.0, 1.0)
    assert shown["edges"][0] == (1.0, 2.0, 5.0)
    assert shown["median"][0] == 2.0
    assert list(shown["missing"][:2]) == [True, False]
