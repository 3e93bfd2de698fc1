"""The state of Python's warnings machinery, taken down and put back when the turn passes.

Until Python 3.14's context-aware warnings the list of filters and the hook that shows a warning
belong to the process, and ``warnings.catch_warnings`` swaps them for everybody. scikit-learn enters
it in every task. With tasks that wait in the midst of it, one would leave while another is still
inside: warnings would reach the wrong log, and another list would be in place afterwards. So each
task keeps its own state while others run.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class WarningState:
    """What ``warnings.catch_warnings`` saves, by the same names."""

    filters: Any
    showwarning: Any
    show_message: Any

    @classmethod
    def here(cls) -> WarningState:
        """The state as it is."""
        module: Any = warnings
        return cls(module.filters, module.showwarning, module._showwarnmsg_impl)

    def restore(self) -> None:
        """Put this state in place; the very same list of filters, not a copy."""
        module: Any = warnings
        module.filters = self.filters
        module.showwarning = self.showwarning
        module._showwarnmsg_impl = self.show_message
        _filters_changed(module)


def _filters_changed(module: Any) -> None:
    """Tell the C half of ``warnings`` that the filters are others now."""
    changed = getattr(module, "_filters_mutated", None)
    if changed is not None:
        changed()
        return
    with module._lock:  # Python 3.14
        module._filters_mutated_lock_held()
