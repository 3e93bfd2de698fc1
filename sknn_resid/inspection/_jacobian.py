"""What depth does to gradients on their way: `jacobian_spectrum` and `gradient_correlation`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
from sklearn.utils import check_random_state

from sknn_resid.engine.image_trace import ImageSubject, pixel_gradients
from sknn_resid.engine.residual_fitted import statistics_of
from sknn_resid.engine.residual_spec import ResidualSpec, Skip
from sknn_resid.inspection._images import is_image_network, look_at_images
from sknn_resid.inspection._layers import needs_targets
from sknn_resid.inspection._network import OpenNetwork, open_network
from sknn_resid.inspection._passes import NetworkPass

MOST_NUMBERS = 1 << 20  # of one layer's activations in one pass


def jacobian_spectrum(
    estimator: Any, X: Any, y: Any = None, *, n_rows: int = 8, member: int = 0
) -> pd.DataFrame:
    """Singular values of the way from each depth of a network to its end.

    With x_l the stream behind block l of a residual network (x_0 behind the input), the rows of the
    table are about J = dx_L / dx_l for l = 0, 1, ..., L - 1; in a dense network x_l is what hidden
    layer l gives, from the first to the last. A gradient at the end arrives at depth l multiplied
    by J'. Singular values around 1 carry it; all of them near 0 lose it, large ones blow it up, and
    a few large ones among small ones leave it few directions, whatever its length.

    The table is exact for each row of X: batch normalizations take their statistics, those that
    were kept by ``fit`` or, of a network that is not fitted, of these rows, as constants.

    Parameters
    ----------
    estimator : estimator or Pipeline
        A network of this package, fitted or not, with two hidden layers or one block at least.
    X : {array-like, frame, sparse matrix} of shape (n_samples, n_features)
        Rows.
    y : array-like, default=None
        Their targets; needed where the estimator is not fitted, to know the number of outputs.
    n_rows : int, default=8
        At how many rows of X, evenly spread, J is worked out.
    member : int, default=0
        Which member of a residual ensemble.

    Returns
    -------
    spectrum : DataFrame
        One row per depth; the first is the whole stack.

        ``layer``
            Where the way begins.
        ``mean_square``
            Mean of the squared singular values, over all of them and the rows. The square of the
            factor by which the length of a random gradient changes.
        ``largest``, ``smallest``
            Singular values, geometric means over the rows.
        ``condition``
            Largest over smallest; infinite where J is not of full rank (with ReLU nearly always).
        ``effective_rank``
            ``exp(H)``, H the entropy of the squared singular values as parts of their sum: how
            many directions the gradient is left with. Mean over the rows.
        ``rank_fraction``
            The same as a part of what is possible, the narrowest layer on the way.

    Raises
    ------
    TypeError
        If the estimator is no network of this package, or an image network.
    ValueError
        If there is no way to look at (one hidden layer, no block), or for bad input.

    References
    ----------
    Saxe, McClelland and Ganguli (2014), Exact solutions to the nonlinear dynamics of learning in
    deep linear neural networks. Pennington, Schoenholz and Ganguli (2017), Resurrecting the sigmoid
    in deep learning through dynamical isometry. Roy and Vetterli (2007), The effective rank.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sknn_resid import MLPClassifier
    >>> from sknn_resid.inspection import jacobian_spectrum
    >>> X, y = load_digits(return_X_y=True)
    >>> deep = MLPClassifier((64,) * 20, activation="tanh", random_state=0)
    >>> whole = jacobian_spectrum(deep, X / 16, y).iloc[0]
    >>> bool(0.01 < whole["mean_square"] < 1), bool(whole["rank_fraction"] < 0.3)
    (True, True)
    """
    if is_image_network(estimator):
        raise TypeError(
            "estimator: the Jacobian of an image network has as many columns as its maps have "
            "numbers, and is not worked out. Use gradient_flow, gradient_correlation or diagnose."
        )
    return spectrum_of(open_network(estimator, X, y, member=member, dtype="float64"), n_rows)


def spectrum_of(network: OpenNetwork, n_rows: int = 8, *, whole_only: bool = False) -> pd.DataFrame:
    """The table of `jacobian_spectrum`, or the row of the whole stack only."""
    if n_rows < 1:
        raise ValueError(f"n_rows: must be at least 1, got {n_rows}.")
    names = depths(network)
    if len(names) < 2:
        raise ValueError(
            "estimator: has one hidden layer or no block, so that there is no way between depths "
            "to look at. Use gradient_flow, or a deeper network."
        )
    begins = names[:1] if whole_only else names[:-1]
    jacobians = _jacobians(network, begins, names[-1], n_rows)
    records = [
        (name, *_summary(J, narrowest(network, l)))
        for l, (name, J) in enumerate(zip(begins, jacobians, strict=True))
    ]
    columns = ["mean_square", "largest", "smallest", "condition", "effective_rank", "rank_fraction"]
    return pd.DataFrame(records, columns=["layer", *columns])


def depths(network: OpenNetwork) -> list[str]:
    """Where the stream can be seen: behind the input and every block, or every hidden layer."""
    spec = network.spec
    if isinstance(spec, ResidualSpec):
        return ["input", *(f"block_{b + 1}" for b in range(spec.n_blocks))]
    return [f"hidden_{l + 1}" for l in range(spec.n_hidden)]


def narrowest(network: OpenNetwork, depth: int = 0) -> int:
    """Units of the narrowest layer between a depth and the end: the largest rank there can be."""
    spec = network.spec
    if not isinstance(spec, ResidualSpec):
        return min(spec.layer_sizes[depth + 1 : -1])
    # without a stream beside it, all has to pass through the branch
    return min(spec.width, spec.hidden) if _branch_alone(spec) else spec.width


def _branch_alone(spec: ResidualSpec) -> bool:
    return spec.skip is Skip.NONE and spec.n_layers_per_block > 1


def with_constant_statistics(network: OpenNetwork) -> OpenNetwork:
    """The network with batch normalizations that do not tie rows together.

    Where nothing was kept, the statistics are those of the rows at hand.
    """
    if network.rows_are_independent:
        return network
    looked, subject = network.looked, network.looked.subject
    spec = subject.network
    assert isinstance(spec, ResidualSpec)
    scale, weight = subject.input_scale, looked.weight
    measured = statistics_of(spec, subject.params, looked.X, None, weight, scale)
    subject = replace(subject, statistics=measured)
    return replace(network, looked=replace(looked, subject=subject), statistics="fitted")


def _jacobians(network: OpenNetwork, begins: list[str], end: str, n_rows: int) -> list[np.ndarray]:
    """dx_L / dx_l for each of these depths: (rows, units of x_L, units of x_l).

    Each row is taken as often as the end has units, each time with another unit vector as the
    gradient at the end: one pass gives all Jacobians of all rows.
    """
    network = with_constant_statistics(network)
    X, width = network.looked.X, _width(network)
    picked = np.unique(np.linspace(0, X.shape[0] - 1, min(n_rows, X.shape[0])).astype(int))
    at_once = max(1, MOST_NUMBERS // width**2)
    parts = []
    for first in range(0, len(picked), at_once):
        rows = picked[first : first + at_once]
        ends = np.tile(np.eye(width), (len(rows), 1))
        done = network.run({(end, "dv"): ends}, X=X[np.repeat(rows, width)])
        parts.append([v.reshape(len(rows), width, -1) for v in arriving(network, done, begins)])
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def arriving(network: OpenNetwork, done: NetworkPass, names: list[str]) -> list[np.ndarray]:
    """dJ/dx_l of a pass, behind each of these depths."""
    if isinstance(network.spec, ResidualSpec):
        by_name = {stream.name: stream.gradient for stream in done.streams}
        return [by_name[name] for name in names]
    following = {a.name: b for a, b in zip(done.layers, done.layers[1:], strict=False)}
    return [following[name].delta @ following[name].coef.T for name in names]


def _width(network: OpenNetwork) -> int:
    """Units of the stream, or of the last hidden layer."""
    spec = network.spec
    return spec.width if isinstance(spec, ResidualSpec) else spec.layer_sizes[-2]


def _summary(J: np.ndarray, possible: int) -> tuple[float, ...]:
    """The numbers of one depth from its Jacobians (rows, out, in) and the largest rank."""
    if not np.isfinite(J).all():
        return (np.inf, np.inf, np.nan, np.inf, np.nan, np.nan)
    largest = np.abs(J).max()
    if largest == 0:
        return (0.0, 0.0, 0.0, np.nan, 0.0, 0.0)
    values = np.linalg.svd(J / largest, compute_uv=False)  # squares stay within float64
    squares = values**2
    total = squares.sum(1, keepdims=True)
    parts = np.divide(squares, total, out=np.zeros_like(squares), where=total > 0)
    logs = np.log(parts, out=np.zeros_like(parts), where=parts > 0)
    rank = np.where(total[:, 0] > 0, np.exp(-(parts * logs).sum(1)), 0.0).mean()
    with np.errstate(divide="ignore"):
        top, bottom = (np.exp(np.log(values[:, k]).mean()) for k in (0, -1))
    full = bottom > top * np.finfo(float).eps * max(J.shape[1:])
    bottom = bottom if full else 0.0
    condition = top / bottom if bottom > 0 else np.inf
    with np.errstate(over="ignore"):
        mean_square = float(squares.mean() * np.square(largest))
    return (mean_square, top * largest, bottom * largest, condition, rank, rank / possible)


def gradient_correlation(
    estimator: Any,
    X: Any,
    y: Any,
    *,
    noise: float = 0.1,
    random_state: Any = 0,
    member: int = 0,
) -> float:
    """How alike the gradients of neighbours are: 1 for a smooth landscape, 0 for a shattered one.

    The mean over rows of the cosine between dl/dx at x and at x plus noise, l the loss of the row.
    In plain networks it falls exponentially with depth until gradients of neighbours are as
    unrelated as white noise (Balduzzi et al. 2017); nothing can be learned from such gradients,
    whatever their length. In residual networks it falls slowly.

    Parameters
    ----------
    estimator : estimator or Pipeline
        A network of this package, fitted or not.
    X : {array-like, frame, sparse matrix} of shape (n_samples, n_features)
        Rows.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Their targets.
    noise : float, default=0.1
        Standard deviation of the noise, as a part of that of each column that the network reads
        (behind the steps of a Pipeline, and behind the encoder of a residual network); of an image
        each number of a pixel is a column.
    random_state : int, RandomState instance or None, default=0
        Draws the noise.
    member : int, default=0
        Which member of a residual ensemble.

    Returns
    -------
    correlation : float
        Between -1 and 1. Rows whose gradient is zero have no direction and are left out;
        not-a-number if there are no others.

    Raises
    ------
    TypeError
        If the estimator is no network of this package.
    ValueError
        For bad input.

    References
    ----------
    Balduzzi et al. (2017), The shattered gradients problem: if resnets are the answer, then what is
    the question?

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sknn_resid import MLPClassifier
    >>> from sknn_resid.inspection import gradient_correlation
    >>> X, y = load_digits(return_X_y=True)
    >>> shallow = MLPClassifier(activation="tanh", random_state=0)
    >>> gradient_correlation(shallow, X[:256] / 16, y[:256]) > 0.9
    True
    """
    needs_targets(y)
    if is_image_network(estimator):
        subject = look_at_images(estimator, X, y, None)
        return image_correlation(subject, noise, random_state)
    network = open_network(estimator, X, y, member=member, statistics="batch", dtype="float64")
    return correlation_of(network, noise, random_state)


def correlation_of(network: OpenNetwork, noise: float, random_state: Any) -> float:
    """The number of `gradient_correlation`."""
    _check_noise(noise)
    looked = network.looked
    given: Any = looked.X
    rows = given.toarray() if scipy.sparse.issparse(given) else np.asarray(given)
    spread = noise * rows.std(axis=0)
    rng = check_random_state(random_state)
    near = rows + spread * rng.standard_normal(rows.shape)
    here = network.input_gradients()
    there = replace(network, looked=replace(looked, X=near)).input_gradients()
    return _mean_cosine(here, there)


def image_correlation(subject: ImageSubject, noise: float, random_state: Any) -> float:
    """The number of `gradient_correlation` for images, whose columns are their pixels."""
    _check_noise(noise)
    rng = check_random_state(random_state)
    spread = noise * subject.pixels.std(axis=0)
    near = subject.pixels + spread * rng.standard_normal(subject.pixels.shape)
    return _mean_cosine(pixel_gradients(subject), pixel_gradients(replace(subject, pixels=near)))


def _check_noise(noise: float) -> None:
    if not noise > 0:
        raise ValueError(f"noise: must be positive, got {noise}.")


def _mean_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over rows of the cosine; rows are scaled first, so that squares stay in range."""
    sizes = np.abs(a).max(1, keepdims=True), np.abs(b).max(1, keepdims=True)
    found = (sizes[0] > 0) & (sizes[1] > 0) & np.isfinite(sizes[0]) & np.isfinite(sizes[1])
    if not found.any():
        return float("nan")
    kept = found[:, 0]
    a, b = a[kept] / sizes[0][kept], b[kept] / sizes[1][kept]
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float((np.vecdot(a, b) / lengths).mean())
