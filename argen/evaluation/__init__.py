"""Scores of pictures and codes: features, statistics, metrics, and the protocols that fix them."""
