"""`MLPResidualRegressor`: an ensemble of residual networks for raw tables."""

from __future__ import annotations

from numbers import Real
from typing import Any, ClassVar

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils.validation import column_or_1d

from sknn_resid._sklearn_compat import Interval, StrOptions, fit_context
from sknn_resid.engine.losses import Loss
from sknn_resid.neural_network._ensemble_training import Trained
from sknn_resid.neural_network._params import REGRESSION_LOSSES, regression_loss
from sknn_resid.neural_network._residual_base import BaseResidual
from sknn_resid.neural_network._residual_prediction import EnsemblePredictor
from sknn_resid.neural_network._residual_task import Task
from sknn_resid.neural_network._target_scale import TargetScale, fit_target_scale, loss_of_scaled
from sknn_resid.neural_network._targets import real_targets

_WITH_STD = ("squared_error", "absolute_error", "huber")


class MLPResidualRegressor(EnsemblePredictor, RegressorMixin, BaseResidual):
    """Regressor for raw tables: an ensemble of small residual networks with sensible defaults.

    Takes a table as it is: numbers of any scale, text, categories, missing values. With no tuning
    it encodes and scales the columns, standardises the target, trains ``n_estimators`` networks as
    one stack, chooses the epoch by rows that each of them leaves out, and averages.

    A member is ``x = W_1 X + b_1``; ``n_blocks`` times ``x = x + F(x)``; ``W_o f(n(x)) + b_o``:
    n normalizes, f activates and F is a small network of its own. It learns targets of mean 0 and
    standard deviation 1 (for 'poisson', of mean 1), and `loss_curve_` is in these units.

    There is no ``partial_fit``: scales, bins and levels are learned from the whole table.

    Parameters
    ----------
    n_estimators : int, default=8
        Members. They are trained together as one stack, and their outputs averaged.
    n_blocks : int, default=1
        Residual blocks of a member.
    width : int, default=48
        Units of the stream x that runs through the blocks.
    hidden_factor : float, default=2.0
        Units inside a block for each unit of the stream.
    n_layers_per_block : int, default=2
        Linear layers of a block.
    activation : str, default='relu'
        One of 'identity', 'logistic', 'tanh', 'relu', 'gelu', 'silu', 'elu', 'selu', 'leaky_relu',
        'softplus', 'mish'.
    normalization : {'batch', 'layer'} or None, default='batch'
        What a block does to its input first. The statistics of 'batch' are weighted, and those of
        prediction are computed over all training rows at the end.
    skip : {'identity', 'none', 'gated', 'rezero'}, default='identity'
        How a block F joins the stream: x + F(x); F(x), which is the plain twin with the same number
        of parameters; a learned gate between the two (highway); x + a F(x), a learned and 0 at
        first.
    preactivation : bool, default=False
        Whether every layer of a block follows a normalization and an activation (He et al. 2016).
        False normalizes once and activates between the layers (Gorishniy et al. 2021).
    tie_blocks : bool, default=False
        Whether all blocks share one set of weights.
    dropout : float, default=0.1
        Probability that a hidden unit is left out of a step, for all its rows alike.
    drop_path : float, default=0.0
        Probability that the last block is left out of a step; earlier ones proportionally less.
    init : {'auto', 'he', 'glorot', 'lecun', 'orthogonal', 'normal'}, default='auto'
        Initial weights. 'auto' draws the first layer so that its units have unit variance on the
        training rows, and the blocks as 'he'.
    init_scale : float, default=0.01
        Standard deviation of ``init='normal'``.
    branch_scale : float or 'auto', default='auto'
        Factor of the initial weights of the last layer of each block; 0 begins with blocks that add
        nothing. 'auto' is that where neither a normalization nor a factor keeps a deep sum of
        blocks in bounds.
    categorical_features : 'from_dtype', array-like of {bool, int, str} or None, \
            default='from_dtype'
        Which columns hold categories; see `TableEncoder`.
    numeric_embedding : {'piecewise', 'periodic'} or None, default='piecewise'
        What a number is given to the network as, beside its scaled value: its position in each of
        ``n_bins`` quantile bins, or learned cosines of it.
    n_bins : int, default=16
        For 'piecewise'.
    embedding_scale : float or tuple of float, default=(0.1, 1.0)
        Factor of the piecewise columns. Members take the factors in turn; those with the same one
        are a group, which has its own best epoch and its own weight in the average.
    n_frequencies : int, default=16
        Cosines for each column of numbers, for 'periodic'.
    frequency_scale : float, default=0.1
        Standard deviation of their initial frequencies.
    solver : {'muon', 'adamw', 'adam', 'sgd'}, default='muon'
        'muon' orthogonalizes the steps of the matrices inside the blocks, and is 'adamw' for the
        rest.
    learning_rate : {'one_cycle', 'cosine', 'flat_cosine', 'constant'}, default='one_cycle'
        How the rate moves over the planned steps, after the warm-up.
    learning_rate_init : float, default=0.003
        The highest rate.
    hidden_learning_rate : float, default=0.02
        The highest rate of 'muon' for the matrices inside the blocks.
    weight_decay : float, default=0.03
        Decay of the weights (not of biases, normalizations and factors). For 'muon' and 'adamw'
        decoupled: each step shrinks them by ``1 - rate * weight_decay``. For 'adam' and 'sgd' added
        to the gradient.
    hidden_weight_decay : float, default=0.1
        Decay of the matrices inside the blocks, for 'muon'.
    momentum : float, default=0.95
        For 'muon' and 'sgd' (with Nesterov's look-ahead).
    beta_1, beta_2 : float, default=0.9, 0.95
        Decay rates of Adam's two moments.
    epsilon : float, default=1e-8
        Adam's term for numerical stability.
    warmup_fraction : float, default=0.1
        Part of all steps over which the rate rises.
    batch_size : int or 'auto', default='auto'
        Most rows of a minibatch; the rows are split evenly. 'auto' is about n / 16 within 64 and
        256, and all rows where there are at most 64 distinct ones.
    max_iter : int, default=64
        Most epochs.
    average_fraction : float, default=0.02
        Horizon, as a part of all steps, over which weights are averaged; the averages predict. 0
        takes the last weights.
    clip_norm : float or None, default=None
        Largest norm of the gradient of a step.
    early_stopping : bool, default=True
        Whether each member leaves rows out (others than its neighbour, so that none is lost to the
        ensemble), by which the epoch, the weights of groups and the temperature are chosen. With
        ``X_val`` these rows are used for that instead. False trains all rows for ``max_iter``
        epochs. Tables with fewer than two distinct rows per fold are trained that way too.
    validation_fraction : float, default=0.125
        Part of the rows that a member leaves out: folds of that size, by content, so that copies of
        a row are left out together.
    n_iter_no_change : int or float('inf'), default=16
        Most epochs without improvement of a group's held-out loss after which it stops; it does
        after half as many as its best one took, but not before half of this number.
    max_time : float or None, default=None
        Seconds after which no further epoch starts.
    device : str, default='auto'
        'cpu', 'auto' (an accelerator if there is one and the work is large enough) or a torch
        device such as 'cuda:0'. Never chosen by timing; `device_` says what was used.
    dtype : {'auto', 'float32', 'float64', 'bfloat16'} or None, default='auto'
        Precision of the networks. 'auto' is float32, and that of X for at most 64 distinct rows.
        None is that of X (on an accelerator: float32). 'bfloat16' runs the matrix products in
        bfloat16 on float32 weights. Scales and bins are computed in float64 anyway.
    random_state : int, RandomState instance or None, default=None
        Determines folds, initial weights, shuffling and dropout. An int gives bitwise equal refits.
    verbose : bool, default=False
        Whether to print a line per epoch.
    record_gradients : bool, default=False
        Whether to keep norms of gradients and numbers about activations in `gradient_history_`.
    loss : str or callable, default='squared_error'
        'squared_error', 'poisson' (log link, ``y >= 0``), 'absolute_error', 'huber', 'quantile',
        or a function ``loss(y_true, y_pred)`` of two tensors of shape (n, n_outputs) in the units
        of y, written in torch operations, that gives the loss of each row, shape (n,) or
        (n, n_outputs).
    quantile : float, default=0.5
        Which quantile ``loss='quantile'`` estimates, strictly between 0 and 1.
    huber_delta : float, default=1.0
        Where ``loss='huber'`` turns from squared to linear, in the units of y.
    clamp : bool, default=True
        Whether predictions are kept within the range of the training targets.

    Attributes
    ----------
    encoder_ : TableEncoder
        What the table was turned into numbers by; can be looked at and used alone.
    n_iter_ : int
        Epochs of training.
    best_iteration_ : ndarray of shape (n_estimators,)
        Epoch whose weights each member has.
    member_weights_ : ndarray of shape (n_estimators,)
        What each member counts in the average.
    loss_ : float
        Training loss of the last epoch, mean over members.
    loss_curve_ : list of float
        Training loss of each epoch, mean over members.
    validation_loss_curve_, validation_iterations_ : list of float, list of int, or None
        Mean held-out loss of the members, and the epochs it was looked at; None without held-out
        rows.
    n_parameters_ : int
        Number of parameters of all members; `summary` lists them.
    device_, dtype_ : str
        Where and in what precision it was trained.
    gradient_history_ : GradientHistory or None
        What ``record_gradients=True`` has kept, member by member.
    n_features_in_ : int
        Number of columns of the table.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns, if all are strings.

    See Also
    --------
    MLPResidualClassifier : The same for classes.
    MLPRegressor : One plain network for scaled numbers, in the place of scikit-learn's.

    References
    ----------
    He et al. (2016), Identity mappings in deep residual networks. Gorishniy et al. (2021),
    Revisiting deep learning models for tabular data (the block); (2022), On embeddings for
    numerical features. Jordan et al. (2024), Muon. Holzmueller et al. (2024), Better by default.

    Examples
    --------
    >>> import numpy as np
    >>> from sknn_resid import MLPResidualRegressor
    >>> X = np.random.RandomState(0).rand(300, 2)
    >>> y = 1000 + 50 * X[:, 0] + 20 * np.sin(6 * X[:, 1])
    >>> regr = MLPResidualRegressor(random_state=0).fit(X, y)
    >>> regr.score(X, y) > 0.98
    True
    >>> mean, std = regr.predict(X[:3], return_std=True)
    >>> bool((np.abs(mean - y[:3]) < 4 * std).all())
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseResidual._parameter_constraints,
        "loss": [StrOptions(set(REGRESSION_LOSSES)), callable],
        "quantile": [Interval(Real, 0, 1, closed="neither")],
        "huber_delta": [Interval(Real, 0, None, closed="neither")],
        "clamp": ["boolean"],
    }
    _y_numeric = True

    def __init__(
        self,
        *,
        n_estimators=8,
        n_blocks=1,
        width=48,
        hidden_factor=2.0,
        n_layers_per_block=2,
        activation="relu",
        normalization="batch",
        skip="identity",
        preactivation=False,
        tie_blocks=False,
        dropout=0.1,
        drop_path=0.0,
        init="auto",
        init_scale=0.01,
        branch_scale="auto",
        categorical_features="from_dtype",
        numeric_embedding="piecewise",
        n_bins=16,
        embedding_scale=(0.1, 1.0),
        n_frequencies=16,
        frequency_scale=0.1,
        solver="muon",
        learning_rate="one_cycle",
        learning_rate_init=0.003,
        hidden_learning_rate=0.02,
        weight_decay=0.03,
        hidden_weight_decay=0.1,
        momentum=0.95,
        beta_1=0.9,
        beta_2=0.95,
        epsilon=1e-8,
        warmup_fraction=0.1,
        batch_size="auto",
        max_iter=64,
        average_fraction=0.02,
        clip_norm=None,
        early_stopping=True,
        validation_fraction=0.125,
        n_iter_no_change=16,
        max_time=None,
        device="auto",
        dtype="auto",
        random_state=None,
        verbose=False,
        record_gradients=False,
        loss="squared_error",
        quantile=0.5,
        huber_delta=1.0,
        clamp=True,
    ):
        self.n_estimators = n_estimators
        self.n_blocks = n_blocks
        self.width = width
        self.hidden_factor = hidden_factor
        self.n_layers_per_block = n_layers_per_block
        self.activation = activation
        self.normalization = normalization
        self.skip = skip
        self.preactivation = preactivation
        self.tie_blocks = tie_blocks
        self.dropout = dropout
        self.drop_path = drop_path
        self.init = init
        self.init_scale = init_scale
        self.branch_scale = branch_scale
        self.categorical_features = categorical_features
        self.numeric_embedding = numeric_embedding
        self.n_bins = n_bins
        self.embedding_scale = embedding_scale
        self.n_frequencies = n_frequencies
        self.frequency_scale = frequency_scale
        self.solver = solver
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.hidden_learning_rate = hidden_learning_rate
        self.weight_decay = weight_decay
        self.hidden_weight_decay = hidden_weight_decay
        self.momentum = momentum
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.warmup_fraction = warmup_fraction
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.average_fraction = average_fraction
        self.clip_norm = clip_norm
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.max_time = max_time
        self.device = device
        self.dtype = dtype
        self.random_state = random_state
        self.verbose = verbose
        self.record_gradients = record_gradients
        self.loss = loss
        self.quantile = quantile
        self.huber_delta = huber_delta
        self.clamp = clamp

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None, *, X_val=None, y_val=None, sample_weight_val=None):
        """Fit to a table.

        Parameters
        ----------
        X : frame, array-like or sparse matrix of shape (n_samples, n_features)
            The table.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Real targets.
        sample_weight : array-like of shape (n_samples,), default=None
            Weight of each row; not negative, not all zero.
        X_val, y_val : frame or array-like, default=None
            Validation rows. Then no member leaves rows out: ``early_stopping=True`` chooses by
            these, ``early_stopping=False`` only records their loss.
        sample_weight_val : array-like of shape (n_samples,), default=None
            Weights of the validation rows.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError
            For bad input, and if no epoch ends with a finite loss.
        TypeError
            If a column holds dates, times or objects of another kind.
        """
        return self._fit(X, y, sample_weight, (X_val, y_val, sample_weight_val))

    def predict(self, X, return_std=False):
        """Predicted targets.

        Parameters
        ----------
        X : frame, array-like or sparse matrix of shape (n_samples, n_features)
            The table.
        return_std : bool, default=False
            Whether to return the standard deviation of a new target around the prediction: the
            spread of the members and the noise that held-out rows show (training rows, which show
            less, where none were held out).

        Returns
        -------
        y : ndarray of shape (n_samples,) or (n_samples, n_outputs)
            Predictions; with ``loss='poisson'`` the mean.
        y_std : ndarray of the same shape
            Only with ``return_std=True``.

        Raises
        ------
        ValueError
            For ``return_std=True`` with a loss that does not estimate the centre of an additive
            error: 'quantile', 'poisson' or a callable.
        """
        if not return_std:
            outputs = self._outputs(X)
            return self._squeezed(self._codec.to_user(outputs))
        if self.loss not in _WITH_STD:
            raise ValueError(
                f"return_std=True needs one of loss={_WITH_STD}, got loss={self.loss!r}, whose "
                "prediction is not the centre of an error that is the same everywhere. Fit "
                "loss='quantile' at two quantiles for an interval."
            )
        mean, variance = self._mean_and_variance(X)
        std = np.sqrt(variance + self._noise_variance) * self._codec.scale
        return self._squeezed(self._codec.to_user(mean)), self._squeezed(std)

    def _squeezed(self, y):
        return y[:, 0] if y.shape[1] == 1 else y

    # -- what BaseResidual asks for ----------------------------------------------------------

    def _fit_codec(self, y, weight) -> TargetScale:
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        y = real_targets(y, "y", positive=self.loss == "poisson")
        if weight is not None:
            kept = np.flatnonzero(weight)
            y, weight = y[kept], weight[kept]
        return fit_target_scale(y, weight, regression_loss(self), clamp=bool(self.clamp))

    def _encode_targets(self, codec, y, name):
        y = real_targets(y, name, positive=self.loss == "poisson")
        if y.shape[1] != codec.n_outputs:
            raise ValueError(
                f"{name} has {y.shape[1]} target columns, but y has {codec.n_outputs}."
            )
        return codec.to_learned(y)

    def _loss(self, codec) -> Loss:
        return loss_of_scaled(regression_loss(self), codec)

    def _head_bias(self, codec, targets, weight, n_distinct):
        return None  # targets are centred (Poisson: have mean 1)

    def _adopt_targets(self, task: Task, trained: Trained) -> None:
        self._noise_variance = noise_variance(task, trained)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.positive_only = self.loss == "poisson"
        return tags


def noise_variance(task: Task, trained: Trained) -> np.ndarray:
    """Variance of the targets around the prediction beyond the spread of the members, shape (K,).

    In the units that were learned. Mean squared error of held-out rows (training rows, where there
    are none) less the mean variance of the members on the training rows; never negative.
    """
    mean, variance = trained.ensemble.mean_and_variance(task.X, task.device)
    outputs, targets, weight = trained.held_out or (mean, task.y, task.weight)
    error = np.average((targets - outputs) ** 2, axis=0, weights=weight)
    return np.maximum(error - np.average(variance, axis=0, weights=task.weight), 0.0)
