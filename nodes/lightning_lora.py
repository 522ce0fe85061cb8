"""KontextLightningLoRA: a LoRA on a Kontext MODEL, and the steps and guidance that it wants."""

from __future__ import annotations

from comfy_api.latest import io

from ..bridge import lora
from ..bridge.paths import LORAS
from ..engine.lora.profiles import AUTO, PROFILES, choose


class KontextLightningLoRA(io.ComfyNode):
    """Wraps `bridge.lora`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs: model, lora_name, strength, profile. Outputs: MODEL, steps, guidance, report."""
        folders = ", ".join(LORAS.directories())
        return io.Schema(
            node_id="KontextLightningLoRA",
            display_name="Load Kontext LoRA",
            category="Kontext",
            description="Applies a LoRA of any kind to a Kontext MODEL, quantized or not, and says with how many steps "
            "and what guidance to sample: few of them for a Lightning LoRA.",
            search_aliases=["lora loader", "lightning lora", "turbo lora", "hyper lora", "lora gguf", "dora", "lokr"],
            inputs=[
                io.Model.Input("model", tooltip="From Load Kontext Model or another Load Kontext LoRA; they add up."),
                io.Combo.Input(
                    "lora_name",
                    options=LORAS.names(),
                    tooltip=f"A LoRA of FLUX.1 dev or Kontext as .safetensors. Folders searched: {folders}. "
                    "Press R after adding a file.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-lora.STRONGEST,
                    max=lora.STRONGEST,
                    step=0.005,
                    tooltip="How strongly it changes the model; 0 leaves the model as it is. Hyper-FLUX.1-dev-8steps "
                    "was made for 0.125, most others for 1.",
                ),
                io.Combo.Input(
                    "profile",
                    options=[AUTO, *PROFILES],
                    default=AUTO,
                    tooltip="What steps and guidance say. auto recognises the known step-distilled LoRAs; lightning is "
                    "for another of them, none for an ordinary LoRA.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model with the LoRA; the one that came in stays without."),
                io.Int.Output(display_name="steps", tooltip="For the sampler or scheduler."),
                io.Float.Output(display_name="guidance", tooltip="For FluxGuidance."),
                io.String.Output(display_name="report", tooltip="What matched, what was skipped and why."),
            ],
        )

    @classmethod
    def validate_inputs(cls, lora_name: str | None = None) -> bool | str:
        """Says where to get a file that is not there; a name that comes over a link is not known yet."""
        return LORAS.missing(lora_name) or True

    @classmethod
    def fingerprint_inputs(cls, lora_name: str | None = None, **_: object) -> str:
        """Applies it again when the file has changed on disk; a name that comes over a link is not known yet."""
        return LORAS.fingerprint(lora_name) if lora_name else ""

    @classmethod
    def execute(cls, model: io.Model.Type, lora_name: str, strength: float, profile: str) -> io.NodeOutput:
        """Raises LoraError for a file that is no LoRA of this model or a strength out of range."""
        read = lora.read(LORAS.path(lora_name), model)
        chosen, why = choose(read, profile)
        changed = lora.apply(model, read, strength)
        return io.NodeOutput(changed, chosen.steps, chosen.guidance, lora.tell(read, strength, chosen, why))


NODES = [KontextLightningLoRA]
