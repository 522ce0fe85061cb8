"""A ComfyUI node for tiers.py, which puts it beside the pack: the optimizer's steps are fixed, whatever changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

KEY, N_STEPS = "kontextkit.optimize", 28  # of the map


class FixedSteps:
    """A MODEL as Optimize Kontext gives it, and steps of 28, which become as many of however many are sampled."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "fix", "Kontext"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  ComfyUI's name
        """The MODEL and the steps, from 0, with commas."""
        return {"required": {"model": ("MODEL",), "steps": ("STRING",), "of": ("INT",)}}

    def fix(self, model: Any, steps: str, of: int) -> tuple[Any]:
        """A clone."""
        clone = model.clone()
        applied = clone.get_attachment(KEY)
        cache = replace(applied.choices.cache, computed=tuple({int(step) * of // N_STEPS for step in steps.split(",")}))
        clone.set_attachments(KEY, replace(applied, choices=replace(applied.choices, cache=cache)))
        return (clone,)


NODE_CLASS_MAPPINGS = {"FixedSteps": FixedSteps}
