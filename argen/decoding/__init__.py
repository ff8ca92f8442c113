"""Decoding strategies: how the codes of a picture are drawn."""
