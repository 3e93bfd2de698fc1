"""Least squares by singular value decomposition, with inference: OLS, ridge, and their difference."""

from sknn_resid.linear_model._ols import OLS

__all__ = ["OLS"]
