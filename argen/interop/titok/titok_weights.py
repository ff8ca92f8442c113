"""Key names of TiTok, TA-TiTok and One-D-Piece checkpoints; see `argen.interop.titok`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from argen.interop import maskgit_vqgan
from argen.interop.base import Rule, StateDict, rename

_BLOCK = r"(encoder|decoder)\.transformer\.(\d+)\."
RULES: list[Rule] = [
    (r"latent_tokens", "encoder.latent_tokens"),
    (r"encoder\.patch_embed\.(.+)", r"encoder.patch.\1"),
    (r"(encoder|decoder)\.class_embedding", r"\1.class_token"),
    (r"(encoder|decoder)\.positional_embedding", r"\1.positions"),
    (r"(encoder|decoder)\.latent_token_positional_embedding", r"\1.latent_positions"),
    (r"(encoder|decoder)\.ln_pre\.(.+)", r"\1.norm_in.\2"),
    (r"(encoder|decoder)\.ln_post\.(.+)", r"\1.norm_out.\2"),
    (_BLOCK + r"ln_1\.(.+)", r"\1.blocks.\2.attention_norm.\3"),
    (_BLOCK + r"ln_2\.(.+)", r"\1.blocks.\2.ffn_norm.\3"),
    (_BLOCK + r"attn\.in_proj_(weight|bias)", r"\1.blocks.\2.attention.qkv.\3"),
    (_BLOCK + r"attn\.out_proj\.(.+)", r"\1.blocks.\2.attention.out.\3"),
    (_BLOCK + r"mlp\.c_fc\.(.+)", r"\1.blocks.\2.ffn.fc1.\3"),
    (_BLOCK + r"mlp\.c_proj\.(.+)", r"\1.blocks.\2.ffn.fc2.\3"),
    (r"encoder\.conv_out\.(.+)", r"encoder.out.\1"),
    (r"decoder\.decoder_embed\.(.+)", r"decoder.embed.\1"),
    (r"decoder\.mask_token", "decoder.mask_token"),
    (r"decoder\.text_guidance_proj\.(.+)", r"decoder.text_proj.\1"),
    (r"decoder\.text_guidance_positional_embedding", "decoder.text_positions"),
    (r"quantize\.embedding\.weight", "quantizer.codebook.weight"),
    (r"quantize\.embed_prob", "quantizer.usage"),
]
PROXY_HEAD: list[Rule] = [
    (r"decoder\.ffn\.0\.(.+)", r"decoder.head.fc1.\1"),
    (r"decoder\.ffn\.2\.(.+)", r"decoder.head.fc2.\1"),
]
PIXEL_HEAD: list[Rule] = [
    (r"decoder\.ffn\.0\.(.+)", r"decoder.head.proj.\1"),
    (r"decoder\.conv_out\.(.+)", r"decoder.head.conv.\1"),
]
# 1x1 convolutions of the reference that are linear layers here.
POINTWISE = ("encoder.out.weight", "head.fc1.weight", "head.fc2.weight", "head.proj.weight")


def tokenizer_weights(
    weights: Mapping[str, Tensor],
    *,
    clustering: bool | None = None,
    scale: float = 1.0,
    source: str = "TiTok",
) -> StateDict:
    """Translate a `TiTok`, `TATiTok` or `OneDPiece` state dict.

    Args:
        weights: the reference's.
        clustering: whether the model keeps usage statistics, which files hold or leave out
            whatever their configuration says; as in the file when None.
        scale: what continuous codes are multiplied by before a generator sees them.
        source: the file, for messages.
    """
    head = PROXY_HEAD if "decoder.ffn.2.weight" in weights else PIXEL_HEAD
    pixel = {k: v for k, v in weights.items() if k.startswith("pixel_")}
    rest = {k: v for k, v in weights.items() if k not in pixel}
    renamed = rename(rest, [*RULES, *head], source=source)
    for key, value in renamed.items():
        if key.endswith(POINTWISE) and value.ndim == 4:
            renamed[key] = value.flatten(1)
        elif key == "decoder.mask_token":
            renamed[key] = value.flatten(0, 1)
    if clustering is False:
        renamed.pop("quantizer.usage", None)
    elif clustering and "quantizer.usage" not in renamed:
        codebook = renamed["quantizer.codebook.weight"]
        renamed["quantizer.usage"] = torch.zeros(codebook.shape[0], device=codebook.device)
    if "quantizer.codebook.weight" not in renamed:
        dim = renamed["decoder.embed.weight"].shape[1]
        renamed["quantizer.mean"] = torch.zeros(dim)
        renamed["quantizer.std"] = torch.full((dim,), 1.0 / scale)
        renamed["quantizer.batches"] = torch.zeros((), dtype=torch.long)
    return renamed | proxy_weights(
        {key.removeprefix("pixel_"): value for key, value in pixel.items()}, source=source
    )


def proxy_weights(weights: Mapping[str, Tensor], *, source: str = "MaskGIT-VQGAN") -> StateDict:
    """Translate a MaskGIT-VQGAN, to load it as the `proxy` that a first stage learns from."""
    translated = maskgit_vqgan.tokenizer_weights(weights, source=source)
    return {f"proxy.{key}": value for key, value in translated.items()}
