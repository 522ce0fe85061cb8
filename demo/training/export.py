"""The trained model as the files that ship."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...engine.checkpoint import open_checkpoint
from ...engine.flux.config import FluxConfig
from ...engine.flux.names import SWAPPED, linears, norms
from ...engine.flux.weights import read_weights
from ...engine.words.vocabulary import Vocabulary
from .autoencoder import Autoencoder
from .lessons import DemoModel

TRANSFORMER, Q8_0 = "kontext_demo_bf16.safetensors", "kontext_demo_q8_0.gguf"
AUTOENCODER, WORDS = "kontext_demo_vae.safetensors", "kontext_demo_words.safetensors"


def export(model: DemoModel, autoencoder: Autoencoder, vocabulary: Vocabulary, folder: Path) -> None:
    """BF16 safetensors: transformer under BFL's names, autoencoder under diffusers', words with their list."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)

    def save(tensors: dict[str, Tensor], name: str, metadata: dict[str, str] | None = None) -> None:
        ready = {key: tensor.detach().cpu().bfloat16().contiguous() for key, tensor in tensors.items()}
        save_file(ready, folder / name, {"format": "pt"} | (metadata or {}))

    state = bfl_state(model.transformer)
    save(state, TRANSFORMER)
    write_q8_0(state, folder / Q8_0)
    save(autoencoder.kl.state_dict(), AUTOENCODER)
    save(model.words.state_dict(), WORDS, {"words": json.dumps(vocabulary.words)})


def read_model(model: DemoModel, vocabulary: Vocabulary, folder: Path) -> None:
    """Exported weights into a model of the same shape; words that are new keep the states they have."""
    from safetensors import safe_open

    with safe_open(str(folder / WORDS), "pt") as file:
        known = ["", *json.loads(file.metadata()["words"])]
        words = ["", *vocabulary.words]
        state = model.words.state_dict()
        state["positions.weight"] = file.get_tensor("positions.weight").float()
        for i, word in enumerate(words):
            if word in known:
                state["words.weight"][i] = file.get_tensor("words.weight")[known.index(word)].float()
        model.words.load_state_dict(state)
    _, weights = read_weights(open_checkpoint(folder / TRANSFORMER))
    model.transformer.load_state_dict({name: tensor.decode(torch.float32) for name, tensor in weights.items()})


def read_autoencoder(autoencoder: Autoencoder, folder: Path) -> None:
    """Exported weights into an autoencoder of the same shape."""
    from safetensors.torch import load_file

    autoencoder.kl.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / AUTOENCODER).items()})


def bfl_state(transformer: Any) -> dict[str, Tensor]:
    """{BFL name: tensor} of diffusers' `FluxTransformer2DModel`."""
    own = transformer.state_dict()
    known = {field.name for field in fields(FluxConfig)}
    config = FluxConfig(**{key: value for key, value in transformer.config.items() if key in known})
    state = {f"{bfl}.scale": own[f"{target}.weight"] for bfl, target in norms(config)}
    for bfl, targets in linears(config):
        for part in ("weight", "bias"):
            tensor = torch.cat([own[f"{target}.{part}"] for target in targets])
            state[f"{bfl}.{part}"] = torch.cat(tensor.chunk(2)[::-1]) if bfl == SWAPPED else tensor
    return state


def write_q8_0(state: dict[str, Tensor], path: Path) -> None:
    """A GGUF file as FLUX's are: matrices of blocks in Q8_0, embedders and the last layer in BF16, vectors in F32."""
    import gguf

    writer = gguf.GGUFWriter(path, "flux")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    for name, tensor in state.items():
        values = tensor.detach().float().cpu().numpy()
        if values.ndim == 1:
            qtype = gguf.GGMLQuantizationType.F32
        elif "blocks." in name:
            qtype = gguf.GGMLQuantizationType.Q8_0
        else:
            qtype = gguf.GGMLQuantizationType.BF16
        writer.add_tensor(name, gguf.quantize(values, qtype), raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
