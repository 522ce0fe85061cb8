"""KontextOptimize: how a Kontext MODEL is run, from one word or choice by choice."""

from __future__ import annotations

from comfy_api.latest import io

from ..bridge import optimize
from ..engine.attention.backends import BACKENDS
from ..engine.cache.first_block import ORDERS, FirstBlockSettings
from ..engine.cache.references import ReferenceSettings
from ..engine.tiers.presets import AS_LOADED, AUTO, COMPILE_MODES, FP8, PRECISIONS, PRESETS, Choices

CUSTOM = "custom"
_ONLY = "With preset custom. "


class KontextOptimize(io.ComfyNode):
    """Wraps `bridge.optimize`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs: model, preset, and those of preset custom. Outputs: MODEL, report."""
        usual = FirstBlockSettings()
        return io.Schema(
            node_id="KontextOptimize",
            display_name="Optimize Kontext",
            category="Kontext",
            description="Makes a Kontext MODEL sample faster: spares steps that change little, fuses what lies between "
            "the products, takes the fastest attention; after each run it says under the node what that did.",
            search_aliases=["first block cache", "teacache", "easycache", "torch compile", "sage attention", "speed"],
            inputs=[
                io.Model.Input("model", tooltip="From Load Kontext Model, before or after Load Kontext LoRA."),
                io.Combo.Input(
                    "preset",
                    options=[*PRESETS, CUSTOM],
                    default="balanced",
                    tooltip="off: nothing. quality: every step computed, fused kernels on a card. balanced: also skips "
                    "steps that change little. fast: skips more of them, keeps references over some steps, multiplies "
                    "and attends in FP8 where the card can. low memory: as balanced, nothing fused, "
                    "attention in slices. custom: the inputs below.",
                ),
                io.Float.Input(
                    "threshold",
                    default=usual.threshold,
                    min=0.0,
                    max=2.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip=_ONLY + "A step is skipped where the first block's work changes by less than this share "
                    "since the last computed step; 0 computes every step.",
                ),
                io.Combo.Input(
                    "extrapolation",
                    options=[str(order) for order in ORDERS],
                    default=str(usual.order),
                    optional=True,
                    advanced=True,
                    tooltip=_ONLY + "What a skipped step takes from computed ones: 0 the last one's work as it is, 1 "
                    "the line through the last two, 2 the parabola through the last three.",
                ),
                io.Float.Input(
                    "start",
                    default=usual.start,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip=_ONLY + "Share of the run up to which every step is computed.",
                ),
                io.Float.Input(
                    "end",
                    default=usual.end,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip=_ONLY + "Share of the run from which every step is computed.",
                ),
                io.Int.Input(
                    "most_skips",
                    default=usual.most_skips,
                    min=1,
                    max=100,
                    optional=True,
                    advanced=True,
                    tooltip=_ONLY + "Steps skipped in a row at most.",
                ),
                io.Float.Input(
                    "target_ssim",
                    default=0.0,
                    min=0.0,
                    max=0.999,
                    step=0.005,
                    optional=True,
                    advanced=True,
                    tooltip=_ONLY + "Above 0 it finds the threshold itself: the first run of a kind makes its picture "
                    "several times and keeps the fastest setting that is so alike (SSIM) to the one with every step "
                    "computed. Needs the VAE.",
                ),
                io.Combo.Input(
                    "compile",
                    options=list(COMPILE_MODES),
                    default=AUTO,
                    optional=True,
                    advanced=True,
                    tooltip=_ONLY
                    + "What lies between the products of a block. auto: fused on a card with Triton, else off. "
                    "fused: our own kernels, ready at once. default: torch.compile. max-autotune-no-cudagraphs tries "
                    "more and takes longer the first time.",
                ),
                io.Combo.Input(
                    "attention",
                    options=[AUTO, "comfyui", *BACKENDS, FP8],
                    default=AUTO,
                    optional=True,
                    advanced=True,
                    tooltip=_ONLY + "auto: the fastest exact one of your card, found by timing them once. sage "
                    "and fp8 compute in 8 bits, so the picture changes; fp8 needs a Hopper card and the package "
                    "nvidia-cudnn-frontend. sliced takes little memory on anything.",
                ),
                io.Int.Input(
                    "reference_interval",
                    default=1,
                    min=1,
                    max=100,
                    optional=True,
                    advanced=True,
                    tooltip=_ONLY + "Reference pictures are computed at the first of every so many computed steps; "
                    "in between their keys and values are kept and only text and picture are "
                    "computed. 1 computes them at every step.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="For target_ssim, which compares pictures."),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default=AS_LOADED,
                    optional=True,
                    advanced=True,
                    tooltip=_ONLY + "fp8: the products in the blocks are in 8 bits, a little off, on NVIDIA cards "
                    "of the 40 series, Hopper or newer. Takes 8.6 GB more on the card at FLUX's full size. mxfp8 and "
                    "nvfp4 (4 bits, 4.8 GB): on the 50 series and other Blackwell cards; not tried on one yet.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model so run; the one that came in stays as it was."),
                io.String.Output(display_name="report", tooltip="What will be done here, and what cannot."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: io.Model.Type,
        preset: str,
        threshold: float = 0.12,
        extrapolation: str = "1",
        start: float = 0.0,
        end: float = 1.0,
        most_skips: int = 4,
        target_ssim: float = 0.0,
        compile: str = AUTO,
        attention: str = AUTO,
        reference_interval: int = 1,
        vae: io.Vae.Type | None = None,
        precision: str = AS_LOADED,
    ) -> io.NodeOutput:
        """Raises ValueError for a MODEL of another loader, or target_ssim without a VAE."""
        choices = PRESETS.get(preset)
        if choices is None:
            cache = FirstBlockSettings(threshold, int(extrapolation), start, end, most_skips)
            references = ReferenceSettings(interval=reference_interval) if reference_interval > 1 else None
            choices = Choices(cache, compile, attention, target_ssim, references, precision)
        changed, report = optimize.apply(model, choices, cls.hidden.unique_id, vae)
        return io.NodeOutput(changed, report)


NODES = [KontextOptimize]
