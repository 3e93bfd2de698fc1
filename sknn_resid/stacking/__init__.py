"""Many fits as one program: the joblib backend "stacked" and the rendezvous behind it.

Importing this package makes the backend known to joblib; it does not import torch.
"""

from joblib import register_parallel_backend

from sknn_resid.stacking._context import shared_backend, stacked

__all__ = ["stacked"]

register_parallel_backend("stacked", shared_backend)
