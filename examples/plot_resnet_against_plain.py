"""
Residual and plain networks on images: figure 1 of the paper, in small
======================================================================

The picture that He, Zhang, Ren and Sun (2015) begin with: plain networks of 20 and 56 layers on
CIFAR-10, the deeper one worse on the very images it was trained on. ``shortcut=None`` takes the
shortcuts out of a network and leaves everything else: the same parameters, the same initial
weights, the same batches.

This takes 160 images, a quarter of the channels and seconds of a CPU; the whole
experiment is ``python benchmarks/cifar10.py --recipe paper``, for a GPU. Without CIFAR-10 (in the
folder that the environment variable ``SKNN_RESID_DATA`` names) it uses scikit-learn's digits.
"""

# %%
# Images
# ------

import os
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from sknn_resid import ResNetClassifier

data, n_images = os.environ.get("SKNN_RESID_DATA"), 160
if data is None:
    digits = load_digits()
    images, y = digits.images[:n_images].astype("float32"), digits.target[:n_images]
else:
    from PIL import Image

    sheet = np.asarray(Image.open(Path(data, "images", "cifar10", "x_train_00.webp")))
    images = sheet.reshape(50, 32, 50, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)
    # Every second pixel: a quarter of the work, and a frog is still green.
    images = images[:n_images, ::2, ::2]
    y = np.load(Path(data, "images", "cifar10", "y_train.npy"))[:n_images]

# %%
# Four networks
# -------------

curves = {}
for kind, shortcut in (("plain", None), ("residual", "A")):
    for depth in (20, 56):
        net = ResNetClassifier(
            depth=depth,
            width=4,
            shortcut=shortcut,
            max_iter=18,
            batch_size=20,
            learning_rate_init=0.05,
            augmentation=None,
            device="cpu",
            random_state=0,
        )
        net.fit(images, y)
        curves[kind, depth] = net.loss_curve_
        error = 100 * (1 - net.score(images, y))
        print(
            f"{kind}-{depth}: {net.n_parameters_:,} parameters, loss {net.loss_:.2f}, "
            f"training error {error:.0f} %"
        )

# %%
# The picture
# -----------

try:
    import matplotlib.pyplot as plt
except ModuleNotFoundError:
    raise SystemExit("\nThe picture needs matplotlib: pip install 'sknn-resid[plot]'") from None

figure, panels = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True, layout="constrained")
for axes, kind in zip(panels, ("plain", "residual"), strict=True):
    for depth, colour in ((20, "tab:olive"), (56, "tab:red")):
        curve = curves[kind, depth]
        axes.plot(np.arange(1, len(curve) + 1), curve, color=colour, label=f"{depth} layers")
    axes.set(title=f"{kind} networks", xlabel="epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend()
panels[0].set_ylabel("training loss")
default_folder = Path(__file__).resolve().parent / "output"
folder = Path(os.environ.get("SKNN_RESID_OUTPUT", default_folder))
folder.mkdir(parents=True, exist_ok=True)
figure.savefig(folder / "resnet_against_plain.png", dpi=120)
print(f"\npicture: {folder / 'resnet_against_plain.png'}")
