"""Frozen text encoders: captions to token features and a padding mask."""
