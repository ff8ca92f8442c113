"""Text models small enough for a test, saved as people save theirs."""

from __future__ import annotations

from pathlib import Path

import torch

WORDS = ("a", "an", "red", "blue", "green", "heart", "star", "cat", "house", "two")


def tokenizer(*, pad: bool = True):
    """Return a tokenizer of whole words; every text ends with its end token."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    vocab = {word: i for i, word in enumerate(("<pad>", "</s>", "<unk>", *WORDS))}
    words = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"eos_token": "</s>", "unk_token": "<unk>"} | ({"pad_token": "<pad>"} if pad else {})
    return PreTrainedTokenizerFast(tokenizer_object=words, **names)


def network(kind: str, *, width: int = 16):
    """Return a small random model: t5, clip, clip_text, gemma or bert."""
    import transformers as library

    vocab = len(WORDS) + 3
    shared = {
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 24,
    }
    ends = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    if kind == "t5":
        sizes = {"d_model": width, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
        config = library.T5Config(vocab_size=vocab, decoder_start_token_id=0, **sizes)
        return library.T5ForConditionalGeneration(config)
    if kind == "clip":
        vision = {**shared, "image_size": 16, "patch_size": 8}
        for key in ("vocab_size", "max_position_embeddings"):
            del vision[key]
        return library.CLIPModel(
            library.CLIPConfig(text_config={**shared, **ends}, vision_config=vision)
        )
    if kind == "clip_text":
        return library.CLIPTextModel(library.CLIPTextConfig(**shared, **ends))
    if kind == "gemma":
        heads = {"num_key_value_heads": 1, "head_dim": 8}
        return library.GemmaForCausalLM(library.GemmaConfig(**shared, **heads, **ends))
    assert kind == "bert"
    return library.BertModel(library.BertConfig(**shared))


def save(directory: Path, kind: str = "t5", *, seed: int = 0, width: int = 16) -> Path:
    """Write a model and its tokenizer; returns the directory."""
    torch.manual_seed(seed)
    network(kind, width=width).save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return directory
