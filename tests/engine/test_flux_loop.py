"""The block loop against diffusers' own forward."""

import pytest
import torch
from diffusers import FluxTransformer2DModel
from kontextkit.engine.flux import blocks, loop
from kontextkit.engine.flux.positions import patchify, unpatchify


@pytest.fixture(params=[True, False], ids=["guidance", "no guidance"])
def transformer(request):
    torch.manual_seed(0)
    config = {"num_layers": 2, "num_single_layers": 3, "num_attention_heads": 2, "attention_head_dim": 128}
    dims = {"joint_attention_dim": 64, "pooled_projection_dim": 32, "guidance_embeds": request.param}
    return FluxTransformer2DModel(**config, **dims).requires_grad_(False).eval()


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    ids = torch.cartesian_prod(torch.arange(2.0), torch.arange(4.0), torch.arange(5.0))
    return {
        "img": torch.randn(2, 40, 64),
        "img_ids": ids.expand(2, -1, -1),
        "txt": torch.randn(2, 7, 64),
        "txt_ids": torch.zeros(2, 7, 3),
        "timestep": torch.tensor([0.25, 0.8]),
        "pooled": torch.randn(2, 32),
    }


def test_velocity_is_diffusers_own(transformer, inputs):
    guidance = torch.tensor([2.5, 4.0]) if transformer.config.guidance_embeds else None
    expected = transformer(
        hidden_states=inputs["img"],
        encoder_hidden_states=inputs["txt"],
        pooled_projections=inputs["pooled"],
        timestep=inputs["timestep"],
        img_ids=inputs["img_ids"][0],
        txt_ids=inputs["txt_ids"][0],
        guidance=guidance,
        return_dict=False,
    )[0][:, :24]
    ours = loop.predict_velocity(transformer, **inputs, guidance=guidance, n_target=24)
    assert (ours - expected).norm() / expected.norm() < 1e-5


OVERFLOWS = {  # the Linear whose output is made large, and the modulation whose last chunk gates it
    "img": ("transformer_blocks.1.ff.net.2", "transformer_blocks.1.norm1.linear"),
    "txt": ("transformer_blocks.0.ff_context.net.2", "transformer_blocks.0.norm1_context.linear"),
    "joined": ("single_transformer_blocks.1.proj_out", "single_transformer_blocks.1.norm.linear"),
}


@pytest.mark.parametrize("clamped", [True, False])
@pytest.mark.parametrize("stream", OVERFLOWS)
def test_float16_stays_finite_only_by_clamping(transformer, inputs, stream, clamped, monkeypatch):
    large, gate = (transformer.half().get_submodule(name) for name in OVERFLOWS[stream])
    large.bias.fill_(6e4)
    gate.bias[-256:] = 50
    if not clamped:
        for module in (blocks, loop):
            monkeypatch.setattr(module, "clamp_half", lambda x: x)
    halves = {name: t.half() if name in ("img", "txt", "pooled") else t for name, t in inputs.items()}
    velocity = loop.predict_velocity(transformer, **halves, guidance=torch.ones(2), n_target=24)
    assert velocity.isfinite().all() == clamped


@pytest.mark.parametrize("size", [(8, 6), (7, 6), (5, 9)])
def test_unpatchify_undoes_patchify(size):
    latent = torch.randn(2, 16, *size)
    tokens = patchify(latent)
    assert tokens.shape == (2, -(-size[0] // 2) * -(-size[1] // 2), 64)
    assert torch.equal(unpatchify(tokens, *size), latent)
