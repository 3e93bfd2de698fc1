"""scikit-learn-compatible neural networks: faster MLPs, deep residual MLPs for raw tables.

Names are loaded when they are first asked for, so that ``import sknn_resid`` is instant and does
not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sknn_resid._show_versions import show_versions
from sknn_resid._version import __version__

if TYPE_CHECKING:
    from sknn_resid.neural_network import (
        MLPClassifier,
        MLPRegressor,
        MLPResidualClassifier,
        MLPResidualRegressor,
        TableEncoder,
    )

_NETWORKS = (
    "MLPClassifier",
    "MLPRegressor",
    "MLPResidualClassifier",
    "MLPResidualRegressor",
    "TableEncoder",
)

__all__ = [
    "MLPClassifier",
    "MLPRegressor",
    "MLPResidualClassifier",
    "MLPResidualRegressor",
    "TableEncoder",
    "__version__",
    "show_versions",
]


def __getattr__(name: str) -> Any:
    if name in _NETWORKS:
        return getattr(import_module("sknn_resid.neural_network"), name)
    if name == "neural_network":
        return import_module("sknn_resid.neural_network")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
