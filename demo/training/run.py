"""All of the training in order, every stage kept in a folder and skipped where it is done."""

from __future__ import annotations

import copy
import os
import time
from pathlib import Path
from random import Random

import torch
import torch.distributed as dist

from ...engine.metrics.ssim import ssim
from ...engine.training.flow_matching import CompiledBlocks
from ...engine.words.vocabulary import Vocabulary
from .autoencoder import Autoencoder
from .autoencoder_lessons import train_autoencoder
from .draw import draw
from .edits import random_edit
from .export import export, read_autoencoder, read_model
from .lessons import DemoModel, Lessons, Pool
from .pool import build_pool, learn_words
from .probe import look
from .recipe import Recipe, Size


class Run:
    """One process of the training; `torchrun` starts one a card."""

    def __init__(self, recipe: Recipe, folder: Path):
        self.recipe, self.folder = recipe, folder
        self.rank, self.n_processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = torch.device("cpu")
        if torch.cuda.is_available():
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(self.device)
            torch.backends.cuda.enable_cudnn_sdp(False)  # its backward pass crashed in torch 2.11
            torch._dynamo.config.recompile_limit = 64  # a block is compiled for student, teacher, sampling
        if self.n_processes > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        self.begin = time.perf_counter()
        self.hooks = CompiledBlocks() if self.device.type == "cuda" else None

    def say(self, text: str) -> None:
        """A line with the seconds since the start, from the first process."""
        if self.rank == 0:
            print(f"[{time.perf_counter() - self.begin:6.1f} s] {text}", flush=True)

    def rng(self, what: str) -> Random:
        """This process's own generator for a purpose."""
        return Random(f"{self.recipe.seed} {self.rank} {what}")

    def all(self, start: Path | None = None) -> None:
        """Autoencoder, lessons, files; from the exported files in `start`, or from nothing."""
        vocabulary = learn_words(Random(self.recipe.seed))
        torch.manual_seed(self.recipe.seed)
        model = DemoModel(self.recipe, len(vocabulary.words)).to(self.device)
        if start:
            read_model(model, vocabulary, start)
        n_parameters = sum(p.numel() for p in model.transformer.parameters())
        self.say(f"{n_parameters / 1e6:.2f} M parameters, {len(vocabulary.words)} words")
        autoencoder = self.autoencoder(start)
        side = self.recipe.side
        main = self.pool(self.recipe.n_main, (side, side), autoencoder, vocabulary)
        others = [self.pool(self.recipe.n_other, size, autoencoder, vocabulary) for size in self.recipe.other_sizes]
        before = copy.deepcopy(model)
        lessons = Lessons(self.recipe, model, self.device, self.rank, self.hooks)
        if start:
            main = lessons.prefer_hard(main)
        lessons.editing(main, others, self.folder, self.say)
        self.look(model, autoencoder, vocabulary, 1.0)
        lessons.guidance(main, others, self.folder, self.say)
        keep(model, before, self.recipe.kept)
        self.look(model, autoencoder, vocabulary, 1.0)
        self.look(model, autoencoder, vocabulary, 2.5)
        if self.rank == 0:
            export(model, autoencoder, vocabulary, self.folder / "export")
        if dist.is_initialized():
            dist.destroy_process_group()

    def autoencoder(self, start: Path | None) -> Autoencoder:
        """The finished one from the folder, or the one in `start`, or a new one."""
        path = self.folder / "autoencoder.pt"
        model = Autoencoder(self.recipe).to(self.device)
        if path.exists():
            model.load_state_dict(torch.load(path, map_location=self.device, weights_only=True))
        elif start:
            read_autoencoder(model, start)
        else:
            model = train_autoencoder(self.recipe, self.device, self.recipe.seed + self.rank, self.say)
            if self.rank == 0:
                self.folder.mkdir(parents=True, exist_ok=True)
                torch.save(model.state_dict(), path)
        model = model.eval().requires_grad_(False)
        self.say(f"autoencoder: SSIM {self.roundtrip(model):.4f}")
        return model

    @torch.no_grad()
    def roundtrip(self, model: Autoencoder) -> float:
        """Mean SSIM of held-out pictures through the autoencoder."""
        rng = Random("roundtrip")
        n = 64 if self.device.type == "cuda" else 2
        scenes = [random_edit("paint", rng).result for _ in range(n)]
        pictures = draw(scenes, self.recipe.side, self.recipe.side, self.device)
        parts = [ssim(part, model.decode(model.encode(part)).clamp(0, 1)) for part in pictures.split(16)]
        return float(torch.cat(parts).mean())

    def pool(self, n: int, size: Size, autoencoder: Autoencoder, vocabulary: Vocabulary) -> Pool:
        """This process's share of n edits."""
        pool = build_pool(
            -(-n // self.n_processes), size, autoencoder, vocabulary, self.rng(f"pool {size}"), self.device
        )
        self.say(f"pool of {sum(len(group.ids) for group in pool.values())} edits at {size[1]}x{size[0]}")
        return pool

    def look(self, model: DemoModel, autoencoder: Autoencoder, vocabulary: Vocabulary, guidance: float) -> None:
        """Held-out edits, on the first process."""
        if self.rank == 0:
            n_each, n_steps = (64, 28) if self.device.type == "cuda" else (1, 2)
            how = (n_each, n_steps, guidance, self.recipe.side, self.hooks)
            self.say(look(model, autoencoder, vocabulary, self.device, *how))


@torch.no_grad()
def keep(model: DemoModel, before: DemoModel, share: float) -> None:
    """Moves a model's parameters by a share of the way back to those of `before`."""
    for now, then in zip(model.parameters(), before.parameters(), strict=True):
        now.lerp_(then, share)
