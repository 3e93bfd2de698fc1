"""`MLPResidualClassifier`: an ensemble of residual networks for raw tables."""

from __future__ import annotations

from numbers import Real
from typing import Any, ClassVar

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils.validation import column_or_1d

from sknn_resid._sklearn_compat import Interval, StrOptions, fit_context
from sknn_resid.engine.losses import Loss
from sknn_resid.neural_network._class_weight import class_weights
from sknn_resid.neural_network._ensemble_training import Trained
from sknn_resid.neural_network._residual_base import BaseResidual
from sknn_resid.neural_network._residual_prediction import EnsemblePredictor
from sknn_resid.neural_network._residual_task import Task
from sknn_resid.neural_network._target_frequencies import log_odds
from sknn_resid.neural_network._targets import encode_validation, fit_codec, flat_targets, log_of


class MLPResidualClassifier(EnsemblePredictor, ClassifierMixin, BaseResidual):
    """Classifier for raw tables: an ensemble of small residual networks with sensible defaults.

    Takes a table as it is: numbers of any scale, text, categories, missing values. With no tuning
    it encodes and scales the columns, trains ``n_estimators`` networks as one stack, chooses the
    epoch by rows that each of them leaves out, averages their probabilities and calibrates them.

    A member is ``x = W_1 X + b_1``; ``n_blocks`` times ``x = x + F(x)``; ``W_o f(n(x)) + b_o``:
    n normalizes, f activates and F is a small network of its own. It minimises the cross-entropy of
    softmax outputs (multi-class) or logistic outputs (binary, multi-label). Several multi-class
    targets at once get one softmax each.

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
        What stands beside a scaled number: its place in ``n_bins`` quantile bins, or cosines.
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
    label_smoothing : float, default=0.1
        Part of each label that is spread evenly over the classes.
    calibrate : bool, default=True
        Whether the temperature of the averaged probabilities is chosen by held-out rows.
    class_weight : dict, 'balanced' or None, default=None
        Weights of the classes, multiplied into ``sample_weight``. 'balanced' is
        ``n_samples / (n_classes * count)``, counted by ``sample_weight``.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,), or list of ndarray
        Class labels; a list with one array per target for multiclass-multioutput.
    temperature_ : float
        Factor of the averaged log-odds; above 1 sharpens. 1 where it was not calibrated.
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
        Mean held-out loss of the members, and the epochs of it; None without held-out rows.
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
    MLPResidualRegressor : The same for real targets.
    MLPClassifier : One plain network for scaled numbers, in the place of scikit-learn's.

    References
    ----------
    He et al. (2016), Identity mappings in deep residual networks. Gorishniy et al. (2021),
    Revisiting deep learning models for tabular data (the block); (2022), On embeddings for
    numerical features. Jordan et al. (2024), Muon. Holzmueller et al. (2024), Better by default.

    Examples
    --------
    >>> import pandas as pd
    >>> from sknn_resid import MLPResidualClassifier
    >>> X = pd.DataFrame({"size": [1.0, 2.5, None, 8.0] * 10, "kind": ["a", "b", None, "b"] * 10})
    >>> y = ["small", "small", "large", "large"] * 10
    >>> clf = MLPResidualClassifier(random_state=0).fit(X, y)
    >>> clf.predict(X[:4])
    array(['small', 'small', 'large', 'large'], dtype='<U5')
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseResidual._parameter_constraints,
        "label_smoothing": [Interval(Real, 0, 1, closed="left")],
        "calibrate": ["boolean"],
        "class_weight": [dict, list, StrOptions({"balanced"}), None],
    }
    _y_numeric = False

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
        label_smoothing=0.1,
        calibrate=True,
        class_weight=None,
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
        self.label_smoothing = label_smoothing
        self.calibrate = calibrate
        self.class_weight = class_weight

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None, *, X_val=None, y_val=None, sample_weight_val=None):
        """Fit to a table.

        Parameters
        ----------
        X : frame, array-like or sparse matrix of shape (n_samples, n_features)
            The table.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Class labels.
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

    def predict(self, X):
        """Most probable class of each row.

        Parameters
        ----------
        X : frame, array-like or sparse matrix of shape (n_samples, n_features)
            The table.

        Returns
        -------
        y : ndarray of shape (n_samples,) or (n_samples, n_outputs)
            Predicted labels.
        """
        outputs = self._outputs(X)
        return self._codec.decode(self._codec.codes_from_logits(self._ensemble.raw(outputs)))

    def predict_proba(self, X):
        """Probability of each class.

        Parameters
        ----------
        X : frame, array-like or sparse matrix of shape (n_samples, n_features)
            The table.

        Returns
        -------
        p : ndarray of shape (n_samples, n_classes), or list of such arrays
            In the order of `classes_`; for multi-label the probability of each label; for
            multiclass-multioutput one array per target.
        """
        outputs = self._outputs(X)
        return self._codec.probabilities(outputs)

    def predict_log_proba(self, X):
        """Logarithm of `predict_proba`.

        Parameters
        ----------
        X : frame, array-like or sparse matrix of shape (n_samples, n_features)
            The table.

        Returns
        -------
        log_p : ndarray of shape (n_samples, n_classes), or list of such arrays
            Logarithms of the probabilities.
        """
        return log_of(self.predict_proba(X))

    def score(self, X, y, sample_weight=None):
        """Accuracy: the weighted part of rows that are predicted right, in all their targets.

        Parameters
        ----------
        X : frame, array-like or sparse matrix of shape (n_samples, n_features)
            The table.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            True labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Weight of each row.

        Returns
        -------
        score : float
        """
        if getattr(self, "_codec", None) is not None and self._codec.kind == "multioutput":
            right = (np.asarray(self.predict(X)) == np.asarray(y)).all(axis=1)
            return float(np.average(right, weights=sample_weight))
        return super().score(X, y, sample_weight)

    # -- what BaseResidual asks for ----------------------------------------------------------

    def _fit_codec(self, y, weight):
        return fit_codec(column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y)

    def _encode_targets(self, codec, y, name):
        return encode_validation(codec, flat_targets(y), name)

    def _class_weights(self, codec, y, weight):
        return class_weights(self, codec, flat_targets(y), weight, incremental=False)

    def _loss(self, codec) -> Loss:
        return codec.loss

    def _head_bias(self, codec, targets, weight, n_distinct):
        return log_odds(codec, targets, weight, n_distinct)

    def _adopt_targets(self, task: Task, trained: Trained) -> None:
        self.temperature_ = trained.ensemble.temperature

    def _label_smoothing(self):
        return float(self.label_smoothing)

    def _calibrated(self):
        return bool(self.calibrate)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags
