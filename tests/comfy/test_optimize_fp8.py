"""Optimize Kontext with precision fp8, as on a card that has it: the products' emulation stands in for the card's."""

from types import SimpleNamespace

import pytest
import torch
from hosted_loras import with_lora
from kontextkit.engine.cache.references import ReferenceSettings
from kontextkit.engine.flux.blocks import token_linears
from kontextkit.engine.quant import fp8
from kontextkit.engine.tiers.presets import Choices
from optimized import NODE, optimized, patched
from oracle import error, k_sampler

pytestmark = pytest.mark.usefixtures("as_in_a_running_prompt")


@pytest.fixture
def has_fp8(monkeypatch):
    monkeypatch.setattr(fp8, "why_not", lambda device: "")


def in_fp8(model, **more):
    from kontextkit.bridge import optimize

    return optimize.apply(model, Choices(precision="fp8", **more), NODE)[0]


def left(model):
    """FP8 weights on the model."""
    return [linear for linear in linears_of(model) if linear.narrow is not None]


def linears_of(model):
    return token_linears(model.model.diffusion_model.transformer).values()


def test_preset_custom_takes_it(model, optimize_node, has_fp8):
    from kontextkit.bridge.optimize import KEY

    changed, report = optimize_node.execute(model, "custom", 0.0, compile="off", precision="fp8").result
    assert changed.get_attachment(KEY).choices.precision == "fp8"
    words = "Products in the blocks are in FP8, by weights made at the start of each run."
    assert report.splitlines() == ["Every step is computed.", words]


def test_the_picture_is_near_and_nothing_is_left(model, said, has_fp8):
    expected = k_sampler(model)
    ours = k_sampler(in_fp8(model))
    assert 1e-4 < error(ours, expected) < 0.1
    assert torch.equal(k_sampler(in_fp8(model)), ours)
    assert torch.equal(k_sampler(model), expected)
    assert left(model) == []
    *_, last = said.texts[-1].splitlines()
    assert last.startswith("Products in FP8: 0.0 GB of weights, made in ")


def test_it_is_on_the_linears_of_every_pass(model, has_fp8):
    seen = []
    k_sampler(patched(in_fp8(model), lambda: seen.append(len(left(model)))))
    assert seen == [len(linears_of(model))] * 4


def test_every_type_of_file_and_a_lora_go_with_it(lora_base, lora_files, said, has_fp8):
    for model in (lora_base, with_lora(lora_base, lora_files["a"])):
        expected = k_sampler(model)
        assert 1e-4 < error(k_sampler(in_fp8(model)), expected) < 0.1
        assert said.texts[-1].splitlines()[-1].startswith("Products in FP8")
    assert left(lora_base) == []


def interrupt():
    import comfy.model_management as management

    management.interrupt_current_processing(True)


def fail():
    raise RuntimeError("a patch failed")


@pytest.mark.parametrize(("problem", "name"), [(interrupt, "InterruptProcessingException"), (fail, "RuntimeError")])
def test_a_run_that_ends_early_leaves_nothing(model, problem, name, has_fp8):
    with pytest.raises(BaseException) as raised:  # noqa: PT011  # an interruption is no Exception
        k_sampler(patched(in_fp8(model), problem))
    assert type(raised.value).__name__ == name
    assert left(model) == []


def test_running_out_of_memory_while_they_are_made_comes_out_as_it_is(model, monkeypatch, has_fp8):
    convert = fp8.convert

    def run_out(linear, dtype):
        if len(left(model)) == 3:
            raise torch.OutOfMemoryError("full")
        return convert(linear, dtype)

    monkeypatch.setattr(fp8, "convert", run_out)
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        k_sampler(in_fp8(model))
    assert left(model) == []


@pytest.mark.parametrize(("precision", "most"), [("mxfp8", 0.1), ("nvfp4", 0.4)])
def test_so_do_products_with_a_scale_for_each_block(model, said, monkeypatch, precision, most):
    """By comfy-kitchen's own numbers, in the place of a Blackwell card's."""
    from kontextkit.bridge import optimize
    from kontextkit.engine.quant import block_scaled

    expected = k_sampler(model)
    changed = optimize.apply(model, Choices(precision=precision), NODE)[0]
    assert torch.equal(k_sampler(changed), expected)
    words = "products need an NVIDIA card of the 50 series or another Blackwell"
    assert said.texts[-1].splitlines()[-1].endswith(f"not in {precision.upper()}: {precision.upper()} {words}.")
    monkeypatch.setattr(block_scaled, "_why_not", lambda format, device: "")
    assert 1e-3 < error(k_sampler(changed), expected) < most
    assert said.texts[-1].splitlines()[-1].startswith(f"Products in {precision.upper()}: ")
    assert left(model) == []


# where it cannot be


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_such_a_card_the_node_says_so_and_changes_nothing(model, optimize_node, said):
    changed, report = optimize_node.execute(
        model, "custom", threshold=0.0, attention="comfyui", compile="off", precision="fp8"
    ).result
    reason = "FP8 products need an NVIDIA card of the 40 series (Ada), Hopper or newer"
    assert report == f"Every step is computed.\nProducts run as loaded, not in FP8: {reason}."
    assert torch.equal(k_sampler(changed), k_sampler(model))
    assert said.texts[-1].splitlines()[-1] == f"Products ran as loaded, not in FP8: {reason}."


def not_in_fp8(model, said):
    """Why it ran as loaded, which shows in the picture."""
    assert torch.equal(k_sampler(in_fp8(model)), k_sampler(model))
    said_last = said.texts[-1].splitlines()[-1]
    assert said_last.startswith("Products ran as loaded, not in FP8: ")
    return said_last.partition(": ")[2]


def test_where_memory_is_short_unused_models_go_and_if_that_is_not_enough_it_says_so(model, said, monkeypatch, has_fp8):
    import comfy.model_management as management

    asked = []
    monkeypatch.setattr(management, "free_memory", lambda *a, **k: asked.append(a) or [])
    monkeypatch.setattr(fp8, "n_bytes", lambda linears: 10**14)
    assert not_in_fp8(model, said).startswith("its weights take 100000.0 GB and a pass ")
    needed, _, keep = [each for each in asked if len(each) == 3][-1]
    assert needed > 10**14
    assert [each.model.model for each in keep] == [model.model]


def test_weights_that_stream_run_as_loaded(model, said, has_fp8, monkeypatch):
    (first, *_) = linears_of(model)
    k_sampler(model)  # loads it
    monkeypatch.setattr(first, "comfy_cast_weights", True)
    assert not_in_fp8(model, said) == "not all weights are on the card as they are."


def test_dynamic_vram_is_left_for_it_where_there_is_room(model, said, monkeypatch, has_fp8):
    """As for compiled blocks."""
    from kontextkit.bridge.precision import why_not_loaded

    asked, clone = [], model.clone()
    monkeypatch.setattr(clone, "is_dynamic", lambda: True, raising=False)
    monkeypatch.setattr(clone, "get_non_dynamic_delegate", lambda: asked.append(1) or model.clone(), raising=False)
    in_fp8(clone)
    assert asked == [1]
    monkeypatch.setattr(fp8, "n_bytes", lambda linears: 10**14)
    in_fp8(clone)
    assert asked == [1]
    reason = why_not_loaded(SimpleNamespace(model_options={}, model_patcher=clone), fp8)
    assert reason == "the card has no room for 100000.0 GB beside the file's own weights"


# references


def test_where_references_do_not_fit_they_are_kept_in_fp8_and_where_these_do_not_not_at_all(
    model, said, monkeypatch, has_fp8
):
    import comfy.model_management as management

    measured = management.get_free_memory
    kept = optimized(model, references=ReferenceSettings(interval=9))
    n_tokens, width, n_blocks = 8 * 6 + 5 * 4, 256, 5
    n_bytes = 2 * n_tokens * width * n_blocks * 4
    expected = k_sampler(kept)
    for free, passes, words in [
        (2 * n_bytes + 9, (1, 3), None),
        (n_bytes, (1, 3), "References are kept in FP8, in 0.0 GB: as they come they would take 0.0 GB, 0.0 are free."),
        (n_bytes // 2, (4, 0), "References are computed at every step: as they come they would take 0.0 GB, 0.0 are"),
    ]:
        with monkeypatch.context() as short:
            short.setattr(management, "get_free_memory", lambda d, too=False, f=free: measured(d, too) if too else f)
            picture = k_sampler(kept)
        lines = said.texts[-1].splitlines()
        first, last = lines[0], lines[-1]
        assert (f"{passes[1]} with kept references" in first) == (passes[1] > 0)
        assert last.startswith(words) if words else not last.startswith("References")
        if words is None:
            assert torch.equal(picture, expected)
        elif passes[1]:
            assert 0 < error(picture, expected) < error(k_sampler(model), expected)
        else:
            assert torch.equal(picture, k_sampler(model))


def test_every_series_asks_whether_its_references_fit(comfyui, monkeypatch):
    """Of a second guidance that is not batched, or of a sampler with two evaluations a step."""
    import comfy.model_management as management
    from kontextkit.bridge.run import SamplingRun

    run = SamplingRun(Choices(references=ReferenceSettings(interval=9)), [1.0, 0.0], torch.device("cpu"))
    kept = []
    for free in (3000, 1500, 500):
        monkeypatch.setattr(management, "get_free_memory", lambda device, free=free: free)
        kept.append(run.keeps(1000, 251))
    assert [settings and settings.small for settings in kept] == [False, True, None]
    assert [note.split(":")[0] for note in run.notes] == ["References are computed at every step"]
    assert run.keeps(0, 0) is None
