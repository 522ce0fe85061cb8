"""MODELs under Optimize Kontext, and what their runs say."""

import re
from dataclasses import dataclass, field

from kontextkit.engine.cache.first_block import FirstBlockSettings
from kontextkit.engine.tiers.presets import Choices

SKIPS = FirstBlockSettings(0.8)  # the twins' random weights change more from step to step than trained ones
NODE = "7"
KINDS = {"full": "passes computed", "kept": "with kept references", "skipped": "skipped"}  # as a report calls them


def optimized(model, cache=None, compile="off", attention="comfyui", references=None, node_id=NODE):
    from kontextkit.bridge import optimize

    return optimize.apply(model, Choices(cache, compile, attention, references=references), node_id)[0]


def mapped(model, *computed, order=1):
    """Computes these steps, whatever changes."""
    return optimized(model, FirstBlockSettings(order=order, most_skips=100, computed=frozenset(computed)))


@dataclass
class Said:
    """What is shown under nodes, the last last."""

    texts: list[str] = field(default_factory=list)
    nodes: list[str] = field(default_factory=list)

    def show(self, text, node_id):
        self.texts.append(text)
        self.nodes.append(node_id)

    def passes(self):
        """(computed, skipped) passes of the last run; those with kept references are computed ones."""
        full, kept, skipped = (sum(map(int, re.findall(rf"(\d+) {kind}", self.texts[-1]))) for kind in KINDS.values())
        return full + kept, skipped


def patched(model, stop):
    """A clone whose first block calls `stop` first, at every pass."""
    clone = model.clone()

    def replace(args, extra):
        stop()
        return extra["original_block"](args)

    clone.set_model_patch_replace(replace, "dit", "double_block", 0)
    return clone
