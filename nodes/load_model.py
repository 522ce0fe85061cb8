"""KontextLoadModel: a FLUX.1 Kontext transformer from a GGUF or safetensors file."""

from __future__ import annotations

from comfy_api.latest import io

from ..bridge.model import COMPUTE_DTYPES, load
from ..bridge.paths import MODELS


class KontextLoadModel(io.ComfyNode):
    """Wraps `bridge.model.load`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs: model_name, compute_dtype. Output: MODEL."""
        folders = ", ".join(MODELS.directories())
        return io.Schema(
            node_id="KontextLoadModel",
            display_name="Load Kontext Model",
            category="Kontext",
            description="Loads a FLUX.1 Kontext transformer from a GGUF or safetensors file as a MODEL.",
            search_aliases=["gguf", "unet loader", "flux kontext", "load diffusion model"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=MODELS.names(),
                    tooltip=f"A .gguf or .safetensors file of FLUX.1 Kontext. Folders searched: {folders}. "
                    "Press R after adding a file.",
                ),
                io.Combo.Input(
                    "compute_dtype",
                    options=["auto", *COMPUTE_DTYPES],
                    default="auto",
                    tooltip="The precision of the arithmetic; the weights stay as they are stored. auto: float16 for a "
                    "float16 file, else bfloat16, where your device runs it; float32 on the CPU.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="For KSampler, BasicGuider, CFGGuider and every other MODEL input.")],
        )

    @classmethod
    def validate_inputs(cls, model_name: str | None = None) -> bool | str:
        """Says where to get a file that is not there; a name that comes over a link is not known yet."""
        return MODELS.missing(model_name) or True

    @classmethod
    def fingerprint_inputs(cls, model_name: str, compute_dtype: str) -> str:
        """Loads again when the file has changed on disk."""
        return f"{MODELS.fingerprint(model_name)}:{compute_dtype}"

    @classmethod
    def execute(cls, model_name: str, compute_dtype: str) -> io.NodeOutput:
        """Raises CheckpointError for a file that is no FLUX.1, FileNotFoundError for one that is gone."""
        return io.NodeOutput(load(MODELS.path(model_name), compute_dtype))


NODES = [KontextLoadModel]
