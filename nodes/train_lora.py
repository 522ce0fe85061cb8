"""KontextTrainLoRA: a LoRA for a Kontext MODEL from a folder of edits."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..bridge import training
from ..bridge.notes import show_here
from ..engine.training.lora import Settings
from ..engine.training.triples import FORMAT, read_picture


class KontextTrainLoRA(io.ComfyNode):
    """Wraps `bridge.training.train_lora`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs: model, clip, vae, folder, lora_name, steps, rank, learning_rate.

        Outputs: lora_name, curve, report.
        """
        return io.Schema(
            node_id="KontextTrainLoRA",
            display_name="Train Kontext LoRA",
            category="Kontext",
            description="Trains a LoRA for a Kontext MODEL on a folder of edits, pictures before and after, and writes "
            "it into models/loras. Queue it again to go on with one that was cancelled.",
            search_aliases=["train lora", "lora training", "fine-tune", "finetune", "trainer"],
            is_output_node=True,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="From Load Kontext Model or Load Kontext Demo Model, without a LoRA. The training reads "
                    "its file; the MODEL itself stays as it is.",
                ),
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the model; it reads the instructions."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model; it encodes the pictures."),
                io.String.Input(
                    "folder",
                    default="",
                    tooltip="The folder of the edits: its path, or its name in ComfyUI's input directory. "
                    f"{FORMAT} Sides are multiples of 16 pixels.",
                ),
                io.String.Input(
                    "lora_name",
                    default="my_edit",
                    tooltip="The name of the new file in models/loras, without .safetensors. A file that is there "
                    "already is never overwritten.",
                ),
                io.Int.Input(
                    "steps",
                    default=Settings.steps,
                    min=1,
                    max=100_000,
                    tooltip="How long to train. Each step learns from one edit, drawn at random.",
                ),
                io.Int.Input(
                    "rank",
                    default=Settings.rank,
                    min=1,
                    max=128,
                    tooltip="How much the LoRA can hold; its file grows with it. Alpha is twice the rank.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=Settings.rate,
                    min=1e-5,
                    max=0.1,
                    step=1e-5,
                    tooltip="How far each step goes. Lower it where the curve jumps or the training fails, raise it "
                    "where the curve stays flat.",
                ),
            ],
            outputs=[
                io.Combo.Output(display_name="lora_name", tooltip="The new file, for lora_name of Load Kontext LoRA."),
                io.Image.Output(
                    display_name="curve", tooltip="The loss of every step; its running mean is the strong line."
                ),
                io.String.Output(display_name="report", tooltip="The training, line by line."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str | None = None, **_: object) -> str:
        """Runs again when an edit has changed on disk; a folder that comes over a link is not known yet."""
        return training.last_changed(folder) if folder else ""

    @classmethod
    def execute(
        cls,
        model: io.Model.Type,
        clip: io.Clip.Type,
        vae: io.Vae.Type,
        folder: str,
        lora_name: str,
        steps: int,
        rank: int,
        learning_rate: float,
    ) -> io.NodeOutput:
        """Raises ValueError for a MODEL that cannot be trained, TrainingDataError for edits or a bad name."""
        settings = Settings(rank=rank, alpha=2 * rank, rate=learning_rate, steps=steps)
        base, out, lines = training.base_of(model), training.new_lora(lora_name), []

        def report(text: str) -> None:
            lines.append(text)
            show_here(text)

        training.train_lora(training.edits_in(folder), out, base, lambda: (clip, vae), settings, report)
        curve = read_picture(training.curve_of(out))[None]
        return io.NodeOutput(out.name, curve, "\n".join(lines), ui=ui.PreviewImage(curve, cls=cls))


NODES = [KontextTrainLoRA]
