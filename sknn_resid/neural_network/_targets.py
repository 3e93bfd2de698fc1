"""Targets as the user gives them <-> targets as the engine learns them.

Classification is binary (one logistic output), multi-class (softmax), multi-label (one logistic
output per label) or multiclass-multioutput (one softmax per target column, side by side).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils.multiclass import (
    check_classification_targets,
    type_of_target,
    unique_labels,
)

from sknn_resid._sklearn_compat import check_partial_fit_first_call
from sknn_resid.engine.data import Features
from sknn_resid.engine.fitted import FEW_NUMBERS, FittedNetwork
from sknn_resid.engine.forward import LARGEST, POSITIVE
from sknn_resid.engine.losses import BinaryCrossEntropy, Loss, SoftmaxCrossEntropy
from sknn_resid.neural_network._arrays import as_numpy


@dataclass(frozen=True, eq=False)
class LabelCodec:
    """Translates class labels to engine targets and raw outputs back to labels.

    Attributes
    ----------
    kind : {"binary", "multiclass", "multilabel", "multioutput"}
    classes : ndarray, or list of ndarray for "multioutput"
        As `classes_` shows them.
    """

    kind: str
    classes: Any

    @property
    def n_outputs(self) -> int:
        """Number of logits."""
        if self.kind == "binary":
            return 1
        if self.kind == "multioutput":
            return sum(len(c) for c in self.classes)
        return len(self.classes)

    @property
    def loss(self) -> Loss:
        """The cross-entropy that belongs to the kind of target."""
        if self.kind == "multiclass":
            return SoftmaxCrossEntropy((len(self.classes),))
        if self.kind == "multioutput":
            return SoftmaxCrossEntropy(tuple(len(c) for c in self.classes))
        return BinaryCrossEntropy()

    @property
    def out_activation(self) -> str:
        """Name of the output activation, as scikit-learn's ``out_activation_``."""
        return "softmax" if self.kind in ("multiclass", "multioutput") else "logistic"

    def encode(self, y: np.ndarray) -> np.ndarray:
        """Engine targets (n, T): codes for softmax, 0 and 1 for logistic outputs."""
        if self.kind == "multioutput":
            columns = [np.searchsorted(c, y[:, t]) for t, c in enumerate(self.classes)]
            return np.column_stack(columns).astype(np.int64)
        if self.kind == "multilabel":
            return np.asarray(y.toarray() if hasattr(y, "toarray") else y, dtype=np.float64)
        codes = np.searchsorted(self.classes, y)
        if self.kind == "multiclass":
            return codes.astype(np.int64)[:, None]
        # One class only: every row is the negative case, as scikit-learn encodes it.
        positive = codes == 1 if len(self.classes) > 1 else np.zeros(len(codes), dtype=bool)
        return positive.astype(np.float64)[:, None]

    def codes_from_logits(self, z_NK: np.ndarray) -> np.ndarray:
        """Predicted codes: (n,) for one target, (n, K) or (n, T) for several."""
        if self.kind == "binary":
            return ((z_NK[:, 0] > 0) & (len(self.classes) > 1)).astype(np.intp)
        if self.kind == "multiclass":
            return z_NK.argmax(1)
        if self.kind == "multilabel":
            return (z_NK > 0).astype(np.intp)
        return np.column_stack([z_NK[:, part].argmax(1) for part in self.head_slices()])

    @property
    def link(self) -> str | None:
        """What the compiled module is asked for to give codes, see `engine.forward`."""
        return {"multiclass": LARGEST, "multioutput": None}.get(self.kind, POSITIVE)

    def single_codes(self, codes: np.ndarray) -> np.ndarray:
        """What it gave, (n, 1) for a binary problem, as `codes_from_logits` gives it."""
        return codes[:, 0] & (len(self.classes) > 1) if self.kind == "binary" else codes

    def codes_of(
        self, network: FittedNetwork, X: Features, device: torch.device | None
    ) -> np.ndarray:
        """As `codes_from_logits`, from rows, never holding all logits."""
        codes = network.compiled(X, self.link) if device is None else None
        if codes is not None:
            return self.single_codes(codes)
        return self.codes_from_chunks(network.chunks(X, device), int(X.shape[0]))

    def codes_from_chunks(
        self, chunks: Iterable[tuple[slice, torch.Tensor]], n_rows: int
    ) -> np.ndarray:
        """As `codes_from_logits`, from class-major chunks (K, B), never holding all logits."""
        n_columns = {"multilabel": self.n_outputs, "multioutput": len(self.classes)}
        single = self.kind not in n_columns
        codes = np.empty(n_rows if single else (n_rows, n_columns[self.kind]), dtype=np.intp)
        for rows, z_KB in chunks:
            if self.kind == "multiclass":
                codes[rows] = _first_maximum(z_KB)
            else:
                codes[rows] = self.codes_from_logits(z_KB.cpu().numpy().T)
        return codes

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Labels of predicted codes."""
        if self.kind == "multilabel":
            return codes
        if self.kind == "multioutput":
            columns = [c[codes[:, t]] for t, c in enumerate(self.classes)]
            return np.column_stack(columns)
        if len(self.classes) == 1:
            return np.repeat(self.classes, len(codes))
        if self._codes_are_labels(codes):
            return codes
        return self.classes[codes]

    def _codes_are_labels(self, codes: np.ndarray) -> bool:
        """Whether the sorted classes are 0, 1, 2, ... of the codes' own type."""
        first, last = self.classes[0], self.classes[-1]
        same = type(self.classes) is np.ndarray and self.classes.dtype == codes.dtype
        return same and first == 0 and last == len(self.classes) - 1

    def probabilities(self, outputs_NK: Any) -> Any:
        """What ``predict_proba`` gives, from linked outputs (array or tensor)."""
        if self.kind == "multioutput":
            return [outputs_NK[:, part] for part in self.head_slices()]
        if self.kind != "binary":
            return outputs_NK
        p = outputs_NK[:, 0]
        if isinstance(p, torch.Tensor):
            return torch.stack([(1 - p).clamp_max(1 - torch.finfo(p.dtype).eps / 2), p], dim=1)
        both = np.empty((len(p), 2), dtype=p.dtype)
        # 1 - p rounds to 1 where p is tiny; a probability stays strictly inside (0, 1)
        np.minimum(1 - p, 1 - np.finfo(p.dtype).eps / 2, out=both[:, 0])
        both[:, 1] = p
        return both

    def head_slices(self) -> list[slice]:
        """Columns of the logits that belong to each target of a "multioutput" problem."""
        ends = np.cumsum([len(c) for c in self.classes])
        return [slice(int(e) - len(c), int(e)) for e, c in zip(ends, self.classes, strict=True)]

    def label_binarizer(self) -> LabelBinarizer | None:
        """A fitted LabelBinarizer, as scikit-learn's MLP carries; None for "multioutput"."""
        if self.kind == "multioutput":
            return None
        binarizer = LabelBinarizer()
        if self.kind == "multilabel":
            return binarizer.fit(np.eye(max(2, len(self.classes)), len(self.classes), dtype=int))
        return binarizer.fit(self.classes)


def _first_maximum(z_KB: torch.Tensor) -> np.ndarray:
    """Row of the largest entry in each column, the first of equals.

    For many columns torch's ``max`` takes a tenth of the time of either library's ``argmax``, which
    walk along the leading axis; for a few columns numpy is there sooner.
    """
    if z_KB.numel() < FEW_NUMBERS:
        return z_KB.cpu().numpy().argmax(0)
    return z_KB.max(0).indices.cpu().numpy()


def fit_codec(y: np.ndarray, classes: Any = None) -> LabelCodec:
    """Learn the classes of ``y`` (or take those given, for ``partial_fit``)."""
    kind = type_of_target(y, input_name="y")
    if kind in ("multilabel-indicator", "multilabel-sequences"):
        return LabelCodec("multilabel", np.arange(y.shape[1]))
    if kind == "multiclass-multioutput":
        return LabelCodec("multioutput", [_unique(y[:, t]) for t in range(y.shape[1])])
    if kind not in ("binary", "multiclass"):
        check_classification_targets(y)  # raises, in scikit-learn's words
    known = _unique(y if classes is None else np.asarray(classes))
    return LabelCodec("binary" if len(known) <= 2 else "multiclass", known)


def _unique(labels: np.ndarray) -> np.ndarray:
    """Sorted labels, as ``unique_labels`` gives them: strings as a string array, not objects."""
    found = np.unique(labels)
    return unique_labels(found) if found.dtype == object else found


def multioutput_codec(y: Any, classes: Any) -> LabelCodec | None:
    """Codec of a first ``partial_fit`` with several multi-class targets, None for other targets.

    ``classes`` must then be a list with one array per target.
    """
    shape = np.shape(y)
    if len(shape) != 2 or shape[1] == 1 or not isinstance(classes, (list, tuple)):
        return None
    if any(np.ndim(c) != 1 for c in classes):
        return None
    if len(classes) != shape[1]:
        raise ValueError(
            f"classes: needs one array of labels per target, got {len(classes)} arrays for "
            f"{shape[1]} targets."
        )
    return LabelCodec("multioutput", [np.unique(c) for c in classes])


def unknown_labels(codec: LabelCodec, y: np.ndarray) -> list[Any]:
    """Labels of ``y`` that the codec does not know."""
    n_targets = y.shape[1] if y.ndim == 2 else 1
    expected = len(codec.classes) if codec.kind in ("multilabel", "multioutput") else 1
    if n_targets != expected:
        raise ValueError(
            f"y has {n_targets} target columns, but the fitted model has {expected}. "
            "Give y the columns of the first call, or fit a new model."
        )
    if codec.kind == "multilabel":
        return []
    if codec.kind == "multioutput":
        return [
            label
            for t, known in enumerate(codec.classes)
            for label in np.setdiff1d(y[:, t], known).tolist()
        ]
    return np.setdiff1d(y, codec.classes).tolist()


def first_codec(est: Any, y: Any, classes: Any) -> LabelCodec | None:
    """In the first ``partial_fit``, the codec of all classes there will be; later None."""
    if not hasattr(est, "classes_"):
        codec = multioutput_codec(y, classes)
        if codec is not None:
            return codec
    elif isinstance(est.classes_, list):
        return None
    if not check_partial_fit_first_call(est, classes):
        return None
    flat = np.ndim(as_numpy(y)) == 1 or np.shape(y)[1] == 1
    return fit_codec(np.asarray(est.classes_) if flat else as_numpy(y))


def check_known(codec: LabelCodec, y: np.ndarray, *, warm_start: bool) -> None:
    """Refuse labels that the fitted model does not know; a warm start needs all it knows."""
    unknown = unknown_labels(codec, y)
    if warm_start and codec.kind in ("binary", "multiclass"):
        classes = unique_labels(y)
        if set(classes.tolist()) != set(codec.classes.tolist()):
            raise ValueError(
                "warm_start can only be used where `y` has the same classes as in the previous "
                f"call to fit. Previously got {codec.classes}, `y` has {classes}"
            )
    elif unknown:
        raise ValueError(
            f"`y` has classes not in `self.classes_`: {unknown}. `self.classes_` has "
            f"{codec.classes}. Name every class in the first call of partial_fit (classes=)."
        )


def encode_validation(codec: LabelCodec, y: np.ndarray, name: str = "y_val") -> np.ndarray:
    """Engine targets of rows beside the training rows; refuses labels that those do not have."""
    unknown = unknown_labels(codec, y)
    if unknown:
        raise ValueError(
            f"{name} has labels that y of the fit does not have: {unknown}; `classes_` is "
            f"{codec.classes}. Every class must occur in the training rows."
        )
    return codec.encode(y)


def flat_targets(y: np.ndarray) -> np.ndarray:
    """Targets (n, 1) as (n,), silently: for where the warning has been given."""
    return y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y


def real_targets(y: np.ndarray, name: str, *, positive: bool) -> np.ndarray:
    """Real targets as float64 of shape (n, K).

    Raises
    ------
    ValueError
        If a target is negative where the loss (Poisson) does not allow it.
    """
    if positive and (y < 0).any():
        raise ValueError(
            f"{name}: loss='poisson' needs targets that are not negative, got "
            f"{float(y.min()):g}. Use another loss, or shift the targets."
        )
    y = np.asarray(y, dtype=np.float64)
    return y[:, None] if y.ndim == 1 else y


def log_of(probabilities: Any) -> Any:
    """Natural logarithm of what ``predict_proba`` gives: an array, or a list of arrays."""
    if isinstance(probabilities, list):
        return [np.log(p) for p in probabilities]
    if isinstance(probabilities, np.ndarray):
        return np.log(probabilities, out=probabilities)
    if isinstance(probabilities, torch.Tensor):
        return probabilities.log()
    return probabilities.__array_namespace__().log(probabilities)
