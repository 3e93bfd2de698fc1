"""The added solver and the added learning-rate schedules, against torch.optim and formulas."""

import numpy as np
import pytest
import torch
from neural_network.helpers import assert_close, assert_same_fit, make_task
from neural_network.torch_reference import raw_outputs, weights_of
from numpy.testing import assert_allclose
from sklearn.base import clone
from torch.nn import functional as F

from sknn_resid import MLPClassifier, MLPRegressor


def test_adamw_decays_the_weights_beside_the_gradient():
    """torch.optim.AdamW, with the biases in a group of their own that is not decayed."""
    X, y = make_task("multiclass")
    params = {"solver": "adamw", "batch_size": len(X), "shuffle": False, "warm_start": True}
    # An epsilon that counts for nothing: torch puts it elsewhere than scikit-learn.
    params |= {"epsilon": 1e-30, "learning_rate_init": 0.01, "random_state": 0}
    model = MLPClassifier(alpha=5.0, max_iter=1, hidden_layer_sizes=(7,), **params).fit(X, y)
    coefs, intercepts = weights_of(model)
    model.set_params(max_iter=10).fit(X, y)
    groups = [{"params": coefs, "weight_decay": 5.0}, {"params": intercepts, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01, eps=1e-30)
    for _ in range(10):
        output, _ = raw_outputs(coefs, intercepts, torch.from_numpy(X), ("relu",))
        loss = F.cross_entropy(output, torch.from_numpy(y))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for layer in range(2):
        assert_close(model.coefs_[layer], coefs[layer].detach(), 1e-8, "coefs_")
        assert_close(model.intercepts_[layer], intercepts[layer].detach(), 1e-8, "intercepts_")


def test_adamw_without_penalty_is_adam():
    X, y = make_task("multiclass")
    params = {"alpha": 0.0, "max_iter": 10, "batch_size": 32, "random_state": 0}
    adamw = MLPClassifier(solver="adamw", **params).fit(X, y)
    assert_same_fit(adamw, MLPClassifier(solver="adam", **params).fit(X, y), rtol=1e-10)


def step_sizes(n_steps, **params):
    """Length of each step of a fit, relative to learning_rate_init = 1.

    The target is far off and the output linear, so the gradient of the output bias hardly moves
    and, clipped to norm 1, every step is exactly as long as its rate.
    """
    X, y = np.ones((16, 1)), np.full(16, 1e9)
    positions = []

    class Watch:
        def setup(self, estimator, context):
            pass

        def teardown(self, estimator, context):
            pass

        def on_fit_task_begin(self, estimator, context, *, fitted_estimator=None):
            pass

        def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
            if context.task_name != "fit":
                weights = fitted_estimator.coefs_ + fitted_estimator.intercepts_
                positions.append(np.concatenate([a.ravel() for a in weights]).copy())

    model = MLPRegressor("squared_error", (), "identity", solver="sgd", momentum=0)
    model.set_params(learning_rate_init=1.0, alpha=0.0, clip_norm=1.0, max_iter=1, **params)
    model.set_params(random_state=0, n_iter_no_change=np.inf, batch_size=16)
    start = clone(model).set_params(learning_rate_init=1e-12).fit(X, y)
    positions.append(np.concatenate([a.ravel() for a in start.coefs_ + start.intercepts_]))
    model.set_params(max_iter=n_steps).set_callbacks(Watch())
    model.fit(X, y)
    assert len(positions) == n_steps + 1
    return np.linalg.norm(np.diff(positions, axis=0), axis=1)


def test_cosine():
    k = np.arange(20)
    expected = 0.5 * (1 + np.cos(np.pi * k / 20))
    assert_allclose(step_sizes(20, learning_rate="cosine"), expected, rtol=1e-5, atol=1e-9)


def test_one_cycle_is_that_of_torch():
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=20)
    expected = []
    for _ in range(20):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert_allclose(step_sizes(20, learning_rate="one_cycle"), expected, rtol=1e-5)


def test_warmup_rises_in_equal_steps():
    expected = np.minimum(1.0, np.arange(1, 21) / 5)
    assert_allclose(step_sizes(20, warmup_fraction=0.25), expected, rtol=1e-5)


@pytest.mark.parametrize("solver", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("learning_rate", ["cosine", "one_cycle"])
def test_every_stochastic_solver_takes_the_schedules(solver, learning_rate):
    X, y = make_task("multiclass", n_rows=100)
    params = {"solver": solver, "learning_rate_init": 0.02, "batch_size": 32, "max_iter": 60}
    model = MLPClassifier(learning_rate=learning_rate, n_iter_no_change=100, **params)
    model.set_params(random_state=0).fit(X, y)
    # The rate ends near zero, so the last epochs stand still.
    late = np.abs(np.diff(model.loss_curve_[-4:])).max()
    assert late < 0.01 * (model.loss_curve_[0] - model.loss_curve_[-1])
