"""MLPs in the place of scikit-learn's, residual networks for raw tables and for images."""

from sknn_resid.neural_network._classifier import MLPClassifier
from sknn_resid.neural_network._gradient_history import GradientHistory
from sknn_resid.neural_network._image_files import ImageFolder
from sknn_resid.neural_network._image_preprocessor import ImagePreprocessor
from sknn_resid.neural_network._regressor import MLPRegressor
from sknn_resid.neural_network._residual_classifier import MLPResidualClassifier
from sknn_resid.neural_network._residual_regressor import MLPResidualRegressor
from sknn_resid.neural_network._resnet_classifier import ResNetClassifier
from sknn_resid.neural_network._tables import TableEncoder

__all__ = [
    "GradientHistory",
    "ImageFolder",
    "ImagePreprocessor",
    "MLPClassifier",
    "MLPRegressor",
    "MLPResidualClassifier",
    "MLPResidualRegressor",
    "ResNetClassifier",
    "TableEncoder",
]
