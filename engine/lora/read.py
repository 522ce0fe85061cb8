"""Reads a LoRA file, whatever trainer wrote it, as one adapter for each Linear that it changes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..checkpoint.safetensors_file import map_safetensors
from ..checkpoint.sniff import sniff
from ..errors import CheckpointError, LoraError, listing
from .adapters import Adapter, Kronecker
from .assemble import fit, make_adapter
from .dialects import Place, is_for_text_encoder, other_model, places, split_key, why_unused
from .settings import PeftSettings

Shapes = Mapping[str, tuple[int, int]]
_SIBLINGS = {384: "FLUX.1 Fill", 128: "FLUX.1 Canny, Depth or another control"}  # by the channels of a token
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
        lines = [
            f"{self.file_name}: {self.dialect} names, {what}, changes {len(self.adapters)} Linears.",
            f"{self.n_matched} of {self.n_keys} keys matched ({self.matched_share:.0%} of the transformer's).",
        ]
        groups = defaultdict(list)
        for key, why in self.skipped:
            groups[why].append(key)
        lines += [f"Skipped {len(keys)}: {why} ({listing(keys, 2)})." for why, keys in groups.items()]
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
    modules: dict[str, dict[str, str]] = defaultdict(dict)  # {module: {part: key}}
    for key in tensors:
        module, part = split_key(key) or ("", key)
        if part in modules[module]:
            raise LoraError(f"{path.name}: {key!r} and {modules[module][part]!r} are one part. Delete one of them.")
        modules[module][part] = key
    unknown = {module: modules.pop(module) for module in list(modules) if module not in known}
    _check_model(path.name, {m: {p: tensors[key] for p, key in keys.items()} for m, keys in unknown.items()}, shapes)
    skipped = {key: why_unused(key) for keys in unknown.values() for key in keys.values()}
    settings = PeftSettings(path.name, metadata)
    adapters: dict[str, Adapter] = {}
    dialects: Counter[str] = Counter()
    for module, keys in modules.items():
        place, where = known[module], f"{path.name}: {module!r}"
        scale = settings.scale_of(module)
        adapter = make_adapter(where, {part: tensors[key] for part, key in keys.items()}, scale)
        if adapter is None:
            skipped |= dict.fromkeys(keys.values(), "stands alone, without a low-rank pair")
            continue
        _check_shape(where, adapter, place, shapes)
        parts = fit(where, adapter, [shapes[target][0] for target in place.targets], place.swapped)
        for target, fitted in zip(place.targets, parts, strict=True):
            if target in adapters:
                raise LoraError(f"{where} changes {target!r}, which another key already does. Delete one of them.")
            adapters[target] = fitted
        dialects[place.dialect] += len(keys)
    if not adapters:
        raise _no_match(path.name, skipped)
    dialect = dialects.most_common(1)[0][0]
    n_matched = len(tensors) - len(skipped)
    return Lora(path.name, adapters, dialect, metadata, len(tensors), n_matched, tuple(skipped.items()))


def _open(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and notes of the file, its header checked before the library sees it."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
        if head[:2] in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05") and head[8:9] != b"{":
            raise LoraError(
                f"{path.name}: this is a PyTorch pickle, which can run a stranger's code when it is opened; expected "
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
    except OSError as error:
        raise LoraError(
            f"{path.name}: the file cannot be read ({error.strerror or error}). It may have been moved or deleted "
            "since the list was made; press R in ComfyUI to refresh it and choose again."
        ) from error


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
            example, (n_out, n_in) = next(iter(shapes.items()))
            raise LoraError(
                f"{file_name}: this LoRA was made for another model, by its keys {model}: its {module!r} has parts of "
                f"{listing(str(list(part.shape)) for part in parts.values())}, and there is no such module in FLUX.1, "
                f"whose {example!r} is {n_out} x {n_in}. {_CHOOSE}"
            )


def _check_shape(where: str, adapter: Adapter, place: Place, shapes: Shapes) -> None:
    n_in = {shapes[target][1] for target in place.targets}
    expected = sum(shapes[target][0] for target in place.targets), *n_in
    if adapter.shape == expected:
        return
    found = adapter.shape
    says = f"{where} changes a Linear of {found[0]} x {found[1]}, this model's is {' x '.join(map(str, expected))}"
    if place.targets == ("x_embedder",) and found[1] in _SIBLINGS:
        raise LoraError(f"{says} (out x in): it was made for {_SIBLINGS[found[1]]}. {_CHOOSE}")
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
