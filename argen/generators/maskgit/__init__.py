"""MaskGIT: masked generation over discrete codes (arXiv 2202.04200), on a BERT or a U-ViT."""

from argen.generators.maskgit.maskgit import MaskGIT

__all__ = ["MaskGIT"]
