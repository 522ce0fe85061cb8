"""Keys and values of references kept over steps: exact while nothing moves, computed anew when they are due."""

import pytest
import torch
from diffusers import FluxTransformer2DModel
from kontextkit.engine.cache.first_block import FirstBlockCache, FirstBlockSettings
from kontextkit.engine.cache.references import ReferenceCache, ReferenceSettings, n_bytes
from kontextkit.engine.flux.hooks import BlockHooks
from kontextkit.engine.flux.loop import predict_velocity
from kontextkit.engine.quant.fp8 import E4M3

N_TARGET, N_REFERENCES, N_TXT = 12, 20, 5


class Hooks(BlockHooks):
    """Notes how many tokens ask and how many answer in each attention."""

    rotates = True

    def __init__(self, references=None, cache=None):
        self.references, self.cache, self.lengths = references, cache, []

    def attend(self, place, q, k, v, pe, mask):
        self.lengths.append((q.shape[2], k.shape[2]))
        return super().attend(place, q, k, v, pe, mask)


@pytest.fixture(scope="module")
def transformer():
    torch.manual_seed(0)
    config = {"num_layers": 2, "num_single_layers": 3, "num_attention_heads": 2, "attention_head_dim": 128}
    dims = {"joint_attention_dim": 64, "pooled_projection_dim": 32, "guidance_embeds": True}
    return FluxTransformer2DModel(**config, **dims).requires_grad_(False).eval()


@pytest.fixture
def velocity(transformer):
    torch.manual_seed(1)
    ids = torch.cat((torch.zeros(1, N_TARGET, 3), torch.ones(1, N_REFERENCES, 3)), dim=1)
    ids[..., 2] = torch.arange(N_TARGET + N_REFERENCES)
    fixed = {"txt": torch.randn(1, N_TXT, 64), "txt_ids": torch.zeros(1, N_TXT, 3), "pooled": torch.randn(1, 32)}
    target, references = torch.randn(1, N_TARGET, 64), torch.randn(1, N_REFERENCES, 64)

    def run(hooks, sigma, move=0.0):
        img = torch.cat((target + move, references), dim=1)
        sigmas = {"timestep": torch.tensor([sigma]), "guidance": torch.tensor([2.5])}
        return predict_velocity(transformer, img, ids, **fixed, **sigmas, n_target=N_TARGET, hooks=hooks)

    return run


def error(a, b):
    return ((a - b).norm() / b.norm()).item()


def test_kept_references_give_the_very_velocity_at_the_step_they_are_from(velocity):
    hooks = Hooks(ReferenceCache(ReferenceSettings(interval=9)))
    full = velocity(hooks, 0.7)
    assert error(full, velocity(Hooks(), 0.7)) == 0
    assert error(velocity(hooks, 0.7), full) < 1e-6
    assert error(velocity(hooks, 0.3, move=0.5), velocity(Hooks(), 0.3, move=0.5)) > 1e-6  # they drift


def test_a_pass_with_kept_references_computes_text_and_target_alone(velocity):
    hooks = Hooks(ReferenceCache(ReferenceSettings(interval=9)))
    whole, own = N_TXT + N_TARGET + N_REFERENCES, N_TXT + N_TARGET
    velocity(hooks, 0.7)
    assert set(hooks.lengths) == {(whole, whole)}
    hooks.lengths.clear()
    velocity(hooks, 0.6)
    assert hooks.lengths == [(own, whole)] * 5


@pytest.mark.parametrize(
    ("interval", "expected"), [(4, "FrrrFrrrFr"), (3, "FrrFrrFrrF"), (100, "Frrrrrrrrr"), (1, "FFFFFFFFFF")]
)
def test_references_are_computed_when_they_are_due(velocity, interval, expected):
    references = ReferenceCache(ReferenceSettings(interval))
    passes = ""
    for _ in range(10):
        velocity(Hooks(references), 0.7)
        passes += "r" if references.reuses else "F"
    assert passes == expected


def test_skipped_steps_do_not_count_and_see_target_tokens_alone(velocity):
    references = ReferenceCache(ReferenceSettings(interval=3))
    cache = FirstBlockCache(FirstBlockSettings(order=0, computed={0, 3, 4, 5}), n_steps=6)
    hooks = Hooks(references, cache)
    kinds = []
    for step in range(6):
        hooks.lengths.clear()
        cache.at(step, 1 - step / 6)
        assert velocity(hooks, 1 - step / 6).shape == (1, N_TARGET, 64)
        kinds.append((len(hooks.lengths), "r" if references.reuses else "F"))
    assert kinds == [(5, "F"), (1, "r"), (1, "r"), (5, "r"), (5, "r"), (5, "F")]


def test_interval_1_keeps_nothing_and_changes_no_bit(velocity):
    references = ReferenceCache(ReferenceSettings(interval=1))
    for sigma in (0.7, 0.5, 0.3):
        assert torch.equal(velocity(Hooks(references), sigma), velocity(Hooks(), sigma))
    assert references.kept == {}


def test_it_tells_how_far_kept_ones_were_off_when_they_are_computed_anew(velocity):
    references = ReferenceCache(ReferenceSettings(interval=2))
    kept = []
    for sigma in (0.9, 0.8, 0.7, 0.6, 0.7):
        velocity(Hooks(references), sigma)
        kept.append(dict(references.kept))
    first, second = references.drifts
    off = [
        error(old.data[:, :, ::16], new.data[:, :, ::16])
        for block, pair in kept[0].items()
        for old, new in zip(pair, kept[2][block], strict=True)
    ]
    assert first == pytest.approx(max(off), rel=1e-5)
    assert second < 1e-6  # nothing moved between the two
    assert first > 1e-3


def test_in_fp8_they_take_a_quarter_and_give_nearly_the_same(velocity):
    whole, small = (ReferenceCache(ReferenceSettings(interval=9, small=small)) for small in (False, True))
    for each in (whole, small):
        velocity(Hooks(each), 0.7)
    expected = velocity(Hooks(whole), 0.6)
    assert 0 < error(velocity(Hooks(small), 0.6), expected) < 0.01
    for block, pair in small.kept.items():
        for kept, right in zip(pair, whole.kept[block], strict=True):
            assert 0 < error(kept.to(torch.float32), right.data) < 0.04  # 3 bits of mantissa
            assert error(kept.data.float() * kept.scale, kept.to(torch.float32)) == 0
    n = n_bytes(N_REFERENCES, batch=1, width=256, n_blocks=5, itemsize=1)
    assert sum(k.data.nbytes + v.data.nbytes for k, v in small.kept.values()) == n


class In8(Hooks):
    def attend(self, place, q, k, v, pe, mask):
        return super().attend(place, q, k.float(), v.float(), pe, mask)


class Narrow(ReferenceCache):
    def keys_values(self, block, k, v):
        return super().keys_values(block, k.to(E4M3), v.to(E4M3))


def test_where_attention_is_in_fp8_its_own_tensors_are_kept_and_written_on(velocity):
    hooks = In8(Narrow(ReferenceSettings(interval=3)))
    full, there = velocity(hooks, 0.7), {}
    for block, (k, v) in hooks.references.kept.items():
        assert k.data.dtype == E4M3
        assert k.data.shape[2] == N_TXT + N_TARGET + N_REFERENCES
        there[block] = (k.data.data_ptr(), v.data.data_ptr())
    assert error(velocity(hooks, 0.7), full) < 1e-6  # fewer rows in a product may round otherwise
    moved = velocity(hooks, 0.6, move=0.5)
    assert {b: (k.data.data_ptr(), v.data.data_ptr()) for b, (k, v) in hooks.references.kept.items()} == there
    assert 0 < error(moved, velocity(Hooks(), 0.6, move=0.5)) < 0.1
    velocity(hooks, 0.7)
    assert hooks.references.drifts == [0.0]


def test_where_that_is_too_much_the_references_are_kept_alone_with_the_same_numbers(velocity):
    whole, small = (In8(Narrow(ReferenceSettings(interval=4, small=small))) for small in (False, True))
    for sigma in (0.7, 0.6, 0.5, 0.4, 0.3):
        assert error(velocity(small, sigma, move=1 - sigma), velocity(whole, sigma, move=1 - sigma)) < 1e-6
    assert small.references.drifts == pytest.approx(whole.references.drifts, rel=1e-4)
    assert len(whole.references.drifts) == 1
    n = n_bytes(N_REFERENCES, batch=1, width=256, n_blocks=5, itemsize=1)
    assert sum(k.data.nbytes + v.data.nbytes for k, v in small.references.kept.values()) == n


def test_the_forecast_is_what_is_kept(velocity):
    references = ReferenceCache(ReferenceSettings())
    velocity(Hooks(references), 0.7)
    kept = sum(k.data.nbytes + v.data.nbytes for k, v in references.kept.values())
    assert kept == n_bytes(N_REFERENCES, batch=1, width=256, n_blocks=5, itemsize=4)
    assert n_bytes(4096, 1, 3072, 57, 2) == pytest.approx(2.87e9, rel=0.01)  # a 1024x1024 reference of FLUX in BF16


def test_text_that_a_patch_adds_is_not_taken_for_a_reference(velocity):
    class Longer(Hooks):
        def embedded(self, img, txt, img_ids, txt_ids):
            return img, txt.repeat(1, 3, 1), img_ids, txt_ids.repeat(1, 3, 1)

    hooks = Longer(ReferenceCache(ReferenceSettings(interval=9)))
    full = velocity(hooks, 0.7)
    assert error(full, velocity(Hooks(), 0.7)) > 1e-3
    assert error(velocity(hooks, 0.7), full) < 1e-6
    assert {k.data.shape[2] for k, _ in hooks.references.kept.values()} == {N_REFERENCES}
