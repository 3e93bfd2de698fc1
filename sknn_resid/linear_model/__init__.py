"""Least squares by singular value decomposition, with inference: OLS, ridge, their difference."""

from sknn_resid.linear_model._ols import OLS
from sknn_resid.linear_model._path import RidgePath, ridge_path
from sknn_resid.linear_model._ridge import Ridge
from sknn_resid.linear_model._ridge_cv import RidgeCV
from sknn_resid.linear_model._summary import SummaryFrame
from sknn_resid.linear_model._variance import compare_variance, compare_variance_of
from sknn_resid.linear_model._variance_comparison import VarianceComparison

__all__ = [
    "OLS",
    "Ridge",
    "RidgeCV",
    "RidgePath",
    "SummaryFrame",
    "VarianceComparison",
    "compare_variance",
    "compare_variance_of",
    "ridge_path",
]
