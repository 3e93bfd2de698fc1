"""`stacked`: the context manager that users write."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import joblib
from joblib.parallel import FallbackToBackend, LokyBackend

from sknn_resid.engine.meeting import attending, current_meeting
from sknn_resid.stacking._backend import StackedBackend, stacked_backend
from sknn_resid.stacking._outer import GroupBackend, reaches_other_machines


class SharedBackend(StackedBackend):
    """What users get: calls that ask for several jobs share their fits out to processes."""

    supports_inner_max_num_threads = True

    def __init__(self, within: StackedBackend, max_stack: int | None, device: str | None) -> None:
        super().__init__(within.rendezvous, within.nesting_level)
        self._max_stack, self._device = max_stack, device
        self._asked = threading.local()

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """The size of the stack: `BaggingClassifier` would fit in n_jobs loops.

        It passes on to `Parallel` what it is told here, so what was asked for is kept for then.
        """
        self._asked.n_jobs = self.default_n_jobs if n_jobs is None else n_jobs
        return super().effective_n_jobs(n_jobs)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **options: Any) -> int:
        """Hand over to processes, or to a backend of this one ``Parallel``."""
        asked, self._asked.n_jobs = getattr(self._asked, "n_jobs", None), None
        if asked is not None and n_jobs != self.default_n_jobs:
            n_jobs = asked
        processes = LokyBackend(
            nesting_level=self.nesting_level, inner_max_num_threads=self.inner_max_num_threads
        )
        # default_n_jobs is what joblib makes of n_jobs=None.
        if n_jobs != self.default_n_jobs and not self._stays_here(**options):
            n_processes = processes.effective_n_jobs(n_jobs)
            if n_processes > 1:
                group = GroupBackend(processes, self._max_stack, self._device, n_processes)
                raise FallbackToBackend(group)
        return super().configure(n_jobs, parallel)

    def _stays_here(
        self, prefer: str | None = None, require: str | None = None, **unused: Any
    ) -> bool:
        if require == "sharedmem" or prefer == "threads":
            return True
        from sknn_resid._device import resolve_device

        return self._device != "cpu" and resolve_device(self._device or "auto").type != "cpu"


def shared_backend(
    max_stack: int | None = None, device: str | None = None, nesting_level: int | None = None
) -> StackedBackend:
    """What ``joblib.parallel_config(backend="stacked", max_stack=..., device=...)`` makes.

    See Also
    --------
    sknn_resid.stacking._backend.stacked_backend : The same, in this process whatever ``n_jobs``.
    """
    within = stacked_backend(max_stack, device, nesting_level)
    if current_meeting() is not None:  # inside a task of one already
        return within
    return SharedBackend(within, max_stack, device)


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
    ``n_jobs=2`` of a search inside (or ``-1``, or that of ``joblib.parallel_config``) shares its
    fits out to as many processes, as it always does, and each of them trains its share as one
    program. Without it everything stays in this process, and so it does where there is an
    accelerator (unless ``device="cpu"`` says that it is not used): processes would fight for it.
    With ``n_jobs=1``, scikit-learn's `BaggingClassifier` and `RFECV` fit in a loop, so leave it out
    there. An integer ``pre_dispatch`` caps the stack. Times in ``cv_results_`` include waiting for
    the others.

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
        backend = shared_backend(max_stack, device)
        if isinstance(around, LokyBackend):
            backend.inner_max_num_threads = around.inner_max_num_threads
    with joblib.parallel_config(backend=backend), attending(current_meeting(), device):
        yield
