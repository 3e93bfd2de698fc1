"""Weights that training goes back to, against three plain copies."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sknn_resid.engine.kept import KeptWeights


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("on_host", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_best_weights_of_any_sequence(monkeypatch, keep, on_host, seed):
    rng = np.random.default_rng(seed)
    params = torch.from_numpy(rng.standard_normal(4))
    kept = KeptWeights(params)
    kept._on_host = on_host  # False: the copies of an accelerator
    start = best_start = best = params.clone()
    for epoch in range(40):
        params.copy_(torch.from_numpy(rng.standard_normal(4)))
        lowest = bool(rng.random() < 0.4)
        kept.end_epoch(params, lowest=lowest, keep=keep)
        if lowest:
            best_start = start
            best = params.clone() if keep else best
        start = params.clone()
        if not keep and rng.random() < 0.3:
            kept.keep(params)
            best = params.clone()
        assert torch.equal(kept.best, best), epoch
        assert torch.equal(kept.best_start, best_start), epoch


def test_another_stack_has_another_view_of_the_weights():
    first, second = torch.zeros(3), torch.ones(3)
    kept = KeptWeights(first)
    kept.end_epoch(first, lowest=True, keep=True)
    kept.end_epoch(second, lowest=True, keep=True)
    assert kept.best.eq(1).all()
    assert kept.best_start.eq(0).all()
