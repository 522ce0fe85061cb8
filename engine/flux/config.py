"""Reads what a FLUX transformer looks like off the shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from ..checkpoint import Checkpoint
from ..errors import CheckpointError, listing

AXES_DIMS = (16, 56, 56)  # of rotary embedding: index, row, column; every published FLUX.1 has these
HEAD_DIM = sum(AXES_DIMS)
TOKEN_CHANNELS = 64  # 16 latent channels in 2x2 patches

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class FluxConfig:
    """The arguments of diffusers' `FluxTransformer2DModel`, under its names."""

    in_channels: int
    num_layers: int
    num_single_layers: int
    num_attention_heads: int
    joint_attention_dim: int
    pooled_projection_dim: int
    guidance_embeds: bool
    attention_head_dim: int = HEAD_DIM
    axes_dims_rope: tuple[int, int, int] = AXES_DIMS

    @property
    def hidden_size(self) -> int:
        """Width of a token inside the blocks."""
        return self.num_attention_heads * self.attention_head_dim

    def as_kwargs(self) -> dict[str, object]:
        """Keyword arguments for `FluxTransformer2DModel`."""
        return asdict(self)


@dataclass(frozen=True)
class Dialect:
    """A way to name FLUX's tensors; the fields name those whose shapes tell the configuration."""

    img_in: str
    txt_in: str
    vector_in: str
    guidance_in: str
    double: str
    single: str
    head_norm: str


BFL = Dialect(
    img_in="img_in.weight",
    txt_in="txt_in.weight",
    vector_in="vector_in.in_layer.weight",
    guidance_in="guidance_in.in_layer.weight",
    double="double_blocks",
    single="single_blocks",
    head_norm="single_blocks.0.norm.query_norm",
)
DIFFUSERS = Dialect(
    img_in="x_embedder.weight",
    txt_in="context_embedder.weight",
    vector_in="time_text_embed.text_embedder.linear_1.weight",
    guidance_in="time_text_embed.guidance_embedder.linear_1.weight",
    double="transformer_blocks",
    single="single_transformer_blocks",
    head_norm="single_transformer_blocks.0.attn.norm_q",
)
PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "transformer.")

# What a file is that is not FLUX.1: (part of a name in it, what it is, which node loads it).
_COUSINS = (
    ("distilled_guidance_layer.", "a Chroma transformer", "UNETLoader"),
    ("double_stream_modulation_img.", "a FLUX.2 transformer", "UNETLoader"),
    ("txt_norm.weight", "a Qwen-Image transformer", "UNETLoader"),
    ("controlnet_", "a ControlNet", "ControlNetLoader"),
)
_OTHERS = (
    *_COUSINS,
    ("input_blocks.0.0.weight", "a Stable Diffusion (SD1, SD2 or SDXL) checkpoint", "CheckpointLoaderSimple"),
    ("joint_blocks.", "a Stable Diffusion 3 transformer", "UNETLoader"),
    ("lora_", "a LoRA", "a LoRA loader"),
    ("encoder.block.0.", "a T5 text encoder", "Load Kontext Text Encoders"),
    ("text_model.encoder.", "a CLIP text encoder", "Load Kontext Text Encoders"),
    ("decoder.conv_in.weight", "a VAE", "VAELoader"),
)


def find_dialect(checkpoint: Checkpoint) -> tuple[Dialect, str]:
    """(dialect, prefix) of the FLUX.1 tensors in the file. Raises CheckpointError where there are none."""
    names = checkpoint.tensors
    if not any(telltale in name for name in names for telltale, _, _ in _COUSINS):
        for dialect in (BFL, DIFFUSERS):
            for prefix in PREFIXES:
                if prefix + dialect.img_in in names:
                    return dialect, prefix
    what, loader = next(
        ((what, loader) for telltale, what, loader in _OTHERS if any(telltale in name for name in names)),
        ("something else", "the loader made for it"),
    )
    raise CheckpointError(
        f"{checkpoint.file_name}: this is {what}, not a FLUX.1 Kontext transformer "
        f"(it holds {listing(names, 3) or 'no tensors at all'}). "
        f"Choose a FLUX.1 Kontext model here; use {loader} for this file."
    )


def infer_config(shapes: Shapes, dialect: Dialect, file_name: str) -> FluxConfig:
    """The configuration behind these shapes (names without prefix). Raises CheckpointError where they disagree."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in shapes or len(shapes[name]) != 2:
            found = f"of shape {list(shapes[name])}" if name in shapes else "missing"
            raise CheckpointError(
                f"{file_name}: tensor {name!r} is {found}; a FLUX transformer has it as a matrix. "
                "The file is incomplete; download it again."
            )
        return shapes[name]

    hidden, in_channels = shape(dialect.img_in)
    head_norms = [shapes[name] for s in ("scale", "weight") if (name := f"{dialect.head_norm}.{s}") in shapes]
    if in_channels != TOKEN_CHANNELS:
        raise CheckpointError(
            f"{file_name}: {dialect.img_in} takes {in_channels} channels a token, Kontext takes {TOKEN_CHANNELS}. "
            "This is a FLUX.1 Fill, Canny or Depth model; load it with ComfyUI's UNETLoader."
        )
    if any(norm != (HEAD_DIM,) for norm in head_norms) or hidden % HEAD_DIM:
        heads = f"heads of {list(head_norms[0])}" if head_norms else "unknown heads"
        raise CheckpointError(
            f"{file_name}: {hidden} wide with {heads}; FLUX.1 has heads of {HEAD_DIM}. Choose a FLUX.1 Kontext model."
        )
    n_double, n_single = (_count_blocks(shapes, stem) for stem in (dialect.double, dialect.single))
    if not (n_double and n_single):
        raise CheckpointError(
            f"{file_name}: {n_double} {dialect.double} and {n_single} {dialect.single}; FLUX.1 has both kinds. "
            "The file is incomplete; download it again, and whole where it comes in parts."
        )
    return FluxConfig(
        in_channels=in_channels,
        num_layers=n_double,
        num_single_layers=n_single,
        num_attention_heads=hidden // HEAD_DIM,
        joint_attention_dim=shape(dialect.txt_in)[1],
        pooled_projection_dim=shape(dialect.vector_in)[1],
        guidance_embeds=dialect.guidance_in in shapes,
    )


def _count_blocks(shapes: Shapes, stem: str) -> int:
    """How many different block indices stand under `stem`."""
    return len({name.split(".")[1] for name in shapes if name.startswith(stem + ".")})
