"""Half the steps by another sampler: how alike the demo model's edits stay to those of Euler in 28 steps.

    COMFYUI_PATH=... python benchmarks/samplers.py [--edits N] [--tiny] [--out FILE]

Held-out edits of every kind, the same seeds; every step computed, so steps are what time goes by. Edits per kind
follow the shares of training.
"""

from __future__ import annotations

import statistics
from dataclasses import replace

import report
import torch
from held_out import Editor, Settings, held_out

FULL = Settings()
OTHERS = {
    "euler_14": replace(FULL, steps=14),
    "dpmpp_2m_14": replace(FULL, steps=14, sampler="dpmpp_2m"),
    "dpmpp_2m_sgm_14": replace(FULL, steps=14, sampler="dpmpp_2m", scheduler="sgm_uniform"),
}


def main() -> None:
    """Command line."""
    parser = report.parser(__doc__, "samplers.json")
    parser.add_argument("--edits", type=int, default=24)
    parser.add_argument("--tiny", action="store_true", help="one edit a kind in few steps, to try the script")
    options = parser.parse_args()
    report.tiny_variant(options)
    report.import_comfyui()
    report.import_pack()
    from kontextkit.engine.metrics.ssim import ssim

    editor, kinds = Editor(), held_out(1 if options.tiny else options.edits).values()
    rows = []
    with torch.inference_mode():
        results = {}
        for name, settings in {"euler_28": FULL, **OTHERS}.items():
            settings = replace(settings, steps=2) if options.tiny else settings
            successes, likenesses, made = [], [], []
            for edits in kinds:
                won, alike, pictures = editor.judge(edits, settings)
                successes += won
                likenesses += alike
                made.append(pictures)
            results[name] = torch.cat(made)
            n, note = len(successes), f"{settings.sampler}, {settings.scheduler}, {settings.steps} steps"
            note += f"; {n} held-out edits"
            share = sum(successes) / n
            rows.append(report.row(f"sampler.{name}.edit_success", share, "share", note, better="higher"))
            rows.append(
                report.row(f"sampler.{name}.ssim_to_truth", statistics.mean(likenesses), "SSIM", note, better="higher")
            )
            if name != "euler_28":
                kept = ssim(results["euler_28"], results[name])
                note = f"to Euler's picture of {FULL.steps} steps; worst {kept.min():.3f}; {n} held-out edits"
                rows.append(report.row(f"sampler.{name}.ssim", kept.mean().item(), "SSIM", note, better="higher"))
    given = ["--edits", str(options.edits)]
    report.write(options.out, rows, "samplers.py", *given)


if __name__ == "__main__":
    main()
