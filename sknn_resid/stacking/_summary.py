"""Which networks of a search had not converged, said once: by candidate and fold.

Each fit warns by itself, as it would alone. A hundred equal lines do not say which candidates they
came from, so the search is followed by one more warning that does.
"""

from __future__ import annotations

import warnings
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sklearn.exceptions import ConvergenceWarning

_MAX_CANDIDATES = 10
_MAX_PARAMETERS = 200  # characters


@dataclass(frozen=True)
class Member:
    """Place of a task in its search.

    Attributes
    ----------
    candidate : int or None
        Row of ``cv_results_``; None where there is one candidate only.
    parameters : str
    fold : int
    """

    candidate: int | None
    parameters: str
    fold: int


class Unconverged:
    """The networks of one ``Parallel`` that ended before they had converged."""

    def __init__(self) -> None:
        self._members: set[Member] = set()
        self._n_submitted = 0
        self._first_candidate = 0  # of this call; a halving search makes several
        self._n_candidates = 0
        self._folds: Counter[str] = Counter()

    def begin_call(self) -> None:
        """Another call of the same ``Parallel``: its candidates are counted on."""
        self._first_candidate += self._n_candidates
        self._n_candidates = 0
        self._folds.clear()

    def member(self, items: list[tuple[Any, tuple[Any, ...], dict[str, Any]]]) -> Member | None:
        """Which candidate and fold these calls are; None if they are no part of a search."""
        function, _, kwargs = items[0]
        if len(items) > 1 or getattr(function, "__name__", "") != "_fit_and_score":
            return None
        self._n_submitted += 1
        parameters = kwargs.get("parameters")
        text = "" if parameters is None else _text(parameters)
        progress, split = kwargs.get("candidate_progress"), kwargs.get("split_progress")
        if progress is None or split is None:
            fold = self._folds[text]
            self._folds[text] += 1
            return Member(None, text, fold)
        self._n_candidates = max(self._n_candidates, int(progress[1]))
        return Member(self._first_candidate + int(progress[0]), text, int(split[0]))

    def note(self, member: Member) -> None:
        """One of the member's networks has not converged."""
        self._members.add(member)

    def warn(self) -> None:
        """Say it, and begin anew."""
        members, self._members = self._members, set()
        if not members:
            return
        by_candidate: dict[tuple[int, str], list[int]] = {}
        for member in members:
            row = -1 if member.candidate is None else member.candidate
            by_candidate.setdefault((row, member.parameters), []).append(member.fold)
        lines = [
            _line(row, text, sorted(folds)) for (row, text), folds in sorted(by_candidate.items())
        ]
        left = len(lines) - _MAX_CANDIDATES
        if left > 0:
            lines = [*lines[:_MAX_CANDIDATES], f"and {left} more candidates"]
        message = (
            f"{len(members)} of {self._n_submitted} fits ended before the optimization had "
            f"converged: {'; '.join(lines)}. Raise max_iter or max_time, or scale X."
        )
        # Where this warning is an error, each fit has already raised its own.
        with suppress(ConvergenceWarning):
            warnings.warn(message, ConvergenceWarning, stacklevel=2)


def _line(row: int, parameters: str, folds: list[int]) -> str:
    which = f"fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds))}"
    candidate = "" if row < 0 else f"candidate {row} "
    return f"{candidate}{parameters} {which}".strip()


def _text(parameters: Any) -> str:
    pairs = ", ".join(f"{name}={value}" for name, value in parameters.items())
    return f"({pairs if len(pairs) <= _MAX_PARAMETERS else pairs[:_MAX_PARAMETERS] + '...'})"
