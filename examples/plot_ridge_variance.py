"""
Ridge varies less than least squares, in every direction
========================================================

Four statements that courses on regression set as homework, checked on real data:

1. least squares by the singular value decomposition equals the normal equations, as long as these
   can be trusted;
2. ridge regression shrinks the fit along the directions in which the data vary little;
3. ``Var[w_ols] - Var[w_ridge]`` is positive semi-definite: no linear combination of the
   coefficients varies more with ridge, whatever the penalty;
4. the mean squared error need not shrink, because ridge is biased.

Run it with ``python examples/plot_ridge_variance.py``; it takes a few seconds.
"""

# %%
# Two tables
# ----------
# Diabetes, 442 patients and ten measurements, comes with scikit-learn. Longley's table of the US
# economy, 1947 to 1962, is a reference problem of NIST (Statistical Reference Datasets, linear
# regression): sixteen rows, six columns that all grow with the years.

import os
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_diabetes
from sklearn.preprocessing import StandardScaler

from sknn_resid import OLS, Ridge, RidgeCV
from sknn_resid.linear_model import compare_variance, ridge_path

longley = pd.DataFrame(
    [
        [60323, 83.0, 234289, 2356, 1590, 107608, 1947],
        [61122, 88.5, 259426, 2325, 1456, 108632, 1948],
        [60171, 88.2, 258054, 3682, 1616, 109773, 1949],
        [61187, 89.5, 284599, 3351, 1650, 110929, 1950],
        [63221, 96.2, 328975, 2099, 3099, 112075, 1951],
        [63639, 98.1, 346999, 1932, 3594, 113270, 1952],
        [64989, 99.0, 365385, 1870, 3547, 115094, 1953],
        [63761, 100.0, 363112, 3578, 3350, 116219, 1954],
        [66019, 101.2, 397469, 2904, 3048, 117388, 1955],
        [67857, 104.6, 419180, 2822, 2857, 118734, 1956],
        [68169, 108.4, 442769, 2936, 2798, 120445, 1957],
        [66513, 110.8, 444546, 4681, 2637, 121950, 1958],
        [68655, 112.6, 482704, 3813, 2552, 123366, 1959],
        [69564, 114.2, 502601, 3931, 2514, 125368, 1960],
        [69331, 115.7, 518173, 4806, 2572, 127852, 1961],
        [70551, 116.9, 554894, 4007, 2827, 130081, 1962],
    ],
    columns=["employed", "prices", "GNP", "unemployed", "army", "population", "year"],
)
employed = longley.pop("employed")
patients, progression = load_diabetes(return_X_y=True, as_frame=True)

# %%
# Least squares by the SVD, and by the normal equations
# -----------------------------------------------------
# With ``X = U D V'`` (columns centred) the solution is ``w = V D^-1 U'y``; the normal equations ask
# for ``w = (X'X)^-1 X'y``. On the diabetes table the two agree. In Longley's, whose columns hardly
# differ in what they say, ``X'X`` has the square of the condition number of ``X``, and half of the
# digits are gone. NIST certifies the coefficient of the year as 1829.15146461355.


def normal_equations(X, y):
    """Coefficients, the intercept first."""
    A = np.column_stack([np.ones(len(X)), X])
    return np.linalg.solve(A.T @ A, A.T @ y)


ols = OLS().fit(patients, progression)
difference = np.abs(ols.coef_ - normal_equations(patients, progression)[1:]).max()
print(f"diabetes: the two solutions differ by {difference:.1e} at most")

certified = 1829.15146461355
ols_longley = OLS().fit(longley, employed)
print(f"Longley, coefficient of the year: certified  {certified:.11f}")
print(f"                                  by the SVD {ols_longley.coef_[-1]:.11f}")
print(
    f"                                  normal eq. {normal_equations(longley, employed)[-1]:.11f}"
)
print(f"\n{ols_longley.summary()}\n")

# %%
# Ridge shrinks the directions of little variance
# -----------------------------------------------
# Along the singular direction j ridge keeps the part ``d_j^2 / (d_j^2 + alpha)`` of the fit. The
# penalty is chosen by exact leave-one-out. Columns are standardised first, because a penalty
# compares coefficients and these have units.

Z = pd.DataFrame(StandardScaler().fit_transform(patients), columns=patients.columns)
ridge = RidgeCV().fit(Z, progression)
path = ridge_path(Z, progression, alphas=np.geomspace(0.01, 1e5, 60))
print(f"diabetes: leave-one-out chooses alpha = {ridge.alpha_:.3g}")
print("directions, widest first: d =", np.round(ridge.singular_values_, 1))
print("part that is kept:            ", np.round(ridge.shrinkage_, 3))

# %%
# The variance falls in every direction
# -------------------------------------
# ``Delta = Var[w_ols] - Var[w_ridge]`` is ``sigma^2 V diag(g) V'`` with ``g_j = alpha (2 + alpha /
# d_j^2) / (d_j^2 + alpha)^2``. No g_j is negative, so no eigenvalue of Delta is. Computed in this
# form none is numerically either, and all keep their digits; those of the difference of two rounded
# matrices do not.

longley_z = StandardScaler().fit_transform(longley)
sigma2 = ols_longley.sigma2_
for alpha in (1e-12, 0.03, 10.0):
    comparison = compare_variance(longley_z, alpha, sigma2)
    naive = np.linalg.eigvalsh(comparison.cov_ols - comparison.cov_ridge)[0]
    print(
        f"Longley, alpha = {alpha:g}: smallest eigenvalue of Delta in this form "
        f"{comparison.eigenvalues[-1]:.3e}, of the difference of two matrices {naive:.3e}"
    )

# %%
# The error need not fall
# -----------------------
# Ridge is biased towards 0. In the whole matrix of mean squared errors it wins for any penalty
# below Theobald's bound ``2 sigma^2 / |w|^2``, and may lose beyond. As if the estimate of least
# squares on the diabetes table were the truth:

truth = OLS().fit(Z, progression)
noise = float(np.sum((progression - truth.predict(Z)) ** 2)) / (len(Z) - 11)
print(f"\n{'alpha':>8}{'variance':>12}{'bias^2':>12}{'MSE':>12}{'ridge wins':>14}")
for alpha in (0.0, 1.0, 10.0, 100.0, 10_000.0):
    c = compare_variance(Z, alpha, noise, coef=truth.coef_)
    variance, bias = np.trace(c.cov_ridge), float(np.sum(c.bias**2))
    wins = c.total_mse_ridge < c.total_mse_ols
    print(f"{alpha:8g}{variance:12.1f}{bias:12.1f}{c.total_mse_ridge:12.1f}{wins!s:>14}")
print(f"Theobald's bound: alpha < {c.theobald_bound:.3g}\n\n{c.conclusion}")

# %%
# The pictures
# ------------
# They go to ``examples/output``, or to the folder that the environment variable
# ``SKNN_RESID_OUTPUT`` names.

try:
    import matplotlib.pyplot as plt
except ModuleNotFoundError:
    raise SystemExit(
        "\nThe numbers are complete; pictures need matplotlib: pip install 'sknn-resid[plot]'"
    ) from None

from sknn_resid.inspection import (
    RidgePathDisplay,
    ShrinkageDisplay,
    VarianceComparisonDisplay,
)

figure, panels = plt.subplots(2, 2, figsize=(13, 9), layout="constrained")
RidgePathDisplay.from_path(path, alpha_chosen=ridge.alpha_, ax=panels[0, 0])
panels[0, 0].set_title("Diabetes: coefficients of the standardised columns")
ShrinkageDisplay.from_path(
    ridge_path(Z, progression, alphas=[1.0, ridge.alpha_, 1000.0]), n_curves=3, ax=panels[0, 1]
)
panels[0, 1].set_title("Diabetes: narrow directions lose their part first")
VarianceComparisonDisplay.from_estimator(
    Ridge(alpha=0.03).fit(pd.DataFrame(longley_z, columns=longley.columns), employed),
    ax=panels[1, 0],
)
panels[1, 0].set_title("Longley: standard errors")
VarianceComparisonDisplay.from_comparison(
    compare_variance(longley_z, 0.03, sigma2), ax=panels[1, 1], kind="eigenvalue"
)

default_folder = Path(__file__).resolve().parent / "output"
folder = Path(os.environ.get("SKNN_RESID_OUTPUT", default_folder))
folder.mkdir(parents=True, exist_ok=True)
picture = folder / "ridge_variance.png"
figure.savefig(picture, dpi=100)
print(f"\npictures: {picture}")
