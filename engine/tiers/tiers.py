"""Hardware tiers and use cases: one row each. The node, the workflows, the help page and the README read them.

Steps, guidance and sizes are those of the guide that this pack follows; they have been measured on no real card yet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .files import LIGHTNING, MODELS, T5_F16, T5_FP8, T5_Q4, File

STANDARD = "standard"  # the use case that is the tier's own row
PRECISIONS = ("Q3_K_M", "Q4_K_M", "Q5_K_M", "BF16")  # from small to large
BFL_GUIDANCE = 2.5  # FLUX.1 Kontext's own default, by Black Forest Labs


@dataclass(frozen=True)
class Settings:
    """What to sample with. precision: of PRECISIONS. width, height: pixels. preset: of `engine.tiers.presets`."""

    precision: str
    steps: int
    guidance: float
    width: int
    height: int
    lora: bool = False
    sampler: str = "euler"
    scheduler: str = "simple"
    preset: str = "balanced"

    @property
    def megapixels(self) -> float:
        """The size in units of 1024x1024 pixels."""
        return self.width * self.height / 1024**2

    @property
    def model(self) -> File:
        """The transformer's file."""
        return MODELS[self.precision]

    @property
    def lora_file(self) -> File | None:
        """A step-distilled LoRA, where it is sampled with one."""
        return LIGHTNING if self.lora else None


@dataclass(frozen=True)
class Tier:
    """A kind of machine.

    slug: in file names. words: for whom. card_gb: memory of the card from which auto takes it, in 1e9 bytes; None where
    auto never does. host_gb: free memory of the machine that it needs. best: the largest precision, largest: pixels a
    side, that a use case may ask of it.
    """

    name: str
    slug: str
    words: str
    settings: Settings
    card_gb: float | None
    host_gb: float
    best: str
    largest: int
    text_encoder: File


@dataclass(frozen=True)
class UseCase:
    """A purpose: its settings, precision the largest that the tier allows of `precisions`."""

    name: str
    slug: str
    words: str
    settings: Settings
    precisions: tuple[str, ...]


def _square(precision: str, steps: int, guidance: float, side: int, lora: bool = False, preset: str = "") -> Settings:
    # of few distilled steps none can be spared
    return Settings(precision, steps, guidance, side, side, lora, preset=preset or ("quality" if lora else "balanced"))


# Memory in 1e9 bytes as drivers report it: an "8 GB" card has 8.2 to 8.6 of them, a "24 GB" one 25.3 to 25.8.
TIERS = {
    tier.name: tier
    for tier in (
        Tier(
            "80 GB", "80gb", "H100, H200, A100 80 GB: everything on the card, in BF16",
            _square("BF16", 28, 5.0, 1024, preset="quality"), 70, 24, "BF16", 1536, T5_F16,
        ),
        Tier(
            "24 GB standard", "24gb_standard", "RTX 4090, 3090 and larger: BF16, every step computed",
            _square("BF16", 28, 5.0, 768, preset="quality"), 28, 32, "BF16", 1536, T5_FP8,
        ),
        Tier(
            "24 GB optimized", "24gb_optimized", "RTX 4090, 3090: Q4_K_M leaves most of the card free",
            _square("Q4_K_M", 20, 5.0, 768), 21, 16, "BF16", 1536, T5_FP8,
        ),
        Tier(
            "24 GB Lightning", "24gb_lightning", "RTX 4090, 3090 with a step-distilled LoRA: 8 steps",
            _square("Q4_K_M", 8, 1.8, 768, lora=True), None, 16, "BF16", 1536, T5_FP8,
        ),
        Tier(
            "16 GB", "16gb", "RTX 4080, 4060 Ti 16 GB: Q5_K_M",
            _square("Q5_K_M", 20, 5.0, 768), 14.5, 16, "Q5_K_M", 1024, T5_FP8,
        ),
        Tier(
            "12 GB", "12gb", "RTX 4070, 3060 12 GB: Q4_K_M",
            _square("Q4_K_M", 20, 5.0, 768), 10.5, 16, "Q5_K_M", 1024, T5_FP8,
        ),
        Tier(
            "8 GB quality", "8gb_quality", "RTX 4060, 3070: Q4_K_M, 20 steps",
            _square("Q4_K_M", 20, 5.0, 512), 7.5, 16, "Q4_K_M", 768, T5_FP8,
        ),
        Tier(
            "8 GB low memory", "8gb_low_memory", "8 GB cards that also do other work, and 6 GB cards: Q3_K_M, sliced "
            "attention",
            _square("Q3_K_M", 16, 5.0, 512, preset="low memory"), 0, 12, "Q3_K_M", 512, T5_Q4,
        ),
        Tier(
            "CPU", "cpu", "no card: minutes a step",
            _square("Q3_K_M", 16, 4.0, 512), None, 12, "Q3_K_M", 512, T5_Q4,
        ),
    )
}  # fmt: skip

USE_CASES = {
    case.name: case
    for case in (
        UseCase(
            "interactive", "interactive", "ideas in quick turns",
            _square("Q4_K_M", 8, 1.8, 512, lora=True), ("Q4_K_M", "Q3_K_M"),
        ),
        UseCase(
            "production", "production", "daily work",
            _square("Q4_K_M", 20, 5.0, 768), ("Q4_K_M", "Q3_K_M"),
        ),
        UseCase(
            "portfolio", "portfolio", "pictures to show",
            _square("Q5_K_M", 28, 5.5, 1024, preset="quality"), ("Q5_K_M", "Q4_K_M", "Q3_K_M"),
        ),
        UseCase(
            "premium", "premium", "large prints; cards of 20 GB and more",
            _square("BF16", 28, 6.0, 1536, preset="quality"), ("BF16", "Q5_K_M", "Q4_K_M", "Q3_K_M"),
        ),
        UseCase(
            "gallery batch", "gallery_batch", "twenty pictures and more in a row",
            _square("Q3_K_M", 8, 1.8, 512, lora=True), ("Q3_K_M",),
        ),
    )
}  # fmt: skip


def settings_for(tier_name: str, use_case_name: str = STANDARD) -> tuple[Settings, list[str]]:
    """What to sample with, and, a sentence each, what of the use case the tier does not carry.

    Raises ValueError for a name of neither table.
    """
    tier = TIERS.get(tier_name)
    if tier is None:
        raise ValueError(f"There is no tier {tier_name!r}; choose one of {', '.join(TIERS)}.")
    if use_case_name == STANDARD:
        return tier.settings, []
    case = USE_CASES.get(use_case_name)
    if case is None:
        raise ValueError(f"There is no use case {use_case_name!r}; choose one of {', '.join((STANDARD, *USE_CASES))}.")
    fits = [precision for precision in case.precisions if PRECISIONS.index(precision) <= PRECISIONS.index(tier.best)]
    settings, notes = replace(case.settings, precision=fits[0]), []
    if tier.largest < settings.width:
        notes.append(
            f"{case.name} is for {settings.width}x{settings.height}; this tier stops at {tier.largest}x{tier.largest}."
        )
        settings = replace(settings, width=tier.largest, height=tier.largest)
    if tier.settings.preset == "low memory":
        settings = replace(settings, preset="low memory")
    return settings, notes
