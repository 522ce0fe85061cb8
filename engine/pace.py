"""How far it is, how fast it goes, and how long it will take."""

from __future__ import annotations

import time

EVERY = 0.5  # seconds between two texts


class Pace:
    """Of one run. what: begins the text."""

    def __init__(self, what: str):
        self.what = what
        self.begin = self.last = 0.0  # when the first text is asked for

    def text(self, done: int, total: int) -> str:
        """A line for a person; nothing where the last one is younger than EVERY, unless all is done."""
        now = time.monotonic()
        self.begin = self.begin or now
        if now - self.last < EVERY and done < total:
            return ""
        self.last = now
        rate = done / max(now - self.begin, 1e-9)
        left = f", {time_left((total - done) / rate)}" if done else ""
        return f"{self.what}: {done / total:.0%}, {rate / 1e6:.1f} million weights a second{left}"


def time_left(seconds: float) -> str:
    """Rounded, in words."""
    return f"about {seconds:.0f} s left" if seconds < 100 else f"about {seconds / 60:.0f} min left"
