"""`ResNetClassifier`: the image networks of He et al. (2015)."""

from __future__ import annotations

from typing import Any, ClassVar

from sklearn.base import ClassifierMixin

from sknn_resid._sklearn_compat import fit_context
from sknn_resid.neural_network._resnet_base import BaseResNet
from sknn_resid.neural_network._resnet_constraints import CONSTRAINTS
from sknn_resid.neural_network._resnet_prediction import ImagePredictor
from sknn_resid.neural_network._resnet_pretrained import Pretrained


class ResNetClassifier(ImagePredictor, ClassifierMixin, Pretrained, BaseResNet):
    """Classifier of images: a residual network of He et al. (2015), or its plain twin.

    Takes arrays of images, rows of a table, or paths of files. Minimises the cross-entropy of
    softmax outputs, ``sum_i w_i l_i / sum w``, by stochastic gradient descent. Weights have
    torchvision's names and shapes.

    Parameters
    ----------
    depth : int, default=20
        Layers: 6n + 2 (8, 14, 20, 32, 44, 56, 110, 1202, ...) for small images, or 18, 34, 50, 101,
        152.
    width : int or None, default=None
        Channels of the first stage. None is the paper's: 16 for 6n + 2, else 64.
    stem : {'auto', 'cifar', 'imagenet', 'imagenet_3x3'}, default='auto'
        How the network begins. 'auto' follows from the depth: 'cifar' for 6n + 2; for 18, 34, 50,
        101, 152 'imagenet' (7x7 with stride 2, then a maximum over 3x3), and a single 3x3
        convolution where images have at most 64 pixels a side.
    shortcut : {'auto', 'A', 'B', 'C'} or None, default='auto'
        Where a stage begins: 'A' pads with zeros, 'B' projects, 'C' projects in every block. None
        is the plain network without shortcuts, with the same number of parameters as 'A'. 'auto' is
        'A' for 6n + 2, else 'B'.
    option_a_padding : {'both', 'end'}, default='both'
        Where 'A' puts its zero channels; weights trained with one do not fit the other.
    stride_in_1x1 : bool, default=False
        Whether bottlenecks (depth 50 and more) halve the image in their first 1x1 convolution, as
        in the paper, or in the 3x3 one, as in torchvision.
    zero_init_residual : bool, default=False
        Whether every branch starts as zero (Goyal et al. 2017).
    drop_path : float, default=0.0
        Probability that the last block's branch is left out for an image in a step; earlier ones
        proportionally less.
    preactivation : bool, default=False
        Whether normalization and activation come before the convolutions (He et al. 2016).
    image_shape : tuple of int or None, default=None
        For rows of a table: the shape of a row as an image, (height, width) or with channels. None
        makes the smallest square of one channel, filled up with zeros. For files: the size they are
        cut and resized to; None takes them as they are.
    channels : {'auto', 'last', 'first'}, default='auto'
        Whether images are (height, width, channels) or (channels, height, width). 'auto' takes the
        smaller one of the outer axes for the channels, and refuses where that is a guess.
    pixel_mean, pixel_std : float, array-like of shape (n_channels,) or None, default=None
        What pixels are shifted and divided by, in the units of X. None learns both from the
        training images; with ``weights``, it means ImageNet's for bytes of three channels.
    augmentation : {'auto', 'crop', 'crop_flip', 'crop_alternating_flip', 'flip', \
            'alternating_flip'} or None, default='auto'
        Random changes of training images. 'crop' takes a window of the image after padding it,
        'flip' turns half of the images left to right, 'alternating_flip' each image in every second
        epoch. 'auto' is None for rows of a table, 'crop' for images with one or two channels (a
        digit turned round is another sign), and 'crop_flip' with three or more.
    crop_padding : int or 'auto', default='auto'
        Pixels of padding for 'crop'; 'auto' is an eighth of the smaller side.
    cutout : int, default=0
        Side of a square that is blanked out in each training image.
    mixup : float, default=0.0
        Parameter a of Beta(a, a), by whose draws two images of a batch and their losses are mixed.
    solver : {'sgd', 'adamw'}, default='sgd'
        Update rule.
    learning_rate : {'one_cycle', 'milestones', 'cosine', 'constant'}, default='one_cycle'
        How the rate moves over all steps. 'milestones' divides it by 10 at each of ``milestones``.
    learning_rate_init : float, default=0.1
        The highest rate. About 0.001 for 'adamw'.
    milestones : array-like of float, default=(0.5, 0.75)
        Parts of the training; the paper's.
    weight_decay : float, default=5e-4
        Decay of the weights, not of normalizations and biases: ``0.5 * weight_decay * |W|^2`` is
        added to the mean loss. Decoupled for 'adamw'.
    momentum : float, default=0.9
        For 'sgd'.
    nesterovs_momentum : bool, default=True
        For 'sgd' with ``momentum > 0``.
    warmup_fraction : float, default=0.0
        Part of all steps over which the rate rises linearly.
    average_fraction : float, default=0.0
        Horizon, as a part of all steps, over which weights are averaged; the averages then predict.
    label_smoothing : float, default=0.0
        Part of each label that is spread evenly over the classes.
    clip_norm : float or None, default=None
        Largest norm of the gradient of a step.
    batch_size : int, default=128
        Images of a step. A last batch of one image joins the one before.
    accumulate_steps : int, default=1
        Parts that a batch is computed in, one after another, to save memory. Doubled, with a
        warning, whenever memory runs out.
    max_iter : int, default=30
        Epochs.
    shuffle : bool, default=True
        Whether images are shuffled in each epoch.
    early_stopping : bool, default=False
        Whether training stops when the validation score no longer improves; the best weights are
        kept. The validation part is ``validation_fraction`` of the images, or ``X_val``, ``y_val``.
    early_stopping_metric : {'score', 'loss'}, str or callable, default='score'
        What the validation part is judged by: accuracy, the loss, or a scikit-learn scorer.
    validation_fraction : float, default=0.1
        Part of the images that is held out for early stopping.
    n_iter_no_change : int or float('inf'), default=10
        Epochs without improvement that are let pass.
    tol : float, default=1e-4
        An epoch that does not improve by more than ``tol`` counts as no improvement.
    max_time : float or None, default=None
        Seconds after which no further epoch starts.
    class_weight : dict, 'balanced' or None, default=None
        Weights of the classes, multiplied into ``sample_weight``. 'balanced' is
        ``n_samples / (n_classes * count)``, counted by ``sample_weight``.
    warm_start : bool, default=False
        Whether ``fit`` goes on from the weights of the last call.
    checkpoint_dir : str, path-like or None, default=None
        Folder for a file after each epoch. A fit that was interrupted (also by ``max_time``, or a
        crash) goes on from there when it is called again with the same parameters and data, and
        ends with the very same weights; then the file is deleted. Needs an int ``random_state``.
    weights : str, path-like or None, default=None
        File of weights that ``fit`` starts from (`from_pretrained` reads the structure off it as
        well). Depth, stem, width and shortcut must be those of the file; another number of classes
        gets a new output layer, other channels an adapted first convolution.
    freeze : str or None, default=None
        Stage up to whose end ``fit`` leaves weights and statistics as they are: 'stem', 'layer1',
        ..., or 'avgpool' to train nothing but the output layer.
    body_lr_factor : float, default=1.0
        Factor of the updates of everything but the output layer.
    test_augmentation : {'flip', 'ten_crop'} or None, default=None
        Views of an image over which predicted probabilities are averaged: it and its mirror image,
        or corners and centre of 7/8 of its sides and their mirror images. Logits are then the
        logarithms of those.
    features : str, default='avgpool'
        Stage that ``transform`` gives: 'stem', 'layer1', 'layer2', ..., 'avgpool' (what the output
        layer reads) or 'fc' (the raw outputs).
    record_gradients : bool, default=False
        Whether to keep norms of gradients and numbers about activations in `gradient_history_`.
    device : str, default='auto'
        'cpu', 'auto' (an accelerator if there is one and the work is large enough) or a torch
        device such as 'cuda:0'. Never chosen by timing; `device_` says what was used.
    dtype : {'auto', 'float32', 'float64', 'bfloat16', 'float16'}, default='auto'
        'auto' is float32 for images and bytes, and float64 for rows of float64 on a CPU. With
        'bfloat16' and 'float16' the convolutions are computed in that, on float32 weights.
    data_parallel : bool, default=False
        Whether the processes that ``torchrun`` started share every batch: each calls ``fit`` with
        all of the same data, computes its share, and ends with the same network, which is that of
        one process up to rounding. Needs an int ``random_state``.
    compile : bool, default=False
        Whether training goes through ``torch.compile``: half a minute to some minutes first, faster
        steps after it. Sums come in another order, so results differ by rounding.
    deterministic : bool, default=False
        On CUDA: bitwise equal refits. On a CPU they are so anyway.
    random_state : int, RandomState instance or None, default=None
        Determines initial weights, split, shuffling and augmentation.
    verbose : bool, default=False
        Whether to print a line per epoch.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    state_dict_ : dict of str to ndarray
        Weights and statistics by torchvision's names: what is here predicts.
    image_shape_ : tuple of int
        Height, width, channels.
    pixel_mean_, pixel_std_ : ndarray of shape (n_channels,)
        What pixels are shifted and divided by.
    n_parameters_ : int
        Number of weights that are learned.
    loss_ : float
        Training loss of the last epoch (without the penalty).
    best_loss_ : float or None
        Lowest training loss of all epochs; None with ``early_stopping=True``.
    loss_curve_ : list of float
        Training loss of each epoch.
    validation_scores_, validation_loss_curve_ : list of float or None
        Score and loss of the validation part after each epoch; None without one.
    best_validation_score_ : float or None
        The highest validation score.
    gradient_history_ : GradientHistory or None
        What ``record_gradients=True`` has kept.
    t_ : int
        Images seen in training.
    n_iter_ : int
        Epochs of the last call.
    device_, dtype_ : str
        Where and in what precision it was fitted.
    n_features_in_ : int
        Columns of X, or numbers of an image.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns, if X was a table with string names.

    See Also
    --------
    ImageFolder : A folder of images with a subfolder for each class.
    MLPResidualClassifier : Residual networks for tables.

    Notes
    -----
    The statistics of batch normalization that predict are computed over the training images at the
    end, as in the paper, and weighted where weights differ. So a weight of two is a row twice, as
    long as all rows fit in one batch and nothing is drawn row by row (augmentation, ``drop_path``).

    References
    ----------
    He, Zhang, Ren and Sun (2015), Deep residual learning for image recognition; (2016), Identity
    mappings in deep residual networks. Smith and Topin (2018), Super-convergence (one cycle).

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sknn_resid import ResNetClassifier
    >>> digits = load_digits()
    >>> images, y = digits.images[:300], digits.target[:300]
    >>> clf = ResNetClassifier(depth=8, width=8, max_iter=20, batch_size=32, random_state=0)
    >>> clf.fit(images[:200], y[:200]).score(images[200:], y[200:]) > 0.8
    True
    >>> clf.image_shape_, clf.n_parameters_
    ((8, 8, 1), 19074)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = CONSTRAINTS

    def __init__(
        self,
        depth=20,
        *,
        width=None,
        stem="auto",
        shortcut="auto",
        option_a_padding="both",
        stride_in_1x1=False,
        zero_init_residual=False,
        drop_path=0.0,
        preactivation=False,
        image_shape=None,
        channels="auto",
        pixel_mean=None,
        pixel_std=None,
        augmentation="auto",
        crop_padding="auto",
        cutout=0,
        mixup=0.0,
        solver="sgd",
        learning_rate="one_cycle",
        learning_rate_init=0.1,
        milestones=(0.5, 0.75),
        weight_decay=5e-4,
        momentum=0.9,
        nesterovs_momentum=True,
        warmup_fraction=0.0,
        average_fraction=0.0,
        label_smoothing=0.0,
        clip_norm=None,
        batch_size=128,
        accumulate_steps=1,
        max_iter=30,
        shuffle=True,
        early_stopping=False,
        early_stopping_metric="score",
        validation_fraction=0.1,
        n_iter_no_change=10,
        tol=1e-4,
        max_time=None,
        class_weight=None,
        warm_start=False,
        checkpoint_dir=None,
        weights=None,
        freeze=None,
        body_lr_factor=1.0,
        test_augmentation=None,
        features="avgpool",
        record_gradients=False,
        device="auto",
        dtype="auto",
        data_parallel=False,
        compile=False,
        deterministic=False,
        random_state=None,
        verbose=False,
    ):
        self.depth = depth
        self.width = width
        self.stem = stem
        self.shortcut = shortcut
        self.option_a_padding = option_a_padding
        self.stride_in_1x1 = stride_in_1x1
        self.zero_init_residual = zero_init_residual
        self.drop_path = drop_path
        self.preactivation = preactivation
        self.image_shape = image_shape
        self.channels = channels
        self.pixel_mean = pixel_mean
        self.pixel_std = pixel_std
        self.augmentation = augmentation
        self.crop_padding = crop_padding
        self.cutout = cutout
        self.mixup = mixup
        self.solver = solver
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.milestones = milestones
        self.weight_decay = weight_decay
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.warmup_fraction = warmup_fraction
        self.average_fraction = average_fraction
        self.label_smoothing = label_smoothing
        self.clip_norm = clip_norm
        self.batch_size = batch_size
        self.accumulate_steps = accumulate_steps
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.early_stopping = early_stopping
        self.early_stopping_metric = early_stopping_metric
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.max_time = max_time
        self.class_weight = class_weight
        self.warm_start = warm_start
        self.checkpoint_dir = checkpoint_dir
        self.weights = weights
        self.freeze = freeze
        self.body_lr_factor = body_lr_factor
        self.test_augmentation = test_augmentation
        self.features = features
        self.record_gradients = record_gradients
        self.device = device
        self.dtype = dtype
        self.data_parallel = data_parallel
        self.compile = compile
        self.deterministic = deterministic
        self.random_state = random_state
        self.verbose = verbose

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None, *, X_val=None, y_val=None, sample_weight_val=None):
        """Fit to images.

        Parameters
        ----------
        X : array-like or sequence of paths
            Images (n, height, width, channels), (n, channels, height, width) or (n, height, width);
            rows of a table (n, n_features); or files. Numbers are taken as they are: bytes are 0 to
            255.
        y : array-like of shape (n_samples,)
            Class labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Weight of each image; not negative, not all zero.
        X_val, y_val : array-like, default=None
            Validation images. Then no split is made: ``early_stopping=True`` watches them,
            ``early_stopping=False`` only records their score and loss.
        sample_weight_val : array-like, default=None
            Weights of the validation images.

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

    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y, sample_weight=None, classes=None):
        """One epoch over the given images, going on from the weights and momentum at hand.

        The rate is ``learning_rate_init`` throughout. Statistics for prediction are those of the
        images of the last call, pixels are scaled as in the first.

        Parameters
        ----------
        X : array-like or sequence of paths
            Images, as in ``fit``.
        y : array-like of shape (n_samples,)
            Class labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Weight of each image.
        classes : array-like of shape (n_classes,), default=None
            All classes that any call will see; needed in the first call.

        Returns
        -------
        self : object
            The fitted estimator.
        """
        self._first_classes(y, classes)
        return self._fit(X, y, sample_weight, incremental=True)
