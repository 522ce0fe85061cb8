"""KontextQuantize: a quantized GGUF of a FLUX.1 Kontext file."""

from __future__ import annotations

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..bridge.paths import LORAS, MODELS
from ..bridge.quantize import SEEDS, Check, quantize_model
from ..engine.quantizer.mixes import MIXES

NO_LORA = "none"
_CHECK = f"Connect positive, vae and latent_image to compare {len(SEEDS)} pictures of source and result."


class KontextQuantize(io.ComfyNode):
    """Wraps `bridge.quantize.quantize_model`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs: model_name, qtype, filename; for a LoRA lora_name, strength; for a check positive to steps.

        Outputs: filename, report, comparison.
        """
        return io.Schema(
            node_id="KontextQuantize",
            display_name="Quantize Kontext",
            category="Kontext",
            description="Makes a GGUF of a FLUX.1 Kontext safetensors file, down to a sixth of its size, in "
            "models/diffusion_models.",
            search_aliases=["gguf", "convert to gguf", "quantize model", "k-quant", "llama-quantize", "compress model"],
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=MODELS.names(),
                    tooltip="The model to quantize: a BF16, F16, F32 or scaled fp8 .safetensors file; of a model in "
                    f"several files any one. Folders searched: {', '.join(MODELS.directories())}. Press R after adding "
                    "a file.",
                ),
                io.Combo.Input(
                    "qtype",
                    options=list(MIXES),
                    default="Q4_K_M",
                    tooltip="How small: the digit is about the bits a weight takes. Q8_0 hardly changes a picture, "
                    "Q4_K_M is the usual compromise, below Q3_K_M it shows.",
                ),
                io.String.Input(
                    "filename",
                    default="",
                    tooltip="The name of the new file in models/diffusion_models. Empty: the model's own name and the "
                    "type. A GGUF of this name is replaced once the new one is whole.",
                ),
                io.Combo.Input(
                    "lora_name",
                    options=[NO_LORA, *LORAS.names()],
                    default=NO_LORA,
                    optional=True,
                    tooltip="A LoRA to merge into the model before it is quantized.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    optional=True,
                    tooltip="How strongly the LoRA is merged.",
                ),
                io.Conditioning.Input("positive", optional=True, tooltip=f"The prompt of the check. {_CHECK}"),
                io.Vae.Input("vae", optional=True, tooltip=f"Decodes the pictures of the check. {_CHECK}"),
                io.Latent.Input("latent_image", optional=True, tooltip=f"As for KSampler; gives the size. {_CHECK}"),
                io.Int.Input(
                    "steps",
                    default=20,
                    min=1,
                    max=100,
                    optional=True,
                    tooltip="Of each picture of the check; with a Lightning LoRA merged, those that it wants.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="filename", tooltip="The new file's name in models/diffusion_models."),
                io.String.Output(display_name="report", tooltip="Size, types, SHA-256, times, and the check's SSIM."),
                io.Image.Output(
                    display_name="comparison",
                    tooltip="The pictures of the check, the source's on the left. Without a check what is connected "
                    "here does not run.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, model_name: str | None = None, lora_name: str | None = None, **_: object) -> str:
        """Runs again when source or LoRA has changed on disk; one that comes over a link is not known yet."""
        lora = LORAS.fingerprint(lora_name) if lora_name and lora_name != NO_LORA else ""
        return (MODELS.fingerprint(model_name) if model_name else "") + lora

    @classmethod
    def execute(
        cls,
        model_name: str,
        qtype: str,
        filename: str,
        lora_name: str = NO_LORA,
        strength: float = 1.0,
        positive: io.Conditioning.Type | None = None,
        vae: io.Vae.Type | None = None,
        latent_image: io.Latent.Type | None = None,
        steps: int = 20,
    ) -> io.NodeOutput:
        """Raises QuantizeError or CheckpointError for a source, LoRA or name that will not do."""
        given = [each is not None for each in (positive, vae, latent_image)]
        if any(given) and not all(given):
            raise ValueError(f"positive, vae and latent_image: {sum(given)} connected, expected none or all. {_CHECK}")
        check = None if positive is None or latent_image is None else Check(positive, vae, latent_image, steps)
        lora = None if lora_name == NO_LORA else lora_name
        name, report, pictures = quantize_model(model_name, qtype, filename, lora, strength, check)
        return io.NodeOutput(name, report, ExecutionBlocker(None) if pictures is None else pictures)


NODES = [KontextQuantize]
