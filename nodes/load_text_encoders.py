"""KontextLoadTextEncoders: FLUX's two text encoders from GGUF or safetensors files."""

from __future__ import annotations

from comfy_api.latest import io

from ..bridge.paths import ENCODERS
from ..bridge.text_encoders import load_text_encoders


class KontextLoadTextEncoders(io.ComfyNode):
    """Wraps `bridge.text_encoders.load_text_encoders`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs: clip_l_name, t5xxl_name. Output: CLIP."""
        names = ENCODERS.names()
        folders = ", ".join(ENCODERS.directories())
        return io.Schema(
            node_id="KontextLoadTextEncoders",
            display_name="Load Kontext Text Encoders",
            category="Kontext",
            description="Loads CLIP-L and T5-XXL, which read the prompts of FLUX.1 Kontext, each from a GGUF or "
            "safetensors file, as a CLIP.",
            search_aliases=["dual clip loader", "t5xxl gguf", "clip_l", "text encoder", "clip loader gguf"],
            inputs=[
                io.Combo.Input(
                    "clip_l_name",
                    options=names,
                    tooltip=f"CLIP-L, usually clip_l.safetensors. Folders searched: {folders}. "
                    "Press R after adding a file.",
                ),
                io.Combo.Input(
                    "t5xxl_name",
                    options=names,
                    tooltip="T5-XXL version 1.1: t5xxl_fp16.safetensors, an fp8 one of half its size, or a GGUF of "
                    "the encoder, such as t5-v1_1-xxl-encoder-Q8_0.gguf. Press R after adding a file.",
                ),
            ],
            outputs=[io.Clip.Output(tooltip="For CLIPTextEncode, CLIPTextEncodeFlux and every other CLIP input.")],
        )

    @classmethod
    def validate_inputs(cls, clip_l_name: str | None = None, t5xxl_name: str | None = None) -> bool | str:
        """Says where to get a file that is not there; a name that comes over a link is not known yet."""
        return " ".join(filter(None, map(ENCODERS.missing, (clip_l_name, t5xxl_name)))) or True

    @classmethod
    def fingerprint_inputs(cls, clip_l_name: str, t5xxl_name: str) -> str:
        """Loads again when a file has changed on disk."""
        return ":".join(ENCODERS.fingerprint(name) for name in (clip_l_name, t5xxl_name))

    @classmethod
    def execute(cls, clip_l_name: str, t5xxl_name: str) -> io.NodeOutput:
        """Raises CheckpointError for a wrong or broken file, FileNotFoundError for one that is gone."""
        return io.NodeOutput(load_text_encoders(ENCODERS.path(clip_l_name), ENCODERS.path(t5xxl_name)))


NODES = [KontextLoadTextEncoders]
