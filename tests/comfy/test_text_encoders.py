"""Text encoders against ComfyUI's own, and what the node says of wrong files."""

import gguf
import pytest
import torch
from flux_files import write_packed
from kontextkit.engine.checkpoint import Checkpoint, open_checkpoint
from kontextkit.engine.errors import CheckpointError
from kontextkit.engine.quant import PackedTensor
from kontextkit.engine.text_encoders import read_clip_l, read_t5xxl
from kontextkit.engine.text_encoders.names import PARTS
from safetensors.torch import save_file

SMALL = {  # ComfyUI's own way to ask for other sizes
    "t5xxl_model_config": {"num_layers": 2, "d_ff": 512, "num_heads": 4, "d_model": 256},
    "clip_l_model_config": {
        "num_hidden_layers": 2,
        "hidden_size": 256,
        "num_attention_heads": 4,
        "intermediate_size": 512,
    },
}
NAMES = ("clip.safetensors", "t5.safetensors")


@pytest.fixture(scope="module")
def theirs(comfyui):
    """ComfyUI's own CLIP of type flux, small, with random weights, in float32."""
    import comfy.sd
    import comfy.text_encoders.flux as flux
    from comfy.supported_models_base import ClipTarget

    torch.manual_seed(0)
    options = SMALL | {"dtype": torch.float32, "initial_device": torch.device("cpu")}
    clip = comfy.sd.CLIP(ClipTarget(flux.FluxTokenizer, flux.flux_clip(torch.float32)), model_options=options)
    state = {name: torch.randn(shape) * 0.08 for name, shape in shapes(clip.cond_stage_model).items()}
    clip.cond_stage_model.load_state_dict(state, strict=False)
    return clip


def shapes(model):
    """Of the state, where dynamic VRAM leaves Linears empty too."""
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if tensor is not None}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            found[f"{name}.weight"] = (module.out_features, module.in_features)
    return {name: shape for name, shape in found.items() if "logit_scale" not in name}


@pytest.fixture(scope="module")
def states(theirs):
    """(CLIP-L, T5), {Hugging Face's name: tensor}."""
    state = {name: tensor.detach().cpu().clone() for name, tensor in theirs.cond_stage_model.state_dict().items()}
    return [
        {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
        for prefix in ("clip_l.transformer.", "t5xxl.transformer.")
    ]


def packed(state, qtype="F32"):
    """Matrices of Linears in a GGUF type, the rest in float32."""

    def pack(name, tensor):
        if qtype == "F32" or tensor.ndim == 1 or "embed" in name or "shared" in name or "bias" in name:
            return PackedTensor(tensor, "F32", tuple(tensor.shape))
        data = gguf.quantize(tensor.numpy(), gguf.GGMLQuantizationType[qtype])
        return PackedTensor(torch.from_numpy(data), qtype, tuple(tensor.shape))

    return {name: pack(name, tensor) for name, tensor in state.items()}


def encode(clip, text):
    cond, extra = clip.encode_from_tokens_scheduled(clip.tokenize(text))[0]
    return cond, extra["pooled_output"]


PROMPT = "make the (red:1.2) car blue and tell a long story"


def test_the_states_are_comfyui_s_own(theirs, states):
    from kontextkit.bridge.text_encoders import make_clip

    ours = make_clip(packed(states[0]), packed(states[1]), NAMES, SMALL)
    for a, b in zip(encode(ours, PROMPT), encode(theirs, PROMPT), strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("qtype", ["Q8_0", "Q5_1", "Q4_0"])
def test_packed_encoders_are_comfyui_s_own_over_the_decoded_weights(theirs, states, qtype):
    from kontextkit.bridge.text_encoders import make_clip

    ours = make_clip(packed(states[0], qtype), packed(states[1], qtype), NAMES, SMALL)
    decoded = [{name: PackedTensor(t.decode(), "F32", t.shape) for name, t in packed(s, qtype).items()} for s in states]
    plain = make_clip(*decoded, NAMES, SMALL)
    for a, b, far in zip(encode(ours, PROMPT), encode(plain, PROMPT), encode(theirs, PROMPT), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(a, far, rtol=1e-4, atol=1e-5)


def test_a_file_without_the_projection_is_whole(theirs, states):
    from kontextkit.bridge.text_encoders import PROJECTION, make_clip

    without = packed({name: tensor for name, tensor in states[0].items() if name != PROJECTION})
    ours = make_clip(without, packed(states[1]), NAMES, SMALL)
    torch.testing.assert_close(encode(ours, PROMPT)[1], encode(theirs, PROMPT)[1], rtol=1e-4, atol=1e-5)


def test_layers_that_dynamic_vram_leaves_empty_are_filled_too(theirs, states, monkeypatch):
    import comfy.memory_management
    from kontextkit.bridge.text_encoders import make_clip

    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    ours = make_clip(packed(states[0]), packed(states[1]), NAMES, SMALL)
    monkeypatch.undo()
    for a, b in zip(encode(ours, PROMPT), encode(theirs, PROMPT), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_missing_and_misshapen_tensors_are_named(states):
    from kontextkit.bridge.text_encoders import make_clip

    gone = {name: tensor for name, tensor in states[1].items() if "wi_1" not in name}
    with pytest.raises(CheckpointError, match=r"t5\.safetensors: 2 of \d+ tensors .* missing: encoder\.block\.0.*wi_1"):
        make_clip(packed(states[0]), packed(gone), NAMES, SMALL)
    gone = {name: tensor for name, tensor in states[0].items() if "final_layer_norm" not in name}
    with pytest.raises(CheckpointError, match=r"clip\.safetensors: 2 of \d+ tensors .* missing: .*final_layer_norm"):
        make_clip(packed(gone), packed(states[1]), NAMES, SMALL)
    wrong = states[0] | {"text_model.final_layer_norm.bias": torch.zeros(255)}
    with pytest.raises(
        CheckpointError, match=r"clip\.safetensors: .*final_layer_norm\.bias' has shape \[255\], expected \[256\]"
    ):
        make_clip(packed(wrong), packed(states[1]), NAMES, SMALL)


def as_checkpoint(shapes, name="file.safetensors"):
    return Checkpoint(
        name, {key: PackedTensor(torch.empty(shape, device="meta"), "F16", shape) for key, shape in shapes.items()}
    )


CLIP = {"text_model.encoder.layers.0.mlp.fc1.weight": (3072, 768)}
T5 = {
    "encoder.block.0.layer.0.SelfAttention.q.weight": (4096, 4096),
    "encoder.block.0.layer.1.DenseReluDense.wi_0.weight": (10240, 4096),
    "shared.weight": (32128, 4096),
}
LLAMA_CPP = ("enc.blk.0.attn_q.weight", "enc.blk.0.ffn_gate.weight")
WRONG = {
    "CLIP-G": ({"text_model.encoder.layers.0.mlp.fc1.weight": (5120, 1280)}, "this is CLIP-G"),
    "T5-base": ({**T5, "encoder.block.0.layer.0.SelfAttention.q.weight": (768, 768)}, "this is T5-base"),
    "UMT5": ({**T5, "shared.weight": (256384, 4096)}, "this is a UMT5"),
    "old T5": ({k: v for k, v in T5.items() if "wi_0" not in k}, "this is T5-XXL of version 1.0"),
    "Qwen": ({"model.layers.0.self_attn.q_proj.weight": (8, 8)}, "this is a language model"),
    "Llama in GGUF": ({"blk.0.attn_q.weight": (8, 8)}, "this is a language model in llama.cpp's names"),
    "FLUX": ({"double_blocks.0.img_attn.qkv.weight": (8, 8)}, "this is a diffusion model"),
    "nothing": ({}, "this is no text encoder"),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("read", [read_clip_l, read_t5xxl])
def test_another_encoder_is_named_with_what_to_choose(kind, read):
    shapes, words = WRONG[kind]
    with pytest.raises(CheckpointError, match=rf"file\.safetensors: {words}.*Choose a (CLIP-L|T5-XXL), for example"):
        read(as_checkpoint(shapes))


def test_swapped_files_are_told_from_wrong_ones():
    with pytest.raises(CheckpointError, match=r"this is T5-XXL, clip_l_name needs CLIP-L.*belongs in t5xxl_name"):
        read_clip_l(as_checkpoint(T5))
    with pytest.raises(CheckpointError, match=r"this is T5-XXL, clip_l_name needs CLIP-L.*belongs in t5xxl_name"):
        read_clip_l(as_checkpoint({"token_embd.weight": (32128, 4096), **dict.fromkeys(LLAMA_CPP, (10240, 4096))}))
    with pytest.raises(CheckpointError, match=r"this is CLIP-L, t5xxl_name needs T5-XXL.*belongs in clip_l_name"):
        read_t5xxl(as_checkpoint(CLIP))


@pytest.mark.parametrize("prefix", ["", "text_encoders.t5xxl.transformer."])
def test_prefixes_and_decoders_drop_out(prefix):
    checkpoint = as_checkpoint({prefix + name: shape for name, shape in (T5 | {"decoder.x": (2, 2)}).items()})
    assert set(read_t5xxl(checkpoint)) == set(T5)


def test_llama_cpp_s_names_are_those_of_its_own_table():
    """gguf-py's mapping, which llama.cpp's converter uses, from Hugging Face's names to llama.cpp's."""
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, 24)
    for part, target in PARTS.items():
        name = f"encoder.block.7.{target}"
        assert table.get_name(name) in (f"enc.blk.7.{part}", f"enc.blk.0.{part}"), part
    assert table.get_name("shared") == "token_embd"
    assert table.get_name("encoder.final_layer_norm") == "enc.output_norm"


def test_a_t5_of_llama_cpp_is_read_under_hugging_face_s_names(tmp_path):
    parts = {part: (8, 4096) for part in PARTS if "norm" not in part} | {"attn_norm": (4096,), "ffn_norm": (4096,)}
    names = {f"enc.blk.0.{part}.weight": shape for part, shape in parts.items()}
    names |= {"token_embd.weight": (4, 4096), "enc.output_norm.weight": (4096,)}
    tensors = {name: (torch.randn(shape).numpy(), "F32") for name, shape in names.items()}
    read = read_t5xxl(open_checkpoint(write_packed(tmp_path / "t5.gguf", tensors)))
    assert set(read) == {f"encoder.block.0.{target}.weight" for target in PARTS.values()} | {
        "shared.weight",
        "encoder.final_layer_norm.weight",
    }


def test_the_node_lists_both_folders_and_says_which_slot_is_wrong(comfyui, tmp_path, monkeypatch):
    import folder_paths
    from kontextkit.nodes.load_text_encoders import KontextLoadTextEncoders as Node

    known = dict(folder_paths.folder_names_and_paths)
    known["text_encoders"] = ([str(tmp_path)], {".safetensors"})
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", known)
    save_file(
        {name: torch.zeros(1, 1).expand(8, shape[1]).contiguous() for name, shape in CLIP.items()},
        tmp_path / "l.safetensors",
    )
    (tmp_path / "t5.gguf").touch()
    clip_l, t5xxl = Node.define_schema().inputs
    assert clip_l.options == t5xxl.options == ["l.safetensors", "t5.gguf"]
    with pytest.raises(CheckpointError, match=r"t5\.gguf: the file is empty"):
        Node.execute("l.safetensors", "t5.gguf")
    with pytest.raises(CheckpointError, match=r"l\.safetensors: this is CLIP-L, t5xxl_name needs T5-XXL"):
        Node.execute("l.safetensors", "l.safetensors")


def test_a_prompt_is_encoded_once(states, monkeypatch):
    from kontextkit.bridge import kept_clip
    from kontextkit.bridge.text_encoders import make_clip

    clip = make_clip(*(packed(state) for state in states), NAMES, SMALL)
    encoded, encode_once = [], clip.encode_from_tokens
    monkeypatch.setattr(
        clip, "encode_from_tokens", lambda *rest, **more: encoded.append(1) or encode_once(*rest, **more)
    )
    first = clip.encode_from_tokens_scheduled(clip.tokenize("a car"))
    first[0][1]["guidance"] = 3.0
    again = clip.encode_from_tokens_scheduled(clip.tokenize("a car"))
    assert len(encoded) == 1
    assert "guidance" not in again[0][1]
    assert torch.equal(again[0][0], first[0][0])
    clip.encode_from_tokens_scheduled(clip.tokenize("a car"), add_dict={"guidance": 2.0})
    clip.encode_from_tokens_scheduled(clip.tokenize("a (car:1.2)"))
    assert len(encoded) == 3
    monkeypatch.setattr(kept_clip, "N_PROMPTS", 2)
    for text in ("b", "c", "a car"):
        clip.encode_from_tokens_scheduled(clip.tokenize(text))
    assert len(encoded) == 6
    changed = clip.clone()
    changed.encode_from_tokens_scheduled(changed.tokenize("a car"))
    assert type(changed) is not type(clip)  # a clone may carry a LoRA
