"""What a LoRA beside the weights costs a step, how long it takes to switch it, and how often that recompiles.

    COMFYUI_PATH=... python benchmarks/lora_steps.py [--tiny] [--mix Q4_K_M] [--folder FOLDER] [--out FILE]

1024x1024 target, one 1024x1024 reference, 512 text tokens, random weights, everything on the card. Rank-32 LoRAs on all
Linears, over BF16 and over the mix, eager and with compiled blocks: medians of synchronized forward passes, none, one
and two LoRAs in turns. Putting the branches on the Linears is in every step here, and once a run in ComfyUI.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import report
import torch
from gguf_steps import compiled_step, medians
from random_files import COMPUTE, MIXES, base_files, full_step, write_lora

GOALS = {"one": 1.05, "two": 1.09}
RANK = 32
LARGE = 128  # in BF16: 1.4 GB on the full model
STRENGTHS = (0.8, 0.6)


def main() -> None:
    """Command line."""
    parser = report.parser(__doc__, "lora_steps.json")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the script")
    parser.add_argument("--mix", choices=MIXES, default="Q4_K_M")
    parser.add_argument("--folder", type=Path, help="where the files are kept and found again")
    options = parser.parse_args()
    report.import_comfyui()
    report.import_pack()
    shapes, arguments = full_step(options.tiny)
    rows: list[dict[str, Any]] = []
    with report.folder(options) as folder, torch.inference_mode():
        for name, path in base_files(folder, shapes, options.mix).items():
            rows += Bench(name, path).rows(arguments)
            report.write(options.out, rows, "lora_steps.py", "--mix", options.mix)  # also where the next one fails


class Bench:
    """One base model and its LoRAs."""

    def __init__(self, name: str, path: Path):
        from kontextkit.bridge.model import load
        from kontextkit.engine.quant import QuantLinear

        self.name = name
        self.patcher = load(path, str(COMPUTE).removeprefix("torch."))
        self.hosted = self.patcher.model.diffusion_model
        layers = self.hosted.transformer.named_modules()
        self.linears = {n: layer for n, layer in layers if isinstance(layer, QuantLinear)}
        self.files = {}
        for letter, rank in (("a", RANK), ("b", RANK), ("large_a", LARGE), ("large_b", LARGE)):
            self.files[letter] = path.with_name(f"lora_{letter}.safetensors")
            sizes = {n: (layer.out_features, layer.in_features) for n, layer in self.linears.items()}
            write_lora(self.files[letter], sizes, rank, seed=len(self.files))

    def rows(self, arguments: dict[str, Any]) -> list[dict[str, Any]]:
        """All measurements."""
        import comfy.model_management as management

        torch._dynamo.reset()
        management.load_models_gpu([self.patcher], force_full_load=True)
        sets = {"none": self.branches(), "one": self.branches("a"), "two": self.branches("a", "b")}
        steps = {"eager": lambda: self.hosted(**arguments), "compiled": compiled_step(self.hosted, arguments)}
        rows = []
        for kind, step in steps.items():
            ms = medians({name: self.with_branches(branches, step) for name, branches in sets.items()})
            rows += [report.row(f"lora.{name}.step_ms.{self.name}.{kind}", each, "ms") for name, each in ms.items()]
            for name, goal in GOALS.items():
                ratio = ms[name] / ms["none"]
                rows.append(report.row(f"lora.{name}.step_ratio.{self.name}.{kind}", ratio, "ratio", goal=goal))
        rows += self.switches(steps["compiled"])
        management.unload_all_models()
        return rows

    def switches(self, step: Callable[[], Any]) -> list[dict[str, Any]]:
        """Seconds until a large LoRA, or another strength of it, is ready on the card; graphs that switching compiled.

        The ranks were all seen before: filled up to a few sizes, most are.
        """
        from kontextkit.bridge import lora
        from torch._dynamo.utils import counters

        lora._stacks.kept.clear()
        self.with_branches(self.branches("large_a"), step)()
        seconds, more = self.seconds("large_b"), counters["stats"]["unique_graphs"]
        for letters in (("large_b",), ("large_a",), ("a",), ("b",), ("a",)):
            self.with_branches(self.branches(*letters), step)()
        again = self.seconds("large_b", strength=0.3)
        n_graphs = counters["stats"]["unique_graphs"] - more
        size = f"{self.files['large_b'].stat().st_size / 1e9:.2f} GB"
        return [
            report.row(f"lora.switch_seconds.{self.name}", seconds, "s", f"another file of {size}", goal=1.0),
            report.row(f"lora.strength_seconds.{self.name}", again, "s", f"another strength of {size}", goal=1.0),
            report.row(f"lora.switch_recompiles.{self.name}", n_graphs, "graphs", "five switches", goal=0),
        ]

    def seconds(self, letter: str, strength: float = STRENGTHS[0]) -> float:
        """From the node's start to the branches, for a file that was read before."""
        from kontextkit.bridge import lora

        lora.read(self.files[letter], self.patcher)
        report.synchronize()
        begin = time.perf_counter()
        self.branches(letter, strengths=(strength,))
        report.synchronize()
        return time.perf_counter() - begin

    def branches(self, *letters: str, strengths: tuple[float, ...] = STRENGTHS) -> dict[str, Any]:
        """What node and sampler do for these LoRAs, up to the branches of every Linear; the factors are on the card."""
        import comfy.model_management as management
        from kontextkit.bridge import lora

        if not letters:
            return {}
        patcher = self.patcher
        for letter, strength in zip(letters, strengths, strict=False):
            patcher = lora.apply(patcher, lora.read(self.files[letter], patcher), strength)
        lora.bring_along(lambda *_: None, patcher)
        (stack,) = patcher.get_additional_models()
        management.load_models_gpu([patcher, stack], force_full_load=True)
        device, dtype = patcher.load_device, patcher.model.get_dtype_inference()
        return stack.model.branches(self.hosted.transformer, strengths[: len(letters)], device, dtype)

    def with_branches(self, branches: dict[str, Any], step: Callable[[], Any]) -> Callable[[], Any]:
        """The step with these branches and no others."""

        def run() -> Any:
            for name, linear in self.linears.items():
                linear.branch = branches.get(name)
            return step()

        return run


if __name__ == "__main__":
    main()
