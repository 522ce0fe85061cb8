"""Quantizes a file, tensor by tensor."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.scales import check_blocks
from ..errors import CheckpointError, QuantizeError, listing
from ..gguf.writer import padding
from ..lora.read import Lora, read_lora
from ..quant import block_type
from ..quant.encode import encode, workers
from ..quant.packed import DENSE
from .mixes import MIXES
from .plan import Piece, Plan, make_plan
from .source import Source, sha256_of
from .target import Sink, check_target, write_notes, written_whole

Progress = Callable[[int, int], None]  # weights done, weights in all; may raise, then nothing is written

AT_ONCE = {"cpu": 1 << 22, "cuda": 1 << 25}  # weights between two calls of progress
REMAP = 1 << 29  # bytes read before the source is mapped anew


@dataclass
class Seconds:
    """Where the time went."""

    read: float = 0.0
    encode: float = 0.0
    write: float = 0.0


@dataclass(frozen=True)
class Quantized:
    """The result. types: tensors by type; as_f16: names stored so because their rows are not whole blocks."""

    path: Path
    n_bytes: int
    sha256: str
    types: dict[str, int]
    as_f16: tuple[str, ...]
    seconds: Seconds = field(compare=False)

    def report(self) -> str:
        """A few lines for a person."""
        kinds = ", ".join(f"{n} {qtype}" for qtype, n in self.types.items())
        spent = self.seconds
        lines = [
            f"{self.path.name}: {self.n_bytes:,} bytes; {kinds}.",
            f"SHA-256 {self.sha256}",
            f"Read in {spent.read:.1f} s, encoded in {spent.encode:.1f} s, written in {spent.write:.1f} s.",
        ]
        if self.as_f16:
            lines.append(f"Stored as F16, because their rows are not whole blocks: {listing(self.as_f16)}.")
        return "\n".join(lines)


def quantize(
    path: Path,
    qtype: str,
    target: Path,
    loras: tuple[tuple[Path, float], ...] = (),
    progress: Progress = lambda done, total: None,
    device: torch.device | str = "cpu",
) -> Quantized:
    """Writes the FLUX.1 file at `path`, with LoRAs (file, strength) merged, as GGUF to `target`, and a JSON beside it.

    qtype: a key of MIXES. device: that encodes; the file is the same on each. Raises CheckpointError or QuantizeError
    where source, LoRA or target will not do, or a weight is no number; then, and where `progress` raises, `target` is
    as it was.
    """
    if qtype not in MIXES:
        raise QuantizeError(f"qtype is {qtype!r}, expected one of {', '.join(MIXES)}.")
    source = Source(path)
    _, weights = source.open()
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    plan = make_plan(source.config, shapes, qtype)
    check_target(target, plan.layout.n_bytes, [*source.parts, *(lora for lora, _ in loras)])
    linears = {name.removesuffix(".weight"): (s[0], s[1]) for name, s in shapes.items() if len(s) == 2}
    merging = [(read_lora(lora, linears), strength) for lora, strength in loras]
    stop = Event()
    files = [*source.parts, *(lora for lora, _ in loras)]
    with ThreadPoolExecutor(1) as beside:
        hashing = [beside.submit(sha256_of, file, lambda: not stop.is_set()) for file in files]
        try:
            with written_whole(target) as sink:
                seconds = _write(sink, source, plan, merging, progress, torch.device(device))
            hashes = [each.result() for each in hashing]
        finally:
            stop.set()
    done = Quantized(target, sink.n_bytes, sink.digest.hexdigest(), _types(plan), plan.as_f16, seconds)
    write_notes(target, _notes(done, source, qtype, loras, hashes))
    return done


def _write(
    sink: Sink,
    source: Source,
    plan: Plan,
    loras: list[tuple[Lora, float]],
    progress: Progress,
    device: torch.device,
) -> Seconds:
    seconds, done, read = Seconds(), 0, 0
    progress(0, plan.n_weights)
    sink.write(plan.layout.head)
    _, weights = source.open()
    with workers() as pool:
        for piece in plan.pieces:
            if read > REMAP:
                del weights
                _, weights = source.open()
                read = 0
            slabs = piece.weights(weights, loras, AT_ONCE[device.type])
            n_bytes = 0
            while True:
                begin = time.perf_counter()
                slab = next(slabs, None)
                if slab is None:
                    break
                read += slab.nbytes
                slab = slab.to(device, copy=True)
                _check_numbers(source.name, piece, slab)
                middle = time.perf_counter()
                content = _encoded(source.name, piece, slab, pool)
                end = time.perf_counter()
                sink.write(content)
                n_bytes += content.nbytes
                seconds.read += middle - begin
                seconds.encode += end - middle
                seconds.write += time.perf_counter() - end
                done += slab.numel()
                progress(done, plan.n_weights)
            sink.write(bytes(padding(n_bytes)))
    assert sink.n_bytes == plan.layout.n_bytes
    return seconds


def _check_numbers(file_name: str, piece: Piece, slab: Tensor) -> None:
    if not all(bool(bound.isfinite()) for bound in slab.aminmax()):
        kind = "NaN" if bool(slab.isnan().any()) else "infinity"
        raise QuantizeError(
            f"{file_name}: tensor {piece.name!r} holds {kind}, expected numbers; nothing was written. The file is "
            "damaged or its training failed; download it again or use an earlier one."
        )


def _encoded(file_name: str, piece: Piece, slab: Tensor, pool: ThreadPoolExecutor) -> Any:
    """The bytes of some rows."""
    layout = block_type(piece.qtype)
    try:
        if layout is not None:
            packed = encode(slab, layout, pool).cpu()
            check_blocks(file_name, piece.name, layout, packed)
            return packed.numpy().reshape(-1)
        values = slab.to(DENSE[piece.qtype]).cpu()
        if not all(bool(bound.isfinite()) for bound in values.aminmax()):
            raise CheckpointError
        return values.contiguous().view(torch.uint8).numpy().reshape(-1)
    except CheckpointError:
        raise QuantizeError(
            f"{file_name}: tensor {piece.name!r} has weights up to {float(slab.abs().amax()):.3g}, more than "
            f"{piece.qtype} can hold; nothing was written. Choose BF16."
        ) from None


def _types(plan: Plan) -> dict[str, int]:
    return dict(Counter(piece.qtype for piece in plan.pieces).most_common())


def _notes(
    done: Quantized, source: Source, qtype: str, loras: tuple[tuple[Path, float], ...], hashes: list[str]
) -> dict[str, Any]:
    """What the JSON says."""
    parts = [{"name": part.name, "sha256": each} for part, each in zip(source.parts, hashes, strict=False)]
    merged = [
        {"name": lora.name, "sha256": each, "strength": strength}
        for (lora, strength), each in zip(loras, hashes[len(source.parts) :], strict=True)
    ]
    return {
        "file": done.path.name,
        "sha256": done.sha256,
        "bytes": done.n_bytes,
        "qtype": qtype,
        "types": done.types,
        "stored_as_f16": list(done.as_f16),
        "source": parts,
        "loras": merged,
        "made_by": {"name": "KontextKit", "torch": torch.__version__},
    }
