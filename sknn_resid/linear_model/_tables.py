"""The summary of a fitted model as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

from sknn_resid.linear_model._fitted import FittedLinear
from sknn_resid.linear_model._inference import (
    information_criteria,
    r2_from_sums,
    ratio,
    t_quantile,
    two_sided_p_value,
)
from sknn_resid.linear_model._summary import SummaryFrame, coefficient_index


def summary_frame(
    fitted: FittedLinear,
    coef: np.ndarray,
    intercept: np.ndarray,
    *,
    level: float,
    title: str,
    names: Sequence[str],
    targets: Sequence[str] | None,
    notes: Sequence[str],
) -> SummaryFrame:
    """Coefficients with their uncertainties, and the figures of the fit.

    Parameters
    ----------
    fitted : FittedLinear
        State of the model.
    coef : ndarray of shape (n_targets, n_features)
        Coefficients.
    intercept : ndarray of shape (n_targets,)
        Intercepts.
    level : float
        Coverage of the intervals.
    title : str
        Name of the model.
    names : sequence of str
        Names of the features.
    targets : sequence of str or None
        Names of the targets; None for a one-dimensional y.
    notes : sequence of str
        Sentences for below the table.

    Returns
    -------
    SummaryFrame
    """
    with_intercept = fitted.factor.fit_intercept
    errors = fitted.standard_errors()
    vif = np.tile(fitted.variance_inflation(), (fitted.n_targets, 1))
    if with_intercept:
        coef = np.column_stack([intercept, coef])
        errors = np.column_stack([np.sqrt(fitted.intercept_variance()), errors])
        vif = np.column_stack([np.full(fitted.n_targets, np.nan), vif])
    t = ratio(coef, errors)
    df = fitted.df_resid[:, None]
    half = t_quantile(level, df) * errors
    columns = {
        "coef": coef,
        "std_error": errors,
        "t": t,
        "p": two_sided_p_value(t, df),
        f"{(1 - level) / 2:.4g}": coef - half,
        f"{(1 + level) / 2:.4g}": coef + half,
        "vif": vif,
    }
    return SummaryFrame.build(
        {name: values.ravel() for name, values in columns.items()},
        coefficient_index(names, with_intercept, targets),
        title,
        figures(fitted),
        notes,
    )


def figures(fitted: FittedLinear) -> dict[str, Any]:
    """Names and values for the header of a summary.

    Parameters
    ----------
    fitted : FittedLinear
        State of the model.

    Returns
    -------
    dict from str to float, int or ndarray of shape (n_targets,)
    """
    criteria = information_criteria(fitted.rss, fitted.n_obs, fitted.df_fit, fitted.sum_log_weights)
    return {
        "observations": fitted.n_obs,
        "features": fitted.n_features,
        "rank": fitted.factor.rank,
        "df of the fit": fitted.df_fit,
        "residual df": fitted.df_resid,
        "residual std": np.sqrt(fitted.sigma2),
        "R2": r2_from_sums(fitted.rss, fitted.factor.tss),
        "adjusted R2": fitted.adjusted_r2,
        **_f_test(fitted),
        "log-likelihood": criteria.log_likelihood,
        "AIC": criteria.aic,
        "BIC": criteria.bic,
        "condition number": fitted.condition_number(),
    }


def _f_test(fitted: FittedLinear) -> dict[str, Any]:
    """F test that all coefficients are 0, for the classical covariance without a penalty."""
    rank = fitted.factor.rank
    if rank == 0 or fitted.robust is not None or (fitted.alpha > 0).any():
        return {}
    df = np.where(fitted.df_resid > 0, fitted.df_resid, np.nan)
    explained = np.maximum(fitted.factor.tss - fitted.rss, 0.0)
    F = ratio(explained / rank, fitted.sigma2)
    return {"F": F, "p of F": special.fdtrc(rank, df, F)}
