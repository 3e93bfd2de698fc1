"""
A trained ResNet on a laptop: from a file of weights to names in three lines
============================================================================

ResNet-50 is a file of 98 MB: 25.6 million parameters, 4.1 thousand million multiplications for a
photograph of 224 x 224 pixels. A laptop's processor does that in a twentieth of a second.

Give it torchvision's weights (``resnet50-11ad3fa6.pth`` or any other ResNet) and photographs::

    python examples/plot_resnet_on_a_laptop.py resnet50-11ad3fa6.pth cat.jpg street.jpg

Without a file it takes the CIFAR-10 networks and images in the folder that the environment variable
``SKNN_RESID_DATA`` names, if there is one.
"""

# %%
# Which weights
# -------------

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from sknn_resid import ImagePreprocessor, ResNetClassifier

data = os.environ.get("SKNN_RESID_DATA")
paths = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
if not paths and data is None:
    raise SystemExit("Skipped: give a file of weights and photographs, or set SKNN_RESID_DATA.")

if paths:
    weights, photographs = paths[0], paths[1:]
    names = None
    # What torchvision's evaluation does: 232 for the weights IMAGENET1K_V2, 256 for V1.
    images = ImagePreprocessor(resize=232, crop=224).transform(photographs)
else:
    from PIL import Image

    weights = next(Path(data, "weights").glob("resnet56-*"))
    names = json.loads(Path(data, "images", "class_names.json").read_text())["cifar10"]
    sheet = np.asarray(Image.open(Path(data, "images", "cifar10", "x_test_00.webp")))
    sheet = sheet.reshape(50, 32, 50, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)
    images = sheet[:200]

# %%
# Loading
# -------
# Depth, width, shortcuts and classes are read off the shapes in the file; its checksum is compared
# with the one in its name. bfloat16 is a parameter: about twice as fast where the processor has it.

network = ResNetClassifier.from_pretrained(weights, class_names=names, dtype="bfloat16")
print(f"{Path(weights).name}: depth {network.depth}, {network.n_parameters_:,} parameters")

# %%
# Predicting
# ----------

network.predict(images[:1])  # the first call prepares the convolutions
begun = time.perf_counter()
labels, probabilities = network.predict_top(images, k=3)
seconds = time.perf_counter() - begun
print(f"{len(images)} images in {seconds:.2f} s, {1000 * seconds / len(images):.1f} ms each\n")
for i in range(min(8, len(images))):
    found = zip(labels[i], probabilities[i], strict=True)
    print(f"image {i}:  " + ",  ".join(f"{label} {p:.3f}" for label, p in found))

if not paths:
    truth = np.array(names)[np.load(Path(data, "images", "cifar10", "y_test.npy"))[: len(images)]]
    print(f"\nright: {np.mean(labels[:, 0] == truth):.1%} of {len(images)}")
    network.set_params(test_augmentation="flip")
    print(f"averaged with the mirror images: {np.mean(network.predict(images) == truth):.1%}")

# %%
# The picture
# -----------

try:
    import matplotlib.pyplot as plt
except ModuleNotFoundError:
    raise SystemExit("\nThe picture needs matplotlib: pip install 'sknn-resid[plot]'") from None

n = min(8, len(images))
figure, panels = plt.subplots(1, n, figsize=(1.6 * n, 2.1), layout="constrained", squeeze=False)
for axes, image, label, p in zip(panels[0], images, labels, probabilities, strict=False):
    axes.imshow(image)
    axes.set_title(f"{label[0]}\n{p[0]:.2f}", fontsize=9)
    axes.set_axis_off()
default_folder = Path(__file__).resolve().parent / "output"
folder = Path(os.environ.get("SKNN_RESID_OUTPUT", default_folder))
folder.mkdir(parents=True, exist_ok=True)
figure.savefig(folder / "resnet_on_a_laptop.png", dpi=120)
print(f"\npicture: {folder / 'resnet_on_a_laptop.png'}")
