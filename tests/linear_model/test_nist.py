"""The eleven linear sets of NIST's Statistical Reference Datasets.

Float64 cannot hold the decimal data, so there are two truths: the rational solution of the float64
inputs, which the kernels must round correctly, and the certified values, to which no method comes
nearer than the rounding of the data allows.
"""

import json
from decimal import Decimal, getcontext
from fractions import Fraction

import numpy as np
import pytest
from linear_model import exact_oracle as oracle

from sknn_resid.linear_model._least_squares import covariance, prepare, solve

SETS = [
    "Norris",
    "Pontius",
    "NoInt1",
    "NoInt2",
    "Filip",
    "Longley",
    "Wampler1",
    "Wampler2",
    "Wampler3",
    "Wampler4",
    "Wampler5",
]
getcontext().prec = 60


@pytest.fixture(scope="module")
def nist(data_dir):
    return json.loads((data_dir / "nist" / "nist_strd_linear.json").read_text())


def problem_of(record):
    """Design matrix without the intercept's column, target, whether there is an intercept."""
    X, y = np.array(record["X"], dtype=float), np.array(record["y"], dtype=float)
    degree = record["poly_degree"]
    if degree and degree > 1:
        X = np.column_stack([X[:, 0] ** k for k in range(1, degree + 1)])
    return X, y, record["intercept"]


def digits(got, truth):
    """-log10 of the relative error; of the absolute one for a truth of 0."""
    error = abs(Fraction(float(got)) - truth) / (abs(truth) or 1)
    return (
        float("inf")
        if error == 0
        else -float(Decimal(error.numerator).log10()) + float(Decimal(error.denominator).log10())
    )


def root(fraction):
    return Fraction((Decimal(fraction.numerator) / Decimal(fraction.denominator)).sqrt())


def found_and_exact(record):
    """Coefficients and standard errors of the kernels, and the exact ones of the float64 data."""
    X, y, intercept = problem_of(record)
    problem = prepare(X, y[:, None], fit_intercept=intercept)
    solution, spread = solve(problem), covariance(problem)
    assert solution.refined
    assert spread.refined
    exact = oracle.solve_exactly(X, y[:, None], fit_intercept=intercept)
    df = len(X) - X.shape[1] - intercept
    coef, variance = list(solution.coef[0]), list(np.diag(spread.coef))
    true, true_variance = list(exact.coef[0]), [exact.covariance[j][j] for j in range(X.shape[1])]
    if intercept:
        coef.insert(0, solution.intercept[0])
        variance.insert(0, spread.intercept_variance)
        true.insert(0, exact.intercept[0])
        true_variance.insert(0, exact.intercept_variance)
    errors = np.sqrt(solution.rss[0] / df) * np.sqrt(variance)
    true_errors = [root(exact.rss[0] / df * v) for v in true_variance]
    return coef, errors, true, true_errors


@pytest.mark.parametrize("name", SETS)
def test_against_the_exact_solution_of_the_inputs(nist, name):
    coef, errors, true, true_errors = found_and_exact(nist[name])
    assert min(map(digits, coef, true)) >= 15.5
    assert min(map(digits, errors, true_errors)) >= 15.0


@pytest.mark.parametrize("name", SETS)
def test_against_the_certified_values(nist, name):
    """As near as the exact solution of the rounded data is, which is the bound of any method."""
    record = nist[name]
    coef, errors, true, true_errors = found_and_exact(record)
    certified = record["certified_text"]
    for got, best, texts in (
        (coef, true, certified["coef"]),
        (errors, true_errors, certified["coef_se"]),
    ):
        for value, exact, text in zip(got, best, texts, strict=True):
            target = Fraction(text)
            bound = abs(Fraction(float(exact)) - target)
            # Plus what rounding the answer to float64 may cost.
            rounding = Fraction(float(np.spacing(abs(float(exact))))) * 4
            assert abs(Fraction(float(value)) - target) <= bound + rounding


@pytest.mark.parametrize("name", ["Wampler1", "Wampler2"])
def test_an_exact_fit_leaves_nothing(nist, name):
    """y is a polynomial of x; in Wampler1 all numbers are integers, so nothing at all is left."""
    X, y, _ = problem_of(nist[name])
    rss = solve(prepare(X, y[:, None])).rss[0]
    assert rss == 0.0 if name == "Wampler1" else rss <= 1e-30 * (y @ y)
