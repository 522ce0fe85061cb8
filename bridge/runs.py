"""The last sampling runs of this session, for the sidebar's chart; only in memory, only numbers."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Any

from comfy_execution.utils import get_executing_context

N_KEPT = 20
_runs: OrderedDict[str, dict[str, Any]] = OrderedDict()  # by prompt, the newest last


def note(**facts: float | int | str) -> None:
    """Adds to what is known of the prompt that runs: a later value of the same name replaces the earlier.

    Nowhere outside a prompt.
    """
    running = get_executing_context()
    if running is None:
        return
    run = _runs.setdefault(running.prompt_id, {"ended": 0.0})
    run |= facts
    run["ended"] = time.time()
    while len(_runs) > N_KEPT:
        _runs.popitem(last=False)


def add(**facts: float) -> None:
    """The same, where the prompt has sampled before."""
    running = get_executing_context()
    if running is not None and running.prompt_id in _runs:
        _runs[running.prompt_id] |= facts


def last() -> list[dict[str, Any]]:
    """Oldest first: ended (Unix seconds), and of what was noted: seconds, steps computed, kept and skipped, peak_gb,
    ssim."""
    return list(_runs.values())
