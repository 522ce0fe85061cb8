"""Makes a quantized GGUF of a FLUX.1 safetensors file."""
