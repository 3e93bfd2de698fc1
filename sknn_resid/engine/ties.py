"""Which weights of a dense network are one weight that stands in several places.

If w stands in the places P, then dJ/dw = sum over p in P of dJ/dw_p: the chain rule for a function
of several arguments that are the same number. Weights are tied by place, or layer by layer, as a
decoder that is the transpose of its encoder.
"""

from __future__ import annotations

from dataclasses import dataclass

Place = tuple[int, int, int]
LayerPlace = tuple[int, bool]


@dataclass(frozen=True)
class Ties:
    """Groups of weights that are one weight each; no place is in two groups.

    Attributes
    ----------
    places : tuple of tuple of (layer, row, column)
        Groups of places in the weight matrices (in, out), all counted from 0.
    layers : tuple of tuple of (layer, transposed)
        Groups of matrices that are one matrix, as it is or transposed.
    """

    places: tuple[tuple[Place, ...], ...] = ()
    layers: tuple[tuple[LayerPlace, ...], ...] = ()
