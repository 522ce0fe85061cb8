"""Training FLUX models: the loss and the loop."""
