"""Generators: networks that model codes group by group.

The contract (`base`, `plan`, `conditioning`), the families, and the drafter of one of them.
"""

from argen.generators.adaln_gpt import AdaLNGPT, AdaLNSubTokenGPT
from argen.generators.base import AnyOrderGenerator, Generator, LossOutput
from argen.generators.conditioning import ClassConditioner, Cond, Conditioner, TextConditioner
from argen.generators.drafter import FeatureDrafter
from argen.generators.gpt import GPT
from argen.generators.mar import MAR
from argen.generators.maskgit import MaskGIT, MaskGITBert, MaskGITUViT
from argen.generators.nar import NAR
from argen.generators.net2net import Net2Net, TokenConditioner, Unconditional
from argen.generators.next_token import NextToken
from argen.generators.plan import Plan
from argen.generators.rar import RAR
from argen.generators.subtoken import SubTokenGPT
from argen.generators.var import VAR
from argen.generators.xar import XAR

__all__ = [
    "GPT",
    "MAR",
    "NAR",
    "RAR",
    "VAR",
    "XAR",
    "AdaLNGPT",
    "AdaLNSubTokenGPT",
    "AnyOrderGenerator",
    "ClassConditioner",
    "Cond",
    "Conditioner",
    "FeatureDrafter",
    "Generator",
    "LossOutput",
    "MaskGIT",
    "MaskGITBert",
    "MaskGITUViT",
    "Net2Net",
    "NextToken",
    "Plan",
    "SubTokenGPT",
    "TextConditioner",
    "TokenConditioner",
    "Unconditional",
]
