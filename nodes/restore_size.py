"""KontextRestoreSize: a result at the size of the picture it was made from."""

from __future__ import annotations

from comfy_api.latest import io

from ..engine.references.pictures import bring_back, split
from ..engine.references.sizes import FITS, Fit


class KontextRestoreSize(io.ComfyNode):
    """Wraps `engine.references.pictures.bring_back`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs: image, original, fit. Output: IMAGE."""
        return io.Schema(
            node_id="KontextRestoreSize",
            display_name="Restore Kontext Size",
            category="Kontext",
            description="Brings an edited picture back to the size of the picture it was made from, undoing what "
            "Encode Kontext References did to bring it onto the model's grid.",
            search_aliases=["inverse crop", "original size", "uncrop", "unpad"],
            inputs=[
                io.Image.Input("image", tooltip="The edited picture, as VAE Decode gives it."),
                io.Image.Input("original", tooltip="The picture that gave the result its shape."),
                io.Combo.Input(
                    "fit",
                    options=list(FITS),
                    default=FITS[0],
                    tooltip="What Encode Kontext References was set to. With crop, the strip that was cut off comes "
                    "from the original.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="At the original's size.")],
        )

    @classmethod
    def execute(cls, image: io.Image.Type, original: io.Image.Type, fit: Fit) -> io.NodeOutput:
        """Raises ValueError for what is no picture."""
        (first, *_) = split(original, "original")
        return io.NodeOutput(bring_back(image[..., :3].float(), first, fit))


NODES = [KontextRestoreSize]
