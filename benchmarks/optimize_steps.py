"""The optimizer's speed on a full-size Kontext of random weights, beside diffusers and ComfyUI's own.

    COMFYUI_PATH=... python benchmarks/optimize_steps.py [--tiny] [--parts main probes ...] [--minutes M] [--rounds N]
        [--map balanced=0,2,...] [--quality FILE] [--mix Q4_K_M] [--folder FOLDER] [--out FILE]

Whole sampling runs: 28 steps of euler at 1024x1024, one 1024x1024 reference, 512 text tokens, everything on the card,
in turns in one process; speed-ups are over eager BF16 diffusers in the same turns. With random weights it means nothing
which steps a cache would skip, so presets skip those that the demo model's edits skipped: --map, or the rows
`<preset>.map` of optimize_quality.py's result. Parts run in the order given; what is not done after M minutes is left
out, and a failure costs its own rows alone:

main           presets quality, balanced, fast
probes         ceilings, attention backends, fused projections, bookkeeping
peers          ComfyUI's own, EasyCache, diffusers compiled and with its first-block cache; ours off, and piece by piece
torch_compile  ComfyUI's own after TorchCompileModel, which compiles the whole model
autotune       preset quality with max-autotune-no-cudagraphs
vae            ComfyUI's FLUX decoder: plain, channels-last, compiled
mix            presets quality and balanced from a GGUF file
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import report
import torch
from measured_maps import QUALITY, measured_maps
from optimize_peers import ComfyUI, Diffusers
from optimize_probes import Decode, probe
from random_files import COMPUTE, DEVICE, MIXES, base_file, full_step
from sampling import Optimized
from stages import Stages
from timed_runs import FEW, Column, Sample, take_turns
from torch import Tensor

PARTS = {  # and the row that says so where a part came to nothing
    "main": "optimize.quality.step_ms",
    "probes": "optimize.bookkeeping_ms",
    "peers": "peer.comfyui.step_ms",
    "torch_compile": "peer.comfyui_compiled.step_ms",
    "autotune": "optimize.quality_autotune.step_ms",
    "vae": "vae.decode_ms.plain",
    "mix": "optimize.q4_k_m.quality.step_ms",
}
GOALS = {"quality": 1.3, "balanced": 2.8}
AUTOTUNE = "max-autotune-no-cudagraphs"
LONGEST = {"torch_compile": 200.0, "autotune": 200.0}  # seconds that such a first run may take


class Bench:
    """The models, and the parts."""

    def __init__(self, stages: Stages, options: argparse.Namespace, folder: Path, maps: dict[str, tuple[int, ...]]):
        self.stages, self.options, self.folder, self.maps = stages, options, folder, maps
        self.n_steps = 6 if options.tiny else 28
        self.shapes, self.arguments = full_step(options.tiny)
        self.noise = self.arguments["x"]
        values = {"pooled_output": self.arguments["y"], "guidance": 2.5}
        values["reference_latents"] = self.arguments["ref_latents"]
        self.conditioning = [[self.arguments["context"], values]]

    def everything(self) -> None:
        """The parts that were asked for."""
        models = set(self.options.parts) - {"probes", "vae"}
        if models and not self.stages.run("weights, on the card", self.load, (PARTS["main"],)):
            return
        for part in self.options.parts:
            self.stages.run(f"part {part}", getattr(self, part), (PARTS[part],))

    def load(self) -> None:
        """Our MODEL, and diffusers' module around its weights."""
        self.ours = self.loaded(base_file(self.folder, self.shapes))
        self.diffusers = Diffusers(self.ours, self.arguments)

    def loaded(self, path: Path) -> Any:
        """Our MODEL of a file, on the card."""
        import comfy.model_management as management
        from kontextkit.bridge.model import load

        patcher = load(path, str(COMPUTE).removeprefix("torch."))
        management.load_models_gpu([patcher], force_full_load=True)
        return patcher

    def turns(self, *columns: Column, rounds: int = 1, silent: bool = True) -> None:
        """Columns in turns with eager diffusers."""
        base = Column("peer.diffusers_eager", self.diffusers.plain, "BF16", silent=silent)
        take_turns(self.stages, base, list(columns), self.n_steps, rounds)
        if not silent:
            self.compare(base, columns[0])

    def compare(self, base: Column, column: Column) -> None:
        """That both did the same work shows in their pictures."""
        if base.runs and column.runs:
            right, other = (self.way(each.runs[-1].latents) for each in (base, column))
            error = ((other - right).norm() / right.norm()).item()
            note = f"{column.name}'s way from noise to picture against diffusers', {self.n_steps} steps"
            self.stages.add(report.row("optimize.way_error", error, "relative", note))

    def way(self, latents: Tensor) -> Tensor:
        """What all steps together added to the noise."""
        return self.ours.model.process_latent_in(latents.float().to(DEVICE)) - self.noise.float()

    def column(self, name: str, preset: str, patcher: Any = None, mode: str = "", **changes: Any) -> Column:
        """Ours under a preset's choices, some of them changed; its cache follows the map."""
        from kontextkit.engine.tiers.presets import PRESETS

        patcher = patcher or self.ours
        choices, note, n_first = PRESETS[preset], "", FEW
        if choices.cache and "cache" not in changes:
            steps = tuple(step for step in self.maps[preset] if step < self.n_steps)
            note = f"computes steps {', '.join(map(str, steps))}"
            choices = replace(choices, cache=replace(choices.cache, computed=steps))
            n_first = self.n_steps  # so that every kind of step is warmed up
        if DEVICE == "cpu" and choices.compile == "auto":  # where a card's choice is not made by itself
            choices = replace(choices, compile="default")
        make = ours(patcher, replace(choices, **changes), self.noise, self.conditioning)
        goal = GOALS.get(name)
        return Column(f"optimize.{name}", make, note, goal, mode, patcher.model_size(), n_first=n_first)

    def main(self) -> None:
        """The presets."""
        columns = [self.column("quality", "quality", mode="optimize.{}.fused")]
        columns += [self.column(name, name) for name in ("balanced", "fast")]
        self.turns(*columns, rounds=self.options.rounds, silent=False)

    def peers(self) -> None:
        """Others, and our pieces; `measuring` looks at every step's change, as a threshold does, and skips none."""
        from kontextkit.engine.cache.first_block import FirstBlockSettings
        from kontextkit.engine.cache.references import ReferenceSettings

        easy_cache = self.comfyui("comfyui_easycache", "easy_cache", "node EasyCache, its own choice of steps")
        easy_cache.steps_only = True
        self.turns(
            self.column("off", "off"),
            self.column("attention_only", "quality", compile="off"),
            self.column("fused_only", "quality", attention="comfyui"),
            self.column("compiled", "quality", mode="optimize.{}.compiled", compile="default"),
            Column("peer.diffusers_first_block_cache", self.first_block_cache, "computes the balanced preset's steps"),
            self.column("kept_references", "quality", references=ReferenceSettings()),
            self.column("measuring", "balanced", cache=FirstBlockSettings(threshold=1e-9)),
            self.comfyui("comfyui", "plain", "core loader"),
            easy_cache,
            Column(
                "peer.diffusers_compiled",
                self.diffusers.compiled,
                "compile_repeated_blocks(fullgraph=True)",
                mode="peer.diffusers_compiled.{}",
            ),
        )

    def torch_compile(self) -> None:
        """ComfyUI's own, compiled whole."""
        column = self.comfyui("comfyui_compiled", "compiled", "node TorchCompileModel, inductor")
        column.mode, column.most = "peer.comfyui_compiled.{}", LONGEST["torch_compile"]
        self.turns(column)

    def autotune(self) -> None:
        """Inductor's longest search."""
        column = self.column("quality_autotune", "quality", mode="optimize.{}.autotune", compile=AUTOTUNE)
        column.most = LONGEST["autotune"]
        self.turns(column)

    def mix(self) -> None:
        """The same presets over packed weights."""
        mix = self.options.mix.lower()
        patcher = self.loaded(base_file(self.folder, self.shapes, self.options.mix))
        self.turns(
            self.column(f"{mix}.quality", "quality", patcher, mode=f"optimize.{{}}.{mix}"),
            self.column(f"{mix}.balanced", "balanced", patcher),
        )

    def probes(self) -> None:
        """Kernels by themselves."""
        probe(self.stages, self.options.tiny, self.n_steps)

    def vae(self) -> None:
        """The decoder."""
        Decode(self.options.tiny).everything(self.stages)

    def first_block_cache(self) -> Sample:
        """diffusers' with our map."""
        return self.diffusers.first_block_cache(self.maps["balanced"])

    def comfyui(self, name: str, how: str, note: str) -> Column:
        """A column of ComfyUI's own model, which is loaded for its first run."""

        def make() -> Sample:
            if not hasattr(self, "comfy"):
                import comfy.model_management as management
                import comfy.sd

                patcher = comfy.sd.load_diffusion_model(str(base_file(self.folder, self.shapes)))
                management.load_models_gpu([patcher], force_full_load=True)
                self.comfy = ComfyUI(patcher, self.noise, self.conditioning)
            return getattr(self.comfy, how)()

        return Column(f"peer.{name}", make, note)


def ours(patcher: Any, choices: Any, noise: Tensor, conditioning: list[Any]) -> Callable[[], Sample]:
    """Makes what samples with our MODEL under these choices."""

    def make() -> Sample:
        optimized = Optimized(patcher, choices)

        def run(n_steps: int, after_step: Callable[[], None]) -> tuple[Tensor, list[str]]:
            return optimized.sample(noise, n_steps, conditioning, lambda *_: after_step())

        return run

    return make


def read_maps(options: argparse.Namespace) -> dict[str, tuple[int, ...]]:
    """The computed steps of balanced and fast. Ends where there are none."""
    maps = {"balanced": (0, 1, 3, 5), "fast": (0, 1, 4)} if options.tiny else measured_maps(options.quality)
    for words in options.map:
        preset, _, steps = words.partition("=")
        maps[preset] = tuple(map(int, steps.split(",")))
    for preset in ("balanced", "fast"):
        if preset not in maps:
            raise SystemExit(f"no map for {preset}: give --map {preset}=0,1,3,... or run optimize_quality.py first")
    return maps


def main() -> None:
    """Command line."""
    parser = report.parser(__doc__, "optimize_steps.json")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the script")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--minutes", type=float, default=8.5, help="after which the rest is left out")
    parser.add_argument("--rounds", type=int, default=3, help="of part main")
    parser.add_argument("--map", nargs="+", default=[], metavar="PRESET=STEPS")
    parser.add_argument("--quality", type=Path, default=QUALITY)
    parser.add_argument("--mix", choices=MIXES, default="Q4_K_M")
    parser.add_argument("--folder", type=Path, help="where the files are kept and found again")
    options = parser.parse_args()
    report.variant(parser, options, *(options.parts if options.parts != list(PARTS) else ()))
    report.tiny_variant(options)
    maps = read_maps(options)
    report.import_comfyui()
    report.import_pack()
    given = [
        f"{preset}={','.join(map(str, steps))}" for preset, steps in maps.items() if preset in ("balanced", "fast")
    ]
    command = ("optimize_steps.py", *["--tiny"] * options.tiny, "--parts", *options.parts, "--map", *given)
    stages = Stages(lambda rows: report.save(options.out, rows, *command), options.minutes)
    with report.private_caches(cold=not options.tiny), report.folder(options) as folder, torch.inference_mode():
        Bench(stages, options, folder, maps).everything()
    report.show(list(stages.rows.values()), notes=False)


if __name__ == "__main__":
    main()
