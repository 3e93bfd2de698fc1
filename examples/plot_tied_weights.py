"""
An exam question: the gradient of a weight that stands in two places
====================================================================

A question from an examination in 2016. A network has two inputs, two logistic hidden units and one
linear output, without biases::

    h1 = s(w1 x1 + w2 x2),   h2 = s(w3 x1 + w4 x2),   f = u1 h1 + u2 h2,   s(z) = 1 / (1 + e^-z)

It is trained on ``(f - y)^2``, and the weights w1 and w4 are tied: w1 = w4 = w. What is the
derivative of the loss by w?

Run it with ``python examples/plot_tied_weights.py``; it takes a few seconds.
"""

# %%
# The derivation
# --------------
# Take the two places apart for a moment: L(w1, w2, w3, w4) with w1 = w and w4 = w. The chain rule
# for a function of several arguments gives
#
# .. code-block:: text
#
#     dL/dw = dL/dw1 * dw1/dw + dL/dw4 * dw4/dw = dL/dw1 + dL/dw4:
#
# the gradient of a tied weight is the *sum over its places*. Each place for itself is ordinary
# backpropagation. With s' = s (1 - s),
#
# .. code-block:: text
#
#     dL/df  = 2 (f - y)
#     dL/dw1 = dL/df * df/dh1 * dh1/dw1 = 2 (f - y) * u1 * h1 (1 - h1) * x1
#     dL/dw4 = dL/df * df/dh2 * dh2/dw4 = 2 (f - y) * u2 * h2 (1 - h2) * x2
#
# and so
#
# .. code-block:: text
#
#     dL/dw  = 2 (f - y) (u1 h1 (1 - h1) x1 + u2 h2 (1 - h2) x2)

import os
from pathlib import Path

import numpy as np
from scipy.special import expit

from sknn_resid import MLPRegressor
from sknn_resid.inspection import gradients

x1, x2, y = 1.5, -0.8, 0.4
w2, w3, u1, u2 = -0.3, 0.8, 1.2, -2.0


def forward(w):
    """Hidden units and output."""
    h1, h2 = expit(w * x1 + w2 * x2), expit(w3 * x1 + w * x2)
    return h1, h2, u1 * h1 + u2 * h2


def answer(w):
    """The two terms of the derivative."""
    h1, h2, f = forward(w)
    return (
        2 * (f - y) * u1 * h1 * (1 - h1) * x1,
        2 * (f - y) * u2 * h2 * (1 - h2) * x2,
    )


# %%
# The same from an estimator
# --------------------------
# ``coefs_[0]`` of shape (inputs, hidden units) is ``[[w1, w3], [w2, w4]]``: w1 stands at layer 0,
# row 0, column 0, and w4 at layer 0, row 1, column 1. That is how the tie is written. Weights are
# set by hand to those of the question.
#
# The loss of the estimator is ``1/2 (f - y)^2``, so **the exam's derivative is twice ours**.


def network(w):
    """The network of the question, its two places tied."""
    net = MLPRegressor(
        hidden_layer_sizes=(2,),
        activation="logistic",
        tied_weights=[[(0, 0, 0), (0, 1, 1)]],
        random_state=0,
    )
    net.partial_fit([[x1, x2]], [y])
    net.coefs_ = [np.array([[w, w3], [w2, w]]), np.array([[u1], [u2]])]
    net.intercepts_ = [np.zeros(2), np.zeros(1)]
    return net


print(f"{'w':>6}{'place w1':>12}{'place w4':>12}{'sum':>12}{'2 x ours':>12}{'quotient':>12}")
for w in (-2.0, -0.5, 0.6, 3.0):
    first, second = answer(w)
    g = gradients(network(w), [[x1, x2]], [y])
    ours = 2 * g.coefs[0][0, 0]
    step = 1e-6
    quotient = ((forward(w + step)[2] - y) ** 2 - (forward(w - step)[2] - y) ** 2) / (2 * step)
    print(f"{w:6.1f}{first:12.6f}{second:12.6f}{first + second:12.6f}{ours:12.6f}{quotient:12.6f}")
    np.testing.assert_allclose(ours, first + second, rtol=1e-12)
    # it is one weight: the gradient is shown in both places
    assert g.coefs[0][0, 0] == g.coefs[0][1, 1]

# %%
# Still tied after training
# -------------------------
# Only one number is trained, so the two places stay equal to the last bit, and the number counts
# once: 2 x 2 + 2 + 2 + 1 numbers, less one.

rng = np.random.default_rng(0)
X = rng.standard_normal((200, 2))
target = np.sin(X[:, 0]) - 0.5 * X[:, 1]
trained = MLPRegressor(
    hidden_layer_sizes=(2,),
    activation="logistic",
    solver="lbfgs",
    max_iter=1000,
    tied_weights=[[(0, 0, 0), (0, 1, 1)]],
    random_state=0,
).fit(X, target)
print(f"\nafter training: w1 = {trained.coefs_[0][0, 0]:.6f}, w4 = {trained.coefs_[0][1, 1]:.6f}, ")
print(f"                {trained.n_parameters_} free numbers, R2 = {trained.score(X, target):.4f}")
assert trained.coefs_[0][0, 0] == trained.coefs_[0][1, 1]

# %%
# The picture
# -----------
# The loss as a function of the tied weight, with the slopes that the estimator gives; and the
# derivative, with the share of each of the two places.

try:
    import matplotlib.pyplot as plt
except ModuleNotFoundError:
    raise SystemExit(
        "\nThe numbers are complete; the picture needs matplotlib: pip install 'sknn-resid[plot]'"
    ) from None

grid = np.linspace(-4, 5, 300)
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
left.plot(grid, (forward(grid)[2] - y) ** 2, color="tab:gray", label="$(f - y)^2$")
for n, w in enumerate((-2.0, -0.5, 0.6, 3.0)):
    slope = 2 * gradients(network(w), [[x1, x2]], [y]).coefs[0][0, 0]
    height = (forward(w)[2] - y) ** 2
    near = np.array([w - 0.7, w + 0.7])
    label = "slope by gradients(...), times 2" if n == 0 else None
    left.plot(near, height + slope * (near - w), color="tab:red", linewidth=2, label=label)
    left.plot(w, height, "o", color="tab:red")
left.set(xlabel="tied weight $w = w_1 = w_4$", ylabel="loss", title="The loss and its slopes")
left.legend()

first, second = answer(grid)
right.plot(grid, first, "--", color="tab:blue", label="its place at $w_1$")
right.plot(grid, second, "--", color="tab:orange", label="its place at $w_4$")
right.plot(grid, first + second, color="black", label="the tied weight: the sum")
right.axhline(0, color="gray", linewidth=0.8)
right.set(
    xlabel="tied weight $w$", ylabel="$d(f - y)^2 / dw$", title="The derivative, place by place"
)
right.legend()

default_folder = Path(__file__).resolve().parent / "output"
folder = Path(os.environ.get("SKNN_RESID_OUTPUT", default_folder))
folder.mkdir(parents=True, exist_ok=True)
path = folder / "tied_weights.png"
figure.savefig(path, dpi=120)
print(f"\npicture: {path}")
