"""
The forward and the backward pass of a small network, by hand and laid open
===========================================================================

A network with two inputs, two hidden units and one output, one row of data, every number of it.
First by hand, as on paper; then by ``forward_trace`` and ``gradients``, which show what the
estimator itself computes, for this network and for any other.

Run it with ``python examples/plot_forward_backward.py``; it takes a few seconds.
"""

# %%
# A network with weights that can be followed
# -------------------------------------------
# ``tanh`` in the hidden layer, a linear output, the loss ``1/2 (f - y)^2``. An estimator reads its
# public attributes when it predicts, so weights may be set by hand: one step of ``partial_fit``
# makes the arrays, and then they are replaced.

import os
from pathlib import Path

import numpy as np

from sknn_resid import MLPRegressor
from sknn_resid.inspection import forward_trace, gradients

x, y = np.array([[1.0, -2.0]]), np.array([0.5])
W1, b1 = np.array([[0.4, -0.6], [0.2, 0.3]]), np.array([0.1, 0.2])
W2, b2 = np.array([[1.5], [-1.0]]), np.array([0.3])

net = MLPRegressor(hidden_layer_sizes=(2,), activation="tanh", random_state=0)
net.partial_fit(x, y)
net.coefs_, net.intercepts_ = [W1, W2], [b1, b2]

# %%
# Forward, by hand
# ----------------
# From left to right: a weighted sum, a function of it, and so on.

z1 = x @ W1 + b1  # pre-activations of the hidden layer
v1 = np.tanh(z1)
z2 = v1 @ W2 + b2
f = z2  # the output is linear
loss = 0.5 * float((f[0, 0] - y[0]) ** 2)
print("forward, by hand:  z1 =", z1[0].round(4), " v1 =", v1[0].round(4), f" f = {f[0, 0]:.4f}")
print(f"                   loss = {loss:.4f}")

# %%
# Backward, by hand
# -----------------
# From right to left. delta is the derivative of the loss by z. At the output it is ``f - y``. A
# hidden unit has its share of that, through the weight that leads to the output, times the slope of
# its own function: ``1 - tanh(z)^2``. The derivative by a weight is what flows in at its left end
# times the delta at its right end.

delta2 = f - y
delta1 = (delta2 @ W2.T) * (1 - v1**2)
dW2, db2 = v1.T @ delta2, delta2[0]
dW1, db1 = x.T @ delta1, delta1[0]
dx = delta1 @ W1.T
print("backward, by hand: delta2 =", delta2[0].round(4), " delta1 =", delta1[0].round(4))
print("                   dJ/dW1 =", dW1.round(4).tolist())

# %%
# The same from the estimator
# ---------------------------
# Not a second implementation: these are the operations that train.

trace = forward_trace(net, x)
g = gradients(net, x, y)
print(f"\n{trace}\n\n{g}\n")
for ours, by_hand in (
    (trace.z, [z1, z2]),
    (trace.v, [v1, f]),
    (g.deltas, [delta1, delta2]),
    (g.coefs, [dW1, dW2]),
    (g.intercepts, [db1, db2]),
    ([g.X], [dx]),
):
    for a, b in zip(ours, by_hand, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
print("every number agrees with the one by hand")

# %%
# Does the gradient tell the truth?
# ---------------------------------
# Move one weight a little and see how the loss changes; the quotient is the derivative, up to what
# the small step costs.

step = 1e-6
for row, column in ((0, 0), (1, 1)):
    losses = []
    for sign in (1, -1):
        moved = W1.copy()
        moved[row, column] += sign * step
        losses.append(0.5 * ((np.tanh(x @ moved + b1) @ W2 + b2 - y) ** 2).item())
    quotient = (losses[0] - losses[1]) / (2 * step)
    print(
        f"weight {row}, {column} of the hidden layer: gradient {g.coefs[0][row, column]:+.8f}, "
        f"difference quotient {quotient:+.8f}"
    )

# %%
# The picture
# -----------
# Values on their way to the right, deltas on their way back; at each weight its derivative. The
# larger the derivative, the wider the line: these are the weights that this row would change most.

try:
    import matplotlib.pyplot as plt
except ModuleNotFoundError:
    raise SystemExit(
        "\nThe numbers are complete; the picture needs matplotlib: pip install 'sknn-resid[plot]'"
    ) from None

figure, axes = plt.subplots(figsize=(11, 5.2), layout="constrained")
places = [[(0, 1), (0, -1)], [(4, 1), (4, -1)], [(8, 0)]]
texts = [
    [f"$x_{i + 1}$ = {x[0, i]:.2f}\n\n$dJ/dx_{i + 1}$ = {g.X[0, i]:+.2f}" for i in range(2)],
    [
        f"$z$ = {trace.z[0][0, j]:+.2f}\n$v$ = {trace.v[0][0, j]:+.2f}\n"
        f"$\\delta$ = {g.deltas[0][0, j]:+.2f}"
        for j in range(2)
    ],
    [f"$f$ = {trace.v[1][0, 0]:+.2f}\n$y$ = {y[0]:+.2f}\n$\\delta$ = {g.deltas[1][0, 0]:+.2f}"],
]
largest = max(np.abs(W).max() for W in g.coefs)
for layer, (W, dW) in enumerate(zip(trace.coefs, g.coefs, strict=True)):
    for i, (x0, y0) in enumerate(places[layer]):
        for j, (x1, y1) in enumerate(places[layer + 1]):
            colour = "tab:red" if dW[i, j] > 0 else "tab:blue"
            width = 1 + 5 * abs(dW[i, j]) / largest
            axes.plot([x0, x1], [y0, y1], color=colour, linewidth=width, alpha=0.55, zorder=1)
            at = 0.5 + 0.23 * (j - i) if layer == 0 else 0.5  # two of the lines cross
            axes.text(
                x0 + at * (x1 - x0),
                y0 + at * (y1 - y0),
                f"$w$ = {W[i, j]:+.2f}\n$dJ/dw$ = {dW[i, j]:+.2f}",
                ha="center",
                va="center",
                fontsize=9,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
                zorder=2,
            )
for layer_places, layer_texts in zip(places, texts, strict=True):
    for (px, py), text in zip(layer_places, layer_texts, strict=True):
        axes.text(
            px,
            py,
            text,
            ha="center",
            va="center",
            bbox={"boxstyle": "round,pad=0.6", "facecolor": "whitesmoke", "edgecolor": "gray"},
            zorder=3,
        )
for px, title in ((0, "input"), (4, "hidden layer, tanh"), (8, f"output, loss {g.loss:.3f}")):
    axes.text(px, 1.75, title, ha="center", weight="bold")
axes.set(
    xlim=(-1, 9),
    ylim=(-1.7, 2.0),
    title="One row through the network and back\n"
    "red: raising this weight raises the loss, blue: it lowers it; wider: more so",
)
axes.axis("off")

default_folder = Path(__file__).resolve().parent / "output"
folder = Path(os.environ.get("SKNN_RESID_OUTPUT", default_folder))
folder.mkdir(parents=True, exist_ok=True)
path = folder / "forward_backward.png"
figure.savefig(path, dpi=120)
print(f"\npicture: {path}")
