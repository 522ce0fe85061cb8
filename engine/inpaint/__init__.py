"""A part of a picture edited at the model's own size and put back."""
