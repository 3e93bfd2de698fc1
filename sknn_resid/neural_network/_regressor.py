"""`MLPRegressor`: a multi-layer perceptron in the place of scikit-learn's."""

from __future__ import annotations

from numbers import Real
from typing import Any, ClassVar

from sklearn.base import RegressorMixin
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import column_or_1d

from sknn_resid._sklearn_compat import Interval, StrOptions, fit_context
from sknn_resid.engine.losses import Loss
from sknn_resid.neural_network._base import BaseMLP, checked_targets, solver_is_stochastic
from sknn_resid.neural_network._interop import SklearnBridge
from sknn_resid.neural_network._monitor import Score, r2
from sknn_resid.neural_network._params import REGRESSION_LOSSES, regression_loss
from sknn_resid.neural_network._prediction import NetworkPredictor
from sknn_resid.neural_network._targets import real_targets


class MLPRegressor(NetworkPredictor, SklearnBridge, RegressorMixin, BaseMLP):
    """Multi-layer perceptron regressor.

    Takes the place of :class:`sklearn.neural_network.MLPRegressor`: the same parameters, attributes
    and, given the same ``random_state``, the same optimisation path, sooner. Whatever it adds is
    keyword-only and off by default.

    It minimises ``J = sum_i w_i 1/2 |f(x_i) - y_i|^2 / sum w`` plus the penalty (or another loss);
    `loss_` reports the data term divided by the number of targets, as scikit-learn does.

    Parameters
    ----------
    loss : str or callable, default='squared_error'
        'squared_error', 'poisson' (log link, ``y >= 0``), 'absolute_error', 'huber', 'quantile',
        or a function ``loss(y_true, y_pred)`` of two tensors of shape (n, n_outputs), written in
        torch operations, that gives the loss of each row, shape (n,) or (n, n_outputs).
    hidden_layer_sizes : array-like of int, default=(100,)
        Widths of the hidden layers.
    activation : str or tuple of str, default='relu'
        One of 'identity', 'logistic', 'tanh', 'relu', 'gelu', 'silu', 'elu', 'selu', 'leaky_relu',
        'softplus', 'mish' for all hidden layers, or one name per layer.
    solver : {'lbfgs', 'sgd', 'adam', 'adamw'}, default='adam'
        'lbfgs' is full-batch (scipy's minimiser), the others work on minibatches. 'adamw' decouples
        ``alpha`` from the gradient: the weights shrink by ``1 - learning rate * alpha`` a step.
    alpha : float, default=0.0001
        Strength of the L2 penalty on the weights (not on the biases):
        ``0.5 * alpha * |W|^2 / sum of the weights of the batch`` is added to its loss.
    batch_size : int or 'auto', default='auto'
        Rows per minibatch; 'auto' is ``min(200, n_samples)``.
    learning_rate : {'constant', 'invscaling', 'adaptive', 'cosine', 'one_cycle'}, \
            default='constant'
        The first three as in scikit-learn, for solver 'sgd' only. 'cosine' and 'one_cycle' change
        the rate at every step, for all minibatch solvers, over the horizon ``max_iter``.
    learning_rate_init : float, default=0.001
        The initial learning rate (the peak, for 'cosine' and 'one_cycle').
    power_t : float, default=0.5
        Exponent of 'invscaling'.
    max_iter : int, default=200
        Most epochs ('lbfgs': iterations).
    shuffle : bool, default=True
        Whether to shuffle the rows in each epoch.
    random_state : int, RandomState instance or None, default=None
        Determines initial weights, split, shuffling and dropout. An int gives bitwise equal refits;
        None draws one seed from numpy's global state.
    tol : float, default=1e-4
        An epoch that does not improve by more than ``tol`` counts as no improvement.
    verbose : bool, default=False
        Whether to print a line per epoch.
    warm_start : bool, default=False
        Whether ``fit`` goes on from the weights of the last call.
    momentum : float, default=0.9
        For solver 'sgd'.
    nesterovs_momentum : bool, default=True
        For solver 'sgd' with ``momentum > 0``.
    early_stopping : bool, default=False
        Whether to stop when the validation score no longer improves; the best weights are kept. The
        validation part is ``validation_fraction`` of the rows, or ``X_val``, ``y_val``.
    validation_fraction : float, default=0.1
        Part of the rows that is held out for early stopping.
    beta_1, beta_2 : float, default=0.9, 0.999
        Decay rates of Adam's two moments.
    epsilon : float, default=1e-8
        Adam's term for numerical stability (not bias-corrected, as in scikit-learn).
    n_iter_no_change : int, default=10
        Epochs without improvement that are let pass.
    max_fun : int, default=15000
        Most evaluations of 'lbfgs'.
    device : str, default='cpu'
        'cpu', 'auto' (an accelerator if there is one and the work is large enough) or a torch
        device such as 'cuda:0'. Never chosen by timing; `device_` says what was used.
    dtype : {'float32', 'float64', 'bfloat16'} or None, default=None
        None computes in the dtype of X (on an accelerator: float32). 'bfloat16' runs the matrix
        products in bfloat16 on float32 weights: faster for wide layers where the processor has it.
    max_time : float or None, default=None
        Seconds after which no further epoch starts.
    early_stopping_metric : {'score', 'loss'}, str or callable, default='score'
        What the validation part is judged by: R^2, the loss, or a scikit-learn scorer.
    dropout : float, default=0.0
        Probability that a hidden unit is left out of a step (inverted dropout).
    clip_norm : float or None, default=None
        Largest norm of the gradient of a step.
    warmup_fraction : float, default=0.0
        Part of all steps over which the learning rate rises linearly.
    n_layers, width : int or None, default=None
        Number and width of the hidden layers as scalars, for searches; where not None they win over
        ``hidden_layer_sizes``.
    record_gradients : bool, default=False
        Whether to keep norms of gradients and numbers about activations in `gradient_history_`.
    quantile : float, default=0.5
        Which quantile ``loss='quantile'`` estimates, strictly between 0 and 1.
    huber_delta : float, default=1.0
        Where ``loss='huber'`` turns from squared to linear.
    tied_weights : list of groups or None, default=None
        Weights that are one weight in several places, each group a list of places ``(layer, row,
        column)`` of `coefs_` or of whole layers, ``(layer,)`` or transposed ``(layer, "T")``. They
        begin as the first place of the group would, their gradient is the sum over the places, and
        they count once, in the penalty and in `n_parameters_`. Indices may count from the end.

    Attributes
    ----------
    coefs_ : list of ndarray of shape (fan_in, fan_out)
        Weight matrices.
    intercepts_ : list of ndarray of shape (fan_out,)
        Bias vectors.
    loss_ : float
        Loss of the last epoch.
    best_loss_ : float or None
        Lowest loss of all epochs; None with ``early_stopping=True``. Not for 'lbfgs'.
    loss_curve_ : list of float
        Loss of each epoch. Not for 'lbfgs'.
    validation_scores_, validation_loss_curve_ : list of float or None
        Score and loss of the validation part after each epoch; None without one.
    best_validation_score_ : float or None
        The highest validation score.
    t_ : int
        Rows seen in training.
    n_iter_ : int
        Epochs (or iterations) of the last call.
    n_layers_ : int
        Number of layers, input and output included.
    n_outputs_ : int
        Number of outputs of the network.
    n_parameters_ : int
        Number of free weights and biases; tied ones count once.
    out_activation_ : str
        Name of the output activation.
    device_, dtype_ : str
        Where and in what precision it was fitted.
    gradient_history_ : GradientHistory or None
        What ``record_gradients=True`` has kept.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, if X had string names.

    See Also
    --------
    MLPClassifier : The same for classes.

    References
    ----------
    Glorot and Bengio (2010), Understanding the difficulty of training deep feedforward neural
    networks (initial weights). Kingma and Ba (2015), Adam.

    Examples
    --------
    >>> from sklearn.datasets import make_regression
    >>> from sklearn.model_selection import train_test_split
    >>> from sknn_resid import MLPRegressor
    >>> X, y = make_regression(n_samples=200, n_features=20, random_state=1)
    >>> X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=1)
    >>> regr = MLPRegressor(random_state=1, max_iter=2000, tol=0.1).fit(X_train, y_train)
    >>> round(regr.score(X_test, y_test), 2)
    0.98
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseMLP._parameter_constraints,
        "loss": [StrOptions(set(REGRESSION_LOSSES)), callable],
        "quantile": [Interval(Real, 0, 1, closed="neither")],
        "huber_delta": [Interval(Real, 0, None, closed="neither")],
    }
    _y_numeric = True

    def __init__(
        self,
        loss="squared_error",
        hidden_layer_sizes=(100,),
        activation="relu",
        *,
        solver="adam",
        alpha=0.0001,
        batch_size="auto",
        learning_rate="constant",
        learning_rate_init=0.001,
        power_t=0.5,
        max_iter=200,
        shuffle=True,
        random_state=None,
        tol=1e-4,
        verbose=False,
        warm_start=False,
        momentum=0.9,
        nesterovs_momentum=True,
        early_stopping=False,
        validation_fraction=0.1,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        n_iter_no_change=10,
        max_fun=15000,
        device="cpu",
        dtype=None,
        max_time=None,
        early_stopping_metric="score",
        dropout=0.0,
        clip_norm=None,
        warmup_fraction=0.0,
        n_layers=None,
        width=None,
        record_gradients=False,
        quantile=0.5,
        huber_delta=1.0,
        tied_weights=None,
    ):
        self.loss = loss
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.max_fun = max_fun
        self.device = device
        self.dtype = dtype
        self.max_time = max_time
        self.early_stopping_metric = early_stopping_metric
        self.dropout = dropout
        self.clip_norm = clip_norm
        self.warmup_fraction = warmup_fraction
        self.n_layers = n_layers
        self.width = width
        self.record_gradients = record_gradients
        self.quantile = quantile
        self.huber_delta = huber_delta
        self.tied_weights = tied_weights

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None, *, X_val=None, y_val=None, sample_weight_val=None):
        """Fit to data.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Training rows.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Real targets.
        sample_weight : array-like of shape (n_samples,), default=None
            Weight of each row; not negative, not all zero.
        X_val, y_val : array-like, default=None
            Validation rows. Then no split is made: ``early_stopping=True`` watches them,
            ``early_stopping=False`` only records their score and loss.
        sample_weight_val : array-like, default=None
            Weights of the validation rows.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError
            For bad input, and if no epoch ends with a finite loss.
        """
        return self._fit(X, y, sample_weight, (X_val, y_val, sample_weight_val))

    @available_if(solver_is_stochastic)
    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y, sample_weight=None):
        """One epoch over the given rows, going on from the weights and moments at hand.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Training rows.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Real targets.
        sample_weight : array-like of shape (n_samples,), default=None
            Weight of each row.

        Returns
        -------
        self : object
            The fitted estimator.
        """
        return self._fit(X, y, sample_weight, incremental=True)

    def predict(self, X):
        """Predicted targets.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Input rows.

        Returns
        -------
        y : ndarray of shape (n_samples,) or (n_samples, n_outputs)
            Predictions; with ``loss='poisson'`` the mean, on the scale of y.
        """
        outputs, home = self._outputs(X, "predict")
        return home.send(outputs[:, 0] if outputs.shape[1] == 1 else outputs)

    # -- what BaseMLP asks for ---------------------------------------------------------------

    def _training_targets(self, y, *, incremental):
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        return real_targets(y, "y", positive=self.loss == "poisson"), y

    def _validation_targets(self, y, X, name="y_val"):
        y = checked_targets(self, X, y, name)
        return real_targets(y, name, positive=self.loss == "poisson")

    def _n_logits(self, y):
        return int(y.shape[1])

    def _loss(self) -> Loss:
        return regression_loss(self)

    def _out_activation(self):
        return "exp" if self.loss == "poisson" else "identity"

    def _score_function(self, y, weight) -> Score:
        return r2(self._loss(), y, weight)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.positive_only = self.loss == "poisson"
        return tags
