"""The folded form against the module it comes from, with oneDNN's operators and without them."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from engine.test_resnet import generator, small, trained_looking

from sknn_resid.engine import resnet_inference
from sknn_resid.engine.resnet_inference import (
    AveragedViews,
    InferenceNetwork,
    fuses,
    views_of,
)

SPECS = [
    small(shortcut=shortcut, preactivation=preactivation, option_a_padding="end")
    for shortcut, preactivation in itertools.product(("A", "B", "C", None), (False, True))
] + [
    small(50, stem="imagenet", stride_in_1x1=True, shortcut=shortcut, preactivation=preactivation)
    for shortcut, preactivation in (("A", False), ("B", True), (None, False))
]
CPU = torch.device("cpu")


def images(n=5, channels=3, h=20, w=17, dtype=torch.float64):
    return torch.randn(n, channels, h, w, dtype=dtype, generator=generator(9))


def rounding(model, dtype):
    """One unit in the last place for every layer."""
    return torch.finfo(dtype).eps * model.spec.depth


def scale(model, values, x, stage):
    """What errors are measured by: logits may cancel, so there the norms of both factors."""
    if stage == "fc":
        return model.features(x).norm() * model.fc.weight.norm()
    return values.norm()


@pytest.fixture(params=["fused", "plain"])
def path(request, monkeypatch):
    """Both ways to the same numbers."""
    if request.param == "plain":
        monkeypatch.setattr(resnet_inference, "fuses", lambda dtype, device: False)
    elif not fuses(torch.float32, CPU):
        pytest.skip("torch was built without oneDNN's operators")


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_equals_the_module_in_float64(spec):
    model = trained_looking(spec).eval()
    network = InferenceNetwork(model, torch.float64)
    x = images()
    for stage in spec.feature_names:
        want = model.features(x, stage)
        torch.testing.assert_close(network.features(x, stage), want, rtol=1e-9, atol=1e-9)
    assert network(x).dtype == torch.float64


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("path")
def test_equals_the_module_in_lower_precision(spec, dtype):
    model = trained_looking(spec).eval()
    network = InferenceNetwork(model, dtype, sizes=(5, 20, 17))
    x = images()
    for stage in ("stem", "layer2", "fc"):
        got, want = network.features(x, stage), model.features(x, stage)
        assert got.dtype == (torch.float32 if stage in ("avgpool", "fc") else dtype)
        assert (got - want).norm() <= rounding(model, dtype) * scale(model, want, x, stage), stage
    assert network(x).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"depth": 18, "stem": "imagenet"}])
@pytest.mark.usefixtures("path")
def test_any_size_through_one_network(dtype, options):
    model = trained_looking(small(in_channels=1, **options)).eval()
    network = InferenceNetwork(model, dtype, sizes=(64, 8, 8))
    for n, (h, w) in itertools.product((0, 1, 3), ((1, 1), (9, 4))):
        x = images(n, 1, h, w)
        for stage in ("stem", "layer2", "avgpool", "fc"):
            want = model.features(x, stage)
            got = network.features(x, stage)
            assert got.shape == want.shape
            assert (got - want).norm() <= rounding(model, dtype) * scale(model, want, x, stage)


def test_layouts_and_dtypes_of_images_do_not_matter():
    network = InferenceNetwork(trained_looking(small()))
    x = images(dtype=torch.float32)
    want = network(x)
    assert torch.equal(network(x.contiguous(memory_format=torch.channels_last)), want)
    assert torch.equal(network(x.double()), want)
    assert torch.equal(network(x.repeat_interleave(2, 3)[..., ::2]), want)


@pytest.mark.usefixtures("path")
def test_images_are_left_as_they_are():
    """Nothing is added in place to what was handed in."""
    network = InferenceNetwork(trained_looking(small(preactivation=True)))
    x = images(dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    before = x.clone()
    first = network(x)
    assert torch.equal(x, before)
    assert torch.equal(network(x), first)


def test_weights_are_copies_and_the_mode_does_not_matter():
    model = trained_looking(small(), dtype=torch.float32).train()
    network = InferenceNetwork(model)
    x = images(dtype=torch.float32)
    want = network(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(network(x), want)
    assert model.training


def test_many_threads_use_one_network():
    network = InferenceNetwork(trained_looking(small(depth=14)))
    batches = [images(n, dtype=torch.float32) for n in (1, 2, 3, 4, 5, 6, 7, 8)] * 4
    want = [network(x) for x in batches]
    with ThreadPoolExecutor(8) as pool:
        for got, alone in zip(pool.map(network, batches), want, strict=True):
            torch.testing.assert_close(got, alone, rtol=1e-5, atol=1e-5)


def test_one_batch_or_many():
    network = InferenceNetwork(trained_looking(small()), torch.float64)
    x = images(7)
    torch.testing.assert_close(torch.cat([network(b) for b in x.split(2)]), network(x))


def test_unknown_stage():
    network = InferenceNetwork(trained_looking(small()))
    with pytest.raises(ValueError, match=r"stage: must be one of .*'layer3'.*got 'layer4'"):
        network.features(images(), "layer4")


# -- views --------------------------------------------------------------------------------------


def test_views_by_hand():
    x = torch.arange(16 * 8, dtype=torch.float32).view(1, 1, 16, 8)
    assert [torch.equal(v, x) for v in views_of(x, "none")] == [True]
    plain, mirrored = views_of(x, "flip")
    assert torch.equal(plain, x)
    np.testing.assert_array_equal(mirrored[0, 0, 0], [7, 6, 5, 4, 3, 2, 1, 0])
    views = list(views_of(x, "ten_crop"))
    assert len(views) == 10
    assert {tuple(v.shape) for v in views} == {(1, 1, 14, 7)}
    corners = [int(v[0, 0, 0, 0]) for v in views[::2]]
    assert corners == [0, 1, 16, 17, 8]
    for view, mirrored in itertools.pairwise(views[::2] + views[1::2]):
        assert view.shape == mirrored.shape
    for view, mirrored in zip(views[::2], views[1::2], strict=True):
        assert torch.equal(view.flip(3), mirrored)


def test_ten_crop_of_the_paper():
    x = torch.zeros(1, 3, 256, 256)
    assert all(v.shape == (1, 3, 224, 224) for v in views_of(x, "ten_crop"))
    assert all(v.shape == (1, 3, 1, 1) for v in views_of(x[..., :1, :1], "ten_crop"))


def test_mean_probabilities():
    network = InferenceNetwork(trained_looking(small()), torch.float64)
    x = images()
    flipped = AveragedViews(network, "flip")
    p = flipped.features(x).softmax(1)
    torch.testing.assert_close(p, (network(x).softmax(1) + network(x.flip(3)).softmax(1)) / 2)
    torch.testing.assert_close(p, flipped.features(x.flip(3)).softmax(1))
    torch.testing.assert_close(flipped.features(x, "layer2"), network.features(x, "layer2"))
    ten = AveragedViews(network, "ten_crop").features(x).exp()
    want = torch.stack([network(v).softmax(1) for v in views_of(x, "ten_crop")]).mean(0)
    torch.testing.assert_close(ten, want)
    with pytest.raises(ValueError, match="views: must be"):
        AveragedViews(network, "five_crop").features(x)
