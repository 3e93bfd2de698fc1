"""Displays of the networks: what is drawn is what was computed."""

import subprocess
import sys

import numpy as np
import pytest
from neural_network.helpers import make_task
from sklearn.datasets import load_digits
from sklearn.model_selection import cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sknn_resid import MLPClassifier, MLPRegressor, MLPResidualClassifier
from sknn_resid.inspection import (
    ActivationDisplay,
    GradientFlowDisplay,
    LossCurve,
    LossCurveDisplay,
    compare_gradient_flow,
    gradient_flow,
)

plt = pytest.importorskip("matplotlib.pyplot", reason="Displays need the extra 'plot'")
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def task():
    return make_task("multiclass", n_rows=120)


@pytest.fixture(scope="module")
def trained(task):
    """Recording, with a validation part."""
    net = MLPClassifier(
        (8, 6), max_iter=7, tol=0, early_stopping=True, record_gradients=True, random_state=0
    )
    return make_pipeline(StandardScaler(), net).fit(*task)


# -- gradient flow --------------------------------------------------------------------------------


def test_flow_of_one_network(task):
    net = MLPClassifier((8, 6), random_state=0)
    display = GradientFlowDisplay.from_estimator(net, *task, name="net")
    (line,) = display.lines_
    np.testing.assert_array_equal(line.get_ydata(), gradient_flow(net, *task)["gradient_norm"])
    assert line.get_label() == "net"
    names = [label.get_text() for label in display.ax_.get_xticklabels()]
    assert names == ["hidden_1", "hidden_2", "output"]
    assert display.ax_.get_yscale() == "log"
    assert display.figure_ is display.ax_.figure
    assert display.ax_.get_legend() is None
    assert display.image_ is None


def test_flows_of_networks_of_one_depth_share_their_layers(task):
    nets = {name: MLPClassifier((8, 6), name, random_state=0) for name in ("tanh", "relu")}
    display = GradientFlowDisplay.from_estimators(nets, *task, quantity="weight_norm")
    assert [line.get_label() for line in display.lines_] == ["tanh", "relu"]
    for line in display.lines_:
        np.testing.assert_array_equal(line.get_xdata(), [0, 1, 2])
    assert display.ax_.get_xlabel().startswith("layer")


def test_flows_of_networks_of_other_depths_are_drawn_by_depth(task):
    nets = [MLPClassifier((8,) * n, random_state=0) for n in (1, 3)]
    display = GradientFlowDisplay.from_estimators(nets, *task, quantity="gradient_rms")
    np.testing.assert_array_equal(display.lines_[0].get_xdata(), [0, 1])
    np.testing.assert_allclose(display.lines_[1].get_xdata(), [0, 1 / 3, 2 / 3, 1])
    assert "depth" in display.ax_.get_xlabel()


def test_many_layers_have_few_names(task):
    net = MLPClassifier((4,) * 50, "tanh", random_state=0)
    display = GradientFlowDisplay.from_estimator(net, *task)
    names = [label.get_text() for label in display.ax_.get_xticklabels()]
    assert len(names) <= 15
    assert names[0] == "hidden_1"
    assert names[-1] == "output"
    assert len(set(names)) == len(names)


def test_flow_over_epochs_as_lines(trained):
    history = trained[-1].gradient_history_
    for source in (trained, trained[-1], history):
        display = GradientFlowDisplay.from_history(source, quantity="update_ratio")
        assert [line.get_label() for line in display.lines_] == list(history.layers)
        for l, line in enumerate(display.lines_):
            np.testing.assert_array_equal(line.get_xdata(), np.arange(1, 8))
            np.testing.assert_array_equal(line.get_ydata(), history["update_ratio"][:, l])
    assert display.ax_.get_yscale() == "log"


def test_activations_over_epochs_leave_the_output_out(trained):
    display = GradientFlowDisplay.from_history(trained, quantity="dead_fraction")
    assert [line.get_label() for line in display.lines_] == ["hidden_1", "hidden_2"]
    assert display.ax_.get_yscale() == "linear"
    low, high = display.ax_.get_ylim()
    assert low < 0 < 1 < high


def test_deep_networks_over_epochs_are_a_heat_map(task):
    net = MLPResidualClassifier(
        n_blocks=5, n_estimators=2, width=6, max_iter=4, record_gradients=True, random_state=0
    ).fit(*task)
    display = GradientFlowDisplay.from_history(net, member=1)
    history = net.gradient_history_
    own = history["gradient_norm"][history.members == 1]
    np.testing.assert_allclose(display.image_.get_array().reshape(12, 4), own.T)
    assert display.lines_ == []
    assert display.ax_.get_yticklabels()[0].get_text() == "input"
    low, high = display.ax_.get_ylim()
    assert low > high  # the input is above
    lines = GradientFlowDisplay.from_history(net, kind="lines")
    assert len(lines.lines_) == 12
    few = GradientFlowDisplay.from_history(net, quantity="activation_std", kind="heatmap")
    assert few.image_.get_array().reshape(-1, 4).shape[0] < 12  # layers that no function follows
    with pytest.raises(ValueError, match=r"member: must be one of \[0, 1\], got 2"):
        GradientFlowDisplay.from_history(net, member=2)


def test_zeros_and_infinities_are_left_out_of_a_logarithmic_axis(task):
    net = MLPResidualClassifier(n_estimators=1, normalization=None, width=6, random_state=0)
    display = GradientFlowDisplay.from_estimator(net, *task, quantity="ratio")
    values = display.lines_[0].get_ydata()
    assert np.isnan(values).sum() == 2  # a matrix of zeros, and one before it without a gradient
    assert (values[~np.isnan(values)] > 0).all()


def test_flow_draws_into_given_axes_and_returns_itself(task, trained):
    _, (left, right) = plt.subplots(1, 2)
    table = compare_gradient_flow([trained], *task)
    display = GradientFlowDisplay(table, quantity="gradient_norm")
    assert display.plot(left, line_kw={"color": "red"}) is display
    assert display.ax_ is left
    assert display.lines_[0].get_color() == "red"
    assert GradientFlowDisplay.from_history(trained, kind="heatmap", ax=right).ax_ is right


def test_what_flow_refuses(task, trained):
    with pytest.raises(ValueError, match="quantity: must be one of gradient_norm"):
        GradientFlowDisplay.from_estimator(trained, *task, quantity="loss")
    with pytest.raises(ValueError, match=r"update_ratio.* here, got 'ratio'"):
        GradientFlowDisplay.from_history(trained, quantity="ratio")
    with pytest.raises(ValueError, match="kind: must be 'lines' or None"):
        GradientFlowDisplay.from_history(trained, kind="bars")
    with pytest.raises(ValueError, match="kind: must be 'lines' or None"):
        GradientFlowDisplay(compare_gradient_flow([trained], *task)).plot(kind="heatmap")
    with pytest.raises(ValueError, match=r"MLPClassifier has recorded nothing.*record_gradients"):
        GradientFlowDisplay.from_history(MLPClassifier())


# -- losses ---------------------------------------------------------------------------------------


def test_losses_of_one_fit(trained):
    net = trained[-1]
    for source in (trained, net):
        display = LossCurveDisplay.from_estimator(source)
        np.testing.assert_array_equal(display.training_[0].get_ydata(), net.loss_curve_)
        np.testing.assert_array_equal(display.training_[0].get_xdata(), np.arange(1, 8))
        validation = display.validation_[0]
        np.testing.assert_array_equal(validation.get_ydata(), net.validation_loss_curve_)
        assert validation.get_linewidth() > display.training_[0].get_linewidth()
    texts = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert texts == ["training", "validation"]


def test_losses_without_validation(task):
    net = MLPClassifier((5,), max_iter=3, random_state=0).fit(*task)
    display = LossCurveDisplay.from_estimator(net)
    assert display.validation_ == []
    assert len(display.training_) == 1


def test_losses_of_several_fits(task, trained):
    plain = MLPClassifier((5,), max_iter=3, random_state=0).fit(*task)
    display = LossCurveDisplay.from_estimators({"a": trained, "b": plain})
    texts = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert texts == ["b", "a"] or texts == ["a", "b"]
    assert display.validation_[0].get_color() == display.training_[0].get_color()
    assert display.training_[1].get_color() != display.training_[0].get_color()
    assert "bold" in display.ax_.get_legend().get_title().get_text()


def test_looks_of_a_residual_ensemble_are_at_their_epochs(task):
    net = MLPResidualClassifier(
        n_estimators=2, width=6, max_iter=70, n_iter_no_change=100, random_state=0
    ).fit(*task)
    assert net.validation_iterations_[0] > 1  # not after every epoch
    display = LossCurveDisplay.from_estimator(net)
    np.testing.assert_array_equal(display.validation_[0].get_xdata(), net.validation_iterations_)


def test_folds_and_their_means(task):
    X, y = task
    net = MLPClassifier((5,), early_stopping=True, tol=1e-2, max_iter=60, random_state=0)
    found = cross_validate(net, X, y, cv=4, return_estimator=True)
    display = LossCurveDisplay.from_cv_results(found)
    assert len(display.training_) == len(display.validation_) == 4
    curves = [fold.loss_curve_ for fold in found["estimator"]]
    shortest = min(map(len, curves))
    expected = np.mean([curve[:shortest] for curve in curves], axis=0)
    np.testing.assert_allclose(display.means_[0].get_ydata(), expected)
    expected = [fold.validation_loss_curve_[:shortest] for fold in found["estimator"]]
    np.testing.assert_allclose(display.means_[1].get_ydata(), np.mean(expected, axis=0))
    texts = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert texts == ["training, mean of 4 folds", "validation, mean of 4 folds"]
    with pytest.raises(ValueError, match="return_estimator=True"):
        LossCurveDisplay.from_cv_results(cross_validate(net, X, y, cv=2))


def test_logarithmic_where_due():
    wide = LossCurveDisplay([LossCurve("net", np.geomspace(1, 1e-3, 20))]).plot()
    narrow = LossCurveDisplay([LossCurve("net", np.linspace(2, 1, 20))]).plot()
    below = LossCurveDisplay([LossCurve("net", np.linspace(2, -1, 20))]).plot()
    scales = [display.ax_.get_yscale() for display in (wide, narrow, below)]
    assert scales == ["log", "linear", "linear"]


def test_a_curve_from_numbers():
    values = np.array([3.0, 2.0, 1.0])
    display = LossCurveDisplay([LossCurve("net", values, values + 1)]).plot()
    np.testing.assert_array_equal(display.validation_[0].get_xdata(), [1, 2, 3])
    one = LossCurveDisplay([LossCurve("net", values[:1])]).plot(line_kw={"color": "red"})
    assert one.training_[0].get_marker() == "o"
    assert one.training_[0].get_color() == "red"


def test_what_losses_refuse(task):
    with pytest.raises(ValueError, match=r"MLPClassifier has no loss_curve_. Fit it first"):
        LossCurveDisplay.from_estimator(MLPClassifier())
    net = MLPClassifier((3,), solver="lbfgs", max_iter=2).fit(*task)
    with pytest.raises(ValueError, match="solver other than 'lbfgs'"):
        LossCurveDisplay.from_estimator(net)
    with pytest.raises(ValueError, match="curves: needs at least one"):
        LossCurveDisplay([]).plot()


def test_losses_draw_into_given_axes(trained):
    _, ax = plt.subplots()
    assert LossCurveDisplay.from_estimator(trained, name="net", ax=ax).ax_ is ax


# -- activations ----------------------------------------------------------------------------------


def test_activations_are_quantiles(task):
    X, y = task
    net = MLPClassifier((8, 6), "tanh", random_state=0, max_iter=3).fit(X, y)
    for display in (
        ActivationDisplay.from_estimator(net, X),  # a fitted network needs no targets
        ActivationDisplay.from_estimator(net, X, y),
    ):
        h = np.tanh(X @ net.coefs_[0] + net.intercepts_[0])
        row = display.table.iloc[0]
        levels = [0.05, 0.25, 0.5, 0.75, 0.95]
        np.testing.assert_allclose(
            row[["q05", "q25", "q50", "q75", "q95"]].tolist(), np.quantile(h, levels)
        )
        flow = gradient_flow(net, X, y)
        for name in ("saturated_fraction", "dead_fraction"):
            np.testing.assert_allclose(display.table[name], flow[name][:2])
        np.testing.assert_allclose(display.median_.get_ydata(), display.table["q50"])
        np.testing.assert_allclose(
            display.saturated_.get_ydata(), 100 * display.table["saturated_fraction"]
        )
    assert display.ax_.get_yscale() == "linear"
    assert display.fraction_ax_ is not display.ax_


def test_activations_that_vanish_are_drawn_logarithmically():
    X, y = load_digits(return_X_y=True)
    net = MLPResidualClassifier(
        n_estimators=1,
        skip="none",
        n_blocks=6,
        width=16,
        normalization=None,
        preactivation=True,
        init="normal",
        init_scale=0.05,
        random_state=0,
    )
    display = ActivationDisplay.from_estimator(net, X[:100], y[:100])
    assert display.ax_.get_yscale() == "symlog"
    assert display.ax_.get_ylim()[0] == 0


@pytest.mark.parametrize("hidden", [(5,), (5, 5)])
def test_activations_draw_into_given_axes(task, hidden):
    _, ax = plt.subplots()
    net = MLPRegressor(hidden_layer_sizes=hidden, random_state=0)
    display = ActivationDisplay.from_estimator(net, *task, ax=ax)
    assert display.ax_ is ax
    assert len(display.dead_.get_xdata()) == len(hidden)
    assert display.plot() is display


def test_importing_inspection_loads_neither_torch_nor_matplotlib():
    code = (
        "import sys, sknn_resid.inspection as i; dir(i); i.LossCurveDisplay; "
        "print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
