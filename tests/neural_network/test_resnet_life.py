"""How a fit of images runs and ends: judging, callbacks, Ctrl-C, memory, checkpoints."""

import math
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from neural_network.test_resnet_classifier import TINY, assert_same_model, make_images
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.callback import ScoringMonitor
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import GridSearchCV

from sknn_resid import ResNetClassifier
from sknn_resid.engine.image_step import Stepper
from sknn_resid.engine.resnet_inference import InferenceNetwork


class AfterEpoch:
    """A callback that does something after a number of epochs."""

    def __init__(self, after, action):
        self.after, self.action, self.n_epochs, self.seen = after, action, 0, []

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context, *, fitted_estimator):
        if context.task_name == "fit":
            return None
        self.n_epochs += 1
        self.seen.append(fitted_estimator)
        return self.action() if self.n_epochs == self.after else None


def press():
    signal.raise_signal(signal.SIGINT)


# -- judging ------------------------------------------------------------------------------------


def test_early_stopping_keeps_the_best_weights():
    X, y = make_images(120)
    clf = ResNetClassifier(**TINY | {"max_iter": 40}, batch_size=32, augmentation=None)
    clf.set_params(early_stopping=True, validation_fraction=0.3, n_iter_no_change=3)
    clf.set_params(learning_rate="constant")
    clf.fit(X, y)
    assert clf.n_iter_ < 40
    assert len(clf.validation_scores_) == len(clf.validation_loss_curve_) == clf.n_iter_
    assert clf.best_validation_score_ == max(clf.validation_scores_)
    assert clf.best_loss_ is None
    best = 1 + int(np.argmax(clf.validation_scores_))
    alone = ResNetClassifier(**clf.get_params()).set_params(max_iter=best, n_iter_no_change=99)
    alone.fit(X, y)
    for name, array in alone.state_dict_.items():
        assert_array_equal(array, clf.state_dict_[name])


def test_a_given_validation_set_is_only_watched_when_asked():
    X, y = make_images(80)
    plain = ResNetClassifier(**TINY).fit(X[:50], y[:50])
    w = np.random.RandomState(0).rand(30)
    judged = ResNetClassifier(**TINY)
    judged.fit(X[:50], y[:50], X_val=X[50:], y_val=y[50:], sample_weight_val=w)
    assert judged.loss_curve_ == plain.loss_curve_
    assert_array_equal(judged.predict_proba(X), plain.predict_proba(X))
    # The last look is at the network that is left: 50 rows, so its statistics are the same.
    p = judged.predict_proba(X[50:])
    score = accuracy_score(y[50:], judged.classes_[p.argmax(1)], sample_weight=w)
    assert_allclose(judged.validation_scores_[-1], score, rtol=1e-12)
    p = p.astype(float) / p.astype(float).sum(1, keepdims=True)
    loss = log_loss(y[50:], p, sample_weight=w)
    assert_allclose(judged.validation_loss_curve_[-1], loss, rtol=1e-5)


@pytest.mark.parametrize("metric", ["loss", "balanced_accuracy", "neg_log_loss"])
def test_metrics_of_early_stopping(metric):
    X, y = make_images(80)
    clf = ResNetClassifier(**TINY, early_stopping=True, early_stopping_metric=metric)
    clf.fit(X[:50], y[:50], X_val=X[50:], y_val=y[50:])
    assert len(clf.validation_scores_) == 3
    losses = np.array(clf.validation_loss_curve_)
    if metric != "balanced_accuracy":
        assert_allclose(clf.validation_scores_, -losses, rtol=1e-5)


def test_bad_validation_sets():
    X, y = make_images(20)
    with pytest.raises(ValueError, match="X_val was given without y_val"):
        ResNetClassifier(**TINY).fit(X, y, X_val=X)
    with pytest.raises(
        ValueError, match=r"y_val has labels that y of the fit does not have: .*zebra"
    ):
        ResNetClassifier(**TINY).fit(X, y, X_val=X, y_val=np.full(20, "zebra"))
    with pytest.raises(ValueError, match=r"y_val: .*inconsistent numbers of samples"):
        ResNetClassifier(**TINY).fit(X, y, X_val=X, y_val=y[:3])
    with pytest.raises(ValueError, match="learns one label for each row, got 2 columns"):
        ResNetClassifier(**TINY).fit(X, np.column_stack([y, y]))
    with pytest.raises(ValueError, match="Unknown label type"):
        ResNetClassifier(**TINY).fit(X, np.linspace(0, 1, 20))


def test_averages_are_what_predicts():
    """Averages over a long horizon move slowly: predictions differ, and the loss is the same."""
    X, y = make_images(60)
    params = TINY | {"batch_size": 16, "learning_rate": "constant"}
    live = ResNetClassifier(**params).fit(X, y)
    averaged = ResNetClassifier(**params, average_fraction=0.9).fit(X, y)
    assert averaged.loss_curve_ == live.loss_curve_
    # a <- c a + (1 - c) p by hand, from the weights after each step, is engine.averaging's test;
    # here: with the shortest horizon of all it lies between the start and the end.
    start = ResNetClassifier(**params | {"max_iter": 1, "learning_rate_init": 1e-12}).fit(X, y)
    for name in ("conv1.weight", "layer2.0.conv1.weight"):
        far = np.linalg.norm(live.state_dict_[name] - start.state_dict_[name])
        near = np.linalg.norm(averaged.state_dict_[name] - start.state_dict_[name])
        assert 0 < near < far


# -- callbacks ----------------------------------------------------------------------------------


def test_callbacks_see_a_model_after_each_epoch():
    X, y = make_images(40)
    callback = AfterEpoch(99, lambda: None)
    clf = ResNetClassifier(**TINY).set_callbacks(callback).fit(X, y)
    assert [seen.n_iter_ for seen in callback.seen] == [1, 2, 3]
    assert_array_equal(callback.seen[-1].predict_proba(X), clf.predict_proba(X))
    assert callback.seen[0].predict(X).shape == (40,)
    callback = AfterEpoch(2, lambda: True)
    clf = ResNetClassifier(**TINY).set_callbacks(callback).fit(X, y)
    assert clf.n_iter_ == 2
    monitor = ScoringMonitor(scoring="accuracy")
    ResNetClassifier(**TINY).set_callbacks(monitor).fit(X, y)
    assert len(monitor.get_logs().data) >= 3


def test_verbose(capsys):
    X, y = make_images(40)
    clf = ResNetClassifier(**TINY, verbose=True).fit(X, y, X_val=X, y_val=y)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Iteration 1, loss = {clf.loss_curve_[0]:.8f}"
    assert len(lines) == 6


# -- how it ends --------------------------------------------------------------------------------


def test_interrupted_fit_is_a_model():
    X, y = make_images(60)
    callback = AfterEpoch(3, press)
    clf = ResNetClassifier(**TINY | {"max_iter": 10**6}, learning_rate="constant")
    clf.set_callbacks(callback)
    with pytest.warns(UserWarning, match="Training interrupted by user"):
        clf.fit(X, y)
    assert clf.n_iter_ == 3
    assert np.isfinite(clf.predict_proba(X)).all()
    # The best epoch by training loss is kept.
    best = 1 + int(np.argmin(clf.loss_curve_))
    alone = ResNetClassifier(**TINY | {"max_iter": best}, learning_rate="constant").fit(X, y)
    for name, array in alone.state_dict_.items():
        assert_array_equal(array, clf.state_dict_[name])
    # It can be trained on.
    assert clf.set_callbacks().partial_fit(X, y).t_ == 240


def test_an_interrupt_ends_a_search():
    X, y = make_images(40)
    clf = ResNetClassifier(**TINY | {"max_iter": 10**6}).set_callbacks(AfterEpoch(1, press))
    with pytest.raises(KeyboardInterrupt):
        GridSearchCV(clf, {"width": [2, 4]}, cv=2).fit(X, y)


STACKED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
import numpy as np
from sklearn.model_selection import GridSearchCV
from sknn_resid import ResNetClassifier, stacked

X, y = np.random.RandomState(0).rand(40, 8, 8, 3), np.arange(40) % 2
clf = ResNetClassifier(depth=8, width=4, max_iter=10**7, verbose=True)
try:
    with stacked():
        GridSearchCV(clf, {"weight_decay": [0.1, 0.2]}, cv=2).fit(X, y)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_an_interrupt_ends_a_stacked_search():
    """There the fit has a thread of its own, which no Ctrl-C reaches by itself."""
    child = subprocess.Popen(
        [sys.executable, "-u", "-W", "ignore", "-c", STACKED],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert child.stdout.readline().startswith("Iteration 1")
        child.send_signal(signal.SIGINT)
        rest, _ = child.communicate(timeout=60)
    finally:
        child.kill()
    assert rest.splitlines()[-1] == "interrupted"
    assert child.returncode == 0


def test_divergence():
    X, y = make_images(60)
    # A rate that overflows in the first step.
    clf = ResNetClassifier(**TINY, learning_rate_init=1e38, learning_rate="constant")
    with pytest.raises(ValueError, match=r"non-finite parameter weights.*learning_rate_init"):
        clf.set_params(batch_size=16).fit(X, y)
    assert not hasattr(clf, "state_dict_")


def test_divergence_after_a_finite_epoch(monkeypatch):
    X, y = make_images(60)
    original = Stepper.step
    steps = []

    def step(self, batch, rate):
        steps.append(rate)
        return original(self, batch, rate) * (math.nan if len(steps) > 8 else 1.0)

    monkeypatch.setattr(Stepper, "step", step)
    params = TINY | {"batch_size": 15}
    clf = ResNetClassifier(**params)
    with pytest.warns(ConvergenceWarning, match="Training diverged in epoch 3"):
        clf.fit(X, y, X_val=X, y_val=y)
    assert clf.n_iter_ == 3
    assert math.isnan(clf.loss_curve_[-1])
    assert [math.isnan(score) for score in clf.validation_scores_] == [False, False, True]
    assert np.isfinite(clf.predict_proba(X)).all()


def test_max_time():
    X, y = make_images(40)
    clf = ResNetClassifier(**TINY | {"max_iter": 10**6}, max_time=1e-9)
    with pytest.warns(ConvergenceWarning, match="after 1 of 1000000 epochs because max_time=1e-09"):
        clf.fit(X, y)
    assert clf.n_iter_ == 1


# -- memory -------------------------------------------------------------------------------------


def no_room_for(n_rows, monkeypatch):
    """A device whose memory ends at so many images; counts the parts that were computed."""
    original, parts = Stepper._part, []

    def part(self, batch, rows, keep_LB):
        if rows.stop - rows.start > n_rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        parts.append(rows.stop - rows.start)
        return original(self, batch, rows, keep_LB)

    monkeypatch.setattr(Stepper, "_part", part)
    return parts


def test_out_of_memory_halves_the_batch_and_goes_on(monkeypatch):
    X, y = make_images(64)
    params = TINY | {"batch_size": 32}
    by_hand = ResNetClassifier(**params, accumulate_steps=4).fit(X, y)
    parts = no_room_for(9, monkeypatch)
    with pytest.warns(
        RuntimeWarning, match=r"batch_size: a step of .* images does not fit"
    ) as seen:
        clf = ResNetClassifier(**params).fit(X, y)
    assert len([w for w in seen if w.category is RuntimeWarning]) == 2  # 32 -> 16 -> 8
    assert set(parts) == {8}
    assert_same_model(clf, by_hand)


def test_out_of_memory_with_two_images_is_an_error(monkeypatch):
    X, y = make_images(16)
    no_room_for(1, monkeypatch)
    with pytest.warns(RuntimeWarning), pytest.raises(torch.OutOfMemoryError):
        ResNetClassifier(**TINY).fit(X, y)


def test_other_errors_are_not_taken_for_it(monkeypatch):
    def part(self, batch, rows, keep_LB):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Stepper, "_part", part)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        ResNetClassifier(**TINY).fit(*make_images(16))


def test_prediction_takes_fewer_images_at_once_when_memory_runs_out(monkeypatch):
    X, y = make_images(40)
    clf = ResNetClassifier(**TINY).fit(X, y)
    wanted = clf.predict_proba(X)
    original, sizes = InferenceNetwork.features, []

    def features(self, x_BCHW, stage="avgpool"):
        if len(x_BCHW) > room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        sizes.append(len(x_BCHW))
        return original(self, x_BCHW, stage)

    monkeypatch.setattr(InferenceNetwork, "features", features)
    room = 12
    assert_allclose(clf.predict_proba(X), wanted, rtol=1e-5)
    assert sizes == [10, 10, 10, 10]
    room = 0
    with pytest.raises(MemoryError, match=r"One image of shape \(8, 8, 3\) does not fit"):
        clf.predict(X)


def test_parts_add_up_to_the_gradient_of_the_batch():
    """The same images twice: every part has the statistics of the whole batch."""
    X, y = make_images(8, dtype=np.float64)
    X = np.concatenate([X, X])
    y = np.concatenate([y, y])
    params = TINY | {"dtype": "float64", "augmentation": None, "batch_size": 16, "max_iter": 1}
    whole = ResNetClassifier(**params).fit(X, y)
    parts = ResNetClassifier(**params, accumulate_steps=2).fit(X, y)
    for name, array in whole.state_dict_.items():
        if name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            continue  # statistics are measured in parts as well, other ones
        assert_allclose(parts.state_dict_[name], array, rtol=1e-8, atol=1e-10)


# -- checkpoints --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"augmentation": "crop_alternating_flip", "mixup": 0.3, "drop_path": 0.2},
        {"early_stopping": True, "validation_fraction": 0.3, "average_fraction": 0.1},
        {"solver": "adamw", "dtype": "float16", "learning_rate_init": 0.01},
    ],
    ids=str,
)
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, variant):
    X, y = make_images(60, dtype=np.uint8)
    params = TINY | {"max_iter": 6, "batch_size": 16} | variant
    whole = ResNetClassifier(**params).fit(X, y)
    clf = ResNetClassifier(**params, checkpoint_dir=tmp_path / "fits")
    clf.set_callbacks(AfterEpoch(3, press))
    with pytest.warns(UserWarning, match="same call of fit goes on from there"):
        clf.fit(X, y)
    assert clf.n_iter_ == 3
    (file,) = os.listdir(tmp_path / "fits")
    with np.load(tmp_path / "fits" / file, allow_pickle=False) as content:
        assert "params" in content.files
    resumed = ResNetClassifier(**params, checkpoint_dir=str(tmp_path / "fits")).fit(X, y)
    assert_same_model(resumed, whole)
    assert resumed.validation_scores_ == whole.validation_scores_
    assert resumed.n_iter_ == whole.n_iter_
    assert resumed.t_ == whole.t_
    assert os.listdir(tmp_path / "fits") == []  # complete


def test_max_time_goes_on_too(tmp_path):
    X, y = make_images(60)
    params = TINY | {"max_iter": 4, "checkpoint_dir": tmp_path}
    whole = ResNetClassifier(**TINY | {"max_iter": 4}).fit(X, y)
    for epoch in range(1, 4):
        clf = ResNetClassifier(**params, max_time=1e-9)
        with pytest.warns(ConvergenceWarning, match="max_time"):
            clf.fit(X, y)
        assert clf.n_iter_ == epoch
    assert_same_model(ResNetClassifier(**params).fit(X, y), whole)


def test_another_fit_does_not_take_the_checkpoint(tmp_path):
    X, y = make_images(60)
    params = TINY | {"checkpoint_dir": tmp_path, "max_time": 1e-9}

    def stopped(X, y, **changes):
        with pytest.warns(ConvergenceWarning, match="after 1 of"):
            ResNetClassifier(**params | changes).fit(X, y)
        return len(os.listdir(tmp_path))

    assert stopped(X, y) == 1
    assert stopped(X, y, random_state=1) == 2
    assert stopped(X, y, weight_decay=1e-3) == 3
    assert stopped(X + 1, y) == 4
    assert stopped(X, np.roll(y, 1)) == 5
    with pytest.raises(ValueError, match=r"checkpoint_dir: .*random_state to an int"):
        ResNetClassifier(**params | {"random_state": None}).fit(X, y)


def test_a_damaged_checkpoint_is_named(tmp_path):
    X, y = make_images(60)
    clf = ResNetClassifier(**TINY | {"checkpoint_dir": tmp_path, "max_time": 1e-9})
    with pytest.warns(ConvergenceWarning):
        clf.fit(X, y)
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"checkpoint_dir: .*is damaged.*Delete it"):
        clf.fit(X, y)


# -- precision and speed ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lower_precision_learns_the_same(dtype):
    X, y = make_images(160)
    params = {"depth": 8, "width": 4, "max_iter": 12, "batch_size": 32, "random_state": 0}
    low = ResNetClassifier(**params, dtype=dtype, augmentation=None).fit(X[:120], y[:120])
    full = ResNetClassifier(**params, augmentation=None).fit(X[:120], y[:120])
    assert low.dtype_ == dtype
    assert low.state_dict_["conv1.weight"].dtype == np.float32
    assert low.score(X[120:], y[120:]) > 0.9
    assert_allclose(low.loss_curve_[0], full.loss_curve_[0], rtol=0.05)


def test_compile_is_asked_for(monkeypatch):
    """Compiling takes half a minute; that its result is what steps go through is tested here."""
    compiled = []

    def fake(module):
        compiled.append(module)
        return module.forward

    monkeypatch.setattr(torch, "compile", fake)
    X, y = make_images(40)
    a = ResNetClassifier(**TINY, compile=True).fit(X, y)
    assert len(compiled) == 1
    assert_same_model(a, ResNetClassifier(**TINY).fit(X, y))


def test_settings_of_torch_are_as_before():
    X, y = make_images(40)
    before = (torch.get_num_threads(), torch.backends.cudnn.benchmark, torch.is_grad_enabled())
    ResNetClassifier(**TINY, deterministic=True).fit(X, y).predict(X)
    after = (torch.get_num_threads(), torch.backends.cudnn.benchmark, torch.is_grad_enabled())
    assert after == before


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"depth": 21}, "depth: must be .*Nearest: 20 and 26"),
        ({"depth": 18, "stem": "cifar"}, "depth: must be 6n"),
        ({"shortcut": None, "drop_path": 0.1}, "shortcut: None"),
        ({"milestones": (0.5, 1.5)}, "milestones: must be parts"),
        ({"batch_size": 4, "accumulate_steps": 3}, "accumulate_steps: each part"),
        ({"class_weight": {"ant": 0, "bee": 0, "cat": 0}}, "class_weight: the weights"),
    ],
)
def test_bad_parameters(params, message):
    X, y = make_images(20)
    with pytest.raises(ValueError, match=message):
        ResNetClassifier(**TINY | params).fit(X, y)


@pytest.mark.parametrize("depth", [18, 50])
def test_networks_of_imagenet_on_small_images(depth):
    """At 8 pixels they begin with a 3x3 convolution, and keep pixels to the end."""
    X, y = make_images(12)
    clf = ResNetClassifier(**TINY | {"depth": depth, "max_iter": 1}).fit(X, y)
    assert clf.state_dict_["conv1.weight"].shape == (4, 3, 3, 3)
    assert clf.transform(X).shape == (12, 32 * (4 if depth == 50 else 1))
    large = np.random.RandomState(0).rand(4, 65, 65, 3)
    clf.fit(large, [0, 1, 0, 1])
    assert clf.state_dict_["conv1.weight"].shape == (4, 3, 7, 7)
