"""EAGLE's drafter: a small network that reads a generator's hidden vectors (arXiv 2410.03355)."""
