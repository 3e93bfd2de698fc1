"""scikit-learn-compatible neural networks: faster MLPs, trained by an engine of stacked networks.

Names are loaded when they are first asked for, so that ``import sknn_resid`` is instant and does
not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sknn_resid._show_versions import show_versions
from sknn_resid._version import __version__

if TYPE_CHECKING:
    from sknn_resid.neural_network import MLPClassifier, MLPRegressor
    from sknn_resid.stacking import stacked

__all__ = ["MLPClassifier", "MLPRegressor", "__version__", "show_versions", "stacked"]


def __getattr__(name: str) -> Any:
    if name == "stacked":
        return import_module("sknn_resid.stacking").stacked
    if name in ("MLPClassifier", "MLPRegressor"):
        import_module("sknn_resid.stacking")  # tells joblib of the backend "stacked"
        return getattr(import_module("sknn_resid.neural_network"), name)
    if name == "neural_network":
        return import_module("sknn_resid.neural_network")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
