"""Says that weights stream from host memory, once each time a model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from comfy.patcher_extension import CallbacksMP, WrappersMP

KEY = "kontextkit.streaming"
SMALL = 0.02  # of the weights: below this there is nothing to tell
GB = 1e9


class StreamingNotice:
    """Looks how much of a MODEL is on its card, after a step: dynamic VRAM only then knows what fits.

    file_name: what the line calls the weights.
    """

    def __init__(self, file_name: str):
        self.file_name = file_name
        self.told = False

    def attach(self, patcher: Any) -> None:
        """To a ModelPatcher and, through it, all its clones."""
        patcher.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, self.around_sampler)
        patcher.add_callback_with_key(CallbacksMP.ON_DETACH, KEY, self.when_unloaded)

    def around_sampler(
        self,
        sample: Callable[..., Any],
        guider: Any,
        sigmas: Any,
        extra_args: Any,
        callback: Any,
        *rest: Any,
        **more: Any,
    ) -> Any:
        """The arguments are those of ComfyUI's `Sampler.sample`, after the sampler itself."""

        def after_step(*step: Any) -> None:
            self.tell(guider.model_patcher)
            if callback is not None:
                callback(*step)

        return sample(guider, sigmas, extra_args, after_step, *rest, **more)

    def when_unloaded(self, patcher: Any, unpatch_all: bool) -> None:
        """ComfyUI's callback; without unpatch_all, the weights pass to a clone and stay where they are."""
        self.told = self.told and not unpatch_all

    def tell(self, patcher: Any) -> None:
        """The line, unless it was said or the weights are all on the card."""
        size, there = patcher.model_size(), patcher.loaded_size()
        if self.told or size - there <= SMALL * size:
            return
        self.told = True
        logging.info(
            "KontextKit: %.1f of %.1f GB of %s stay on the card, %.1f GB stream from host memory at each step, which "
            "takes longer. A smaller type, such as Q3_K_M, or a smaller picture leaves less to stream.",
            there / GB,
            size / GB,
            self.file_name,
            (size - there) / GB,
        )
