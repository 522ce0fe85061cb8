"""Which tier a machine is, and why."""

from __future__ import annotations

from dataclasses import dataclass

from .tiers import TIERS, Tier

CPU = "CPU"
AMPERE = (8, 0)  # the first NVIDIA cards with BF16 units
SHARE_OF_SHARED = 0.7  # of memory that a GPU shares with the system, which needs the rest


@dataclass(frozen=True)
class Machine:
    """kind: torch's, cuda (AMD's ROCm too), mps, xpu, cpu and others. card_bytes: all of the card; 0 without one.

    host_bytes: all of the machine. capability: NVIDIA's compute capability.
    """

    kind: str
    name: str
    card_bytes: int
    host_bytes: int
    capability: tuple[int, int] | None = None

    @property
    def has_card(self) -> bool:
        """Whether anything but the CPU computes."""
        return self.kind != "cpu"


@dataclass(frozen=True)
class Detected:
    """reasons: a sentence each."""

    tier: Tier
    reasons: tuple[str, ...]


def detect(machine: Machine) -> Detected:
    """The tier of a machine, by its memory, then by what its card can do."""
    if not machine.has_card:
        return Detected(TIERS[CPU], ("There is no card that ComfyUI can use, so the processor computes.",))
    usable, reasons = machine.card_bytes, []
    if machine.kind == "mps":
        usable = int(SHARE_OF_SHARED * machine.host_bytes)
        reasons.append(
            f"{machine.name} shares {machine.host_bytes / 1e9:.0f} GB with the system; about {usable / 1e9:.0f} of "
            "them are counted as the card's."
        )
    else:
        reasons.append(f"{machine.name} has {usable / 1e9:.1f} GB.")
    sized = [tier for tier in TIERS.values() if tier.card_gb is not None and tier.card_gb * 1e9 <= usable]
    tier = max(sized, key=lambda each: each.card_gb or 0)
    reasons.append(_why(tier))
    if machine.capability is not None and machine.capability < AMPERE:
        number = ".".join(map(str, machine.capability))
        reasons.append(f"Its compute capability {number} has no BF16 units (8.0 has), so it computes in float16.")
    return Detected(tier, tuple(reasons))


def _why(tier: Tier) -> str:
    model = tier.settings.model
    words = f"{tier.settings.precision} ({model.gb:.1f} GB)"
    if tier.name == "24 GB optimized":
        return f"BF16 ({TIERS['24 GB standard'].settings.model.gb:.1f} GB) would fill it; {words} leaves room."
    if tier.name == "8 GB quality":
        return f"{words} fits at {tier.settings.width}x{tier.settings.height} where nothing else is on the card."
    if tier.name == "8 GB low memory":
        return f"{words} is the smallest; what does not fit stays in the machine's memory and comes over at every step."
    return f"{words} fits whole."
