"""`diagnose`: how gradients fare in a network, in words, with the numbers behind them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from sknn_resid.inspection._gradient_flow import flow_of, relative
from sknn_resid.inspection._images import is_image_network, look_at_images
from sknn_resid.inspection._jacobian import (
    correlation_of,
    depths,
    image_correlation,
    narrowest,
    spectrum_of,
)
from sknn_resid.inspection._layers import image_layers, needs_targets, network_layers
from sknn_resid.inspection._network import OpenNetwork, open_network

# How far a gradient may shrink or grow on its way: 1e-3 and 1e3 in length.
LONGEST_WAY = 1e3
SHATTERED_BELOW = 0.1
NOISE = 0.1
COLLAPSED_BELOW = 0.05
FEWEST_DIRECTIONS = 1.1
FEWEST_UNITS = 8  # narrower networks have no rank to speak of
SATURATED_ABOVE = 0.3
DEAD_ABOVE = 0.1

_HELP = {
    "vanishing": (
        "residual connections (MLPResidualClassifier, MLPResidualRegressor with skip='identity'; "
        "ResNetClassifier with shortcut='auto'); normalization='batch' or 'layer'; initial weights "
        "that fit the activation (init='he' for relu, 'glorot' or 'orthogonal' for tanh, 'lecun' "
        "for selu); relu or tanh in place of logistic; scaled columns (StandardScaler), if they "
        "are tiny"
    ),
    "exploding": (
        "residual connections (skip='identity'; shortcut='auto' in image networks) with "
        "normalization='batch' or 'layer'; without a normalization skip='rezero' or "
        "branch_scale=0; a warm-up (warmup_fraction=0.1), clip_norm=1.0 and a lower "
        "learning_rate_init, which keep the first steps short"
    ),
    "shattered": (
        "residual connections (skip='identity'; shortcut='auto' in image networks); fewer layers; "
        "without them neither another learning rate nor a longer gradient helps, because "
        "neighbours disagree on its direction"
    ),
    "rank-collapsed": (
        "residual connections (skip='identity'); init='orthogonal' with tanh; fewer or wider layers"
    ),
    "saturated": (
        "normalization='batch' or 'layer'; smaller initial weights (init='glorot' or 'lecun'; "
        "branch_scale=0 where many blocks add up); scaled columns (StandardScaler); relu or gelu "
        "in place of logistic or tanh"
    ),
    "dead units": (
        "leaky_relu, gelu or silu in place of relu; normalization='batch'; init='he'; a warm-up "
        "(warmup_fraction=0.1) or a lower learning_rate_init, if they died in training"
    ),
    "healthy": "nothing: whatever is wrong, it is not the way of the gradients",
}


@dataclass(frozen=True)
class Finding:
    """One meter, read.

    Attributes
    ----------
    meter : str
        What was measured.
    value : float
    rule : {"<", ">"}
        On which side of the threshold there is something to say.
    threshold : float
    verdict : str
        What would be said.
    found : bool
        Whether it is.
    note : str
        Where it was seen, or why it was not judged.
    """

    meter: str
    value: float
    rule: str
    threshold: float
    verdict: str
    found: bool
    note: str = ""

    @property
    def comparison(self) -> str:
        """The value's side of the threshold, as "< 0.001"; "not judged" where there is none."""
        if math.isnan(self.value) or math.isnan(self.threshold):
            return "not judged"
        holds = self.rule if self.found else {"<": ">=", ">": "<="}[self.rule]
        return f"{holds} {self.threshold:.3g}"


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found. ``print`` it for a reading in words.

    Attributes
    ----------
    network : str
        What was looked at.
    findings : tuple of Finding
        Every meter with its value and threshold, whether it said something or not.
    """

    network: str
    findings: tuple[Finding, ...]

    @property
    def verdicts(self) -> list[str]:
        """Words out of vanishing, exploding, shattered, rank-collapsed, saturated, dead units.

        ``["healthy"]`` if none of them holds.
        """
        found = [finding.verdict for finding in self.findings if finding.found]
        return list(dict.fromkeys(found)) or ["healthy"]

    @property
    def help(self) -> dict[str, str]:
        """What usually helps, for each verdict."""
        return {verdict: _HELP[verdict] for verdict in self.verdicts}

    def to_frame(self) -> pd.DataFrame:
        """The numbers that led to the verdicts.

        Returns
        -------
        findings : DataFrame
            One row a meter: ``meter``, ``value``, ``rule``, ``threshold``, ``verdict``, ``found``
            and ``note``.
        """
        return pd.DataFrame([vars(finding) for finding in self.findings])

    def __str__(self) -> str:
        lines = [f"{self.network}: {', '.join(self.verdicts)}"]
        for verdict in self.verdicts:
            own = [f for f in self.findings if f.found and f.verdict == verdict]
            if own:
                helps = f"what usually helps: {_HELP[verdict]}"
                lines += ["", f"{verdict}:", *_readings(own)]
                lines += textwrap.wrap(helps, 96, initial_indent="  ", subsequent_indent="    ")
        said = {finding.meter for finding in self.findings if finding.found}
        rest = [finding for finding in self.findings if finding.meter not in said]
        if rest:
            lines += ["", "nothing to say about:", *_readings(rest)]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Diagnosis {', '.join(self.verdicts)}: {self.network}; print it for the numbers>"


def _readings(findings: Sequence[Finding]) -> list[str]:
    """One line a meter: its value, each threshold, a note."""
    lines = []
    for meter in dict.fromkeys(finding.meter for finding in findings):
        own = [finding for finding in findings if finding.meter == meter]
        sides = ", ".join(dict.fromkeys(finding.comparison for finding in own))
        note = f" ({own[0].note})" if own[0].note else ""
        lines.append(f"  {meter}: {own[0].value:.3g} {sides}{note}")
    return lines


def diagnose(
    estimator: Any,
    X: Any,
    y: Any,
    sample_weight: Any = None,
    *,
    member: int = 0,
    random_state: Any = 0,
) -> Diagnosis:
    """Say how gradients fare in a network, in plain words, with the numbers that led to them.

    Several meters that know nothing of one another, because the diseases are different ones: a
    gradient can vanish or explode, it can keep its length and be noise (shattered), or keep length
    and smoothness and be left a handful of directions (rank-collapsed). Looking at lengths alone
    misses the last two.

    A network that is not fitted is looked at as ``fit`` would begin: most trouble of depth is there
    from the start. In a fitted network rank is shown but not judged: training leaves a good network
    only the directions that its outputs need. ``diagnose(clone(estimator), X, y)`` judges it at its
    beginning.

    Parameters
    ----------
    estimator : estimator or Pipeline
        A network of this package, or a Pipeline that ends in one; fitted or not.
    X : {array-like, frame, sparse matrix} of shape (n_samples, n_features)
        Rows; a few hundred are enough. A unit counts as dead if it is so on all of them.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Their targets.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the rows.
    member : int, default=0
        Which member of a residual ensemble.
    random_state : int, RandomState instance or None, default=0
        Draws the noise of the meter for shattered gradients.

    Returns
    -------
    diagnosis : Diagnosis
        With `verdicts`, `findings`, `help`, `to_frame()`; ``print`` it.

    Raises
    ------
    TypeError
        If the estimator is no network of this package.
    ValueError
        For bad input.

    See Also
    --------
    gradient_flow : The numbers by layer.
    jacobian_spectrum : Length and rank by depth.
    gradient_correlation : The meter for shattered gradients.

    Notes
    -----
    ==================  ===========================================================  ===========
    verdict             meter                                                        threshold
    ==================  ===========================================================  ===========
    vanishing           gradient norm of the first over that of the last layer       < 1e-3
    vanishing           mean squared singular value of the whole stack               < 1e-6
    exploding           the same two                                                 > 1e3, 1e6
    shattered           correlation of gradients at x and at x + 10 % noise          < 0.1
    rank-collapsed      effective rank of the stack, as part of the possible         < 0.05
    saturated           part of a layer in the flat of its function (dead left out)  > 0.3
    dead units          part of all units without a derivative on any row            > 0.1
    ==================  ===========================================================  ===========

    The stack goes from behind the first layer to before the last (`jacobian_spectrum`); a network
    with one hidden layer or without a block has none, and that of an image network is not looked
    at. The second meter for vanishing sees what the
    first does not: with initial weights that are too small, activations shrink as well, and the
    gradients of all layers are equally short. Effective rank is judged from 8 units on, and
    1.1 directions always count as collapsed.

    The thresholds were set on plain and residual networks of 20 and 56 layers of 64 units on the
    digits (ReLU, tanh, logistic; batch, layer, no normalization; five kinds of initial weights).
    Plain networks that did not train had one of the words at least, residual ones that did were
    healthy: correlations were below 0.04 or above 0.26, ranks of plain networks that failed 0.02 to
    0.046, of residual ones 0.09 and more. Not all words are fatal: logistic units with batch
    normalization are rank-collapsed at 56 layers and train; a tanh stack of 27 blocks that add up
    is saturated and trains.

    References
    ----------
    Glorot and Bengio (2010), Understanding the difficulty of training deep feedforward neural
    networks (vanishing gradients, saturation). Pascanu, Mikolov and Bengio (2013), On the
    difficulty of training recurrent neural networks (exploding gradients). Balduzzi et al. (2017),
    The shattered gradients problem. Saxe, McClelland and Ganguli (2014), Exact solutions to the
    nonlinear dynamics of learning (rank). He et al. (2016), Deep residual learning.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sknn_resid import MLPClassifier
    >>> from sknn_resid.inspection import diagnose
    >>> X, y = load_digits(return_X_y=True)
    >>> deep = MLPClassifier((64,) * 20, activation="logistic", random_state=0)
    >>> diagnose(deep, X[:256] / 16, y[:256]).verdicts
    ['vanishing']
    >>> diagnose(MLPClassifier((100,), random_state=0), X[:256] / 16, y[:256]).verdicts
    ['healthy']
    """
    needs_targets(y)
    if is_image_network(estimator):
        subject = look_at_images(estimator, X, y, sample_weight)
        flow, fitted = flow_of(image_layers(subject)), subject.fitted
        correlation, stack = image_correlation(subject, NOISE, random_state), []
    else:
        opened = open_network(
            estimator, X, y, sample_weight, member=member, statistics="batch", dtype="float64"
        )
        flow, fitted = flow_of(network_layers(opened)), opened.fitted
        correlation, stack = correlation_of(opened, NOISE, random_state), _stack(opened)
    findings = [*_lengths(flow), *stack, _shattered(correlation), *_units(flow)]
    order = list(_HELP)
    findings.sort(key=lambda finding: order.index(finding.verdict))
    last = estimator[-1] if hasattr(estimator, "steps") else estimator
    state = "fitted" if fitted else "as fit would begin"
    return Diagnosis(f"{type(last).__name__} ({state})", tuple(findings))


def _two_sided(meter: str, value: float, limit: float, note: str = "") -> list[Finding]:
    """Vanishing below 1 / limit, exploding above limit or where numbers are no longer finite."""
    broken = math.isinf(value)
    return [
        Finding(meter, value, "<", 1 / limit, "vanishing", value < 1 / limit, note),
        Finding(meter, value, ">", limit, "exploding", broken or value > limit, note),
    ]


def _lengths(flow: pd.DataFrame) -> list[Finding]:
    norms = flow["gradient_norm"].to_numpy()
    meter, note = "gradient norm of first over last layer", ""
    if not np.isfinite(norms).all():
        ratio, note = math.inf, "gradients are no longer finite"
    elif norms[-1] == 0 and norms[0] == 0:
        ratio, note = math.nan, "all gradients are 0: the loss is at a minimum, or flat"
    else:
        ratio = relative(norms[0], norms[-1])
    return _two_sided(meter, ratio, LONGEST_WAY, note)


def _stack(network: OpenNetwork) -> list[Finding]:
    """What the Jacobian of the whole stack says, where there is a stack."""
    if len(depths(network)) < 2:
        return []
    whole = spectrum_of(network, whole_only=True).iloc[0]
    square = float(whole["mean_square"])
    lengths = _two_sided("mean squared singular value of the stack", square, LONGEST_WAY**2)
    return [*lengths, _rank(whole, network)]


def _rank(whole: pd.Series, network: OpenNetwork) -> Finding:
    possible, rank = narrowest(network), float(whole["effective_rank"])
    threshold = max(COLLAPSED_BELOW * possible, FEWEST_DIRECTIONS)
    note = f"of {possible} directions"
    if network.fitted:
        threshold, note = math.nan, f"{note}; a fitted network keeps what its outputs need"
    elif possible < FEWEST_UNITS:
        threshold, note = math.nan, f"{note}: too narrow to tell"
    found = rank < threshold and float(whole["mean_square"]) > 0
    return Finding(
        "effective rank of the stack", rank, "<", threshold, "rank-collapsed", found, note
    )


def _shattered(value: float) -> Finding:
    note = "no row has a gradient" if math.isnan(value) else ""
    found = value < SHATTERED_BELOW
    meter = "correlation of neighbours' gradients"
    return Finding(meter, value, "<", SHATTERED_BELOW, "shattered", found, note)


def _units(flow: pd.DataFrame) -> list[Finding]:
    """Saturated and dead units."""
    seen = flow.dropna(subset=["dead_fraction"])
    if seen.empty:
        return []
    flat = (seen["saturated_fraction"] - seen["dead_fraction"]).to_numpy()
    dead = seen["dead_fraction"].to_numpy()
    layers = seen["layer"].tolist()
    where_flat, where_dead = (f"layer {layers[int(part.argmax())]}" for part in (flat, dead))
    worst, mean = float(flat.max()), float(dead.mean())
    if dead.max() > 0:
        where_dead = f"most, {dead.max():.0%}, in {where_dead}"
    else:
        where_dead = ""
    return [
        Finding(
            "saturated part of the worst layer",
            worst,
            ">",
            SATURATED_ABOVE,
            "saturated",
            worst > SATURATED_ABOVE,
            where_flat if worst > 0 else "",
        ),
        Finding(
            "dead part of all units",
            mean,
            ">",
            DEAD_ABOVE,
            "dead units",
            mean > DEAD_ABOVE,
            where_dead,
        ),
    ]
