"""Reads a LoRA file, whatever trainer wrote it, as one adapter for each Linear that it changes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from ..checkpoint import explained, map_safetensors, sniff
from ..errors import CheckpointError, LoraError, listing
from .adapters import Adapter, Kronecker
from .assemble import by, fit, make_adapter
from .dialects import Place, is_for_text_encoder, other_model, places, split_key, why_unused
from .settings import PeftSettings

Shapes = Mapping[str, tuple[int, int]]
_SIBLINGS = {384: "FLUX.1 Fill", 128: "FLUX.1 Canny, Depth or another control"}  # by the channels of a token
_PICKLES = (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05")  # a zip of them, or one of protocol 2, 4, 5
_CHOOSE = "Choose a LoRA made for FLUX.1 dev or Kontext."


@dataclass(frozen=True)
class Lora:
    """What a LoRA file changes, and what of it was understood.

    adapters: by diffusers' name of the Linear. dialect: in which most keys are. metadata: the header's notes.
    n_keys, n_matched: tensors in the file, and those that the adapters are made of. skipped: (key, why) of the others.
    """

    file_name: str
    adapters: dict[str, Adapter]
    dialect: str
    metadata: dict[str, str]
    n_keys: int
    n_matched: int
    skipped: tuple[tuple[str, str], ...]

    @property
    def matched_share(self) -> float:
        """Matched keys over those that are meant for the transformer, 0 to 1."""
        elsewhere = sum(is_for_text_encoder(key) for key, _ in self.skipped)
        return self.n_matched / (self.n_keys - elsewhere)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that occur, from small to large; Kronecker products have none."""
        return tuple(sorted({a.rank for a in self.adapters.values() if not isinstance(a, Kronecker)}))

    def report(self) -> str:
        """A few lines for a person."""
        what = f"rank {listing(map(str, self.ranks))}" if self.ranks else "Kronecker products"
        n = len(self.adapters)
        lines = [
            f"{self.file_name}: {self.dialect} names, {what}, changes {n} Linear{'s' * (n > 1)}.",
            f"{self.n_matched} of {self.n_keys} keys matched ({self.matched_share:.0%} of the transformer's).",
        ]
        groups = defaultdict(list)
        for key, why in self.skipped:
            groups[why].append(key)
        for why, keys in sorted(groups.items(), key=lambda group: -len(group[1])):
            lines.append(f"Skipped {len(keys)}: {why} ({listing(keys, 2)}).")
        return "\n".join(lines)


def read_lora(path: str | Path, shapes: Shapes) -> Lora:
    """The LoRA in the safetensors file at `path`, for a model whose Linears have these `shapes`.

    shapes: {diffusers' name: (out, in)}. The adapters' tensors are views of the mapped file where they can be.
    Raises LoraError for a file that is broken, holds no LoRA, or holds one for another model.
    """
    path = Path(path)
    tensors, metadata = _open(path)
    _check_kind(path.name, tensors)
    known = places(shapes)
    modules = _group(path.name, tensors)
    unknown = {module: modules.pop(module) for module in list(modules) if module not in known}
    _check_model(path.name, {m: {p: tensors[key] for p, key in keys.items()} for m, keys in unknown.items()}, shapes)
    skipped = {key: why_unused(key) for keys in unknown.values() for key in keys.values()}
    settings = PeftSettings(path.name, metadata)
    adapters: dict[str, Adapter] = {}
    dialects: Counter[str] = Counter()
    for module, keys in modules.items():
        place, where = known[module], f"{path.name}: {module!r}"
        parts = {part: tensors[key] for part, key in keys.items()}
        check_shape = partial(_check_shape, where, place, shapes)
        adapter = make_adapter(where, parts, settings.scale_of(module), check_shape)
        if adapter is None:
            skipped |= dict.fromkeys(keys.values(), "stands alone, without a low-rank pair")
            continue
        fitted = fit(where, adapter, [shapes[target][0] for target in place.targets], place.swapped)
        for target, own in zip(place.targets, fitted, strict=True):
            if target in adapters:
                raise LoraError(f"{where} changes {target!r}, which another key already does. Delete one of them.")
            adapters[target] = own
        dialects[place.dialect] += len(keys)
    if not adapters:
        raise _no_match(path.name, skipped)
    dialect = dialects.most_common(1)[0][0]
    n_matched = len(tensors) - len(skipped)
    return Lora(path.name, adapters, dialect, metadata, len(tensors), n_matched, tuple(skipped.items()))


def _open(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and notes of the file, its header checked before the library sees it."""
    try:
        with explained(path):
            with path.open("rb") as file:
                head = file.read(9)
            if head[:2] in _PICKLES and head[8:] != b"{":
                raise LoraError(
                    f"{path.name}: this is a PyTorch pickle, which can run a stranger's code when opened; expected "
                    ".safetensors. Convert it with torch.load(..., weights_only=True) and safetensors.torch.save_file, "
                    "or get it as .safetensors."
                )
            if sniff(path) == "GGUF":
                raise LoraError(
                    f"{path.name}: this is a GGUF file, expected .safetensors. Get the LoRA as .safetensors; "
                    "a GGUF of a whole model belongs into Load Kontext Model."
                )
            return map_safetensors(path)
    except LoraError:
        raise
    except CheckpointError as error:
        raise LoraError(str(error)) from error


def _group(file_name: str, keys: Iterable[str]) -> dict[str, dict[str, str]]:
    """{module: {part: key}}; what is no part of a LoRA stands under no module, by its own name."""
    modules: dict[str, dict[str, str]] = defaultdict(dict)
    for key in keys:
        module, part = split_key(key) or ("", key)
        if part in modules[module]:
            raise LoraError(f"{file_name}: {key!r} and {modules[module][part]!r} are one part. Delete one of them.")
        modules[module][part] = key
    return modules


def _check_kind(file_name: str, tensors: Mapping[str, Tensor]) -> None:
    """Refuses a file without any part of a LoRA."""
    if any(split_key(key) for key in tensors):
        return
    if any(key.endswith(("attn.to_q.weight", "qkv.weight", "linear1.weight", "q_proj.weight")) for key in tensors):
        raise LoraError(
            f"{file_name}: this is a full model of {len(tensors)} tensors, not a LoRA. "
            "Load it with Load Kontext Model if it is a FLUX.1 Kontext, and choose a LoRA here."
        )
    held = listing(tensors, 3) or "no tensors at all"
    raise LoraError(f"{file_name}: there is no LoRA in this file (it holds {held}). {_CHOOSE}")


def _check_model(file_name: str, unknown: Mapping[str, Mapping[str, Tensor]], shapes: Shapes) -> None:
    """Refuses a LoRA with modules that only another model has, even where others bear FLUX's names."""
    for module, parts in unknown.items():
        model = None if is_for_text_encoder(module) else other_model(module)
        if model:
            example = next((name for name in shapes if name.endswith("attn.to_q")), next(iter(shapes)))
            raise LoraError(
                f"{file_name}: this LoRA was made for another model, {model} by its keys: it has {module!r} "
                f"({_size(parts)}), which FLUX.1 has not; this model's {example!r} is {by(shapes[example])}. {_CHOOSE}"
            )


def _size(parts: Mapping[str, Tensor]) -> str:
    """Of the Linear that unknown parts belong to, as far as they tell."""
    down, up = parts.get("down"), parts.get("up")
    if down is None or up is None or min(down.ndim, up.ndim) < 2:
        return "parts of " + listing(str(list(part.shape)) for part in parts.values())
    return by((up.shape[0], down.shape[1]))


def _check_shape(where: str, place: Place, shapes: Shapes, found: tuple[int, int]) -> None:
    expected = sum(shapes[target][0] for target in place.targets), shapes[place.targets[0]][1]
    if found == expected:
        return
    n_in = found[1]
    says = f"{where} changes a Linear of {by(found)}, this model's is {by(expected)}"
    if place.targets == ("x_embedder",) and n_in in _SIBLINGS:
        raise LoraError(f"{says} (out x in): it was made for {_SIBLINGS[n_in]}. {_CHOOSE}")
    raise LoraError(f"{says} (out x in, {listing(place.targets)}): it was made for another model. {_CHOOSE}")


def _no_match(file_name: str, skipped: Mapping[str, str]) -> LoraError:
    keys = [key for key in skipped if not is_for_text_encoder(key)]
    if not keys:
        return LoraError(
            f"{file_name}: all {len(skipped)} keys belong to text encoders; it holds nothing for the transformer. "
            "Apply it with ComfyUI's LoraLoader, to the CLIP."
        )
    return LoraError(
        f"{file_name}: none of {len(skipped)} keys matches this model: {listing(keys, 3)}. It is in no dialect that "
        f"this pack knows, or was made for another model. {_CHOOSE}"
    )
