"""What a file in a text encoder's slot is, in a person's words."""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import Checkpoint
from ..errors import CheckpointError, listing
from ..quant import PackedTensor

Tensors = Mapping[str, PackedTensor]
CLIP_L, T5XXL = "CLIP-L", "T5-XXL"
SLOTS = {CLIP_L: "clip_l_name", T5XXL: "t5xxl_name"}
EXAMPLES = {CLIP_L: "clip_l.safetensors", T5XXL: "t5xxl_fp16.safetensors or t5-v1_1-xxl-encoder-Q8_0.gguf"}

_CLIPS = {768: CLIP_L, 1024: "CLIP-H", 1280: "CLIP-G"}  # by width
_T5S = {512: "T5-small", 768: "T5-base", 1024: "T5-large", 2048: "T5-XL", 4096: T5XXL}
_UMT5_WORDS = 256384
_OTHERS = (
    ("transformer.resblocks.", "a CLIP in OpenCLIP's names"),
    ("self_attn.q_proj", "a language model (Llama, Qwen, Gemma or the like)"),
    ("blk.0.", "a language model in llama.cpp's names"),
    ("lora", "a LoRA"),
    ("double_blocks.", "a diffusion model"),
    ("transformer_blocks.", "a diffusion model"),
    ("conv_in.weight", "a VAE"),
)


def kind_of(tensors: Tensors) -> str:
    """CLIP_L, T5XXL, or what else these tensors, under Hugging Face's names, are."""
    if mlp := tensors.get("text_model.encoder.layers.0.mlp.fc1.weight"):
        return _CLIPS.get(mlp.shape[-1], f"a CLIP {mlp.shape[-1]} wide")
    if query := tensors.get("encoder.block.0.layer.0.SelfAttention.q.weight"):
        words = tensors.get("shared.weight")
        if words and words.shape[0] == _UMT5_WORDS:
            return "a UMT5, which other models use"
        size = _T5S.get(query.shape[-1], f"a T5 {query.shape[-1]} wide")
        is_gated = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight" in tensors
        return size if is_gated else f"{size} of version 1.0; FLUX uses version 1.1"
    for telltale, what in _OTHERS:
        if any(telltale in name for name in tensors):
            return what
    return "no text encoder"


def require_kind(checkpoint: Checkpoint, tensors: Tensors, wanted: str) -> None:
    """Raises CheckpointError where the tensors are of another kind, naming it and the slot that it belongs to."""
    found = kind_of(tensors)
    if found == wanted:
        return
    if found in SLOTS:
        advice = f"It belongs in {SLOTS[found]}; the two names are swapped, or one is chosen twice."
    else:
        advice = f"Choose a {wanted}, for example {EXAMPLES[wanted]}."
    raise CheckpointError(
        f"{checkpoint.file_name}: this is {found}, {SLOTS[wanted]} needs {wanted} "
        f"(it holds {listing(checkpoint.tensors, 3) or 'no tensors at all'}). {advice}"
    )
