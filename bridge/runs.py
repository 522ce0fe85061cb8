"""The last sampling runs of this session, for the sidebar's chart; only in memory, only numbers."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Any

from comfy_execution.utils import get_executing_context

N_KEPT = 20
_runs: OrderedDict[tuple[str, str], dict[str, Any]] = OrderedDict()  # by prompt and node, the newest last


def note(**facts: float | int | str) -> None:
    """Adds to what is known of the node that runs: a later value of the same name replaces the earlier.

    Nowhere outside a prompt.
    """
    running = get_executing_context()
    if running is None:
        return
    run = _runs.setdefault((running.prompt_id, running.node_id), {"ended": 0.0})
    run |= facts
    run["ended"] = time.time()
    while len(_runs) > N_KEPT:
        _runs.popitem(last=False)


def add(**facts: float) -> None:
    """The same of the last that sampled, where it was in this prompt."""
    running = get_executing_context()
    last_of = next(reversed(_runs), None)
    if running is not None and last_of is not None and last_of[0] == running.prompt_id:
        _runs[last_of] |= facts


def last() -> list[dict[str, Any]]:
    """Oldest first: ended (Unix seconds), and of what was noted: seconds, steps computed, kept and skipped, peak_gb,
    ssim."""
    return list(_runs.values())
