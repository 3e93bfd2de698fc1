"""`LeastSquaresBase`: what the three estimators share: adopting a fit, and the summary of it."""

from __future__ import annotations

import inspect
from abc import ABCMeta, abstractmethod
from functools import cache
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin

from sknn_resid._sklearn_compat import StrOptions, validate_parameter_constraints
from sknn_resid.linear_model._checks import check_rows, feature_names
from sknn_resid.linear_model._incremental import RowsSoFar, continued, extend
from sknn_resid.linear_model._rows import COVARIANCES
from sknn_resid.linear_model._statistics import InferenceMixin
from sknn_resid.linear_model._summary import SummaryFrame
from sknn_resid.linear_model._tables import summary_frame
from sknn_resid.linear_model._training import Outcome, TrainingRows


@cache
def _valid_defaults(cls: type[LeastSquaresBase]) -> dict[str, Any]:
    """Values that the parameters of a class are defined with; those that are valid only.

    One that is not valid is a new object here, which no value is.
    """
    parameters = inspect.signature(cls.__init__).parameters
    defaults = {}
    for name in cls._get_param_names():
        defaults[name] = parameters[name].default if name in parameters else object()
        try:
            validate_parameter_constraints(
                cls._parameter_constraints, {name: defaults[name]}, caller_name=cls.__name__
            )
        except ValueError:
            defaults[name] = object()
    return defaults


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
    _so_far: RowsSoFar | None
    _repetitions: bool

    def _validate_params(self) -> None:
        """As scikit-learn does: of parameters that have not the values they were defined with.

        It makes its objects anew for each parameter of each fit, which would be as long as a small
        fit itself.
        """
        defaults = _valid_defaults(type(self))
        values = {name: getattr(self, name) for name in defaults}
        other = {name: v for name, v in values.items() if v is not defaults[name]}
        if other:
            constraints, name = self._parameter_constraints, type(self).__name__
            validate_parameter_constraints(constraints, other, caller_name=name)

    def _adopt(self, outcome: Outcome, rows: TrainingRows | RowsSoFar, device: str = "cpu") -> None:
        """Set the fitted attributes."""
        fitted = outcome.fitted
        factor = fitted.factor
        self._fitted = fitted
        self._covariance_needs_rows = self.cov_type != "nonrobust" and fitted.robust is None
        self._row_statistics = outcome.row_statistics
        single_target = rows.single_target
        self._single_target = single_target
        self._repetitions = rows.repetitions
        if isinstance(rows, TrainingRows):
            self._target_names = rows.target_names
            self._so_far = None
        else:
            self._so_far = rows
        self.device_ = device
        self.rank_gap_ = float(factor.rank_gap)
        coef, intercept = outcome.solution.coef, outcome.solution.intercept
        self.coef_ = coef[0] if single_target else coef
        if not factor.fit_intercept:
            self.intercept_ = 0.0  # as scikit-learn does, for any number of targets
        else:
            self.intercept_ = float(intercept[0]) if single_target else intercept
        self.rank_ = int(factor.rank)
        d = factor.singular_values
        self.singular_values_ = d[int(factor.fit_intercept) :]

    def _checked_rows_so_far(self, X: Any, y: Any, sample_weight: Any) -> RowsSoFar:
        """The stream of `partial_fit` with these rows; the first call starts it."""
        so_far = getattr(self, "_so_far", None)
        first = so_far is None and not hasattr(self, "coef_")
        rows = check_rows(self, X, y, sample_weight, self.weight_type, reset=first)
        if first:
            self._target_names = rows.target_names
        elif so_far is None:
            so_far = continued(self._fitted, self._repetitions, self._single_target)
        return extend(so_far, rows, self.fit_intercept)

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
