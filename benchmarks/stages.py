"""The stages of a long measurement: seconds on the screen, rows kept after each, failures that end only one."""

from __future__ import annotations

import math
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import report

BEGIN = time.perf_counter()
AGAIN = 20.0  # seconds after which time's end is called once more, where the first call was lost in foreign code
Row = dict[str, Any]


class OutOfTime(BaseException):
    """The time is over. No Exception, so that what goes on after those, such as compilers' callers, lets it pass."""


class Stages:
    """Rows by name, the later instead of the earlier, written by `keep` after every stage.

    minutes: from the start of the script until everything that is not yet measured is given up.
    """

    def __init__(self, keep: Callable[[list[Row]], None], minutes: float = math.inf):
        self.rows: dict[str, Row] = {}
        self.keep = keep
        self.minutes = minutes

    def add(self, *rows: Row) -> None:
        """Rows of a stage, kept when it ends."""
        self.rows |= {row["name"]: row for row in rows}

    def seconds_left(self) -> float:
        """Until the time is over."""
        return 60 * self.minutes - (time.perf_counter() - BEGIN)

    def run(
        self, title: str, work: Callable[[], Any], names: tuple[str, ...] = (), unit: str = "ms", most: float = math.inf
    ) -> bool:
        """Whether the work, which adds rows, was done; where it was not, rows of these names, where missing, say why.

        most: seconds that it may take.
        """
        begin = time.perf_counter()
        print(f"[{begin - BEGIN:6.1f} s] {title} ...", flush=True)
        reason = ""
        try:
            with limit(min(most, self.seconds_left())):
                work()
        except OutOfTime:
            reason = f"given up after {time.perf_counter() - begin:.0f} s; more was not left for it"
        except Exception as error:
            traceback.print_exc()
            first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
            reason = f"{type(error).__name__}: {first[:200]}"
        lost = [name for name in names if reason and self.rows.get(name, {}).get("measured") is None]
        self.add(*(report.failed(name, unit, reason) for name in lost))
        self.keep(list(self.rows.values()))
        now = time.perf_counter()
        print(f"[{now - BEGIN:6.1f} s] {title}: {now - begin:.1f} s {reason and f'FAILED, {reason}'}", flush=True)
        return not reason


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raises OutOfTime in the main thread after so many seconds, where the system has such a timer (not Windows)."""
    if seconds <= 0:
        raise OutOfTime
    if math.isinf(seconds) or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(*_: object) -> None:
        raise OutOfTime

    begin, before = time.perf_counter(), signal.signal(signal.SIGALRM, ring)
    outer, _ = signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)
        left = max(0.1, outer - (time.perf_counter() - begin)) if outer else 0.0
        signal.setitimer(signal.ITIMER_REAL, left, AGAIN)
