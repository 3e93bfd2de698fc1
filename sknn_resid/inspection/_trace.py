"""`forward_trace` and `gradients`: the forward and the backward pass of a network laid open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from sknn_resid.engine.image_trace import forward_images, run_images
from sknn_resid.inspection._images import OpenImages, is_image_network, open_images
from sknn_resid.inspection._network import Statistics, check_choices, open_network
from sknn_resid.inspection._passes import NetworkPass


@dataclass(frozen=True, eq=False, repr=False)
class ForwardTrace:
    """The forward pass of a network: what every layer makes of given rows.

    Made by :func:`forward_trace`. Lists have one entry per layer, from the input to the output.

    Attributes
    ----------
    names : list of str
        Names of the layers: "hidden_1", ..., "output". In a residual network "input",
        "block_1.linear_1", ..., "output". In an image network convolutions and head by
        torchvision's names: "conv1", "layer1.0.conv1", ..., "fc".
    X : ndarray or CSR array of shape (n_samples, n_columns)
        v^(0), what the first layer reads. For a residual network, the encoded table. For an image
        network the pixels with the axes and in the units of the user, before they are scaled.
    z : list of ndarray of shape (n_samples, n_units)
        Pre-activations ``z^(l) = v^(l-1) W^(l) + b^(l)``; of a convolution its result, of shape
        (n_samples, n_channels, height, width).
    v : list of ndarray of shape (n_samples, n_units)
        Activations ``v^(l) = f(z^(l))``; the last are the predictions: probabilities or means. In a
        residual network, what the next matrix of the block reads; behind the last matrix of block l
        the stream x_l; behind the input x_0. In an image network the result of the first relu that
        z goes through: behind the normalization, and behind the sum with the shortcut where that
        comes first. A projection and the last convolution of its block share theirs.
    coefs : list of ndarray of shape (n_in, n_units)
        ``W^(l)``; in an image network in torchvision's shapes, (n_channels, n_in, height, width)
        and, for the head, (n_classes, n_in).
    intercepts : list of ndarray of shape (n_units,)
        ``b^(l)``; of shape (0,) for convolutions, which have none.
    columns : list of str
        Names of the columns of `X`; empty for images that are no rows of a table.
    """

    names: list[str]
    X: Any
    z: list[np.ndarray]
    v: list[np.ndarray]
    coefs: list[np.ndarray]
    intercepts: list[np.ndarray]
    columns: list[str]

    def to_frame(self) -> pd.DataFrame:
        """A row per layer: units, and mean and standard deviation of z and of v over all rows.

        Returns
        -------
        table : DataFrame
            Indexed by the name of the layer.
        """
        rows = {
            "n_units": [z.shape[1] for z in self.z],
            "z_mean": [float(z.mean()) for z in self.z],
            "z_std": [float(z.std()) for z in self.z],
            "v_mean": [float(v.mean()) for v in self.v],
            "v_std": [float(v.std()) for v in self.v],
        }
        return pd.DataFrame(rows, index=pd.Index(self.names, name="layer"))

    def __repr__(self) -> str:
        return f"ForwardTrace of {_extent(self.X)}\n{_table(self.to_frame())}"


@dataclass(frozen=True, eq=False, repr=False)
class Gradients:
    """The backward pass of a network: derivatives of its objective on given rows.

    Made by :func:`gradients`. Lists have one entry per layer, from the input to the output.

    Attributes
    ----------
    loss : float
        ``J = sum_i r_i l_i`` with ``r_i = w_i / sum w``, without the penalty.
    names : list of str
        Names of the layers, as in :class:`ForwardTrace`.
    coefs : list of ndarray of shape (n_in, n_units)
        ``dJ/dW^(l) = v^(l-1)' delta^(l)``. A weight that stands in several places (tied) has one
        gradient, the sum over its places, and it is shown in each of them. Of an image network in
        the shapes of :class:`ForwardTrace`.
    intercepts : list of ndarray of shape (n_units,)
        ``dJ/db^(l) = sum_i delta^(l)_i``; of shape (0,) for convolutions, which have none.
    deltas : list of ndarray of shape (n_samples, n_units)
        ``delta^(l) = dJ/dz^(l)``; row i carries its weight r_i. Of a convolution of shape
        (n_samples, n_channels, height, width).
    X : ndarray of shape (n_samples, n_columns)
        ``dJ/dX``, by the columns that the network reads; row i carries its weight r_i. By the
        pixels for an image network, with the axes and in the units of the user's X.
    columns : list of str
        Names of the columns of `X`: of a residual network those of the encoded table; empty for
        images that are no rows of a table.
    parameters : dict of str to ndarray
        The gradient of every parameter, each once; the only place for those that are no layer:
        scale and shift of normalizations, ReZero's factors, frequencies. Of an image network by the
        names of `state_dict_`.
    """

    loss: float
    names: list[str]
    coefs: list[np.ndarray]
    intercepts: list[np.ndarray]
    deltas: list[np.ndarray]
    X: np.ndarray
    columns: list[str]
    parameters: dict[str, np.ndarray]

    def to_frame(self) -> pd.DataFrame:
        """A row per layer: the shape of its matrix, and Euclidean norms.

        Returns
        -------
        table : DataFrame
            Indexed by the name of the layer.
        """
        images = self.deltas[0].ndim == 4  # then matrices are (out, in, ...), as torchvision's
        n_in, n_units = (1, 0) if images else (0, 1)
        rows = {
            "n_in": [W.shape[n_in] for W in self.coefs],
            "n_units": [W.shape[n_units] for W in self.coefs],
            "coef_norm": [float(np.linalg.norm(W)) for W in self.coefs],
            "intercept_norm": [float(np.linalg.norm(b)) for b in self.intercepts],
            "delta_norm": [float(np.linalg.norm(d)) for d in self.deltas],
        }
        return pd.DataFrame(rows, index=pd.Index(self.names, name="layer"))

    def __repr__(self) -> str:
        head = f"Gradients of loss {self.loss:.6g} over {_extent(self.X)}"
        return f"{head}\n{_table(self.to_frame())}"


def forward_trace(
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    member: int = 0,
    statistics: Statistics | None = None,
    dtype: Literal["float64", "float32"] | None = None,
) -> ForwardTrace:
    """Run rows forward through a network and show what every layer makes of them.

    With ``v^(0) = X``, layer by layer ``z^(l) = v^(l-1) W^(l) + b^(l)`` and ``v^(l) = f(z^(l))``,
    by the same operations that train (Rumelhart, Hinton and Williams 1986). Random parts (dropout,
    drop path) are left out, as in prediction. The estimator is not changed.

    Parameters
    ----------
    estimator : estimator or Pipeline
        A network of this package (:class:`~sknn_resid.MLPClassifier`,
        :class:`~sknn_resid.MLPRegressor`, :class:`~sknn_resid.MLPResidualClassifier`,
        :class:`~sknn_resid.MLPResidualRegressor`, :class:`~sknn_resid.ResNetClassifier`), or a
        Pipeline that ends in one. Fitted: shown as it is. Not fitted: as ``fit(X, y)`` would begin,
        with the weights that it would draw from ``random_state``; steps before it are cloned and
        fitted as the pipeline's ``fit`` would.
    X : frame, array-like or sparse matrix of shape (n_samples, n_features)
        Rows, as for ``predict``; for an image network images in any of its forms, a few dozen of
        them, because all maps are kept.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
        Needed where the estimator is not fitted: its outputs depend on it.
    member : int, default=0
        Which member of a residual ensemble is shown. The others have weights of their own, and the
        ensemble's prediction is their average (with `temperature_`).
    statistics : {'batch', 'fitted'} or None, default=None
        What batch normalizations work with: mean and variance of these rows, as a step of training
        does, or those kept by ``fit``, as prediction does. None is 'fitted' where the estimator is,
        else 'batch'. Without batch normalization there is no difference. Stages that ``freeze``
        keeps always work with those that they have.
    dtype : {'float64', 'float32'} or None, default=None
        Precision of the pass; None computes as the estimator does, and image networks in float64.

    Returns
    -------
    trace : ForwardTrace
        ``z``, ``v``, ``coefs``, ``intercepts`` by layer.

    Raises
    ------
    TypeError
        If the estimator is no network of this package.
    ValueError
        If X does not fit, y is missing, or there is no such member.

    See Also
    --------
    gradients : The backward pass.

    Notes
    -----
    A residual regressor learns targets in units of its own (centred and scaled): its last ``v`` is
    in these units.

    Examples
    --------
    >>> import numpy as np
    >>> from sknn_resid import MLPRegressor
    >>> from sknn_resid.inspection import forward_trace
    >>> X, y = np.array([[1.0, 2.0], [0.5, -1.0]]), np.array([1.0, 0.0])
    >>> net = MLPRegressor(hidden_layer_sizes=(3,), activation="tanh", random_state=0)
    >>> trace = forward_trace(net, X, y)
    >>> trace.names
    ['hidden_1', 'output']
    >>> bool(np.allclose(trace.v[0], np.tanh(X @ trace.coefs[0] + trace.intercepts[0])))
    True
    """
    check_choices(statistics, dtype)
    if is_image_network(estimator):
        opened = open_images(estimator, X, y, member=member, statistics=statistics, dtype=dtype)
        return _image_trace(opened)
    network = open_network(estimator, X, y, member=member, statistics=statistics, dtype=dtype)
    done = network.run(targets=False)
    return ForwardTrace(
        names=[layer.name for layer in done.layers],
        X=network.looked.X,
        z=[layer.z for layer in done.layers],
        v=[layer.v for layer in done.layers],
        coefs=[layer.coef for layer in done.layers],
        intercepts=[layer.intercept for layer in done.layers],
        columns=network.columns,
    )


def gradients(
    estimator: Any,
    X: Any,
    y: Any,
    sample_weight: Any = None,
    *,
    member: int = 0,
    statistics: Statistics = "batch",
    dtype: Literal["float64", "float32"] | None = None,
) -> Gradients:
    """Differentiate a network's objective on given rows by everything it depends on.

    The objective is the estimator's own, without its penalty: ``J = sum_i r_i l_i`` with
    ``r_i = w_i / sum w`` (``w`` counts `sample_weight` and ``class_weight``) and l the loss that it
    trains with, label smoothing included. With ``delta^(l) = dJ/dz^(l)``

        delta^(L) = r (prediction - y)          for squared error, cross-entropy and Poisson
        dJ/dW^(l) = v^(l-1)' delta^(l)
        dJ/db^(l) = sum_i delta^(l)_i
        delta^(l-1) = (delta^(l) W^(l)') * f'(z^(l-1)),   dJ/dX = delta^(1) W^(1)'

    **Squared error is ``1/2 |f - y|^2``** here, as in training: where a textbook or an exam has
    ``(f - y)^2``, its gradient is twice this one. Outputs are summed, not averaged, while `loss_`
    is reported per output, as in scikit-learn.

    The numbers are those that a step of training works with: plain SGD moves the weights by
    ``-learning_rate`` times these gradients (plus those of the penalty). Dropout and drop path are
    left out; `clip_norm` does not act. The estimator is not changed.

    Parameters
    ----------
    estimator : estimator or Pipeline
        A network of this package, or a Pipeline that ends in one; fitted, or not: then as
        ``fit(X, y, sample_weight)`` would begin. See :func:`forward_trace`.
    X : frame, array-like or sparse matrix of shape (n_samples, n_features)
        Rows; they are one batch.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Targets or labels, as for ``fit``.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the rows. A weight of 2 is the row twice.
    member : int, default=0
        Which member of a residual ensemble.
    statistics : {'batch', 'fitted'}, default='batch'
        What batch normalizations work with: the mean and variance of these rows, as a step of
        training does (then they depend on all rows, and so do derivatives), or those kept by
        ``fit``, as prediction does. Stages that ``freeze`` keeps always work with those that they
        have; their gradients are shown, though training does not follow them.
    dtype : {'float64', 'float32'} or None, default=None
        Precision of the pass; None computes as the estimator does, and image networks in float64.

    Returns
    -------
    gradients : Gradients
        ``loss``, ``coefs``, ``intercepts``, ``deltas``, ``X``.

    Raises
    ------
    TypeError
        If the estimator is no network of this package.
    ValueError
        If X or y do not fit, or there is no such member.

    See Also
    --------
    forward_trace : The forward pass.

    Notes
    -----
    A residual regressor learns centred and scaled targets: its loss and gradients are in these
    units. A residual network reads encoded columns: ``X`` is by these, named by ``columns``; their
    encoding (quantiles, categories) is not differentiated. Images are looked at as they are,
    while training crops and mirrors them at random (see ``augmentation``).

    References
    ----------
    Rumelhart, Hinton and Williams (1986), Learning representations by back-propagating errors.
    Bishop (2006), Pattern recognition and machine learning, section 5.3.

    Examples
    --------
    >>> import numpy as np
    >>> from sknn_resid import MLPRegressor
    >>> from sknn_resid.inspection import forward_trace, gradients
    >>> X, y = np.array([[1.0, 2.0], [0.5, -1.0]]), np.array([1.0, 0.0])
    >>> net = MLPRegressor(hidden_layer_sizes=(3,), activation="logistic", random_state=0)
    >>> trace, g = forward_trace(net, X, y), gradients(net, X, y)
    >>> delta = (trace.v[1][:, 0] - y) / 2  # r = 1/2 for each of two rows
    >>> bool(np.allclose(g.deltas[1][:, 0], delta))
    True
    >>> bool(np.allclose(g.coefs[1][:, 0], trace.v[0].T @ delta))
    True
    """
    if y is None:
        raise ValueError("y is missing: a gradient is that of a loss, which compares with y.")
    check_choices(statistics, dtype)
    if is_image_network(estimator):
        return _image_gradients(
            open_images(
                estimator, X, y, sample_weight, member=member, statistics=statistics, dtype=dtype
            )
        )
    network = open_network(
        estimator, X, y, sample_weight, member=member, statistics=statistics, dtype=dtype
    )
    return _gradients_of(network.run(), network.columns)


def _image_trace(opened: OpenImages) -> ForwardTrace:
    done = forward_images(opened.subject, opened.way)
    values = done.parameters
    return ForwardTrace(
        names=done.layers,
        X=opened.X,
        z=[done.z[name].numpy() for name in done.layers],
        v=opened.activations(done),
        coefs=[values[f"{name}.weight"] for name in done.layers],
        intercepts=[values.get(f"{name}.bias", np.empty(0)) for name in done.layers],
        columns=opened.columns,
    )


def _image_gradients(opened: OpenImages) -> Gradients:
    done, back = run_images(opened.subject, opened.way, everything=True)
    assert back.pixels is not None
    return Gradients(
        loss=back.loss,
        names=done.layers,
        coefs=[back.parameters[f"{name}.weight"] for name in done.layers],
        intercepts=[back.parameters.get(f"{name}.bias", np.empty(0)) for name in done.layers],
        deltas=[back.deltas[name] for name in done.layers],
        X=opened.laid_out(back.pixels),
        columns=opened.columns,
        parameters=back.parameters,
    )


def _gradients_of(done: NetworkPass, columns: Sequence[str]) -> Gradients:
    return Gradients(
        loss=done.loss,
        names=[layer.name for layer in done.layers],
        coefs=[layer.coef_gradient for layer in done.layers],
        intercepts=[layer.intercept_gradient for layer in done.layers],
        deltas=[layer.delta for layer in done.layers],
        X=done.X,
        columns=list(columns),
        parameters=done.parameter_gradients,
    )


def _extent(X: Any) -> str:
    n, *rest = X.shape
    if len(rest) == 1:
        return f"{n} rows and {rest[0]} columns"
    return f"{n} images of {' x '.join(str(size) for size in rest)}"


def _table(frame: pd.DataFrame) -> str:
    """A frame as text, with the layers in the middle of a deep network left out."""
    return frame.to_string(max_rows=12, float_format=lambda number: f"{number:.4g}")
