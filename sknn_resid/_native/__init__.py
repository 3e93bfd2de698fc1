"""The compiled parts, where they were built: one function a part, None where it is missing.

Whoever asks has another way to the same result. ``SKNN_RESID_NATIVE=0`` in the environment when the
package is first imported leaves them out (to compare, or to look for the cause of a difference).
"""

from __future__ import annotations

import importlib
import os
from functools import cache
from types import ModuleType

PARTS = ("steps", "residual", "forward", "least_squares")


@cache
def compiled(name: str) -> ModuleType | None:
    """The compiled module ``_<name>``, or None where it was not built or is switched off."""
    if os.environ.get("SKNN_RESID_NATIVE", "1") == "0":
        return None
    try:
        return importlib.import_module(f"sknn_resid._native._{name}")
    except ImportError:
        return None
