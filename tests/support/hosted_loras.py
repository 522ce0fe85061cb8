"""Our MODEL with LoRAs on it."""

import loras


def linears(model):
    """{diffusers name: Linear} of a MODEL."""
    return loras.linears(model.model.diffusion_model.transformer)


def with_lora(model, path, strength=1.0):
    from kontextkit.bridge import lora

    return lora.apply(model, lora.read(path, model), strength)
