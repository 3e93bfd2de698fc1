"""What a training of images is made of: scaling, batches, random changes, schedule, parameters."""

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from sknn_resid.engine.image_augment import (
    NOTHING,
    Augmentation,
    Changes,
    Flip,
    change,
    draw,
    epoch_generator,
)
from sknn_resid.engine.image_data import (
    DeviceImages,
    ImageSet,
    StreamedImages,
    batch_slices,
    learn_scaling,
    part_slices,
)
from sknn_resid.engine.image_network import FlatNetwork
from sknn_resid.engine.resnet import build
from sknn_resid.engine.resnet_norm import BatchNorm
from sknn_resid.engine.resnet_spec import ResNetSpec
from sknn_resid.engine.schedules import Milestones

CPU = torch.device("cpu")


def changed(augmentation, x, **drawn):
    tensors = {name: torch.as_tensor(value) for name, value in drawn.items()}
    return change(augmentation, torch.from_numpy(x), Changes(**tensors)).numpy()


def test_crop_and_flip_against_numpy():
    rng = np.random.RandomState(0)
    x = rng.randn(6, 5, 7, 2)
    top, left = rng.randint(0, 5, (2, 6))
    flip = rng.rand(6) < 0.5
    found = changed(
        Augmentation(padding=2, flip=Flip.RANDOM), x, top_B=top, left_B=left, flip_B=flip
    )
    for i in range(6):
        padded = np.pad(x[i], ((2, 2), (2, 2), (0, 0)))
        wanted = padded[top[i] : top[i] + 5, left[i] : left[i] + 7]
        assert_array_equal(found[i], wanted[:, ::-1] if flip[i] else wanted)


def test_cutout_against_numpy():
    x = np.random.RandomState(0).randn(4, 6, 6, 3)
    top, left = np.array([-1, 0, 3, 5]), np.array([2, -2, 4, 0])
    found = changed(Augmentation(cutout=3), x, cut_top_B=top, cut_left_B=left)
    for i in range(4):
        wanted = x[i].copy()
        rows, columns = slice(max(0, top[i]), top[i] + 3), slice(max(0, left[i]), left[i] + 3)
        wanted[rows, columns] = 0
        assert_array_equal(found[i], wanted)


def test_draws():
    shape, n = (8, 10, 3), 4000
    augmentation = Augmentation(padding=2, flip=Flip.RANDOM, cutout=4)

    def drawn(seed, epoch, augmentation=augmentation):
        return draw(augmentation, n, shape, seed, epoch, epoch_generator(seed, epoch), CPU)

    a, again, later = drawn(0, 3), drawn(0, 3), drawn(0, 4)
    assert torch.equal(a.top_B, again.top_B)
    assert not torch.equal(a.top_B, later.top_B)
    assert_array_equal(np.unique(a.top_B), range(5))
    assert_array_equal(np.unique(a.left_B), range(5))
    assert_allclose(np.bincount(a.left_B) / n, 0.2, atol=0.03)
    assert abs(a.flip_B.double().mean() - 0.5) < 0.03
    assert_array_equal(np.unique(a.cut_top_B), np.arange(8) - 2)
    assert_array_equal(np.unique(a.cut_left_B), np.arange(10) - 2)
    assert drawn(0, 0, NOTHING) is None
    assert drawn(0, 0, Augmentation(mixup=0.2)) is None


def test_alternating_flip_shows_both_sides_in_turn():
    augmentation = Augmentation(flip=Flip.ALTERNATE)
    flips = [
        draw(augmentation, 100, (4, 4, 1), 7, epoch, epoch_generator(7, epoch), CPU).flip_B
        for epoch in range(4)
    ]
    assert 30 < int(flips[0].sum()) < 70
    assert torch.equal(flips[1], ~flips[0])
    assert torch.equal(flips[2], flips[0])
    assert torch.equal(flips[3], ~flips[0])


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_scaling_is_the_weighted_mean_and_deviation(dtype):
    rng = np.random.RandomState(0)
    X = (rng.rand(600, 3, 4, 2) * 255).astype(dtype)
    w = rng.randint(0, 3, 600).astype(float)
    rows = np.flatnonzero(w)
    data = ImageSet(DeviceImages(torch.from_numpy(X)), np.zeros(600, int), w, rows)
    scaling = learn_scaling(data)
    repeated = np.repeat(X.astype(float), w.astype(int), axis=0)
    assert_allclose(scaling.mean, repeated.mean((0, 1, 2)), rtol=1e-12)
    assert_allclose(scaling.std, repeated.std((0, 1, 2)), rtol=1e-12)
    z = scaling.bind(torch.float64, CPU)(torch.from_numpy(X)).numpy()
    assert_allclose(z, (X - scaling.mean) / scaling.std, rtol=1e-9, atol=1e-12)


def test_scaling_of_hard_numbers():
    """A constant channel gets a deviation of 1; a large mean takes nothing from a small spread."""
    rng = np.random.RandomState(0)
    X = np.stack([np.full((300, 4, 4), 0.1), 1e6 + 1e-3 * rng.randn(300, 4, 4)], axis=-1)
    scaling = learn_scaling(ImageSet(DeviceImages(torch.from_numpy(X)), np.zeros(300, int)))
    assert_allclose(scaling.mean, X.mean((0, 1, 2)), rtol=1e-12)
    assert scaling.std[0] == 1.0
    assert_allclose(scaling.std[1], X[..., 1].std(), rtol=1e-6)


def test_streamed_rows_come_in_the_order_asked_for():
    X = np.random.RandomState(0).rand(20, 2, 2, 1)
    asked = []

    def read(rows):
        asked.append(rows)
        return X[rows]

    images = StreamedImages(read, 20, (2, 2, 1), CPU)
    rows = np.array([7, 3, 19, 3, 0])
    assert_array_equal(images.gather(rows), X[rows])
    assert_array_equal(asked[0], np.sort(rows))


@pytest.mark.parametrize(
    ("n", "batch", "sizes"),
    [
        (10, 4, [4, 4, 2]),
        (9, 4, [4, 5]),
        (8, 4, [4, 4]),
        (1, 4, [1]),
        (5, 4, [5]),
        (3, 2, [3]),
        (5, 100, [5]),
    ],
)
def test_no_batch_of_a_single_row(n, batch, sizes):
    slices = batch_slices(n, batch)
    assert [s.stop - s.start for s in slices] == sizes
    assert [i for s in slices for i in range(s.start, s.stop)] == list(range(n))


def test_parts_of_a_batch():
    for n in (1, 2, 3, 7, 16):
        for parts in (1, 2, 3, 8, 100):
            sizes = [s.stop - s.start for s in part_slices(n, parts)]
            assert sum(sizes) == n
            assert len(sizes) == max(1, min(parts, n // 2))
            assert max(sizes) - min(sizes) <= 1
            assert min(sizes) >= min(2, n)


def test_milestones_are_those_of_the_paper():
    """64,000 steps: a tenth from 32,000 on, a hundredth from 48,000 on."""
    schedule = Milestones()
    factors = schedule.factors(0, 64_000, 64_000)
    assert_allclose(
        factors[[0, 31_999, 32_000, 47_999, 48_000, 63_999]], [1, 1, 0.1, 0.1, 0.01, 0.01]
    )
    assert_allclose(schedule.factors(47_990, 20, 64_000), factors[47_990:48_010])
    assert_allclose(Milestones(fractions=()).factors(0, 5, 5), 1.0)
    assert_allclose(Milestones(0.5, (0.8,)).factors(0, 10, 10)[[0, 4, 7, 8]], [0.2, 1, 1, 0.1])


def test_flat_parameters_are_the_modules_own():
    spec = ResNetSpec(8, 5, in_channels=2, width=4, shortcut="B")
    module = build(spec, torch.Generator().manual_seed(0), torch.float64)
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    network = FlatNetwork(module)
    assert network.layout.n_params == spec.n_parameters
    weights = sum(math.prod(s) for n, s in spec.shapes().items() if len(s) > 1)
    assert network.layout.n_weights == weights
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, before[name])
        assert (
            parameter.untyped_storage().data_ptr() == network.params_MP.untyped_storage().data_ptr()
        )
    x = torch.randn(6, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    module.train()
    loss = module(x).square().sum()
    loss.backward()
    step = 1e-6
    generator = torch.Generator().manual_seed(2)
    direction = torch.randn(network.layout.n_params, dtype=torch.float64, generator=generator)
    network.params_MP[0].add_(direction, alpha=step)
    change = (module(x).square().sum() - loss).item() / step
    # a one-sided difference is right to the order of its step times the curvature
    assert_allclose(change, float(network.grads_MP[0] @ direction), rtol=1e-3)
    # Weights decay, the rest does not: the first so many parameters are those of two axes or more.
    network.params_MP.zero_()
    network.params_MP[0, : network.layout.n_weights] = 1
    for parameter in module.parameters():
        assert bool((parameter == float(parameter.ndim > 1)).all())


def test_weighted_statistics_keep_their_precision_under_autocast():
    norm = BatchNorm(3, torch.float32, "cpu")
    norm.totals = []
    x = 100 + torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    w = torch.arange(1.0, 9.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        norm(x, w)
    ((_, mean, var),) = norm.totals
    assert_allclose(mean, np.average(x.mean((2, 3)), axis=0, weights=w), rtol=1e-6)
    centred = x - mean[:, None, None]
    assert_allclose(var, np.average(centred.square().mean((2, 3)), axis=0, weights=w), rtol=1e-4)
