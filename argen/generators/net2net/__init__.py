"""The GPT of taming-transformers (arXiv 2012.09841), its orders of codes and its conditions."""

from argen.generators.net2net.net2net import Net2Net
from argen.generators.net2net.token_conditioning import TokenConditioner, Unconditional

__all__ = ["Net2Net", "TokenConditioner", "Unconditional"]
