"""LlamaGen (FoundationVision, MIT, arXiv 2406.06525): tokenizers and generators."""

from argen.interop.llamagen.llamagen import import_generator, import_tokenizer

SOURCE = "llamagen"
__all__ = ["import_generator", "import_tokenizer"]
