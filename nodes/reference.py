"""KontextReference: a picture with a weight, a size and a mask, for Encode Kontext References."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..engine.references.pictures import check_weight, masks_for, split
from ..engine.references.plan import Reference

KontextReferenceType = io.Custom("KONTEXT_REFERENCE")


def references_of(value: Any, name: str) -> list[Reference]:
    """What came in through an input: pictures, each a reference, or the references of this node."""
    if isinstance(value, list):
        return value
    return [Reference(picture, name=name) for picture in split(value, name)]


class KontextReference(io.ComfyNode):
    """Wraps `engine.references.plan.Reference`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs: image, weight, megapixels, mask. Output: KONTEXT_REFERENCE."""
        return io.Schema(
            node_id="KontextReference",
            display_name="Kontext Reference",
            category="Kontext",
            description="A reference picture with a weight, a size and a mask of what matters in it, for Encode "
            "Kontext References. A picture without any of these can be connected there directly.",
            search_aliases=["reference weight", "context weight", "reference strength", "kontext image"],
            inputs=[
                io.Image.Input("image", tooltip="The picture; each of a batch becomes a reference."),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much the picture counts, exactly: at 0.5 each of its tokens has half its share of the "
                    "attention; 1 is as without this node, 0 leaves the picture out.",
                ),
                io.Float.Input(
                    "megapixels",
                    default=0.0,
                    min=0.0,
                    max=4.0,
                    step=0.05,
                    tooltip="Its size for the model, in units of 1024x1024 pixels; 0: as large as the result. Smaller "
                    "is faster and shows less detail.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="What of the picture matters (white, or what you painted); the rest is not shown to the "
                    "model and costs nothing.",
                ),
            ],
            outputs=[KontextReferenceType.Output(display_name="reference", tooltip="For Encode Kontext References.")],
        )

    @classmethod
    def execute(
        cls, image: io.Image.Type, weight: float, megapixels: float, mask: io.Mask.Type | None = None
    ) -> io.NodeOutput:
        """Raises ValueError for a picture or a mask that cannot be used, and for a weight outside 0-1."""
        check_weight(weight)
        pictures = split(image, "image")
        masks = masks_for(mask, pictures)
        return io.NodeOutput(
            [Reference(picture, weight, megapixels, one, "image") for picture, one in zip(pictures, masks, strict=True)]
        )


NODES = [KontextReference]
