"""
What does a network know? A linear probe with standard errors
=============================================================

ResNet-20 was trained to tell the ten classes of CIFAR-10 apart. Does it also hold how *bright* an
image is, which nobody asked for? A linear probe answers: regress the brightness on the 64 numbers
that the output layer reads. `Ridge` gives not only coefficients but their standard errors, and the
error on images that were not used says how much of it is real.

Weights and images come from the folder that the environment variable ``SKNN_RESID_DATA`` names.
"""

# %%
# Images and features
# -------------------

import os
from pathlib import Path

import numpy as np

from sknn_resid import OLS, ResNetClassifier, Ridge

data = os.environ.get("SKNN_RESID_DATA")
if data is None:
    raise SystemExit("Skipped: set SKNN_RESID_DATA to the folder with CIFAR-10 and its weights.")

from PIL import Image

sheet = np.asarray(Image.open(Path(data, "images", "cifar10", "x_test_01.webp")))
images = sheet.reshape(50, 32, 50, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)[:1200]
brightness = images.mean(axis=(1, 2, 3)) / 255
train, test = slice(0, 800), slice(800, 1200)

weights = next(Path(data, "weights").glob("resnet20-*"))
network = ResNetClassifier.from_pretrained(weights, device="cpu")

# %%
# Every stage
# -----------
# ``transform`` gives the means over the pixels of any stage. Whatever the network does not need for
# its ten classes, it may forget on the way.

print(f"{'stage':10} {'features':>8} {'R2 in train':>12} {'R2 in test':>11}")
r2 = {}
for stage in ("stem", "layer1", "layer2", "avgpool"):
    features = network.set_params(features=stage).transform(images).astype(float)
    probe = Ridge(alpha=0.1).fit(features[train], brightness[train])
    r2[stage] = probe.score(features[test], brightness[test])
    inside = probe.score(features[train], brightness[train])
    print(f"{stage:10} {features.shape[1]:8} {inside:12.3f} {r2[stage]:11.3f}")

# %%
# Which features
# --------------
# Least squares on the last stage, with standard errors that allow for unequal variances (HC1).

probe = OLS(cov_type="HC1").fit(features[train], brightness[train])
order = np.argsort(-np.abs(probe.t_values_))[:12]
print(f"\n{'feature':>8} {'coefficient':>12} {'std. error':>11} {'t':>7}")
for j in order:
    row = (probe.coef_[j], probe.standard_errors_[j], probe.t_values_[j])
    print("{:8} {:12.4f} {:11.4f} {:7.1f}".format(j, *row))

# %%
# The picture
# -----------

try:
    import matplotlib.pyplot as plt
except ModuleNotFoundError:
    raise SystemExit("\nThe picture needs matplotlib: pip install 'sknn-resid[plot]'") from None

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
left.bar(list(r2), list(r2.values()), color="tab:blue")
left.set(ylabel="R2 of the brightness, test images", ylim=(0, 1))
places = np.arange(len(order))
low, high = probe.confidence_interval(0.95).T[..., order]
middle = probe.coef_[order]
right.errorbar(places, middle, yerr=(middle - low, high - middle), fmt="o", capsize=3)
right.axhline(0, color="grey", linewidth=1)
right.set(xlabel="feature", ylabel="coefficient, 95 % interval")
right.set_xticks(places, [str(j) for j in order])
default_folder = Path(__file__).resolve().parent / "output"
folder = Path(os.environ.get("SKNN_RESID_OUTPUT", default_folder))
folder.mkdir(parents=True, exist_ok=True)
figure.savefig(folder / "linear_probe.png", dpi=120)
print(f"\npicture: {folder / 'linear_probe.png'}")
