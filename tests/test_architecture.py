"""The floors of the package: a module imports from lower floors only.

The table is the architecture. A new module needs a line in it, and the line says what the module
may see; an import that runs up or sideways fails here, wherever in the file it stands.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "sknn_resid"
MAX_LINES = 450

# [table of floors]
# Module (inside sknn_resid; "" is the package itself, a package's own __init__ carries its name)
# -> floor. Numbers leave gaps for later modules. Two modules on one floor do not see each other.
FLOORS = {
    # 0: the ground
    "_version": 0,
    "_sklearn_compat": 0,
    "_native": 0,
    "_show_versions": 5,
    # 10: shared ground
    "_validation": 10,
    "_device": 10,
    "_r2": 10,
    # 19 to 38: the engine; knows nothing of scikit-learn
    "engine.bound": 19,
    "engine.native": 19,
    "engine.kernels": 20,
    "engine.threads": 20,
    "engine.averaging": 21,
    "engine.graphs": 21,
    "engine.activations": 21,
    "engine.losses": 21,
    "engine.schedules": 21,
    "engine.data": 21,
    "engine.memory": 21,
    "engine.watch": 21,
    "engine.newton_schulz": 21,
    "engine.resnet_spec": 20,
    "engine.processes": 20,
    "engine.resnet_norm": 21,
    "engine.resnet": 22,
    "engine.resnet_statistics": 23,
    "engine.image_augment": 21,
    "engine.image_data": 22,
    "engine.image_network": 23,
    "engine.image_spec": 24,
    "engine.image_watch": 23,
    "engine.image_flow": 30,
    "engine.image_step": 31,
    "engine.image_evaluation": 32,
    "engine.image_checkpoint": 32,
    "engine.image_loop": 33,
    "engine.image_fitted": 33,
    "engine.image_trace": 24,
    "engine.resnet_inference": 23,
    "engine.residual_spec": 22,
    "engine.ties": 22,
    "engine.layout": 23,
    "engine.spec": 23,
    "engine.slots": 23,
    "engine.norms": 23,
    "engine.residual_layout": 23,
    "engine.branches": 24,
    "engine.network": 24,
    "engine.residual_init": 24,
    "engine.fused": 25,
    "engine.residual_input": 26,
    "engine.residual_network": 27,
    "engine.structure": 28,
    "engine.optimizers": 29,
    "engine.gradient_flow": 29,
    "engine.device_rows": 30,
    "engine.device_updates": 30,
    "engine.history": 30,
    "engine.job": 31,
    "engine.forward": 31,
    "engine.fitted": 32,
    "engine.residual_fitted": 32,
    "engine.trace": 33,
    "engine.fused_judge": 33,
    "engine.validation": 34,
    "engine.tally": 24,
    "engine.compiled": 32,
    "engine.accelerated": 33,
    "engine.stack": 34,
    "engine.loop": 35,
    "engine.lbfgs": 35,
    "engine.workers": 20,
    "engine.kept": 20,
    "engine.alike": 32,
    "engine.plan": 36,
    "engine.meeting": 35,
    "engine.runner": 37,
    "engine": 38,
    # 40: from parameters and tables to the engine's terms and back
    "neural_network._params": 40,
    "neural_network._weight_files": 40,
    "neural_network._weight_specs": 41,
    "neural_network._gradient_history": 40,
    "neural_network._targets": 41,
    "neural_network._arrays": 40,
    "neural_network._holdout": 40,
    "neural_network._tied_weights": 40,
    "neural_network._interrupt": 40,
    "neural_network._adopt": 42,
    "neural_network._persistence": 42,
    "neural_network._interop": 42,
    "neural_network._constraints": 42,
    "neural_network._class_weight": 42,
    "neural_network._prediction": 42,
    "neural_network._class_outputs": 43,
    "neural_network._monitor": 42,
    # 40 to 48: the parts of the residual estimators
    "neural_network._folds": 40,
    "neural_network._calibration": 40,
    "neural_network._target_scale": 40,
    "neural_network._committee": 40,
    "neural_network._residual_params": 41,
    "neural_network._residual_constraints": 42,
    "neural_network._target_frequencies": 42,
    "neural_network._ensemble": 41,
    "neural_network._ensemble_training": 42,
    "neural_network._residual_task": 46,
    "neural_network._residual_prediction": 46,
    "neural_network._residual_adopt": 47,
    "neural_network._residual_persistence": 47,
    # 40 to 53: the parts of the image networks
    "neural_network._image_files": 40,
    "neural_network._images": 41,
    "neural_network._image_preprocessor": 42,
    "neural_network._resnet_constraints": 40,
    "neural_network._resnet_params": 43,
    "neural_network._resnet_adopt": 43,
    "neural_network._resnet_persistence": 43,
    "neural_network._resnet_prediction": 44,
    "neural_network._resnet_pretrained": 45,
    "neural_network._resnet_base": 53,
    # 40 to 45: raw tables as numbers
    "neural_network._objects": 40,
    "neural_network._weighted": 40,
    "neural_network._frames": 41,
    "neural_network._columns": 42,
    "neural_network._blocks": 43,
    "neural_network._tables": 44,
    "neural_network._table_state": 45,
    # 44 to 49: many fits as one program
    "stacking._warning_state": 44,
    "stacking._workers": 44,
    "stacking._memory": 44,
    "stacking._summary": 44,
    "stacking._terms": 45,
    "stacking._round": 46,
    "stacking._rendezvous": 47,
    "stacking._backend": 48,
    "stacking._outer": 49,
    "stacking._context": 50,
    "stacking": 51,
    # The linear models' own ground: formulas, tables; then the fitted state and the one path to it
    "linear_model._inference": 40,
    "linear_model._summary": 40,
    "linear_model._refined": 49,
    "linear_model._rows": 50,
    "linear_model._fitted": 50,
    "linear_model._accelerator": 51,
    "linear_model._training": 52,
    "linear_model._checks": 53,
    "linear_model._statistics": 53,
    "linear_model._tables": 53,
    "linear_model._variance_comparison": 53,
    "linear_model._incremental": 53,
    "linear_model._scoring": 53,
    "linear_model._jackknife": 53,
    "linear_model._selection": 54,
    "linear_model._path": 56,
    "linear_model._penalised": 55,
    "linear_model._variance": 56,
    "linear_model._base": 56,
    "linear_model._ols": 60,
    "linear_model._ridge": 60,
    "linear_model._ridge_cv": 60,
    # 50: what both estimators share; 60: the estimators
    "neural_network._base": 50,
    "neural_network._residual_base": 52,
    "neural_network._subject": 54,
    "neural_network._classifier": 60,
    "neural_network._regressor": 60,
    "neural_network._residual_classifier": 60,
    "neural_network._residual_regressor": 60,
    "neural_network._resnet_classifier": 60,
    # 40 to 46: pure kernels of the linear models; no scikit-learn, no torch
    "linear_model._compiled": 40,
    "linear_model._words": 40,
    "linear_model._gram": 41,
    "linear_model._system": 42,
    "linear_model._basis": 42,
    "linear_model._factor": 43,
    "linear_model._wide": 44,
    "linear_model._decompose": 44,
    "linear_model._null_space": 43,
    "linear_model._refine": 44,
    "linear_model._filters": 44,
    "linear_model._loo": 45,
    "linear_model._quick": 45,
    "linear_model._problem": 46,
    "linear_model._covariances": 47,
    "linear_model._least_squares": 48,
    # 70: the public names
    "neural_network": 70,
    "linear_model": 70,
    # 72 to 75: looking into fitted models
    "inspection._drawing": 72,
    "inspection._passes": 72,
    "inspection._steps": 72,
    "inspection._network": 73,
    "inspection._trace": 74,
    "inspection._images": 73,
    "inspection._layers": 74,
    "inspection._gradient_flow": 75,
    "inspection._jacobian": 75,
    "inspection._diagnosis": 76,
    "inspection._gradient_flow_display": 76,
    "inspection._activation_display": 76,
    "inspection._loss_curve_display": 73,
    "inspection._ridge_path_display": 73,
    "inspection._shrinkage_display": 73,
    "inspection._variance_display": 73,
    "inspection": 77,
    "": 80,
}

# Distributions that a part of the package must not import at all, at any depth of a function.
# A part is a module or a package with everything in it.
FORBIDDEN = {
    "engine": {"sklearn", "pandas", "joblib", "matplotlib", "skorch"},
    "_version": {"numpy", "scipy", "sklearn", "torch"},
}

# Only inside functions: importing the package must stay cheap and must not need a display.
NEVER_AT_IMPORT = {"matplotlib", "skorch"}
# [end of table]


def _name(path):
    """Name in the table of the module in this file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def _absolute(node, name, path):
    """Full dotted names that an import statement of this module may refer to."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if node.level == 0:
        base = node.module.split(".")
    else:
        package = ["sknn_resid", *filter(None, name.split("."))]
        if path.name != "__init__.py":
            package = package[:-1]
        base = package[: len(package) - (node.level - 1)]
        base += node.module.split(".") if node.module else []
    # "from package import x" imports the module x if there is one, else a name of the package.
    return [".".join([*base, alias.name]) for alias in node.names]


def _ours(target):
    """Table name of the module of ours behind a dotted name, or None."""
    top, _, rest = target.partition(".")
    if top != "sknn_resid":
        return None
    while rest and rest not in MODULES:
        rest = rest.rpartition(".")[0]
    return rest


def _imports(name, path, source=None):
    """Every (statement, dotted name) that the file imports, inside functions too."""
    source = path.read_text(encoding="utf-8") if source is None else source
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for target in _absolute(node, name, path):
                yield node, target


def violations(name, path, source=None):
    """Say each import of the file that runs up or sideways."""
    found = []
    for node, target in _imports(name, path, source):
        lower = _ours(target)
        if lower is None or lower == name:
            continue
        if lower in FLOORS and FLOORS[lower] < FLOORS[name]:
            continue
        # A package's __init__ is run on the way to its modules; only names taken from it count.
        found.append(
            f"{path.relative_to(ROOT)}:{node.lineno} imports {target} "
            f"(floor {FLOORS.get(lower, '?')}) from floor {FLOORS[name]}"
        )
    return found


def _lazy_targets(name, path):
    """Dotted names given as strings to a lazy ``__getattr__`` (``importlib.import_module``)."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            yield node


def test_every_module_has_a_floor():
    missing = sorted(set(MODULES) - set(FLOORS))
    assert not missing, f"add to FLOORS: {missing}"


def test_every_floor_has_a_module():
    gone = sorted(set(FLOORS) - set(MODULES))
    assert not gone, f"remove from FLOORS: {gone}"


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_down(name):
    assert name in FLOORS, f"add to FLOORS: {name!r}"
    assert violations(name, MODULES[name]) == []


@pytest.mark.parametrize("name", MODULES)
def test_only_the_public_names_import_by_string(name):
    """importlib.import_module hides an import from this file; only a lazy __init__ may use it."""
    if MODULES[name].name == "__init__.py":
        return
    assert not list(_lazy_targets(name, MODULES[name]))


@pytest.mark.parametrize("part", FORBIDDEN)
def test_forbidden_distributions(part):
    files = {n: p for n, p in MODULES.items() if n == part or n.startswith(part + ".")}
    assert files
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno} imports {target}"
        for name, path in files.items()
        for node, target in _imports(name, path)
        if target.split(".")[0] in FORBIDDEN[part]
    ]
    assert found == []


@pytest.mark.parametrize("name", MODULES)
def test_file_is_short(name):
    lines = MODULES[name].read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_LINES, f"{name}: {lines} lines, at most {MAX_LINES}"


@pytest.mark.parametrize(
    "statement",
    [
        "from ..neural_network import _base",
        "from ..neural_network._classifier import MLPClassifier",
        "import sknn_resid.neural_network._base as m",
        "from sknn_resid import MLPClassifier",
        "from .. import neural_network",
        "from . import jobs",
        "def f():\n    from .loop import train",
    ],
)
def test_the_checker_sees_imports_up(statement):
    """The checker itself: relative or absolute, at the top or in a function, all are seen."""
    assert len(violations("engine.kernels", ROOT / "engine" / "kernels.py", statement)) == 1


@pytest.mark.parametrize(
    "statement",
    [
        "from .._device import resolve",
        "from sknn_resid._device import resolve",
        "import sknn_resid._device",
        "import numpy as np",
        "from numpy import linalg",
    ],
)
def test_the_checker_allows_imports_down(statement):
    assert violations("engine.kernels", ROOT / "engine" / "kernels.py", statement) == []


def _loaded_after(statement, *distributions):
    code = f"import sys; {statement}; print([d for d in {distributions!r} if d in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout.strip().splitlines()[-1])


def test_import_does_not_import_torch():
    assert _loaded_after("import sknn_resid", "torch", "matplotlib", "skorch") == []


def test_naming_the_public_names_does_not_import_torch():
    used = "import sknn_resid; dir(sknn_resid); sknn_resid.__version__"
    assert _loaded_after(used, "torch") == []


def test_linear_models_do_not_import_torch():
    used = (
        "from sknn_resid import OLS, Ridge, RidgeCV; import sknn_resid.linear_model; "
        "X = [[0.0], [1.0], [3.0]]; y = [1.0, 2.0, 2.0]; "
        "OLS().fit(X, y).summary(); Ridge().fit(X, y); RidgeCV().fit(X, y).predict(X)"
    )
    assert _loaded_after(used, "torch", *sorted(NEVER_AT_IMPORT)) == []


def test_estimators_do_not_import_matplotlib():
    used = "from sknn_resid import MLPClassifier, MLPRegressor"
    assert _loaded_after(used, *sorted(NEVER_AT_IMPORT)) == []
