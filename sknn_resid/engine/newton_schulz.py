"""The nearest orthogonal matrix, nearly, for a batch of matrices: what Muon steps along.

With G = U S V' the singular value decomposition of a gradient, U V' is the direction of steepest
descent in the spectral norm (Jordan et al. 2024, Muon; Bernstein and Newhouse 2024, Old optimizer,
new norm). It is approached by products alone, in rounds of

    X <- P X,   P = a I + b A + c A^2,   A = X X',

each of which sends every singular value s to a s + b s^3 + c s^5. All P are polynomials of the
first A, so they commute with it and with each other, and the rounds need only the small square
matrices (the Gram form):

    Q <- Q P,   A <- A P P,   at the end X <- Q X.

Three rounds take 0.85 of the time of three rounds on X for 16 matrices of 64 x 128 (float32, one
thread), 1.15 for square ones, which is not worth a second form. In half precision the Gram form
needs restarts; in float32 three rounds on spectra down to 1e-7 agree with the polynomials of the
exact singular values to 3e-5.

**Scale.** The rounds begin with singular values in [0, 1]. |G| (Frobenius) is a bound of the
largest, but for k equal ones it is too large by the root of k, and rounds are spent on making up
for it. |G G'|^(1/2) is a bound as well (Schatten's 4-norm), at most the fourth root of k too large,
and A is at hand.

**Coefficients.** Round by round, those of the odd polynomial that comes nearest to 1 on the
interval where the round before has left the singular values, beginning with [0.008, 1], and taken
at s / 1.01, so that rounding leaves no value beyond the interval's end, where the polynomials are
steep (Amsel et al. 2025, The Polar Express). Three rounds so take [0.008, 1] into [0.64, 1.34].
Five rounds of the usual constants (3.4445, -4.775, 2.0315) take [0.002, 1] of what Frobenius's norm
leaves into [0.68, 1.21], at twice the time, and up to half of a small network's step goes here; on
35 real tables more rounds were no more accurate (docs/decisions/0013).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from sknn_resid.engine import bound
from sknn_resid.engine.kernels import Op, matmul

# (a, b, c) of each round.
ROUNDS = (
    (8.0934, -23.2356, 16.8409),
    (3.7044, -2.7152, 0.5187),
    (2.7993, -2.0490, 0.4449),
)
TINY = 1e-30  # least norm: a gradient of zeros stays zeros
# Compiled rounds run on one thread; beyond this side BLAS's threads are worth more.
MOST_COMPILED = 256


def bind_steps(
    params_MN: Tensor,
    grads_MN: Tensor,
    velocity_MN: Tensor,
    runs: Sequence[tuple[int, int, int, int]],
    momentum: float,
) -> Callable[[float, float], object] | None:
    """Muon's step of whole rows of matrices as one compiled call, where there is one.

    Every matrix goes through all of its rounds before the next, so it stays in the cache, and of
    the symmetric ones in between only one half is worked out: half the time of the operations of
    `orthogonalize` for 16 matrices of 64 x 128, a quarter or less for 32 x 64 and smaller ones.

    Parameters
    ----------
    params_MN, grads_MN, velocity_MN : Tensor of shape (M, N)
    runs : sequence of (start, count, rows, columns)
        Where equal matrices lie side by side in a row of N numbers.
    momentum : float

    Returns
    -------
    callable or None
        ``step(rate, keep)``: v = mu v + g, W = keep W - rate s N(g + mu v) with
        s = sqrt(max(1, columns / rows)).
    """
    if any(min(rows, columns) > MOST_COMPILED for _, _, rows, columns in runs):
        return None
    numbers = [momentum, len(ROUNDS), *(x for factors in ROUNDS for x in factors)]
    numbers += [len(runs), *(x for run in runs for x in run)]
    return bound.bind("muon", [params_MN, grads_MN, velocity_MN], numbers)


def orthogonalize(G_Rij: Tensor) -> tuple[list[Op], Tensor]:
    """Bind the rounds on R matrices (i <= j); the result's memory is made here.

    ``G_Rij`` is used up.
    """
    R, i, _ = G_Rij.shape
    norm_R11 = G_Rij.new_zeros((R, 1, 1))
    A, B, P, total, spare = (G_Rij.new_zeros((R, i, i)) for _ in range(5))
    result = torch.zeros_like(G_Rij)

    def scale() -> None:
        torch.linalg.vector_norm(G_Rij, dim=(1, 2), keepdim=True, out=norm_R11)
        G_Rij.div_(norm_R11.clamp_min_(TINY))

    def tighten() -> None:  # A for X / |A|^(1/2)
        torch.linalg.vector_norm(A, dim=(1, 2), keepdim=True, out=norm_R11)
        A.div_(norm_R11.clamp_min_(TINY))

    def scale_product() -> None:
        total.div_(norm_R11.sqrt_())

    # torch's here: numpy's product with a transpose takes a fifth longer for 16 matrices of
    # 64 x 128, four times as long for 32 x 64.
    ops: list[Op] = [scale, partial(torch.bmm, G_Rij, G_Rij.mT, out=A), tighten]
    for k, (a, b, c) in enumerate(ROUNDS):
        factor = P if k else total
        ops += [
            matmul(A, A, factor),
            partial(factor.mul_, c),
            partial(factor.add_, A, alpha=b),
            partial(factor.diagonal(dim1=1, dim2=2).add_, a),
        ]
        if k + 1 < len(ROUNDS):
            ops += [matmul(A, factor, B), matmul(B, factor, A)]
        if k:
            ops.append(matmul(total, factor, spare))
            total, spare = spare, total
    return [*ops, scale_product, matmul(total, G_Rij, result)], result
