"""Attention in FP8 against torch's in float32; on the CPU by Triton's interpreter."""

import pytest
import torch
import torch.nn.functional as F
from loras import error

pytest.importorskip("triton")
from kontextkit.engine.attention.triton_fp8 import attend, pack

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # with a card nothing is interpreted
pytestmark = [] if DEVICE == "cpu" else [pytest.mark.gpu]
OFF = 0.08 if DEVICE == "cuda" else 0.2  # the interpreter rounds some numbers to FP8 wrongly
SHAPES = {"alike": (1, 2, 40, 40, 64), "batch": (2, 3, 70, 150, 128), "few queries": (1, 2, 3, 200, 128)}


@pytest.fixture(autouse=True)
def loops_of_any_length(monkeypatch):
    """Triton 3.6 interpreted cannot loop to a number of run time under NumPy 2.4: its arrays of one are no int."""
    from triton.runtime import interpreter

    set_attr = interpreter._LangPatchScope.set_attr

    def patched(self, owner, name, value):
        set_attr(self, owner, name, (lambda t: t.handle.data.item()) if name == "__index__" else value)

    monkeypatch.setattr(interpreter._LangPatchScope, "set_attr", patched)


def qkv(batch, heads, n_queries, n_keys, dim, dtype=torch.bfloat16):
    """A token's heads together in memory, as the blocks have them; q and k of unit root mean square."""
    generator = torch.Generator().manual_seed(0)
    lengths = (n_queries, n_keys, n_keys)
    x = [torch.randn(batch, length, heads, dim, generator=generator) for length in lengths]
    return [each.to(DEVICE, dtype).transpose(1, 2) for each in x]


def exact(q, k, v):
    return F.scaled_dot_product_attention(q.float(), k.float(), v.float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_attends_as_torch_does_but_for_eight_bits(shape, dtype):
    q, k, v = qkv(*SHAPES[shape], dtype)
    ours = attend(q, k, v)
    assert ours.dtype == dtype
    assert ours.transpose(1, 2).is_contiguous()
    assert 0.001 < error(ours.float(), exact(q, k, v)) < OFF


def test_values_of_any_size_keep_their_digits():
    q, k, v = qkv(1, 3, 64, 64, 64, torch.float32)
    sizes = torch.tensor([1e-6, 1.0, 1e6], device=DEVICE).view(1, 3, 1, 1)
    ours, expected = attend(q, k, v * sizes) / sizes, exact(q, k, v)
    for i in range(3):
        assert error(ours[:, i], expected[:, i]) < OFF


def test_what_all_queries_look_at_comes_back_whole():
    """One key far more alike than all others: its value to the last of eight bits, however many others there are."""
    q, k, v = qkv(1, 1, 8, 300, 64, torch.float32)
    k[:, :, 17] = 100 * (direction := F.normalize(torch.ones(64, device=DEVICE), dim=0))
    ours = attend(direction.expand_as(q) * 8, k, v)
    assert error(ours, v[:, :, 17:18].expand_as(ours)) < OFF


def test_zeros_stay_zeros():
    q, k, v = qkv(1, 2, 16, 16, 64)
    assert torch.equal(attend(q, k, torch.zeros_like(v)), torch.zeros_like(q))


def test_packing_is_torch_s_cast_cut_off_at_the_largest():
    q, k, v = qkv(2, 3, 70, 150, 64, torch.float32)
    q[0, 0, 0, 0], q[1, 2, 3, 4], v[1, 2, 3, 4] = 1e9, -1e9, -77.0
    q8, k8, v8, largest = pack(q, k, v)
    assert torch.equal(largest, v.abs().amax(dim=(2, 3)).flatten())
    assert error(q8.float(), q.clamp(-448, 448).flatten(0, 1)) < OFF / 2
    assert error(k8.float(), k.flatten(0, 1)) < OFF / 2
    unpacked = v8[:, :, :150].transpose(1, 2).float() * (largest / 448).view(-1, 1, 1)
    assert error(unpacked, v.flatten(0, 1)) < OFF / 2


def test_a_width_that_no_kernel_has_is_said():
    with pytest.raises(RuntimeError, match=r"heads are 40 wide; the kernel has 64, 128, 256"):
        attend(*qkv(1, 2, 16, 16, 40))
