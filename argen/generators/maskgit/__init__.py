"""MaskGIT: masked generation over discrete codes (arXiv 2202.04200), on a BERT or a U-ViT."""

from argen.generators.maskgit.bert import MaskGITBert
from argen.generators.maskgit.maskgit import MaskGIT
from argen.generators.maskgit.uvit import MaskGITUViT

__all__ = ["MaskGIT", "MaskGITBert", "MaskGITUViT"]
