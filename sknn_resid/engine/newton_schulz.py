"""The nearest orthogonal matrix, nearly, for a batch of matrices: what Muon steps along.

With G = U S V' the singular value decomposition of a gradient, U V' is the direction of steepest
descent in the spectral norm. Five rounds of

    X <- a X + (b A + c A^2) X,   A = X X',   X_0 = G / |G|,   a, b, c = 3.4445, -4.775, 2.0315

bring every singular value that is not tiny into about [0.7, 1.2], by products alone (Jordan et al.
2024, Muon; Bernstein and Newhouse 2024, Old optimizer, new norm).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from sknn_resid.engine.kernels import Op, matmul

COEFFICIENTS = (3.4445, -4.775, 2.0315)
ROUNDS = 5
TINY = 1e-30  # least |G|: a gradient of zeros stays zeros


def orthogonalize(G_Rij: Tensor) -> tuple[list[Op], Tensor]:
    """Bind the rounds on R matrices (i <= j); the result's memory is made here.

    ``G_Rij`` is used up.
    """
    a, b, c = COEFFICIENTS
    R, i, _ = G_Rij.shape
    norm_R11 = G_Rij.new_zeros((R, 1, 1))
    A, A2 = G_Rij.new_zeros((R, i, i)), G_Rij.new_zeros((R, i, i))
    X, Y = G_Rij, torch.zeros_like(G_Rij)

    def scale() -> None:
        torch.linalg.vector_norm(G_Rij, dim=(1, 2), keepdim=True, out=norm_R11)
        G_Rij.div_(norm_R11.clamp_min_(TINY))

    ops: list[Op] = [scale]
    for _ in range(ROUNDS):
        ops += [
            matmul(X, X.mT, A),
            matmul(A, A, A2),
            partial(A.mul_, b),
            partial(A.add_, A2, alpha=c),
            matmul(A, X, Y),
            partial(Y.add_, X, alpha=a),
        ]
        X, Y = Y, X
    return ops, X
