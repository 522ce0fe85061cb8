"""The blocks through Inductor, compiled once a process for all blocks, prompts and sizes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from typing import Any

import torch

from .blocks import Parts

GUIDE_OPTIONS: dict[str, Any] = {
    "conv_1x1_as_mm": True,
    "coordinate_descent_tuning": True,
    "coordinate_descent_check_all_directions": True,
    "epilogue_fusion": False,
    "shape_padding": True,
}
MODES: dict[str, dict[str, Any]] = {  # Inductor's options
    "default": {},
    "max-autotune-no-cudagraphs": {"max_autotune": True, **GUIDE_OPTIONS},
}
RECOMPILE_LIMIT = 64  # graphs of a piece: types of weights, LoRAs, batches of one and of more

Piece = Callable[..., Any]


class CompileFailed:
    """Why pieces of a run do not run compiled; they then run as they are. One object serves one run."""

    def __init__(self) -> None:
        self.reason = ""

    def guard(self, compiled: Piece, eager: Piece) -> Piece:
        """`compiled`, or from its first failure on `eager`; running out of memory is no failure of the compiler."""

        def run(*args: Any) -> Any:
            if self.reason:
                return eager(*args)
            try:
                return compiled(*args)
            except compiler_errors() as error:
                if (full := _out_of_memory(error)) is not None:
                    raise full from None  # ComfyUI knows it by its type
                self.reason = explain(error)
                return eager(*args)

        return run


def compiled_parts(mode: str = "default", failed: CompileFailed | None = None) -> Parts:
    """The pieces compiled with a mode of MODES, in one graph each, so that none is broken in silence.

    failed: where a failure is kept; without one it is raised. Compile inside `recompiles_allowed`.
    """
    return _compile(mode) if failed is None else guarded(_compile(mode), failed)


def guarded(parts: Parts, failed: CompileFailed) -> Parts:
    """The pieces until the first failure of one, then all as they are in `blocks`."""
    eager = Parts()
    names = [field.name for field in fields(Parts)]
    return Parts(**{name: failed.guard(getattr(parts, name), getattr(eager, name)) for name in names})


@cache
def _compile(mode: str) -> Parts:
    eager = Parts()
    options = MODES[mode]

    def one(name: str) -> Piece:
        piece: Piece = torch.compile(getattr(eager, name), dynamic=True, fullgraph=True, options=options)
        return piece

    return Parts(**{field.name: one(field.name) for field in fields(Parts)})


def recompiles_allowed() -> Any:
    """A context in which a piece may have RECOMPILE_LIMIT graphs; torch's own limit, 8, would end in a failure."""
    return torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT)


def n_graphs() -> int:
    """Graphs compiled so far in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def compiler_errors() -> tuple[type[BaseException], ...]:
    """What torch.compile and Triton raise where they cannot do their work."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
    from torch._inductor.exc import CppCompileError, InductorError

    errors = (TorchDynamoException, FailOnRecompileLimitHit, InductorError, CppCompileError)
    try:
        from triton.errors import TritonError
    except ImportError:
        return errors
    return (*errors, TritonError)


def triton_missing() -> str:
    """How to bring Triton, whose package has another name on Windows."""
    package = "triton-windows" if sys.platform == "win32" else "triton"
    return f"Triton is missing; `pip install {package}` into ComfyUI's Python brings it"


def explain(error: BaseException) -> str:
    """One sentence for a user."""
    text = f"{error}\n{error.__cause__ or ''}"
    if "riton" in text and ("install" in text or "not found" in text or "find a working" in text.lower()):
        return triton_missing()
    if "compiler" in text.lower() and any(words in text for words in ("not found", "No working C", "Failed to find C")):
        return "there is no C++ compiler; install one (g++, or on Windows the Visual Studio Build Tools)"
    if "recompile_limit" in text:
        return f"more than {RECOMPILE_LIMIT} kinds of blocks were met; restart ComfyUI"
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.endswith(" raised:")]
    return f"torch.compile failed ({lines[0][:200] if lines else type(error).__name__})"


def _out_of_memory(error: BaseException | None) -> torch.OutOfMemoryError | None:
    """What a compiler's error was raised for, where it is this."""
    while error is not None and not isinstance(error, torch.OutOfMemoryError):
        error = getattr(error, "inner_exception", None) or error.__cause__
    return error
