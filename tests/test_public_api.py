"""What users may rely on: names, signatures, documentation, examples in docstrings."""

import doctest
import importlib
import importlib.metadata
import inspect
import pkgutil
import re
import subprocess
import sys

import pytest
from sklearn import linear_model as their_linear
from sklearn import neural_network as theirs
from sklearn.base import clone

import sknn_resid
from sknn_resid import (
    OLS,
    MLPClassifier,
    MLPRegressor,
    MLPResidualClassifier,
    MLPResidualRegressor,
    ResNetClassifier,
    Ridge,
    RidgeCV,
)

ESTIMATORS = [MLPClassifier, MLPRegressor]
RESIDUAL = [MLPResidualClassifier, MLPResidualRegressor]
LINEAR = [OLS, Ridge, RidgeCV]
IMAGE = [ResNetClassifier]
NETWORKS = ESTIMATORS + RESIDUAL + IMAGE
EVERY = NETWORKS + LINEAR

# Added parameters in their order, with the defaults that leave scikit-learn's behaviour as it is.
ADDED = {
    "device": "cpu",
    "dtype": None,
    "max_time": None,
    "early_stopping_metric": "score",
    "dropout": 0.0,
    "clip_norm": None,
    "warmup_fraction": 0.0,
    "n_layers": None,
    "width": None,
    "record_gradients": False,
}
ADDED_TO = {
    "MLPClassifier": ADDED | {"class_weight": None, "label_smoothing": 0.0, "tied_weights": None},
    "MLPRegressor": ADDED | {"quantile": 0.5, "huber_delta": 1.0, "tied_weights": None},
}
SKLEARN_FITTED = {
    "coefs_",
    "intercepts_",
    "loss_",
    "best_loss_",
    "loss_curve_",
    "validation_scores_",
    "best_validation_score_",
    "t_",
    "n_iter_",
    "n_layers_",
    "n_outputs_",
    "out_activation_",
    "n_features_in_",
    "feature_names_in_",
}
FITTED = SKLEARN_FITTED | {
    "validation_loss_curve_",
    "device_",
    "dtype_",
    "gradient_history_",
    "n_parameters_",
}
RESIDUAL_FITTED = {
    "encoder_",
    "loss_curve_",
    "validation_loss_curve_",
    "best_iteration_",
    "n_iter_",
    "n_parameters_",
    "gradient_history_",
    "n_features_in_",
    "feature_names_in_",
    "device_",
    "dtype_",
}

IMAGE_FITTED = {
    "state_dict_",
    "image_shape_",
    "pixel_mean_",
    "pixel_std_",
    "loss_curve_",
    "validation_scores_",
    "validation_loss_curve_",
    "gradient_history_",
    "n_iter_",
    "n_parameters_",
    "n_features_in_",
    "feature_names_in_",
    "device_",
    "dtype_",
}

MODULES = sorted(
    {"sknn_resid"}
    | {m.name for m in pkgutil.walk_packages(sknn_resid.__path__, prefix="sknn_resid.")}
)


def sections(docstring):
    """Split a numpydoc docstring into {section: {entry: description}}."""
    found = {}
    text = inspect.cleandoc(docstring)
    parts = re.split(r"^([A-Z][A-Za-z ]+)\n-{3,}\n", text, flags=re.MULTILINE)
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        entries, names = {}, []
        for line in body.splitlines():
            head = re.match(r"^(\*{0,2}\w+(?:, *\*{0,2}\w+)*)(?: *:.*)?$", line)
            if head:
                names = [n.strip(" *") for n in head[1].split(",")]
                entries |= dict.fromkeys(names, "")
            elif line.startswith(" "):
                for name in names:
                    entries[name] += line.strip() + " "
        found[title] = entries
    return found


def own_public_methods(cls):
    """Public functions that a class of this package defines, as users call them."""
    for name, value in inspect.getmembers(cls):
        function = inspect.unwrap(getattr(value, "__func__", value))
        module = getattr(function, "__module__", None) or ""
        if (
            not name.startswith("_")
            and inspect.isfunction(function)
            and module.startswith("sknn_resid")
        ):
            yield name, function


METHODS = [
    pytest.param(cls, name, function, id=f"{cls.__name__}.{name}")
    for cls in EVERY
    for name, function in own_public_methods(cls)
]


PACKAGES = [
    "sknn_resid",
    "sknn_resid.neural_network",
    "sknn_resid.linear_model",
    "sknn_resid.inspection",
]


@pytest.mark.parametrize("module", PACKAGES)
def test_all_names_exist(module):
    package = importlib.import_module(module)
    assert sorted(set(package.__all__)) == sorted(package.__all__)
    for name in package.__all__:
        assert getattr(package, name) is not None
    assert set(package.__all__) <= set(dir(package))


def test_the_public_names():
    assert {"MLPClassifier", "MLPRegressor", "show_versions"} <= set(sknn_resid.__all__)
    assert sknn_resid.neural_network.MLPClassifier is sknn_resid.MLPClassifier
    assert sknn_resid.neural_network.MLPRegressor is sknn_resid.MLPRegressor
    assert isinstance(sknn_resid.__version__, str)


def test_subpackage_is_reached_by_attribute():
    code = "import sknn_resid; print(sknn_resid.neural_network.__all__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"sknn_resid.*no_such_name"):
        sknn_resid.no_such_name  # noqa: B018


@pytest.mark.parametrize("cls", ESTIMATORS)
def test_signature_begins_with_scikit_learns(cls):
    reference = inspect.signature(getattr(theirs, cls.__name__)).parameters
    parameters = inspect.signature(cls).parameters
    assert list(parameters)[: len(reference)] == list(reference)
    for name, expected in reference.items():
        assert parameters[name].default == expected.default, name
        assert type(parameters[name].default) is type(expected.default), name
        assert parameters[name].kind == expected.kind, name


@pytest.mark.parametrize("cls", ESTIMATORS)
def test_added_parameters_are_keyword_only_and_off(cls):
    reference = inspect.signature(getattr(theirs, cls.__name__)).parameters
    parameters = inspect.signature(cls).parameters
    added = [parameters[name] for name in parameters if name not in reference]
    assert {p.name: p.default for p in added} == ADDED_TO[cls.__name__]
    assert {p.kind for p in added} == {inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize("cls", RESIDUAL)
def test_residual_parameters_are_keyword_only_and_can_be_searched(cls):
    parameters = inspect.signature(cls).parameters.values()
    assert {p.kind for p in parameters} == {inspect.Parameter.KEYWORD_ONLY}
    tuples = [p.name for p in parameters if isinstance(p.default, tuple)]
    assert tuples == ["embedding_scale"]  # takes one number as well
    assert "partial_fit" not in dir(cls)


@pytest.mark.parametrize("cls", EVERY)
def test_every_parameter_has_a_constraint(cls):
    assert set(cls._parameter_constraints) == set(inspect.signature(cls).parameters)


@pytest.mark.parametrize("cls", ESTIMATORS)
def test_methods_take_what_scikit_learns_take(cls):
    """Same methods, and the same parameters in the same places; more may follow."""
    reference = getattr(theirs, cls.__name__)
    for name, method in inspect.getmembers(reference, inspect.isfunction):
        if name.startswith("_"):
            continue
        ours = inspect.signature(getattr(cls, name)).parameters
        expected = inspect.signature(method).parameters
        for position, parameter in enumerate(expected.values()):
            assert ours[parameter.name].default == parameter.default, name
            assert ours[parameter.name].kind == parameter.kind, name
            if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
                assert list(ours)[position] == parameter.name, name


@pytest.mark.parametrize("cls", NETWORKS)
def test_fit_takes_a_validation_set_by_keyword(cls):
    parameters = inspect.signature(cls.fit).parameters
    expected = ["self", "X", "y", "sample_weight", "X_val", "y_val", "sample_weight_val"]
    assert list(parameters) == expected
    for name in expected[4:]:
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[name].default is None


@pytest.mark.parametrize("cls", NETWORKS)
def test_class_docstring(cls):
    found = sections(cls.__doc__)
    assert {"Parameters", "Attributes", "Examples"} <= set(found)
    parameters = found["Parameters"]
    assert list(parameters) == list(inspect.signature(cls).parameters)
    assert [name for name, text in parameters.items() if not text] == []
    wanted = IMAGE_FITTED if cls in IMAGE else RESIDUAL_FITTED
    wanted = FITTED if cls in ESTIMATORS else wanted
    if "Classifier" in cls.__name__:
        wanted = wanted | {"classes_"}
    assert wanted - set(found["Attributes"]) == set()
    assert [name for name, text in found["Attributes"].items() if not text] == []


@pytest.mark.parametrize("cls", NETWORKS)
@pytest.mark.parametrize("early_stopping", [False, True])
def test_every_fitted_attribute_is_documented(cls, early_stopping):
    X = [[i / 40, (i % 7) / 7] for i in range(80)]
    y = [i % 2 for i in range(80)]
    net = cls(max_iter=3, early_stopping=early_stopping, random_state=0).fit(X, y)
    public = {n for n in vars(net) if n.endswith("_") and not n.startswith("_")}
    documented = set(sections(cls.__doc__)["Attributes"])
    assert public - documented == set()
    # A property counts as present when it can be read on this fit.
    absent = {n for n in documented if not hasattr(net, n)}
    assert absent <= {"feature_names_in_"}


@pytest.mark.parametrize("cls", LINEAR)
def test_linear_class_docstring(cls):
    found = sections(cls.__doc__)
    assert {"Parameters", "Attributes", "See Also", "References", "Examples"} <= set(found)
    assert list(found["Parameters"]) == list(inspect.signature(cls).parameters)
    for section in ("Parameters", "Attributes"):
        assert [name for name, text in found[section].items() if not text] == []


@pytest.mark.parametrize("cls", LINEAR)
def test_every_fitted_attribute_of_the_linear_models_is_documented(cls):
    X = [[i / 9, (i % 4) / 3] for i in range(12)]
    y = [float(i % 5) for i in range(12)]
    params = {"store_cv_results": True, "scoring": None} if cls is RidgeCV else {}
    model = cls(**params).fit(X, y)
    documented = set(sections(cls.__doc__)["Attributes"])
    public = {n for n in dir(model) if n.endswith("_") and not n.startswith("_")}
    assert public - documented == set()
    assert {n for n in documented if not hasattr(model, n)} == {"feature_names_in_"}


@pytest.mark.parametrize("cls", [Ridge, RidgeCV])
def test_linear_parameters_are_named_as_scikit_learns(cls):
    """What both have is called the same; what ours lack is listed as a departure."""
    reference = set(inspect.signature(getattr(their_linear, cls.__name__)).parameters)
    ours = inspect.signature(cls).parameters
    left_out = {
        "Ridge": {"max_iter", "tol", "positive", "random_state"},
        "RidgeCV": {"gcv_mode"},
    }
    assert reference - set(ours) == left_out[cls.__name__]
    first = next(iter(ours))
    assert {p.kind for n, p in ours.items() if n != first} == {inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize(("cls", "name", "function"), METHODS)
def test_method_docstring(cls, name, function):
    assert function.__doc__, f"{cls.__name__}.{name} has no docstring"
    found = sections(function.__doc__)
    parameters = [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.name not in ("self", "cls")
    ]
    if parameters:
        assert list(found.get("Parameters", {})) == parameters
    if name not in ("save", "save_weights"):
        assert "Returns" in found


@pytest.mark.parametrize("module", PACKAGES)
def test_public_functions_and_modules_are_documented(module):
    package = importlib.import_module(module)
    assert package.__doc__
    for name in package.__all__:
        value = getattr(package, name)
        if callable(value):
            assert value.__doc__, name


@pytest.mark.parametrize("module", MODULES)
def test_doctests(module):
    """Every example in a docstring gives what it shows."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testmod(importlib.import_module(module), optionflags=flags)
    assert result.failed == 0


@pytest.mark.parametrize("cls", EVERY)
def test_class_examples_are_run(cls):
    """The examples are found at the class: a lazy name or a wrapper could hide them."""
    finder = doctest.DocTestFinder(recurse=False)
    (found,) = finder.find(cls, cls.__name__)
    assert found.examples


@pytest.mark.parametrize("cls", EVERY)
def test_constructor_stores_and_nothing_else(cls):
    net = cls()
    assert vars(net) == net.get_params()
    assert vars(clone(net)) == vars(net)


def test_show_versions(capsys):
    sknn_resid.show_versions()
    printed = capsys.readouterr().out
    for word in ("sknn-resid", "scikit-learn", "torch", "numpy", "python", "CUDA", "Thread pools"):
        assert word in printed
    assert sknn_resid.__version__ in printed


def test_version_is_the_installed_one():
    """One place: what pip shows comes from `_version.py` too."""
    try:
        installed = importlib.metadata.version("sknn-resid")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package is imported from a folder, not installed")
    assert installed == sknn_resid.__version__
