"""`VarianceComparison`: how the variance, bias and error of ridge differ from those of OLS.

Everything is evaluated from one factorisation, in forms that cannot cancel. With singular values
``d_j`` of the (centred, weighted) design, its right singular vectors V and
``f_j = d_j^2 / (d_j^2 + lambda)``:

- ``Var[w_ols] = s^2 V diag(1 / d^2) V'`` and ``Var[w_ridge] = s^2 V diag(f^2 / d^2) V'``
- ``Delta = Var[w_ols] - Var[w_ridge] = s^2 V diag((1 - f)(1 + f) / d^2) V'``,
  with ``1 - f = lambda / (d^2 + lambda)`` computed as it stands, which is
  ``s^2 V diag(lambda (2 + lambda / d^2) / (d^2 + lambda)^2) V'``
- ``bias = E[w_ridge] - w = -V diag(1 - f) V'w``.

A penalty per feature takes ``B = V / d`` in its own metric instead. The rejected alternative, the
difference of the two covariance matrices, loses every digit for a small lambda and is then not
positive semi-definite.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape

import numpy as np
import pandas as pd

from sknn_resid.linear_model._inference import ratio, row_norms


@dataclass(frozen=True, eq=False)
class VarianceComparison:
    """Ridge beside ordinary least squares: variance, bias and mean squared error.

    Made by :func:`compare_variance` and :func:`compare_variance_of`. The variance of every linear
    combination of coefficients shrinks with ridge, always; the mean squared error need not.

    Attributes
    ----------
    alpha : float
        The penalty lambda.
    sigma2 : float
        Variance of the noise (of a row of weight 1).
    basis : ndarray of shape (n_features, rank)
        ``V / d``, or ``B`` with a penalty per feature.
    singular_values : ndarray of shape (rank,)
        ``d``; inf for directions that the penalty leaves alone.
    penalty : ndarray of shape (n_features,) or None
        Penalty of each feature relative to alpha; None for 1.
    coef : ndarray of shape (n_features,) or None
        The coefficients w that bias and error refer to; None where they are not known.
    feature_names : tuple of str
        Names of the rows of every table.
    plug_in : bool
        Whether `coef` is an estimate put in the place of the unknown w.
    refined : tuple of three ndarray of shape (n_features, n_features), or None
        `cov_ols`, `cov_ridge` and `difference` for ``sigma2 = 1`` beyond plain float64.

    Examples
    --------
    >>> import numpy as np
    >>> from sknn_resid.linear_model import compare_variance
    >>> X = np.array([[1.0, 1.0], [1.0, 1.1], [2.0, 1.9], [3.0, 3.2]])
    >>> comparison = compare_variance(X, 0.1, 1.0, coef=[1.0, 1.0])
    >>> comparison.is_positive_semidefinite
    True
    >>> bool((comparison.standard_errors_ridge < comparison.standard_errors_ols).all())
    True
    >>> comparison.difference.shape
    (2, 2)
    """

    alpha: float
    sigma2: float
    basis: np.ndarray = field(repr=False)
    singular_values: np.ndarray = field(repr=False)
    penalty: np.ndarray | None = field(default=None, repr=False)
    coef: np.ndarray | None = field(default=None, repr=False)
    feature_names: tuple[str, ...] = ()
    plug_in: bool = False
    refined: tuple[np.ndarray, np.ndarray, np.ndarray] | None = field(default=None, repr=False)

    # Filters. (sqrt(lambda) / d)^2 neither overflows nor underflows where the filter does not.

    @property
    def shrinkage(self) -> np.ndarray:
        """``f = d^2 / (d^2 + lambda)``, the factor of each direction, shape (rank,)."""
        with np.errstate(over="ignore"):
            return 1.0 / (1.0 + (np.sqrt(self.alpha) / self.singular_values) ** 2)

    @property
    def _complement(self) -> np.ndarray:
        """``1 - f``, not as a difference."""
        if self.alpha == 0.0:
            return np.zeros_like(self.singular_values)
        with np.errstate(over="ignore"):
            return 1.0 / (1.0 + (self.singular_values / np.sqrt(self.alpha)) ** 2)

    @property
    def _gains(self) -> np.ndarray:
        """``1 - f^2``."""
        return self._complement * (1.0 + self.shrinkage)

    @property
    def _root_ols(self) -> np.ndarray:
        return np.sqrt(self.sigma2) * self.basis

    @property
    def _root_ridge(self) -> np.ndarray:
        return self._root_ols * self.shrinkage

    @property
    def difference_root(self) -> np.ndarray:
        """``L`` with ``Delta = L L'``, shape (n_features, rank): the certificate itself."""
        return self._root_ols * np.sqrt(self._gains)

    # Variance

    @property
    def cov_ols(self) -> np.ndarray:
        """``Var[w_ols]``, shape (n_features, n_features)."""
        return self._matrix(0, self._root_ols)

    @property
    def cov_ridge(self) -> np.ndarray:
        """``Var[w_ridge]``, shape (n_features, n_features)."""
        return self._matrix(1, self._root_ridge)

    @property
    def difference(self) -> np.ndarray:
        """``Delta = Var[w_ols] - Var[w_ridge]``, shape (n_features, n_features).

        From its factor, not as a difference: exactly symmetric, exactly 0 for ``alpha=0``, and with
        relative errors of a few eps for any lambda.
        """
        return self._matrix(2, self.difference_root)

    def _matrix(self, which: int, root: np.ndarray) -> np.ndarray:
        if self.refined is not None:
            return self.sigma2 * self.refined[which]
        product = root @ root.T
        # Exactly symmetric, whatever kernel BLAS takes.
        return np.triu(product) + np.triu(product, 1).T

    def _roots_of_diagonal(self, which: int, root: np.ndarray) -> np.ndarray:
        if self.refined is not None:
            return np.sqrt(self.sigma2 * np.diagonal(self.refined[which]))
        return row_norms(root)

    @property
    def eigenvalues(self) -> np.ndarray:
        """Eigenvalues of Delta, shape (n_features,), descending; never negative.

        They are the squared singular values of its factor L, and 0 beyond the rank.
        """
        n_features = self.basis.shape[0]
        values = np.zeros(n_features)
        if self.singular_values.size:
            largest = np.linalg.svd(self.difference_root, compute_uv=False)[:n_features]
            values[: largest.size] = largest**2
        return values

    @property
    def is_positive_semidefinite(self) -> bool:
        """Whether Delta is: decided by its factor, not by the signs of rounded eigenvalues."""
        return bool(np.isfinite(self.difference_root).all())

    @property
    def certificate(self) -> str:
        """Why Delta is positive semi-definite, with the numbers of this design."""
        gains = self._gains
        if not gains.size:
            return "Delta = 0: no direction of the design varies, so both variances are 0."
        return (
            f"Delta = L L' with a real factor L of shape {self.basis.shape}: its "
            f"{gains.size} coefficients 1 - f_j^2 lie in [{gains.min():.3g}, {gains.max():.3g}], "
            "and none is negative, because 0 <= f_j = d_j^2 / (d_j^2 + alpha) <= 1."
        )

    @property
    def standard_errors_ols(self) -> np.ndarray:
        """Square roots of the diagonal of `cov_ols`, shape (n_features,)."""
        return self._roots_of_diagonal(0, self._root_ols)

    @property
    def standard_errors_ridge(self) -> np.ndarray:
        """Square roots of the diagonal of `cov_ridge`, shape (n_features,)."""
        return self._roots_of_diagonal(1, self._root_ridge)

    # Bias and mean squared error, where the coefficients are known

    @property
    def bias(self) -> np.ndarray:
        """``E[w_ridge] - w``, shape (n_features,).

        In a rank-deficient design it includes what no row of X sees, which OLS misses too.
        """
        return self._bias_of_shrinkage + self.bias_ols

    @property
    def _coordinates(self) -> np.ndarray:
        """``V'w``, in the metric of the penalty; 0 for directions without one."""
        coef = self._known_coef()
        weighted = coef if self.penalty is None else self.penalty * coef
        penalised = np.isfinite(self.singular_values)
        return (self.basis * np.where(penalised, self.singular_values, 0.0)).T @ weighted

    @property
    def _bias_of_shrinkage(self) -> np.ndarray:
        d = np.where(np.isfinite(self.singular_values), self.singular_values, 0.0)
        # + 0.0 drops the sign of an exact zero: a bias of -0.0 reads as a mistake.
        return self.basis @ (-(self._complement * d) * self._coordinates) + 0.0

    @property
    def bias_ols(self) -> np.ndarray:
        """``E[w_ols] - w``, shape (n_features,): 0 at full column rank."""
        coef = self._known_coef()
        d = self.singular_values
        if d.size == coef.size:
            return np.zeros_like(coef)
        penalised = np.isfinite(d)
        seen = self.basis[:, penalised] @ (d[penalised] * self._coordinates[penalised])
        left = coef - seen
        if not penalised.all():
            free = self.basis[:, ~penalised]
            left = left - free @ np.linalg.lstsq(free, left)[0]
        # What the row space holds already is rounding, not bias.
        noise = 8.0 * np.finfo(np.float64).eps * coef.size * np.abs(coef).max(initial=0.0)
        return np.where(np.abs(left) <= noise, 0.0, -left)

    @property
    def squared_bias(self) -> np.ndarray:
        """Squares of `bias`, shape (n_features,)."""
        return self.bias**2

    @property
    def mse_ols(self) -> np.ndarray:
        """Mean squared error of each OLS coefficient, shape (n_features,)."""
        return self.standard_errors_ols**2 + self.bias_ols**2

    @property
    def mse_ridge(self) -> np.ndarray:
        """Mean squared error of each ridge coefficient, shape (n_features,)."""
        return self.standard_errors_ridge**2 + self.squared_bias

    @property
    def total_mse_ols(self) -> float:
        """``E |w_ols - w|^2``."""
        return float(self.mse_ols.sum())

    @property
    def total_mse_ridge(self) -> float:
        """``E |w_ridge - w|^2``."""
        return float(self.mse_ridge.sum())

    @property
    def theobald_bound(self) -> float:
        """``2 s^2 / |w|^2``: below it ridge wins in the whole matrix of mean squared errors.

        Sufficient for any design (Theobald 1974). With a penalty per feature the norm is the one
        that the penalty takes, ``sum_j penalty_weights_j w_j^2``. inf for ``w = 0``.
        """
        norm2 = float(np.sum(self._coordinates**2))
        return float(ratio(2.0 * self.sigma2, norm2)) if norm2 > 0 else float("inf")

    @property
    def ridge_wins_in_mse_matrix(self) -> bool:
        """Whether ``MSE[w_ols] - MSE[w_ridge]`` is positive semi-definite for this alpha.

        Necessary and sufficient (Farebrother 1976): ``w' (2/alpha I + (X'X)^-1)^-1 w <= s^2``;
        with it no linear combination of coefficients is estimated worse by ridge.
        """
        coordinates = self._coordinates
        if self.alpha == 0.0 or not coordinates.any():
            return True
        if self.bias_ols.any():
            # Cross terms of the two biases cannot be outweighed: Delta is 0 where OLS is biased.
            return False
        # (2 / alpha + 1 / d^2)^-1, with alpha in the numerator.
        with np.errstate(over="ignore"):
            relative = (np.sqrt(self.alpha) / self.singular_values) ** 2
        return bool(np.sum(self.alpha * coordinates**2 / (2.0 + relative)) <= self.sigma2)

    # Words and tables

    @property
    def conclusion(self) -> str:
        """What the comparison says, in one or two plain sentences."""
        always = (
            "With ridge the variance never grows: every linear combination of the coefficients "
            "varies at most as much as with OLS, for any alpha >= 0."
        )
        need_not = "The mean squared error need not shrink, because ridge is biased."
        if self.coef is None:
            return f"{always} {need_not} Give coef= to see by how much."
        before, after = self.total_mse_ols, self.total_mse_ridge
        verdict = "smaller" if after < before else "equal" if after == before else "larger"
        source = "taking the estimate for the truth, " if self.plug_in else ""
        where = "holds" if self.ridge_wins_in_mse_matrix else "does not hold"
        return (
            f"{always} {need_not} Here, {source}the total is {verdict}: {after:.6g} with ridge, "
            f"{before:.6g} with OLS; that ridge wins for every linear combination {where} at "
            f"alpha={self.alpha:g} (it does for alpha < {self.theobald_bound:.6g} in any case)."
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per coefficient.

        Returns
        -------
        pandas.DataFrame
            Standard errors and variances of both, the difference of the variances and its share;
            where the coefficients are known also bias, squared bias and mean squared errors.
        """
        variance_ols = self.standard_errors_ols**2
        saved = self._roots_of_diagonal(2, self.difference_root) ** 2
        columns = {
            "std_error_ols": self.standard_errors_ols,
            "std_error_ridge": self.standard_errors_ridge,
            "variance_ols": variance_ols,
            "variance_ridge": self.standard_errors_ridge**2,
            "variance_saved": saved,
            "share_saved": np.where(variance_ols > 0, ratio(saved, variance_ols), 0.0),
        }
        if self.coef is not None:
            columns |= {
                "coef": self.coef,
                "bias": self.bias,
                "squared_bias": self.squared_bias,
                "mse_ols": self.mse_ols,
                "mse_ridge": self.mse_ridge,
            }
        return pd.DataFrame(columns, index=pd.Index(self.feature_names, name="feature"))

    def __repr__(self) -> str:
        n_features = self.basis.shape[0]
        head = (
            f"VarianceComparison: alpha={self.alpha:g}, sigma2={self.sigma2:.6g}, "
            f"{n_features} features, rank {self.singular_values.size}"
        )
        table = self.to_frame().to_string(float_format=lambda v: f"{v:.6g}", max_rows=20)
        return f"{head}\n\n{table}\n\n{self.conclusion}"

    def _repr_html_(self) -> str:
        table = self.to_frame().to_html(float_format=lambda v: f"{v:.6g}", max_rows=20)
        return (
            f"<div><h4>Variance of OLS and ridge: alpha={self.alpha:g}, "
            f"sigma2={self.sigma2:.6g}</h4>{table}<p>{escape(self.conclusion)}</p></div>"
        )

    def _known_coef(self) -> np.ndarray:
        if self.coef is None:
            raise AttributeError(
                "coef: bias and mean squared error depend on the true coefficients, which were "
                "not given. Pass coef= to compare_variance (an estimate will do as a plug-in)."
            )
        return self.coef
