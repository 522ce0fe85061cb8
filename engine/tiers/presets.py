"""What `KontextOptimize` may do to a MODEL, and its presets."""

from __future__ import annotations

from dataclasses import dataclass

from ..cache.first_block import FirstBlockSettings
from ..cache.references import ReferenceSettings

AUTO, OFF, FUSED = "auto", "off", "fused"
COMPILE_MODES = (AUTO, OFF, FUSED, "default", "max-autotune-no-cudagraphs")
AS_LOADED, FP8 = "as loaded", "fp8"
PRECISIONS = (AS_LOADED, FP8, "mxfp8", "nvfp4")  # of `engine.quant.narrow.FORMATS`


@dataclass(frozen=True)
class Choices:
    """cache: None computes every step. compile: one of COMPILE_MODES; FUSED
    compiles nothing of torch's, see `engine.flux.fused`. attention: a name of `engine.attention`, FP8 among them.

    target_ssim: above 0, the threshold is found that keeps a picture so alike to the one with every step computed.
    references: None computes them at every step. precision: one of PRECISIONS, of the products in the blocks.
    """

    cache: FirstBlockSettings | None = None
    compile: str = OFF
    attention: str = "comfyui"
    target_ssim: float = 0.0
    references: ReferenceSettings | None = None
    precision: str = AS_LOADED


PRESETS = {
    "off": Choices(),
    "quality": Choices(None, AUTO, AUTO),
    "balanced": Choices(FirstBlockSettings(threshold=0.12, order=1), AUTO, AUTO),
    "low memory": Choices(FirstBlockSettings(threshold=0.12, order=1), OFF, "sliced"),
    "fast": Choices(
        FirstBlockSettings(threshold=0.25, order=1), AUTO, FP8, references=ReferenceSettings(), precision=FP8
    ),
}
