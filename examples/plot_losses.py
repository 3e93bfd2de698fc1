"""
Loss functions and their derivatives
====================================

A network learns from the derivative of its loss: at the output, ``delta = dl/dz`` is all that goes
back. So the derivative says what a loss cares about. Here are the losses of the estimators, drawn
as the estimators compute them: every point of the curves comes from ``gradients``.

Run it with ``python examples/plot_losses.py``; it takes a few seconds.
"""

# %%
# A network that is nothing but its output
# ----------------------------------------
# With no hidden layer, one input and the weight 1, the raw output is z = x. So the rows of X are
# the places at which the loss is looked at. ``gradients`` takes the mean over rows; times the
# number of rows it is the derivative of each row's own loss.

import os
from pathlib import Path

import numpy as np

from sknn_resid import MLPClassifier, MLPRegressor
from sknn_resid.inspection import gradients


def curve(net, z, y):
    """Loss and derivative of single rows with raw outputs z and targets y."""
    X = z[:, None]
    net.partial_fit(X, y, **({"classes": [0, 1]} if isinstance(net, MLPClassifier) else {}))
    net.coefs_, net.intercepts_ = [np.ones((1, 1))], [np.zeros(1)]
    losses = np.array([gradients(net, X[i : i + 1], y[i : i + 1]).loss for i in range(len(z))])
    return losses, gradients(net, X, y).deltas[0][:, 0] * len(z)


# %%
# Regression: how much does a large error count?
# ----------------------------------------------
# - squared error: as much as it is large, so that one outlier outweighs many small errors;
# - absolute error: an error is an error, only its sign counts; the minimiser is the median;
# - Huber: squared when small, absolute when large;
# - quantile 0.8: too low is four times as bad as too high; the minimiser is the quantile;
# - Poisson, for counts: the output is the logarithm of the mean.

error = np.linspace(-3, 3, 241)
zeros = np.zeros_like(error)
REGRESSION = {
    "squared_error": {},
    "absolute_error": {},
    "huber, huber_delta=1": {"loss": "huber"},
    "quantile, quantile=0.8": {"loss": "quantile", "quantile": 0.8},
}
curves = {}
for name, settings in REGRESSION.items():
    settings = {"loss": name.split(",")[0], **settings}
    net = MLPRegressor(hidden_layer_sizes=(), random_state=0, **settings)
    curves[name] = curve(net, error, zeros)

counts = {}
for y in (0.0, 1.0, 4.0):
    net = MLPRegressor("poisson", hidden_layer_sizes=(), random_state=0)
    counts[y] = curve(net, error, np.full_like(error, y))

# %%
# Classification: prediction minus label
# --------------------------------------
# The cross-entropy of a logistic output is ``log(1 + e^z) - y z``, its derivative ``p - y``: a row
# that is certainly wrong pulls with its whole weight, however far it is from the boundary. With the
# squared error of the probability instead, the slope ``2 (p - y) p (1 - p)`` dies just where the
# network is most wrong: the reason to prefer the cross-entropy. Label smoothing asks for no more
# than 1 - 0.1 / 2 and pulls back a network that is surer than that.

z = np.linspace(-6, 6, 241)
ones = np.ones(len(z), dtype=int)
labels = {
    "cross-entropy, y = 1": curve(MLPClassifier((), random_state=0), z, ones),
    "the same, label_smoothing=0.1": curve(
        MLPClassifier((), random_state=0, label_smoothing=0.1), z, ones
    ),
}
p = 1 / (1 + np.exp(-z))
labels["squared error of p (for comparison)"] = (p - 1) ** 2, 2 * (p - 1) * p * (1 - p)

# %%
# Checked against the formulas
# ----------------------------

expected = {
    "squared_error": (error**2 / 2, error),
    "absolute_error": (np.abs(error), np.sign(error)),
    "huber, huber_delta=1": (
        np.where(np.abs(error) <= 1, error**2 / 2, np.abs(error) - 0.5),
        np.clip(error, -1, 1),
    ),
    "quantile, quantile=0.8": (
        np.where(error < 0, -0.8 * error, 0.2 * error),
        np.where(error < 0, -0.8, 0.2) * (error != 0),
    ),
}
for name, (loss, slope) in expected.items():
    np.testing.assert_allclose(curves[name][0], loss, atol=1e-12)
    np.testing.assert_allclose(curves[name][1], slope, atol=1e-12)
for y, (loss, slope) in counts.items():
    log_y = np.log(y) if y > 0 else 0.0
    np.testing.assert_allclose(loss, y * (log_y - error) - y + np.exp(error), atol=1e-12)
    np.testing.assert_allclose(slope, np.exp(error) - y, atol=1e-12)
np.testing.assert_allclose(labels["cross-entropy, y = 1"][0], np.log1p(np.exp(-z)), atol=1e-12)
np.testing.assert_allclose(labels["cross-entropy, y = 1"][1], p - 1, atol=1e-12)
print("curves of", ", ".join([*curves, "poisson", "cross-entropy"]), "agree with their formulas")
print("\nslope at a large error, z - y = 3:")
for name, (_, slope) in curves.items():
    print(f"  {name:24}{slope[-1]:6.2f}")
print("slope where a classifier is most wrong, z = -6 and y = 1:")
for name, (_, slope) in labels.items():
    print(f"  {name:38}{slope[0]:8.4f}")

# %%
# The pictures
# ------------
# Above the losses, below their derivatives.

try:
    import matplotlib.pyplot as plt
except ModuleNotFoundError:
    raise SystemExit(
        "\nThe numbers are complete; the picture needs matplotlib: pip install 'sknn-resid[plot]'"
    ) from None

figure, panels = plt.subplots(2, 3, figsize=(14, 7), sharex="col", layout="constrained")
groups = [
    ("Regression", "error z - y", error, curves),
    (
        "Poisson: counts",
        "z, the logarithm of the mean",
        error,
        {f"y = {y:g}": c for y, c in counts.items()},
    ),
    ("Classification, label 1", "z: left is wrong, right is right", z, labels),
]
for (title, label, x, found), (above, below) in zip(groups, panels.T, strict=True):
    for style, (name, (loss, slope)) in zip(("-", "--", "-.", ":"), found.items(), strict=False):
        above.plot(x, loss, style, linewidth=2, label=name)
        below.plot(x, slope, style, linewidth=2)
    below.axhline(0, color="gray", linewidth=0.8)
    above.set(title=title, ylabel="loss")
    below.set(xlabel=label, ylabel="derivative by z")
    above.legend()
    for axes in (above, below):
        axes.grid(alpha=0.3)
panels[0, 1].set_ylim(0, 10)
panels[1, 1].set_ylim(-5, 10)

default_folder = Path(__file__).resolve().parent / "output"
folder = Path(os.environ.get("SKNN_RESID_OUTPUT", default_folder))
folder.mkdir(parents=True, exist_ok=True)
path = folder / "losses.png"
figure.savefig(path, dpi=110)
print(f"\npicture: {path}")
