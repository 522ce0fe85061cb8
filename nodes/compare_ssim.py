"""KontextCompareSSIM: how alike two pictures are, with a slider and a map of where they are not."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..bridge import runs
from ..bridge.notes import show_here
from ..bridge.perceptual import clip_similarity, lpips_distance
from ..engine.metrics.comparison import INSIDE, OUTSIDE, WHOLE, compare, grade
from ..engine.metrics.comparison_report import describe, verdict
from ..engine.metrics.heat_map import draw_heat_map
from ..engine.metrics.pictures import REFUSE, RESIZE, ready_mask, ready_pair

RGB, LUMA = "RGB", "luma"


class KontextCompareSSIM(io.ComfyNode):
    """Wraps `engine.metrics.comparison.compare`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs: image_a, image_b, threshold, and options. Outputs: ssim, grade, passed, map, report."""
        return io.Schema(
            node_id="KontextCompareSSIM",
            display_name="Compare Images (SSIM)",
            category="Kontext",
            description="Measures how alike two pictures are (SSIM, PSNR, mean difference), shows them under a slider "
            "and draws a map of where they differ.",
            search_aliases=["ssim", "psnr", "lpips", "image quality", "difference", "before after", "compare images"],
            is_output_node=True,
            inputs=[
                io.Image.Input("image_a", tooltip="The picture that is right, or was before; the slider's left side."),
                io.Image.Input("image_b", tooltip="The picture to judge. A batch is compared pair by pair."),
                io.Float.Input(
                    "threshold",
                    default=0.95,
                    min=0.0,
                    max=1.0,
                    step=0.005,
                    tooltip="passed is true where every pair's SSIM is at least this.",
                ),
                io.Combo.Input(
                    "size_mismatch",
                    options=[REFUSE, RESIZE],
                    default=REFUSE,
                    optional=True,
                    tooltip="What to do with pictures of different sizes: stop and say so, or bring image_b to the "
                    "size of image_a, which lowers SSIM by itself.",
                ),
                io.Mask.Input("mask", optional=True, tooltip="For region, and for the table by_region."),
                io.Combo.Input(
                    "region",
                    options=[WHOLE, INSIDE, OUTSIDE],
                    default=WHOLE,
                    optional=True,
                    tooltip="Where to compare. Outside the mask of an edit, SSIM 1 says that nothing else changed.",
                ),
                io.Combo.Input(
                    "channels",
                    options=[RGB, LUMA],
                    default=RGB,
                    optional=True,
                    advanced=True,
                    tooltip="RGB: the mean of three channels. luma: brightness alone, as many papers do; it does not "
                    "see a change of color of the same brightness.",
                ),
                io.Boolean.Input(
                    "multi_scale",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="MS-SSIM, over five sizes of the picture: nearer to what people see from afar. Its values "
                    "are higher than SSIM's. Sides of at least 176 pixels.",
                ),
                io.Boolean.Input(
                    "by_region",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Adds a table to the report: SSIM of a 3x3 grid, or of each part of the mask.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="From Load CLIP Vision; adds how alike CLIP finds the pictures to the report.",
                ),
                io.ImageCompare.Input("compare_view", optional=True, tooltip="Both pictures under a slider."),
            ],
            outputs=[
                io.Float.Output(display_name="ssim", tooltip="Of all pairs, the mean; 1 for the same picture."),
                io.String.Output(
                    display_name="grade",
                    tooltip="identical, excellent (from 0.95), very good (0.9), good (0.85), acceptable (0.8), poor.",
                ),
                io.Boolean.Output(display_name="passed", tooltip="Whether every pair reaches the threshold."),
                io.Image.Output(
                    display_name="map",
                    tooltip="SSIM of every place in color, with a bar that says which color is which value.",
                ),
                io.String.Output(display_name="report", tooltip="All that was measured, in words and numbers."),
            ],
        )

    @classmethod
    def execute(
        cls,
        image_a: torch.Tensor,
        image_b: torch.Tensor,
        threshold: float,
        size_mismatch: str = REFUSE,
        mask: torch.Tensor | None = None,
        region: str = WHOLE,
        channels: str = RGB,
        multi_scale: bool = False,
        by_region: bool = False,
        clip_vision: io.ClipVision.Type | None = None,
        compare_view: object = None,
    ) -> io.NodeOutput:
        """Raises ValueError for pictures or a mask that cannot be compared."""
        a, b, said = ready_pair(image_a, image_b, size_mismatch)
        if mask is not None:
            mask = ready_mask(mask, said, a)
        found = compare(a, b, luma_only=channels == LUMA, multi_scale=multi_scale, region=region, mask=mask)
        perceptual = [("LPIPS", lpips_distance(a, b)), ("CLIP similarity", clip_similarity(clip_vision, a, b))]
        measured = f"{channels}{', multi-scale' if multi_scale else ''}, {region}"
        report = "\n".join((*said, describe(found, measured, threshold, perceptual, by_region, mask)))
        show_here("\n".join((*said, verdict(found, threshold))))
        passed, heat = found.rows[found.worst].ssim >= threshold, draw_heat_map(found.map)
        under_slider = (("a_images", a.movedim(1, -1)), ("b_images", b.movedim(1, -1)), ("images", heat))
        shown = {key: ui.PreviewImage(image.float(), cls=cls).as_dict()["images"] for key, image in under_slider}
        runs.add(ssim=found.ssim)
        word = grade(found.ssim)
        shown["kontext_badge"] = [{"grade": word, "text": f"{word} {found.ssim:.3f}"}]
        return io.NodeOutput(found.ssim, word, passed, heat, report, ui=shown)


NODES = [KontextCompareSSIM]
