"""scikit-learn-compatible neural networks and linear models.

Names are loaded when they are first asked for, so that ``import sknn_resid`` is instant and does
not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sknn_resid._show_versions import show_versions
from sknn_resid._version import __version__

if TYPE_CHECKING:
    from sknn_resid.linear_model import OLS, Ridge, RidgeCV
    from sknn_resid.neural_network import (
        ImageFolder,
        ImagePreprocessor,
        MLPClassifier,
        MLPRegressor,
        MLPResidualClassifier,
        MLPResidualRegressor,
        ResNetClassifier,
        TableEncoder,
    )
    from sknn_resid.stacking import stacked

__all__ = [
    "OLS",
    "ImageFolder",
    "ImagePreprocessor",
    "MLPClassifier",
    "MLPRegressor",
    "MLPResidualClassifier",
    "MLPResidualRegressor",
    "ResNetClassifier",
    "Ridge",
    "RidgeCV",
    "TableEncoder",
    "__version__",
    "show_versions",
    "stacked",
]

_LINEAR = ("OLS", "Ridge", "RidgeCV")
_NETWORKS = (
    "ImageFolder",
    "ImagePreprocessor",
    "MLPClassifier",
    "MLPRegressor",
    "MLPResidualClassifier",
    "MLPResidualRegressor",
    "ResNetClassifier",
    "TableEncoder",
)


def __getattr__(name: str) -> Any:
    if name == "stacked":
        return import_module("sknn_resid.stacking").stacked
    if name in _NETWORKS:
        import_module("sknn_resid.stacking")  # tells joblib of the backend "stacked"
        return getattr(import_module("sknn_resid.neural_network"), name)
    if name in _LINEAR:
        return getattr(import_module("sknn_resid.linear_model"), name)
    if name in ("inspection", "linear_model", "neural_network"):
        return import_module(f"sknn_resid.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
