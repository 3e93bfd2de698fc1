"""Weights that training goes back to, against three plain copies."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sknn_resid.engine.kept import Copies, KeptWeights


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(("on_host", "waiting"), [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize("seed", range(5))
def test_best_weights_of_any_sequence(keep, on_host, waiting, seed):
    rng = np.random.default_rng(seed)
    params = torch.from_numpy(rng.standard_normal(4))
    # an accelerator's copies wait for each other, or are made one by one
    kept = KeptWeights(params, Copies() if waiting else None)
    kept._on_host = on_host
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


@pytest.mark.parametrize("together", [True, False])
def test_copies_of_many_models_are_made_at_once(together):
    """By one call where torch has it; a second call makes none of them again."""
    copies = Copies()
    if not together:
        copies._together = None
    weights = [torch.full((4,), float(m)) for m in range(3)]
    kept = [KeptWeights(params, copies) for params in weights]
    for params, one in zip(weights, kept, strict=True):
        params.add_(10)
        one.end_epoch(params, lowest=True, keep=True)
    copies.make()
    for params in weights:
        params.zero_()
    copies.make()
    for m, one in enumerate(kept):
        assert one.best.eq(10.0 + m).all()
        assert one.best_start.eq(float(m)).all()
