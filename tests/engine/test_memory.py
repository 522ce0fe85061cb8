"""Memory that is taken at once: as much as will be needed, and never at a run's cost."""

import pytest
import torch
from kontextkit.engine import memory
from kontextkit.engine.quant import PackedTensor, QuantLinear, fp8, narrow

CARD = torch.device("cuda", 0)


def test_where_so_much_is_not_free_at_once_nothing_happens(monkeypatch):
    asked = []

    def full(n_bytes, **more):
        asked.append((n_bytes, more["device"]))
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(torch, "empty", full)
    memory.reserve(5, CARD)
    assert asked == [(5, CARD)]
    memory.reserve(5, torch.device("cpu"))
    assert len(asked) == 1


@pytest.mark.gpu
def test_what_is_made_next_takes_nothing_more_from_the_driver():
    torch.cuda.empty_cache()
    memory.reserve(1 << 28, CARD)
    taken = torch.cuda.memory_stats(CARD)["num_device_alloc"]
    pieces = [torch.empty(1 << 25, dtype=torch.uint8, device=CARD) for _ in range(8)]
    assert torch.cuda.memory_stats(CARD)["num_device_alloc"] == taken
    assert len(pieces) == 8


def test_narrow_weights_ask_for_what_they_take(monkeypatch):
    asked = []
    monkeypatch.setattr(narrow, "reserve", lambda n_bytes, device: asked.append((n_bytes, device)))
    types = {"BF16": torch.bfloat16, "F32": torch.float32, "F8_E4M3": torch.float8_e4m3fn}  # the last is taken as it is
    weights = [PackedTensor(torch.zeros(48, 256, dtype=dtype), name, (48, 256)) for name, dtype in types.items()]
    with narrow.attached(fp8, [QuantLinear(weight) for weight in weights], torch.float32):
        pass
    with narrow.attached(fp8, [], torch.float32):
        pass
    assert asked == [(2 * 48 * 256, torch.device("cpu"))]
