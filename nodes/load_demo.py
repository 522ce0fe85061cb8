"""KontextLoadDemo: the small trained model that ships with the pack."""

from __future__ import annotations

from comfy_api.latest import io

from ..bridge import demo


class KontextLoadDemo(io.ComfyNode):
    """Wraps `bridge.demo.load_demo`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Input: precision. Outputs: MODEL, CLIP, VAE."""
        options = demo.precisions() or ["BF16"]  # never an empty list: running then says what is missing
        return io.Schema(
            node_id="KontextLoadDemo",
            display_name="Load Kontext Demo Model",
            category="Kontext",
            description="Loads the small model that ships with KontextKit: it draws and edits scenes of simple shapes, "
            "in seconds, without a download. Its help page lists the words it knows.",
            search_aliases=["kontext demo", "tiny flux", "example model", "test model"],
            inputs=[
                io.Combo.Input(
                    "precision",
                    options=options,
                    default=options[0],
                    tooltip="How the transformer's weights are stored. BF16 is as it was trained; the others are "
                    "quantized, to try what that does to a picture. The K types are made on first use, in seconds.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="For KSampler, BasicGuider, CFGGuider and every other MODEL input."),
                io.Clip.Output(
                    tooltip="For CLIPTextEncode or CLIPTextEncodeFlux. It reads whole words, some sixty of them, and "
                    "says on the node which words of a prompt it ignored."
                ),
                io.Vae.Output(tooltip="For VAE Encode and VAE Decode, tiled or not."),
            ],
        )

    @classmethod
    def validate_inputs(cls, precision: str | None = None) -> bool | str:
        """Says how to get a missing file back, where ComfyUI's own check would only say that it is not in the list."""
        if precision is None:  # comes over a link
            return True
        if precision not in demo.TRANSFORMERS:
            return f"{precision!r} is none of {', '.join(demo.precisions())}"
        return demo.missing(precision) or True

    @classmethod
    def fingerprint_inputs(cls, precision: str) -> str:
        """Loads again when a file has changed on disk."""
        return demo.fingerprint(precision)

    @classmethod
    def execute(cls, precision: str) -> io.NodeOutput:
        """Raises CheckpointError for a missing or damaged file."""
        return io.NodeOutput(*demo.load_demo(precision))


NODES = [KontextLoadDemo]
