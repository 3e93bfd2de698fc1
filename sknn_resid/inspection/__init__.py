"""Looking into fitted models: numbers first, a Display in scikit-learn's form second.

Importing this package imports neither matplotlib nor torch.
"""

from sknn_resid.inspection._ridge_path_display import RidgePathDisplay
from sknn_resid.inspection._shrinkage_display import ShrinkageDisplay
from sknn_resid.inspection._variance_display import VarianceComparisonDisplay

__all__ = ["RidgePathDisplay", "ShrinkageDisplay", "VarianceComparisonDisplay"]
