"""`ResNetClassifier` as a user meets it: kinds of images, weights, refits, searches, files."""

import copy
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sknn_resid import ResNetClassifier, stacked

TINY = {"depth": 8, "width": 4, "max_iter": 3, "random_state": 0}


def make_images(n=40, shape=(8, 8, 3), n_classes=3, seed=0, dtype=np.float32):
    """Bars whose place tells the class, in noise."""
    rng = np.random.RandomState(seed)
    y = rng.randint(n_classes, size=n)
    X = rng.randn(n, *shape)
    for i, code in enumerate(y):
        X[i, 2 * code : 2 * code + 2] += 2.0
    if dtype == np.uint8:
        X = np.clip(128 + 30 * X, 0, 255)
    return X.astype(dtype), np.array(["ant", "bee", "cat", "dog"])[y]


def assert_same_model(a, b):
    """Bit for bit."""
    assert list(a.state_dict_) == list(b.state_dict_)
    for name, array in a.state_dict_.items():
        assert_array_equal(array, b.state_dict_[name], err_msg=name)
    assert a.loss_curve_ == b.loss_curve_


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_it_learns(dtype):
    X, y = make_images(160, dtype=dtype)
    clf = ResNetClassifier(depth=8, width=4, max_iter=15, batch_size=32, random_state=0)
    clf.set_params(augmentation=None)
    clf.fit(X[:120], y[:120])
    assert clf.score(X[120:], y[120:]) > 0.9
    assert clf.dtype_ == "float32"
    assert clf.image_shape_ == (8, 8, 3)
    assert clf.n_features_in_ == 192
    assert len(clf.loss_curve_) == clf.n_iter_ == 15
    assert clf.t_ == 15 * 120


def test_the_two_layouts_and_rows_of_a_table_are_one_thing():
    X, y = make_images(dtype=np.float32)
    params = TINY | {"augmentation": None}
    last = ResNetClassifier(**params).fit(X, y)
    first = ResNetClassifier(**params).fit(X.transpose(0, 3, 1, 2), y)
    assert_same_model(last, first)
    rows = ResNetClassifier(**params, image_shape=(8, 8, 3)).fit(X.reshape(40, -1), y)
    assert_same_model(last, rows)
    rows_first = ResNetClassifier(**params, image_shape=(3, 8, 8))
    rows_first.fit(X.transpose(0, 3, 1, 2).reshape(40, -1), y)
    assert_same_model(last, rows_first)
    # And predict takes any of them; a table is read in the order of fit.
    wanted = last.predict_proba(X)
    first_rows = X.transpose(0, 3, 1, 2).reshape(40, -1)
    assert_array_equal(first.predict_proba(first_rows), wanted)
    assert_array_equal(first.predict_proba(X), wanted)
    assert_array_equal(last.predict_proba(X.transpose(0, 3, 1, 2)), wanted)
    assert_array_equal(last.predict_proba(X.reshape(40, -1)), wanted)
    assert_array_equal(rows_first.predict_proba(X), wanted)


def test_bytes_and_equal_numbers_give_equal_networks():
    X, y = make_images(dtype=np.uint8)
    a = ResNetClassifier(**TINY).fit(X, y)
    b = ResNetClassifier(**TINY).fit(X.astype(np.float32), y)
    assert_same_model(a, b)
    assert_array_equal(a.predict_proba(X), a.predict_proba(X.astype(np.int64)))


def test_pixels_are_scaled_by_channel():
    """A channel in other units changes nothing; a given mean and deviation are taken."""
    X, y = make_images(dtype=np.float64)
    params = TINY | {"dtype": "float64", "augmentation": None}
    a = ResNetClassifier(**params).fit(X, y)
    assert_allclose(a.pixel_mean_, X.mean((0, 1, 2)), rtol=1e-12)
    assert_allclose(a.pixel_std_, X.std((0, 1, 2)), rtol=1e-12)
    factor, shift = np.array([1e3, 1.0, 1e-3]), np.array([5e3, 0.0, 7.0])
    b = ResNetClassifier(**params).fit(X * factor + shift, y)
    assert_allclose(b.predict_proba(X * factor + shift), a.predict_proba(X), rtol=1e-8)
    c = ResNetClassifier(**params, pixel_mean=a.pixel_mean_, pixel_std=list(a.pixel_std_))
    assert_same_model(c.fit(X, y), a)


def test_weights_of_pixels():
    X, y = make_images(12, dtype=np.float64)
    w = np.arange(12.0)
    clf = ResNetClassifier(**TINY).fit(X, y, w)
    mean = np.average(X, axis=0, weights=w).mean((0, 1))
    assert_allclose(clf.pixel_mean_, mean, rtol=1e-12)
    var = np.average((X - mean) ** 2, axis=0, weights=w).mean((0, 1))
    assert_allclose(clf.pixel_std_, np.sqrt(var), rtol=1e-12)


# -- invariances, with images of four axes in float64 -------------------------------------------

EXACT = TINY | {"dtype": "float64", "augmentation": None}
VARIANTS = [
    {},
    {"shortcut": None},
    {"shortcut": "B", "preactivation": True},
    {"early_stopping": True},
    {"class_weight": "balanced"},
    {"average_fraction": 0.2, "label_smoothing": 0.1, "solver": "adamw"},
    {"accumulate_steps": 1, "batch_size": 64},
]


@pytest.mark.filterwarnings("ignore:early_stopping:RuntimeWarning")
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_weight_is_a_repeated_row(variant):
    X, y = make_images(15, dtype=np.float64)
    w = np.array([3, 3, 4, 0, 0, 2, 4, 3, 0, 3, 0, 0, 0, 4, 1])
    weighted = ResNetClassifier(**EXACT | variant).fit(X, y, w)
    order = np.random.RandomState(1).permutation(w.sum())
    rows = np.repeat(np.arange(15), w)[order]
    repeated = ResNetClassifier(**EXACT | variant).fit(X[rows], y[rows])
    assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), rtol=1e-7, atol=1e-9)
    assert_allclose(weighted.transform(X), repeated.transform(X), rtol=1e-7, atol=1e-9)
    assert_allclose(weighted.loss_curve_, repeated.loss_curve_, rtol=1e-9)


@pytest.mark.parametrize("variant", VARIANTS[:3], ids=str)
def test_the_order_of_rows_does_not_matter(variant):
    X, y = make_images(30, dtype=np.float64)
    a = ResNetClassifier(**EXACT | variant).fit(X, y)
    order = np.random.RandomState(1).permutation(30)
    b = ResNetClassifier(**EXACT | variant).fit(X[order], y[order])
    assert_allclose(a.predict_proba(X), b.predict_proba(X), rtol=1e-7, atol=1e-9)
    assert_allclose(a.predict_proba(X)[order], a.predict_proba(X[order]), rtol=1e-9)
    for i in (0, 7):
        assert_allclose(a.predict_proba(X[i : i + 1]), a.predict_proba(X)[[i]], rtol=1e-7)


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"dtype": "bfloat16"},
        {"augmentation": "crop_alternating_flip", "cutout": 3, "mixup": 0.4},
        {"drop_path": 0.3, "average_fraction": 0.1},
        {"early_stopping": True, "validation_fraction": 0.3, "accumulate_steps": 2},
    ],
    ids=str,
)
def test_refits_are_equal_bit_for_bit(variant):
    X, y = make_images(dtype=np.uint8)
    state = torch.random.get_rng_state()
    params = TINY | {"batch_size": 16} | variant
    a, b = (ResNetClassifier(**params).fit(X, y) for _ in range(2))
    assert_same_model(a, b)
    assert_array_equal(a.predict_proba(X), b.predict_proba(X))
    assert torch.equal(torch.random.get_rng_state(), state)
    other = ResNetClassifier(**params | {"random_state": 1}).fit(X, y)
    assert other.loss_curve_ != a.loss_curve_


def test_weights_differ_from_none():
    """They are not dropped on the way: with minibatches too."""
    X, y = make_images()
    w = np.random.RandomState(0).rand(40)
    params = TINY | {"batch_size": 16}
    assert (
        ResNetClassifier(**params).fit(X, y).loss_curve_
        != ResNetClassifier(**params).fit(X, y, w).loss_curve_
    )
    equal = ResNetClassifier(**params).fit(X, y, np.full(40, 0.25))
    assert_allclose(equal.loss_curve_, ResNetClassifier(**params).fit(X, y).loss_curve_, rtol=1e-4)


# -- outputs ------------------------------------------------------------------------------------


def test_outputs_agree():
    X, y = make_images()
    clf = ResNetClassifier(**TINY).fit(X, y)
    p, z = clf.predict_proba(X), clf.decision_function(X)
    assert_allclose(p.sum(1), 1, rtol=1e-6)
    assert_array_equal(clf.predict(X), clf.classes_[p.argmax(1)])
    assert_array_equal(z.argmax(1), p.argmax(1))
    assert_allclose(np.exp(clf.predict_log_proba(X)), p, rtol=1e-5)
    two = ResNetClassifier(**TINY).fit(X, y == "bee")
    assert two.decision_function(X).shape == (40,)
    assert_array_equal(two.decision_function(X) > 0, two.predict(X))
    assert_allclose(
        two.decision_function(X), np.diff(two.predict_log_proba(X), axis=1)[:, 0], atol=1e-4
    )


@pytest.mark.parametrize(
    ("stage", "n_columns"), [("stem", 4), ("layer1", 4), ("layer3", 16), ("avgpool", 16), ("fc", 3)]
)
def test_features_of_any_stage(stage, n_columns):
    X, y = make_images()
    clf = ResNetClassifier(**TINY, features=stage).fit(X, y)
    H = clf.transform(X)
    assert H.shape == (40, n_columns)
    assert len(clf.get_feature_names_out()) == n_columns
    if stage == "avgpool":
        weight, bias = clf.state_dict_["fc.weight"], clf.state_dict_["fc.bias"]
        assert_allclose(H @ weight.T + bias, clf.decision_function(X), rtol=1e-4, atol=1e-5)
    if stage == "layer3":
        assert_allclose(H, clf.set_params(features="avgpool").transform(X), rtol=1e-5)


def test_unknown_stage():
    X, y = make_images()
    with pytest.raises(ValueError, match=r"features: must be one of .*'avgpool'.* got 'layer4'"):
        ResNetClassifier(**TINY, features="layer4").fit(X, y)


def test_weights_have_the_names_of_torchvision():
    X, y = make_images()
    clf = ResNetClassifier(**TINY).fit(X, y)
    assert clf.state_dict_["conv1.weight"].shape == (4, 3, 3, 3)
    assert clf.state_dict_["layer2.0.conv1.weight"].shape == (8, 4, 3, 3)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    learned = [a for n, a in clf.state_dict_.items() if not n.endswith(statistics)]
    assert sum(a.size for a in learned) == clf.n_parameters_
    assert all(isinstance(a, np.ndarray) for a in clf.state_dict_.values())
    # What is public predicts.
    p = clf.predict_proba(X)
    clf.state_dict_["fc.bias"] = clf.state_dict_["fc.bias"] + np.float32([0, 0, 50])
    assert_array_equal(clf.predict(X), ["cat"] * 40)
    assert not np.allclose(clf.predict_proba(X), p)


def test_statistics_are_those_of_the_training_images():
    """With one batch, prediction is what training computed: the same normalizations."""
    X, y = make_images(30, dtype=np.float64)
    clf = ResNetClassifier(**EXACT).fit(X, y)
    arrays = clf.state_dict_
    z = (X - clf.pixel_mean_) / clf.pixel_std_
    z = torch.from_numpy(z).permute(0, 3, 1, 2).contiguous()
    stem = torch.nn.functional.conv2d(z, torch.from_numpy(arrays["conv1.weight"]), padding=1)
    assert_allclose(arrays["bn1.running_mean"], stem.mean((0, 2, 3)), rtol=1e-9, atol=1e-12)
    assert_allclose(arrays["bn1.running_var"], stem.var((0, 2, 3), correction=0), rtol=1e-9)


# -- streams, warm starts -----------------------------------------------------------------------


def test_partial_fit_goes_on():
    X, y = make_images(80)
    clf = ResNetClassifier(**TINY, learning_rate="constant", learning_rate_init=0.02)
    for epoch in range(3):
        clf.partial_fit(X, y, classes=np.unique(y))
        assert clf.t_ == 80 * (epoch + 1)
    assert len(clf.loss_curve_) == 3
    assert clf.loss_curve_[-1] < clf.loss_curve_[0]
    # Three calls are one fit of three epochs: same order, same momentum.
    whole = ResNetClassifier(**TINY, learning_rate="constant", learning_rate_init=0.02).fit(X, y)
    assert_same_model(clf, whole)
    # Also over a pickle in between.
    other = ResNetClassifier(**TINY, learning_rate="constant", learning_rate_init=0.02)
    other.partial_fit(X, y, classes=np.unique(y)).partial_fit(X, y)
    other = pickle.loads(pickle.dumps(other)).partial_fit(X, y)
    assert_same_model(other, whole)


def test_partial_fit_needs_its_classes():
    X, y = make_images()
    with pytest.raises(ValueError, match="classes must be passed"):
        ResNetClassifier(**TINY).partial_fit(X, y)
    clf = ResNetClassifier(**TINY).partial_fit(X, y, classes=["ant", "bee", "cat"])
    with pytest.raises(ValueError, match=r"classes not in .*zebra"):
        clf.partial_fit(X, np.where(y == "ant", "zebra", y))
    with pytest.raises(ValueError, match="was fitted on"):
        clf.partial_fit(X[:, :6], y)


def test_warm_start():
    X, y = make_images(80)
    params = TINY | {"learning_rate": "constant", "learning_rate_init": 0.02, "momentum": 0.0}
    whole = ResNetClassifier(**params | {"max_iter": 6}).fit(X, y)
    halves = ResNetClassifier(**params, warm_start=True).fit(X, y).fit(X, y)
    assert_same_model(whole, halves)
    with pytest.raises(ValueError, match="network at hand"):
        halves.set_params(depth=14).fit(X, y)
    with pytest.raises(ValueError, match="same classes"):
        halves.set_params(depth=8).fit(X[y != "ant"], y[y != "ant"])


# -- among other estimators ---------------------------------------------------------------------


def test_pipeline_search_and_stack():
    X, y = make_images()
    rows = X.reshape(40, -1)
    pipeline = make_pipeline(StandardScaler(), PCA(10), ResNetClassifier(**TINY))
    grid = {"resnetclassifier__depth": [8, 14]}
    search = GridSearchCV(pipeline, grid, cv=2).fit(rows, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    with stacked():
        again = GridSearchCV(pipeline, grid, cv=2).fit(rows, y)
    assert_allclose(
        again.cv_results_["mean_test_score"], search.cv_results_["mean_test_score"], rtol=1e-12
    )
    images = GridSearchCV(ResNetClassifier(**TINY), {"width": [2, 4]}, cv=2).fit(X, y)
    assert np.isfinite(images.cv_results_["mean_test_score"]).all()


def test_predictions_from_many_threads():
    X, y = make_images()
    clf = ResNetClassifier(**TINY).fit(X, y)
    wanted = clf.predict_proba(X)
    found = [None] * 6

    def predict(i):
        found[i] = clf.predict_proba(X)

    threads = [threading.Thread(target=predict, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for p in found:
        assert_array_equal(p, wanted)


# -- files --------------------------------------------------------------------------------------


def test_pickle_is_small_and_copies_predict():
    X, y = make_images()
    clf = ResNetClassifier(depth=20, max_iter=1, random_state=0).fit(X, y)
    data = pickle.dumps(clf)
    weights = sum(a.nbytes for a in clf.state_dict_.values())
    assert len(data) < 1.1 * weights
    for copied in (pickle.loads(data), copy.deepcopy(clf)):
        assert_array_equal(copied.predict_proba(X), clf.predict_proba(X))
    assert not any(isinstance(value, torch.nn.Module) for value in vars(clf).values())
    assert not hasattr(clone(clf), "state_dict_")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_save_and_load(tmp_path, dtype):
    X, y = make_images()
    clf = ResNetClassifier(
        **TINY, dtype=dtype, image_shape=(8, 8, 3), pixel_mean=[0.0, 0.1, 0.2], early_stopping=True
    )
    clf.set_params(validation_fraction=0.3).fit(X.reshape(40, -1), y)
    clf.save(tmp_path / "model.npz")
    loaded = ResNetClassifier.load(tmp_path / "model.npz")
    assert loaded.get_params() == clf.get_params()
    assert_same_model(loaded, clf)
    assert set(vars(clf)) - set(vars(loaded)) == {"_optimizer"}
    for method in ("predict", "predict_proba", "transform"):
        assert_array_equal(getattr(loaded, method)(X), getattr(clf, method)(X))
    assert loaded.image_shape_ == clf.image_shape_
    with pytest.raises(ValueError, match="not a model file"):
        ResNetClassifier.load(__file__)
    streaming = ResNetClassifier(**TINY).partial_fit(X, y, classes=np.unique(y))
    streaming.save(tmp_path / "stream.npz")
    again = ResNetClassifier.load(tmp_path / "stream.npz")
    assert_same_model(again.partial_fit(X, y), streaming.partial_fit(X, y))


def test_importing_the_package_does_not_import_torch():
    code = "import sys, sknn_resid; print('torch' in sys.modules, 'PIL' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"], done.stderr
