"""KontextEncodeReferences: pictures into conditioning, the latent to start from, and what that costs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..bridge import references as bridge
from ..bridge.notes import show_here
from ..engine.references.layout_picture import draw_layout
from ..engine.references.plan import LAYOUTS, describe, plan, result_size
from ..engine.references.sizes import FITS, MEGAPIXEL, Fit, deviation
from .reference import KontextReferenceType, references_of

MOST = 16


class KontextEncodeReferences(io.ComfyNode):
    """Wraps `bridge.references`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs: conditioning, vae, references, layout, sizes. Outputs: CONDITIONING, LATENT, layout, report."""
        picture = io.MultiType.Input("reference", types=[io.Image, KontextReferenceType])
        return io.Schema(
            node_id="KontextEncodeReferences",
            display_name="Encode Kontext References",
            category="Kontext",
            description="Brings any number of reference pictures into the conditioning: scales each to its share of "
            "the budget, encodes it once, places it, and gives the empty latent of the result's size.",
            search_aliases=["reference latent", "multi reference", "multiple images", "kontext image scale", "stitch"],
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="The prompt, before or after FluxGuidance."),
                io.Vae.Input("vae", tooltip="FLUX.1's VAE (ae.safetensors), or the demo's for the demo model."),
                io.Autogrow.Input(
                    "references",
                    template=io.Autogrow.TemplatePrefix(picture, prefix="image", min=1, max=MOST),
                    tooltip="Pictures, or Kontext References; in the prompt the first is 'the first image'. Each "
                    "picture of a batch counts as one.",
                ),
                io.Combo.Input(
                    "layout",
                    options=list(LAYOUTS),
                    default=LAYOUTS[0],
                    tooltip="offset: beside each other on one plane, as FLUX.1 Kontext does it. index: each on a plane "
                    "of its own. stitched: as one picture.",
                ),
                io.Float.Input(
                    "megapixels",
                    default=1.0,
                    min=0.0,
                    max=4.0,
                    step=0.05,
                    tooltip="Size of the result in units of 1024x1024 pixels; 0: that of the reference that gives its "
                    "shape. FLUX.1 Kontext was made for about 1.",
                ),
                io.Float.Input(
                    "total_megapixels",
                    default=0.0,
                    min=0.0,
                    max=16.0,
                    step=0.1,
                    tooltip="Budget of all references together: with 1, six references cost what one of 1024x1024 "
                    "does. 0: each is as large as the result.",
                ),
                io.Int.Input(
                    "shape_of",
                    default=1,
                    min=1,
                    max=99,
                    tooltip="Which reference gives the result its shape, counted from 1.",
                ),
                io.Combo.Input(
                    "fit",
                    options=list(FITS),
                    default=FITS[0],
                    tooltip="Where sides are no multiples of 16 pixels. pad: the border's colors fill up; crop: a "
                    "strip is cut off; fit: stretched. Restore Kontext Size undoes it.",
                ),
                io.Boolean.Input(
                    "keep_on_disk",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Encoded pictures are kept in memory until ComfyUI stops; on: on disk too, up to 512 MB.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(tooltip="With the references, for the sampler's positive input."),
                io.Latent.Output(tooltip="Empty, of the result's size, for the sampler."),
                io.Image.Output(display_name="layout", tooltip="What the model sees, and where."),
                io.String.Output(display_name="report", tooltip="Tokens, sizes, cost, and what was encoded."),
            ],
        )

    @classmethod
    def execute(
        cls,
        conditioning: io.Conditioning.Type,
        vae: Any,
        references: dict[str, Any],
        layout: str,
        megapixels: float,
        total_megapixels: float,
        shape_of: int,
        fit: Fit,
        keep_on_disk: bool = False,
    ) -> io.NodeOutput:
        """Raises ValueError for a picture that cannot be one, a VAE of another kind, or no picture at all."""
        bridge.check_vae(vae)
        given = [
            replace(each, name=f"Reference {number}")
            for number, each in enumerate(
                (
                    each
                    for name, value in references.items()
                    if value is not None
                    for each in references_of(value, name)
                ),
                1,
            )
        ]
        if not given:
            raise ValueError("references: no picture came in. Connect one to image0.")
        if not 1 <= shape_of <= len(given):
            raise ValueError(f"shape_of is {shape_of}, and there are {len(given)} references. Set it to one of them.")
        shape = given[shape_of - 1].shape
        planned = plan(given, result_size(shape, megapixels), layout, total_megapixels, fit)
        latents, weights, ways = bridge.encode_plan(vae, planned, keep_on_disk)
        size = planned.size
        lines = [f"Result: {size[0]}x{size[1]}, {size[0] * size[1] / MEGAPIXEL:.2f} megapixels, {_shape(shape, size)}."]
        lines += [f"{describe(each, fit)}." for each in planned.placed]
        lines += [f"{each.name}: left out, its weight is 0." for each in planned.left_out]
        counts = {way: ways.count(way) for way in dict.fromkeys(ways)}
        lines += [f"Through the VAE: {', '.join(f'{n} {way}' for way, n in counts.items())}."] if ways else []
        lines += bridge.forecast(conditioning, planned)
        report = "\n".join(lines)
        show_here(report)
        out = bridge.with_references(conditioning, latents, weights, layout)
        return io.NodeOutput(out, bridge.empty_latent(planned), draw_layout(planned), report)


def _shape(shape: tuple[int, int], size: tuple[int, int]) -> str:
    bent = deviation(shape, size)
    return "exactly in shape" if not bent else f"{abs(bent):.2%} {'wider' if bent > 0 else 'narrower'} in shape"


NODES = [KontextEncodeReferences]
