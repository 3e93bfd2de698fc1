"""Files of weights: formats against torch and safetensors, real checkpoints, damage, surgery."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict

import numpy as np
import pytest
import torch
from engine.test_resnet import generator, imagenet, small, trained_looking

from sknn_resid.engine.resnet import ResNet, build, load_arrays, to_arrays
from sknn_resid.engine.resnet_spec import ResNetSpec
from sknn_resid.neural_network._weight_files import read_weights, write_weights
from sknn_resid.neural_network._weight_specs import Unsaid, adapt_arrays, infer_spec


def arrays_of(spec, seed=0):
    return to_arrays(trained_looking(spec, seed, torch.float32))


def same(a, b):
    assert list(a) == list(b) or set(a) == set(b)
    for name, array in a.items():
        np.testing.assert_array_equal(array, b[name], err_msg=name)
        assert array.dtype == b[name].dtype, name


SPECS = [
    ResNetSpec(8, 10),
    ResNetSpec(20, 100, in_channels=1, width=4, shortcut="B"),
    ResNetSpec(14, 2, width=4, shortcut="C", preactivation=True),
    ResNetSpec(8, 2, width=4, shortcut="B", preactivation=True),
    imagenet(18, n_outputs=7, in_channels=4),
    ResNetSpec(34, 3, width=4, stem="imagenet_3x3", shortcut="B"),
    ResNetSpec(50, 3, width=4, stem="imagenet", shortcut="C"),
    ResNetSpec(50, 3, width=4, stem="cifar"),
    ResNetSpec(101, 3, width=4, stem="imagenet", shortcut="B"),
    ResNetSpec(152, 3, width=4, stem="imagenet", shortcut="A"),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_network_is_read_off_the_shapes(spec):
    assert infer_spec({name: np.zeros(shape) for name, shape in spec.shapes().items()}) == spec


def test_what_shapes_do_not_tell_is_said():
    arrays = {name: np.zeros(shape) for name, shape in small().shapes().items()}
    assert infer_spec(arrays).shortcut == "A"
    assert infer_spec(arrays, Unsaid(shortcut=None)).shortcut is None
    found = infer_spec(arrays, Unsaid(option_a_padding="end", stride_in_1x1=True))
    assert (found.option_a_padding, found.stride_in_1x1) == ("end", True)
    with pytest.raises(ValueError, match=r"0 projections in 3 blocks.*shortcut='B' was asked"):
        infer_spec(arrays, Unsaid(shortcut="B"))


# -- formats ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_written_and_read_again(tmp_path, name):
    arrays = arrays_of(small(shortcut="B"))
    arrays["conv1.weight"] = arrays["conv1.weight"].transpose(0, 1, 3, 2)  # not contiguous
    write_weights(tmp_path / name, arrays)
    file = read_weights(tmp_path / name)
    same(file.arrays, arrays)
    assert file.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    assert file.known_as is None


def test_torch_loads_what_is_written(tmp_path):
    model = trained_looking(small(), dtype=torch.float32)
    write_weights(tmp_path / "w.pth", to_arrays(model))
    state = torch.load(tmp_path / "w.pth", weights_only=True)
    other = ResNet(small())
    other.load_state_dict(state, strict=True)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )


@pytest.mark.parametrize("depth", [18, 50])
def test_torchvision_loads_what_is_written(tmp_path, depth):
    models = pytest.importorskip("torchvision").models
    model = trained_looking(imagenet(depth, n_outputs=5), dtype=torch.float32)
    write_weights(tmp_path / "w.pth", to_arrays(model))
    theirs = getattr(models, f"resnet{depth}")(num_classes=5)
    theirs.load_state_dict(torch.load(tmp_path / "w.pth", weights_only=True), strict=True)
    torch.save(theirs.state_dict(), tmp_path / "back.pth")
    same(read_weights(tmp_path / "back.pth").arrays, to_arrays(model))


def test_timm_loads_what_is_written(tmp_path):
    timm = pytest.importorskip("timm")
    model = trained_looking(imagenet(18, n_outputs=5), dtype=torch.float32).eval()
    write_weights(tmp_path / "w.safetensors", to_arrays(model))
    theirs = timm.create_model("resnet18", num_classes=5).eval()
    timm.models.load_checkpoint(theirs, str(tmp_path / "w.safetensors"), strict=True)
    x = torch.randn(2, 3, 64, 64, generator=generator())
    torch.testing.assert_close(theirs(x), model(x), rtol=1e-4, atol=1e-5)


def test_safetensors_of_the_library(tmp_path):
    torch_format = pytest.importorskip("safetensors.torch")
    numpy_format = pytest.importorskip("safetensors.numpy")
    state = trained_looking(small(), dtype=torch.float32).state_dict()
    half = {k: t.bfloat16() if "conv" in k else t for k, t in state.items()}
    half["fc.bias"] = half["fc.bias"].half()
    torch_format.save_file(half, tmp_path / "w.safetensors", metadata={"format": "pt"})
    arrays = read_weights(tmp_path / "w.safetensors").arrays
    same(arrays, {k: (t.float() if t.is_floating_point() else t).numpy() for k, t in half.items()})
    write_weights(tmp_path / "ours.safetensors", arrays)
    same(numpy_format.load_file(tmp_path / "ours.safetensors"), arrays)


def test_safetensors_by_hand(tmp_path):
    """A file written byte by byte from the format's description."""
    numbers = np.array([1.0, -2.5, 3.0], dtype=np.float32)
    upper = (numbers.view(np.uint32) >> 16).astype("<u2")
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]},
        "b": {"dtype": "I64", "shape": [], "data_offsets": [6, 14]},
    }
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + upper.tobytes() + np.int64(7).tobytes()
    (tmp_path / "x.bin").write_bytes(data)
    arrays = read_weights(tmp_path / "x.bin").arrays
    np.testing.assert_array_equal(arrays["a"], numbers)
    assert arrays["b"].shape == ()
    assert arrays["b"] == 7
    for end in (len(data) - 1, len(text), 9):
        (tmp_path / "x.bin").write_bytes(data[:end])
        with pytest.raises(ValueError, match=r"x.bin' begins like a safetensors file"):
            read_weights(tmp_path / "x.bin")


@pytest.mark.parametrize("container", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_names_of_checkpoints(tmp_path, container, prefix):
    arrays = arrays_of(small(shortcut="B"))
    said = OrderedDict()
    for name, array in arrays.items():
        if "num_batches" in name:
            continue
        name = name.replace("fc.", "linear.").replace("downsample", "shortcut")
        said[prefix + name] = torch.from_numpy(array)
    said_in = said if container is None else {container: said, "best_prec1": 91.0, "epoch": 3}
    torch.save(said_in, tmp_path / "model.th")
    found = read_weights(tmp_path / "model.th").arrays
    same(found, {name: array for name, array in arrays.items() if "num_batches" not in name})
    assert infer_spec(found) == small(shortcut="B")


def test_half_precision_becomes_single(tmp_path):
    torch.save({"a": torch.ones(2).half(), "b": torch.ones(2).bfloat16()}, tmp_path / "h.pt")
    assert all(a.dtype == np.float32 for a in read_weights(tmp_path / "h.pt").arrays.values())


# -- what is refused ----------------------------------------------------------------------------


class Dangerous:
    def __reduce__(self):
        return (exec, ("raise SystemExit('this ran')",))


def test_no_code_runs(tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "x": Dangerous()}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=r"bad.pth' is neither safetensors nor .* nothing but"):
        read_weights(tmp_path / "bad.pth")


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"not a file of weights at all", b"\x80\x02}q\x00."]
)
def test_other_files(tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"weights: .*x.pth'"):
        read_weights(tmp_path / "x.pth")


def test_no_file():
    with pytest.raises(ValueError, match=r"weights: there is no file 'nowhere.pth'"):
        read_weights("nowhere.pth")


def test_the_checksum_in_a_name_is_checked(tmp_path):
    write_weights(tmp_path / "w.pth", arrays_of(small()))
    sha = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()
    right = tmp_path / f"resnet8-{sha[:8]}.pth"
    right.write_bytes((tmp_path / "w.pth").read_bytes())
    assert read_weights(right).sha256 == sha
    wrong = tmp_path / "resnet50-11ad3fa6.pth"
    wrong.write_bytes((tmp_path / "w.pth").read_bytes())
    with pytest.raises(ValueError, match=rf"begins with 11ad3fa6, by its name, but has {sha[:8]}"):
        read_weights(wrong)


def test_all_misfits_are_in_one_message():
    arrays = arrays_of(small())
    arrays["fc.weight"] = arrays["fc.weight"][:, :5]
    arrays["layer2.0.conv2.weight"] = arrays["layer2.0.conv2.weight"][:, :1]
    arrays["layer3.0.bn1.bias"][0] = np.nan
    del arrays["bn1.running_var"]
    arrays["se.weight"] = np.zeros(1)
    with pytest.raises(ValueError, match="does not fit a ResNet of depth 8") as caught:
        infer_spec(arrays, source="'w.pth'")
    for part in (
        "'w.pth'",
        "fc.weight is (3, 5) and must be (3, 16)",
        "layer2.0.conv2.weight is (8, 1, 3, 3) and must be (8, 8, 3, 3)",
        "layer3.0.bn1.bias holds values that are not finite",
        "bn1.running_var is absent",
        "se.weight is not part of it",
    ):
        assert part in str(caught.value)


def test_other_networks_are_named_as_such():
    with pytest.raises(ValueError, match=r"no 'conv1.weight', so it is not a residual network"):
        infer_spec({"features.0.weight": np.zeros(3)})
    arrays = {name: np.zeros(shape) for name, shape in imagenet(18).shapes().items()}
    del arrays["layer4.1.conv1.weight"]
    with pytest.raises(ValueError, match=r"has \(2, 2, 2, 1\) blocks of two convolutions"):
        infer_spec(arrays)
    wide = {name: np.zeros(shape) for name, shape in imagenet(50).shapes().items()}
    wide["layer1.0.conv1.weight"] = np.zeros((128, 64, 1, 1))
    with pytest.raises(ValueError, match=r"layer1.0.conv1.weight is \(128, 64, 1, 1\)"):
        infer_spec(wide)


def test_long_lists_are_cut():
    arrays = {name: np.zeros(shape) for name, shape in imagenet(18).shapes().items()}
    with pytest.raises(ValueError, match=r"; and \d+ more\."):
        infer_spec({k: v for k, v in arrays.items() if "running" not in k})


# -- surgery ------------------------------------------------------------------------------------


def adapted(old, new, seed=0):
    head = to_arrays(build(new, generator(7)))
    model = ResNet(new)
    load_arrays(model, adapt_arrays(arrays_of(old, seed), new, head))
    return model.eval(), head


def test_another_number_of_classes():
    old, new = small(n_outputs=10), small(n_outputs=4)
    model, head = adapted(old, new)
    np.testing.assert_array_equal(model.fc.weight.detach(), head["fc.weight"])
    body = trained_looking(old, 0, torch.float32).eval()
    x = torch.randn(2, 3, 8, 8, generator=generator())
    assert torch.equal(model.features(x), body.features(x))
    same_head, _ = adapted(old, old)
    assert torch.equal(same_head(x), body(x))


@pytest.mark.parametrize("n_channels", [1, 6, 9])
def test_grey_images_give_what_they_gave(n_channels):
    old = small()
    model, _ = adapted(old, small(in_channels=n_channels))
    body = trained_looking(old, 0, torch.float32).eval()
    grey = torch.randn(2, 1, 8, 8, generator=generator())
    got = model(grey.expand(2, n_channels, 8, 8))
    torch.testing.assert_close(got, body(grey.expand(2, 3, 8, 8)), rtol=1e-4, atol=1e-5)


def test_four_channels_by_hand():
    model, _ = adapted(small(), small(in_channels=4))
    stem = trained_looking(small(), 0, torch.float32).conv1.weight
    torch.testing.assert_close(model.conv1.weight[:, :3], 0.75 * stem)
    torch.testing.assert_close(model.conv1.weight[:, 3], 0.75 * stem[:, 0])


def test_one_channel_to_three():
    model, _ = adapted(small(in_channels=1), small())
    body = trained_looking(small(in_channels=1), 0, torch.float32).eval()
    grey = torch.randn(2, 1, 8, 8, generator=generator())
    torch.testing.assert_close(model(grey.expand(2, 3, 8, 8)), body(grey), rtol=1e-4, atol=1e-5)


def test_another_body_is_refused():
    with pytest.raises(ValueError, match=r"does not fit a ResNet of depth 14 .*layer1.1.conv1"):
        adapt_arrays(arrays_of(small()), small(14), {})


# -- the real files -----------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "wrong"), [(20, 166), (56, 141)])
def test_real_checkpoints(data_dir, depth, wrong):
    """The first 2,000 test images of CIFAR-10, counted once by other code."""
    image = pytest.importorskip("PIL.Image")
    (path,) = (data_dir / "weights").glob(f"resnet{depth}-*")
    file = read_weights(path)
    assert f"CIFAR-10 ResNet-{depth}" in str(file)
    spec = infer_spec(file.arrays, source=str(file))
    assert spec == ResNetSpec(depth, 10)
    from sknn_resid.engine.resnet_inference import InferenceNetwork

    model = ResNet(spec)
    load_arrays(model, file.arrays)
    folder = data_dir / "images" / "cifar10"
    sheet = np.asarray(image.open(folder / "x_test_00.webp"))
    images = sheet.reshape(50, 32, 50, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)
    y = torch.from_numpy(np.load(folder / "y_test.npy")[:2000])
    x = torch.from_numpy(images[:2000]).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = ((x - mean) / std).permute(0, 3, 1, 2)
    network = InferenceNetwork(model)
    logits = torch.cat([network(part) for part in x.split(100)])
    assert int((logits.argmax(1) != y).sum()) == wrong
