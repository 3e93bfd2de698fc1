"""`stacked`: the context manager that users write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import joblib

from sknn_resid.engine.meeting import attending, current_meeting
from sknn_resid.stacking._backend import StackedBackend, stacked_backend
from sknn_resid.stacking._outer import GroupBackend, reaches_other_machines


@contextmanager
def stacked(max_stack: int | None = None, device: str | None = None) -> Iterator[None]:
    """Train all networks of a search, a cross-validation or an ensemble as one program.

    Whatever in scikit-learn fits several estimators through joblib (``GridSearchCV``,
    ``cross_validate``, ``BaggingClassifier``, ``OneVsRestClassifier`` and so on, also nested) runs
    unchanged inside; the networks among the estimators, bare or in a ``Pipeline``, are trained
    together. Results are those of ``n_jobs=1``, up to rounding.

    Parameters
    ----------
    max_stack : int, default=None
        Cap on how many fits are under way at the same time; None for 256. Memory is a second cap:
        a fit is begun as long as the data of all of them stay under a quarter of what is free.
    device : str, default=None
        Device to train on, such as ``"cuda"``, in the place of each estimator's own ``device``; the
        refit of a search included. None leaves it to the estimators.

    Raises
    ------
    ValueError
        If ``max_stack`` is no positive integer, or the device is not there.

    See Also
    --------
    joblib.parallel_config : ``parallel_config(backend="stacked")`` chooses the same backend.

    Notes
    -----
    ``n_jobs`` is ignored inside, but for what scikit-learn itself makes of it: with ``n_jobs=1``,
    `BaggingClassifier` and `RFECV` fit in a loop, so leave it out there. An integer
    ``pre_dispatch`` caps the stack. Times in ``cv_results_`` include waiting for the others.

    Under ``parallel_config(backend="dask")``, or ``"ray"``, that backend stays: each of its workers
    gets groups of fits and trains each group together.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sknn_resid import MLPClassifier, stacked
    >>> X, y = load_iris(return_X_y=True)
    >>> net = MLPClassifier(hidden_layer_sizes=(20,), learning_rate_init=0.05, random_state=0)
    >>> model = make_pipeline(StandardScaler(), net)
    >>> search = GridSearchCV(model, {"mlpclassifier__alpha": [1e-4, 1e-2, 1.0]})
    >>> with stacked():
    ...     search = search.fit(X, y)
    >>> len(search.cv_results_["params"]), bool(search.best_score_ > 0.9)
    (3, True)
    """
    around, _ = joblib.parallel.get_active_backend()
    if isinstance(around, StackedBackend):  # already inside
        backend = around
    elif reaches_other_machines(around):
        backend = GroupBackend(around, max_stack, device)
    else:
        backend = stacked_backend(max_stack, device)
    with joblib.parallel_config(backend=backend), attending(current_meeting(), device):
        yield
