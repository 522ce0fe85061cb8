"""How the demo model was made: drawn scenes, an autoencoder, flow matching, guidance distillation."""
