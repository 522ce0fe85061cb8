"""KontextQualityLab: what a setting does to the pictures of one's own graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.samplers
import folder_paths
import numpy as np
import torch
from comfy_api.latest import io, ui

from ..bridge import quality_lab
from ..bridge.notes import show_here
from ..bridge.ways import CHANGES, Way
from ..engine.lab.settings import SETTINGS, listed, parse_values
from ..engine.lab.table import brief, markdown, raw


class KontextQualityLab(io.ComfyNode):
    """Wraps `bridge.quality_lab`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs: those of a KSampler with CFG 1, setting, values, seeds, prompts. Outputs: plot, sheet, table, raw."""
        usual = "; ".join(f"{name} {listed(SETTINGS[name].values)}" for name in CHANGES if SETTINGS[name].values)
        return io.Schema(
            node_id="KontextQualityLab",
            display_name="Kontext Quality Lab",
            category="Kontext",
            description="Makes the same pictures with several values of one setting and measures how alike they stay "
            "(SSIM) and how long they take: a table, a plot, the pictures side by side, and files of it all.",
            search_aliases=["xy plot", "sweep", "ssim", "benchmark", "compare settings", "steps", "grid"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="As you sample with it, LoRAs and Optimize Kontext included."),
                io.Conditioning.Input(
                    "positive",
                    tooltip="As for KSampler, with references and guidance. With prompts below only its words are "
                    "replaced.",
                ),
                io.Vae.Input("vae", tooltip="Decodes the pictures that are compared."),
                io.Latent.Input(
                    "latent_image", tooltip="As for KSampler, one picture. For denoise it is the picture to edit."
                ),
                io.Combo.Input(
                    "setting",
                    options=list(CHANGES),
                    default="steps",
                    tooltip="What changes from column to column. All else stays as it is wired here, and so made "
                    "pictures are the baseline.",
                ),
                io.String.Input(
                    "values",
                    default="",
                    tooltip=f"To try, with commas between. Empty: {usual}. For precision the names of files in "
                    "models/diffusion_models, or precisions of the demo model, such as Q8_0.",
                ),
                io.Int.Input(
                    "steps", default=28, min=1, max=200, tooltip="Of every picture, but where steps are the setting."
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=comfy.samplers.KSampler.SAMPLERS,
                    default="euler",
                    tooltip="ComfyUI's, as in KSampler.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.KSampler.SCHEDULERS,
                    default="simple",
                    tooltip="ComfyUI's, as in KSampler.",
                ),
                io.Int.Input("first_seed", default=0, min=0, max=2**64 - 1, tooltip="Of every prompt's first picture."),
                io.Int.Input(
                    "n_seeds",
                    default=2,
                    min=1,
                    max=1000,
                    tooltip="How many seeds, counted on from first_seed. More make the figures surer and take longer.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="kontext_quality_lab",
                    tooltip="Of the files in ComfyUI's output folder; the setting and a number are added.",
                ),
                io.Clip.Input("clip", optional=True, tooltip="Reads the prompts below."),
                io.String.Input(
                    "prompts",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="One a line, each tried with every seed. Empty: the words of positive.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="plot", tooltip="SSIM by value, and against time."),
                io.Image.Output(display_name="sheet", tooltip="The pictures side by side, those that changed most."),
                io.String.Output(display_name="table", tooltip="Mean, deviation, lowest, outliers, seconds: Markdown."),
                io.String.Output(display_name="raw", tooltip="Every figure of every picture: JSON."),
            ],
        )

    @classmethod
    def validate_inputs(cls, setting: str | None = None, values: str | None = None) -> bool | str:
        """Refuses a value before anything runs; one that comes over a link is not known yet."""
        if setting is None or values is None:
            return True
        try:
            parse_values(setting, values)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model: io.Model.Type,
        positive: io.Conditioning.Type,
        vae: io.Vae.Type,
        latent_image: io.Latent.Type,
        setting: str,
        values: str,
        steps: int,
        sampler_name: str,
        scheduler: str,
        first_seed: int,
        n_seeds: int,
        filename_prefix: str,
        clip: io.Clip.Type | None = None,
        prompts: str = "",
    ) -> io.NodeOutput:
        """Raises ValueError for a value that cannot be, a batch of latents, or prompts without a CLIP."""
        edits = quality_lab.edits_of(positive, latent_image, vae, clip, prompts)
        way = Way(model, steps, sampler_name, scheduler)
        seeds = [(first_seed + i) % 2**64 for i in range(n_seeds)]
        lab = quality_lab.QualityLab(setting, parse_values(setting, values), way, edits, seeds, vae, show_here)
        stem = _new_stem(filename_prefix, setting)
        sweep = lab.run()
        lab.save(stem)
        show_here(brief(sweep))
        plot, sheet = _image(lab.show_plot()), _image(lab.sheet())
        return io.NodeOutput(
            plot, sheet, markdown(sweep), raw(sweep, lab.made_with()), ui=ui.PreviewImage(plot, cls=cls)
        )


def _new_stem(prefix: str, setting: str) -> Path:
    """Of files that are not there yet, in ComfyUI's output folder."""
    wish = f"{prefix}_{setting.replace(' ', '_')}"
    folder, name, number, _, _ = folder_paths.get_save_image_path(wish, folder_paths.get_output_directory())
    return Path(folder, f"{name}_{number:05}")


def _image(picture: Any) -> torch.Tensor:
    """(1, H, W, 3) in 0-1 of a PIL picture."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None]


NODES = [KontextQualityLab]
