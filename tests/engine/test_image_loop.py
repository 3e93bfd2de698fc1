"""A training of images against a loop that anyone would write with torch."""

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.nn import functional as F

from sknn_resid.engine.history import StopReason
from sknn_resid.engine.image_augment import epoch_generator
from sknn_resid.engine.image_data import DeviceImages, ImageSet, learn_scaling
from sknn_resid.engine.image_loop import ImageJob, train_images
from sknn_resid.engine.image_spec import ImageTrainSpec
from sknn_resid.engine.resnet import build
from sknn_resid.engine.resnet_spec import ResNetSpec, is_statistic
from sknn_resid.engine.schedules import Schedule
from sknn_resid.engine.spec import OptimizerKind, OptimizerSpec, TrainSpec

CPU = torch.device("cpu")
SPEC = ResNetSpec(8, 3, in_channels=2, width=4, shortcut="B")
RATE, DECAY, MOMENTUM, SMOOTHING = 0.05, 0.01, 0.9, 0.1


def a_job(optimizer, **changes):
    rng = np.random.RandomState(0)
    X, y = torch.from_numpy(rng.randn(30, 6, 6, 2)), rng.randint(3, size=30)
    data = ImageSet(DeviceImages(X), y)
    train = {
        "schedule": Schedule(),
        "penalty": DECAY,
        "batch_size": 8,
        "max_epochs": 3,
        "tolerance": 0.0,
        "patience": math.inf,
        "label_smoothing": SMOOTHING,
    }
    spec = TrainSpec(optimizer=optimizer, **train | changes)
    image_spec = ImageTrainSpec(spec, torch.float64)
    return ImageJob(SPEC, image_spec, data, learn_scaling(data), CPU, seed=5), X, y


@pytest.mark.parametrize("kind", ["sgd", "nesterov", "adamw"])
def test_against_a_plain_loop(kind):
    """Same start, same order, torch's own optimizer and loss: same weights after 12 steps."""
    name = OptimizerKind.ADAMW if kind == "adamw" else OptimizerKind.SGD
    optimizer = OptimizerSpec(name, RATE, MOMENTUM, kind == "nesterov", epsilon=1e-14)
    job, X, y = a_job(optimizer)
    result = train_images(job)
    assert result.reason is StopReason.MAX_EPOCHS

    module = build(SPEC, torch.Generator().manual_seed(5), torch.float64).train()
    decayed = [p for p in module.parameters() if p.ndim > 1]
    others = [p for p in module.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0}]
    if kind == "adamw":
        theirs = torch.optim.AdamW(groups, lr=RATE, eps=1e-14)
    else:
        theirs = torch.optim.SGD(groups, lr=RATE, momentum=MOMENTUM, nesterov=kind == "nesterov")
    z = ((X - X.mean((0, 1, 2))) / X.std((0, 1, 2), correction=0)).permute(0, 3, 1, 2)
    targets = torch.from_numpy(y)
    curve = []
    for epoch in range(3):
        order = np.arange(30)
        epoch_generator(5, epoch).shuffle(order)
        losses = []
        for rows in np.split(order, [8, 16, 24]):
            theirs.zero_grad()
            loss = F.cross_entropy(module(z[rows]), targets[rows], label_smoothing=SMOOTHING)
            loss.backward()
            theirs.step()
            losses.append(float(loss.detach()) * len(rows))
        curve.append(sum(losses) / 30)
    # scikit-learn's epsilon is not bias-corrected, torch's is; so it is next to nothing here.
    tolerance = 1e-5 if kind == "adamw" else 1e-9
    assert_allclose(result.loss_curve, curve, rtol=tolerance)
    for key, tensor in module.state_dict().items():
        if not is_statistic(key):
            assert_allclose(result.arrays[key], tensor, rtol=tolerance, atol=tolerance, err_msg=key)


def test_clipping_limits_the_step():
    """One step of plain descent with no decay: as long as the rate times the largest norm."""
    optimizer = OptimizerSpec(OptimizerKind.SGD, 0.1, momentum=0.0, nesterov=False)
    changes = {"penalty": 0.0, "max_epochs": 1, "batch_size": 30}
    start = build(SPEC, torch.Generator().manual_seed(5), torch.float64)

    def length(**more):
        arrays = train_images(a_job(optimizer, **changes, **more)[0]).arrays
        moved = [arrays[n] - p.detach().numpy() for n, p in start.named_parameters()]
        return math.sqrt(sum(float((m**2).sum()) for m in moved))

    free = length()
    assert_allclose(length(clip_norm=0.01), 0.1 * 0.01, rtol=1e-9)
    assert_allclose(length(clip_norm=100 * free), free, rtol=1e-12)


def test_averages_against_the_formula():
    """a <- c a + (1 - c) p after each step; here 3 steps of one batch, seen one by one."""
    optimizer = OptimizerSpec(OptimizerKind.SGD, RATE, momentum=0.0, nesterov=False)
    changes = {"batch_size": 30}

    def weights(epochs, **more):
        job, _, _ = a_job(optimizer, **changes | {"max_epochs": epochs}, **more)
        return train_images(job).arrays["conv1.weight"]

    start = build(SPEC, torch.Generator().manual_seed(5), torch.float64)
    average = start.conv1.weight.detach().numpy()
    for t in (1, 2, 3):
        c = min(1 - 1 / 5, (1 + t) / (10 + t))  # the horizon is 5 steps at least
        average = c * average + (1 - c) * weights(t)
    assert_allclose(weights(3, average_horizon=1.0), average, rtol=1e-9)
