"""The pass over the rows on a CUDA device: the sums of products of `_gram`, computed by torch.

The sums are all that costs ``n p^2``; everything after them is of the size of the columns and stays
on the host. They are exact to the same bits, because a device adds the products of slices without
rounding as a host does: results do not depend on where they were computed. torch is imported here
only, when a device was asked for.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

from sknn_resid._device import resolve_device
from sknn_resid.linear_model._gram import BITS, MAX_ROWS, Gram, choose_shifts
from sknn_resid.linear_model._least_squares import STREAM_SLICES, Problem, Stream, prepare_stream
from sknn_resid.linear_model._words import SPLITTER, compress, word_count

if TYPE_CHECKING:
    import torch

# Multiplications from which 'auto' takes a device: below, the transfer takes as long as the work.
AUTO_MIN_WORK = 1e10
# Numbers of a chunk of rows, and of its products, that are on the device at once.
MAX_NUMBERS = 2**25


def resolve(device: str, n_samples: int, n_features: int) -> str:
    """Where to compute: 'cpu' or a CUDA device.

    Parameters
    ----------
    device : str
        'auto', 'cpu', or a CUDA device such as 'cuda' or 'cuda:1'. 'auto' takes CUDA for large
        problems in programs that have imported torch already; it imports nothing by itself.
    n_samples, n_features : int
        Size of the problem. One with more columns than rows has no long pass over the rows and
        stays on the host.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If the device cannot compute in float64, is not known, or is not there.
    """
    kind = device.partition(":")[0]
    if kind == "mps":
        raise ValueError(
            f"device: {device!r} has no float64, which least squares needs: in float32 the "
            "condition number of the data takes all digits. Use device='cpu'."
        )
    if kind not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device: must be 'auto', 'cpu' or 'cuda', got {device!r}.")
    if kind == "cuda":
        resolve_device(device)
    wide = n_samples <= n_features
    if kind == "cuda" and not wide:
        return device
    large = float(n_samples) * n_features**2 >= AUTO_MIN_WORK
    if kind == "auto" and large and not wide and "torch" in sys.modules:
        return "cuda" if sys.modules["torch"].cuda.is_available() else "cpu"
    return "cpu"


def prepare_on(
    device: str,
    X: np.ndarray,
    Y: np.ndarray,
    *,
    sample_weight: np.ndarray | None,
    fit_intercept: bool,
    penalty: np.ndarray | None,
    refine: bool | str,
) -> Problem:
    """As :func:`~sknn_resid.linear_model._least_squares.prepare`, with the sums from a device.

    Parameters
    ----------
    device : str
        A torch device with float64.
    X, Y, sample_weight, fit_intercept, penalty, refine
        As there.

    Returns
    -------
    Problem
    """
    shift, y_shift = np.zeros(X.shape[1]), np.zeros(Y.shape[1])
    if fit_intercept:
        shift, y_shift = choose_shifts(X, Y, sample_weight)
    sums = gram_on(device, X, Y, sample_weight, shift, y_shift, STREAM_SLICES)
    return prepare_stream(Stream(sums, fit_intercept), penalty=penalty, refine=refine)


def gram_on(
    device: str,
    X: np.ndarray,
    Y: np.ndarray,
    sample_weight: np.ndarray | None,
    shift: np.ndarray,
    y_shift: np.ndarray,
    slices: int,
) -> Gram:
    """As :func:`~sknn_resid.linear_model._gram.gram`, on a torch device.

    Parameters
    ----------
    device : str
        A torch device with float64.
    X, Y, sample_weight, shift, y_shift, slices
        As there; at least 2 slices.

    Returns
    -------
    Gram
    """
    import torch

    q, t = 1 + X.shape[1], Y.shape[1]
    widest = q + t
    blocks = max(1, MAX_NUMBERS // (widest * max(widest, MAX_ROWS)))
    # Columns of A and of the targets side by side: one set of products holds all that is wanted.
    sums = torch.zeros((slices, 2, widest, widest), dtype=torch.float64, device=device)
    offset = np.concatenate([[0.0], shift, y_shift])
    moved = torch.as_tensor(-offset, device=device)
    for start in range(0, len(X), blocks * MAX_ROWS):
        part = slice(start, start + blocks * MAX_ROWS)
        rows = np.column_stack([np.ones(len(X[part])), X[part], Y[part]])
        weights = None if sample_weight is None else sample_weight[part]
        if weights is not None:
            # Whatever they hold, they add nothing; 0 after the shift, they cost no bits either.
            rows[weights == 0] = offset
        top, error = _two_sum(torch.as_tensor(rows, device=device), moved)
        words = [_in_blocks(top), _in_blocks(error)]
        left = _cut(words, slices)
        right = left
        if weights is not None:
            w = _in_blocks(torch.as_tensor(weights, device=device)[:, None])
            right = _cut(_times(words, w), slices)
        for s in range(slices):
            _accumulate(sums[s], _products(left, right, s))
    host = sums.cpu().numpy()
    terms = [*host[:, 0], *host[:, 1]]
    whole = compress(terms, word_count(slices))
    n_rows = len(X) if sample_weight is None else int(np.count_nonzero(sample_weight))
    return Gram(
        n_rows=n_rows,
        shift=shift,
        y_shift=y_shift,
        xx=np.ascontiguousarray(whole[:, :q, :q]),
        xy=np.ascontiguousarray(whole[:, :q, q:]),
        yy=np.ascontiguousarray(np.diagonal(whole[:, q:, q:], axis1=1, axis2=2)),
        slices=slices,
    )


def _in_blocks(rows: torch.Tensor) -> torch.Tensor:
    """Rows as (blocks, MAX_ROWS, columns), filled up with zeros."""
    import torch

    missing = -len(rows) % MAX_ROWS
    padded = torch.nn.functional.pad(rows, (0, 0, 0, missing))
    return padded.reshape(-1, MAX_ROWS, rows.shape[1])


def _two_sum(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum and its rounding error (Knuth)."""
    s = a + b
    part = s - a
    return s, (a - (s - part)) + (b - part)


def _two_prod(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Product and its rounding error (Dekker)."""
    product = a * b
    a_high, b_high = ((x * SPLITTER) - (x * SPLITTER - x) for x in (a, b))
    a_low, b_low = a - a_high, b - b_high
    error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, error


def _times(words: list[torch.Tensor], w: torch.Tensor) -> list[torch.Tensor]:
    """Words times a weight per row, as three words."""
    first, error = _two_prod(words[0], w)
    second, error2 = _two_prod(words[1], w)
    middle, small = _two_sum(error, second)
    first, middle = _two_sum(first, middle)
    return [first, middle, small + error2]


def _cut(words: list[torch.Tensor], slices: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Pieces of `BITS` bits, and what remains before each; as ``_words.cut`` along the rows."""
    import torch

    top, rest = words[0], list(words[1:])
    pieces, tails = [], []
    largest = top.abs().amax(dim=1, keepdim=True)
    largest = torch.where(largest > 0, largest, 1.0)
    # largest / mantissa is the power of two; torch.ldexp would form it in float32.
    magic = (largest / torch.frexp(largest)[0]) * (1.5 * 2.0 ** (53 - BITS))
    for _ in range(slices - 1):
        tails.append(top)
        piece = (top + magic) - magic
        pieces.append(piece)
        top = top - piece
        for k, word in enumerate(rest):
            if k == 0:
                top, rest[0] = _two_sum(top, word)
            else:
                rest[k - 1], rest[k] = _two_sum(rest[k - 1], word)
        magic = magic * 2.0**-BITS
    return [*pieces, top], [*tails, top]


def _products(
    left: tuple[list[torch.Tensor], list[torch.Tensor]],
    right: tuple[list[torch.Tensor], list[torch.Tensor]],
    s: int,
) -> torch.Tensor:
    """Products of pieces i and j, i + j = s, of every block; the last order takes what remains."""
    pieces, others = left[0], right[1] if s == len(left[0]) - 1 else right[0]
    found = pieces[0].mT @ others[s]
    for i in range(1, s + 1):
        found += pieces[i].mT @ others[s - i]
    return found


def _accumulate(total: torch.Tensor, values: torch.Tensor) -> None:
    """Add the products of all blocks to a sum and to what its additions rounded off."""
    while len(values) > 1:
        half = len(values) // 2
        added, errors = _two_sum(values[:half], values[half : 2 * half])
        total[1] += errors.sum(dim=0)
        values = added if len(values) == 2 * half else _appended(added, values[-1:])
    added, error = _two_sum(total[0], values[0])
    total[0] = added
    total[1] += error


def _appended(values: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.cat([values, last])
