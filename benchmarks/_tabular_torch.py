"""The peers of ``tabular_accuracy.py`` that come as torch modules: RTDL's MLP and ResNet, TabM.

Their authors publish modules, hyperparameters and, in a notebook each, a training loop, but no
estimator. Here is the loop with what both notebooks have in common.

Followed as published
---------------------
* Sources: ``rtdl_revisiting_models`` (README and example notebook; Gorishniy et al. 2021,
  "Revisiting Deep Learning Models for Tabular Data") and ``tabm`` (example notebook; Gorishniy et
  al. 2025, "TabM: Advancing Tabular Deep Learning with Parameter-Efficient Ensembling").
* A fifth of the training rows judges the epochs, by accuracy or by -RMSE; the best epoch's weights
  are kept; the training ends when more than 16 epochs in a row brought nothing. No limit of epochs.
* Numbers: quantiles onto a normal distribution, max(min(n / 30, 1000), 10) of them, fitted with
  noise of 1e-5. Regression targets standardised. Categories one-hot.
* MLP: 2 blocks of 384, dropout 0.1; ResNet: 2 blocks of 192, hidden factor 2, dropout 0.15 inside
  the block, none behind it; both AdamW, rate 3e-4, decay 1e-5.
* TabM: k = 32, 2 blocks of 512, dropout 0.1, piecewise-linear embeddings of 48 bins and size 16
  (version "B", no activation), 3 blocks where there are no numbers; AdamW, rate 2e-3, decay 3e-4,
  gradient norm clipped at 1, the mean of the k losses trained, the mean of the k probabilities
  predicted.

Decided here, in the peers' favour
----------------------------------
* Batch size: the notebooks' 256 belongs to 13,000 rows. On 400 rows it makes two steps an epoch,
  and a patience of 16 epochs ends the training before it has begun. Taken instead: the sizes of
  the TabM paper by training rows, as pytabkit lists them (32 below 2,800 rows, 64 below 4,500).
* The split-off fifth is stratified for classes.
* Missing numbers: the median, and a 0/1 category that tells; missing and unseen categories share
  one further level. Columns without two different values in the training part are left out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from _tabular_sets import categorical_columns
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import QuantileTransformer
from torch import Tensor, nn

PATIENCE = 16
JUDGING_SHARE = 0.2
EVALUATION_ROWS = 8_096
MODELS = ("rtdl_mlp", "rtdl_resnet", "tabm")


def batch_size(rows: int) -> int:
    """Batch size of the TabM paper for ``rows`` training rows.

    Examples
    --------
    >>> [batch_size(rows) for rows in (200, 2_800, 5_000, 30_000)]
    [32, 64, 128, 256]
    """
    for below, size in ((2_800, 32), (4_500, 64), (6_400, 128), (32_000, 256), (108_000, 512)):
        if rows < below:
            return size
    return 1024


# ---- inputs --------------------------------------------------------------------------------------


class Encoder:
    """A raw frame to numbers of shape (n, n_numbers) and codes of shape (n, n_categories).

    Attributes
    ----------
    cardinalities : list of int
        Levels of each code column; the last level of a category is "missing or unseen".
    """

    def fit(self, X: pd.DataFrame) -> Encoder:
        """Learn medians, quantiles and levels from the training part."""
        categorical = categorical_columns(X)
        varied = [name for name in X.columns if X[name].nunique() > 1]
        self.numbers = [name for name in varied if name not in categorical]
        # A column that holds one value or nothing tells something by what is missing only.
        self.gaps = [n for n in X.columns if n not in categorical and 0 < X[n].isna().mean() < 1]
        self.levels = {
            name: {level: code for code, level in enumerate(sorted(X[name].dropna().unique()))}
            for name in categorical
            if X[name].nunique(dropna=False) > 1
        }
        self.cardinalities = [len(levels) + 1 for levels in self.levels.values()]
        self.cardinalities += [2] * len(self.gaps)
        if self.numbers:
            numbers = X[self.numbers].to_numpy(dtype=np.float32, na_value=np.nan)
            self.medians = np.nanmedian(numbers, axis=0)
            numbers = self._filled(X)
            noise = np.random.default_rng(0).normal(0.0, 1e-5, numbers.shape)
            self.quantiles = QuantileTransformer(
                n_quantiles=max(min(len(X) // 30, 1000), 10),
                output_distribution="normal",
                subsample=10**9,
            ).fit(numbers + noise.astype(np.float32))
        return self

    def transform(self, X: pd.DataFrame) -> tuple[Tensor, Tensor]:
        """Numbers as float32, codes as int64."""
        numbers = np.empty((len(X), 0), dtype=np.float32)
        if self.numbers:
            numbers = self.quantiles.transform(self._filled(X)).astype(np.float32)
        columns = [
            X[name].map(levels).fillna(len(levels)).to_numpy(dtype=np.int64)
            for name, levels in self.levels.items()
        ]
        columns += [X[name].isna().to_numpy(dtype=np.int64) for name in self.gaps]
        codes = np.column_stack(columns) if columns else np.empty((len(X), 0), dtype=np.int64)
        return torch.as_tensor(numbers), torch.as_tensor(codes)

    def _filled(self, X: pd.DataFrame) -> np.ndarray:
        numbers = X[self.numbers].to_numpy(dtype=np.float32, na_value=np.nan)
        return np.where(np.isnan(numbers), self.medians, numbers)


# ---- the models ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """A module, the rate and decay of its AdamW, and the bound of its gradient norm, if any."""

    module: nn.Module
    rate: float
    decay: float
    clip: float | None


class OneHot(nn.Module):
    """A module that takes one matrix, behind the one-hot codes. Output of shape (B, 1, n_out)."""

    def __init__(self, cardinalities: list[int], body: nn.Module) -> None:
        super().__init__()
        self.cardinalities = cardinalities
        self.body = body

    def forward(self, numbers: Tensor, codes: Tensor) -> Tensor:
        """Predict."""
        parts = [numbers]
        for j, cardinality in enumerate(self.cardinalities):
            parts.append(nn.functional.one_hot(codes[:, j], cardinality).to(numbers.dtype))
        return self.body(torch.column_stack(parts))[:, None]


class Ensemble(nn.Module):
    """TabM, which wants None for what is not there. Output of shape (B, k, n_out)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, numbers: Tensor, codes: Tensor) -> Tensor:
        """Predict."""
        return self.body(
            numbers if numbers.shape[1] else None,
            codes if codes.shape[1] else None,
        )


def recipe(model: str, numbers: Tensor, cardinalities: list[int], n_outputs: int) -> Recipe:
    """The module ``model`` for these training inputs, at its published defaults."""
    if model == "tabm":
        return Recipe(_tabm(numbers, cardinalities, n_outputs), 2e-3, 3e-4, 1.0)
    import rtdl_revisiting_models as rtdl

    n_inputs = numbers.shape[1] + sum(cardinalities)
    body = (
        rtdl.MLP(d_in=n_inputs, d_out=n_outputs, n_blocks=2, d_block=384, dropout=0.1)
        if model == "rtdl_mlp"
        else rtdl.ResNet(
            d_in=n_inputs,
            d_out=n_outputs,
            n_blocks=2,
            d_block=192,
            d_hidden_multiplier=2.0,
            dropout1=0.15,
            dropout2=0.0,
        )
    )
    return Recipe(OneHot(cardinalities, body), 3e-4, 1e-5, None)


def _tabm(numbers: Tensor, cardinalities: list[int], n_outputs: int) -> nn.Module:
    import rtdl_num_embeddings
    import tabm

    embeddings = None
    if numbers.shape[1]:
        bins = rtdl_num_embeddings.compute_bins(numbers, n_bins=min(48, len(numbers) - 1))
        embeddings = rtdl_num_embeddings.PiecewiseLinearEmbeddings(
            bins, d_embedding=16, activation=False, version="B"
        )
    return Ensemble(
        tabm.TabM.make(
            n_num_features=numbers.shape[1],
            cat_cardinalities=cardinalities,
            d_out=n_outputs,
            num_embeddings=embeddings,
        )
    )


# ---- training ------------------------------------------------------------------------------------


class TorchPeer:
    """One of the models with ``fit``, ``predict`` and ``predict_proba``.

    Parameters
    ----------
    model : {"rtdl_mlp", "rtdl_resnet", "tabm"}
        Which one.
    classes : bool
        Whether classes are predicted.
    seed : int
        Of the split-off rows, the initial weights, the batches and the dropout.
    """

    def __init__(self, model: str, *, classes: bool, seed: int) -> None:
        self.model = model
        self.classes = classes
        self.seed = seed

    def fit(self, X: pd.DataFrame, y: np.ndarray) -> TorchPeer:
        """Train until more than 16 epochs in a row brought nothing."""
        torch.manual_seed(self.seed)
        target, n_outputs = self._encode_target(y)
        train, judge = train_test_split(
            np.arange(len(X)),
            test_size=JUDGING_SHARE,
            random_state=self.seed,
            stratify=y if self.classes else None,
        )
        if not self.classes:
            self.mean = target[train].mean(dim=0)
            self.scale = target[train].std(dim=0)
            target = (target - self.mean) / self.scale
        self.encoder = Encoder().fit(X.iloc[train])
        inputs = self.encoder.transform(X.iloc[train])
        made = recipe(self.model, inputs[0], self.encoder.cardinalities, n_outputs)
        self.module = made.module
        judged = self.encoder.transform(X.iloc[judge])
        self.epochs = _train(
            made,
            inputs,
            target[train],
            loss=_class_loss if self.classes else _squared_loss,
            judge=lambda: self._judge(self._outputs(*judged), target[judge]),
        )
        return self

    def predict_proba(self, X: pd.DataFrame) -> np.ndarray:
        """Mean of the members' probabilities, of shape (n, n_classes)."""
        return _probabilities(self._outputs(*self.encoder.transform(X))).numpy()

    def predict(self, X: pd.DataFrame) -> np.ndarray:
        """Mean of the members' predictions, of shape (n,) or (n, n_targets)."""
        mean = self._outputs(*self.encoder.transform(X)).mean(dim=1) * self.scale + self.mean
        return mean.numpy().squeeze(-1) if mean.shape[1] == 1 else mean.numpy()

    def _encode_target(self, y: np.ndarray) -> tuple[Tensor, int]:
        if not self.classes:
            matrix = torch.as_tensor(y, dtype=torch.float32).reshape(len(y), -1)
            return matrix, matrix.shape[1]
        self.classes_, codes = np.unique(y, return_inverse=True)
        # RTDL trains two classes with one logit; the second is fixed at zero in _logits.
        two = len(self.classes_) == 2 and self.model != "tabm"
        return torch.as_tensor(codes), 1 if two else len(self.classes_)

    def _outputs(self, numbers: Tensor, codes: Tensor) -> Tensor:
        self.module.eval()
        with torch.inference_mode():
            parts = [
                self.module(numbers[rows], codes[rows])
                for rows in torch.arange(len(numbers)).split(EVALUATION_ROWS)
            ]
        return torch.cat(parts)

    def _judge(self, outputs: Tensor, target: Tensor) -> float:
        if self.classes:
            return (_probabilities(outputs).argmax(dim=1) == target).double().mean().item()
        return -math.sqrt((outputs.mean(dim=1) - target).square().double().mean().item())


def _logits(outputs: Tensor) -> Tensor:
    return nn.functional.pad(outputs, (1, 0)) if outputs.shape[-1] == 1 else outputs


def _probabilities(outputs: Tensor) -> Tensor:
    return _logits(outputs).double().softmax(dim=-1).mean(dim=1)


def _class_loss(outputs: Tensor, target: Tensor) -> Tensor:
    members = outputs.shape[1]
    logits = _logits(outputs).flatten(0, 1)
    return nn.functional.cross_entropy(logits, target.repeat_interleave(members))


def _squared_loss(outputs: Tensor, target: Tensor) -> Tensor:
    return (outputs - target[:, None]).square().mean()


def _train(
    made: Recipe,
    inputs: tuple[Tensor, Tensor],
    target: Tensor,
    *,
    loss: Callable[[Tensor, Tensor], Tensor],
    judge: Callable[[], float],
) -> int:
    """Train ``made.module`` in place, leave the best epoch's weights in it, count the epochs."""
    module, rows = made.module, len(target)
    optimizer = torch.optim.AdamW(module.parameters(), lr=made.rate, weight_decay=made.decay)
    size = batch_size(rows)
    best, kept, remaining, epochs = -math.inf, None, PATIENCE, 0
    while remaining >= 0:
        module.train()
        for batch in torch.randperm(rows).split(size):
            if len(batch) == 1:  # batch norm needs two rows
                continue
            optimizer.zero_grad()
            value = loss(module(inputs[0][batch], inputs[1][batch]), target[batch])
            value.backward()
            if made.clip is not None:
                nn.utils.clip_grad_norm_(module.parameters(), made.clip)
            optimizer.step()
        epochs += 1
        score = judge()
        if score > best:
            best, kept, remaining = score, copy.deepcopy(module.state_dict()), PATIENCE
        else:
            remaining -= 1
    if kept is None:
        raise FloatingPointError("no epoch had a finite score on the judging rows")
    module.load_state_dict(kept)
    return epochs
