"""Image networks: published counts, torchvision, torch's layers, and the paper's definitions."""

from __future__ import annotations

import itertools
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sknn_resid.engine.resnet import (
    Block,
    ResNet,
    build,
    initialize,
    load_arrays,
    pad_channels,
    to_arrays,
)
from sknn_resid.engine.resnet_norm import BatchNorm
from sknn_resid.engine.resnet_spec import (
    BlockSpec,
    ResNetSpec,
    default_shortcut,
    default_width,
    is_statistic,
    resolve_stem,
)
from sknn_resid.engine.resnet_statistics import recompute_statistics


def imagenet(depth, shortcut="B", n_outputs=1000, **options):
    return ResNetSpec(depth, n_outputs, width=64, stem="imagenet", shortcut=shortcut, **options)


def small(depth=8, n_outputs=3, width=4, **options):
    return ResNetSpec(depth, n_outputs, width=width, **options)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def trained_looking(spec, seed=0, dtype=torch.float64):
    """A network whose normalizations are not the identity."""
    model = build(spec, generator(seed), dtype)
    draw = generator(seed + 1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, BatchNorm):
                for t in (module.weight, module.bias, module.running_mean):
                    t.add_(torch.empty_like(t).normal_(0, 0.3, generator=draw))
                module.running_var.uniform_(0.5, 2, generator=draw)
    return model


# -- counts and names ---------------------------------------------------------------------------

CIFAR_COUNTS = {
    20: (269_722, 272_474),
    32: (464_154, 466_906),
    44: (658_586, 661_338),
    56: (853_018, 855_770),
    110: (1_727_962, 1_730_714),
    1202: (19_421_274, 19_424_026),
}


@pytest.mark.parametrize("depth", CIFAR_COUNTS)
@pytest.mark.parametrize("shortcut", ["A", "B", None])
def test_published_counts_of_the_cifar_form(depth, shortcut):
    spec = ResNetSpec(depth, 10, shortcut=shortcut)
    published = CIFAR_COUNTS[depth][shortcut == "B"]
    model = ResNet(spec, device="meta")
    assert spec.n_parameters == published == sum(p.numel() for p in model.parameters())
    assert len(spec.blocks) == (depth - 2) // 2


@pytest.mark.parametrize(
    ("depth", "shortcut", "published", "n_keys"),
    [
        (18, "B", 11_689_512, 122),
        (34, "B", 21_797_672, 218),
        (34, "A", 21_623_848, None),
        (34, "C", 22_716_840, None),
        (34, None, 21_623_848, None),
        (50, "B", 25_557_032, 320),
        (101, "B", 44_549_160, 626),
        (152, "B", 60_192_808, 932),
    ],
)
def test_published_counts_of_the_imagenet_form(depth, shortcut, published, n_keys):
    spec = imagenet(depth, shortcut)
    model = ResNet(spec, device="meta")
    assert spec.n_parameters == published == sum(p.numel() for p in model.parameters())
    if n_keys is not None:
        assert len(model.state_dict()) == n_keys


@pytest.mark.parametrize(
    ("depth", "giga"), [(18, 1.82), (34, 3.67), (50, 4.1), (101, 7.82), (152, 11.54)]
)
def test_published_multiplications(depth, giga):
    assert imagenet(depth).multiplications(224, 224) / 1e9 == pytest.approx(giga, abs=0.035)


SPECS = [
    small(shortcut=shortcut, preactivation=preactivation)
    for shortcut, preactivation in itertools.product(("A", "B", "C", None), (False, True))
] + [
    imagenet(depth, shortcut, n_outputs=2, preactivation=preactivation)
    for depth, shortcut, preactivation in itertools.product(
        (18, 50), ("A", "B", "C", None), (False, True)
    )
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_shapes_of_the_spec_are_those_of_the_module(spec):
    state = ResNet(spec, device="meta").state_dict()
    assert {name: tuple(t.shape) for name, t in state.items()} == spec.shapes()
    buffers = {name for name, _ in ResNet(spec, device="meta").named_buffers()}
    assert {name for name in spec.shapes() if is_statistic(name)} == buffers


def test_names_by_hand():
    names = list(small(shortcut="B").shapes())
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert names[:6] == ["conv1.weight", *[f"bn1.{n}" for n in norm]]
    assert names[6:8] == ["layer1.0.conv1.weight", "layer1.0.bn1.weight"]
    assert "layer1.0.downsample.0.weight" not in names
    assert "layer2.0.downsample.0.weight" in names
    assert "layer3.0.downsample.1.running_var" in names
    assert names[-2:] == ["fc.weight", "fc.bias"]


# -- depths -------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [8, 14, 20, 26, 32, 38, 44, 56, 110, 164, 200, 1202])
def test_cifar_depths(depth):
    assert resolve_stem(depth) == resolve_stem(depth, "cifar") == "cifar"


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_imagenet_depths(depth):
    assert resolve_stem(depth) == "imagenet"
    assert resolve_stem(depth, "imagenet_3x3") == "imagenet_3x3"


def test_two_depths_have_both_forms():
    assert resolve_stem(50, "cifar") == resolve_stem(152, "cifar") == "cifar"
    assert len(ResNetSpec(50, 10).blocks) == 24


@pytest.mark.parametrize("depth", [-4, 0, 2, 7, 9, 19, 35, 51, 100, 1201])
def test_other_depths_are_refused_with_the_valid_ones(depth):
    with pytest.raises(ValueError, match=rf"depth: must be 6n \+ 2 .* 18, 34, .*got {depth} "):
        resolve_stem(depth)


def test_the_nearest_depths_are_named():
    with pytest.raises(ValueError, match="Nearest: 18 and 20"):
        resolve_stem(19)
    with pytest.raises(ValueError, match=r"Nearest: 8\.$"):
        resolve_stem(5)
    with pytest.raises(ValueError, match="Nearest: 34 and 50"):
        resolve_stem(44, "imagenet")
    with pytest.raises(ValueError, match="Nearest: 32 and 38"):
        resolve_stem(34, "cifar")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem": "mnist"}, "stem: must be"),
        ({"shortcut": "D"}, "shortcut: must be"),
        ({"option_a_padding": "front"}, "option_a_padding: must be"),
        ({"width": 0}, "width: must be at least 1, got 0"),
        ({"in_channels": 0}, "in_channels: must be at least 1"),
        ({"n_outputs": 0}, "n_outputs: must be at least 1"),
        ({"drop_path": 1.0}, "drop_path: must be in"),
        ({"shortcut": None, "drop_path": 0.1}, "shortcut: None"),
        ({"shortcut": None, "zero_init_residual": True}, "shortcut: None"),
    ],
)
def test_impossible_specs(options, message):
    with pytest.raises(ValueError, match=message):
        ResNetSpec(**({"depth": 8, "n_outputs": 2} | options))


def test_defaults_of_the_paper():
    assert (default_width("cifar"), default_width("imagenet")) == (16, 64)
    assert (default_shortcut("cifar"), default_shortcut("imagenet_3x3")) == ("A", "B")


# -- the function, against plain torch ----------------------------------------------------------


class PlainBlock(nn.Module):
    """Two convolutions with torch's own layers, written down once more from the paper."""

    def __init__(self, spec, block):
        super().__init__()
        c, h, out = block.in_channels, block.inner, block.out_channels
        self.conv1 = nn.Conv2d(c, h, 3, block.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(h)
        self.conv2 = nn.Conv2d(h, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample = None
        if block.projection:
            conv = nn.Conv2d(c, out, 1, block.stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(out))
        self.spec, self.block = spec, block

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.spec.shortcut is None:
            return F.relu(y)
        s = x
        if self.downsample is not None:
            s = self.downsample(x)
        elif self.block.changes:
            s = torch.zeros_like(y)
            added = self.block.out_channels - self.block.in_channels
            first = added // 2 if self.spec.option_a_padding == "both" else 0
            stride = self.block.stride
            s[:, first : first + self.block.in_channels] = x[:, :, ::stride, ::stride]
        return F.relu(y + s)


def plain(spec):
    stages = OrderedDict()
    blocks = iter(spec.blocks)
    for s, n in enumerate(spec.stages):
        stages[f"layer{s + 1}"] = nn.Sequential(*[PlainBlock(spec, next(blocks)) for _ in range(n)])
    kernel, stride = spec.stem_convolution
    conv = nn.Conv2d(spec.in_channels, spec.width, kernel, stride, kernel // 2, bias=False)
    pool = nn.MaxPool2d(3, 2, 1) if spec.stem == "imagenet" else nn.Identity()
    net = nn.Sequential(
        OrderedDict(conv1=conv, bn1=nn.BatchNorm2d(spec.width), relu=nn.ReLU(), maxpool=pool)
        | stages
        | OrderedDict(
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(spec.n_features, spec.n_outputs),
        )
    )
    return net.double()


@pytest.mark.parametrize("shortcut", ["A", "B", "C", None])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"option_a_padding": "end", "width": 5},
        {"depth": 18, "stem": "imagenet"},
        {"depth": 18, "stem": "imagenet_3x3", "in_channels": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("training", [False, True])
def test_equals_plain_torch(shortcut, options, training):
    spec = small(**({"shortcut": shortcut} | options))
    model, reference = trained_looking(spec), plain(spec)
    reference.load_state_dict(model.state_dict())  # strict: the names are torch's
    model.train(training)
    reference.train(training)
    x = torch.randn(5, spec.in_channels, 20, 17, dtype=torch.float64, generator=generator())
    target = torch.tensor([0, 1, 2, 1, 0])
    got, want = model(x), reference(x)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    F.cross_entropy(got, target).backward()
    F.cross_entropy(want, target).backward()
    wanted = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, rtol=1e-7, atol=1e-9)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, dict(reference.named_buffers())[name])


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_equals_torchvision(depth):
    models = pytest.importorskip("torchvision").models
    model = ResNet(imagenet(depth, n_outputs=7))
    initialize(model, generator(depth))
    theirs = getattr(models, f"resnet{depth}")(num_classes=7)
    theirs.load_state_dict(model.state_dict(), strict=True)
    x = torch.randn(2, 3, 64, 96, generator=generator())
    with torch.no_grad():
        for training in (True, False):  # the first pass also moves the statistics
            got, want = model.train(training)(x), theirs.train(training)(x)
            assert (got - want).norm() <= 1e-5 * want.norm()


def test_stride_in_1x1_is_another_function_of_the_same_parameters():
    late, early = (imagenet(50, n_outputs=2, stride_in_1x1=b) for b in (False, True))
    assert late.shapes() == early.shapes()
    a = build(late, generator())
    b = ResNet(early)
    b.load_state_dict(a.state_dict())
    x = torch.randn(2, 3, 64, 64, generator=generator())
    assert not torch.allclose(a(x), b(x))
    first = b.layer2[0]
    assert (first.conv1.stride, first.conv2.stride, first.downsample[0].stride) == (2, 1, 2)
    first = a.layer2[0]
    assert (first.conv1.stride, first.conv2.stride, first.downsample[0].stride) == (1, 2, 2)
    assert early.multiplications(224, 224) < late.multiplications(224, 224)


@pytest.mark.parametrize("padding", ["both", "end"])
def test_option_a_by_hand(padding):
    block = BlockSpec("layer2.0", 2, 5, 5, 2, bottleneck=False, projection=False)
    x = torch.arange(2 * 3 * 4, dtype=torch.float32).view(1, 2, 3, 4)
    y = pad_channels(x, block, padding)
    first = {"both": 1, "end": 0}[padding]
    assert y.shape == (1, 5, 2, 2)
    np.testing.assert_array_equal(y[0, first], [[0, 2], [8, 10]])
    np.testing.assert_array_equal(y[0, first + 1], [[12, 14], [20, 22]])
    assert y.sum() == y[0, first : first + 2].sum()


def test_preactivation_by_hand():
    """He et al. 2016, one block: x + W2 relu(n(W1 relu(n(x))))."""
    spec = small(preactivation=True, shortcut="B")
    model = trained_looking(spec).eval()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64, generator=generator())

    def n(bn, x):
        return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias)

    same, changing = model.layer1[0], model.layer2[0]
    for block in (same, changing):
        stride = block.block.stride
        a = F.relu(n(block.bn1, x))
        y = F.conv2d(a, block.conv1.weight, stride=stride, padding=1)
        y = F.conv2d(F.relu(n(block.bn2, y)), block.conv2.weight, padding=1)
        s = x
        if block is changing:
            s = F.conv2d(a, block.downsample[0].weight, stride=2)
        torch.testing.assert_close(block(x, None, None), y + s)
    images = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=generator())
    stream = model.features(images, "layer3")
    h = F.relu(n(model.norm, stream)).mean((2, 3))
    torch.testing.assert_close(model.features(images), h)
    torch.testing.assert_close(model(images), F.linear(h, model.fc.weight, model.fc.bias))


@pytest.mark.parametrize("spec", SPECS[:8], ids=str)
def test_identity_where_the_branch_is_zero(spec):
    """With branches of zero, a residual network passes the stream on; a plain one ends it."""
    if spec.shortcut is None:
        return
    model = build(
        ResNetSpec(
            8,
            3,
            width=4,
            shortcut=spec.shortcut,
            zero_init_residual=True,
            preactivation=spec.preactivation,
        ),
        generator(),
    )
    x = torch.randn(2, 3, 8, 8, generator=generator())
    stem = model.features(x, "stem")
    if spec.shortcut == "A":
        torch.testing.assert_close(model.features(x, "layer1"), stem)
        last = model.features(x, "layer3")
        assert last.shape == (2, 16, 2, 2)
        torch.testing.assert_close(last[:, 6:10], stem[:, :, ::4, ::4])


# -- initialization -----------------------------------------------------------------------------


def test_variances_of_the_initial_weights():
    model = build(imagenet(50), generator(3))
    for name in ("conv1", "layer3.1.conv2", "layer4.0.downsample.0"):
        weight = model.get_submodule(name).weight
        out, _, k, _ = weight.shape
        assert weight.std().item() == pytest.approx((2 / (k * k * out)) ** 0.5, rel=0.05)
    bound = 2048**-0.5
    assert 0.99 * bound < model.fc.weight.abs().max() <= bound
    assert model.bn1.weight.eq(1).all()
    assert model.bn1.running_var.eq(1).all()
    assert model.bn1.running_mean.eq(0).all()


def test_initial_weights_are_those_of_the_generator_in_any_dtype():
    before = torch.random.get_rng_state()
    a, b = build(small(), generator(5)), build(small(), generator(5), torch.float64)
    assert torch.equal(before, torch.random.get_rng_state())
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(x.double(), y)
    c = build(small(), generator(6))
    assert not torch.equal(a.conv1.weight, c.conv1.weight)
    plain_twin = build(small(shortcut=None), generator(5))
    for x, y in zip(a.parameters(), plain_twin.parameters(), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("preactivation", [False, True])
def test_zero_init_residual(preactivation):
    model = build(small(zero_init_residual=True, preactivation=preactivation), generator())
    for module in model.modules():
        if isinstance(module, Block):
            last = module.conv2 if preactivation else module.bn2
            assert last.weight.eq(0).all()
    assert model.conv1.weight.ne(0).any()


# -- shapes, layouts, sizes ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(1, 1), (2, 1), (5, 5), (6, 3)])
@pytest.mark.parametrize("options", [{}, {"depth": 18, "stem": "imagenet"}, {"shortcut": "B"}])
@pytest.mark.parametrize("training", [False, True])
def test_tiny_images_and_few_rows(dtype, size, options, training):
    spec = small(in_channels=1, **options)
    model = build(spec, generator(), dtype).train(training)
    for n in (0, 1, 2) if not training else (1, 2):
        x = torch.randn(n, 1, *size, dtype=dtype, generator=generator())
        logits = model(x)
        assert logits.shape == (n, 3)
        assert torch.isfinite(logits).all()
    logits.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("spec", SPECS[:8], ids=str)
def test_channels_last_changes_nothing_but_the_layout(spec):
    model = trained_looking(spec)
    x = torch.randn(3, 3, 9, 9, dtype=torch.float64, generator=generator())
    want = model.eval()(x)
    stream = model.to(memory_format=torch.channels_last).features(
        x.to(memory_format=torch.channels_last), "layer2"
    )
    assert stream.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), want)


def test_features_of_every_stage():
    model = build(imagenet(18, n_outputs=5), generator()).eval()
    x = torch.zeros(2, 3, 64, 64)
    shapes = {name: tuple(model.features(x, name).shape) for name in model.spec.feature_names}
    assert shapes == {
        "stem": (2, 64, 16, 16),
        "layer1": (2, 64, 16, 16),
        "layer2": (2, 128, 8, 8),
        "layer3": (2, 256, 4, 4),
        "layer4": (2, 512, 2, 2),
        "avgpool": (2, 512),
        "fc": (2, 5),
    }
    torch.testing.assert_close(model.features(x, "layer4").mean((2, 3)), model.features(x))
    with pytest.raises(ValueError, match=r"stage: must be one of .*'layer4'.*got 'layer5'"):
        model.features(x, "layer5")


def test_hooks_see_the_stream_unchanged():
    """Nothing is overwritten after a hook has seen it, neither the shortcut nor the sum."""
    model = build(small(), generator())
    seen = []
    for module in model.modules():
        if isinstance(module, Block | BatchNorm):
            module.register_forward_hook(lambda m, args, out: seen.append((out, out.clone())))
    model(torch.randn(2, 3, 8, 8, generator=generator())).sum().backward()
    assert len(seen) == 10
    assert all(torch.equal(out, copy) for out, copy in seen)


# -- drop path ----------------------------------------------------------------------------------


def test_drop_path_factors():
    model = ResNet(small(depth=20, drop_path=0.5))
    keep = model.draw_keep(20_000, generator())
    survival = 1 - 0.5 * np.arange(1, 10) / 9
    np.testing.assert_allclose((keep > 0).double().mean(1), survival, atol=0.02)
    np.testing.assert_allclose(keep.mean(1), 1, atol=0.03)
    for row, p in zip(keep, survival, strict=True):
        values = row.unique()
        np.testing.assert_allclose(values[values > 0], 1 / p, rtol=1e-5)
    assert torch.equal(keep, model.draw_keep(20_000, generator()))
    assert ResNet(small()).draw_keep(3, generator()) is None


def test_drop_path_leaves_out_branches_row_by_row():
    spec = small(drop_path=0.9, shortcut="A", preactivation=True)
    model = build(spec, generator(), torch.float64)
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=generator())
    keep = torch.zeros(3, 3, dtype=torch.float64)
    keep[0, 1] = 2.0
    out, stem = model.features(x, "layer1", None, keep), model.features(x, "stem", None, keep)
    assert torch.equal(out[0], stem[0])
    assert torch.equal(out[2], stem[2])
    whole = build(small(preactivation=True), generator(), torch.float64).features(x, "layer1")
    torch.testing.assert_close(out[1] - stem[1], 2 * (whole[1] - stem[1]))
    with pytest.raises(ValueError, match="draw_keep"):
        model(x)
    model.eval()(x)


# -- weights of rows ----------------------------------------------------------------------------


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def weighted_pass(spec, x, y, weights=None, seed=0):
    model = trained_looking(spec, seed)
    losses = F.cross_entropy(model(x, weights), y, reduction="none")
    w = torch.ones_like(losses) if weights is None else weights
    ((losses * w).sum() / w.sum()).backward()
    return model


@pytest.mark.parametrize("spec", SPECS[:8], ids=str)
def test_weights_are_repeated_rows(spec):
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64, generator=generator())
    y = torch.tensor([0, 1, 2, 1])
    counts = torch.tensor([2, 0, 1, 3])
    a = weighted_pass(spec, x, y, counts.double())
    b = weighted_pass(spec, x.repeat_interleave(counts, 0), y.repeat_interleave(counts))
    for name, g in gradients(b).items():
        torch.testing.assert_close(gradients(a)[name], g, rtol=1e-8, atol=1e-10)
    for name, buffer in b.named_buffers():
        torch.testing.assert_close(dict(a.named_buffers())[name], buffer)


@pytest.mark.parametrize("scale", [1.0, 0.01, 7.0])
def test_equal_weights_are_torchs_kernel(scale):
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64, generator=generator())
    y = torch.tensor([0, 1, 2, 1])
    a = weighted_pass(small(), x, y, torch.full((4,), scale, dtype=torch.float64))
    b = weighted_pass(small(), x, y)
    for name, g in gradients(b).items():
        torch.testing.assert_close(gradients(a)[name], g, rtol=1e-8, atol=1e-10)


def test_a_weight_means_nothing_in_evaluation():
    model = trained_looking(small()).eval()
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64, generator=generator())
    assert torch.equal(model(x, torch.arange(4.0)), model(x))


def test_a_single_value_becomes_the_bias():
    norm = BatchNorm(2, torch.float32, "cpu").train()
    with torch.no_grad():
        norm.bias.copy_(torch.tensor([3.0, -1.0]))
    y = norm(torch.tensor([5.0, 7.0]).view(1, 2, 1, 1))
    np.testing.assert_array_equal(y.detach().flatten(), [3, -1])


def test_weighted_statistics_keep_their_digits():
    """A mean of 1e6 must not swallow a variance of 1 (float64)."""
    norm = BatchNorm(1, torch.float64, "cpu").train()
    x = torch.randn(50, 1, 4, 4, dtype=torch.float64, generator=generator())
    w = torch.rand(50, dtype=torch.float64, generator=generator())
    torch.testing.assert_close(norm(x + 1e6, w), norm(x, w), rtol=0, atol=1e-8)


# -- statistics for prediction ------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
def test_recomputed_statistics_of_one_batch_repeat_the_training_pass(weighted):
    model = trained_looking(small())
    x = torch.randn(6, 3, 8, 8, dtype=torch.float64, generator=generator())
    w = torch.tensor([1.0, 0, 2, 1, 3, 1], dtype=torch.float64) if weighted else None
    want = model.train()(x, w)
    model.eval()
    recompute_statistics(model, [(x, w), (x, torch.zeros(6, dtype=torch.float64))])
    assert not model.training
    torch.testing.assert_close(model(x), want)


def test_recomputed_statistics_pool_batches():
    """The first normalization sees the same values however they are cut."""
    x = torch.randn(10, 3, 4, 4, dtype=torch.float64, generator=generator()) + 2
    w = torch.rand(10, dtype=torch.float64, generator=generator())
    stats = []
    for cuts in ([10], [3, 7], [1, 1, 8]):
        model = trained_looking(small(drop_path=0.3))
        recompute_statistics(model, list(zip(x.split(cuts), w.split(cuts), strict=True)))
        stats.append((model.bn1.running_mean, model.bn1.running_var))
    z = trained_looking(small()).conv1(x)
    r = w / w.sum()
    mean = (z.mean((2, 3)) * r[:, None]).sum(0)
    var = ((z - mean[:, None, None]).square().mean((2, 3)) * r[:, None]).sum(0)
    for got_mean, got_var in stats:
        torch.testing.assert_close(got_mean, mean)
        torch.testing.assert_close(got_var, var)


# -- weights in and out -------------------------------------------------------------------------


def test_arrays_go_out_and_in():
    model = trained_looking(small(shortcut="B"))
    arrays = to_arrays(model)
    assert list(arrays) == list(model.spec.shapes())
    other = ResNet(model.spec, torch.float64)
    load_arrays(other, arrays)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64, generator=generator())
    assert torch.equal(model.eval()(x), other.eval()(x))
    arrays["conv1.weight"][:] = 0  # copies
    assert model.conv1.weight.ne(0).all()


def test_the_counter_of_batches_may_be_absent():
    model = trained_looking(small())
    arrays = {k: v for k, v in to_arrays(model).items() if "num_batches" not in k}
    other = ResNet(model.spec)
    load_arrays(other, arrays)
    assert all(int(b) == 0 for n, b in other.named_buffers() if "num_batches" in n)


def test_every_misfit_is_named():
    arrays = to_arrays(build(small(), generator()))
    arrays["fc.weight"] = arrays["fc.weight"][:2]
    del arrays["layer2.0.bn1.weight"]
    arrays["layer9.0.conv1.weight"] = np.zeros(3)
    with pytest.raises(ValueError, match="do not fit") as caught:
        load_arrays(ResNet(small()), arrays)
    message = str(caught.value)
    assert "fc.weight: (2, 16) where (3, 16)" in message
    assert "layer2.0.bn1.weight: absent" in message
    assert "layer9.0.conv1.weight: not in this network" in message
