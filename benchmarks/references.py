"""References on the demo model: how many it can use, what a weight does, and what keeping encoded pictures spares.

    COMFYUI_PATH=... python benchmarks/references.py [--edits N] [--out FILE]

Success is judged as in demo_quality.py. Consistency is the SSIM of what should not change to the first reference, over
the windows in which nothing should. The model was trained with up to three references; more are other edits' pictures,
which the prompt does not name.
"""

from __future__ import annotations

import time
from itertools import cycle, islice
from statistics import mean, median
from typing import Any

import held_out
import report
import torch
import torch.nn.functional as F
from held_out import Editor
from torch import Tensor

NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 6: "six"}
WEIGHTS = (0.0, 0.3, 0.6, 0.9, 1.0)
CLAIMS = {0.0: "0.60 to 0.70", 0.3: "0.75 to 0.85", 0.6: "0.88 to 0.94", 0.9: "0.95 to 0.98"}  # the guide's
N_PROMPTS, N_STEPS = 20, 28
SIZE = (256, 256)


class References:
    """The rows, as they come."""

    def __init__(self, n_edits: int):
        self.n_edits = n_edits
        every = held_out.held_out(1000)
        one = [every[kind][: 2 * n_edits] for kind in ("recolor", "texture", "remove", "add", "move")]
        mixed = [edit for some in zip(*one, strict=False) for edit in some]
        self.edits = {1: mixed, 2: every["combine two"], 3: every["combine three"]}
        self.others = [edit.references[0] for edit in every["background"]]
        self.editor = Editor("BF16")
        self.rows: list[dict[str, Any]] = []

    def add(self, name: str, measured: float, unit: str, note: str, better: str = "higher") -> None:
        """One result."""
        self.rows.append(report.row(f"references.{name}", measured, unit, note, None, better))
        report.show(self.rows[-1:])

    def numbers(self) -> None:
        """Success and consistency by number of references."""
        for n in NUMBERS:
            edits = self.edits[min(n, 3)][: self.n_edits]
            pictures, right, references = self.made(edits, n_more=n - min(n, 3))
            self.judge(str(n), pictures, right, references, f"{len(edits)} edits, {N_STEPS} steps")

    def layouts(self) -> None:
        """The other layouts, of which the model learnt nothing."""
        edits = self.edits[2][: self.n_edits]
        for layout in ("index", "stitched"):
            pictures, right, references = self.made(edits, layout=layout)
            self.judge(f"2.{layout}", pictures, right, references, f"layout {layout}, {len(edits)} edits")

    def weights(self) -> None:
        """SSIM of the result to the reference, whose weight falls."""
        from kontextkit.engine.metrics.ssim import ssim

        edits = self.edits[1][: self.n_edits]
        for weight in WEIGHTS:
            pictures, _, references = self.made(edits, weight=weight)
            likeness = ssim(pictures, references[0])
            note = f"{len(edits)} edits; worst {likeness.min():.4f}" + (
                f"; the guide claims {CLAIMS[weight]}" if weight in CLAIMS else ""
            )
            name = f"weight_{weight:g}".replace(".", "_")
            self.add(f"{name}.ssim_to_context", likeness.mean().item(), "SSIM", note)

    def gallery(self) -> None:
        """Twenty prompts over two pictures through our node, encoded once and each time."""
        from kontextkit.bridge import encoded
        from kontextkit.nodes.encode_references import KontextEncodeReferences

        _, references = held_out.truth(self.edits[2][:1], SIZE)
        pictures = {f"image{i}": each.movedim(1, -1) for i, each in enumerate(references)}
        prompts = [self.editor.encode([edit.prompt]) for edit in islice(cycle(self.edits[2]), N_PROMPTS)]
        seconds = {}
        for name in ("kept", "each_time"):
            encoded.forget()
            begin = time.perf_counter()
            for prompt in prompts:
                KontextEncodeReferences.execute(prompt, self.editor.vae, pictures, "offset", 0, 0, 1, "pad")
                if name == "each_time":
                    encoded.forget()
            seconds[name] = time.perf_counter() - begin
            note = f"{N_PROMPTS} prompts over 2 pictures of 256x256, the node alone"
            self.add(f"gallery.{name}_seconds", seconds[name], "s", note, "lower")
        self.add("gallery.times_faster", seconds["each_time"] / seconds["kept"], "times", "each time over kept")

    def restore(self) -> None:
        """The way back to a picture's own size, the median of five."""
        from kontextkit.nodes.restore_size import KontextRestoreSize

        image, original, seconds = torch.rand(1, 1024, 1024, 3), torch.rand(1, 1000, 1000, 3), []
        for _ in range(6):
            begin = time.perf_counter()
            KontextRestoreSize.execute(image, original, "pad")
            seconds.append(time.perf_counter() - begin)
        self.add("restore_ms", 1e3 * median(seconds[1:]), "ms", "1024x1024 to 1000x1000, median of 5", "lower")

    def made(
        self, edits: list[Any], n_more: int = 0, layout: str = "offset", weight: float = 1.0
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Pictures (n, 3, H, W), the right ones and the references, each through the conditioning of our node."""
        pictures, right = [], []
        references: list[list[Tensor]] = []
        for i in range(0, len(edits), self.editor.at_once):
            some = edits[i : i + self.editor.at_once]
            their_right, theirs = held_out.truth(some, SIZE)
            theirs += self.more(len(some), n_more)
            pictures.append(self.sampled([edit.prompt for edit in some], theirs, layout, weight, seed=i))
            right.append(their_right)
            references.append(theirs)
        return torch.cat(pictures), torch.cat(right), [torch.cat(column) for column in zip(*references, strict=True)]

    def more(self, n: int, n_more: int) -> list[Tensor]:
        """References that no prompt names, (n, 3, H, W) each."""
        from kontextkit.demo.training.draw import draw

        scenes = [self.others[i * n : (i + 1) * n] for i in range(n_more)]
        return [(draw(some, *SIZE, held_out.DEVICE) * 255).round() / 255 for some in scenes]

    def sampled(self, prompts: list[str], references: list[Tensor], layout: str, weight: float, seed: int) -> Tensor:
        """Pictures (B, 3, H, W)."""
        import node_helpers
        from kontextkit.bridge.references import weigh, with_references

        import nodes

        pixels = [each.movedim(1, -1) for each in references]
        if layout == "stitched":  # two of one size, one below the other
            pixels = [torch.cat(pixels, dim=1)]
        latents = [self.editor.vae.encode(each) for each in pixels]
        positive = node_helpers.conditioning_set_values(self.editor.encode(prompts), {"guidance": 1.0})
        positive = weigh(with_references(positive, latents, [()] * len(latents), layout), weight)
        start = {"samples": torch.zeros_like(latents[0][:, :, : SIZE[0] // 8])}
        how = (N_STEPS, 1.0, "euler", "simple")
        (made,) = nodes.common_ksampler(self.editor.model, seed, *how, positive, self.editor.encode([""]), start)
        return self.editor.decode(made["samples"])

    def judge(self, name: str, pictures: Tensor, right: Tensor, references: list[Tensor], note: str) -> None:
        """Two rows."""
        from kontextkit.demo.training.judge import judge

        success = judge(references[0], right, pictures).success.float().mean().item()
        self.add(f"{name}.success", success, "share", note)
        kept = [value for value in map(consistency, pictures, right, references[0]) if value is not None]
        words = f"SSIM to the first reference where nothing should change; {len(kept)} edits, worst {min(kept):.4f}"
        self.add(f"{name}.consistency", mean(kept), "SSIM", words)


def consistency(picture: Tensor, right: Tensor, before: Tensor) -> float | None:
    """Mean SSIM of windows that touch no change, of pictures (3, H, W); None where every window does."""
    from kontextkit.engine.metrics.ssim import ssim_map

    changed = ((right - before).abs().amax(dim=0) > 0.05).float()[None]
    untouched = F.max_pool2d(changed, 11, stride=1)[0] == 0
    windows = ssim_map(picture[None], before[None])[0].mean(dim=0)
    return windows[untouched].mean().item() if untouched.any() else None


def main() -> None:
    """Command line."""
    parser = report.parser(__doc__, "references.json")
    parser.add_argument("--edits", type=int, default=40, help="for each number of references")
    options = parser.parse_args()
    report.import_comfyui()
    report.import_pack()
    with torch.inference_mode():
        bench = References(options.edits)
        for part in (bench.restore, bench.gallery, bench.weights, bench.numbers, bench.layouts):
            part()
            report.save(options.out, bench.rows, "references.py", "--edits", str(options.edits))


if __name__ == "__main__":
    main()
