"""What a residual network is: frozen values, beside `spec.NetworkSpec`.

With x_0 = [X, e(X)] W_in + b_in (e a periodic embedding, if there is one), blocks l = 1 ... L and
the branch F_l below, the network is

    x_l = x_{l-1} + F_l(x_{l-1})                     identity (He et al. 2016, equation 1)
    x_l = F_l(x_{l-1})                               none: the plain twin, same parameters
    x_l = x_{l-1} + a_l F_l(x_{l-1})                 rezero, a_l a scalar (Bachlechner et al. 2021)
    x_l = t F_l(x_{l-1}) + (1 - t) x_{l-1}           gated, t = s(x_{l-1} W_t + b_t), s the logistic
                                                     (highway, Srivastava et al. 2015)
    z = W_out f(n(x_L)) + b_out

    F(x) = W_2 drop(f([n](W_1 [f](n(x)) + b_1))) + b_2

with n the normalization and f the activation; more matrices repeat the part drop(f([n](...))). What
stands in brackets are options: ``preactivate`` puts f before the first matrix (He et al. 2016,
figure 4e); without it, and without ``normalize_inner``, a block is that of Gorishniy et al. (2021):
x + W_2 drop(f(W_1 n(x) + b_1)) + b_2.

References
----------
He, Zhang, Ren and Sun (2016), Identity mappings in deep residual networks.
Bachlechner et al. (2021), ReZero is all you need. Srivastava, Greff and Schmidhuber (2015), Highway
networks. Gorishniy et al. (2021), Revisiting deep learning models for tabular data.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

import torch

from sknn_resid.engine.activations import Activation
from sknn_resid.engine.losses import Loss


class Normalization(Enum):
    """What n is: over the (weighted) rows of a batch, over the units of a row, or nothing."""

    BATCH = "batch"
    LAYER = "layer"
    NONE = "none"


class Skip(Enum):
    """How a block's input is carried past its branch."""

    IDENTITY = "identity"
    NONE = "none"
    GATED = "gated"
    REZERO = "rezero"


@dataclass(frozen=True)
class Periodic:
    """Features cos(2 pi w x + b) of the leading columns, w and b learned (Gorishniy et al. 2022).

    They stand behind the columns themselves, which are kept. A linear map of each column's features
    may follow in the literature; here the input projection is that map.

    Attributes
    ----------
    n_columns : int
        How many leading columns of X have such features.
    n_frequencies : int
        How many features each of them gets.
    """

    n_columns: int
    n_frequencies: int

    @property
    def n_added(self) -> int:
        """Number of features."""
        return self.n_columns * self.n_frequencies


@dataclass(frozen=True)
class ResidualSpec:
    """Structure of a residual network.

    Attributes
    ----------
    n_features : int
    width : int
        Units of the stream x.
    hidden : int
        Units inside a branch.
    n_blocks : int
        May be 0.
    n_outputs : int
    activation : Activation
    loss : Loss
    dtype : torch.dtype
        Of the master weights, the stream, the normalizations, the loss and the optimizer.
    product_dtype : torch.dtype
        Of the matrix products: ``dtype``, or bfloat16 with float32 master weights.
    n_layers_per_block : int
        Matrices of a branch. With one of them a branch is W_1 drop(f(n(x))) + b_1.
    normalization : Normalization
    skip : Skip
    preactivate : bool
        Whether f stands before the first matrix too (always so with one matrix).
    normalize_inner : bool
        Whether n stands before every f of a branch, or before its first matrix only.
    tie_blocks : bool
        All blocks share one set of parameters; their statistics remain their own.
    periodic : Periodic or None
    norm_epsilon : float
        Added to variances.
    piecewise : tuple of (int, int)
        First column and last but one of each run of columns that holds one number in pieces, in
        ascending order: every row of X is 1/2, ..., 1/2, v, -1/2, ..., -1/2 there. It is what X
        is like, not what the network is; products with such columns can be looked up.
    """

    n_features: int
    width: int
    hidden: int
    n_blocks: int
    n_outputs: int
    activation: Activation
    loss: Loss
    dtype: torch.dtype
    product_dtype: torch.dtype
    n_layers_per_block: int = 2
    normalization: Normalization = Normalization.BATCH
    skip: Skip = Skip.IDENTITY
    preactivate: bool = False
    normalize_inner: bool = False
    tie_blocks: bool = False
    periodic: Periodic | None = None
    norm_epsilon: float = 1e-5
    piecewise: tuple[tuple[int, int], ...] = ()

    @property
    def n_inputs(self) -> int:
        """Columns that the input projection reads."""
        return self.n_features + (0 if self.periodic is None else self.periodic.n_added)

    @property
    def n_sets(self) -> int:
        """How many sets of block parameters there are."""
        return min(1, self.n_blocks) if self.tie_blocks else self.n_blocks

    @property
    def layer_widths(self) -> tuple[tuple[int, int], ...]:
        """(in, out) of each matrix of a branch."""
        n = self.n_layers_per_block
        units = (self.width, *[self.hidden] * (n - 1), self.width)
        return tuple(pairwise(units))

    @property
    def activated(self) -> tuple[bool, ...]:
        """Whether f stands before each matrix of a branch."""
        first = self.preactivate or self.n_layers_per_block == 1
        return (first, *[True] * (self.n_layers_per_block - 1))

    @property
    def normalized(self) -> tuple[bool, ...]:
        """Whether n stands before each matrix of a branch."""
        some = self.normalization is not Normalization.NONE
        return (some, *[some and self.normalize_inner] * (self.n_layers_per_block - 1))

    @property
    def dropped(self) -> tuple[bool, ...]:
        """Whether dropout acts before each matrix of a branch: before all but the first."""
        n = self.n_layers_per_block
        return (n == 1, *[True] * (n - 1))
