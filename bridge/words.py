"""The demo model's words as ComfyUI's CLIP."""

from __future__ import annotations

import logging
from typing import Any

import comfy.model_management
import comfy.sd
import torch
from comfy.sd1_clip import escape_important, token_weights, unescape_important
from comfy.supported_models_base import ClipTarget
from comfy_execution.utils import get_executing_context
from torch import Tensor

from ..engine.errors import listing
from ..engine.words.encoder import WordEncoder
from ..engine.words.vocabulary import N_POSITIONS, PADDING, Vocabulary
from .notes import show

CONTEXT, POOLED = "t5xxl", "l"  # FLUX's two prompts, named as in ComfyUI, so that CLIPTextEncodeFlux works too
HELP = (
    "Known: colors, shapes, textures, sizes, places, and add, change, make, move, put, remove, take, turn, use. "
    "All: help page of Load Kontext Demo Model."
)
ALL_CLEAR = "Every word was understood."

Token = tuple[int, float]  # a word's number, and how strongly it counts


class WordTokenizer:
    """A prompt in ComfyUI's syntax, "(red:1.3)" and all, to word numbers; what cannot be read is told."""

    def __init__(self, embedding_directory: Any = None, *, tokenizer_data: dict[str, Vocabulary]):
        self.vocabulary = tokenizer_data["vocabulary"]
        self._notes: dict[str, str] = {}  # by node: the prompt id of the run in which it was given a note

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **_: Any) -> dict[str, list[Any]]:
        """One section of N_POSITIONS tokens for each of FLUX's two prompts."""
        tokens, unknown, beyond = self._read(text)
        self._tell(unknown, beyond)
        n_words = len(tokens)
        tokens += [(PADDING, 1.0)] * (N_POSITIONS - n_words)
        if return_word_ids:
            places = [*range(1, n_words + 1), *[0] * (N_POSITIONS - n_words)]
            return {key: [[(*t, place) for t, place in zip(tokens, places, strict=True)]] for key in (POOLED, CONTEXT)}
        return {key: [list(tokens)] for key in (POOLED, CONTEXT)}

    def untokenize(self, tokens: list[Token]) -> list[tuple[Token, str]]:
        """Each token with its word."""
        return [(token, self._word(token[0])) for token in tokens]

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing to save beside the weights."""
        return {}

    def _read(self, text: str) -> tuple[list[Token], list[str], list[str]]:
        """At most N_POSITIONS tokens, the unknown words, the words too many."""
        tokens: list[Token] = []
        unknown: list[str] = []
        beyond: list[str] = []
        for segment, weight in token_weights(escape_important(text), 1.0):
            words = self.vocabulary.read(unescape_important(segment))
            room = N_POSITIONS - len(tokens)
            tokens += [(number, weight) for number in words.ids[:room]]
            unknown += words.unknown
            beyond += [self._word(number) for number in words.ids[room:]] + words.beyond
        return tokens, list(dict.fromkeys(unknown)), beyond

    def _word(self, number: int) -> str:
        return "" if number == PADDING else self.vocabulary.words[number - 1]

    def _tell(self, unknown: list[str], beyond: list[str]) -> None:
        """To the log and on the running node; ALL_CLEAR replaces an older note, which the front-end would keep."""
        running = get_executing_context()
        if unknown or beyond:
            note = _complaint(unknown, beyond)
            logging.warning("KontextKit: %s", note.replace("\n", " "))
            if running:
                self._notes[running.node_id] = running.prompt_id
                show(note, running.node_id)
        elif running and self._notes.get(running.node_id, running.prompt_id) != running.prompt_id:
            del self._notes[running.node_id]
            show(ALL_CLEAR, running.node_id)


def _complaint(unknown: list[str], beyond: list[str]) -> str:
    lines = []
    if beyond:
        lines.append(f"At most {N_POSITIONS} words, ignored: {listing(beyond, 12)}.")
    if unknown:
        lines += [f"Unknown words, ignored: {listing(unknown, 12)}.", HELP]
    return "\n".join(lines)


class WordClip(WordEncoder):
    """The word encoder with the calls that `comfy.sd.CLIP` makes."""

    def __init__(
        self, n_words: int, width: int, device: torch.device, dtype: torch.dtype, model_options: dict[str, Any]
    ):
        super().__init__(n_words, width)
        self.to(device, dtype).requires_grad_(False)
        self.dtypes = {dtype}

    def set_clip_options(self, options: dict[str, Any]) -> None:
        """It has no layers to choose from, and runs where its weights are."""

    def reset_clip_options(self) -> None:
        """See set_clip_options."""

    def encode_token_weights(self, tokens: dict[str, list[list[Token]]]) -> tuple[Tensor, Tensor]:
        """FLUX's conditioning: context (1, sections * N_POSITIONS, D), and pooled (1, D) of the first section."""
        context, _ = self._encode(tokens[CONTEXT])
        _, pooled = self._encode(tokens[POOLED])
        device = comfy.model_management.intermediate_device()
        return context.flatten(0, 1).unsqueeze(0).to(device), pooled[:1].to(device)

    def _encode(self, sections: list[list[Token]]) -> tuple[Tensor, Tensor]:
        ids = torch.tensor([[token[0] for token in section] for section in sections])
        weights = torch.tensor([[token[1] for token in section] for section in sections])
        to = self.words.weight
        return self(ids.to(to.device), weights.to(to.device, to.dtype))

    def load_sd(self, state: dict[str, Tensor]) -> Any:
        """Every tensor, or an error."""
        return self.load_state_dict(state)


def make_clip(vocabulary: Vocabulary, state: dict[str, Tensor]) -> comfy.sd.CLIP:
    """ComfyUI's CLIP of a `WordEncoder`'s state, in float32.

    Without dynamic VRAM: it would save nothing on some ten thousand weights, and ignore patches on them.
    """
    target = ClipTarget(WordTokenizer, WordClip)
    target.params = {"n_words": len(vocabulary.words), "width": state["words.weight"].shape[1]}
    return comfy.sd.CLIP(
        target,
        tokenizer_data={"vocabulary": vocabulary},
        parameters=sum(tensor.numel() for tensor in state.values()),
        state_dict=[state],
        model_options={"dtype": torch.float32},
        disable_dynamic=True,
    )
