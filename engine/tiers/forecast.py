"""What a run will take, from what was measured: memory by counting, time by the card's own speed.

Measured on one H200, torch 2.11 (benchmarks/results): full_size.json, gguf_memory.json and gguf_steps.json.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..references.cost import N_TXT, flop, n_bytes
from .detect import Machine
from .tiers import Settings

CONTEXT_GB = 0.8  # of the card beside torch's own memory: peaks under the caps less what torch reserved there
PASS_GB = 0.55  # of a pass beside what its tokens take: Q4_K_M at 768x768 reserved 1.17 GB for 5120 tokens
BLOCKS_GB = 1.0  # weights of the blocks that are on their way, where the rest is streamed
LORA_GB = 0.7
# What a pass reaches of a plain product's speed. A card: 414 ms for 165 TFLOP, where a product ran at 797 TFLOP/s. The
# CPU: 5.43 s for a double block of 0.66 TFLOP (cpu_blocks.json), where a product ran at 0.13.
CARD_SHARE, CPU_SHARE = 0.50, 0.93


@dataclass(frozen=True)
class Forecast:
    """whole_gb: of the card, with all weights on it. least_gb: with as many weights as possible streamed.

    step_seconds: every token of a step computed; None without a speed.
    """

    whole_gb: float
    least_gb: float
    step_flop: float
    step_seconds: float | None

    def warnings(self, machine: Machine, weights_gb: float, host_gb: float) -> list[str]:
        """What to know before the run, a sentence each; empty where all fits. host_gb: what the machine needs."""
        card, host = machine.card_bytes / 1e9, machine.host_bytes / 1e9
        warnings = []
        if not machine.has_card:
            if self.whole_gb > host:
                warnings.append(
                    f"This will not fit: it needs about {self.whole_gb:.0f} GB, the machine has {host:.0f}."
                )
            return warnings
        if self.least_gb > card:
            warnings.append(
                f"This will not fit: it needs at least {self.least_gb:.1f} GB, the card has {card:.1f}. Take a smaller "
                "size or a lower tier."
            )
        elif self.whole_gb > card:
            kept = min(weights_gb, self.whole_gb - card)
            warnings.append(
                f"About {kept:.1f} of {weights_gb:.1f} GB of weights will stay in the machine's memory and come over "
                "at every step, which takes longer."
            )
        if host < host_gb:
            warnings.append(
                f"The machine has {host:.0f} GB of memory; with the text encoders it wants {host_gb:.0f}, else the "
                "disk is read again and again."
            )
        return warnings


def forecast(settings: Settings, references: int = 1, tflops: float | None = None, has_card: bool = True) -> Forecast:
    """Of one picture at a time. references: pictures of the target's size. tflops: of a plain product there."""
    n = settings.width * settings.height // 256 * (1 + references) + N_TXT
    work = pass_gb(n) + LORA_GB * settings.lora
    seconds = step_seconds(n, tflops, has_card)
    return Forecast(settings.model.gb + work, BLOCKS_GB + work, flop(n), seconds)


def pass_gb(n_tokens: int) -> float:
    """What a step over so many tokens, text included, takes of a card beside the weights."""
    return CONTEXT_GB + PASS_GB + n_bytes(n_tokens) / 1e9


def step_seconds(n_tokens: int, tflops: float | None, has_card: bool) -> float | None:
    """Of a step that computes so many tokens, text included; None without a speed."""
    return flop(n_tokens) / ((CARD_SHARE if has_card else CPU_SHARE) * tflops * 1e12) if tflops else None
