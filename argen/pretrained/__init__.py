"""Frozen networks that others made: features for scores, losses and discriminators."""
