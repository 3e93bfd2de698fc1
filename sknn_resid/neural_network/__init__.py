"""Multi-layer perceptrons in the place of scikit-learn's."""

from sknn_resid.neural_network._classifier import MLPClassifier
from sknn_resid.neural_network._regressor import MLPRegressor

__all__ = ["MLPClassifier", "MLPRegressor"]
