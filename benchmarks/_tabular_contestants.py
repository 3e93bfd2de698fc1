"""The contestants of ``tabular_accuracy.py``: each takes the same raw frame.

Ours gets the frame and nothing else. Every peer stands behind the preparation that its manual asks
for, and the preparation is part of its time:

* ``sklearn_mlp``: scikit-learn's ``MLPClassifier`` / ``MLPRegressor``. Missing numbers filled with
  the median beside an indicator column, numbers standardised, categories one-hot with a level for
  missing ones, the regression target standardised.
* ``hist_gradient_boosting``: ``HistGradientBoosting*`` with ``categorical_features="from_dtype"``;
  strings are made pandas categories, missing values stay. It refuses a column that is missing
  altogether and one with more than 255 levels; such sets are counted separately.
* ``realmlp``: pytabkit's ``RealMLP_TD_*`` (Holzmueller et al. 2024). It refuses missing numbers:
  filled as for ``sklearn_mlp``; strings are made categories.
* ``rtdl_mlp``, ``rtdl_resnet``, ``tabm``: see ``_tabular_torch.py``.

All at their defaults, with the split's seed as ``random_state``.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import numpy as np
import pandas as pd
from _tabular_sets import categorical_columns
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

OURS = "ours"
# Contestant to the distributions it needs, as imported.
NEEDS = {
    OURS: ("sknn_resid",),
    "sklearn_mlp": (),
    "hist_gradient_boosting": (),
    "rtdl_mlp": ("rtdl_revisiting_models",),
    "rtdl_resnet": ("rtdl_revisiting_models",),
    "realmlp": ("pytabkit",),
    "tabm": ("tabm", "rtdl_num_embeddings"),
}
FAST = (OURS, "sklearn_mlp", "hist_gradient_boosting")


def missing_packages(method: str) -> list[str]:
    """Packages that ``method`` needs and that are not installed."""
    missing = [name for name in NEEDS[method] if importlib.util.find_spec(name) is None]
    if method == OURS and not missing:
        import sknn_resid

        if not hasattr(sknn_resid, "MLPResidualClassifier"):
            missing.append("sknn_resid with MLPResidualClassifier")
    return missing


def contestant(method: str, *, classes: bool, seed: int) -> Any:
    """An unfitted contestant with ``fit`` and ``predict_proba`` or ``predict``."""
    for name in NEEDS[method]:
        importlib.import_module(name)  # now, for the import is no part of the fit's time
    if method == OURS:
        import sknn_resid

        if classes:
            return sknn_resid.MLPResidualClassifier(random_state=seed)
        return sknn_resid.MLPResidualRegressor(random_state=seed)
    if method == "sklearn_mlp":
        return SklearnMLP(classes=classes, seed=seed)
    if method == "hist_gradient_boosting":
        return HistGradientBoosting(classes=classes, seed=seed)
    if method == "realmlp":
        return RealMLP(classes=classes, seed=seed)
    from _tabular_torch import TorchPeer

    return TorchPeer(method, classes=classes, seed=seed)


class Prepared:
    """A pipeline that is built when the training frame is known."""

    def __init__(self, *, classes: bool, seed: int) -> None:
        self.classes = classes
        self.seed = seed

    def fit(self, X: pd.DataFrame, y: np.ndarray) -> Prepared:
        """Build the pipeline and fit it."""
        self.pipeline = self.build(X, y)
        self.pipeline.fit(X, y)
        if self.classes:
            self.classes_ = self.pipeline.classes_
        return self

    def build(self, X: pd.DataFrame, y: np.ndarray) -> Any:
        """Return the unfitted pipeline."""
        raise NotImplementedError

    def predict(self, X: pd.DataFrame) -> np.ndarray:
        """Predict with the pipeline."""
        return self.pipeline.predict(X)

    def predict_proba(self, X: pd.DataFrame) -> np.ndarray:
        """Predict with the pipeline."""
        return self.pipeline.predict_proba(X)


class SklearnMLP(Prepared):
    """scikit-learn's MLP behind imputer, scaler and one-hot encoder."""

    def build(self, X: pd.DataFrame, y: np.ndarray) -> Any:
        """Return the unfitted pipeline."""
        categorical = categorical_columns(X)
        present = [name for name in X.columns if X[name].notna().any()]
        numbers = [name for name in present if name not in categorical]
        columns = ColumnTransformer(
            [
                (
                    "numbers",
                    make_pipeline(
                        SimpleImputer(strategy="median", add_indicator=True), StandardScaler()
                    ),
                    numbers,
                ),
                (
                    "categories",
                    OneHotEncoder(handle_unknown="ignore", sparse_output=False),
                    [name for name in present if name in categorical],
                ),
            ]
        )
        if self.classes:
            return make_pipeline(columns, MLPClassifier(random_state=self.seed))
        network = MLPRegressor(random_state=self.seed)
        return make_pipeline(
            columns, TransformedTargetRegressor(network, transformer=StandardScaler())
        )


class HistGradientBoosting(Prepared):
    """scikit-learn's boosted trees; one model for each target where there are several."""

    def build(self, X: pd.DataFrame, y: np.ndarray) -> Any:
        """Return the unfitted pipeline."""
        if self.classes:
            return make_pipeline(
                CategoryFrame(), HistGradientBoostingClassifier(random_state=self.seed)
            )
        trees: Any = HistGradientBoostingRegressor(random_state=self.seed)
        if y.ndim == 2:
            from sklearn.multioutput import MultiOutputRegressor

            trees = MultiOutputRegressor(trees)
        return make_pipeline(CategoryFrame(), trees)


class RealMLP(Prepared):
    """pytabkit's RealMLP-TD."""

    def build(self, X: pd.DataFrame, y: np.ndarray) -> Any:
        """Return the unfitted pipeline."""
        import pytabkit

        kind = pytabkit.RealMLP_TD_Classifier if self.classes else pytabkit.RealMLP_TD_Regressor
        network = kind(random_state=self.seed, device="cpu", n_threads=1, verbosity=0)
        return make_pipeline(CategoryFrame(impute=True), network)


class CategoryFrame(TransformerMixin, BaseEstimator):
    """Frame to frame: whatever is no number becomes a pandas category of its training levels.

    Parameters
    ----------
    impute : bool, default=False
        Whether missing numbers become the median, with an indicator column beside them, and
        columns without any value are left out.
    """

    def __init__(self, *, impute: bool = False) -> None:
        self.impute = impute

    def fit(self, X: pd.DataFrame, y: Any = None) -> CategoryFrame:
        """Learn levels and medians."""
        categorical = categorical_columns(X)
        self.levels_ = {
            name: pd.CategoricalDtype(sorted(X[name].dropna().astype(str).unique()))
            for name in categorical
        }
        numbers = [name for name in X.columns if name not in categorical]
        self.absent_ = [n for n in numbers if self.impute and X[n].isna().all()]
        self.medians_ = {n: X[n].median() for n in numbers if n not in self.absent_}
        self.gaps_ = [n for n in self.medians_ if X[n].isna().any()]
        return self

    def transform(self, X: pd.DataFrame) -> pd.DataFrame:
        """Convert."""
        out = X.drop(columns=self.absent_)
        for name, levels in self.levels_.items():
            text = out[name].astype(str)
            out[name] = text.where(out[name].notna() & text.isin(levels.categories)).astype(levels)
        if not self.impute:
            return out
        for name in self.gaps_:
            out[f"{name} is missing"] = out[name].isna().astype(np.float32)
        for name, median in self.medians_.items():
            out[name] = out[name].fillna(median)
        return out
