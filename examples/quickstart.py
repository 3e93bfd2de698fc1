"""
Quickstart: a tuned network beside scikit-learn's
=================================================

Two data sets that scikit-learn ships, breast cancer (569 rows of 30 measurements) and digits (1,797
images of 8 x 8 pixels), a pipeline of scaler and network, a grid search over it: once with
``sknn_resid.MLPClassifier`` and once with scikit-learn's. The code of the two differs in the import
only, and both start from the same weights and see the same batches, so the accuracies should be
the same or very nearly so. The seconds should not.

Run it with ``python examples/quickstart.py``; it takes well under a minute on two cores.
"""

# %%
# The import is the only change
# -----------------------------

import os
import time
from pathlib import Path

from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.neural_network import MLPClassifier as ScikitLearnMLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from sknn_resid import MLPClassifier

# %%
# The data
# --------
# A quarter of the rows is held out; the searches never see it. Both libraries compute in the
# precision of X. float32 is precise enough for a network and quicker, here for both of them.

data = {}
for name, load in {"breast cancer": load_breast_cancer, "digits": load_digits}.items():
    X, y = load(return_X_y=True)
    data[name] = train_test_split(
        X.astype("float32"), y, test_size=0.25, stratify=y, random_state=0
    )

# %%
# The same search for both
# ------------------------
# Four candidates, three folds, then a fit of the best on all training rows: 13 fits a search. A
# first fit of a few rows is not timed: it pays for what is loaded on first use. Everything runs on
# one thread: matrices this small gain nothing from a second one, and on a machine that has other
# work to do, scikit-learn's fits can take ten times as long with two.

grid = {"net__alpha": [1e-4, 1.0], "net__learning_rate_init": [1e-3, 5e-3]}
contestants = {"scikit-learn": ScikitLearnMLPClassifier, "sknn_resid": MLPClassifier}
searches, rows = {}, []

for name, (X_train, X_test, y_train, y_test) in data.items():
    for library, Network in contestants.items():
        Network(max_iter=20, n_iter_no_change=1, tol=1e9).fit(X_train[:50], y_train[:50])
        net = Network(max_iter=1000, random_state=0)
        pipeline = Pipeline([("scale", StandardScaler()), ("net", net)])
        search = GridSearchCV(pipeline, grid, cv=3)
        with threadpool_limits(1):
            start = time.perf_counter()
            search.fit(X_train, y_train)
            seconds = time.perf_counter() - start
        searches[name, library] = search
        best = ", ".join(f"{key[5:]}={value:g}" for key, value in search.best_params_.items())
        accuracy = search.score(X_test, y_test)
        rows.append((name, library, best, search.best_score_, accuracy, seconds))

# %%
# The table
# ---------

print(f"\n{'data':15}{'library':14}{'best candidate':38}{'CV':>7}{'held out':>10}{'seconds':>9}")
print("-" * 93)
for name, library, best, cv_accuracy, accuracy, seconds in rows:
    print(f"{name:15}{library:14}{best:38}{cv_accuracy:7.3f}{accuracy:10.3f}{seconds:9.2f}")
print("-" * 93)
for name in data:
    theirs, own = (row[-1] for row in rows if row[0] == name)
    print(
        f"{name}: the search took {own:.2f} s instead of {theirs:.2f} s ({theirs / own:.1f} times)"
    )

# %%
# What the best network learned, epoch by epoch
# ---------------------------------------------
# ``fit`` takes validation rows of one's own. Without early stopping they change nothing about the
# fit; their loss is recorded beside the training loss.

curves = {}
for name, (X_train, X_test, y_train, y_test) in data.items():
    scale, best_net = searches[name, "sknn_resid"].best_estimator_
    net = clone(best_net)
    net.fit(scale.transform(X_train), y_train, X_val=scale.transform(X_test), y_val=y_test)
    curves[name] = net.loss_curve_, net.validation_loss_curve_

# %%
# A picture of it goes to ``examples/output``, or to the folder that the environment variable
# ``SKNN_RESID_OUTPUT`` names.

try:
    import matplotlib.pyplot as plt
except ModuleNotFoundError:
    raise SystemExit(
        "\nThe table is complete; the picture needs matplotlib: pip install 'sknn-resid[plot]'"
    ) from None

figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for axes, (name, (training, validation)) in zip(panels, curves.items(), strict=True):
    epochs = range(1, len(training) + 1)
    axes.plot(epochs, training, label="training rows (with penalty)")
    axes.plot(epochs, validation, label="held-out rows")
    axes.set(title=name, xlabel="epoch", yscale="log")
    axes.grid(alpha=0.3)
panels[0].set_ylabel("loss")
panels[0].legend()

default_folder = Path(__file__).resolve().parent / "output"
folder = Path(os.environ.get("SKNN_RESID_OUTPUT", default_folder))
folder.mkdir(parents=True, exist_ok=True)
path = folder / "quickstart_loss.png"
figure.savefig(path, dpi=120)
print(f"\nloss curves: {path}")
