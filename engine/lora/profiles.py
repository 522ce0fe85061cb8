"""What a LoRA wants of the sampler: the known step-distilled ones, and how a file is taken for one of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from .adapters import LowRank
from .read import Lora

AUTO = "auto"
PROFILE = "kontextkit.profile"  # its value names a profile: our own training writes it
STEPS, GUIDANCE = "kontextkit.sample_steps", "kontextkit.sample_guidance"  # and what it distilled the LoRA for
TITLES = ("modelspec.title", "ss_output_name", "name")  # where trainers write what they call their LoRA
N_LINEARS = 504  # of FLUX.1 dev: both known distilled LoRAs adapt every single one


@dataclass(frozen=True)
class Profile:
    """steps and guidance to sample with, and the strength that the LoRA was made for."""

    name: str
    steps: int
    guidance: float
    strength: float = 1.0
    words: str = ""  # a regex of what such files are called
    rank_bytes: int | None = None  # rank times bytes a number, where it adapts all Linears and nothing else is in it


# Turbo-Alpha: https://huggingface.co/alimama-creative/FLUX.1-Turbo-Alpha (guidance 2.5 on Kontext); its 694,082,424
# bytes are two factors on each of 504 Linears with 128 bytes of rank, and the header.
# Hyper: https://huggingface.co/ByteDance/Hyper-SD; 1.39 GB, so 256 bytes of rank.
PROFILES = {
    profile.name: profile
    for profile in (
        Profile("FLUX.1-Turbo-Alpha", 8, 2.5, words=r"turbo.?alpha|flux.{0,4}turbo", rank_bytes=128),
        Profile("Hyper-FLUX.1-dev-8steps", 8, 3.5, 0.125, words=r"hyper.*\b8.?step", rank_bytes=256),
        Profile("Hyper-FLUX.1-dev-16steps", 16, 3.5, 0.125, words=r"hyper.*16.?step", rank_bytes=256),
        Profile("demo-lightning", 8, 1.0, words=r"demo.?lightning"),
        Profile("lightning", 8, 1.8, words=r"lightning|turbo|\b8.?steps?\b"),
        Profile("none", 28, 2.5),
    )
}


def recognise(lora: Lora) -> tuple[Profile, str]:
    """(profile, why), by its metadata, then by rank and keys; the file name is the last hint."""
    named = lora.metadata.get(PROFILE, "")
    if named in PROFILES:
        return _as_distilled(PROFILES[named], lora.metadata), f"its metadata has {PROFILE} = {named}"
    for key in TITLES:
        if found := _by_words(lora.metadata.get(key, "")):
            return found, f"its metadata has {key} = {lora.metadata[key]}"
    by_name = _by_words(lora.file_name)
    rank_bytes = _rank_bytes(lora)
    for profile in PROFILES.values():
        if rank_bytes is not None and profile.rank_bytes == rank_bytes:
            if by_name and by_name.rank_bytes == rank_bytes:
                profile = by_name  # two known ones are alike but for their names
            return profile, f"like that one it adapts all {N_LINEARS} Linears, at rank {lora.ranks[0]}"
    if by_name:
        return by_name, f"its file name says so: {lora.file_name}"
    return PROFILES["none"], "nothing in it tells of a step-distilled LoRA"


def choose(lora: Lora, name: str) -> tuple[Profile, str]:
    """(profile, why) for a name of PROFILES or AUTO. Raises ValueError for another name."""
    if name == AUTO:
        return recognise(lora)
    if name not in PROFILES:
        raise ValueError(f"There is no profile {name!r}; choose one of {', '.join([AUTO, *PROFILES])}.")
    return PROFILES[name], "you chose it"


def _as_distilled(profile: Profile, metadata: Mapping[str, str]) -> Profile:
    """With the numbers that our own training wrote, if it did and they can be."""
    try:
        steps, guidance = int(metadata[STEPS]), float(metadata[GUIDANCE])
    except (KeyError, ValueError):
        return profile
    return replace(profile, steps=steps, guidance=guidance) if 0 < steps <= 1000 and 0 <= guidance <= 100 else profile


def _by_words(text: str) -> Profile | None:
    plain = re.sub(r"[_\s]+", " ", text.lower())
    return next((p for p in PROFILES.values() if p.words and re.search(p.words, plain)), None)


def _rank_bytes(lora: Lora) -> int | None:
    """Rank times bytes a number of a LoRA that is two plain factors on each of FLUX's Linears, else None."""
    low_rank = [a for a in lora.adapters.values() if isinstance(a, LowRank) and a.magnitude is None]
    sizes = {adapter.rank * adapter.down.element_size() for adapter in low_rank}
    everywhere = len(low_rank) == len(lora.adapters) == N_LINEARS and lora.n_keys == 2 * N_LINEARS
    return sizes.pop() if everywhere and len(sizes) == 1 else None
