"""FP8 products and the preset fast at full size, against eager BF16 diffusers and against themselves without.

    COMFYUI_PATH=... python benchmarks/fast_steps.py [--tiny] [--minutes M] [--rounds N] [--folder FOLDER]
        [--quality FILE] [--out FILE]

Random weights, everything on the card, 28 steps of euler at 1024x1024, 512 text tokens, one 1024x1024 reference where
nothing else is said; a run's seconds hold the making of its FP8 weights. With random weights it means nothing which
steps a cache would skip, so they are fixed, of 28:

fast   what the demo model's edits compute under the preset (measured_maps.py); its row says which. Of these the preset
       computes the references at the first and at the sixth
eleven steps 0, 1, 2, 4, 6, 9, 12, 16, 20, 24, 27, references at the first of them alone

The most important parts come first; what is not done after M minutes is left out, and a failure costs its own rows
alone.
With --tiny and no card, FP8 products are emulated, so that the script can be tried.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import report
import torch
from measured_maps import QUALITY
from optimize_peers import Diffusers
from random_files import COMPUTE, base_file, call
from references_steps import BUDGET, ReferenceBench
from sampling import Optimized, emulate_narrow
from stages import Stages
from timed_runs import Sample, Timed, timed
from torch import Tensor

ELEVEN_MAP = (0, 1, 2, 4, 6, 9, 12, 16, 20, 24, 27)
FEW_STEPS = 8
SIDES, BATCHES = (512, 768), (1, 4)  # of the second table, pixels
NEVER = 1000  # an interval
IN_FP8 = {"precision": "fp8", "attention": "fp8"}


class FastBench(ReferenceBench):
    """The parts. last: our last run; made: what it said of its FP8 weights. base: seconds of diffusers, once known."""

    last: Any = None
    made, base = "", math.nan

    def everything(self) -> None:
        """The most important first."""
        if not self.stages.run("weights, on the card", self.load, ("fast.speedup",), "times"):
            return
        self.stages.run("headline", self.headline, ("fast.speedup",), "times")
        self.stages.run("single steps", self.single_steps, ("fast.fp8_full_step_ms", "fast.reuse_step_ms"))
        self.stages.run("error", self.error, ("fast.fp8_error",), "relative")
        self.stages.run("six references", self.six_references, ("fast.six_refs_ratio",), "times")
        self.stages.run("Q4_K_M", self.packed, ("fast.q4_k_m.ratio",), "times")
        self.stages.run("other ways", self.other_ways, ("fast.exact_attention.speedup",), "times")
        for side, batch in product(SIDES, BATCHES):
            name = f"fast.{side}.batch_{batch}"
            work = lambda side=side, batch=batch, name=name: self.other_size(side, batch, name)  # noqa: E731
            self.stages.run(name, work, (f"{name}.speedup",), "times")

    def choices(self, preset: str, steps: tuple[int, ...] = (), **changes: Any) -> Any:
        """A preset's, with the map where it skips."""
        from kontextkit.engine.tiers.presets import PRESETS

        choices = replace(PRESETS[preset], **changes)
        computed = tuple(step for step in steps or self.maps["fast"] if step < self.n_steps)
        return replace(choices, cache=replace(choices.cache, computed=computed)) if choices.cache else choices

    def way(
        self,
        choices: Any,
        given: list[list[Any]] | None = None,
        patcher: Any = None,
        noise: Tensor | None = None,
    ) -> Sample:
        """What samples with our MODEL. Raises RuntimeError where FP8 was chosen and could not be."""
        optimized, noise = Optimized(patcher or self.ours, choices), self.noise if noise is None else noise

        def run(n_steps: int, after_step: Any) -> tuple[Tensor, list[str]]:
            made = optimized.sample(noise, n_steps, given or self.conditioning, lambda *_: after_step())
            self.last = optimized.last
            notes = self.last.notes if self.last else [optimized.report]
            if choices.precision != "as loaded" and not any(note.startswith("Products in FP8") for note in notes):
                raise RuntimeError(" ".join(notes))
            self.made = " ".join(note for note in notes if "made in" in note) or self.made
            return made

        return run

    def in_turns(self, ways: dict[str, Sample], n_steps: int) -> dict[str, list[Timed]]:
        """Each warmed up by a whole run, then as many on the clock as the command line says, in turns."""
        runs: dict[str, list[Timed]] = {name: [] for name in ways}
        for turn in range(1 + self.options.rounds):
            for name, sample in ways.items():
                runs[name].append(timed(sample, n_steps))
                print(f"           {name}: {runs[name][-1].seconds:.3f} s{'' if turn else ', warming up'}", flush=True)
        return {name: each[1:] for name, each in runs.items()}

    def headline(self) -> None:
        """Preset fast in FP8 against diffusers."""
        ways = {
            "diffusers": Diffusers(self.ours, self.arguments).plain(),
            "fast": self.way(self.choices("fast")),
        }
        runs = self.in_turns(ways, self.n_steps)
        self.base = seconds(runs["diffusers"])
        self.stages.add(report.row("fast.diffusers_seconds", self.base, "s", f"eager, BF16, {self.n_steps} steps"))
        self.speedup("fast", runs["fast"], self.base, 8.0)

    def other_ways(self) -> None:
        """Exact attention, nothing in FP8, eleven steps with frozen references; against the same diffusers."""
        from kontextkit.engine.cache.references import ReferenceSettings

        frozen = ReferenceSettings(interval=NEVER)
        ways = {
            "exact_attention": self.way(self.choices("fast", attention="auto")),
            "as_loaded": self.way(self.choices("fast", precision="as loaded", attention="auto")),
            "eleven": self.way(self.choices("fast", ELEVEN_MAP, references=frozen)),
        }
        for name, runs in self.in_turns(ways, self.n_steps).items():
            self.speedup(f"fast.{name}", runs, self.base)

    def other_size(self, side: int, batch: int, name: str) -> None:
        """Pictures and their one reference of side x side pixels, so many at once."""
        one = call(side // (32 if self.options.tiny else 8), self.shapes, COMPUTE)
        many = {key: value.repeat(batch, *[1] * (value.ndim - 1)) for key, value in one.items() if key != "ref_latents"}
        many["ref_latents"] = [latent.repeat(batch, 1, 1, 1) for latent in one["ref_latents"]]
        values = {"pooled_output": one["y"], "guidance": 2.5, "reference_latents": one["ref_latents"]}
        ways = {
            "diffusers": Diffusers(self.ours, many).plain(),
            "fast": self.way(self.choices("fast"), [[one["context"], values]], noise=many["x"]),
        }
        runs = self.in_turns(ways, self.n_steps)
        self.speedup(name, runs["fast"], seconds(runs["diffusers"]))

    def speedup(self, row: str, runs: list[Timed], base: float, goal: float | None = None) -> None:
        """Rows of a way's seconds, and of diffusers' `base` over them."""
        kinds = [f"{runs[0].kinds.count(kind)} {kind}" for kind in dict.fromkeys(runs[0].kinds)]
        spread = f"{len(runs)} runs, {min(r.seconds for r in runs):.3f} to {max(r.seconds for r in runs):.3f} s"
        computed = ", ".join(str(step) for step, kind in enumerate(runs[0].kinds) if kind != "skipped")
        note = f"{', '.join(kinds)} (steps {computed} are not); {spread}"
        self.stages.add(report.row(f"{row}.seconds", seconds(runs), "s", note))
        self.stages.add(report.row(f"{row}.speedup", base / seconds(runs), "times", note, goal, "higher"))

    def single_steps(self) -> None:
        """Full ones in FP8 and as loaded, and those with kept references."""
        from kontextkit.engine.cache.references import ReferenceSettings

        kept = ReferenceSettings(interval=NEVER)
        ways = {
            "fp8_full": (self.choices("quality", **IN_FP8), "computed", "in FP8", 185),
            "bf16_full": (self.choices("quality"), "computed", "as loaded", 255),
            "reuse": (self.choices("quality", references=kept, **IN_FP8), "without references", "in FP8", 100),
        }
        runs = self.in_turns({name: self.way(choices) for name, (choices, *_) in ways.items()}, self.few)
        for name, (_, kind, words, goal) in ways.items():
            every = [ms for run in runs[name] for ms, of in zip(run.step_ms, run.kinds[1:], strict=True) if of == kind]
            note = f"median of {len(every)} steps {kind}, {words}"
            self.stages.add(report.row(f"fast.{name}_step_ms", median(every), "ms", note, goal))
        print(f"           {self.made}", flush=True)

    @property
    def few(self) -> int:
        """Steps of a run that is only looked at step by step."""
        return min(FEW_STEPS, self.n_steps)

    def error(self) -> None:
        """Of a picture made in one step, which is the noise less the velocity of one pass, over the same weights."""
        modes = {"as loaded": {}, "products": {"precision": "fp8"}, "all": IN_FP8}
        made = {}
        for name, changes in modes.items():
            latents, _ = self.way(self.choices("quality", **changes))(1, lambda: None)
            made[name] = self.ours.model.process_latent_in(latents).float() - self.noise.to(latents).float()
        right = made.pop("as loaded")
        errors = {name: ((each - right).norm() / right.norm()).item() for name, each in made.items()}
        words = f"with products alone in FP8 {errors['products']:.4f}"
        note = f"velocity of one pass in FP8 against the same as loaded, random weights; {words}"
        self.stages.add(report.row("fast.fp8_error", errors["all"], "relative", note, 0.02))

    def six_references(self) -> None:
        """Of full size against one with nothing spared, and within a budget against one."""
        fast, full = self.choices("fast"), self.choices("quality", **IN_FP8)
        ways = {
            "one, nothing spared": self.way(full, self.conditioned(1)),
            "one, fast": self.way(fast, self.conditioned(1)),
            "six, fast": self.way(fast, self.conditioned(6)),
            "six in two megapixels, fast": self.way(fast, self.conditioned(6, BUDGET)),
        }
        runs = {name: seconds(some) for name, some in self.in_turns(ways, self.n_steps).items()}
        for row, goal, above, below in [
            ("fast.six_refs_ratio", 0.65, "six, fast", "one, nothing spared"),
            ("fast.six_refs_budget_ratio", 1.18, "six in two megapixels, fast", "one, fast"),
        ]:
            note = f"{above} ({runs[above]:.3f} s) over {below} ({runs[below]:.3f} s), all in FP8"
            self.stages.add(report.row(row, runs[above] / runs[below], "times", note, goal))

    def packed(self) -> None:
        """A Q4_K_M file against BF16 weights, whole runs, the worst of three modes."""
        packed = self.loaded(base_file(self.folder, self.shapes, "Q4_K_M"))
        ratios = {}
        for name, choices, n_steps in [
            ("fast in FP8", self.choices("fast"), self.n_steps),
            ("quality in FP8", self.choices("quality", **IN_FP8), self.few),
            ("quality", self.choices("quality"), self.few),
        ]:
            runs = self.in_turns({"bf16": self.way(choices), "q4": self.way(choices, patcher=packed)}, n_steps)
            ratios[f"{name}, {n_steps} steps"] = seconds(runs["q4"]) / seconds(runs["bf16"])
            each = "; ".join(f"{mode} {ratio:.3f}" for mode, ratio in ratios.items())
            note = f"the worst of whole runs over those of BF16 weights: {each}"
            self.stages.add(report.row("fast.q4_k_m.ratio", max(ratios.values()), "times", note, 1.05))


def seconds(runs: list[Timed]) -> float:
    """Of a run."""
    return median(run.seconds for run in runs)


def main(
    bench: type[FastBench] = FastBench, page: str | None = __doc__, name: str = "fast_steps", minutes: float = 8.5
) -> None:
    """Command line."""
    parser = report.parser(page, f"{name}.json")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the script")
    parser.add_argument("--minutes", type=float, default=minutes, help="after which the rest is left out")
    parser.add_argument("--rounds", type=int, default=3, help="runs on the clock")
    parser.add_argument("--folder", type=Path, help="where the files are kept and found again")
    parser.add_argument("--quality", type=Path, default=QUALITY, help="optimize_quality.py's result, for the map")
    options = parser.parse_args()
    report.tiny_variant(options)
    report.import_comfyui()
    report.import_pack()
    if options.tiny:
        emulate_narrow()
    command = (f"{name}.py", *["--tiny"] * options.tiny, "--rounds", str(options.rounds))
    stages = Stages(lambda rows: report.save(options.out, rows, *command), options.minutes)
    with report.private_caches(cold=False), report.folder(options) as folder, torch.inference_mode():
        bench(stages, options, folder).everything()
    report.show(list(stages.rows.values()))


if __name__ == "__main__":
    main()
