"""What tokenizers are trained on: losses, discriminators, perceptual distances, alignment."""
