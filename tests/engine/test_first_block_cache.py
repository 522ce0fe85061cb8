"""The first-block cache against para-attn's, and what it does beyond it."""

import pytest
import torch
from diffusers import FluxTransformer2DModel
from kontextkit.engine.cache import first_block
from kontextkit.engine.cache.first_block import FirstBlockCache, FirstBlockSettings
from kontextkit.engine.flux.hooks import BlockHooks
from kontextkit.engine.flux.loop import predict_velocity
from torch import nn

N_TARGET, N_TXT = 20, 7
PLACES = (0.0, 0.02, 0.05, 0.3, 0.32, 0.36, 0.38, 0.9, 0.91, 0.93)  # of the steps between two noises
SIGMAS = (0.99, 0.97, 0.93, 0.8, 0.74, 0.6, 0.55, 0.4, 0.3, 0.1)
ALWAYS = {"threshold": 1e9, "most_skips": 1000}


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tiny_transformer():
    torch.manual_seed(0)
    config = {"num_layers": 2, "num_single_layers": 3, "num_attention_heads": 2, "attention_head_dim": 128}
    dims = {"joint_attention_dim": 64, "pooled_projection_dim": 32, "guidance_embeds": False}
    return FluxTransformer2DModel(**config, **dims).requires_grad_(False).eval()


def steps(n_references=0, batch=1):
    """What each step of a run feeds to the transformer: a picture that changes now little, now much."""
    ids = torch.cartesian_prod(torch.arange(1.0), torch.arange(4.0), torch.arange(5.0))[None].expand(batch, -1, -1)
    kept = random(batch, n_references, 64, seed=4)
    for place, sigma in zip(PLACES, SIGMAS, strict=True):
        img = torch.lerp(random(batch, N_TARGET, 64, seed=1), random(batch, N_TARGET, 64, seed=2), place)
        yield {
            "img": torch.cat((img, kept), dim=1),
            "img_ids": torch.cat((ids, ids.new_ones(batch, n_references, 3)), dim=1),
            "txt": random(batch, N_TXT, 64, seed=3),
            "txt_ids": torch.zeros(batch, N_TXT, 3),
            "timestep": torch.full((batch,), sigma),
            "pooled": random(batch, 32, seed=5),
        }


class Counting(BlockHooks):
    """Counts the passes in which the cache spared all blocks but the first."""

    def __init__(self, cache=None):
        self.cache, self.skips = cache, []

    def skipped(self):
        self.skips[-1] = True


def velocities(hooks, calls):
    """One for each call."""
    transformer = tiny_transformer()
    for hooks.step, call in enumerate(calls):
        hooks.skips.append(False)
        if hooks.cache:
            hooks.cache.at(hooks.step, SIGMAS[hooks.step])
        yield predict_velocity(transformer, **call, guidance=None, n_target=N_TARGET, hooks=hooks)


def sample(settings, n_references=0, batch=1):
    """(velocities, whether each step was skipped, the cache)."""
    hooks = Counting(settings and FirstBlockCache(settings, len(SIGMAS)))
    return list(velocities(hooks, steps(n_references, batch))), hooks.skips, hooks.cache


class Joined(nn.Module):
    """A single block of diffusers >= 0.35, which takes text and picture apart, as para-attn's loop calls it."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, joined, **more):
        txt, img = self.block(hidden_states=joined[:, N_TXT:], encoder_hidden_states=joined[:, :N_TXT], **more)
        return torch.cat((txt, img), dim=1)


def sample_with_para_attn(threshold):
    """(velocities, whether each step was skipped) through diffusers' own forward."""
    from para_attn.first_block_cache import utils

    transformer, runs = tiny_transformer(), []
    transformer.transformer_blocks[1].register_forward_hook(lambda *_: runs.append(True))
    cached = utils.CachedTransformerBlocks(
        transformer.transformer_blocks,
        nn.ModuleList(Joined(block) for block in transformer.single_transformer_blocks),
        return_hidden_states_first=False,
    )
    transformer.transformer_blocks, transformer.single_transformer_blocks = nn.ModuleList([cached]), nn.ModuleList()
    made, skips = [], []
    with utils.cache_context(utils.create_cache_context(residual_diff_threshold=threshold)):
        for call in steps():
            runs.clear()
            out = transformer(
                hidden_states=call["img"],
                encoder_hidden_states=call["txt"],
                pooled_projections=call["pooled"],
                timestep=call["timestep"],
                img_ids=call["img_ids"][0],
                txt_ids=call["txt_ids"][0],
                return_dict=False,
            )
            made.append(out[0])
            skips.append(not runs)
    return made, skips


@pytest.mark.parametrize(("threshold", "n_skips"), [(0.0, 0), (0.3, 0), (0.42, 3), (0.5, 6), (0.6, 7), (10.0, 9)])
def test_hits_misses_and_velocities_are_para_attn_s(threshold, n_skips):
    expected, expected_skips = sample_with_para_attn(threshold)
    ours, skips, _ = sample(FirstBlockSettings(threshold, order=0, most_skips=1000))
    assert skips == expected_skips
    assert sum(skips) == n_skips
    for a, b in zip(ours, expected, strict=True):
        assert (a - b).norm() / b.norm() < 1e-5


@pytest.mark.parametrize("settings", [{"threshold": 0.0}, {"computed": range(len(SIGMAS))}])
def test_without_skips_it_changes_no_bit(settings):
    expected, _, _ = sample(None, n_references=6)
    ours, skips, _ = sample(FirstBlockSettings(**settings), n_references=6)
    assert not any(skips)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


@pytest.mark.parametrize("threshold", [0.0, 1e9])
def test_a_map_of_steps_computes_exactly_those_and_measures_nothing(threshold, monkeypatch):
    monkeypatch.setattr(first_block, "relative_change", lambda *_: pytest.fail("it was measured"))
    computed = {0, 1, 5, 8}
    settings = FirstBlockSettings(threshold, most_skips=1000, computed=computed)
    _, skips, _ = sample(settings, n_references=6, batch=2)
    assert {step for step, skipped in enumerate(skips) if not skipped} == computed


def test_a_skipped_step_of_the_same_input_gives_the_same_velocity():
    """Also where a patch leaves a block out, so that ComfyUI's residual is added onto what the first block gave."""

    class LeavesOut(Counting):
        def around(self, place, run, stream):
            return (stream.img, stream.txt) if (place.kind, place.index) == ("double", 1) else run(stream)

        def residual(self, place):
            return random(1, 9, 256, seed=6)

    hooks = LeavesOut(FirstBlockCache(FirstBlockSettings(order=0, computed={0}), 2))
    first, second = velocities(hooks, [next(steps())] * 2)
    assert hooks.skips == [False, True]
    assert (first - second).norm() / first.norm() < 1e-5


# the policy alone


def follow(settings, firsts, rest=lambda sigma: torch.zeros(1)):
    """(the steps that were computed, {step: what a skipped one was given}, the cache)."""
    cache, computed, given = FirstBlockCache(FirstBlockSettings(**settings), len(firsts)), [], {}
    for step, first in enumerate(firsts):
        guess = cache.at(step, SIGMAS[step]).predict(first)
        if guess is None:
            computed.append(step)
            cache.keep(rest(SIGMAS[step]))
        else:
            given[step] = guess
    return computed, given, cache


def test_steps_are_skipped_between_start_and_end_alone():
    same = [torch.ones(1, 3, 4)] * 10
    assert follow({**ALWAYS, "start": 0.3, "end": 0.7}, same)[0] == [0, 1, 2, 7, 8, 9]
    assert follow({**ALWAYS, "start": 0.9}, same)[0] == list(range(9))
    assert follow({**ALWAYS, "start": 0.7, "end": 0.3}, same)[0] == list(range(10))
    assert follow(ALWAYS, same)[0] == [0]


@pytest.mark.parametrize(("most", "computed"), [(1, [0, 2, 4, 6, 8]), (2, [0, 3, 6, 9]), (4, [0, 5]), (9, [0])])
def test_no_more_steps_than_allowed_are_skipped_in_a_row(most, computed):
    assert follow({**ALWAYS, "most_skips": most}, [torch.ones(1, 3, 4)] * 10)[0] == computed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_an_order_is_exact_where_the_rest_is_such_a_polynomial_of_sigma(order, dtype):
    a, b, c = (random(2, 5, 8, seed=i) for i in range(3))

    def rest(sigma):
        return (a + (b * sigma if order > 0 else 0) + (c * sigma**2 if order > 1 else 0)).to(dtype)

    settings = {"order": order, "computed": {0, 2, 3, 6}}
    _, given, cache = follow(settings, [torch.ones(2, 3, 4)] * 10, rest)
    assert list(given)[-3:] == [7, 8, 9]
    limit = 1e-4 if dtype == torch.float32 else 0.2
    for step in range(4, 10) if order else given:
        if step in given:
            assert given[step].dtype == dtype
            assert (given[step].float() - rest(SIGMAS[step]).float()).abs().max() < limit
    assert len(cache.rests) == order + 1


def test_before_it_has_points_enough_an_order_does_what_a_lower_one_does():
    same = [torch.ones(1, 3, 4)] * 3
    for order in (1, 2):
        _, given, _ = follow({"order": order, "computed": {0}}, same, lambda sigma: torch.full((1,), sigma))
        assert [value.item() for value in given.values()] == pytest.approx([SIGMAS[0]] * 2)
    _, given, _ = follow({"order": 2, "computed": {0, 1}}, same, lambda sigma: torch.full((1,), sigma))
    assert given[2].item() == pytest.approx(SIGMAS[2])


def test_two_steps_at_one_noise_level_are_no_two_points_of_a_line():
    """A sampler of adaptive steps takes more of them than there are sigmas."""
    cache = FirstBlockCache(FirstBlockSettings(order=1, computed={0, 1}), 2)
    for step, value in enumerate((1.0, 2.0)):
        assert cache.at(step, 0.5).predict(torch.ones(1, 3, 4)) is None
        cache.keep(torch.full((1,), value))
    assert cache.at(2, 0.5).predict(torch.ones(1, 3, 4)).item() == 2.0


def test_no_step_is_skipped_for_or_after_one_that_is_no_number():
    ones, nan = torch.ones(2, 3, 4), torch.ones(2, 3, 4)
    nan[1, 0, 0] = torch.nan
    assert follow(ALWAYS, [ones, nan, ones, ones, nan])[0] == [0, 1, 2, 4]
    assert follow(ALWAYS, [torch.zeros(1, 3, 4)] * 3)[0] == [0, 1, 2]
    assert follow(ALWAYS, [ones, ones * torch.inf, ones, ones])[0] == [0, 1, 2]


def test_no_step_is_skipped_for_another_number_of_tokens_or_pictures():
    firsts = [torch.ones(shape) for shape in ((1, 3, 4), (1, 5, 4), (2, 5, 4), (2, 5, 4))]
    assert follow(ALWAYS, firsts)[0] == [0, 1, 2]


def test_the_picture_of_a_batch_that_changed_most_decides():
    before, after = torch.ones(3, 3, 4), torch.ones(3, 3, 4)
    after[1] += 0.3
    assert first_block.relative_change(after, before) == pytest.approx(0.3)
    assert follow({"threshold": 0.29}, [before, after])[0] == [0, 1]
    assert follow({"threshold": 0.31}, [before, after])[0] == [0]


@pytest.mark.parametrize("n_references", [0, 30])
def test_references_do_not_hide_how_much_the_picture_changes(n_references, monkeypatch):
    changes, measure = [], first_block.relative_change
    monkeypatch.setattr(first_block, "relative_change", lambda *a: changes.append(measure(*a)) or changes[-1])

    class Moving(Counting):
        """The first block moves the picture by so much and all references by the same large number."""

        def around(self, place, run, stream):
            moved = torch.full_like(stream.img, 1e4)
            moved[:, :N_TARGET] = 1 + self.step / 10
            return stream.img + moved if (place.kind, place.index) == ("double", 0) else stream.img, stream.txt

    hooks = Moving(FirstBlockCache(FirstBlockSettings(0.15), 4))
    assert len(list(velocities(hooks, [next(steps(n_references))] * 4))) == 4
    assert changes == pytest.approx([0.1, 0.2, 0.1 / 1.2], rel=1e-4)
    assert hooks.skips == [False, True, False, True]
