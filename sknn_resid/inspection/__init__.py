"""Looking into models: numbers first, a Display in scikit-learn's form second.

Importing this package imports neither matplotlib nor torch: what needs torch is loaded when it is
first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sknn_resid.inspection._loss_curve_display import LossCurve, LossCurveDisplay
from sknn_resid.inspection._ridge_path_display import RidgePathDisplay
from sknn_resid.inspection._shrinkage_display import ShrinkageDisplay
from sknn_resid.inspection._variance_display import VarianceComparisonDisplay

if TYPE_CHECKING:
    from sknn_resid.inspection._activation_display import ActivationDisplay
    from sknn_resid.inspection._diagnosis import Diagnosis, Finding, diagnose
    from sknn_resid.inspection._gradient_flow import compare_gradient_flow, gradient_flow
    from sknn_resid.inspection._gradient_flow_display import GradientFlowDisplay
    from sknn_resid.inspection._jacobian import gradient_correlation, jacobian_spectrum
    from sknn_resid.inspection._trace import ForwardTrace, Gradients, forward_trace, gradients

__all__ = [
    "ActivationDisplay",
    "Diagnosis",
    "Finding",
    "ForwardTrace",
    "GradientFlowDisplay",
    "Gradients",
    "LossCurve",
    "LossCurveDisplay",
    "RidgePathDisplay",
    "ShrinkageDisplay",
    "VarianceComparisonDisplay",
    "compare_gradient_flow",
    "diagnose",
    "forward_trace",
    "gradient_correlation",
    "gradient_flow",
    "gradients",
    "jacobian_spectrum",
]

_LATER = {
    "ActivationDisplay": "_activation_display",
    "Diagnosis": "_diagnosis",
    "Finding": "_diagnosis",
    "ForwardTrace": "_trace",
    "GradientFlowDisplay": "_gradient_flow_display",
    "Gradients": "_trace",
    "compare_gradient_flow": "_gradient_flow",
    "diagnose": "_diagnosis",
    "forward_trace": "_trace",
    "gradient_correlation": "_jacobian",
    "gradient_flow": "_gradient_flow",
    "gradients": "_trace",
    "jacobian_spectrum": "_jacobian",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(f"sknn_resid.inspection.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
