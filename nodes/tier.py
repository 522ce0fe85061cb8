"""KontextTier: what to sample with on a machine, for a purpose."""

from __future__ import annotations

import comfy.samplers
from comfy_api.latest import io

from ..bridge.tiers import AUTO, choose
from ..engine.tiers.tiers import BFL_GUIDANCE, STANDARD, TIERS, USE_CASES

# The lists themselves as types: KSampler's inputs take no other, newer samplers' inputs take any list.
Sampler, Scheduler = io.Custom(comfy.samplers.KSampler.SAMPLERS), io.Custom(comfy.samplers.KSampler.SCHEDULERS)


class KontextTier(io.ComfyNode):
    """Wraps `bridge.tiers.choose`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs: tier, use_case. Outputs: steps, guidance, width, height, sampler, scheduler, preset, report,

        megapixels.
        """
        return io.Schema(
            node_id="KontextTier",
            display_name="Kontext Settings for This Machine",
            category="Kontext",
            description="Says with how many steps, what guidance and at what size to edit on a machine, reads which "
            "machine this is, and forecasts memory and time before the run.",
            search_aliases=["hardware", "tier", "vram", "preset", "settings", "auto", "low memory"],
            inputs=[
                io.Combo.Input(
                    "tier",
                    options=[AUTO, *TIERS],
                    default=AUTO,
                    tooltip="The kind of machine. auto reads this one's card and memory and says what it chose and "
                    "why. The others are by memory of the card.",
                ),
                io.Combo.Input(
                    "use_case",
                    options=[STANDARD, *USE_CASES],
                    default=STANDARD,
                    tooltip="standard: the tier's own settings. interactive and gallery batch are for a step-distilled "
                    "LoRA (8 steps). production, portfolio and premium are larger and slower in this order.",
                ),
            ],
            outputs=[
                io.Int.Output(display_name="steps", tooltip="For KSampler or BasicScheduler."),
                io.Float.Output(
                    display_name="guidance",
                    tooltip=f"For FluxGuidance. 5 holds on to the prompt strongly; Black Forest Labs' own default for "
                    f"Kontext is {BFL_GUIDANCE:g}.",
                ),
                io.Int.Output(display_name="width", tooltip="Of the new picture, in pixels."),
                io.Int.Output(display_name="height", tooltip="Of the new picture, in pixels."),
                Sampler.Output(display_name="sampler", tooltip="For sampler_name of KSampler or KSamplerSelect."),
                Scheduler.Output(display_name="scheduler", tooltip="For KSampler or BasicScheduler."),
                io.Combo.Output(display_name="preset", tooltip="For Optimize Kontext."),
                io.String.Output(display_name="report", tooltip="What was chosen and why, forecast and warnings."),
                io.Float.Output(
                    display_name="megapixels",
                    tooltip="The same size for Encode Kontext References, which keeps the picture's own shape.",
                ),
            ],
        )

    @classmethod
    def execute(cls, tier: str, use_case: str) -> io.NodeOutput:
        """Shows the report under the node, too."""
        chosen, report = choose(tier, use_case)
        size = chosen.width, chosen.height
        how = chosen.sampler, chosen.scheduler, chosen.preset
        return io.NodeOutput(chosen.steps, chosen.guidance, *size, *how, report, chosen.megapixels)


NODES = [KontextTier]
