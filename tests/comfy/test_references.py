"""References through our nodes against ComfyUI's own chain of VAEEncode and ReferenceLatent."""

import re
from types import SimpleNamespace

import pytest
import torch
from kontextkit.engine.cache.references import ReferenceSettings
from kontextkit.engine.references.plan import Reference, plan
from kontextkit.engine.references.sizes import MEGAPIXEL
from kontextkit.engine.references.weights import arrange, full_runs
from kontextkit.engine.tiers.detect import Machine
from optimized import SKIPS, optimized
from oracle import DEVICE, conditioning, error, inputs, k_sampler

SIDE = 64
pytestmark = pytest.mark.usefixtures("as_in_a_running_prompt")


def picture(width=SIDE, height=SIDE, seed=0, n=1):
    """Smooth, in 8 bits, as from a file."""
    small = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    large = torch.nn.functional.interpolate(small, (height, width), mode="bicubic").clamp(0, 1).movedim(1, 3)
    return (large * 255).round() / 255


@pytest.fixture(scope="module")
def vae(comfyui):
    from kontextkit.bridge.demo import load_demo

    return load_demo("BF16")[2]


@pytest.fixture
def counted(vae, monkeypatch):
    """The VAE, and the shapes of the pictures that it encodes from now on; nothing is kept from before."""
    from kontextkit.bridge import encoded

    encoded.forget()
    shapes, encode = [], vae.encode
    monkeypatch.setattr(vae, "encode", lambda pixels: shapes.append(tuple(pixels.shape)) or encode(pixels))
    return SimpleNamespace(vae=vae, shapes=shapes)


def run(vae, *pictures, layout="offset", megapixels=0.0, total=0.0, shape_of=1, fit="pad", positive=None, disk=False):
    from kontextkit.nodes.encode_references import KontextEncodeReferences

    given = {f"image{i}": each for i, each in enumerate(pictures)}
    positive = conditioning(1) if positive is None else positive
    return KontextEncodeReferences.execute(positive, vae, given, layout, megapixels, total, shape_of, fit, disk).args


def reference(image, weight=1.0, megapixels=0.0, mask=None):
    from kontextkit.nodes.reference import KontextReference

    return KontextReference.execute(image, weight, megapixels, mask).args[0]


def chain(vae, *pictures, layout="offset", positive=None):
    """ComfyUI's own nodes."""
    from comfy_extras.nodes_edit_model import ReferenceLatent
    from comfy_extras.nodes_flux import FluxKontextMultiReferenceLatentMethod

    from nodes import VAEEncode

    positive = conditioning(1) if positive is None else positive
    if layout == "stitched":  # one below the other
        pictures = [torch.cat(pictures, dim=1)]
    for each in pictures:
        positive = ReferenceLatent.execute(positive, VAEEncode().encode(vae, each)[0]).args[0]
    method = {"offset": "offset", "index": "index", "stitched": "offset"}[layout]
    return FluxKontextMultiReferenceLatentMethod.execute(positive, method).args[0]


@pytest.mark.parametrize("layout", ["offset", "index", "stitched"])
def test_of_weight_1_a_layout_is_core_s_own_chain_bit_for_bit(model, vae, layout):
    pictures = [picture(seed=1), picture(SIDE, 32, 2), picture(seed=3)][: 2 if layout == "stitched" else 3]
    as_they_are = [reference(each, megapixels=each.shape[1] * each.shape[2] / MEGAPIXEL) for each in pictures]
    positive, start, *_ = run(vae, *as_they_are, layout=layout)
    theirs = chain(vae, *pictures, layout=layout)
    assert torch.equal(k_sampler(model, positive=positive, start=start), k_sampler(model, positive=theirs, start=start))


def test_references_come_after_those_that_were_there(model, vae):
    first, second = picture(seed=1), picture(seed=2)
    positive, start, *_ = run(vae, second, positive=chain(vae, first))
    both, *_ = run(vae, first, second)
    assert torch.equal(k_sampler(model, positive=positive, start=start), k_sampler(model, positive=both, start=start))


def test_weight_0_is_leaving_the_reference_out(model, vae):
    kept, other = picture(seed=1), picture(seed=2)
    positive, start, *_ = run(vae, reference(other, 0.0), kept, shape_of=2)
    alone, *_ = run(vae, kept)
    assert torch.equal(k_sampler(model, positive=positive, start=start), k_sampler(model, positive=alone, start=start))
    nothing, *_, report = run(vae, reference(kept, 0.0))
    assert torch.equal(
        k_sampler(model, positive=nothing, start=start), k_sampler(model, positive=conditioning(1), start=start)
    )
    assert "Reference 1: left out, its weight is 0." in report


def weighted(twins, weights, references=((8, 6), (5, 12))):
    """Our velocity and core's, which is given the weights as a mask."""
    call = inputs(references=references)
    n_tokens = tuple((h + 1) // 2 * ((w + 1) // 2) for h, w in references)
    arranged = arrange(n_tokens, weights)
    n_txt_target = call["context"].shape[1] + 6 * 5
    n_keys = n_txt_target + sum(n_tokens)
    by_key = torch.cat([torch.tensor(w if len(w) > 1 else w * n) for w, n in zip(weights, n_tokens, strict=True)])
    mask = torch.cat((torch.zeros(n_txt_target), by_key.log()))[None, None, None].to(DEVICE)
    assert full_runs(arranged.runs, n_keys - int((by_key == 0).sum()))
    ours = twins.ours(**call, reference_weights=weights)
    return ours, twins.core(**call, attention_mask=mask)


@pytest.mark.parametrize("weights", [((0.5,), (0.05,)), ((1.0,), (0.3,)), ((0.7,), (1.0,))])
def test_a_weight_is_its_logarithm_on_the_keys_of_core_s_attention(twins, weights):
    ours, core = weighted(twins, weights)
    assert error(ours, core) < 1e-5
    assert error(ours, twins.ours(**inputs(references=((8, 6), (5, 12))))) > 1e-4


def test_masked_tokens_are_those_that_core_would_not_see(twins):
    weights = tuple(float(i % 3 > 0) for i in range(12)), (0.5,)
    ours, core = weighted(twins, weights)
    assert error(ours, core) < 1e-5


def test_a_mask_leaves_out_the_tokens_it_does_not_touch(model, vae):
    mask = torch.zeros(1, SIDE, SIDE)
    mask[:, 16:48, :] = 1
    positive, start, layout, report = run(vae, reference(picture(seed=1), 0.5, 0, mask))
    assert "8 tokens of 16 (the mask leaves out the others), weight 0.5" in report
    whole, *_ = run(vae, reference(picture(seed=1), 0.5))
    assert error(k_sampler(model, positive=positive, start=start), k_sampler(model, positive=whole, start=start)) > 1e-4
    assert layout.shape[0] == 1


@pytest.mark.parametrize("choices", [{"references": ReferenceSettings(2)}, {"cache": SKIPS}], ids=["kept", "skips"])
def test_weights_work_with_what_the_optimizer_spares(model, vae, choices):
    """A reference of nearly no weight does nearly nothing, at steps that are spared too."""
    first, other = picture(seed=1), picture(seed=2)
    alone, start, *_ = run(vae, first)
    light, *_ = run(vae, first, reference(other, 1e-7))
    spared = optimized(model, **choices)
    without = k_sampler(spared, positive=alone, start=start)
    assert error(without, k_sampler(model, positive=alone, start=start)) > 1e-3
    assert error(k_sampler(spared, positive=light, start=start), without) < 1e-5
    half, *_ = run(vae, first, reference(other, 0.5))
    assert error(k_sampler(spared, positive=half, start=start), without) > 1e-3


def test_prompts_of_other_weights_do_not_share_a_batch(model, vae):
    """ComfyUI runs positive and negative together where it can."""
    import nodes

    positive, start, *_ = run(vae, reference(picture(seed=1), 0.5))
    negative, *_ = run(vae, reference(picture(seed=1), 0.1), positive=conditioning(5))
    options = (model, 3, 2, 3.0, "euler", "simple")
    (together,) = nodes.common_ksampler(*options, positive, negative, start)
    (swapped,) = nodes.common_ksampler(
        *options, positive, run(vae, reference(picture(seed=1), 0.5), positive=conditioning(5))[0], start
    )
    assert error(together["samples"], swapped["samples"]) > 1e-4


def test_each_picture_of_a_batch_is_a_reference(counted):
    positive, _, _, report = run(counted.vae, picture(n=3), picture(seed=5))
    assert len(positive[0][1]["reference_latents"]) == 4
    assert counted.shapes == [(1, SIDE, SIDE, 3)] * 4
    assert "Reference 4: 64x64, 16 tokens." in report


def test_a_picture_is_encoded_once_whatever_the_prompt(counted):
    for prompt in range(20):
        _, _, _, report = run(counted.vae, picture(seed=1), picture(seed=2), positive=conditioning(prompt))
    assert len(counted.shapes) == 2
    assert "Through the VAE: 2 kept from before." in report
    run(counted.vae, picture(seed=1), megapixels=0.01)
    assert len(counted.shapes) == 3  # of another size
    changed = picture(seed=1)
    changed[0, 0, 0, 0] += 0.1
    run(counted.vae, changed)
    assert len(counted.shapes) == 4


def test_a_kept_latent_cannot_be_changed_through_a_conditioning(counted):
    first, *_ = run(counted.vae, picture(seed=1))
    before = first[0][1]["reference_latents"][0].clone()
    first[0][1]["reference_latents"][0].zero_()
    again, *_ = run(counted.vae, picture(seed=1))
    assert torch.equal(again[0][1]["reference_latents"][0], before)


@pytest.fixture
def on_disk(tmp_path, monkeypatch):
    from kontextkit.bridge import encoded

    monkeypatch.setattr(encoded, "folder", lambda: tmp_path / "references")
    return tmp_path / "references"


def test_on_disk_a_latent_outlives_the_server(counted, on_disk):
    from kontextkit.bridge import encoded

    first, *_ = run(counted.vae, picture(seed=1), disk=True)
    encoded.forget()
    again, _, _, report = run(counted.vae, picture(seed=1), disk=True)
    assert len(counted.shapes) == 1
    assert "Through the VAE: 1 kept on disk." in report
    assert torch.equal(first[0][1]["reference_latents"][0], again[0][1]["reference_latents"][0])
    assert [path.suffix for path in on_disk.iterdir()] == [".safetensors"]


def test_nothing_lies_on_disk_unless_it_was_asked_for(counted, on_disk):
    run(counted.vae, picture(seed=1))
    assert not on_disk.exists()


def test_a_broken_file_on_disk_is_made_anew(counted, on_disk):
    from kontextkit.bridge import encoded

    run(counted.vae, picture(seed=1), disk=True)
    (path,) = on_disk.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    for _ in range(2):
        encoded.forget()
        run(counted.vae, picture(seed=1), disk=True)
    assert len(counted.shapes) == 2


def test_what_is_kept_is_bounded_in_memory_and_on_disk(counted, on_disk, monkeypatch):
    from kontextkit.bridge import encoded

    one = 16 * 8 * 8 * 4  # bytes of a latent
    monkeypatch.setattr(encoded, "IN_MEMORY", 3 * one)
    monkeypatch.setattr(encoded, "ON_DISK", 3 * (one + 200))
    for seed in range(6):
        run(counted.vae, picture(seed=seed), disk=True)
    assert len(encoded._kept) == 3
    assert len(list(on_disk.iterdir())) == 3
    run(counted.vae, picture(seed=5))
    assert len(counted.shapes) == 6


def test_a_latent_is_known_by_the_vae_s_weights(counted):
    from kontextkit.bridge.demo import load_demo

    run(counted.vae, picture(seed=1))
    twin, other = (load_demo("BF16")[2] for _ in range(2))
    next(other.first_stage_model.parameters()).data.add_(0.1)
    assert "1 kept from before" in run(twin, picture(seed=1))[3]
    assert "1 encoded" in run(other, picture(seed=1))[3]


def test_the_report_says_what_does_not_fit_before_sampling(comfyui, monkeypatch):
    from kontextkit.bridge import references

    monkeypatch.setattr(references, "machine", lambda: Machine("cuda", "a card", int(4e9), int(16e9)))
    full_size = [[torch.zeros(1, 512, 4096), {}]]
    pictures = [Reference(picture(seed=seed)) for seed in range(4)]
    words = "\n".join(references.forecast(full_size, plan(pictures, (1024, 1024), "offset", 0, "pad")))
    assert "Memory beside the weights: about 3.9 GB." in words
    assert re.search(r"That is about [\d.e+]+ s on a card", words)
    assert "more than the 4.0 GB there are: set total_megapixels to 2.2 or less" in words
    words = "\n".join(references.forecast(full_size, plan(pictures, (1024, 1024), "offset", 2.2, "pad")))
    assert "times as long as without references" in words
    assert "more than" not in words


def test_bad_input_is_named_with_the_next_step(vae):
    with pytest.raises(ValueError, match=r"no picture came in. Connect one to image0"):
        run(vae)
    with pytest.raises(ValueError, match="shape_of is 3, and there are 2 references"):
        run(vae, picture(), picture(), shape_of=3)
    with pytest.raises(ValueError, match="its latents have 4 channels"):
        run(SimpleNamespace(latent_channels=4, spacial_compression_encode=lambda: 8), picture())
    with pytest.raises(ValueError, match=r"1/16 of the side.*Load ae.safetensors"):
        run(SimpleNamespace(latent_channels=16, spacial_compression_encode=lambda: 16), picture())
    for weight in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="expected 0 to 1"):
            reference(picture(), weight)
    with pytest.raises(ValueError, match="it is empty"):
        reference(picture(), 1.0, 0, torch.zeros(1, 64, 64))
    with pytest.raises(ValueError, match="mask: it is 32x64, the picture 64x64"):
        reference(picture(), 1.0, 0, torch.ones(1, 64, 32))
    with pytest.raises(ValueError, match="3 masks for 2 pictures"):
        reference(picture(n=2), 1.0, 0, torch.ones(3, 64, 64))


def test_a_result_comes_back_at_the_original_s_size(vae):
    from kontextkit.nodes.restore_size import KontextRestoreSize

    original = picture(101, 67)
    _, start, *_ = run(vae, original, megapixels=0.05)
    height, width = (8 * side for side in start["samples"].shape[2:])
    (back,) = KontextRestoreSize.execute(picture(width, height), original, "pad").args
    assert back.shape == original.shape
