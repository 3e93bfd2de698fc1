"""Columns that hold one number in pieces: looked up, and equal to products with the columns."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from engine.residual_builders import (
    STRUCTURES,
    make_job,
    make_rows,
    make_spec,
    reference_gradients,
    relative_error,
    stack_gradients,
)

from sknn_resid._native import compiled
from sknn_resid.engine import bound
from sknn_resid.engine.job import pieces_of
from sknn_resid.engine.pieces import Pieces
from sknn_resid.neural_network import TableEncoder
from sknn_resid.neural_network._residual_params import piecewise_runs

needs_compiled = pytest.mark.skipif(
    compiled("residual") is None, reason="the compiled parts were not built, or are switched off"
)
# Long and short runs, next to each other and apart.
RUNS = ((2, 18), (18, 20), (20, 21), (23, 40))
N_COLUMNS = 44


def rows_in_pieces(n_rows, runs=RUNS, n_columns=N_COLUMNS):
    """Rows of X whose runs are drawn: values at the ends of bins and of the scale among them."""
    rng = np.random.default_rng([n_rows, n_columns])
    X = rng.standard_normal((n_rows, n_columns))
    for first, stop in runs:
        X[:, first:stop] = -0.5
        for row, at in zip(X, rng.integers(first, stop, n_rows), strict=True):
            row[first:at] = 0.5
            row[at] = rng.choice([rng.uniform(-0.5, 0.5), 0.5, -0.5])
    return X


def unpacked(pieces, packed, n_columns):
    """X from its packed form."""
    X = np.empty((len(packed), n_columns))
    start = 0
    for c in pieces.others:
        X[:, c] = packed[:, start : start + c.stop - c.start]
        start += c.stop - c.start
    for f, (first, stop) in enumerate(pieces.runs):
        place, v = packed[:, start + f], packed[:, start + len(pieces.runs) + f]
        columns = np.arange(first, stop)
        X[:, first:stop] = np.sign(place[:, None] - columns) / 2
        X[np.arange(len(X)), place.astype(int)] = v
    return X


def test_packed_rows_tell_the_whole_row():
    X = rows_in_pieces(200)
    pieces = Pieces.of(make_spec(n_features=N_COLUMNS, piecewise=RUNS))
    packed = pieces.pack(X)
    assert packed.shape == (200, pieces.n_columns) == (200, 8 + 2 * len(RUNS))
    np.testing.assert_array_equal(unpacked(pieces, packed, N_COLUMNS), X)


def test_what_the_encoder_gives_is_in_pieces():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({f"x{j}": rng.standard_normal(300) for j in range(4)})
    frame.iloc[::7, 1] = np.nan
    frame["few"] = rng.integers(0, 4, 300)
    frame["pet"] = rng.choice(["cat", "dog", "cow"], 300)
    encoder = TableEncoder(numeric_embedding="piecewise").fit(frame.iloc[:200])
    far = frame.assign(x0=frame["x0"] * 100)  # beyond the edges of fit
    runs = piecewise_runs(encoder.kinds_, encoder.source_)
    assert [b - a for a, b in runs] == [16, 16, 16, 16, 3]
    for table in (frame, far):
        X = encoder.transform(table)
        pieces = Pieces.of(make_spec(n_features=X.shape[1], piecewise=runs))
        np.testing.assert_array_equal(unpacked(pieces, pieces.pack(X), X.shape[1]), X)


@pytest.mark.parametrize(
    ("piecewise", "n_features"),
    [((), 9), (((1, 4), (4, 7)), 9), (((0, 9),), 9)],
    ids=["none", "short", "nothing else"],
)
def test_where_looking_up_saves_nothing_columns_are_multiplied(piecewise, n_features):
    assert Pieces.of(make_spec(n_features=n_features, piecewise=piecewise)) is None


@pytest.mark.parametrize(
    ("bad", "why"),
    [((3, 9, 8, 12), "overlap"), ((3, 3), "empty"), ((3, 99), "beyond"), ((3, 9), "too few")],
    ids=lambda value: value if isinstance(value, str) else "",
)
@needs_compiled
def test_runs_that_do_not_fit_are_refused(bad, why):
    n = 2 if why == "too few" else max(1, len(bad) // 2)
    place, v = torch.zeros(1, 5, n), torch.zeros(1, 5, n)
    arrays = [place, v, torch.zeros(1, 20, 4), torch.zeros(1, 5, 4)]
    with pytest.raises(ValueError, match="numbers do not describe it"):
        bound.bind("pieces_in", arrays, bad)


@needs_compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 5, 32, 37, 64, 70, 128])
def test_lookups_are_products(width, dtype):
    M, n = 3, 50
    spec = make_spec(n_features=N_COLUMNS, piecewise=RUNS)
    pieces = Pieces.of(spec)
    X = rows_in_pieces(n)
    packed, X = (torch.from_numpy(a).to(dtype).expand(M, n, -1) for a in (pieces.pack(X), X))
    torch.manual_seed(0)
    W, z, d = (torch.randn(M, k, width, dtype=dtype) for k in (N_COLUMNS, n, n))
    columns = [c for run in RUNS for c in range(*run)]
    expected = z + X[:, :, columns] @ W[:, columns]
    pieces.add(packed, W, z)()
    tolerance = 1e-13 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(z, expected, rtol=tolerance, atol=tolerance)
    gradient = torch.full_like(W, 7.0)
    expected = gradient.clone()
    expected[:, columns] = X[:, :, columns].mT @ d
    pieces.gradient(packed, d, gradient)()  # other rows stay what they are
    torch.testing.assert_close(gradient, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("structure", ["tabular", "layer", "no_norm", "gated", "no_blocks"])
@pytest.mark.parametrize("way", ["compiled", "without"])
def test_gradients_are_autograds(structure, way, monkeypatch):
    if way == "without":
        monkeypatch.setattr(bound, "compiled", lambda name: None)
    elif compiled("residual") is None:
        pytest.skip("the compiled parts were not built, or are switched off")
    spec = make_spec("relu", **STRUCTURES[structure], n_features=N_COLUMNS, piecewise=RUNS)
    _, y = make_rows()
    X = rows_in_pieces(len(y))
    jobs = [make_job(spec, X, y, m, scaled=m % 2 == 1) for m in range(3)]
    looked_up = pieces_of(jobs, 4) is not None
    assert looked_up == (way == "compiled" and structure != "gated")
    for stack in ([0], [2, 1], [0, 1, 2]):
        gradients, _ = stack_gradients([jobs[m] for m in stack])
        for m, ours in zip(stack, gradients, strict=True):
            references = reference_gradients(jobs[m])
            assert max(map(relative_error, ours, references)) < 1e-10
