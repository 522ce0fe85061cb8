"""CUDA graphs of a pass: recorded where the host, not the card, sets the pace, then replayed without it.

A replay runs the very kernels that were recorded, over the same weights, so its numbers are the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import first_line
from .hooks import Stream

HOST_BOUND = 0.9  # share of a pass's time on the card that the host took to ask for it
Work = Callable[[Stream], None]


@dataclass(frozen=True)
class Recorded:
    """given, made: the stream before and after, in memory of the graph's own. weights: where they lay."""

    graph: torch.cuda.CUDAGraph
    given: Stream
    made: Stream
    weights: tuple[int, ...]


@dataclass(frozen=True)
class Pass:
    """One that ran as it is: seconds of the host, and events around it on the card."""

    seconds: float
    begin: torch.cuda.Event
    end: torch.cuda.Event

    def is_host_bound(self) -> bool:
        """Whether the card had done it as soon as it was asked for; one still at work was not waiting."""
        return self.end.query() and 1e3 * self.seconds > HOST_BOUND * self.begin.elapsed_time(self.end)  # ms


class PassGraphs:
    """Of one run. The first pass of a kind warms up, the second is timed, the third recorded where that pays.

    failed: why recording did not go, after which everything runs as it is. n_replayed: passes so far.
    """

    def __init__(self, transformer: nn.Module):
        self.modules = list(transformer.modules())
        self.passes: dict[Hashable, list[Pass]] = {}
        self.recorded: dict[Hashable, Recorded] = {}
        self.failed = ""
        self.n_replayed = 0

    def run(self, key: Hashable, stream: Stream, work: Work) -> None:
        """work(stream) or its replay; key: of all that a pass depends on but the values of the stream's tensors."""
        if not self.failed and key not in self.recorded and self._pays(key):
            self._record(key, stream, work)
        recorded = self.recorded.get(key)
        if recorded is None or recorded.weights != self._weights():
            self._timed(key, stream, work)
            return
        for own, now in zip(_tensors(recorded.given), _tensors(stream), strict=True):
            own.copy_(now)
        recorded.graph.replay()
        self.n_replayed += 1
        stream.img, stream.txt = recorded.made.img, recorded.made.txt

    def clear(self) -> None:
        """Lets go of the graphs and their memory."""
        self.recorded.clear()
        self.passes.clear()

    def _pays(self, key: Hashable) -> bool:
        passes = self.passes.get(key, ())
        return len(passes) > 1 and passes[-1].is_host_bound()

    def _timed(self, key: Hashable, stream: Stream, work: Work) -> None:
        events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin = time.perf_counter()
        events[0].record()
        work(stream)
        events[1].record()
        self.passes.setdefault(key, []).append(Pass(time.perf_counter() - begin, *events))

    def _record(self, key: Hashable, stream: Stream, work: Work) -> None:
        weights = self._weights()
        if not weights:
            self.failed = "not all weights are on the card"
            return
        given = Stream(*(tensor.clone() for tensor in _tensors(stream)))
        made, graph = Stream(*_tensors(given)), torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # previews go on in another thread
                work(made)
        except Exception as error:  # of Triton too; out of memory too: without a graph it may fit
            self.failed = first_line(error)
            return
        self.recorded[key] = Recorded(graph, given, made, weights)

    def _weights(self) -> tuple[int, ...]:
        """Addresses of all tensors that a pass reads beside its stream; none where one is not on the card."""
        places = []
        for tensor in self._read():
            if not tensor.is_cuda:
                return ()
            places.append(tensor.data_ptr())
        return tuple(places)

    def _read(self) -> Iterator[Tensor]:
        for module in self.modules:
            own = (*module._parameters.values(), *module._buffers.values())
            yield from (tensor for tensor in own if tensor is not None)
            for part in getattr(getattr(module, "branch", None), "parts", ()):
                yield from part.factors.parameters()


def _tensors(stream: Stream) -> tuple[Tensor, ...]:
    return stream.img, stream.txt, stream.vec, stream.pe
