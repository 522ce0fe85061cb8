"""The tier of this machine in words: what was chosen and why, what a run will take, what will not fit."""

from __future__ import annotations

from ..engine.tiers.detect import detect
from ..engine.tiers.forecast import forecast
from ..engine.tiers.tiers import STANDARD, TIERS, Settings, settings_for
from .machine import machine, product_tflops
from .notes import show_here

AUTO = "auto"


def choose(tier: str, use_case: str) -> tuple[Settings, str]:
    """Settings and a report, for a name of TIERS or AUTO. Raises ValueError for a name that is in no table."""
    here, lines = machine(), []
    if tier == AUTO:
        found = detect(here)
        tier = found.tier.name
        lines += [f"Tier {tier}.", *found.reasons]
    settings, notes = settings_for(tier, use_case)
    row, tflops = TIERS[tier], product_tflops()
    purpose = "" if use_case == STANDARD else f", for {use_case}"
    model = f"{settings.model.name}{f' with {settings.lora_file.name}' if settings.lora_file else ''}"
    lines.append(
        f"{tier}{purpose}: {settings.width}x{settings.height}, {settings.steps} steps, guidance {settings.guidance:g}, "
        f"preset {settings.preset}. Load {model}."
    )
    coming = forecast(settings, 1, tflops, here.has_card)
    where = "of the card" if here.has_card else "of memory"
    words = f"Forecast with one reference: {coming.whole_gb:.1f} GB {where} where all is on it"
    if coming.step_seconds and tflops:
        total = settings.steps * coming.step_seconds
        words += (
            f"; {_time(coming.step_seconds)} a step, {_time(total)} for {settings.steps} steps, every one computed, "
            f"from a product that ran at {tflops:.3g} TFLOP/s here"
        )
    warnings = coming.warnings(here, settings.model.gb, row.host_gb)
    report = "\n".join((*lines, f"{words}.", *notes, *warnings))
    show_here(report)
    return settings, report


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
