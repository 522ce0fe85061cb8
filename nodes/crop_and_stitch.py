"""KontextCropToMask and KontextStitch: an edit at full resolution around a mask, put back without a seam."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..bridge.notes import show_here
from ..engine.inpaint import crop
from ..engine.metrics.pictures import ready_image, ready_mask

Stitch = io.Custom("KONTEXT_STITCH")


class KontextCropToMask(io.ComfyNode):
    """Wraps `engine.inpaint.crop.crop_to_mask`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs: image, mask, context, size. Outputs: image, mask, stitch."""
        return io.Schema(
            node_id="KontextCropToMask",
            display_name="Crop to Mask",
            category="Kontext",
            description="Cuts out the part of a picture around a mask and brings it to the model's size, so that a "
            "small change in a large picture is made in full resolution. Stitch puts the edited part back.",
            search_aliases=["inpaint crop", "crop and stitch", "crop by mask", "only masked area", "zoom"],
            inputs=[
                io.Image.Input("image", tooltip="The whole picture. Of a batch, all are cut at the same place."),
                io.Mask.Input("mask", tooltip="What should change; one for all pictures, or one for each."),
                io.Int.Input(
                    "context",
                    default=64,
                    min=0,
                    max=4096,
                    step=8,
                    tooltip="Pixels around the mask that the model sees too. More gives it more to go by, less gives "
                    "what changes more of its pixels.",
                ),
                io.Int.Input(
                    "size",
                    default=1024,
                    min=0,
                    max=4096,
                    step=16,
                    tooltip="The part is scaled to about size x size pixels, in its own shape: 1024 for FLUX.1 "
                    "Kontext, 256 for the demo model. 0: leaves it as it is.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The part, its sides multiples of 16."),
                io.Mask.Output(display_name="mask", tooltip="The mask of the part."),
                Stitch.Output(display_name="stitch", tooltip="For Stitch: the picture and where the part belongs."),
            ],
        )

    @classmethod
    def execute(cls, image: torch.Tensor, mask: torch.Tensor, context: int, size: int) -> io.NodeOutput:
        """Raises ValueError for an empty mask, for one of another size, and for values that are not finite."""
        said: list[str] = []
        ready_image(image, "image", [])
        image = image.expand(-1, -1, -1, max(3, image.shape[3]))  # gray as RGB
        mask = ready_mask(mask, said)
        part, part_mask, cut = crop.crop_to_mask(image, mask.to(image.device), context, size)
        place = f"{cut.width}x{cut.height} at x {cut.left}, y {cut.top}"
        show_here("\n".join((*said, f"{place}, as {part.shape[2]}x{part.shape[1]}.")))
        return io.NodeOutput(part[..., :3], part_mask, cut)


class KontextStitch(io.ComfyNode):
    """Wraps `engine.inpaint.crop.stitch`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs: stitch, image, feather, match_colors. Output: image."""
        return io.Schema(
            node_id="KontextStitch",
            display_name="Stitch",
            category="Kontext",
            description="Puts an edited part back into the picture that Crop to Mask cut it from. Outside the mask the "
            "picture stays as it was, bit for bit.",
            search_aliases=["inpaint stitch", "crop and stitch", "uncrop", "paste back", "composite"],
            inputs=[
                Stitch.Input("stitch", tooltip="From Crop to Mask: the picture, and where the part belongs."),
                io.Image.Input("image", tooltip="The edited part, of any size."),
                io.Int.Input(
                    "feather",
                    default=8,
                    min=0,
                    max=512,
                    tooltip="Pixels inside the mask's edge over which the edited part fades in. 0: a sharp seam.",
                ),
                io.Boolean.Input(
                    "match_colors",
                    default=True,
                    tooltip="Brings the part's brightness, contrast and color to the original's, as they differ in a "
                    "ring around the mask. Off where the edit changes the light on purpose.",
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The whole picture, in its own size.")],
        )

    @classmethod
    def execute(cls, stitch: crop.Crop, image: torch.Tensor, feather: int, match_colors: bool) -> io.NodeOutput:
        """Raises ValueError for another number of pictures, and for values that are not finite."""
        part = ready_image(image, "image", []).movedim(1, -1)
        return io.NodeOutput(crop.stitch(stitch, part, feather, match_colors))


NODES = [KontextCropToMask, KontextStitch]
