"""Forward passes of dense networks by the compiled module, where it was built.

It serves numpy rows and the four activations of scikit-learn; `forward_pass` says whether it did.
Everything else (sparse rows, other activations, accelerators) goes the way of `fitted`.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from sknn_resid._native import compiled
from sknn_resid.engine.activations import Activation
from sknn_resid.engine.data import row_chunks
from sknn_resid.engine.losses import Loss
from sknn_resid.engine.native import LossCode
from sknn_resid.engine.threads import SINGLE_THREAD_FLOPS

# Letters of `_native/src/forward.h`: activations in the order of their codes, links, other outputs.
LETTERS = "irlt"
LINKS = {LossCode.SOFTMAX: "s", LossCode.BINARY: "l", LossCode.POISSON: "e"}
LOGITS, LARGEST, POSITIVE = "n", "a", "p"

# Work of one call, a tenth of a second: between calls an interrupt is seen.
CALL_FLOPS = 1e10
# Larger layers are BLAS's, which blocks them for all its caches; so are those that do not stay in
# the second cache, for too many rows to leave the weights as they are and too few to arrange them.
# Measured on Zen 3 against OpenBLAS: between 0.7 and 1 times its speed there.
LAYER_BYTES, MIDDLING_LAYER_BYTES = 3_500_000, 1_000_000
MIDDLING_ROWS = range(8, 300)
# Rows at a time of an X that has to be converted first.
CONVERTED_ROWS = 8192


def link_of(loss: Loss) -> str | None:
    """Letter of a loss's link, None where the compiled module does not know it."""
    if loss.code in LINKS:
        return LINKS[loss.code]
    return LOGITS if type(loss).link_ is Loss.link_ else None


def forward_pass(
    coefs: Sequence[np.ndarray],
    intercepts: Sequence[np.ndarray],
    activations: Sequence[Activation],
    X: object,
    out: np.ndarray,
    link: str | None,
    *,
    only_finite: bool = False,
) -> bool:
    """Write what ``link`` asks for into ``out``; False, and ``out`` is of no use, where it cannot.

    Parameters
    ----------
    coefs, intercepts : sequence of ndarray
        Of the layers to be run.
    activations : sequence of Activation
        One per layer; the identity may be left out at the end.
    X : ndarray of shape (n, D)
    out : ndarray of shape (n, K), or (n,) for `LARGEST`
        int64 for `LARGEST` and `POSITIVE`, else of the type of the weights.
    link : str or None
    only_finite : bool, default=False
        Whether to end with False at the first number of X that is not finite.
    """
    native = compiled("forward")
    if native is None or link is None or not isinstance(X, np.ndarray) or X.ndim != 2:
        return False
    if X.dtype != np.float32 and X.dtype != np.float64:
        return False
    codes = [activation.code for activation in activations]
    if None in codes:
        return False
    letters = "".join([LETTERS[code] for code in codes if code is not None])
    letters += "i" * (len(coefs) - len(letters))
    n_rows, dtype = len(X), coefs[0].dtype
    most = MIDDLING_LAYER_BYTES if n_rows in MIDDLING_ROWS else LAYER_BYTES
    if max([w.nbytes for w in coefs]) > most:
        return False
    if n_rows == 1 and X.dtype == dtype:  # what follows would take longer than the pass itself
        return native.run(coefs, intercepts, letters, X, out, link, only_finite)

    def run(rows: slice) -> bool:
        part = X[rows]
        part = part if part.dtype == dtype else part.astype(dtype)
        return native.run(coefs, intercepts, letters, part, out[rows], link, only_finite)

    flops = 2.0 * sum(w.size for w in coefs)  # of a row
    chunk = max(1, int(CALL_FLOPS / flops))
    if X.dtype != dtype:
        chunk = min(chunk, CONVERTED_ROWS)
    threads = torch.get_num_threads() if n_rows * flops >= SINGLE_THREAD_FLOPS else 1
    if threads == 1 or n_rows < 2 * threads:
        return n_rows > 0 and all(run(rows) for rows in row_chunks(n_rows, chunk))
    # Parts of whole cache lines, so that no two threads write to the same one.
    chunk = min(chunk, -(-n_rows // (64 * threads)) * 64)
    with ThreadPoolExecutor(threads) as pool:
        return all(list(pool.map(run, row_chunks(n_rows, chunk))))
