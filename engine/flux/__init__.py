"""FLUX.1: shapes and names in a file, the diffusers transformer built from it, and the block loop over it."""
