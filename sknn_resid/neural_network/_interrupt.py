"""Ctrl-C: who called us decides what it means."""

from __future__ import annotations

import sys

# Modules that fit many models: there an interrupt has to end the whole run, not one fit of it.
_MANY_FITS = (
    "joblib.",
    "sklearn.model_selection.",
    "sklearn.ensemble.",
    "sklearn.multiclass",
    "sklearn.multioutput",
    "sklearn.feature_selection.",
    "sklearn.calibration",
    "sklearn.inspection.",
)


def inside_many_fits() -> bool:
    """Whether this fit is one of many, run by joblib or by a meta-estimator.

    Reads the call stack. It is asked only after an interrupt, so its cost does not matter, and it
    knows what no flag could tell: a sequential joblib run leaves no other trace in its tasks.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).startswith(_MANY_FITS):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
