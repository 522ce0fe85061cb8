"""Whole sampling runs on the clock, several ways to make them in turns, and the rows that come of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any

import report
import torch
from random_files import DEVICE
from stages import Stages
from torch import Tensor

FEW = 4  # steps of a first run, which compiles and warms up
GB = 1e9
KINDS = ("computed", "without references", "skipped")  # of steps, as bridge/run.py calls them
Sample = Callable[[int, Callable[[], None]], tuple[Tensor, list[str]]]


class Clock:
    """When each step ended: by the card's events, which keep nobody waiting, or by the host's clock."""

    def __init__(self) -> None:
        self.marks: list[Any] = []

    def mark(self) -> None:
        """A step ends here."""
        if DEVICE == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def step_ms(self) -> list[float]:
        """From the second step on; the card has come to its end."""
        if DEVICE == "cuda":
            return [before.elapsed_time(after) for before, after in pairwise(self.marks)]
        return [1e3 * (after - before) for before, after in pairwise(self.marks)]


@dataclass(frozen=True)
class Timed:
    """A run. step_ms: from the second step on; kinds: of all steps; n_bytes: taken on the card meanwhile."""

    seconds: float
    step_ms: list[float]
    kinds: list[str]
    n_bytes: int
    latents: Tensor


def timed(sample: Sample, n_steps: int) -> Timed:
    """One run, from a card at rest to a card at rest."""
    clock, before = Clock(), 0
    report.synchronize()
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    begin = time.perf_counter()
    latents, kinds = sample(n_steps, clock.mark)
    report.synchronize()
    seconds = time.perf_counter() - begin
    n_bytes = torch.cuda.max_memory_allocated() - before if DEVICE == "cuda" else 0
    if not torch.isfinite(latents).all():
        raise ValueError("the picture is not finite")
    return Timed(seconds, clock.step_ms(), kinds, n_bytes, latents)


@dataclass
class Column:
    """One way to sample.

    name: of its rows. make: gives what samples: (steps, after each step) -> (latents, kinds of steps).
    note: for its rows. goal: of its speed-up. mode: where it compiles, the name under which that is reported.
    weights: bytes on the card, where its peak is reported. silent: it only serves others as their measure.
    n_first: steps of its first run. most: seconds that it may take.
    steps_only: which steps it skips means nothing, so its runs mean nothing either.
    """

    name: str
    make: Callable[[], Sample]
    note: str = ""
    goal: float | None = None
    mode: str = ""
    weights: int = 0
    silent: bool = False
    n_first: int = FEW
    most: float = math.inf
    steps_only: bool = False
    sample: Sample | None = None
    first: Timed | None = None
    n_graphs: int = 0
    runs: list[Timed] = field(default_factory=list)

    def begin(self) -> None:
        """The first run, of few steps."""
        from kontextkit.engine.flux.compiled import n_graphs

        before = n_graphs()
        self.sample = self.make()
        self.first = timed(self.sample, self.n_first)
        self.n_graphs = n_graphs() - before

    def go_on(self, n_steps: int) -> None:
        """Another run."""
        assert self.sample
        self.runs.append(timed(self.sample, n_steps))

    @property
    def seconds(self) -> float:
        """Of a run."""
        return median(run.seconds for run in self.runs)


def take_turns(stages: Stages, base: Column, columns: list[Column], n_steps: int, n_rounds: int) -> None:
    """First runs, then rounds of whole ones; `base` is what the others are compared with.

    Rows are there after the first round, and better after each further one.
    """
    ready = []
    for column in (base, *columns):
        names = () if column.silent else (f"{column.name}.step_ms",)
        if stages.run(f"{column.name}, first run", column.begin, names, most=column.most):
            print(f"           {column.n_graphs} graphs compiled", flush=True)
            ready.append(column)
    for number in range(n_rounds):
        for column in ready:
            names = () if column.silent or column.runs else (f"{column.name}.step_ms",)
            if stages.run(f"{column.name}, run {number + 1}", lambda c=column: c.go_on(n_steps), names):
                print(f"           {1e3 * column.runs[-1].seconds / n_steps:.1f} ms a step", flush=True)
        for column in ready:
            if column.runs and not column.silent:
                stages.add(*rows_of(column, base))
        stages.keep(list(stages.rows.values()))


def rows_of(column: Column, base: Column) -> list[dict[str, Any]]:
    """Speed-up over base, seconds a run, milliseconds a step; first run and peak memory where they are wanted."""
    name, n_steps, n_runs = column.name, len(column.runs[0].kinds), len(column.runs)
    spread = f"{n_runs} runs, {min(r.seconds for r in column.runs):.3f} to {max(r.seconds for r in column.runs):.3f} s"
    note = ", ".join(filter(None, (f"{n_steps} steps", column.note, spread if n_runs > 1 else "one run")))
    rows = step_rows(column, note)
    if not column.steps_only:
        rows.append(report.row(f"{name}.seconds", column.seconds, "s", note))
    if base.runs and column is not base and not column.steps_only:
        words, ratio = f"{base.name} over this, in turns in one process; {note}", base.seconds / column.seconds
        rows.append(report.row(f"{name}.speedup", ratio, "times", words, column.goal, "higher"))
    if column.weights and DEVICE == "cuda":
        more = max(run.n_bytes for run in column.runs)
        words = f"{column.weights / GB:.1f} GB of weights and what a run takes beside them"
        rows.append(report.row(f"{name}.peak_gb", (column.weights + more) / GB, "GB", words))
    if column.mode and column.first:
        more = column.first.seconds - column.n_first * column.seconds / n_steps
        words = f"{column.n_first} steps less what so many take later; nothing of it compiled before"
        rows.append(report.row(column.mode.format("first_run_seconds"), more, "s", words))
        rows.append(report.row(column.mode.format("graphs"), column.n_graphs, "graphs", "compiled in the first run"))
    return rows


def step_rows(column: Column, note: str) -> list[dict[str, Any]]:
    """Milliseconds a step: the median where all are of one kind, else the mean, and the median of each kind."""
    name, by = column.name, {kind: [] for kind in KINDS}
    for run in column.runs:
        for ms, kind in zip(run.step_ms, run.kinds[1:], strict=True):
            by[kind].append(ms)
    medians = {kind: median(some) for kind, some in by.items() if some}
    if "computed" in medians and (column.steps_only or len(medians) == 1):
        rows = [report.row(f"{name}.step_ms", medians["computed"], "ms", f"median of computed steps; {note}")]
    else:
        kinds = column.runs[0].kinds
        counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in KINDS if kind in kinds)
        rows = [report.row(f"{name}.step_ms", 1e3 * column.seconds / len(kinds), "ms", f"mean, {counts}; {note}")]
    if len(medians) > 1:
        rows += [report.row(f"{name}.{kind.replace(' ', '_')}_ms", ms, "ms", "median") for kind, ms in medians.items()]
    return rows
