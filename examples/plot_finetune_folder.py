"""
Fine-tuning on a small folder of images
=======================================

Twelve images of each of ten classes are far too few to train a network from nothing. One that was
trained on other pictures already knows what edges, strokes and corners are: give it a new output
layer and go on from its weights.

Here ResNet-20, trained on the photographs of CIFAR-10, learns handwritten digits from a folder of
120 grey PNG files; both come from the folder that the environment variable ``SKNN_RESID_DATA``
names. Four ways, the same epochs:

- from nothing;
- the whole network from the trained weights, the body a fifth as fast as the new output layer;
- the first two stages frozen;
- features of the second stage for a logistic regression, no training of the network at all.
"""

# %%
# A folder with a subfolder for each class
# ----------------------------------------

import os
import tempfile
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sknn_resid import ImageFolder, ResNetClassifier

data = os.environ.get("SKNN_RESID_DATA")
if data is None:
    raise SystemExit("Skipped: set SKNN_RESID_DATA to the folder with MNIST and trained weights.")

from PIL import Image

PER_CLASS, TEST = 12, 300
with np.load(Path(data, "images", "mnist.npz")) as file:
    mnist = dict(file)
root = Path(tempfile.mkdtemp())
for digit in range(10):
    (root / str(digit)).mkdir()
    for i, row in enumerate(np.flatnonzero(mnist["y_train"] == digit)[:PER_CLASS]):
        Image.fromarray(mnist["x_train"][row]).save(root / str(digit) / f"{i}.png")
folder = ImageFolder(root)
print(folder)

# Files become red, green, blue; what we test with has to look like them.
X_test = np.repeat(mnist["x_test"][:TEST][..., None], 3, axis=3)
y_test = mnist["y_test"][:TEST].astype(str)

# %%
# Three ways to train
# -------------------
# ``from_pretrained`` reads the structure off the file; ``fit`` starts from its weights. Digits are
# not mirrored, so the augmentation is a shift.

weights = next(Path(data, "weights").glob("resnet20-*"))
ways = {
    "from nothing": None,
    "fine-tuned": {"body_lr_factor": 0.2},
    "two stages frozen": {"freeze": "layer2"},
}
errors = {}
for name, params in ways.items():
    if params is None:
        net = ResNetClassifier(depth=20, image_shape=(28, 28))
    else:
        net = ResNetClassifier.from_pretrained(weights, image_shape=(28, 28)).set_params(**params)
    net.set_params(
        max_iter=6,
        batch_size=24,
        learning_rate_init=0.05,
        augmentation="crop",
        crop_padding=2,
        random_state=0,
        device="cpu",
    )
    net.fit(folder, folder.targets)
    errors[name] = 100 * (1 - net.score(X_test, y_test))
    print(f"{name:20} {errors[name]:5.1f} % of {TEST} test digits wrong")

# %%
# No training at all
# ------------------
# ``transform`` gives the means over the pixels of any stage. The last stage of a network knows the
# classes that it was trained on; strokes are found earlier.

body = ResNetClassifier.from_pretrained(weights, image_shape=(28, 28), device="cpu")
body.set_params(features="layer2")
probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
probe.fit(body.transform(folder), folder.targets)
name = "features, logistic"
errors[name] = 100 * (1 - probe.score(body.transform(X_test), y_test))
print(f"{name:20} {errors[name]:5.1f} % of {TEST} test digits wrong")

# %%
# The picture
# -----------

try:
    import matplotlib.pyplot as plt
except ModuleNotFoundError:
    raise SystemExit("\nThe picture needs matplotlib: pip install 'sknn-resid[plot]'") from None

figure, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
axes.barh(list(errors), list(errors.values()), color="tab:blue")
axes.invert_yaxis()
axes.set_xlabel(f"test error in percent, {PER_CLASS} images of each class")
axes.grid(axis="x", alpha=0.3)
default_folder = Path(__file__).resolve().parent / "output"
written = Path(os.environ.get("SKNN_RESID_OUTPUT", default_folder))
written.mkdir(parents=True, exist_ok=True)
figure.savefig(written / "finetune_folder.png", dpi=120)
print(f"\npicture: {written / 'finetune_folder.png'}")
