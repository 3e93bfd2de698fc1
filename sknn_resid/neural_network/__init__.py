"""Multi-layer perceptrons in the place of scikit-learn's, and raw tables as their input."""

from sknn_resid.neural_network._classifier import MLPClassifier
from sknn_resid.neural_network._regressor import MLPRegressor
from sknn_resid.neural_network._tables import TableEncoder

__all__ = ["MLPClassifier", "MLPRegressor", "TableEncoder"]
