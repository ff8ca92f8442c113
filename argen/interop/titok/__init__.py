"""TiTok, TA-TiTok and One-D-Piece tokenizers (bytedance/1d-tokenizer, Apache-2.0)."""

from argen.interop.titok.tokenizer import import_generator, import_tokenizer

SOURCE = "titok"
__all__ = ["import_generator", "import_tokenizer"]
