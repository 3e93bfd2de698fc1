"""The one door to scikit-learn's semi-private names.

Everything that scikit-learn does not promise to keep is imported here and nowhere else, so that a
new release is met in one file.
"""

from sklearn.base import _fit_context as fit_context
from sklearn.callback import CallbackSupportMixin
from sklearn.neural_network._stochastic_optimizers import AdamOptimizer, SGDOptimizer
from sklearn.utils import _safe_indexing as safe_indexing
from sklearn.utils._array_api import (
    check_same_namespace,
    get_namespace_and_device,
    move_to,
    supported_float_dtypes,
)
from sklearn.utils._optional_dependencies import check_matplotlib_support
from sklearn.utils._param_validation import (
    Interval,
    Options,
    RealNotInt,
    StrOptions,
    validate_parameter_constraints,
)
from sklearn.utils.metadata_routing import _raise_for_params as raise_for_params
from sklearn.utils.metadata_routing import _routing_enabled as routing_enabled
from sklearn.utils.multiclass import (
    _check_partial_fit_first_call as check_partial_fit_first_call,
)
from sklearn.utils.optimize import _check_optimize_result as check_optimize_result
from sklearn.utils.validation import _check_categorical_features as check_categorical_features
from sklearn.utils.validation import _check_feature_names_in as check_feature_names_in
from sklearn.utils.validation import _check_sample_weight as check_sample_weight
from sklearn.utils.validation import _check_y as check_y
from sklearn.utils.validation import validate_data

__all__ = [
    "AdamOptimizer",
    "CallbackSupportMixin",
    "Interval",
    "Options",
    "RealNotInt",
    "SGDOptimizer",
    "StrOptions",
    "check_categorical_features",
    "check_feature_names_in",
    "check_matplotlib_support",
    "check_optimize_result",
    "check_partial_fit_first_call",
    "check_same_namespace",
    "check_sample_weight",
    "check_y",
    "fit_context",
    "get_namespace_and_device",
    "move_to",
    "raise_for_params",
    "routing_enabled",
    "safe_indexing",
    "supported_float_dtypes",
    "validate_data",
    "validate_parameter_constraints",
]
