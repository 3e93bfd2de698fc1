"""
Vanishing gradients, and the cure
=================================

A deep network learns by a gradient that starts at the output and is multiplied by one matrix after
another on its way to the input. If each of them makes it a little shorter, nothing is left of it
when it arrives: the first layers do not learn, and the last ones have to work with what the first
ones, still at random, give them.

Here is a network of 20 layers of logistic units, the classic case, beside two cures: batch
normalization, and the residual connections of He et al. (2015). First the numbers before a single
step was made, then the same in words, then what becomes of it in training.

Run it with ``python examples/plot_vanishing_gradients.py``; it takes less than 20 seconds.
"""

# %%
# One network and its cures
# -------------------------
# ``skip="none"`` takes the identity out of a residual network: the same layers, the same number of
# parameters, the same initial weights. 9 blocks of two layers, the input and the output are 20.

import os
from pathlib import Path

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sknn_resid import MLPResidualClassifier
from sknn_resid.inspection import (
    compare_gradient_flow,
    diagnose,
    gradient_flow,
    jacobian_spectrum,
)


def network(skip, normalization):
    """20 layers of 64 logistic units, trained plainly."""
    return MLPResidualClassifier(
        skip=skip,
        normalization=normalization,
        activation="logistic",
        n_blocks=9,
        n_estimators=1,
        width=64,
        hidden_factor=1.0,
        preactivation=True,
        init="glorot",
        branch_scale=1.0,
        numeric_embedding=None,
        dropout=0.0,
        label_smoothing=0.0,
        average_fraction=0.0,
        early_stopping=False,
        solver="sgd",
        momentum=0.9,
        learning_rate="constant",
        learning_rate_init=0.03,
        warmup_fraction=0.0,
        weight_decay=0.0,
        batch_size=128,
        max_iter=25,
        device="cpu",
        dtype="float32",
        random_state=0,
        record_gradients=True,
    )


networks = {
    "plain": network("none", None),
    "plain, batch normalization": network("none", "batch"),
    "residual": network("identity", None),
}
X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.2, stratify=y, random_state=0)
some = slice(0, 256)  # a few hundred rows are enough to look at a network

# %%
# Before the first step
# ---------------------
# ``gradient_flow`` looks at a network that is not fitted as ``fit`` would begin. In the plain one
# the gradient of the first layer is a millionth of a millionth of that of the last.

for name, net in networks.items():
    norms = gradient_flow(net, X_train[some], y_train[some])["gradient_norm"]
    print(f"{name:28} first layer {norms.iloc[0]:8.1e}   last layer {norms.iloc[-1]:8.1e}")

# %%
# Why: the derivative of a logistic unit is 1/4 at most, so that a layer keeps a small part of what
# arrives. ``jacobian_spectrum`` shows the whole way at once, from behind the input to before the
# output: the mean square of the factors by which directions are stretched. x + F(x) has a
# derivative of 1 + F'(x), and its factors stay around 1.

print()
for name, net in networks.items():
    whole = jacobian_spectrum(net, X_train[some], y_train[some]).iloc[0]
    print(f"{name:28} mean square factor of the stack {whole['mean_square']:8.1e}")

# %%
# In words
# --------

print()
print(diagnose(networks["plain"], X_train[some], y_train[some]))
print()
for name in list(networks)[1:]:
    print(f"{name}: {diagnose(networks[name], X_train[some], y_train[some]).verdicts}")

# %%
# In training
# -----------
# The plain network stays where it began: it knows how often each digit occurs, and 90 % of its
# answers are wrong. The other two learn. What ``record_gradients=True`` has kept shows that its
# gradients have not come back.

before = compare_gradient_flow(networks, X_train[some], y_train[some])
print()
for name, net in networks.items():
    net.fit(X_train, y_train, X_val=X_test, y_val=y_test)
    first = net.gradient_history_["gradient_norm"][:, 0]
    print(
        f"{name:28} training error {100 * (1 - net.score(X_train, y_train)):5.1f} %   "
        f"first layer's gradient, largest of {len(first)} epochs {first.max():8.1e}"
    )

# %%
# The picture
# -----------
# Left: the length of the gradients before the first step. Right: the losses.

try:
    import matplotlib.pyplot as plt
except ModuleNotFoundError:
    raise SystemExit(
        "\nThe tables are complete; the picture needs matplotlib: pip install 'sknn-resid[plot]'"
    ) from None

from sknn_resid.inspection import GradientFlowDisplay, LossCurveDisplay

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
GradientFlowDisplay(before).plot(left)
left.set_title("gradients before the first step")
LossCurveDisplay.from_estimators(networks, ax=right)
right.set_title("20 layers of logistic units on the digits")

default_folder = Path(__file__).resolve().parent / "output"
folder = Path(os.environ.get("SKNN_RESID_OUTPUT", default_folder))
folder.mkdir(parents=True, exist_ok=True)
path = folder / "vanishing_gradients.png"
figure.savefig(path, dpi=120)
print(f"\npicture: {path}")
