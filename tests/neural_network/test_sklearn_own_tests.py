"""scikit-learn's own tests of its MLP, run on this package's estimators.

The source of ``sklearn/neural_network/tests/test_mlp.py`` is read from the installed
scikit-learn, the one line that imports the two estimators is replaced, and the test functions
of the result are collected here under their own names, with their own parametrisation.
"""

import ast
import importlib.util
from pathlib import Path

import pytest

import sknn_resid

SWAPPED = "from sklearn.neural_network import MLPClassifier, MLPRegressor"
REPLACEMENT = "from sknn_resid import MLPClassifier, MLPRegressor"

# name -> why it is not run
EXCLUDED = {
    "test_gradient": "calls the private method _loss_grad_lbfgs; "
    "gradients are compared with finite differences in the tests of the engine",
    "test_mlp_partial_fit_after_fit": "demands that partial_fit refuses early_stopping=True; "
    "here it works, which is a deliberate departure",
}

# scikit-learn's suite does not turn warnings into errors. Here only one is let pass, which belongs
# to a deliberate departure: a validation part of under five rows is replaced by all rows.
pytestmark = pytest.mark.filterwarnings("ignore:early_stopping. validation_fraction:RuntimeWarning")


def read_source():
    """Path and text of scikit-learn's test module, without importing it."""
    package = importlib.util.find_spec("sklearn.neural_network")
    path = Path(package.submodule_search_locations[0]) / "tests" / "test_mlp.py"
    return path, path.read_text(encoding="utf-8")


def swapped_tests():
    """Namespace of scikit-learn's test module with this package's estimators in it."""
    path, source = read_source()
    namespace = {"__name__": "test_mlp_swapped", "__file__": str(path)}
    exec(compile(source.replace(SWAPPED, REPLACEMENT), str(path), "exec"), namespace)
    return namespace


_NAMESPACE = swapped_tests()
globals().update(
    {
        name: value
        for name, value in _NAMESPACE.items()
        if name.startswith("test_") and name not in EXCLUDED
    }
)


@pytest.fixture
def global_random_seed():
    """scikit-learn's fixture of this name, at its default value."""
    return 42


def test_the_import_was_swapped():
    _, source = read_source()
    assert source.count(SWAPPED) == 1
    # No second way by which scikit-learn's classes could come in.
    imports = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Import | ast.ImportFrom)]
    from_networks = [n for n in imports if "neural_network" in (getattr(n, "module", None) or "")]
    assert len(from_networks) == 1
    assert not [n for n in imports for name in n.names if "neural_network" in name.name]
    assert _NAMESPACE["MLPClassifier"] is sknn_resid.MLPClassifier
    assert _NAMESPACE["MLPRegressor"] is sknn_resid.MLPRegressor


def test_every_test_is_run_or_named():
    _, source = read_source()
    functions = (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
    names = {node.name for node in functions if node.name.startswith("test_")}
    assert len(names) > 40
    assert names - set(EXCLUDED) == {name for name in names if name in globals()}
    assert set(EXCLUDED) <= names
