"""scikit-learn-compatible neural networks: faster MLPs, trained by an engine of stacked networks.

Names are loaded when they are first asked for, so that ``import sknn_resid`` is instant and does
not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sknn_resid._show_versions import show_versions
from sknn_resid._version import __version__

if TYPE_CHECKING:
    from sknn_resid.linear_model import OLS, Ridge, RidgeCV
    from sknn_resid.neural_network import MLPClassifier, MLPRegressor

__all__ = [
    "OLS",
    "MLPClassifier",
    "MLPRegressor",
    "Ridge",
    "RidgeCV",
    "__version__",
    "show_versions",
]


def __getattr__(name: str) -> Any:
    if name in ("MLPClassifier", "MLPRegressor"):
        return getattr(import_module("sknn_resid.neural_network"), name)
    if name in ("OLS", "Ridge", "RidgeCV"):
        return getattr(import_module("sknn_resid.linear_model"), name)
    if name in ("linear_model", "neural_network"):
        return import_module(f"sknn_resid.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
