"""Tokenizer, generator and decoding strategy in one object, and models on disk."""

from argen.pipeline.pipeline import Pipeline, load

__all__ = ["Pipeline", "load"]
