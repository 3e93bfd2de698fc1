"""Fixtures that several files of this folder ask for by name."""

import pytest

from sknn_resid.linear_model import _compiled


@pytest.fixture(params=["compiled", "numpy"])
def with_and_without_kernels(request, monkeypatch):
    """Everything that asks for it holds with the compiled kernels and without them."""
    if request.param == "numpy":
        monkeypatch.setattr(_compiled, "KERNELS", None)
    elif _compiled.KERNELS is None:
        pytest.skip("the compiled parts are not there")
