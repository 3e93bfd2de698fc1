"""A plain dense network trained through torch.autograd: the reference for what scikit-learn lacks.

Written for reading: full batches, no state beyond the weights, every gradient from autograd.
"""

import numpy as np
import torch
from neural_network.helpers import assert_close
from torch.nn import functional as F

ACTIVATIONS = {
    "identity": lambda z: z,
    "logistic": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "elu": F.elu,
    "selu": F.selu,
    "leaky_relu": F.leaky_relu,
    # torch cuts its softplus off at 20, where float64 still sees a difference.
    "softplus": lambda z: F.softplus(z, threshold=50),
    "mish": lambda z: z * torch.tanh(F.softplus(z, threshold=50)),
}

# One gradient step an epoch, no momentum: each step shows the gradient itself.
DESCENT = {"solver": "sgd", "momentum": 0.0, "nesterovs_momentum": False, "shuffle": False}
DESCENT |= {"learning_rate_init": 0.1, "warm_start": True, "random_state": 0}


def raw_outputs(coefs, intercepts, X, activations):
    """Outputs before the output activation, shape (n, n_outputs); the last hidden layer too."""
    v = X
    for W, b, activation in zip(coefs[:-1], intercepts[:-1], activations, strict=True):
        v = ACTIVATIONS[activation](v @ W + b)
    return v @ coefs[-1] + intercepts[-1], v


def weights_of(estimator):
    """Copies of a fitted estimator's weights as float64 tensors: coefs, then intercepts."""
    copies = [np.array(a, dtype=np.float64) for a in estimator.coefs_ + estimator.intercepts_]
    tensors = [torch.from_numpy(a).requires_grad_() for a in copies]
    return tensors[: len(estimator.coefs_)], tensors[len(estimator.coefs_) :]


def gradient_steps(start, X, y, row_loss, activations, *, alpha, rate, n_steps, weights, clip):
    """Full-batch gradient descent; returns the weights and the (data term, penalty) of each step.

    The objective is sum_i w_i l_i / sum w + alpha / 2 |W|^2 / sum w, biases free.
    """
    coefs, intercepts = start
    X, y, w = (torch.as_tensor(np.asarray(a)) for a in (X, y, weights))
    history = []
    for _ in range(n_steps):
        output, _ = raw_outputs(coefs, intercepts, X, activations)
        data_term = (w * row_loss(output, y)).sum() / w.sum()
        penalty = 0.5 * alpha * sum((W**2).sum() for W in coefs) / w.sum()
        history.append((data_term.item(), penalty.item()))
        gradients = torch.autograd.grad(data_term + penalty, coefs + intercepts)
        norm = torch.sqrt(sum((g**2).sum() for g in gradients)).item()
        factor = 1.0 if clip is None else min(1.0, clip / norm)
        with torch.no_grad():
            for parameter, gradient in zip(coefs + intercepts, gradients, strict=True):
                parameter -= rate * factor * gradient
    return coefs, intercepts, history


def assert_descends_like_autograd(
    estimator, X, y, row_loss, *, reported=1.0, sample_weight=None, n_steps=6, rtol=1e-9
):
    """Train `estimator` some steps and the reference from the same weights; compare the paths.

    Parameters
    ----------
    estimator : MLPClassifier or MLPRegressor
        Its solver is set to plain gradient descent here.
    row_loss : callable
        row_loss(raw outputs, y) -> tensor of shape (n,).
    reported : float
        Factor from the data term of the objective to the one in `loss_curve_`.
    """
    estimator.set_params(batch_size=len(X), max_iter=1, **DESCENT)
    estimator.fit(X, y, sample_weight=sample_weight)
    start = weights_of(estimator)
    n_hidden = len(estimator.coefs_) - 1
    activations = estimator.activation
    if isinstance(activations, str):
        activations = (activations,) * n_hidden
    estimator.set_params(max_iter=n_steps).fit(X, y, sample_weight=sample_weight)
    coefs, intercepts, history = gradient_steps(
        start,
        X,
        y,
        row_loss,
        activations,
        alpha=estimator.alpha,
        rate=DESCENT["learning_rate_init"],
        n_steps=n_steps,
        weights=np.ones(len(X)) if sample_weight is None else sample_weight,
        clip=estimator.clip_norm,
    )
    expected = [reported * data_term + penalty for data_term, penalty in history]
    assert_close(estimator.loss_curve_[1:], expected, rtol, "loss_curve_")
    for layer, (W, b) in enumerate(zip(coefs, intercepts, strict=True)):
        assert_close(estimator.coefs_[layer], W.detach(), rtol, f"coefs_[{layer}]")
        assert_close(estimator.intercepts_[layer], b.detach(), rtol, f"intercepts_[{layer}]")
    # Something was learnt, so that equal means more than unmoved.
    assert history[-1] != history[0]
