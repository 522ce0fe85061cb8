"""How LoRA files name FLUX's Linears, and the parts they hold for each: every dialect as a line of one table."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from ..flux.names import SWAPPED, linears_of

_TABLE = (  # (dialect, what stands before a Linear's name, how the name is spelled)
    ("diffusers", ("transformer.",), "diffusers"),
    ("diffusers' attention processors", ("", "transformer."), "processors"),
    ("bare diffusers names", ("",), "diffusers"),
    ("PEFT", ("base_model.model.", "base_model.model.transformer."), "diffusers"),
    ("PEFT over BFL's names", ("base_model.model.",), "bfl"),
    ("kohya", ("lora_unet_",), "bfl_"),
    ("kohya over diffusers' names", ("lora_unet_",), "diffusers_"),
    ("OneTrainer", ("lora_transformer_",), "diffusers_"),
    ("OMI", ("transformer.", "lora_transformer_"), "parted bfl"),
    ("LyCORIS", ("lycoris_",), "diffusers_"),
    ("ComfyUI", ("diffusion_model.", "model.diffusion_model."), "bfl"),
    ("ComfyUI over diffusers' names", ("diffusion_model.",), "diffusers"),
    ("bare BFL names", ("",), "bfl"),
    ("XLabs", ("", "diffusion_model."), "xlabs"),
)
_XLABS = {  # in a double block 1 is the image's stream and 2 the text's; a single block's MLP is left alone
    "img_attn.qkv": "processor.qkv_lora1",
    "txt_attn.qkv": "processor.qkv_lora2",
    "img_attn.proj": "processor.proj_lora1",
    "txt_attn.proj": "processor.proj_lora2",
    "linear1": "processor.qkv_lora",
    "linear2": "processor.proj_lora",
}
_PART = re.compile(
    r"(?P<module>.+?)\."
    r"(?:(?P<down>lora_A|lora_down|lora\.down|lora_linear_layer\.down|down)"
    r"|(?P<up>lora_B|lora_up|lora\.up|lora_linear_layer\.up|up)"
    r"|(?P<alpha>alpha)"
    r"|(?P<magnitude>dora_scale|lora_magnitude_vector|magnitude)"
    r"|(?P<factor>(?:lokr|hada)_w[12](?:_[ab])?|lokr_t[12]|hada_t[12]))"
    r"(?:\.default\w*)?(?:\.weight)?"
)
_TEXT_ENCODER = re.compile(r"lora_te|text_encoder|clip_[lg]\.|t5|bundle_emb\.")  # OneTrainer bundles embeddings
_LEFTOVERS = (  # (how a key ends, why nothing is done with it)
    ((".diff_b", ".lora_B.bias", ".lora_up.bias", ".b_norm"), "changes a bias; only weights are adapted"),
    ((".scale", ".w_norm", ".set_weight"), "replaces or changes a norm; only Linears are adapted"),
    ((".diff",), "is a full difference, not a low-rank one"),
    ((".reshape_weight",), "changes the shape of a weight"),
    ((".lora_mid.weight",), "belongs to a convolution; FLUX.1 has none"),
)
_STRANGERS = tuple(
    (re.compile(pattern), model)
    for pattern, model in (
        (r"(input|output|middle|down|up|mid)_blocks?[._]", "Stable Diffusion (SD 1.5 or SDXL)"),
        (r"joint_blocks[._]", "Stable Diffusion 3"),
        (r"img_mlp[._]net[._]|[._]img_mod[._]1|transformer_blocks[._]59[._]", "Qwen-Image"),
        (r"double_stream_modulation|to_qkv_mlp_proj|ff(_context)?[._]linear_in", "FLUX.2"),
        (r"distilled_guidance_layer", "Chroma"),
        (r"img_attn_qkv|individual_token_refiner", "HunyuanVideo"),
        (r"double_stream_blocks", "HiDream"),
        (r"joint_transformer_blocks", "AuraFlow"),
        (r"(noise|context)_refiner|layers[._]\d+[._]attention", "Z-Image or Lumina 2"),
        (r"attn1[._]to_", "LTX-Video or PixArt"),
        (r"blocks[._]\d+[._](cross|self)_attn", "Wan"),
        (r"layers[._]\d+[._]self_attn", "a language model"),
    )
)

Targets = tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """A Linear in a file.

    dialect: who names it so. targets: the diffusers Linears it is, from top to bottom. swapped: it has the halves of
    its rows in BFL's order.
    """

    dialect: str
    targets: Targets
    swapped: bool


def places(names: Iterable[str]) -> dict[str, Place]:
    """{a Linear's name in any dialect: its place}, for a model whose Linears have these diffusers names."""
    names = set(names)
    spellings = _spellings(names)
    last_modulation = spellings["bfl"][SWAPPED]
    found: dict[str, Place] = {}
    for dialect, prefixes, spelling in _TABLE:
        for name, targets in spellings[spelling].items():
            swapped = "bfl" in spelling and targets == last_modulation
            for prefix in prefixes if names.issuperset(targets) else ():
                found.setdefault(prefix + name, Place(dialect, targets, swapped))
    return found


def _spellings(names: Collection[str]) -> dict[str, Mapping[str, Targets]]:
    """{spelling: {a Linear's name: its diffusers Linears}}."""
    diffusers = {name: (name,) for name in names}
    bfl = dict(linears_of(_count(names, "transformer_blocks."), _count(names, "single_transformer_blocks.")))
    parted = {name: targets for name, targets in bfl.items() if len(targets) == 1}
    for name, targets in bfl.items():
        parted |= {f"{name}.{i}": (target,) for i, target in enumerate(targets) if len(targets) > 1}
    xlabs = {}
    for name, targets in bfl.items():
        stem, number, linear = [*name.split(".", 2), "", ""][:3]
        if stem.endswith("_blocks") and linear in _XLABS:
            xlabs[f"{stem}.{number}.{_XLABS[linear]}"] = targets[:3]
    processors = {
        f"{block}.attn.processor.{linear.removesuffix('.0')}_lora": (name,)
        for name in names
        for block, attention, linear in [name.partition(".attn.")]
        if attention
    }
    return {
        "diffusers": diffusers,
        "diffusers_": _underscored(diffusers),
        "processors": processors,
        "bfl": bfl,
        "bfl_": _underscored(bfl),
        "parted bfl": parted,
        "xlabs": xlabs,
    }


def _count(names: Iterable[str], stem: str) -> int:
    """How many blocks stand under `stem`."""
    return len({name.split(".")[1] for name in names if name.startswith(stem)})


def _underscored(spelling: Mapping[str, Targets]) -> dict[str, Targets]:
    return {name.replace(".", "_"): targets for name, targets in spelling.items()}


def split_key(key: str) -> tuple[str, str] | None:
    """(module, part) of a tensor's name; part: down, up, alpha, magnitude, or LyCORIS' own name of a factor.

    None where the tensor is no part of a LoRA.
    """
    match = _PART.fullmatch(key)
    if match is None:
        return None
    part = match.lastgroup or ""
    module = match["module"].rstrip("_")  # some converters leave one
    return module, match[part] if part == "factor" else part


def is_for_text_encoder(key: str) -> bool:
    """Whether a tensor belongs to a text encoder, by its name."""
    return _TEXT_ENCODER.match(key) is not None


def why_unused(key: str) -> str:
    """Why the tensor of this name is left aside, to follow its name in a sentence."""
    if is_for_text_encoder(key):
        return "belongs to a text encoder"
    reason = next((why for ends, why in _LEFTOVERS if key.endswith(ends)), None)
    if reason is None:
        reason = "names no Linear of this model" if split_key(key) else "is no part of a LoRA that this pack knows"
    return reason


def other_model(key: str) -> str | None:
    """The model that has a module of this name where FLUX.1 has none."""
    return next((model for pattern, model in _STRANGERS if pattern.search(key)), None)
