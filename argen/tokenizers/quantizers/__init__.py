"""Quantisers: vectors to codes, one file each."""
