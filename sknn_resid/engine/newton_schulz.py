"""The nearest orthogonal matrix, nearly, for a batch of matrices: what Muon steps along.

With G = U S V' the singular value decomposition of a gradient, U V' is the direction of steepest
descent in the spectral norm (Jordan et al. 2024, Muon; Bernstein and Newhouse 2024, Old optimizer,
new norm). It is approached by products alone, in rounds of

    X <- a X + (b A + c A^2) X,   A = X X',   X_0 = G / |G|,

each of which sends every singular value s to a s + b s^3 + c s^5. Round by round, the coefficients
are those of the odd polynomial that comes nearest to 1 on the interval where the round before has
left the singular values, beginning with [0.002, 1], and taken at s / 1.01, so that rounding leaves
no value beyond the interval's end, where the polynomials are steep (Amsel et al. 2025, The Polar
Express). Four rounds so take [0.002, 1] into [0.66, 1.34]. Five rounds of the usual constants
(3.4445, -4.775, 2.0315) take it into [0.68, 1.21] at a quarter more time, and half of the time of
a step of a small network goes here.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from sknn_resid.engine.kernels import Op, matmul

# (a, b, c) of each round.
ROUNDS = (
    (8.3434, -24.2028, 17.5950),
    (4.0726, -2.9708, 0.5474),
    (3.6880, -2.7055, 0.5182),
    (2.7804, -2.0391, 0.4457),
)
TINY = 1e-30  # least |G|: a gradient of zeros stays zeros


def orthogonalize(G_Rij: Tensor) -> tuple[list[Op], Tensor]:
    """Bind the rounds on R matrices (i <= j); the result's memory is made here.

    ``G_Rij`` is used up.
    """
    R, i, _ = G_Rij.shape
    norm_R11 = G_Rij.new_zeros((R, 1, 1))
    A, A2 = G_Rij.new_zeros((R, i, i)), G_Rij.new_zeros((R, i, i))
    X, Y = G_Rij, torch.zeros_like(G_Rij)

    def scale() -> None:
        torch.linalg.vector_norm(G_Rij, dim=(1, 2), keepdim=True, out=norm_R11)
        G_Rij.div_(norm_R11.clamp_min_(TINY))

    ops: list[Op] = [scale]
    for a, b, c in ROUNDS:
        ops += [
            # torch's here: numpy's product with a transpose takes a fifth longer for 16 matrices
            # of 64 x 128, four times as long for 32 x 64.
            partial(torch.bmm, X, X.mT, out=A),
            matmul(A, A, A2),
            partial(A.mul_, b),
            partial(A.add_, A2, alpha=c),
            matmul(A, X, Y),
            partial(Y.add_, X, alpha=a),
        ]
        X, Y = Y, X
    return ops, X
