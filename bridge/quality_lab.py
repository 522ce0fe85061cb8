"""Sweeps one setting through ComfyUI's sampler: the same prompts and seeds with each value, against the usual one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor

from ..engine.lab.plot import MISSING, TILE, can_plot, draw_plot, draw_sheet, draw_words
from ..engine.lab.settings import Value, shown
from ..engine.lab.sweep import Picture, Sweep
from ..engine.lab.table import comma_separated, markdown, raw
from ..engine.metrics.ssim import ssim
from ..engine.pace import time_left
from ..engine.whole_file import whole_file
from . import lora
from .calibration import pictures
from .model import KontextModel
from .references import LATENTS
from .ways import CHANGES, Conditioning, Edit, Way, choices_of, sample, usual

WARM_UP = 2  # steps


def edits_of(
    positive: Conditioning, latent: Mapping[str, Any], vae: Any, clip: Any = None, prompts: str = ""
) -> list[Edit]:
    """An Edit for each line of `prompts`, with all that `positive` carries but its words; one of `positive` if none.

    Where the first reference is of the latent's size its picture is in `to` as context. Raises ValueError for a latent
    of several pictures, or prompts without a CLIP.
    """
    if (n := latent["samples"].shape[0]) != 1:
        raise ValueError(f"latent_image holds {n} pictures; the lab makes one at a time. Connect one.")
    lines = list(dict.fromkeys(line.strip() for line in prompts.splitlines() if line.strip()))
    if lines and clip is None:
        raise ValueError("prompts has words, but no CLIP reads them; connect clip, or leave prompts empty.")
    references, to = references_of(positive), {}
    if references and references[0].shape[-2:] == latent["samples"].shape[-2:]:
        to["context"] = pictures(vae, references[0][:1])
    if not lines:
        return [Edit("the prompt", positive, latent, to)]
    return [Edit(line, with_words(clip, line, positive), latent, to) for line in lines]


def references_of(positive: Conditioning) -> Sequence[Tensor]:
    """The latents of its references."""
    return positive[0][1].get(LATENTS) or ()


def edit_of(
    prompt: str,
    references: Sequence[Tensor],
    guidance: float,
    clip: Any,
    vae: Any,
    name: str = "",
    right: Tensor | None = None,
) -> Edit:
    """An Edit from pictures (1, H, W, 3) in 0-1, the first the one to edit. right: the true picture (1, 3, H, W)."""
    latents = [vae.encode(picture) for picture in references]
    positive = [[None, {"guidance": guidance, LATENTS: latents}]]
    to = {"context": pictures(vae, latents[0])} | ({} if right is None else {"truth": right})
    return Edit(name or prompt, with_words(clip, prompt, positive), {"samples": latents[0]}, to)


def with_words(clip: Any, prompt: str, positive: Conditioning) -> Conditioning:
    """The conditioning of a prompt, with references, guidance and whatever else `positive` carries."""
    encoded = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    return [[context, {**positive[0][1], **more}] for context, more in encoded]


class QualityLab:
    """One sweep; `run` makes it, then its table, plot and files can be had."""

    def __init__(
        self,
        setting: str,
        values: Sequence[Value],
        way: Way,
        edits: Sequence[Edit],
        seeds: Sequence[int],
        vae: Any,
        report: Callable[[str], None] = lambda text: None,
    ):
        """report: told how far it is. Raises ValueError, before anything is made, where the setting cannot change."""
        self.setting, self.way, self.edits, self.seeds, self.vae = setting, way, edits, seeds, vae
        self.report = report
        self.check()
        self.baseline = usual(setting, way, edits)
        if setting == "precision":
            files = {way.find(str(name)): name for name in values}
            values = [name for path, name in files.items() if path != way.model.model.path]
        elif values:
            CHANGES[setting](way, values[0])  # what this MODEL cannot do is said now
        self.values = [self.baseline, *(value for value in values if value != self.baseline)]
        self.tiles: dict[tuple[Value, str, int], Any] = {}
        self.sweep = Sweep(setting, self.baseline, ())
        self._last: tuple[Value, Way] | None = None
        self._is_warm = False

    def check(self) -> None:
        """Raises ValueError for what the setting would change nothing of."""
        if self.setting == "denoise" and not all(edit.latent["samples"].any() for edit in self.edits):
            raise ValueError(
                "latent_image is empty; denoise below 1 starts from the picture to edit. Connect its VAE Encode."
            )
        if self.setting == "context weight":
            if not all(references_of(edit.positive) for edit in self.edits):
                raise ValueError(
                    "positive has no references whose weight could change. Connect ReferenceLatent before it."
                )
            if not isinstance(self.way.model.model, KontextModel):
                raise ValueError(
                    "The MODEL is from another loader, which knows no weight of a reference. Load the model with Load "
                    "Kontext Model or with Load Kontext Demo Model."
                )
        if choices_of(self.way.model).target_ssim:
            raise ValueError(
                "The MODEL is calibrated for a target SSIM, which would change while the lab measures. Set target_ssim "
                "of Optimize Kontext to 0; its report names the threshold that calibration found."
            )

    def run(self) -> Sweep:
        """Makes all pictures, the baseline's first; ComfyUI's Cancel ends it."""
        usual_pictures: dict[tuple[int, int], Tensor] = {}
        made: list[Picture] = []
        order = self.order()
        progress = Progress(self.n_steps, len(order), self.report)
        for value, i, seed in order:
            edit = self.edits[i]
            latents, seconds = sample(self.way_of(value), edit, seed, progress.step)
            picture = pictures(self.vae, latents).cpu()
            right = usual_pictures.setdefault((i, seed), picture)
            made.append(measured(value, edit, seed, seconds, right, picture))
            tile = self.tiles[value, edit.prompt, seed] = tile_of(picture)
            progress.picture(f"{self.setting} {shown(value)}", tile)
        self.sweep = Sweep(self.setting, self.baseline, tuple(made))
        return self.sweep

    def order(self) -> list[tuple[Value, int, int]]:
        """(value, the edit's number, seed) of every picture.

        Values in turns, so that whatever else slows the machine meets all of them; but each model file is loaded once.
        """
        cases = list(product(range(len(self.edits)), self.seeds))
        if self.setting == "precision":
            return [(value, *case) for value in self.values for case in cases]
        return [(value, *case) for case in cases for value in self.values]

    def way_of(self, value: Value) -> Way:
        """To make the pictures of a value; the last one is kept, and with it a model that was loaded for it.

        A model has made a few steps before its first is timed: they upload, compile and choose.
        """
        if self._last is None or self._last[0] != value:
            self._last = None  # the model goes before another comes
            change = CHANGES[self.setting]
            way = self.way if value == self.baseline else change(self.way, value)
            if self.setting == "precision" or not self._is_warm:
                sample(replace(way, steps=WARM_UP), self.edits[0], self.seeds[0])
                self._is_warm = True
            self._last = value, way
        return self._last[1]

    @property
    def n_steps(self) -> int:
        """Of all pictures."""
        each = sum(int(value) if self.setting == "steps" else self.way.steps for value in self.values)
        return each * len(self.edits) * len(self.seeds)

    def plot(self) -> Any:
        """A PIL picture; without matplotlib, one that says so."""
        return draw_plot(self.sweep) if can_plot() else draw_words(MISSING)

    def show_plot(self) -> Any:
        """The same, on the node too, where the last picture still stands."""
        picture, bar = self.plot(), comfy.utils.ProgressBar(self.n_steps)
        bar.update_absolute(self.n_steps, preview=("JPEG", picture, max(picture.size)))
        return picture

    def sheet(self) -> Any:
        """A PIL picture of the pictures side by side."""
        return draw_sheet(self.sweep, self.tiles)

    def made_with(self) -> dict[str, Any]:
        """How the pictures were made, for the raw data."""
        way, (*_, height, width) = self.way, self.edits[0].latent["samples"].shape
        path = getattr(way.model.model, "path", None)
        return {
            "model": path.name if path else "",
            "loras": [[each.lora.file_name, each.strength] for each in lora.applied(way.model)],
            "steps": way.steps,
            "sampler": way.sampler,
            "scheduler": way.scheduler,
            "denoise": way.denoise,
            "guidance": usual("guidance", way, self.edits),
            "latent": [height, width],
            "device": comfy.model_management.get_torch_device_name(comfy.model_management.get_torch_device()),
            "torch": torch.__version__,
        }

    def save(self, stem: Path) -> list[Path]:
        """Writes STEM.md, .csv, .json, _sheet.png and, with matplotlib, _plot.png; each is whole or not there."""
        stem.parent.mkdir(parents=True, exist_ok=True)
        texts = {".md": markdown(self.sweep), ".csv": comma_separated(self.sweep)}
        texts[".json"] = raw(self.sweep, self.made_with())
        drawn = {"_sheet.png": self.sheet()} | ({"_plot.png": self.plot()} if can_plot() else {})
        written = []
        for ending, content in (texts | drawn).items():
            path = stem.with_name(stem.name + ending)
            with whole_file(path) as unfinished:
                if isinstance(content, str):
                    unfinished.write_text(content, encoding="utf-8")
                else:
                    content.save(unfinished, "PNG")
            written.append(path)
        return written


class Progress:
    """The node's bar by steps, the last picture on it, and the time that is left in words."""

    def __init__(self, n_steps: int, n_pictures: int, report: Callable[[str], None]):
        self.n_steps, self.n_pictures, self.report = n_steps, n_pictures, report
        self.steps_done, self.pictures_done, self.begin = 0, 0, time.perf_counter()
        self.bar = comfy.utils.ProgressBar(n_steps)

    def step(self) -> None:
        """After each; Cancel is heard by ComfyUI's sampler and here."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.steps_done += 1
        self.bar.update_absolute(self.steps_done)

    def picture(self, what: str, tile: Any) -> None:
        """After each."""
        self.pictures_done += 1
        taken = time.perf_counter() - self.begin
        left = taken / max(1, self.steps_done) * (self.n_steps - self.steps_done)
        self.bar.update_absolute(self.steps_done, preview=("JPEG", tile, TILE))
        self.report(f"{what}: {self.pictures_done} of {self.n_pictures} pictures, {time_left(left)}")


def measured(value: Value, edit: Edit, seed: int, seconds: float, right: Tensor, picture: Tensor) -> Picture:
    """A picture (1, 3, H, W) beside the baseline's and those that the edit is compared with."""
    to = {name: likeness(each, picture) for name, each in edit.to.items()}
    return Picture(value, edit.prompt, seed, seconds, likeness(right, picture), to)


def likeness(a: Tensor, b: Tensor) -> float:
    """SSIM of two pictures (1, 3, H, W)."""
    return float(ssim(a, b.to(a.device))[0])


def tile_of(picture: Tensor) -> Any:
    """(1, 3, H, W) in 0-1 as a small PIL picture."""
    from PIL import Image

    small = Image.fromarray((picture[0].movedim(0, -1) * 255).round().byte().numpy())
    small.thumbnail((TILE, TILE))
    return small
