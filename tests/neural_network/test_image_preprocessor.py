"""Photographs to arrays: against torchvision, Pillow, and by hand."""

from __future__ import annotations

import builtins

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks

from sknn_resid import ImageFolder, ImagePreprocessor, ResNetClassifier


def picture(height, width, channels=3, seed=0):
    """Smooth, so that resizing has something to average."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 7 + 2, width // 7 + 2, channels))
    fine = np.kron(coarse, np.ones((7, 7, 1)))[:height, :width]
    return np.clip(fine + rng.integers(-5, 6, fine.shape), 0, 255).astype(np.uint8)


@pytest.fixture
def files(tmp_path):
    image = pytest.importorskip("PIL.Image")
    paths = []
    for i, (h, w) in enumerate([(60, 90), (90, 60), (61, 200)]):
        image.fromarray(picture(h, w, seed=i)).save(tmp_path / f"{i}.png")
        paths.append(str(tmp_path / f"{i}.png"))
    return paths


def test_files_as_pillow_does_it(files):
    image = pytest.importorskip("PIL.Image")
    got = ImagePreprocessor(32, 28).fit_transform(files)
    assert got.shape == (3, 28, 28, 3)
    assert got.dtype == np.uint8
    for pixels, path, size in zip(got, files, [(48, 32), (32, 48), (104, 32)], strict=True):
        with image.open(path) as whole:
            want = np.asarray(whole.resize(size, image.Resampling.BILINEAR))
        top, left = (size[1] - 28) // 2, (size[0] - 28) // 2
        np.testing.assert_array_equal(pixels, want[top : top + 28, left : left + 28])


@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (333, 500), (64, 64)])
def test_arrays_like_files(shape, tmp_path):
    image = pytest.importorskip("PIL.Image")
    pixels = picture(*shape)
    image.fromarray(pixels).save(tmp_path / "a.png")
    pre = ImagePreprocessor(40, 32)
    by_file = pre.transform([str(tmp_path / "a.png")]).astype(int)
    for X in ([pixels], pixels[None], [image.fromarray(pixels)], [pixels.transpose(2, 0, 1)]):
        got = pre.transform(X)
        assert got.dtype == np.uint8
        assert np.abs(got - by_file).max() <= 1


@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (232, 224), (None, 64), (80, None)])
@pytest.mark.parametrize("shape", [(300, 400), (401, 303), (101, 100)])
def test_torchvision(resize, crop, shape, tmp_path):
    transforms = pytest.importorskip("torchvision.transforms")
    image = pytest.importorskip("PIL.Image")
    photograph = image.fromarray(picture(*shape))
    steps = [] if resize is None else [transforms.Resize(resize)]
    steps += [] if crop is None else [transforms.CenterCrop(crop)]
    normal = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    want = transforms.Compose([*steps, transforms.ToTensor(), normal])(photograph)
    got = ImagePreprocessor(resize, crop, normalize=True).transform([photograph])
    np.testing.assert_allclose(got[0].transpose(2, 0, 1), want, rtol=1e-5, atol=1e-5)


def test_centre_and_black_border_by_hand():
    x = np.arange(1, 26, dtype=np.uint8).reshape(1, 5, 5)
    inner = ImagePreprocessor(None, 3).transform(x)
    np.testing.assert_array_equal(inner[0, :, :, 0], [[7, 8, 9], [12, 13, 14], [17, 18, 19]])
    outer = ImagePreprocessor(None, 7).transform(x)
    np.testing.assert_array_equal(outer[0, 1:6, 1:6, 0], x[0])
    assert outer.sum() == x.sum()


def test_averages_over_the_area():
    """Antialiased: a fine chequerboard becomes grey, not black or white."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    got = ImagePreprocessor(8, None).transform(board[None])
    assert got.shape == (1, 8, 8, 1)
    assert np.abs(got.astype(int) - 127).max() <= 3


def test_normalized_by_hand():
    x = np.full((1, 4, 4, 3), 255, np.uint8)
    got = ImagePreprocessor(None, None, normalize=True, mean=0.5, std=(1, 2, 4)).transform(x)
    np.testing.assert_allclose(got[0, 0, 0], [0.5, 0.25, 0.125])
    assert got.dtype == np.float32
    same = ImagePreprocessor(None, None, normalize=True, mean=0.5, std=(1, 2, 4)).transform(x / 255)
    np.testing.assert_allclose(same, got, rtol=1e-6)


def test_grey_files_become_colour(tmp_path):
    image = pytest.importorskip("PIL.Image")
    image.fromarray(picture(40, 40, 1)[..., 0]).save(tmp_path / "grey.png")
    got = ImagePreprocessor(32, 32).transform([str(tmp_path / "grey.png")])
    assert got.shape == (1, 32, 32, 3)
    assert (got[..., 0] == got[..., 2]).all()


@pytest.mark.parametrize(
    ("X", "options", "message"),
    [
        (np.full((2, 4, 4, 3), 7.0), {"normalize": True}, r"between 0 and 1, seen 7 to 7"),
        (np.full((2, 4, 4, 3), np.nan), {}, r"X: image 0 holds NaN"),
        (np.zeros((2, 5, 5, 4), np.uint8), {"normalize": True}, r"mean: .* the 4 channels"),
        (
            [np.zeros((4, 4, 3)), np.zeros((5, 4, 3))],
            {"crop": None},
            r"image 1 ends as .*\(5, 4, 3",
        ),
        ([np.zeros(3)], {}, r"item 0 must be a path"),
        ([], {}, r"found 0 images"),
        (np.zeros((2, 4)), {}, r"X: an array of images has 4 axes|item 0"),
        ("one.png", {}, r"X: got one path"),
        (["nowhere.png"], {}, r"there is no file 'nowhere.png'"),
        (np.array([["a"]]), {}, r"4 axes|numbers"),
        (np.zeros((1, 3, 5, 3)), {"channels": "auto"}, r"cannot be told"),
    ],
)
def test_bad_images(X, options, message):
    params = {"resize": None, "crop": 2} | options
    with pytest.raises(ValueError, match=message):
        ImagePreprocessor(**params).transform(X)


@pytest.mark.parametrize("bad", [{"resize": 0}, {"crop": 1.5}, {"normalize": "yes"}, {"std": -1.0}])
def test_bad_parameters(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        ImagePreprocessor(**bad).fit(None)
    with pytest.raises(ValueError, match=next(iter(bad))):
        ImagePreprocessor(**bad).transform(np.zeros((1, 4, 4, 3)))


def test_without_pillow(monkeypatch):
    def refuse(name, *args, **kwargs):
        if name.startswith("PIL"):
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    imported = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"needs Pillow: pip install 'sknn-resid\[images\]'"):
        ImagePreprocessor().transform(["a.png"])
    assert ImagePreprocessor(8, 8).transform(picture(20, 30)[None]).shape == (1, 8, 8, 3)


def test_stands_before_a_network(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for i in range(12):
        folder = tmp_path / "ab"[i % 2]
        folder.mkdir(exist_ok=True)
        pixels = picture(30 + i, 40, seed=i) // 4 + (i % 2) * 150
        image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    folder = ImageFolder(tmp_path)
    net = ResNetClassifier(depth=8, width=4, max_iter=10, random_state=0, batch_size=6)
    model = make_pipeline(ImagePreprocessor(18, 16), net).fit(folder, folder.targets)
    assert model.score(folder, folder.targets) == 1.0


def test_is_a_transformer_like_others():
    pre = ImagePreprocessor(20, 16, normalize=True, mean=0.5)
    assert clone(pre).get_params() == pre.get_params()
    tags = pre.__sklearn_tags__()
    assert not tags.requires_fit
    assert not tags.input_tags.two_d_array
    X = picture(30, 30)[None]
    np.testing.assert_array_equal(pre.transform(X), pre.fit(X).transform(X))


@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_parameters_default_constructible,
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_set_params,
        estimator_checks.check_estimator_cloneable,
        estimator_checks.check_estimator_repr,
        estimator_checks.check_estimator_tags_renamed,
        estimator_checks.check_valid_tag_types,
        estimator_checks.check_mixin_order,
    ],
)
def test_checks_of_scikit_learn_that_send_no_table(check):
    """Its generator skips an estimator that does not take tables; these need none."""
    check("ImagePreprocessor", ImagePreprocessor())


def test_photographs(data_dir):
    folder = data_dir / "images" / "imagenet_samples"
    paths = sorted(str(path) for path in folder.glob("*.JPEG"))[:6]
    assert ImagePreprocessor().transform(paths).shape == (6, 224, 224, 3)
