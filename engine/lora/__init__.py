"""LoRA files: their dialects, what they change, and how it is computed beside a base weight."""
