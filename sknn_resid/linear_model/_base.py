"""`LeastSquaresBase`: what the three estimators share: adopting a fit, and the summary of it."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin

from sknn_resid._sklearn_compat import StrOptions
from sknn_resid.linear_model._checks import feature_names
from sknn_resid.linear_model._rows import COVARIANCES
from sknn_resid.linear_model._statistics import InferenceMixin
from sknn_resid.linear_model._summary import SummaryFrame
from sknn_resid.linear_model._tables import summary_frame
from sknn_resid.linear_model._training import Outcome


class LeastSquaresBase(
    InferenceMixin, MultiOutputMixin, RegressorMixin, BaseEstimator, metaclass=ABCMeta
):
    """Adopting a fit, and the summary of it; abstract."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "fit_intercept": ["boolean"],
        "refine": ["boolean", StrOptions({"auto"})],
        "device": [str],
        "cov_type": [StrOptions(set(COVARIANCES))],
        "weight_type": [StrOptions({"frequency", "precision"})],
    }
    _target_names: tuple[str, ...]

    def _adopt(self, outcome: Outcome, single_target: bool, names: tuple[str, ...]) -> None:
        """Set the fitted attributes."""
        fitted = outcome.fitted
        factor = fitted.factor
        self._fitted = fitted
        self._row_statistics = outcome.row_statistics
        self._single_target = single_target
        self._target_names = names
        coef, intercept = outcome.solution.coef, outcome.solution.intercept
        self.coef_ = coef[0] if single_target else coef
        if not factor.fit_intercept:
            self.intercept_ = 0.0  # as scikit-learn does, for any number of targets
        else:
            self.intercept_ = float(intercept[0]) if single_target else intercept
        self.rank_ = int(factor.rank)
        d = factor.singular_values
        self.singular_values_ = d[int(factor.fit_intercept) :]

    def summary(self, level: float = 0.95) -> SummaryFrame:
        """Table of coefficients, with the figures of the fit.

        Parameters
        ----------
        level : float, default=0.95
            Coverage of the confidence intervals, strictly between 0 and 1.

        Returns
        -------
        SummaryFrame
            A :class:`pandas.DataFrame` with one row per coefficient, the intercept first (several
            targets: one block each), and the columns ``coef``, ``std_error``, ``t``, ``p``, the
            ends of the interval, and ``vif``. In a notebook and as text, it also shows the figures
            of the fit and what has to be known to read them.
        """
        fitted = self._certain_state()
        return summary_frame(
            fitted,
            np.atleast_2d(self.coef_),
            np.broadcast_to(self.intercept_, (fitted.n_targets,)),
            level=level,
            title=type(self).__name__,
            names=feature_names(self),
            targets=None if self._single_target else self._target_names,
            notes=self._summary_notes(),
        )

    @abstractmethod
    def _summary_notes(self) -> list[str]:
        """What the reader of the summary has to know about this model."""

    @property
    def n_targets_(self) -> int:
        """Number of targets."""
        return self._state().n_targets
