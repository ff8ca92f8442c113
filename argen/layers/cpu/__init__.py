"""Faster linear layers and attention for CPUs."""
