"""taming-transformers (CompVis, MIT, arXiv 2012.09841): VQGAN and Gumbel tokenizers, Net2Net."""

from argen.interop.taming.tokenizer import import_generator, import_tokenizer

SOURCE = "taming"
__all__ = ["import_generator", "import_tokenizer"]
