"""What counts as images: arrays, rows of a table, mapped files, paths, folders."""

import builtins
import os
import re

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.model_selection import cross_val_score, train_test_split

from sknn_resid import ImageFolder, ResNetClassifier
from sknn_resid.engine.data import is_mapped
from sknn_resid.neural_network import _image_files
from sknn_resid.neural_network._images import images_for_fit, images_for_predict

Image = pytest.importorskip("PIL.Image")

TINY = {"depth": 8, "width": 2, "max_iter": 1, "random_state": 0}


def seen(X, **params):
    """Images as the estimator reads them."""
    clf = ResNetClassifier(**TINY, **params)
    return clf, images_for_fit(clf, X, reset=True)


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ((8, 8), (8, 8, 1)),
        ((8, 8, 3), (8, 8, 3)),
        ((3, 8, 8), (8, 8, 3)),
        ((1, 28, 28), (28, 28, 1)),
        ((28, 28, 1), (28, 28, 1)),
        ((6, 9, 4), (6, 9, 4)),
        ((4, 6, 9), (6, 9, 4)),
        ((3, 32, 64), (32, 64, 3)),
    ],
)
def test_channels_are_found(axes, shape):
    X = np.random.RandomState(0).rand(5, *axes).astype(np.float32)
    clf, images = seen(X)
    assert images.shape == clf.image_shape_ == shape
    assert clf.n_features_in_ == np.prod(shape)
    first = len(axes) == 3 and shape != axes
    wanted = X.transpose(0, 2, 3, 1) if first else X.reshape(5, *shape)
    assert_array_equal(images.array, wanted)
    assert_array_equal(images.read(np.array([1, 3])), wanted[[1, 3]])


@pytest.mark.parametrize("axes", [(4, 4, 4), (3, 8, 3), (32, 32, 64), (64, 32, 32)])
def test_channels_are_not_guessed(axes):
    X = np.zeros((5, *axes), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"X: which axis of \(.*channels='last'.*'first'"):
        ResNetClassifier(**TINY).fit(X, range(5))
    assert seen(X, channels="last")[1].shape == axes
    assert seen(X, channels="first")[1].shape == (*axes[1:], axes[0])


def test_rows_of_a_table():
    X = np.arange(30.0).reshape(6, 5)
    _, images = seen(X)
    assert images.flat
    assert images.shape == (3, 3, 1)
    assert_array_equal(images.array[:, :, :, 0].reshape(6, 9)[:, :5], X)
    assert_array_equal(images.array[:, :, :, 0].reshape(6, 9)[:, 5:], 0)
    assert seen(X[:, :1])[1].shape == (1, 1, 1)
    assert seen(X.astype(np.uint8))[1].dtype == np.uint8
    assert seen(X.tolist())[1].dtype == np.float64
    _, images = seen(X[:, :4], image_shape=(2, 2))
    assert_array_equal(images.array, X[:, :4].reshape(6, 2, 2, 1))
    pd = pytest.importorskip("pandas")
    clf, _ = seen(pd.DataFrame(X, columns=list("abcde")))
    assert clf.feature_names_in_.tolist() == list("abcde")


def test_lists_of_images():
    X = np.random.RandomState(0).rand(4, 5, 5, 3)
    for given in (list(X), X.tolist()):
        _, images = seen(given)
        assert_array_equal(images.array, X)


@pytest.mark.parametrize(
    ("X", "params", "message"),
    [
        (np.zeros((3, 2, 2, 2, 1)), {}, r"4 axes .* or 3 .*, got 5 axes"),
        (np.zeros((0, 8, 8)), {}, r"0 sample\(s\)"),
        (np.zeros((3, 0, 8)), {}, r"empty images"),
        (np.zeros((3, 4, 4), dtype=complex), {}, "Complex data not supported"),
        (np.full((3, 4, 4), "a"), {}, "pixels must be numbers, got dtype"),
        (np.zeros((3, 4)), {"image_shape": (3, 3)}, "has 9 numbers, but the rows of X have 4"),
        (np.zeros((3, 4)), {"image_shape": (4,)}, r"image_shape: must be \(height, width\)"),
        (np.zeros((3, 4)), {"image_shape": (2, 0, 2)}, "each at least 1"),
        ("folder/cat.png", {}, "got one path, 'folder/cat.png'"),
        (["a.png", 3, "b.png"], {}, "item 1 of a sequence of paths is none: 3"),
        (np.zeros((3, 4, 4)), {"pixel_mean": [1, 2]}, "pixel_mean: .* each of the 1 channels"),
        (np.zeros((3, 4, 4)), {"pixel_std": [0.0]}, "pixel_std: must be positive"),
    ],
)
def test_bad_images(X, params, message):
    with pytest.raises(ValueError, match=message):
        ResNetClassifier(**TINY, **params).fit(X, [0, 1, 1])


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinity")])
def test_pixels_that_are_no_numbers(value, word):
    X = np.zeros((600, 4, 4, 2), dtype=np.float32)
    X[513, 2, 3, 1] = value
    message = rf"contains {word}: pixel \[513, 2, 3, 1\]"
    with pytest.raises(ValueError, match=f"Input X {message}"):
        ResNetClassifier(**TINY).fit(X, np.arange(600) % 2)
    clf = ResNetClassifier(**TINY).fit(np.zeros((6, 4, 4, 2)), [0, 1] * 3)
    with pytest.raises(ValueError, match=message):
        clf.predict(X)
    with pytest.raises(ValueError, match=f"X_val: Input X {message}"):
        clf.fit(np.zeros((6, 4, 4, 2)), [0, 1] * 3, X_val=X, y_val=np.arange(600) % 2)


def test_images_of_another_size():
    clf = ResNetClassifier(**TINY).fit(np.zeros((6, 8, 8, 3)), [0, 1] * 3)
    for X in (np.zeros((2, 8, 9, 3)), np.zeros((2, 8, 8, 1)), np.zeros((2, 8, 8))):
        with pytest.raises(ValueError, match=r"X: images of shape .* was fitted on .*\(8, 8, 3\)"):
            clf.predict(X)
    with pytest.raises(ValueError, match="X has 3 features, but ResNetClassifier is expecting 192"):
        clf.predict(np.zeros((2, 3)))


def test_a_mapped_file_is_not_read_as_a_whole(tmp_path):
    X = np.random.RandomState(0).randint(256, size=(40, 6, 6, 3)).astype(np.uint8)
    y = np.arange(40) % 3
    np.save(tmp_path / "images.npy", X)
    for mode in ("r", "r+"):
        mapped = np.load(tmp_path / "images.npy", mmap_mode=mode)
        _, images = seen(mapped)
        assert images.array is None
        assert is_mapped(mapped)
        part = images.read(np.array([3, 8]))
        assert_array_equal(part, X[[3, 8]])
    params = TINY | {"batch_size": 16}
    a, b = ResNetClassifier(**params).fit(X, y), ResNetClassifier(**params).fit(mapped, y)
    assert a.loss_curve_ == b.loss_curve_
    assert_array_equal(a.predict_proba(X), b.predict_proba(mapped))
    assert_array_equal(images_for_predict(a, mapped).read(np.arange(4)), X[:4])


# -- files --------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Twelve images of two classes, one of them a level deeper, and files that are none."""
    rng = np.random.RandomState(0)
    for c, name in enumerate(("cat", "dog")):
        (tmp_path / name / "more").mkdir(parents=True)
        for i in range(6):
            pixels = rng.randint(128, size=(8, 8, 3)) + 127 * c
            place = tmp_path / name / ("more" if i == 5 else "")
            Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i}.png")
        (tmp_path / name / "notes.txt").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    return tmp_path


def test_a_folder(folder):
    found = ImageFolder(folder)
    assert found.classes == ["cat", "dog"]
    assert len(found) == 12
    assert found.targets.tolist() == ["cat"] * 6 + ["dog"] * 6
    assert all(os.path.isfile(path) for path in found)
    assert found[0].endswith("0.png")
    assert len(found[2:5]) == 3
    assert repr(found) == f"ImageFolder({str(folder)!r}): 12 images of 2 classes"
    clf = ResNetClassifier(**TINY | {"max_iter": 20}, batch_size=4, augmentation=None)
    clf.fit(found, found.targets)
    assert clf.image_shape_ == (8, 8, 3)
    assert clf.score(found, found.targets) == 1.0
    # The same as the pixels themselves.
    pixels = np.stack([np.asarray(Image.open(path)) for path in found])
    assert_array_equal(clf.predict_proba(pixels), clf.predict_proba(list(found)))
    again = ResNetClassifier(**clf.get_params()).fit(pixels, found.targets)
    assert again.loss_curve_ == clf.loss_curve_
    # And it can be split like a list.
    train, test, y_train, y_test = train_test_split(found, found.targets, random_state=0)
    clf.fit(train, y_train).predict(test)
    assert len(cross_val_score(clf, found, found.targets, cv=2)) == 2
    clf.set_params(early_stopping=True, validation_fraction=0.5)
    clf.set_params(early_stopping_metric="balanced_accuracy").fit(found, found.targets)
    assert len(clf.validation_scores_) == clf.n_iter_
    assert len(y_test) == 3


def test_files_are_read_batch_by_batch_where_they_are_many(folder, monkeypatch):
    found = ImageFolder(folder)
    params = TINY | {"batch_size": 4}
    whole = ResNetClassifier(**params).fit(found, found.targets)
    monkeypatch.setattr("sknn_resid.neural_network._images.CACHED_BYTES", 0)
    _, images = seen(found)
    assert images.array is None
    streamed = ResNetClassifier(**params).fit(found, found.targets)
    assert streamed.loss_curve_ == whole.loss_curve_
    assert_array_equal(streamed.predict_proba(found), whole.predict_proba(found))


def test_files_are_resized_only_when_asked(folder):
    Image.fromarray(np.full((16, 40, 3), 50, np.uint8)).save(folder / "cat" / "wide.png")
    found = ImageFolder(folder)
    with pytest.raises(ValueError, match=r"image_shape: without one .*wide.png' is 16 x 40"):
        ResNetClassifier(**TINY).fit(found, found.targets)
    _, images = seen(found, image_shape=(4, 4))
    assert images.shape == (4, 4, 3)
    assert_array_equal(images.array[6], 50)
    assert seen(found, image_shape=(4, 4, 1))[1].shape == (4, 4, 1)
    assert seen(found, image_shape=(6, 5, 4))[1].shape == (6, 5, 4)
    with pytest.raises(ValueError, match="1, 3 or 4 channels"):
        seen(found, image_shape=(4, 4, 2))


def test_kinds_of_paths(folder):
    found = ImageFolder(folder)
    pd = pytest.importorskip("pandas")
    _, wanted = seen(found)
    for paths in (
        list(found),
        tuple(found),
        np.array(list(found)),
        np.array(list(found), dtype=object),
        pd.Series(list(found), index=range(5, 17)),
        sorted(folder.glob("*/*.png")) + sorted(folder.glob("*/more/*.png")),
    ):
        _, images = seen(paths)
        assert images.n_rows == 12
        assert images.shape == wanted.shape
    assert_array_equal(seen(list(found))[1].array, wanted.array)


def test_files_that_are_no_images(folder):
    (folder / "cat" / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"broken.png' cannot be read as an image"):
        seen(ImageFolder(folder))
    whole = (folder / "dog" / "1.png").read_bytes()
    (folder / "cat" / "broken.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"broken.png' cannot be read as an image"):
        seen(ImageFolder(folder))
    with pytest.raises(ValueError, match=r"there is no file 'nowhere\.png'"):
        seen(["nowhere.png"])


def test_bad_folders(tmp_path):
    with pytest.raises(ValueError, match=r"root: .*nowhere' is not a folder"):
        ImageFolder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has no subfolders"):
        ImageFolder(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(ValueError, match=r"class 'cat' .* has no file that ends in one of \.bmp"):
        ImageFolder(tmp_path)
    (tmp_path / "cat" / "a.XYZ").write_bytes(b"")
    assert len(ImageFolder(tmp_path, extensions=(".xyz",))) == 1


def test_without_pillow(folder, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("PIL"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=re.escape("pip install 'sknn-resid[images]'")):
        _image_files.first_shape(str(folder / "cat" / "0.png"))
