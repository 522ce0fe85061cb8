"""A text encoder of whole words, for models with a small vocabulary of their own."""
