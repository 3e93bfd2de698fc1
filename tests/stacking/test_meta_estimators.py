"""scikit-learn's meta-estimators, unchanged: the same results with `stacked` and without."""

import joblib
import numpy as np
import pytest
from neural_network.helpers import assert_same_fit
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.neural_network import MLPClassifier as SklearnMLPClassifier
from stacking.programs import (
    CLASSIFIER_PROGRAMS,
    REGRESSOR_PROGRAMS,
    X,
    assert_same_run,
    is_summary,
    net,
    networks,
    piped,
    prefix,
    reg,
    run,
    y,
)

from sknn_resid import stacked

# Programs that fit in a loop: nothing meets there, and that is known.
IN_A_LOOP = {"ClassifierChain", "RegressorChain"}


@pytest.mark.parametrize("make", [net, lambda: piped(net())], ids=["bare", "pipeline"])
@pytest.mark.parametrize("name", CLASSIFIER_PROGRAMS)
def test_classifier_programs(name, make, rounds):
    program = CLASSIFIER_PROGRAMS[name]
    alone = run(program, make())
    one_by_one, rounds[:] = len(rounds), []
    with stacked():
        together = run(program, make())
    assert_same_run(together, alone)
    assert sum(rounds) == one_by_one
    assert (max(rounds) > 1) == (name not in IN_A_LOOP)


@pytest.mark.parametrize("make", [reg, lambda: piped(reg())], ids=["bare", "pipeline"])
@pytest.mark.parametrize("name", REGRESSOR_PROGRAMS)
def test_regressor_programs(name, make, rounds):
    program = REGRESSOR_PROGRAMS[name]
    alone = run(program, make())
    rounds.clear()
    with stacked():
        together = run(program, make())
    assert_same_run(together, alone)
    assert (max(rounds) > 1) == (name not in IN_A_LOOP)


VARIANTS = {
    "early stopping": {"early_stopping": True, "max_iter": 8},
    "stopped by a metric": {
        "early_stopping": True,
        "early_stopping_metric": "neg_log_loss",
        "validation_fraction": 0.3,
        "max_iter": 8,
    },
    "sgd adaptive": {"solver": "sgd", "learning_rate": "adaptive", "max_iter": 8},
    "dropout, clipping": {"dropout": 0.3, "clip_norm": 0.5},
    "lbfgs": {"solver": "lbfgs", "max_iter": 10},
    "random state object": {"random_state": np.random.RandomState(3)},
    "converges": {"max_iter": 400, "tol": 0.05, "n_iter_no_change": 2},
}


@pytest.mark.parametrize("params", VARIANTS.values(), ids=VARIANTS)
def test_variants_of_the_network(params, rounds):
    program = CLASSIFIER_PROGRAMS["GridSearchCV"]
    alone = run(program, net(**params))
    rounds.clear()
    with stacked():
        together = run(program, net(**params))
    assert_same_run(together, alone)
    # L-BFGS trains alone inside its task
    assert max(rounds) == (1 if params.get("solver") == "lbfgs" else 18)


def test_whole_grid_is_one_round(rounds):
    search = GridSearchCV(piped(net()), {"mlpclassifier__alpha": [1e-3, 1e-2, 1e-1, 1.0]}, cv=5)
    with stacked():
        run(search.fit, X, y)
    assert rounds == [20, 1]  # and the refit


def test_nested_searches_meet_across_their_folds(rounds):
    search = GridSearchCV(net(), {"alpha": [1e-3, 1.0]}, cv=3)
    with stacked():
        run(cross_validate, search, X, y)
    assert rounds == [5 * 6, 5]


def test_different_structures_in_one_search(rounds):
    grid = {"hidden_layer_sizes": [(4,), (6,), (4, 3)], "activation": ["relu", "tanh"]}

    def program():
        return [GridSearchCV(net(), grid, cv=3).fit(X, y)]

    alone = run(program)
    rounds.clear()
    with stacked():
        together = run(program)
    assert_same_run(together, alone)
    assert rounds == [18, 1]


def test_epochs_in_the_grid():
    program = CLASSIFIER_PROGRAMS["cross_validate"]
    grid = {"max_iter": [2, 5, 9], "alpha": [1e-3, 1.0]}
    alone = run(lambda: [GridSearchCV(net(), grid, cv=3).fit(X, y), *program(net())])
    with stacked():
        together = run(lambda: [GridSearchCV(net(), grid, cv=3).fit(X, y), *program(net())])
    assert_same_run(together, alone)


@pytest.mark.parametrize("pre_dispatch", [3, "n_jobs", "all", "2*n_jobs"])
def test_pre_dispatch_caps_the_stack(pre_dispatch, rounds):
    grid = {"alpha": [1e-3, 1e-2, 1e-1, 1.0]}
    search = GridSearchCV(net(), grid, cv=3, pre_dispatch=pre_dispatch, refit=False)
    with stacked(max_stack=5):
        run(search.fit, X, y)
    assert sum(rounds) == 12
    assert max(rounds) == (3 if pre_dispatch == 3 else 5)


def test_max_stack_of_one_is_a_loop(rounds):
    with stacked(max_stack=1):
        run(cross_validate, net(), X, y)
    assert rounds == [1] * 5


def test_chosen_by_joblibs_own_context(rounds):
    alone = run(CLASSIFIER_PROGRAMS["cross_validate"], net())
    rounds.clear()
    with joblib.parallel_config(backend="stacked", max_stack=3):
        together = run(CLASSIFIER_PROGRAMS["cross_validate"], net())
    assert_same_run(together, alone)
    assert rounds == [3, 1]


def test_inside_itself(rounds):
    with stacked(), stacked():
        run(cross_validate, net(), X, y)
    assert rounds == [5]


def test_opened_again_inside_a_task(rounds):
    def program(seed):
        with stacked():
            return cross_validate(net(random_state=seed), X, y, cv=2, return_estimator=True)

    with stacked():
        together, _ = run(joblib.Parallel(), (joblib.delayed(program)(s) for s in range(3)))
    assert rounds == [6]
    alone, _ = run(lambda: [program(s) for s in range(3)])
    for a, b in zip(networks(together), networks(alone), strict=True):
        assert_same_fit(a, b, rtol=1e-6)


def test_other_libraries_just_run(rounds):
    for model in (LogisticRegression(), SklearnMLPClassifier(max_iter=4, random_state=0)):
        alone, theirs = run(cross_validate, model, X, y)
        with stacked():
            together, ours = run(cross_validate, model, X, y)
        np.testing.assert_array_equal(together["test_score"], alone["test_score"])
        assert ours == theirs
    assert rounds == []


def test_estimators_beside_each_other(rounds):
    """A search over which estimator to take: ours meet, the others do not keep them waiting."""
    models = [net(), LogisticRegression(), net(solver="lbfgs"), net(alpha=1.0)]
    pipe = piped(net())
    grid = {prefix(pipe)[:-2]: models}

    def program():
        return [GridSearchCV(clone(pipe), grid, cv=3).fit(X, y)]

    alone = run(program)
    rounds.clear()
    with stacked():
        together = run(program)
    del together[0][0].cv_results_["params"], alone[0][0].cv_results_["params"]
    for run_ in (together, alone):
        search = run_[0][0]
        search.cv_results_.pop("param_mlpclassifier")
        search.best_params_ = None
    assert_same_run(together, alone)
    assert sorted(rounds, reverse=True)[:1] == [6]


def test_fit_outside_of_a_task_is_a_fit():
    alone, _ = run(net().fit, X, y)
    with stacked():
        inside, _ = run(net().fit, X, y)
    assert_same_fit(inside, alone, rtol=0)


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "many"])
def test_bad_size(size):
    with pytest.raises(ValueError, match=r"max_stack: must be an integer.* got"), stacked(size):
        pass


def test_bad_device():
    with pytest.raises(ValueError, match=r"device: .*'warp'"), stacked(device="warp"):
        pass


def test_device_replaces_that_of_the_estimators():
    with pytest.raises(ValueError, match="cuda"):
        run(lambda: cross_validate(net(device="cuda:77"), X, y, error_score="raise"))
    with stacked(device="cpu"):
        result, _ = run(lambda: cross_validate(net(device="cuda:77"), X, y, return_estimator=True))
        refit, _ = run(net(device="cuda:77").fit, X, y)
    assert {m.device_ for m in [*result["estimator"], refit]} == {"cpu"}


def test_times_are_there_and_summary_names_members():
    with stacked():
        _, warned = run(GridSearchCV(net(), {"alpha": [0.1, 1.0]}, cv=2).fit, X, y)
    (summary,) = [message for category, message in warned if is_summary((category, message))]
    assert summary.startswith("4 of 4 fits ended before the optimization had converged: ")
    assert "candidate 0 (alpha=0.1) folds 0, 1; candidate 1 (alpha=1.0) folds 0, 1" in summary
