"""
The degradation problem: deeper plain networks train worse, residual ones do not
================================================================================

He, Zhang, Ren and Sun (2015) opened their paper with a picture: a plain network of 56 layers has a
higher *training* error than one of 20, though it could copy the shallower one and add identities.
So it is not overfitting; the deeper network is harder to optimise. Let every block learn what is
to be *added* to its input, H(x) = x + F(x), and the problem is gone.

Here is the same experiment in small: the 8 x 8 digits that scikit-learn ships, networks of 20 and
56 layers of 64 units, once plain and once residual. The plain network is the residual one without
the identity: the same number of parameters, the same initial weights, the same batches. Only the
training rows matter; there is no early stopping and no regularisation to speak of.

Run it with ``python examples/plot_degradation.py``; it takes less than half a minute on two cores.
"""

# %%
# One estimator, four networks
# ----------------------------
# ``skip="none"`` takes the identity out. Two layers make a block (normalise, activate, linear,
# twice), the input and the output layer make two more: 9 blocks are 20 layers, 27 are 56. The
# recipe is the paper's, scaled down: SGD with momentum, He's initial weights, batch normalization,
# 10 epochs with a falling rate.

import os
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sknn_resid import MLPResidualClassifier

SEEDS = range(3)
DEPTHS = {20: 9, 56: 27}  # layers: blocks
KINDS = {"plain": "none", "residual": "identity"}


def network(skip, n_blocks, seed):
    """One network, trained as in the paper and without anything that averages or stops it."""
    return MLPResidualClassifier(
        skip=skip,
        n_blocks=n_blocks,
        n_estimators=1,
        width=64,
        hidden_factor=1.0,
        preactivation=True,
        init="he",
        numeric_embedding=None,
        dropout=0.0,
        label_smoothing=0.0,
        average_fraction=0.0,
        early_stopping=False,
        solver="sgd",
        momentum=0.9,
        learning_rate="cosine",
        learning_rate_init=0.03,
        warmup_fraction=0.0,
        weight_decay=0.0,
        batch_size=128,
        max_iter=10,
        device="cpu",
        dtype="float32",
        random_state=seed,
    )


# %%
# The experiment
# --------------
# 1,437 images to train on, 360 held out. The held-out loss is recorded after each epoch and decides
# nothing.

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(
    X.astype("float32"), y, test_size=0.2, stratify=y, random_state=0
)

curves, errors = {}, {}
for kind, skip in KINDS.items():
    for depth, n_blocks in DEPTHS.items():
        found = []
        for seed in SEEDS:
            net = network(skip, n_blocks, seed)
            net.fit(X_train, y_train, X_val=X_test, y_val=y_test)
            curves.setdefault((kind, depth), []).append(
                (net.loss_curve_, net.validation_loss_curve_)
            )
            found.append(100 * (1 - net.score(X_train, y_train)))
        errors[kind, depth] = found

# %%
# Training error after the last epoch
# -----------------------------------

print(f"\n{'training error, %':20}" + "".join(f"{f'seed {seed}':>10}" for seed in SEEDS))
print("-" * 50)
for (kind, depth), found in errors.items():
    print(f"{f'{kind}-{depth}':20}" + "".join(f"{error:10.2f}" for error in found))
print("-" * 50)
plain = np.subtract(errors["plain", 56], errors["plain", 20])
residual = np.subtract(errors["residual", 56], errors["residual", 20])
print(f"36 more layers: plain {plain.min():+.1f} to {plain.max():+.1f} points of training error,")
print(f"                residual {residual.min():+.1f} to {residual.max():+.1f} points")

# %%
# The picture
# -----------
# Figure 1 of the paper, with the loss in place of the error: thin lines on the training rows, bold
# ones held out, each the median of three seeds.

try:
    import matplotlib.pyplot as plt
except ModuleNotFoundError:
    raise SystemExit(
        "\nThe table is complete; the picture needs matplotlib: pip install 'sknn-resid[plot]'"
    ) from None

figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
colours = {20: "tab:olive", 56: "tab:red"}
for axes, kind in zip(panels, KINDS, strict=True):
    for depth, colour in colours.items():
        training, held_out = np.median(curves[kind, depth], axis=0)
        epochs = np.arange(1, len(training) + 1)
        axes.plot(epochs, training, color=colour, linewidth=1)
        axes.plot(epochs, held_out, color=colour, linewidth=2.5, label=f"{depth} layers")
    axes.set(title=f"{kind} networks", xlabel="epoch", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(title="thin: training, bold: held out")
panels[0].set_ylabel("cross-entropy")

default_folder = Path(__file__).resolve().parent / "output"
folder = Path(os.environ.get("SKNN_RESID_OUTPUT", default_folder))
folder.mkdir(parents=True, exist_ok=True)
path = folder / "degradation.png"
figure.savefig(path, dpi=120)
print(f"\npicture: {path}")
