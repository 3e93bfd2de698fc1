"""Fixtures for every test. Nothing here hides a warning: pyproject.toml makes them errors."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _seed_numpy():
    """Start every test from the same global state of numpy.

    The package reads that state for ``random_state=None`` only; with the seed, a test that
    leaves ``random_state`` out is the same test each time, alone or after others.
    """
    np.random.seed(20_151_210)


@pytest.fixture(scope="session")
def data_dir():
    """Folder of real data, named by the environment variable SKNN_RESID_DATA."""
    folder = os.environ.get("SKNN_RESID_DATA")
    if not folder:
        pytest.skip("needs real data: set SKNN_RESID_DATA to its folder")
    path = Path(folder)
    if not path.is_dir():
        # A typing error must not pass as "no data here".
        pytest.fail(f"SKNN_RESID_DATA names a folder that does not exist: {folder}")
    return path


@pytest.fixture(autouse=True)
def ctrl_c_is_heard():
    """Python's own handler of Ctrl-C, also where the suite was started with SIGINT ignored.

    A shell starts background jobs that way. The tests that press Ctrl-C would then wait for ever
    for a fit that nothing interrupts.
    """
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)
