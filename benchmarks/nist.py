"""Correct digits on the eleven linear sets of NIST's Statistical Reference Datasets.

Two tables for the coefficients and two for the standard errors: against the exact rational solution
of the float64 inputs (the task that a program is given), and against NIST's certified values (which
rounding the data to float64 puts out of reach, by what the last row says: the digits of the exact
solution of the rounded data). A figure is ``-log10`` of the largest relative error of any
coefficient, the absolute error where the certified value is 0; at most 15 against certified values,
which have 15 digits; 17 means that all are the double nearest to the truth.

Polynomial columns are formed as ``x ** k``. Everyone gets the same arrays.

Expected before measuring: coefficients to at least 15.5 digits and standard errors to at least 15
on all sets against the exact solution; the bound of the last row against certified values.

Usage: ``SKNN_RESID_DATA=folder python benchmarks/nist.py``. A few seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from decimal import Decimal, getcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

import _harness as harness
import numpy as np

sys.path.insert(0, str(harness.ROOT / "tests"))
from linear_model import exact_oracle as oracle

getcontext().prec = 60
Answer = tuple[Any, Any]  # coefficients, standard errors or None; intercept first


def ours(X: np.ndarray, y: np.ndarray, intercept: bool) -> Answer:
    from sknn_resid import OLS

    model = OLS(fit_intercept=intercept).fit(X, y)
    coef, errors = list(model.coef_), list(model.standard_errors_)
    if intercept:
        coef.insert(0, model.intercept_)
        errors.insert(0, model.intercept_standard_error_)
    return coef, errors


def sklearn(X: np.ndarray, y: np.ndarray, intercept: bool) -> Answer:
    from sklearn.linear_model import LinearRegression

    model = LinearRegression(fit_intercept=intercept).fit(X, y)
    coef = list(model.coef_)
    return ([model.intercept_, *coef] if intercept else coef), None


def _with_ones(X: np.ndarray, intercept: bool) -> np.ndarray:
    return np.column_stack([np.ones(len(X)), X]) if intercept else X


def _statsmodels(method: str) -> Any:
    def run(X: np.ndarray, y: np.ndarray, intercept: bool) -> Answer:
        from statsmodels.api import OLS

        found = OLS(y, _with_ones(X, intercept)).fit(method=method)
        return found.params, found.bse

    return run


def _numpy(X: np.ndarray, y: np.ndarray, intercept: bool) -> Answer:
    return np.linalg.lstsq(_with_ones(X, intercept), y, rcond=None)[0], None


def _scipy(driver: str) -> Any:
    def run(X: np.ndarray, y: np.ndarray, intercept: bool) -> Answer:
        from scipy.linalg import lstsq

        return lstsq(_with_ones(X, intercept), y, lapack_driver=driver)[0], None

    return run


CONTESTANTS = {
    "sknn_resid OLS": ours,
    "scikit-learn LinearRegression": sklearn,
    "statsmodels OLS (pinv)": _statsmodels("pinv"),
    "statsmodels OLS (qr)": _statsmodels("qr"),
    "numpy lstsq": _numpy,
    "scipy lstsq (gelsd)": _scipy("gelsd"),
    "scipy lstsq (gelsy)": _scipy("gelsy"),
}
BOUND = "bound of float64 data"


def design(record: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, bool]:
    """Columns without the constant one, target, and whether there is an intercept."""
    X, y = np.array(record["X"], dtype=float), np.array(record["y"], dtype=float)
    degree = record["poly_degree"]
    if degree and degree > 1:
        X = np.column_stack([X[:, 0] ** k for k in range(1, degree + 1)])
    return X, y, bool(record["intercept"])


def exact_answer(X: np.ndarray, y: np.ndarray, intercept: bool) -> tuple[list, list]:
    """Coefficients and standard errors as fractions (the roots to 60 digits)."""
    true = oracle.solve_exactly(X, y[:, None], fit_intercept=intercept)
    df = len(X) - X.shape[1] - intercept
    coef = list(true.coef[0])
    variances = [true.covariance[j][j] for j in range(len(coef))]
    if intercept:
        coef.insert(0, true.intercept[0])
        variances.insert(0, true.intercept_variance)
    scaled = [true.rss[0] / df * v for v in variances]
    roots = [(Decimal(v.numerator) / Decimal(v.denominator)).sqrt() for v in scaled]
    return coef, [Fraction(v) for v in roots]


def digits(got: Any, truth: list[Fraction], most: float) -> float:
    """Correct digits of the worst entry, at most ``most``."""
    worst = most
    for value, true in zip(got, truth, strict=True):
        if not np.isfinite(float(value)):
            return float("nan")
        error = abs(Fraction(value if isinstance(value, Fraction) else float(value)) - true)
        error /= abs(true) or 1
        if error:
            size = Decimal(error.numerator).log10() - Decimal(error.denominator).log10()
            worst = min(worst, 0.0 - float(size))
    return worst


def measure(data: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per set and contestant."""
    rows = []
    for name, record in data.items():
        X, y, intercept = design(record)
        exact = exact_answer(X, y, intercept)
        text = record["certified_text"]
        certified = tuple([Fraction(v) for v in text[key]] for key in ("coef", "coef_se"))
        answers = {}
        for contestant, run in CONTESTANTS.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # some warn of the condition number
                answers[contestant] = run(X, y, intercept)
        answers[BOUND] = exact
        for contestant, answer in answers.items():
            row: dict[str, Any] = {"set": name, "contestant": contestant}
            for quantity, got, true, reference in zip(
                ("coef", "se"), answer, exact, certified, strict=True
            ):
                if got is not None:
                    row[f"{quantity}_exact"] = round(digits(got, true, 17.0), 2)
                    row[f"{quantity}_certified"] = round(digits(got, reference, 15.0), 2)
            rows.append(row)
    return rows


TABLES = {
    "coef_exact": "Coefficients, against the exact solution of the float64 inputs",
    "coef_certified": "Coefficients, against the certified values",
    "se_exact": "Standard errors, against the exact solution of the float64 inputs",
    "se_certified": "Standard errors, against the certified values",
}


def print_tables(rows: list[dict[str, Any]]) -> None:
    """One table per quantity and truth: contestants down, sets across, the worst set last."""
    sets = list(dict.fromkeys(row["set"] for row in rows))
    for key, title in TABLES.items():
        lines = []
        for contestant in [*CONTESTANTS, BOUND]:
            figures = [row[key] for row in rows if row["contestant"] == contestant and key in row]
            if figures and not (contestant == BOUND and key.endswith("exact")):
                worst = min(figures) if all(f == f for f in figures) else float("nan")
                lines.append([contestant, *(f"{f:.1f}" for f in [*figures, worst])])
        print(f"\n{title}\n")
        print(harness.format_table(["digits", *sets, "worst"], lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", help="names (default: all)")
    parser.add_argument("--output", type=Path, default=harness.RESULTS / "nist.json")
    options = parser.parse_args()
    folder = os.environ.get("SKNN_RESID_DATA")
    if not folder:
        parser.error("set SKNN_RESID_DATA to the folder of real data (nist/ in it)")
    data = json.loads((Path(folder) / "nist" / "nist_strd_linear.json").read_text())
    if options.sets:
        data = {name: data[name] for name in options.sets}
    rows = measure(data)
    print_tables(rows)
    notes = [
        "Digits: -log10 of the largest relative error of any coefficient (absolute for a truth "
        "of 0); at most 17 against the exact solution, 15 against certified values."
    ]
    harness.write_results(options.output, "nist", rows, notes)


if __name__ == "__main__":
    main()
