"""TableEncoder: what is learned is weighted, and weights are repeated rows to the last digits."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.utils.stats import _weighted_percentile

from sknn_resid.neural_network import TableEncoder
from sknn_resid.neural_network._weighted import frequent, sample


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 7, 10, 16, 48])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 17, 100])
def test_quantiles_are_numpys_on_repeated_rows(parts, n, rng):
    values = rng.integers(0, 12, n) / 7
    weights = rng.integers(1, 6, n)
    expected = np.quantile(
        np.repeat(values, weights), np.arange(parts + 1) / parts, method="averaged_inverted_cdf"
    )
    np.testing.assert_array_max_ulp(sample(values, weights).quantiles(parts), expected, 1)
    repeated = sample(np.repeat(values, weights))
    np.testing.assert_array_equal(
        repeated.quantiles(parts), sample(values, weights).quantiles(parts)
    )


@pytest.mark.parametrize("parts", [2, 4, 5])
def test_quantiles_of_fractional_weights_are_scikit_learns(parts, rng):
    values, weights = rng.normal(size=60), rng.random(60)
    ranks = 100 * np.arange(1, parts) / parts
    expected = _weighted_percentile(values, weights, ranks, average=True)
    np.testing.assert_allclose(sample(values, weights).quantiles(parts)[1:-1], expected, rtol=1e-15)


def test_quantiles_by_hand():
    # Distribution function 1/4 at 1, 1/2 at 2, 1 at 8: the median is anything from 2 to 8.
    np.testing.assert_array_equal(sample([8.0, 1.0, 2.0], [2, 1, 1]).quantiles(2), [1, 5, 8])
    np.testing.assert_array_equal(sample([8.0, 1.0, 2.0], [3, 1, 1]).quantiles(2), [1, 8, 8])
    np.testing.assert_array_equal(sample([4.0]).quantiles(3), [4, 4, 4, 4])


@pytest.mark.parametrize("scale", [0.1, 1 / 3, 1e-9, 1e9])
def test_quantiles_do_not_depend_on_the_scale_of_weights(scale, rng):
    values = rng.normal(size=40)
    expected = sample(values).quantiles(8)
    np.testing.assert_array_equal(sample(values, np.full(40, scale)).quantiles(8), expected)


def test_sums_of_weights_in_another_order_are_the_same_sum():
    # 0.1 + 0.2 is not 0.3 in floating point; half of the weight lies at 1 all the same.
    np.testing.assert_array_equal(sample([1.0, 1.0, 2.0], [0.1, 0.2, 0.3]).quantiles(2)[1], 1.5)


def test_quantiles_of_the_largest_numbers_do_not_overflow():
    np.testing.assert_array_equal(sample([1.5e308, 1.7e308]).quantiles(2)[1], 1.6e308)


def test_the_smallest_number_is_not_halved_away():
    np.testing.assert_array_equal(sample([5e-324, 5e-324]).quantiles(2), [5e-324] * 3)


def test_values_of_weight_zero_do_not_exist():
    kept = sample([3.0, np.nan, 1.0], [1, 0, 2])
    np.testing.assert_array_equal(kept.values, [1, 3])
    np.testing.assert_array_equal(kept.distinct(), [1, 3])


def test_bin_edges_are_quantiles_or_all_values(rng):
    values = rng.normal(size=200)
    np.testing.assert_array_equal(sample(values).bin_edges(16), sample(values).quantiles(16))
    np.testing.assert_array_equal(sample([3.0, 1, 1, 2]).bin_edges(16), [1, 2, 3])


@pytest.mark.parametrize("n_bins", [2, 3, 5, 16, 40])
@pytest.mark.parametrize("seed", range(4))
def test_there_are_never_more_bins_than_asked_for(n_bins, seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=300).round(int(rng.integers(0, 3)))
    spiked = rng.random(300) < rng.random()
    values[spiked] = rng.choice([-1.0, 0.0, 0.5], spiked.sum())
    weights = rng.integers(1, 4, 300)
    edges = sample(values, weights).bin_edges(n_bins)
    assert 2 <= len(edges) <= n_bins + 1
    assert (np.diff(edges) > 0).all()
    assert (edges[0], edges[-1]) == (values.min(), values.max())
    repeated = sample(np.repeat(values, weights)).bin_edges(n_bins)
    np.testing.assert_array_equal(edges, repeated)


def test_frequent_levels():
    counts = np.array([5.0, 1.0, 5.0, 3.0, 2.0])
    np.testing.assert_array_equal(frequent(counts, 3.0, None, 16.0), [1, 0, 1, 1, 0])
    np.testing.assert_array_equal(frequent(counts, 0.0, 3, 16.0), [1, 0, 1, 1, 0])
    # Of equal ones the first stays, even if sums of weights differ in the last digit.
    np.testing.assert_array_equal(frequent(np.array([0.3, 0.1 + 0.2]), 0, 1, 0.6), [1, 0])
    np.testing.assert_array_equal(frequent(np.array([0.1 + 0.2, 0.3]), 0, 1, 0.6), [1, 0])
    np.testing.assert_array_equal(frequent(np.array([0.1 + 0.2, 0.3]), 0.3, None, 0.6), [1, 1])


def table(n=60, seed=0):
    """Numbers, counts, text, categories, bools, missing values; more than ten levels in one."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "normal": rng.normal(size=n),
            "holes": np.where(rng.random(n) < 0.2, np.nan, rng.exponential(size=n)),
            "counts": rng.poisson(0.3, size=n),
            "sign": rng.choice(["a", "b"], size=n),
            "many": rng.choice(list("abcdefghijklmnopqrst"), size=n),
            "flag": rng.random(n) < 0.3,
        }
    )
    frame["cat"] = pd.Categorical(rng.choice(["x", "y", "z"], size=n), categories=list("zyxw"))
    frame.loc[rng.random(n) < 0.2, "cat"] = None
    return frame


def assert_same_encoders(one, other, X, rtol=0.0):
    assert list(one.kinds_) == list(other.kinds_)
    assert list(one.get_feature_names_out()) == list(other.get_feature_names_out())
    assert one.dtype_ == other.dtype_
    a, b = one.transform(X), other.transform(X)
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


SETTINGS = [
    {},
    {"numeric_embedding": "piecewise"},
    {"numeric_embedding": "piecewise", "n_bins": 7},
    {"min_frequency": 0.06},
    {"max_categories": 4},
]


@pytest.mark.parametrize("params", SETTINGS)
@pytest.mark.parametrize("seed", range(5))
def test_weights_are_repeated_rows(params, seed):
    X = table(seed=seed)
    weights = np.random.default_rng(100 + seed).integers(0, 4, len(X))
    repeated = X.iloc[np.repeat(np.arange(len(X)), weights)].sample(frac=1, random_state=seed)
    by_weight = TableEncoder(**params).fit(X, sample_weight=weights)
    by_rows = TableEncoder(**params).fit(repeated)
    assert_same_encoders(by_weight, by_rows, X)
    for one, other in zip(by_weight.columns_, by_rows.columns_, strict=True):
        assert one == other


@pytest.mark.parametrize("params", SETTINGS[:4])
def test_a_row_in_two_parts_is_the_row(params):
    """Whole rows, split into parts of fractional weight that add up to more than one."""
    X = table()
    weights = np.random.default_rng(1).choice([2.0, 3.0], len(X))
    share = np.random.default_rng(2).uniform(0.4, 0.6, len(X))
    parts = np.concatenate([weights * share, weights - weights * share])
    whole = TableEncoder(**params).fit(X, sample_weight=weights)
    split = TableEncoder(**params).fit(pd.concat([X, X]), sample_weight=parts)
    assert_same_encoders(whole, split, X, rtol=1e-12)


@pytest.mark.parametrize("params", SETTINGS)
def test_the_order_of_rows_does_not_matter(params):
    X = table()
    weights = np.random.default_rng(3).random(len(X))
    order = np.random.default_rng(4).permutation(len(X))
    one = TableEncoder(**params).fit(X, sample_weight=weights)
    other = TableEncoder(**params).fit(X.iloc[order], sample_weight=weights[order])
    assert_same_encoders(one, other, X, rtol=1e-12)


@pytest.mark.parametrize("scale", [1 / 60, 1e-6, 0.5])
def test_weights_that_sum_to_one_keep_the_levels(scale):
    X = table(200)
    plain = TableEncoder().fit(X)
    scaled = TableEncoder().fit(X, sample_weight=np.full(len(X), scale))
    assert_same_encoders(plain, scaled, X)


ODD = [
    pytest.param({"normal": np.inf}, id="infinity"),
    pytest.param({"normal": np.nan}, id="missing number"),
    pytest.param({"counts": 10**6}, id="outlier"),
    pytest.param({"sign": "c"}, id="level"),
    pytest.param({"sign": None}, id="missing level"),
    pytest.param({"cat": "w"}, id="category"),
    pytest.param({"flag": False, "holes": np.nan}, id="usual"),
]


@pytest.mark.parametrize("change", ODD)
def test_rows_of_weight_zero_have_no_influence(change):
    X = table()
    odd = X.iloc[:3].assign(**change)
    odd = odd.astype({c: X[c].dtype for c in ("sign", "cat", "flag")})
    both = pd.concat([odd, X], ignore_index=True)
    weights = np.r_[np.zeros(3), np.ones(len(X))]
    encoder = TableEncoder(numeric_embedding="piecewise").fit(both, sample_weight=weights)
    assert_same_encoders(encoder, TableEncoder(numeric_embedding="piecewise").fit(X), X)


@pytest.mark.parametrize("odd", ["text", {"a": 1}, pd.Timestamp("2024-01-01"), 1j, True, None])
def test_objects_of_weight_zero_do_not_decide_what_a_column_is(odd):
    X = np.array([[odd], [1.0], [2], [4.0]], dtype=object)
    encoder = TableEncoder().fit(X, sample_weight=[0, 1, 1, 1])
    assert [c.kind for c in encoder.columns_] == ["numeric"]
    assert_same_encoders(encoder, TableEncoder().fit(X[1:]), X[1:])


def test_weights_are_checked():
    X = np.eye(3)
    with pytest.raises(ValueError, match=r"sample_weight.*non-zero"):
        TableEncoder().fit(X, sample_weight=np.zeros(3))
    with pytest.raises(ValueError, match="negative"):
        TableEncoder().fit(X, sample_weight=[1, -1, 1])
    with pytest.raises(ValueError, match=r"sample_weight.*shape"):
        TableEncoder().fit(X, sample_weight=[1, 1])


def test_fit_transform_takes_weights():
    X = table()
    weights = np.arange(len(X)) % 3
    np.testing.assert_array_equal(
        TableEncoder().fit_transform(X, sample_weight=weights),
        TableEncoder().fit(X, sample_weight=weights).transform(X),
    )


def test_sparse_and_dense_learn_the_same(rng):
    X = sparse.random(80, 12, density=0.3, random_state=0, format="csr")
    X.data = np.round(X.data * 8) - 4
    for weights in (None, rng.integers(0, 4, 80), rng.random(80)):
        params = {"numeric_embedding": "piecewise", "n_bins": 5}
        one = TableEncoder(**params).fit(X, sample_weight=weights)
        other = TableEncoder(**params).fit(X.toarray(), sample_weight=weights)
        assert one.columns_ == other.columns_
        np.testing.assert_array_equal(one.transform(X), other.transform(X.toarray()))
