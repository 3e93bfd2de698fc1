"""Looking into models: numbers first, a Display in scikit-learn's form second.

Importing this package imports neither matplotlib nor torch: what needs torch is loaded when it is
first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sknn_resid.inspection._ridge_path_display import RidgePathDisplay
from sknn_resid.inspection._shrinkage_display import ShrinkageDisplay
from sknn_resid.inspection._variance_display import VarianceComparisonDisplay

if TYPE_CHECKING:
    from sknn_resid.inspection._trace import ForwardTrace, Gradients, forward_trace, gradients

__all__ = [
    "ForwardTrace",
    "Gradients",
    "RidgePathDisplay",
    "ShrinkageDisplay",
    "VarianceComparisonDisplay",
    "forward_trace",
    "gradients",
]

_LATER = {
    "ForwardTrace": "_trace",
    "Gradients": "_trace",
    "forward_trace": "_trace",
    "gradients": "_trace",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(f"sknn_resid.inspection.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
