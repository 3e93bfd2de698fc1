"""scikit-learn's own checks of an estimator, for every estimator and its variants.

No check is declared as expected to fail, and a check may skip itself only for a reason that
is listed here: `expected_skip` is compared with what happens in both directions. Everything is
computed in float64, where the checks compare to 1e-7.

Constructor parameters are used as given, so the variants have budgets that suit the data of the
checks (at most 300 rows, mostly 10 to 100) and keep the module fast.
"""

import importlib.util
import os
from unittest import SkipTest

import pytest
import torch
from sklearn.base import ClassifierMixin, RegressorMixin, TransformerMixin
from sklearn.metrics import accuracy_score, make_scorer
from sklearn.utils.estimator_checks import (
    check_get_feature_names_out_error,
    check_global_output_transform_pandas,
    check_param_validation,
    check_set_output_transform,
    check_set_output_transform_pandas,
    check_transformer_get_feature_names_out,
    check_transformer_get_feature_names_out_pandas,
    estimator_checks_generator,
)

from sknn_resid import (
    OLS,
    MLPClassifier,
    MLPRegressor,
    MLPResidualClassifier,
    MLPResidualRegressor,
    ResNetClassifier,
    Ridge,
    RidgeCV,
)

# The checks send ten rows here and there: a validation part under five rows is then replaced by
# all rows, and says so. That is tested elsewhere.
pytestmark = pytest.mark.filterwarnings("ignore:.*validation:RuntimeWarning")

QUICK = {"learning_rate_init": 0.01, "max_iter": 60}
# Where an epoch costs more: Python's scorers, numbers kept by layer.
FEW_EPOCHS = {"learning_rate_init": 0.02, "max_iter": 30}


class FourthPower:
    """A loss given as a callable, between squared error and something steeper.

    An object and not a function because names of tests are made from its `repr`, which has to be
    the same in every process.
    """

    def __call__(self, y_true, y_pred):
        error = y_true - y_pred
        return (0.5 * error**2 + 1e-6 * error**4).sum(dim=1)

    def __repr__(self):
        return "FourthPower()"


BOTH_VARIANTS = [
    {},
    {"solver": "sgd", "learning_rate_init": 0.01},
    {"solver": "adamw", **QUICK},
    {"solver": "lbfgs", "max_iter": 60},
    {"early_stopping": True, "learning_rate_init": 0.01},
    {"early_stopping": True, "early_stopping_metric": "loss", **QUICK},
    {"solver": "sgd", "learning_rate": "adaptive", "learning_rate_init": 0.01},
    {"learning_rate": "cosine", **QUICK},
    {"learning_rate": "one_cycle", "warmup_fraction": 0.1, **QUICK},
    {"solver": "sgd", "learning_rate": "cosine", "learning_rate_init": 0.05, "max_iter": 60},
    {"hidden_layer_sizes": (20, 10), "activation": ("gelu", "tanh"), **QUICK},
    {"n_layers": 2, "width": 20, **QUICK},
    {"clip_norm": 1.0, **QUICK},
    {"record_gradients": True, **FEW_EPOCHS},
    # Places that are there for data of any width: a check may send one column and one output.
    {"tied_weights": [[(0, 0, 0), (0, 0, 1), (-1, 3, 0)], [(-1, 0, 0), (-1, 1, 0)]], **QUICK},
    {"hidden_layer_sizes": (20, 10, 20), "tied_weights": [[(1,), (2, "T")]], **QUICK},
]
CLASSIFIER_VARIANTS = [
    # A scorer for every kind of target that the checks send.
    {"early_stopping": True, "early_stopping_metric": "accuracy", **FEW_EPOCHS},
    {"early_stopping": True, "early_stopping_metric": make_scorer(accuracy_score), **FEW_EPOCHS},
    {"class_weight": "balanced", **QUICK},
    {"label_smoothing": 0.1, **QUICK},
]
REGRESSOR_VARIANTS = [
    {"early_stopping": True, "early_stopping_metric": "neg_mean_absolute_error", **FEW_EPOCHS},
    {"loss": "poisson", "learning_rate_init": 0.01},
    {"loss": "absolute_error", "learning_rate_init": 0.02},
    {"loss": "huber", "huber_delta": 10.0, "learning_rate_init": 0.02},
    {"loss": "quantile", "quantile": 0.6, "learning_rate_init": 0.02},
    {"loss": FourthPower(), **FEW_EPOCHS},
]
FEW_ALPHAS = (0.01, 0.1, 1.0, 10.0)
LINEAR = [
    OLS(),
    OLS(fit_intercept=False),
    OLS(refine=False),
    OLS(refine=True, cov_type="HC0"),
    OLS(weight_type="precision", cov_type="HC1"),
    Ridge(),
    Ridge(alpha=0.0),
    Ridge(alpha=0.1, fit_intercept=False, refine=False),
    Ridge(cov_type="HC0", weight_type="precision"),
    RidgeCV(),
    RidgeCV(alphas=(0.0, 0.1, 10.0), alpha_per_target=True),
    RidgeCV(criterion="gcv"),
    RidgeCV(criterion="aic", keep_rows=True),
    RidgeCV(criterion="bic", refine=False),
    RidgeCV(cv=3, store_cv_results=True),
    # scikit-learn's scorers cost half a millisecond a penalty: few of them.
    RidgeCV(FEW_ALPHAS, cv=3, scoring="neg_mean_absolute_error", alpha_per_target=True),
    RidgeCV(FEW_ALPHAS, scoring="r2"),
]
# Each skip, each normalization, each embedding; members from 1 to 8; with rows left out (the tables
# of the checks have fifteen rows here and there: three folds are the most they allow) and without.
SMALL = {"width": 16, "n_estimators": 2, "max_iter": 24}
RESIDUAL_VARIANTS = [
    {},
    {
        **SMALL,
        "n_estimators": 3,
        "skip": "none",
        "normalization": "layer",
        "validation_fraction": 0.34,
    },
    {
        **SMALL,
        "n_estimators": 1,
        "skip": "gated",
        "normalization": None,
        "numeric_embedding": None,
        "n_blocks": 2,
        "early_stopping": False,
    },
    {
        **SMALL,
        "record_gradients": True,
        "skip": "rezero",
        "normalization": None,
        "numeric_embedding": "periodic",
        "solver": "adamw",
        "learning_rate_init": 0.02,
    },
    {
        **SMALL,
        "preactivation": True,
        "tie_blocks": True,
        "n_blocks": 2,
        "solver": "sgd",
        "learning_rate": "cosine",
        "learning_rate_init": 0.05,
    },
]
RESIDUAL_CLASSIFIER_VARIANTS = [{**SMALL, "class_weight": "balanced", "drop_path": 0.1}]
RESIDUAL_REGRESSOR_VARIANTS = [
    {**SMALL, "loss": "poisson"},
    {**SMALL, "loss": "quantile", "quantile": 0.6},
    {**SMALL, "loss": FourthPower()},
]
# Rows become small images. Each kind of shortcut, both orders within a block, both update rules.
# One of the checks sets max_iter to 1000: only the plain variant trains that long, early stopping
# ends the others.
TINY = {"depth": 8, "width": 4, "max_iter": 8}
IMAGE_VARIANTS = [
    {},
    {"early_stopping": True, "shortcut": None},
    {"early_stopping": True, "shortcut": "B", "average_fraction": 0.1, "label_smoothing": 0.1},
    {"early_stopping": True, "preactivation": True, "solver": "adamw", "learning_rate_init": 0.02},
    {"early_stopping": True, "early_stopping_metric": "loss", "learning_rate": "milestones"},
    {"early_stopping": True, "class_weight": "balanced", "shortcut": "C"},
    {"early_stopping": True, "record_gradients": True},
]
ESTIMATORS = [
    *LINEAR,
    *(MLPClassifier(**params) for params in BOTH_VARIANTS + CLASSIFIER_VARIANTS),
    *(MLPRegressor(**params) for params in BOTH_VARIANTS + REGRESSOR_VARIANTS),
    *(
        MLPResidualClassifier(**params)
        for params in RESIDUAL_VARIANTS + RESIDUAL_CLASSIFIER_VARIANTS
    ),
    *(MLPResidualRegressor(**params) for params in RESIDUAL_VARIANTS + RESIDUAL_REGRESSOR_VARIANTS),
    *(ResNetClassifier(**TINY, **params) for params in IMAGE_VARIANTS),
]


def name_and_keywords(check):
    """Name of a check, and what is bound to it beside the estimator's name."""
    function, keywords = check, {}
    while hasattr(function, "func"):
        keywords = {**function.keywords, **keywords}
        function = function.func
    return function.__name__, keywords


def is_missing(namespace, device):
    """Whether this machine lacks an array library, or the device of it that a check wants."""
    if importlib.util.find_spec(namespace) is None:
        return True
    if namespace != "torch" or device in (None, "cpu"):
        return False
    if device == "mps":
        usable = torch.backends.mps.is_available()
        return not usable or os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK") != "1"
    return not getattr(torch, device).is_available()


def expected_skip(check):
    """Why a check cannot say anything here, or None: the whole list of skips."""
    name, keywords = name_and_keywords(check)
    if name == "check_classifiers_multilabel_output_format_decision_function":
        return "an MLP has no decision_function"
    if name.startswith("check_array_api"):
        wanted = [(keywords.get("array_namespace"), keywords.get("device_name"))]
        if name == "check_array_api_mixed_inputs":
            wanted = [keywords["X_ns_and_device"], keywords["other_ns_and_device"]]
        for namespace, device in wanted:
            if is_missing(namespace, device):
                return f"{namespace} on {device} is not available here"
    return None


def run_check(estimator, check):
    """Run one check; it is skipped exactly where `expected_skip` says so."""
    reason = expected_skip(check)
    if reason is not None and "is not available here" in reason:
        # Not left to the check: some of them only ask how the library was built, and fail on a
        # build for a device that the machine does not have.
        pytest.skip(reason)
    try:
        check(estimator)
    except (SkipTest, pytest.skip.Exception) as error:
        if reason is None:
            pytest.fail(f"skipped for a reason that is not listed: {error}")
        pytest.skip(reason)
    assert reason is None, f"listed as skipped ({reason}), but it ran: correct the list"


def checks_of(estimators):
    """What scikit-learn's `parametrize_with_checks` asks for.

    It makes the name of each test from a `repr` of the estimator, which takes milliseconds; here
    one serves all checks of an estimator.
    """
    for estimator in estimators:
        label = " ".join(repr(estimator).split())
        for instance, check in estimator_checks_generator(estimator):
            name, keywords = name_and_keywords(check)
            bound = ",".join(f"{key}={value}" for key, value in keywords.items())
            yield pytest.param(instance, check, id=f"{label}-{name}" + f"({bound})" * bool(bound))


# Some checks send fewer rows than columns. That OLS says so is tested elsewhere.
@pytest.mark.filterwarnings("ignore:X has rank:RuntimeWarning")
@pytest.mark.parametrize(("estimator", "check"), list(checks_of(ESTIMATORS)))
def test_check(estimator, check):
    run_check(estimator, check)


# Variants for which a row of weight two and the same row twice are different training runs, by
# definition and not by mistake. All other checks hold for them.
# - dropout: each row draws its own units.
# - invscaling: the rate falls with the number of rows seen, as in scikit-learn (which fails the
#   same checks), and a weight is no row.
NOT_WEIGHT_EQUIVALENT = [
    {"dropout": 0.2, **QUICK},
    {"solver": "sgd", "learning_rate": "invscaling", "power_t": 0.1, "learning_rate_init": 0.02},
]


def other_checks():
    """The checks of those variants, without the two about weights and repetitions."""
    classes = (MLPClassifier, MLPRegressor)
    for case in checks_of(cls(**params) for cls in classes for params in NOT_WEIGHT_EQUIVALENT):
        name, _ = name_and_keywords(case.values[1])
        if not name.startswith("check_sample_weight_equivalence"):
            yield case


@pytest.mark.parametrize(("estimator", "check"), list(other_checks()))
def test_check_without_weight_equivalence(estimator, check):
    run_check(estimator, check)


# scikit-learn runs these on its own estimators; `parametrize_with_checks` leaves them out.
FURTHER_CHECKS = [
    check_get_feature_names_out_error,
    check_global_output_transform_pandas,
    check_param_validation,
    check_set_output_transform,
    check_set_output_transform_pandas,
    check_transformer_get_feature_names_out,
    check_transformer_get_feature_names_out_pandas,
]


# Some of them fit a frame and transform an array or the reverse: every estimator warns of that.
@pytest.mark.filterwarnings("ignore:X .*feature names:UserWarning")
@pytest.mark.parametrize("check", FURTHER_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(
    "estimator_class",
    [MLPClassifier, MLPRegressor, MLPResidualClassifier, MLPResidualRegressor, ResNetClassifier],
)
def test_further_check(estimator_class, check):
    check(estimator_class.__name__, estimator_class(max_iter=5))


@pytest.mark.parametrize("estimator", [OLS(), Ridge(), RidgeCV()], ids=str)
def test_further_checks_of_the_linear_models(estimator):
    check_param_validation(type(estimator).__name__, estimator)


@pytest.mark.parametrize("estimator", [OLS(), Ridge(), RidgeCV()], ids=str)
def test_the_interesting_checks_of_the_linear_models_are_asked_for(estimator):
    names = [name_and_keywords(check)[0] for _, check in estimator_checks_generator(estimator)]
    assert {
        "check_sample_weight_equivalence_on_dense_data",
        "check_all_zero_sample_weights_error",
        "check_regressor_multioutput",
        "check_supervised_y_2d",
    } <= set(names)
    if not isinstance(estimator, RidgeCV):
        assert "check_estimators_partial_fit_n_features" in names


@pytest.mark.parametrize("estimator", [MLPClassifier(), MLPRegressor()], ids=["clf", "reg"])
def test_the_interesting_checks_are_asked_for(estimator):
    """What tags and signatures promise decides which checks come; these must be among them."""
    names = [name_and_keywords(check)[0] for _, check in estimator_checks_generator(estimator)]
    assert {
        "check_sample_weight_equivalence_on_dense_data",
        "check_sample_weight_equivalence_on_sparse_data",
        "check_all_zero_sample_weights_error",
        "check_estimators_partial_fit_n_features",
        "check_transformer_general",
        "check_array_api_mixed_inputs",
        "check_array_api_same_namespace",
    } <= set(names)
    assert names.count("check_array_api_input") > 5
    if isinstance(estimator, MLPClassifier):
        assert "check_classifiers_multilabel_output_format_predict_proba" in names
        assert "check_class_weight_classifiers" in names


@pytest.mark.parametrize("estimator_class", [MLPResidualClassifier, MLPResidualRegressor])
def test_tags_and_checks_of_the_residual_estimators(estimator_class):
    estimator = estimator_class()
    tags = estimator.__sklearn_tags__().input_tags
    assert tags.allow_nan
    assert tags.sparse
    assert not tags.string
    assert not tags.categorical
    assert estimator_class.__mro__.index(TransformerMixin) < estimator_class.__mro__.index(
        ClassifierMixin if estimator_class is MLPResidualClassifier else RegressorMixin
    )
    names = [name_and_keywords(check)[0] for _, check in estimator_checks_generator(estimator)]
    assert {
        "check_sample_weight_equivalence_on_dense_data",
        "check_sample_weight_equivalence_on_sparse_data",
        "check_all_zero_sample_weights_error",
        "check_transformer_general",
        "check_transformer_preserve_dtypes",
    } <= set(names)


def test_tags_and_checks_of_the_image_networks():
    estimator = ResNetClassifier()
    tags = estimator.__sklearn_tags__().input_tags
    assert not tags.allow_nan
    assert not tags.sparse
    mro = ResNetClassifier.__mro__
    assert mro.index(TransformerMixin) < mro.index(ClassifierMixin)
    names = [name_and_keywords(check)[0] for _, check in estimator_checks_generator(estimator)]
    assert {
        "check_sample_weight_equivalence_on_dense_data",
        "check_all_zero_sample_weights_error",
        "check_estimators_partial_fit_n_features",
        "check_class_weight_classifiers",
        "check_transformer_general",
    } <= set(names)
