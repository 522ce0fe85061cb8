"""Our MODEL with LoRAs on it."""

from kontextkit.engine.quant import QuantLinear


def linears(model):
    """{diffusers name: Linear} of a MODEL."""
    transformer = model.model.diffusion_model.transformer
    return {name: layer for name, layer in transformer.named_modules() if isinstance(layer, QuantLinear)}


def with_lora(model, path, strength=1.0):
    from kontextkit.bridge import lora

    return lora.apply(model, lora.read(path, model), strength)
