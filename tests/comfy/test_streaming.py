"""Weights that do not fit on the card: they stream, the picture stays, the log says it once."""

import logging
from types import SimpleNamespace

import pytest
import torch
from flux_files import write_gguf
from oracle import DEVICE, inputs, k_sampler
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def packed(twins, tmp_path_factory):
    """The twins' weights as Q8_0."""
    return write_gguf(tmp_path_factory.mktemp("packed") / "packed.gguf", load_file(twins.path), "Q8_0")


@pytest.fixture
def model(packed):
    """A MODEL without dynamic VRAM, which needs a card."""
    import comfy.model_management as management
    from kontextkit.bridge.model import load

    yield load(packed, "float32", disable_dynamic=True)
    management.unload_all_models()


def keep(patcher, share):
    """From now on ComfyUI has room for this share of the weights."""
    grow = patcher.partially_load
    room = int(share * patcher.model_size())
    patcher.partially_load = lambda device, extra=0, **more: grow(device, room - patcher.loaded_size(), **more)


def lines(caplog):
    return [record.getMessage() for record in caplog.records if "stream from host memory" in record.getMessage()]


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_streamed_picture_is_the_same(model, share):
    import comfy.model_management as management

    expected = k_sampler(model)
    management.unload_all_models()
    keep(model, share)
    assert torch.equal(k_sampler(model), expected)
    assert 0 < model.loaded_size() < model.model_size()


def test_streaming_is_said_once_a_load(model, caplog):
    import comfy.model_management as management

    keep(model, 0.5)
    with caplog.at_level(logging.INFO):
        k_sampler(model)
        k_sampler(model.clone())
        assert len(lines(caplog)) == 1
        assert "of packed.gguf stay on the card" in lines(caplog)[0]
        management.unload_all_models()
        k_sampler(model)
    assert len(lines(caplog)) == 2


def test_nothing_is_said_where_all_weights_fit(model, caplog):
    with caplog.at_level(logging.INFO):
        k_sampler(model)
    assert not lines(caplog)


def test_the_line_tells_gigabytes(caplog):
    from kontextkit.bridge.streaming import StreamingNotice

    patcher = SimpleNamespace(model_size=lambda: 6_930_000_000, loaded_size=lambda: 3_120_000_000)
    with caplog.at_level(logging.INFO):
        StreamingNotice("kontext.gguf").tell(patcher)
    (line,) = lines(caplog)
    assert "3.1 of 6.9 GB of kontext.gguf stay on the card, 3.8 GB stream from host memory" in line


def test_the_sampler_s_own_callback_still_hears_every_step(model):
    import comfy.sample
    from oracle import POSITIVE, latent

    steps, start = [], latent()["samples"]
    comfy.sample.sample(model, start, 3, 1.0, "euler", "simple", POSITIVE, POSITIVE, start,
                        callback=lambda step, *_: steps.append(step))  # fmt: skip
    assert steps == [0, 1, 2]


def test_dynamic_vram_is_asked_for_each_block_in_turn(model, monkeypatch):
    """Through ComfyUI's queue, which a card alone makes: one turn before each block, one after the last."""
    from kontextkit.bridge import prefetch

    queue, asked = [], []

    def make(blocks, device, options):
        queue.extend([None, *blocks, None] if options.get("prefetch_dynamic_vbars") else [])
        return queue

    def pop(queue, device, module):
        queue.pop(0)
        asked.append(queue[0] and queue[0].block)

    monkeypatch.setattr(prefetch, "make_prefetch_queue", make)
    monkeypatch.setattr(prefetch, "prefetch_queue_pop", pop)
    hosted = model.model.diffusion_model.to(DEVICE)
    transformer = hosted.transformer
    with torch.no_grad():
        hosted(**inputs(), transformer_options={"prefetch_dynamic_vbars": True})
        assert asked == [*transformer.transformer_blocks, *transformer.single_transformer_blocks, None]
        asked.clear()
        queue.clear()
        hosted(**inputs(), transformer_options={"prefetch_dynamic_vbars": False})
    assert not asked


@pytest.mark.gpu
def test_no_step_waits_for_the_host_where_weights_stream(model):
    """A wait would end the overlap of the copies with the arithmetic."""
    model.load(torch.device(DEVICE), lowvram_model_memory=int(0.6 * model.model_size()))
    assert 0 < model.loaded_size() < model.model_size()
    with torch.inference_mode():
        call = inputs(references=[(8, 6)])
        model.model.diffusion_model(**call)
        torch.cuda.set_sync_debug_mode("error")
        try:
            model.model.diffusion_model(**call)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    model.detach()
