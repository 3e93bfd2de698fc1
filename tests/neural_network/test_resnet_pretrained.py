"""Weights from files: ready to predict, as a start of fit, frozen; views of images."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from engine.test_resnet import generator, small, trained_looking
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from sknn_resid import ResNetClassifier
from sknn_resid.engine.resnet import to_arrays
from sknn_resid.neural_network._weight_files import write_weights

BODY = small(n_outputs=3)


def model_of(spec=BODY, seed=0):
    return trained_looking(spec, seed, torch.float32).eval()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "body.pth"
    write_weights(path, to_arrays(model_of()))
    return path


def images(n=12, channels=3, side=10):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, side, side, channels), dtype=np.uint8)


def logits_by_hand(x, model=None):
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    z = (torch.from_numpy(x).float() / 255 - mean) / std
    with torch.no_grad():
        return (model or model_of())(z.permute(0, 3, 1, 2))


def loaded(file, **options):
    return ResNetClassifier.from_pretrained(file, image_shape=(10, 10), **options)


# -- ready to predict ---------------------------------------------------------------------------


def test_predicts_like_the_network_of_the_file(file):
    est, x = loaded(file), images()
    want = logits_by_hand(x)
    np.testing.assert_allclose(est.decision_function(x), want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(est.predict_proba(x), want.softmax(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(est.predict(x), want.argmax(1))
    assert est.classes_.tolist() == [0, 1, 2]
    assert (est.depth, est.width, est.stem, est.shortcut) == (8, 4, "cifar", "A")
    assert est.n_parameters_ == BODY.n_parameters
    assert est.transform(x).shape == (12, 16)


@pytest.mark.parametrize(
    ("options", "dtype"), [({"dtype": "float64"}, "float64"), ({"dtype": "bfloat16"}, "bfloat16")]
)
def test_precision_is_a_parameter(file, options, dtype):
    est, x = loaded(file, **options), images()
    assert est.dtype_ == dtype
    bound = {"float64": 1e-5, "bfloat16": 0.05}[dtype]
    want = logits_by_hand(x)
    assert np.linalg.norm(est.decision_function(x) - want.numpy()) < bound * want.norm()


def test_class_names_are_sorted_with_their_outputs(file):
    est, x = loaded(file, class_names=["wolf", "ape", "crane"]), images()
    assert est.classes_.tolist() == ["ape", "crane", "wolf"]
    want = logits_by_hand(x)
    names = np.array(["wolf", "ape", "crane"])
    np.testing.assert_array_equal(est.predict(x), names[want.argmax(1)])
    np.testing.assert_allclose(est.predict_proba(x)[:, 2], want.softmax(1)[:, 0], rtol=1e-4)


def test_equal_names_are_numbered(file):
    est = loaded(file, class_names=["crane", "ape", "crane"])
    assert est.classes_.tolist() == ["ape", "crane (0)", "crane (2)"]


def test_names_of_another_number_are_refused(file):
    with pytest.raises(ValueError, match=r"class_names: the file has 3 outputs, got 2 names"):
        loaded(file, class_names=["a", "b"])


@pytest.mark.parametrize("shape", [(3, 10, 10), (10,), (0, 10)])
def test_shapes_are_height_and_width(file, shape):
    with pytest.raises(ValueError, match=r"image_shape: must be \(height, width\)"):
        ResNetClassifier.from_pretrained(file, image_shape=shape)


def test_predict_top(file):
    est, x = loaded(file, class_names=["a", "b", "c"]), images()
    labels, p = est.predict_top(x, k=2)
    assert labels.shape == p.shape == (12, 2)
    np.testing.assert_array_equal(labels[:, 0], est.predict(x))
    np.testing.assert_allclose(p[:, 0], est.predict_proba(x).max(1))
    assert (p[:, 0] >= p[:, 1]).all()
    _, p = est.predict_top(x, k=3)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    for k in (0, 4, 1.5, True):
        with pytest.raises(ValueError, match=r"k: must be an integer from 1 to 3"):
            est.predict_top(x, k=k)
    with pytest.raises(NotFittedError):
        ResNetClassifier().predict_top(x)


def test_lives_like_any_fitted_estimator(file, tmp_path):
    est, x = loaded(file, class_names=["a", "b", "c"]), images()
    want = est.predict_proba(x)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(est)).predict_proba(x), want)
    est.save(tmp_path / "est.npz")
    np.testing.assert_array_equal(
        ResNetClassifier.load(tmp_path / "est.npz").predict_proba(x), want
    )
    assert clone(est).weights == str(file)
    est.save_weights(tmp_path / "again.safetensors")
    again = loaded(tmp_path / "again.safetensors", class_names=["a", "b", "c"])
    np.testing.assert_array_equal(again.predict_proba(x), want)


def test_grey_networks_get_the_mean_of_the_colours(tmp_path):
    path = tmp_path / "grey.pth"
    write_weights(path, to_arrays(model_of(small(in_channels=1))))
    est = loaded(path)
    assert est.pixel_mean_ == pytest.approx([255 * (0.485 + 0.456 + 0.406) / 3])
    assert est.predict(images(channels=1)).shape == (12,)


def test_files_are_resized_to_the_shape(file, tmp_path):
    image = pytest.importorskip("PIL.Image")
    x = images(2)
    for i, pixels in enumerate(x):
        image.fromarray(pixels).resize((40, 40), image.Resampling.NEAREST).save(
            tmp_path / f"{i}.png"
        )
    paths = [str(tmp_path / f"{i}.png") for i in range(2)]
    est = loaded(file)
    assert est.predict_proba(paths).shape == (2, 3)
    near = est.decision_function(paths) - est.decision_function(x)
    assert np.abs(near).max() < 0.5 * np.abs(est.decision_function(x)).max()


@pytest.mark.parametrize("views", ["flip", "ten_crop"])
def test_views_are_averaged(file, views):
    x = images(side=16)  # 14 of 16: the centre is the centre of the mirror image too
    est = ResNetClassifier.from_pretrained(file, image_shape=(16, 16))
    plain = est.predict_proba(x)
    est.set_params(test_augmentation=views)
    p = est.predict_proba(x)
    np.testing.assert_allclose(p, est.predict_proba(x[:, :, ::-1]), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.exp(est.predict_log_proba(x)), p, rtol=1e-5)
    if views == "flip":
        mirrored = est.set_params(test_augmentation=None).predict_proba(x[:, :, ::-1])
        np.testing.assert_allclose(p, (plain + mirrored) / 2, rtol=1e-4, atol=1e-6)


# -- a start for fit ----------------------------------------------------------------------------

QUICK = {"max_iter": 2, "batch_size": 6, "random_state": 0, "augmentation": None}


def fitted(est, n_classes=3, **options):
    y = np.arange(12) % n_classes
    return est.set_params(**QUICK, **options).fit(images(), y)


def test_fit_starts_from_the_file(file):
    """With a rate of nothing, what comes out is what went in."""
    est = fitted(loaded(file), learning_rate_init=1e-30, weight_decay=0.0)
    for name, array in to_arrays(model_of()).items():
        if "running" not in name and "tracked" not in name:
            np.testing.assert_array_equal(est.state_dict_[name], array, err_msg=name)


def test_another_number_of_classes_gets_a_new_head(file):
    est = fitted(loaded(file), 2, learning_rate_init=1e-30, weight_decay=0.0)
    assert est.state_dict_["fc.weight"].shape == (2, 16)
    stem = to_arrays(model_of())["conv1.weight"]
    np.testing.assert_array_equal(est.state_dict_["conv1.weight"], stem)
    again = fitted(loaded(file), 2, learning_rate_init=1e-30, weight_decay=0.0)
    np.testing.assert_array_equal(again.state_dict_["fc.weight"], est.state_dict_["fc.weight"])


def test_the_same_with_the_structure_as_parameters(file):
    given = ResNetClassifier(depth=8, width=4, weights=file)
    a, b = fitted(given), fitted(loaded(file))
    np.testing.assert_allclose(a.pixel_mean_, b.pixel_mean_)
    for name, array in a.state_dict_.items():
        np.testing.assert_array_equal(b.state_dict_[name], array)


def test_another_structure_is_refused(file):
    with pytest.raises(
        ValueError, match=r"body.pth' has depth=8, width=4, but .*depth=20, width=16"
    ):
        fitted(ResNetClassifier(weights=file))
    with pytest.raises(
        ValueError, match=r"has shortcut='A', but the parameters ask for shortcut='B'"
    ):
        fitted(ResNetClassifier(depth=8, width=4, shortcut="B", weights=file))


def test_plain_weights_start_a_plain_network(file):
    est = fitted(ResNetClassifier(depth=8, width=4, shortcut=None, weights=file))
    assert est._spec.shortcut is None


@pytest.mark.parametrize("stage", ["stem", "layer1", "layer2", "avgpool"])
@pytest.mark.parametrize("solver", ["sgd", "adamw"])
def test_frozen_stages_stay_as_they_are(file, stage, solver):
    est = fitted(loaded(file), freeze=stage, solver=solver, clip_norm=1.0)
    names = ("stem", "layer1", "layer2", "layer3", "avgpool")
    kept = {"stem": ("conv1.", "bn1."), "avgpool": ()}
    prefixes = [
        prefix
        for name in names[: names.index(stage) + 1]
        for prefix in kept.get(name, (f"{name}.",))
    ]
    for name, array in to_arrays(model_of()).items():
        same = np.array_equal(est.state_dict_[name], array)
        if name.endswith("tracked"):
            continue
        assert same == name.startswith(tuple(prefixes)), name


def test_frozen_statistics_predict_in_training_too(file):
    """A linear probe: logistic regression on fixed features, whatever the batches."""
    est = loaded(file)
    features, y = est.transform(images()), np.arange(12) % 3
    est = fitted(est, freeze="avgpool", learning_rate="constant", weight_decay=0.0, momentum=0.0)
    W = torch.from_numpy(to_arrays(model_of())["fc.weight"]).requires_grad_()
    b = torch.from_numpy(to_arrays(model_of())["fc.bias"]).requires_grad_()
    h, losses = torch.from_numpy(features), []
    est.set_params(batch_size=12).fit(images(), y)
    for _ in range(2):
        loss = torch.nn.functional.cross_entropy(h @ W.T + b, torch.from_numpy(y))
        losses.append(loss.item())
        gW, gb = torch.autograd.grad(loss, (W, b))
        with torch.no_grad():
            W -= 0.1 * gW
            b -= 0.1 * gb
    np.testing.assert_allclose(est.loss_curve_, losses, rtol=1e-4)
    # two float32 paths: other products, other order of sums
    np.testing.assert_allclose(est.state_dict_["fc.weight"], W.detach(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("solver", ["sgd", "adamw"])
def test_the_body_moves_less(file, solver):
    """One step: the update of the body is the factor times what it would have been."""
    start = to_arrays(model_of())
    moved = {}
    for factor in (1.0, 0.25, 0.0):
        est = loaded(file).set_params(body_lr_factor=factor, batch_size=12, solver=solver)
        est.set_params(max_iter=1, random_state=0, augmentation=None, learning_rate="constant")
        moved[factor] = est.fit(images(), np.arange(12) % 3).state_dict_
    for name, array in start.items():
        if "running" in name or "tracked" in name:
            continue
        whole, part, none = (moved[f][name] - array for f in (1.0, 0.25, 0.0))
        if name.startswith("fc."):
            np.testing.assert_array_equal(part, whole)
            np.testing.assert_array_equal(none, whole)
        else:
            # differences of float32 weights: what is left of their digits
            np.testing.assert_allclose(part, 0.25 * whole, rtol=1e-3, atol=1e-6)
            np.testing.assert_array_equal(none, 0)


@pytest.mark.parametrize("stage", ["fc", "layer4", "head"])
def test_stages_that_cannot_be_frozen(file, stage):
    with pytest.raises(ValueError, match=r"freeze: must be None or one of \['stem', 'layer1'"):
        fitted(loaded(file), freeze=stage)


# -- the real weights ---------------------------------------------------------------------------


def test_real_weights_by_name(data_dir):
    image = pytest.importorskip("PIL.Image")
    (path,) = (data_dir / "weights").glob("resnet20-*")
    names = json.loads((data_dir / "images" / "class_names.json").read_text())["cifar10"]
    est = ResNetClassifier.from_pretrained(path, class_names=names, dtype="bfloat16")
    folder = data_dir / "images" / "cifar10"
    sheet = np.asarray(image.open(folder / "x_test_00.webp"))
    x = sheet.reshape(50, 32, 50, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)[:300]
    y = np.array(names)[np.load(folder / "y_test.npy")[:300]]
    labels, _ = est.predict_top(x, k=3)
    assert (labels[:, 0] == y).mean() > 0.88
    assert (labels == y[:, None]).any(1).mean() > 0.97


def test_generator_is_not_global(file):
    before = torch.random.get_rng_state()
    fitted(loaded(file), 2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert generator().initial_seed() == 0
