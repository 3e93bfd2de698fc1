"""`tied_weights` as a user writes it -> the engine's `Ties`, with every rule said in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from sknn_resid.engine.layout import DenseLayout, TiedLayout
from sknn_resid.engine.ties import LayerPlace, Place, Ties

TRANSPOSED = "T"
_FORM = (
    "tied_weights is a list of groups. A group is a list of places (layer, row, column), each "
    "coefs_[layer][row, column], or of whole layers, (layer,) as it is and (layer, 'T') transposed."
)


def resolve_ties(tied_weights: Any, sizes: Sequence[int]) -> Ties | None:
    """The ties of a network with layers of these sizes; None where nothing is tied.

    Parameters
    ----------
    tied_weights : sequence of groups, or None
        Indices may count from the end, as in numpy.
    sizes : sequence of int
        n_features, hidden widths, n_outputs.

    Raises
    ------
    ValueError
        If it has another form, a place does not exist or stands in two groups, a group ties nothing
        or matrices of different shapes.
    """
    if tied_weights is None:
        return None
    places: list[tuple[Place, ...]] = []
    layers: list[tuple[LayerPlace, ...]] = []
    for g, group in enumerate(_sequence(tied_weights, "tied_weights")):
        name = f"tied_weights[{g}]"
        entries = [_entry(entry, name) for entry in _sequence(group, name)]
        if len(entries) < 2:
            raise ValueError(
                f"{name}={group!r} ties nothing: a group needs at least two places. Name the other "
                "places, or leave the group out."
            )
        kinds = {len(entry) == 3 for entry in entries}
        if len(kinds) > 1:
            raise ValueError(
                f"{name}={group!r} mixes places and whole layers. Put them into groups of "
                "their own."
            )
        if kinds == {True}:
            places.append(tuple(_place(entry, sizes, name) for entry in entries))
        else:
            layers.append(tuple(_layer(entry, sizes, name) for entry in entries))
            _check_shapes(layers[-1], sizes, name)
    _check_disjoint(places, layers)
    return Ties(tuple(places), tuple(layers)) if places or layers else None


def check_tied(coefs: Sequence[np.ndarray], layout: DenseLayout) -> None:
    """Refuse to go on with weights that are not equal where they are to be tied."""
    if not isinstance(layout, TiedLayout):
        return
    numbers = layout.full.pack(coefs, [np.zeros(size) for size in layout.sizes[1:]])
    if not np.array_equal(numbers, numbers[layout.owner]):
        raise ValueError(
            "The weights of the fitted model are not equal in the places that tied_weights ties. "
            "warm_start and partial_fit go on with the weights at hand: fit anew "
            "(warm_start=False), or make coefs_ equal in these places first."
        )


def _sequence(value: Any, name: str) -> list[Any]:
    if isinstance(value, str) or not hasattr(value, "__len__"):
        raise ValueError(f"{name} must be a list, got {value!r}. {_FORM}")
    return list(value)


def _entry(entry: Any, name: str) -> tuple[Any, ...]:
    """A place or a layer of the right form; numbers are not looked at yet."""
    parts = tuple(entry) if hasattr(entry, "__len__") and not isinstance(entry, str) else ()
    transposed = len(parts) == 2 and isinstance(parts[1], str) and parts[1] == TRANSPOSED
    numbers = parts[:1] if transposed else parts
    whole = all(isinstance(n, Integral) and not isinstance(n, bool) for n in numbers)
    if not whole or not (transposed or len(parts) in (1, 3)):
        raise ValueError(f"{name}: {entry!r} is neither a place nor a layer. {_FORM}")
    return parts


def _index(value: Any, size: int, what: str, name: str, entry: Any) -> int:
    if not -size <= value < size:
        raise ValueError(
            f"{name}: {entry!r} does not exist: {what} {int(value)} of {size}, which count from 0 "
            f"to {size - 1}, or from -1 to {-size} backwards."
        )
    return int(value) % size


def _place(entry: tuple[Any, ...], sizes: Sequence[int], name: str) -> Place:
    layer = _index(entry[0], len(sizes) - 1, "layer", name, entry)
    row = _index(entry[1], sizes[layer], f"row (unit below layer {layer})", name, entry)
    column = _index(entry[2], sizes[layer + 1], f"column (unit of layer {layer})", name, entry)
    return layer, row, column


def _layer(entry: tuple[Any, ...], sizes: Sequence[int], name: str) -> LayerPlace:
    return _index(entry[0], len(sizes) - 1, "layer", name, entry), len(entry) == 2


def _check_shapes(group: Sequence[LayerPlace], sizes: Sequence[int], name: str) -> None:
    shapes = [_shape(place, sizes) for place in group]
    for place, shape in zip(group[1:], shapes[1:], strict=True):
        if shape != shapes[0]:
            raise ValueError(
                f"{name}: {_said(group[0])} has shape {shapes[0]}, {_said(place)} has shape "
                f"{shape}. Tied layers need equal shapes: change hidden_layer_sizes, or transpose "
                "one of them with (layer, 'T')."
            )


def _shape(place: LayerPlace, sizes: Sequence[int]) -> tuple[int, int]:
    layer, transposed = place
    shape = (sizes[layer], sizes[layer + 1])
    return shape[::-1] if transposed else shape


def _said(place: LayerPlace) -> str:
    return f"layer {place[0]}" + (" transposed" if place[1] else "")


def _check_disjoint(
    places: Sequence[Sequence[Place]], layers: Sequence[Sequence[LayerPlace]]
) -> None:
    """No place stands twice, neither in one group nor in two."""
    whole: set[int] = set()
    for layer, _ in _flat(layers):
        if layer in whole:
            raise ValueError(
                f"tied_weights: layer {layer} stands twice. A layer belongs to one group, once; "
                "join groups that share a layer."
            )
        whole.add(layer)
    seen: set[Place] = set()
    for place in _flat(places):
        if place in seen or place[0] in whole:
            raise ValueError(
                f"tied_weights: the place {place} stands twice"
                + (f", in a group and in layer {place[0]}" if place[0] in whole else "")
                + ". A place belongs to one group, once; join groups that share a place."
            )
        seen.add(place)


def _flat(groups: Sequence[Sequence[Any]]) -> Iterator[Any]:
    for group in groups:
        yield from group
