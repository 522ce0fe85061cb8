"""The demo model's VAE against diffusers' own class and under ComfyUI's nodes."""

from pathlib import Path

import pytest
import torch
from oracle import error
from safetensors.torch import load_file

VAE = Path(__file__).resolve().parents[2] / "demo" / "kontext_demo_vae.safetensors"
LIMIT = 2e-2 if torch.cuda.is_available() else 1e-4  # on a card ComfyUI's VAEs compute in bfloat16

pytestmark = pytest.mark.usefixtures("as_in_a_running_prompt")


@pytest.fixture(scope="module")
def vae(comfyui):
    from kontextkit.bridge.demo import load_demo

    return load_demo("BF16")[2]


def picture(height=64, width=64):
    return torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def theirs():
    """The same file in diffusers' own AutoencoderKL."""
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[64] * 4,
        layers_per_block=1,
        latent_channels=16,
    )
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(VAE).items()})
    return model.requires_grad_(False).eval()


def test_the_vae_encodes_as_diffusers_does(vae, theirs):
    expected = theirs.encode(2 * picture().movedim(-1, 1) - 1).latent_dist.mode()
    assert error(vae.encode(picture()).float(), expected) < LIMIT


def test_the_vae_decodes_as_diffusers_does(vae, theirs):
    latent = vae.encode(picture()).float()
    expected = ((theirs.decode(latent).sample + 1) / 2).clamp(0, 1).movedim(1, -1)
    assert error(vae.decode(latent).float(), expected) < LIMIT


def test_one_tile_is_the_whole_and_many_tiles_fit_together(vae):
    import nodes

    whole = {"samples": vae.encode(picture(256, 192))}
    decoded = vae.decode(whole["samples"])
    tiled = nodes.VAEEncodeTiled().encode(vae, picture(256, 192), 512, 64)[0]
    assert error(tiled["samples"], whole["samples"]) < LIMIT
    assert error(nodes.VAEDecodeTiled().decode(vae, whole, 512)[0], decoded) < LIMIT
    small = nodes.VAEEncodeTiled().encode(vae, picture(256, 192), 128, 32)[0]
    assert small["samples"].shape == (1, 16, 32, 24)
    assert torch.isfinite(small["samples"]).all()
    assert nodes.VAEDecodeTiled().decode(vae, whole, 64, 32)[0].shape == decoded.shape


def test_odd_sizes_lose_their_border_as_in_every_vae_of_comfyui(vae):
    odd = picture(190, 250)
    assert torch.equal(vae.encode(odd), vae.encode(odd[:, 3:187, 1:249]))
    assert vae.decode(vae.encode(odd)).shape == (1, 184, 248, 3)


def test_memory_estimates_are_those_of_a_narrow_vae(vae):
    """Values a pixel, in one batch; FLUX's own VAE counts 1767 and 2178."""
    for estimate, shape in ((vae.memory_used_encode, (1, 3, 256, 256)), (vae.memory_used_decode, (1, 16, 32, 32))):
        assert 193 * 2 < estimate(shape, torch.float32) / (4 * 256 * 256) < 1000
