"""Every test here: no thread is left behind, and the list of warning filters is the same one."""

import threading
import warnings

import pytest

from sknn_resid.engine import runner


def workers():
    return [t for t in threading.enumerate() if t.name.startswith("sknn_resid")]


@pytest.fixture(autouse=True)
def nothing_is_left():
    filters = warnings.filters
    yield
    assert workers() == []
    assert warnings.filters is filters


@pytest.fixture
def rounds(monkeypatch):
    """How many networks were trained together, call by call."""
    sizes = []
    real = runner.train_jobs

    def recorded(jobs, interrupted=None):
        sizes.append(len(jobs))
        return real(jobs, interrupted)

    monkeypatch.setattr(runner, "train_jobs", recorded)
    return sizes
