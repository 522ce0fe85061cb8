"""KontextMaskQuality: is a mask good enough to edit with, and if not, why, and a cleaned one."""

from __future__ import annotations

import torch
from comfy.model_management import throw_exception_if_processing_interrupted
from comfy.utils import ProgressBar
from comfy_api.latest import io

from ..bridge.notes import show_here
from ..engine.metrics.mask_batch import check
from ..engine.metrics.mask_cleaning import Cleaning


class KontextMaskQuality(io.ComfyNode):
    """Wraps `engine.metrics.mask_batch.check`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs: mask, image, and what to clean. Outputs: mask, grade, score, overlay, report."""
        return io.Schema(
            node_id="KontextMaskQuality",
            display_name="Check Mask",
            category="Kontext",
            description="Measures a mask, grades it high, standard or poor for editing, says what to do about what it "
            "finds, and cleans it.",
            search_aliases=["mask quality", "mask check", "feather mask", "grow mask", "fill holes", "clean mask"],
            inputs=[
                io.Mask.Input(
                    "mask", tooltip="The mask of the edit: white changes. One, or a batch such as a video's."
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The picture that is edited: it lies under the overlay, and its size is compared with the "
                    "mask's.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Makes the mask sharp: from this value on a pixel is white, below it black. 0: leaves it.",
                ),
                io.Int.Input(
                    "fill_holes",
                    default=0,
                    min=0,
                    max=10_000_000,
                    optional=True,
                    tooltip="Fills holes of fewer pixels than this. 0: none.",
                ),
                io.Int.Input(
                    "drop_islands",
                    default=0,
                    min=0,
                    max=10_000_000,
                    optional=True,
                    tooltip="Drops separate parts of fewer pixels than this. 0: none.",
                ),
                io.Int.Input(
                    "grow",
                    default=0,
                    min=-1000,
                    max=1000,
                    optional=True,
                    tooltip="Moves the edge out by so many pixels, below 0 inwards. The edge becomes sharp, or as soft "
                    "as feather says.",
                ),
                io.Float.Input(
                    "feather",
                    default=0.0,
                    min=0.0,
                    max=500.0,
                    step=0.5,
                    optional=True,
                    tooltip="The width in pixels over which the edge fades, half on each side. 0: leaves the edge.",
                ),
            ],
            outputs=[
                io.Mask.Output(display_name="mask", tooltip="Cleaned as the inputs say; else as it came, within 0-1."),
                io.String.Output(
                    display_name="grade",
                    tooltip="high: sharp and clean. standard: an edge of 5-10 pixels. poor: blurred, gray, or nothing "
                    "chosen. Of the mask that came in; of a batch, its worst.",
                ),
                io.Float.Output(
                    display_name="score", tooltip="0-1: high from 0.85, standard from 0.6. Of a batch, the lowest."
                ),
                io.Image.Output(
                    display_name="overlay",
                    tooltip="The mask on its picture: cyan its edge, yellow soft, red islands, blue small holes.",
                ),
                io.String.Output(
                    display_name="report", tooltip="What was found, what to do about it, and the measures."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        mask: torch.Tensor,
        image: torch.Tensor | None = None,
        threshold: float = 0.0,
        fill_holes: int = 0,
        drop_islands: int = 0,
        grow: int = 0,
        feather: float = 0.0,
    ) -> io.NodeOutput:
        """Raises ValueError for a mask or picture of another shape, or with values that are not finite."""
        bar = ProgressBar(len(mask))

        def one_done() -> None:
            bar.update(1)
            throw_exception_if_processing_interrupted()

        checked = check(mask, image, Cleaning(threshold, fill_holes, drop_islands, grow, feather), one_done)
        show_here(checked.summary)
        badge = {"grade": checked.grade, "text": f"{checked.grade} {checked.score:.2f}"}
        out = checked.mask, checked.grade, checked.score, checked.overlay, checked.report
        return io.NodeOutput(*out, ui={"kontext_badge": [badge]})


NODES = [KontextMaskQuality]
