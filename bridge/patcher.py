"""ComfyUI's ModelPatcher for our MODEL: it says so where a node's patches would change nothing."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch

DELEGATE = "kontextkit_delegate"  # on the model: what ComfyUI keeps of its copy without dynamic VRAM
REFUSAL = (
    "ComfyUI's own LoRA and merge nodes know FLUX by other tensor names than this MODEL has, so they would change "
    "nothing. For a LoRA use Load Kontext LoRA, which reads every kind of FLUX LoRA; take this node out otherwise."
)


def make_patcher(
    model: Any, load_device: torch.device, offload_device: torch.device, disable_dynamic: bool = False
) -> Any:
    """A ModelPatcher of the kind that ComfyUI itself would take for the device."""
    return _kontext_patcher(patcher_class(load_device, disable_dynamic))(model, load_device, offload_device)


def patcher_class(load_device: torch.device, disable_dynamic: bool) -> Any:
    """disable_dynamic: for ComfyUI, which asks for a patcher without dynamic VRAM in this way."""
    plain = disable_dynamic or comfy.model_management.is_device_cpu(load_device)
    return comfy.model_patcher.ModelPatcher if plain else comfy.model_patcher.CoreModelPatcher


def is_dynamic(patcher: Any) -> bool:
    """Whether dynamic VRAM brings its weights over inside each Linear."""
    return bool(getattr(patcher, "is_dynamic", bool)())  # ComfyUI 0.18 has no such question


@cache
def _kontext_patcher(base: Any) -> Any:
    """ComfyUI chooses the base when it starts, after this file may have been imported."""

    class KontextPatcher(base):
        """The base, and a sentence where LoRA loaders and merges only write a line to the log."""

        def add_patches(self, patches: dict[Any, Any], *rest: Any, **more: Any) -> list[Any]:
            added: list[Any] = super().add_patches(patches, *rest, **more)
            refuse(patches, added)
            return added

        def add_hook_patches(self, hook: Any, patches: dict[Any, Any], *rest: Any, **more: Any) -> list[Any]:
            added: list[Any] = super().add_hook_patches(hook, patches, *rest, **more)
            refuse(patches, added)
            return added

        def get_non_dynamic_delegate(self) -> Any:
            """One for the model, not one for each clone: another would load the file again."""
            self.non_dynamic_delegate_model = getattr(self.model, DELEGATE, None)
            made = super().get_non_dynamic_delegate()
            setattr(self.model, DELEGATE, self.non_dynamic_delegate_model)
            kind: Any = type(made)
            made.__class__ = _kontext_patcher(kind)
            return made

    return KontextPatcher


def refuse(patches: Iterable[Any], added: list[Any]) -> None:
    """Raises ValueError where none was added, unless all were for a text encoder. A key may be (name, part)."""
    names = [key if isinstance(key, str) else key[0] for key in patches]
    if not added and (not names or any(name.startswith("diffusion_model.") for name in names)):
        raise ValueError(REFUSAL)
