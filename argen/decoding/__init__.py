"""Decoding strategies: how the codes of an image are sampled."""
