"""The files that FLUX.1 Kontext needs: what they are called, where they go, where they are to be had."""

from __future__ import annotations

from dataclasses import dataclass

_KONTEXT_GGUF = "https://huggingface.co/QuantStack/FLUX.1-Kontext-dev-GGUF/resolve/main"
_ENCODERS = "https://huggingface.co/comfyanonymous/flux_text_encoders/resolve/main"
_T5_GGUF = "https://huggingface.co/city96/t5-v1_1-xxl-encoder-gguf/resolve/main"


@dataclass(frozen=True)
class File:
    """gb: 1e9 bytes on disk. directory: below ComfyUI's models. hint: what a download needs beside the link."""

    name: str
    directory: str
    url: str
    gb: float
    hint: str = ""

    @property
    def how_to_get(self) -> str:
        """One sentence."""
        return f"Download it ({self.gb:.1f} GB) from {self.url}{f' ({self.hint})' if self.hint else ''}"


MODELS = {  # precision: its file. Sizes as their pages give them
    "BF16": File(
        "flux1-kontext-dev.safetensors",
        "diffusion_models",
        "https://huggingface.co/black-forest-labs/FLUX.1-Kontext-dev/resolve/main/flux1-kontext-dev.safetensors",
        23.8,
        "log in there and accept the licence first",
    ),
    "FP8": File(
        "flux1-dev-kontext_fp8_scaled.safetensors",
        "diffusion_models",
        "https://huggingface.co/Comfy-Org/flux1-kontext-dev_ComfyUI/resolve/main/split_files/diffusion_models/"
        "flux1-dev-kontext_fp8_scaled.safetensors",
        11.9,
    ),
} | {
    precision: File(name := f"flux1-kontext-dev-{precision}.gguf", "diffusion_models", f"{_KONTEXT_GGUF}/{name}", gb)
    for precision, gb in (("Q8_0", 12.7), ("Q5_K_M", 8.42), ("Q4_K_M", 6.93), ("Q3_K_M", 5.37))
}
CLIP_L = File("clip_l.safetensors", "text_encoders", f"{_ENCODERS}/clip_l.safetensors", 0.25)
T5_F16 = File("t5xxl_fp16.safetensors", "text_encoders", f"{_ENCODERS}/t5xxl_fp16.safetensors", 9.8)
T5_FP8 = File(
    "t5xxl_fp8_e4m3fn_scaled.safetensors", "text_encoders", f"{_ENCODERS}/t5xxl_fp8_e4m3fn_scaled.safetensors", 5.2
)
T5_Q4 = File("t5-v1_1-xxl-encoder-Q4_K_M.gguf", "text_encoders", f"{_T5_GGUF}/t5-v1_1-xxl-encoder-Q4_K_M.gguf", 2.9)
VAE = File(
    "ae.safetensors",
    "vae",
    "https://huggingface.co/Comfy-Org/Lumina_Image_2.0_Repackaged/resolve/main/split_files/vae/ae.safetensors",
    0.34,
)
LIGHTNING = File(
    "FLUX.1-Turbo-Alpha.safetensors",
    "loras",
    "https://huggingface.co/alimama-creative/FLUX.1-Turbo-Alpha/resolve/main/diffusion_pytorch_model.safetensors",
    0.69,
    "there it is called diffusion_pytorch_model.safetensors: give it this name",
)
FILES = {file.name: file for file in (*MODELS.values(), CLIP_L, T5_F16, T5_FP8, T5_Q4, VAE, LIGHTNING)}
