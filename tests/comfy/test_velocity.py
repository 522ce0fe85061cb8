"""Our transformer against ComfyUI's own `comfy.ldm.flux.model.Flux` on the same float32 weights."""

import copy

import gguf
import pytest
import torch
from flux_files import write_packed
from kontextkit.engine.quant import block_type
from kontextkit.engine.quant.blocks import block_types
from oracle import DEVICE, error, inputs
from packed_blocks import random_blocks
from safetensors.torch import load_file

LIMIT = 1e-5
REFERENCES = {"none": [], "one": [(8, 6)], "three": [(8, 6), (5, 12), (13, 7)]}


def compare(twins, call, **more):
    with torch.no_grad():
        return error(twins.ours(**call, **more), twins.core(**call, **more))


@pytest.mark.parametrize("method", [None, "offset", "index", "uxo"])
@pytest.mark.parametrize("references", REFERENCES)
def test_velocity_with_references(twins, references, method):
    more = {} if method is None else {"ref_latents_method": method}
    assert compare(twins, inputs(references=REFERENCES[references]), **more) < LIMIT


@pytest.mark.parametrize("size", [(12, 10), (13, 10), (12, 9), (7, 5), (2, 30)])
def test_velocity_at_odd_sizes(twins, size):
    assert compare(twins, inputs(size, references=[(9, 11)])) < LIMIT


def test_velocity_of_a_batch(twins):
    assert compare(twins, inputs(batch=2, references=REFERENCES["three"])) < LIMIT


def test_positions_are_computed_once_for_all_steps_and_prompts(twins, monkeypatch):
    from kontextkit.engine.flux import positions

    positions.rotations.cache_clear()
    computed, compute = [], positions.embed_positions

    def embed(ids, axes):
        computed.append(compute(ids, axes))
        return computed[-1]

    monkeypatch.setattr(positions, "embed_positions", embed)
    one, three = (inputs(references=REFERENCES[name]) for name in ("one", "three"))
    with torch.inference_mode():
        first = twins.ours(**one)
        assert error(twins.ours(**one), first) == 0
    assert len(computed) == 1
    assert compare(twins, three) < LIMIT
    assert len(computed) == 2
    other = {**one, "context": one["context"].flip(1)}
    assert compare(twins, other) < LIMIT
    assert compare(twins, one, ref_latents_method="index") < LIMIT
    assert len(computed) == 3
    longer = {**one, "context": one["context"].repeat(1, 2, 1)}
    assert compare(twins, longer) < LIMIT
    assert len(computed) == 4
    assert not any(pe.is_inference() for pe in computed)  # such could not be trained with later
    positions.rotations.cache_clear()


def test_a_patch_of_positions_is_heard(twins):
    def move(args):
        return {**args, "img_ids": args["img_ids"] + 3}

    call = inputs(references=REFERENCES["one"])
    moved = {"transformer_options": {"patches": {"post_input": [move]}}}
    assert compare(twins, call, **moved) < LIMIT
    with torch.no_grad():
        assert error(twins.ours(**call, **moved), twins.ours(**call)) > LIMIT


@pytest.mark.parametrize("guidance", [None, 1.0, 9.0])
def test_velocity_at_each_guidance(twins, guidance):
    call = inputs(references=[(8, 6)])
    call["guidance"] = None if guidance is None else torch.tensor([guidance], device=DEVICE)
    assert compare(twins, call) < LIMIT


def test_velocity_without_guidance_embedding(twins_without_guidance):
    assert compare(twins_without_guidance, inputs(references=REFERENCES["three"])) < LIMIT


@pytest.mark.parametrize("qtype", block_types())
def test_velocity_of_packed_weights_is_core_s_over_what_gguf_py_decodes(twins, qtype, tmp_path):
    from kontextkit.bridge.model import load

    packed, decoded = {}, {}
    block_size = block_type(qtype).block_size
    for name, tensor in load_file(twins.path).items():
        packed[name], decoded[name] = (tensor.numpy(), "F32"), tensor
        if tensor.ndim == 2 and tensor.shape[1] % block_size == 0:
            rows = random_blocks(qtype, tensor.numel() // block_size, len(name), 3e-4).reshape(len(tensor), -1)
            packed[name] = rows, qtype
            decoded[name] = torch.from_numpy(gguf.dequantize(rows, gguf.GGMLQuantizationType[qtype]))
    core = copy.deepcopy(twins.core)
    core.load_state_dict({name.replace("_norm.scale", "_norm.weight"): t for name, t in decoded.items()})
    ours = load(write_packed(tmp_path / "packed.gguf", packed), "float32").model.diffusion_model.to(DEVICE)
    call = inputs(references=[(8, 6)])
    with torch.no_grad():
        assert error(ours(**call), core(**call)) < LIMIT


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_velocity_in_half_precision_is_as_near_as_rounding_allows(twins, dtype):
    def cast(value):
        if isinstance(value, list):
            return [cast(item) for item in value]
        return value.to(dtype)

    call = inputs(references=[(8, 6)])
    halves = {name: value if name == "timestep" else cast(value) for name, value in call.items()}
    core = copy.deepcopy(twins.core).to(dtype)
    with torch.no_grad():
        assert error(twins.ours(**halves).float(), core(**halves).float()) < (
            0.01 if dtype == torch.bfloat16 else 0.002
        )


def test_velocity_without_pooled_text(twins):
    assert compare(twins, inputs() | {"y": None}) < LIMIT


def test_velocity_with_controlnet_residuals(twins):
    generator = torch.Generator().manual_seed(5)

    def residual():
        return torch.randn(1, 30, 256, generator=generator).to(DEVICE)

    control = {"input": [residual(), None], "output": [None, residual()]}
    call = inputs(references=[(8, 6)])
    assert compare(twins, call, control=control) < LIMIT
    assert compare(twins, call) < LIMIT
    with torch.no_grad():
        assert error(twins.ours(**call, control=control), twins.ours(**call)) > 1e-3


def test_velocity_with_an_attention_mask(twins):
    mask = torch.ones(1, 1, 37, 37, dtype=torch.bool, device=DEVICE)
    mask[..., 2:5] = False
    assert compare(twins, inputs(), attention_mask=mask) < LIMIT


def test_velocity_with_stretched_positions(twins):
    rope = {"scale_x": 0.7, "scale_y": 1.3, "scale_t": 1.0, "shift_x": 2.0, "shift_y": -1.0, "shift_t": 0.5}
    assert compare(twins, inputs(), transformer_options={"rope_options": rope}) < LIMIT


def test_velocity_with_every_kind_of_patch(twins):
    """Patches as other packs write them see and change the same things as in ComfyUI's own model."""
    seen = []

    def post_input(args):
        seen.append(("post_input", sorted(args), args["img"].shape))
        return args | {"img": args["img"] * 1.1}

    def attention(q, k, v, pe=None, attn_mask=None, extra_options=None):
        seen.append((q.shape, pe.shape, extra_options["block_type"], extra_options["block_index"]))
        return {"q": q * 1.2, "k": k, "v": v}

    def output(attended, extra_options):
        start, stop = extra_options["img_slice"]
        seen.append((start, stop, extra_options["total_blocks"]))
        attended[:, start:stop] *= 0.9
        return attended

    def around(args, extra):
        seen.append((sorted(args), args["img"].shape, args["vec"].shape))
        out = extra["original_block"](args)
        return out | {"img": out["img"] * 0.8}

    options = {
        "patches": {"post_input": [post_input], "attn1_patch": [attention], "attn1_output_patch": [output]},
        "patches_replace": {"dit": {("double_block", 1): around, ("single_block", 0): around}},
    }
    call = inputs(references=[(8, 6)])
    with torch.no_grad():
        expected = twins.core(**call, transformer_options=options)
        theirs, seen[:] = list(seen), []
        assert error(twins.ours(**call, transformer_options=options), expected) < LIMIT
    assert seen == theirs


def test_wrappers_of_the_diffusion_model_run(twins):
    import comfy.patcher_extension as extension

    calls = []

    def wrapper(executor, *args, **kwargs):
        calls.append(args[0].shape)
        return executor(*args, **kwargs) * 2

    options = {}
    extension.add_wrapper(extension.WrappersMP.DIFFUSION_MODEL, wrapper, options)
    with torch.no_grad():
        call = inputs()
        doubled, plain = twins.ours(**call, transformer_options=options), twins.ours(**call)
    assert torch.equal(doubled, plain * 2)
    assert calls == [(1, 16, 12, 10)]


def test_the_number_of_reference_tokens_is_told(twins):
    seen = []

    def post_input(args):
        seen.append(args["transformer_options"]["reference_image_num_tokens"])
        return args

    with torch.no_grad():
        twins.ours(
            **inputs(references=[(8, 6), (5, 12)]), transformer_options={"patches": {"post_input": [post_input]}}
        )
    assert seen == [[12, 18]]


def test_a_placement_that_kontext_does_not_know_is_refused_in_a_sentence(twins):
    with pytest.raises(ValueError, match=r"'index_timestep_zero': FLUX.1 Kontext was not trained for it\. Choose"):
        twins.ours(**inputs(references=[(8, 6)]), ref_latents_method="index_timestep_zero")
