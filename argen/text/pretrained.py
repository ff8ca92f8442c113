"""Text encoders of the `transformers` library, read from a local directory: T5, CLIP, Gemma, BERT.

What is kept is the last hidden state of the part that reads text: the encoder of an
encoder-decoder, the text tower of a two-tower model, the whole of a language model.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from argen.errors import CheckpointError, UserError
from argen.text.base import TextEncoder
from argen.text.features import PADDINGS, TextFeatures, TextSpec

log = logging.getLogger(__name__)
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# What names a vocabulary in a fingerprint.
PROBE = "A red heart, two CATS & 3 blue-green houses; ünïcode 心"
VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
)
# Values of each weight that count in a fingerprint, so that billions of weights take no minute.
SAMPLED = 1024


class PretrainedText(TextEncoder):
    """A model directory written by `save_pretrained`, tokenizer included; nothing is downloaded.

    Args:
        path: the directory.
        tokenizer: that of its tokenizer, where this is another one.
        length: number of tokens T.
        padding: `left` puts the last token of every text at the end, next to the codes that a
            causal generator predicts from it, as LlamaGen does; or `right`.
        precision: in which the network computes, float32 or bfloat16; what comes out is float32.
        name: what to call it; the directory's name when None.

    Raises:
        CheckpointError: the directory is missing or holds no whole text model with its tokenizer.
        UserError: `transformers` is not installed, or settings that do not fit the model.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        tokenizer: str | Path | None = None,
        length: int = 120,
        padding: str = "left",
        precision: str = "float32",
        name: str | None = None,
    ) -> None:
        super().__init__()
        if padding not in PADDINGS:
            raise UserError(f"Unknown padding={padding}; use {' or '.join(PADDINGS)}.")
        if precision not in PRECISIONS:
            raise UserError(f"Unknown precision={precision}; use {' or '.join(PRECISIONS)}.")
        directory = _model_directory(path)
        self.tokenizer = _tokenizer(directory if tokenizer is None else Path(tokenizer))
        self.network = _text_part(directory).to(PRECISIONS[precision]).eval().requires_grad_(False)
        config: Any = self.network.config
        longest = getattr(config, "max_position_embeddings", None)
        if length < 1 or (longest is not None and length > longest):
            raise UserError(
                f"length={length} does not fit {directory}, which reads 1 to {longest} tokens: "
                "choose a smaller length."
            )
        self.spec = TextSpec(
            name=name or directory.resolve().name,
            fingerprint=_fingerprint(self.network, self.tokenizer),
            dim=int(getattr(config, "d_model", None) or config.hidden_size),
            length=length,
            padding=padding,
        )

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> TextFeatures:
        """Encode B texts as features (B, T, F) and a mask (B, T)."""
        T, texts = self.spec.length, list(texts)
        device = next(self.network.parameters()).device
        sizes = self.tokenizer(texts, truncation=True, max_length=T + 1)["input_ids"]
        cut = sum(len(ids) > T for ids in sizes)
        if cut:
            log.warning("%d of %d texts are longer than %d tokens: cut there.", cut, len(texts), T)
        # The network sees padding on the right, so that positions count from the first word.
        tokens = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=T, return_tensors="pt"
        )
        mask_BT = tokens["attention_mask"].to(device)
        hidden_BTF = self.network(
            input_ids=tokens["input_ids"].to(device), attention_mask=mask_BT
        ).last_hidden_state
        mask_BT = mask_BT.bool()
        # Not a product: rows that attend to nothing may hold NaN.
        features_BTF = hidden_BTF.float().masked_fill(~mask_BT[..., None], 0.0)
        if self.spec.padding == "left":
            features_BTF, mask_BT = _to_the_end(features_BTF, mask_BT)
        return TextFeatures(features_BTF, mask_BT, self.spec)


def _to_the_end(features_BTF: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Move the valid tokens of each row, which come first, to its end."""
    T = mask_BT.shape[1]
    steps = torch.arange(T, device=mask_BT.device)
    source_BT = (steps + mask_BT.sum(1, keepdim=True)) % T
    index = source_BT[..., None].expand_as(features_BTF)
    return features_BTF.gather(1, index), mask_BT.gather(1, source_BT)


def _model_directory(path: str | Path) -> Path:
    if find_spec("transformers") is None:
        raise UserError("Reading text needs transformers: pip install 'argen[text]'.")
    directory = Path(path).expanduser()
    if not (directory / "config.json").is_file():
        raise CheckpointError(
            f"{directory} is no text model (no config.json in it): save one there with "
            "`model.save_pretrained(DIR); tokenizer.save_pretrained(DIR)`, or correct the path."
        )
    return directory


def _tokenizer(directory: Path) -> Any:
    from transformers import AutoTokenizer

    # Without this the library may hand out a tokenizer that knows no words.
    if not any((directory / name).is_file() for name in VOCABULARIES):
        raise CheckpointError(
            f"{directory} holds no tokenizer (none of {', '.join(VOCABULARIES)}): save it there "
            "with `tokenizer.save_pretrained(DIR)`, or name its directory (tokenizer=DIR)."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the library raises whatever its parsers do
        raise CheckpointError(
            f"The tokenizer in {directory} cannot be read ({_first_line(error)}): save it again "
            "with `tokenizer.save_pretrained(DIR)`."
        ) from error
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise CheckpointError(
                f"The tokenizer of {directory} has no padding token: set tokenizer.pad_token and "
                "save it again."
            )
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    return tokenizer


def _text_part(directory: Path) -> nn.Module:
    """Load the part of a model that reads text.

    Raises:
        CheckpointError: unreadable, or without some of its weights.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding

    with _quiet():
        try:
            config = AutoConfig.from_pretrained(
                str(directory), local_files_only=True, trust_remote_code=False
            )
            known = type(config) in AutoModelForTextEncoding._model_mapping
            loader: Any = AutoModelForTextEncoding if known else AutoModel
            model, report = loader.from_pretrained(
                str(directory),
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except Exception as error:  # the library raises whatever its parsers do
            raise CheckpointError(
                f"{directory} cannot be read as a text model ({_first_line(error)})."
            ) from error
    # The library would fill these with random numbers; poolers come after what is kept.
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)
    if missing:
        raise CheckpointError(
            f"{directory} lacks {len(missing)} weights of a {type(model).__name__}, e.g. "
            f"{missing[0]}: copy the whole model there."
        )
    if getattr(config, "is_encoder_decoder", False) and hasattr(model, "get_encoder"):
        return model.get_encoder()
    for tower in ("text_model", "language_model"):
        if hasattr(model, tower):
            return getattr(model, tower)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the library's progress bars and its report of keys that are not used."""
    from transformers.utils import logging as library

    level, bars = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity_error()
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(level)
        if bars:
            library.enable_progress_bar()


def _fingerprint(network: nn.Module, tokenizer: Any) -> str:
    """Return 16 digits of the weights, evenly sampled, and of the vocabulary.

    Files are not compared, so that a model saved again, or in other shards, keeps its name.
    """
    digest = hashlib.sha256(repr(tokenizer(PROBE)["input_ids"]).encode())
    for name, weight in sorted(network.state_dict().items()):
        flat = weight.detach().reshape(-1)
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(flat[:: max(1, flat.numel() // SAMPLED)].float().numpy().tobytes())
    return digest.hexdigest()[:16]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
