"""TiTok, TA-TiTok and One-D-Piece tokenizers.

TiTok and TA-TiTok: bytedance/1d-tokenizer, Apache-2.0, arXiv 2406.07550 and 2501.07730.
One-D-Piece: turingmotors/One-D-Piece, Apache-2.0, arXiv 2501.10064.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from argen.errors import CheckpointError, UserError
from argen.interop import maskgit_vqgan
from argen.interop.base import Imported, copy_in, count, unwrap
from argen.interop.maskgit import import_generator as import_generator
from argen.interop.titok.titok_weights import proxy_weights as proxy_weights
from argen.interop.titok.titok_weights import tokenizer_weights

WRAPPERS = ("ema", "model", "state_dict", "module")

# Width, layers and heads of the published sizes.
SIZES = {"small": (512, 8, 8), "base": (768, 12, 12), "large": (1024, 24, 16)}

# The MaskGIT-VQGAN behind the two-stage models, in the reference's own names.
PIXEL_DECODER: dict[str, Any] = {
    "channel_mult": [1, 1, 2, 2, 4],
    "hidden_channels": 128,
    "num_channels": 3,
    "num_res_blocks": 2,
    "z_channels": 256,
}


def tokenizer_config(
    config: Mapping[str, Any],
    *,
    proxy_codes: int = 1024,
    encoder: bool = False,
    text_aware: bool = False,
    one_d_piece: bool = False,
) -> dict[str, Any]:
    """Translate the reference's nested configuration.

    Args:
        config: with `model.vq_model` and `dataset.preprocessing.crop_size`; optionally
            `size_table`, `pixel_decoder` and `pixel_quantizer` for sizes that were not published.
        proxy_codes: codes of the 2-D tokenizer behind a two-stage model.
        encoder: also give that tokenizer's encoder, to train a first stage.
        text_aware: the class is `TATiTok`; also told by a text_context_length.
        one_d_piece: the class is `OneDPiece`; also told by the model's type.
    """
    vq, size = config["model"]["vq_model"], config["dataset"]["preprocessing"]["crop_size"]
    mode, legacy = vq.get("quantize_mode", "vq"), vq.get("is_legacy", True)
    second = vq.get("finetune_decoder", True)
    if mode not in ("vq", "vae"):
        raise UserError(f"Unknown quantize_mode {mode!r} in a TiTok configuration; use vq or vae.")
    if second and (mode == "vae" or not legacy):
        raise UserError(
            "finetune_decoder needs quantize_mode=vq and is_legacy=true: only the two-stage models "
            "have a pixel decoder. Set finetune_decoder=false."
        )
    dim, latents = vq["token_size"], vq["num_latent_tokens"]
    one_d_piece = one_d_piece or config["model"].get("type") == "one_d_piece"
    any_length = one_d_piece and not vq.get("strict_length_assertion", True)
    text_aware = text_aware or "text_context_length" in vq
    common = {"image_size": size, "latents": latents}
    built: dict[str, Any] = {
        "_target_": "argen.tokenizers.titok.TiTok",
        "image_size": size,
        "encoder": {
            "_target_": "argen.tokenizers.latent_vit.LatentEncoder",
            **common,
            "patch": vq["vit_enc_patch_size"],
            "out_channels": 2 * dim if mode == "vae" else dim,
            **_size(config, vq["vit_enc_model_size"]),
            "legacy_layout": legacy,
        },
        "decoder": {
            "_target_": "argen.tokenizers.latent_vit.LatentDecoder",
            **common,
            "patch": vq["vit_dec_patch_size"],
            "in_channels": dim,
            **_size(config, vq["vit_dec_model_size"]),
            "proxy_codes": proxy_codes if legacy else 0,
            "text_dim": vq.get("text_embed_dim", 768) if text_aware else 0,
            "text_length": vq.get("text_context_length", 77),
        },
        "quantizer": _quantizer(vq, mode),
        "second_stage": second,
        "any_length": any_length,
        "tail_drop": "uniform" if any_length else "none",
    }
    if second or encoder:
        built["proxy"] = proxy_config(config, codes=proxy_codes, encoder=encoder)
    return built


def proxy_config(
    config: Mapping[str, Any], *, codes: int = 1024, encoder: bool = False
) -> dict[str, Any]:
    """Describe the MaskGIT-VQGAN behind a two-stage model."""
    pixel = {**PIXEL_DECODER, **config.get("pixel_decoder", {})}
    levels = pixel.get("num_resolutions", len(pixel["channel_mult"]))
    pixel["channel_mult"] = list(pixel["channel_mult"])[:levels]
    pixel |= {"num_embeddings": codes, "embedding_dim": pixel["z_channels"]}
    parts = maskgit_vqgan.tokenizer_config(pixel, image_size=1)
    built = {
        "_target_": "argen.tokenizers.proxy_codes.ProxyCodes",
        "quantizer": parts["quantizer"],
        "decoder": parts["decoder"],
    }
    return built | ({"encoder": parts["encoder"]} if encoder else {})


def loss_weights(config: Mapping[str, Any]) -> dict[str, float]:
    """Return the weights of the named losses beside the reconstruction."""
    vq = config["model"]["vq_model"]
    if vq.get("quantize_mode", "vq") == "vae":
        # The published weight is for the sum over the K tokens, ours is a mean over them.
        return {"kl": 1e-6 * vq["num_latent_tokens"], "proxy": 1.0}
    return {"codebook": 1.0, "commitment": vq.get("commitment_cost", 0.25), "proxy": 1.0}


def import_tokenizer(
    checkpoint: Any,
    *,
    source: str,
    image_size: int = 256,
    heads: Sequence[int] | None = None,
    one_d_piece: bool | None = None,
    scale: float = 1.0,
    copy: str | None = None,
) -> Imported:
    """Import a released file; every size but the heads is read off the weights.

    Args:
        checkpoint: what the file holds.
        source: the file, for messages.
        image_size: side of the images; it must fit the position tables.
        heads: attention heads of encoder and decoder, where a size is not a published one.
        one_d_piece: whether any prefix of the tokens decodes. Such files look like two-stage TiTok
            ones; when None they are told by 256 tokens beside a proxy head, which no TiTok has.
        scale: what continuous codes are multiplied by before a generator sees them; MaskGen-KL
            was trained with 0.7525.
        copy: `ema` or `model`, where a file holds both; the average by default.
    """
    copy, keys = copy_in(checkpoint, keys=WRAPPERS, source=source, wanted=copy)
    weights = unwrap(checkpoint, keys=keys, source=source)
    if "latent_tokens" not in weights or "decoder.mask_token" not in weights:
        raise CheckpointError(f"{source} is not a TiTok tokenizer: no latent_tokens.")
    latents = weights["latent_tokens"].shape[0]
    patch = weights["encoder.patch_embed.weight"].shape[-1]
    side = round((weights["encoder.positional_embedding"].shape[0] - 1) ** 0.5) * patch
    if side != image_size:
        raise UserError(f"{source} is for images of {side}x{side}: pass image_size={side}.")
    grid = round((weights["decoder.positional_embedding"].shape[0] - 1) ** 0.5)
    dim = weights["decoder.decoder_embed.weight"].shape[1]
    legacy, vae = "decoder.ffn.2.weight" in weights, "quantize.embedding.weight" not in weights
    vq: dict[str, Any] = {
        "codebook_size": 0 if vae else weights["quantize.embedding.weight"].shape[0],
        "token_size": dim,
        # Only the two-stage models compare unit vectors.
        "use_l2_norm": legacy,
        "quantize_mode": "vae" if vae else "vq",
        "clustering_vq": "quantize.embed_prob" in weights,
        "vit_enc_model_size": "encoder",
        "vit_dec_model_size": "decoder",
        "vit_enc_patch_size": patch,
        "vit_dec_patch_size": side // grid,
        "num_latent_tokens": latents,
        "finetune_decoder": "pixel_decoder.conv_in.weight" in weights,
        "is_legacy": legacy,
    }
    if one_d_piece is None:
        one_d_piece = legacy and latents == 256
    if one_d_piece:
        vq["strict_length_assertion"] = False
    if "decoder.text_guidance_proj.weight" in weights:
        vq["text_embed_dim"] = weights["decoder.text_guidance_proj.weight"].shape[1]
        vq["text_context_length"] = weights["decoder.text_guidance_positional_embedding"].shape[0]
    config: dict[str, Any] = {
        "model": {"type": "one_d_piece" if one_d_piece else "titok", "vq_model": vq},
        "dataset": {"preprocessing": {"crop_size": side}},
        "size_table": {
            part: _read_size(weights, part, heads[i] if heads else None, source)
            for i, part in enumerate(("encoder", "decoder"))
        },
    }
    if vq["finetune_decoder"]:
        config["pixel_decoder"] = _read_pixel_decoder(weights)
    codes = weights["decoder.ffn.2.bias"].shape[0] if legacy else 1024
    return Imported(
        config=tokenizer_config(config, proxy_codes=codes),
        weights=tokenizer_weights(weights, scale=scale, source=source),
        source=source,
        copy=copy,
    )


def _size(config: Mapping[str, Any], name: str) -> dict[str, int]:
    table = {**SIZES, **config.get("size_table", {})}
    if name not in table:
        raise UserError(f"Unknown TiTok size {name!r}; use one of {', '.join(table)}.")
    return dict(zip(("dim", "layers", "heads"), table[name]))


def _quantizer(vq: Mapping[str, Any], mode: str) -> dict[str, Any]:
    if mode == "vae":
        return {
            "_target_": "argen.tokenizers.quantizers.gaussian.Gaussian",
            "dim": vq["token_size"],
        }
    clustering = vq.get("clustering_vq", False)
    return {
        "_target_": "argen.tokenizers.quantizers."
        + ("clustering.ClusteringVQ" if clustering else "vq.VQ"),
        "codes": vq["codebook_size"],
        "dim": vq["token_size"],
        "l2_norm": vq.get("use_l2_norm", False),
    }


def _read_size(
    weights: Mapping[str, Tensor], part: str, heads: int | None, source: str
) -> tuple[int, int, int]:
    """Read width and layers of a network; heads are not visible and come from the table."""
    dim = weights[f"{part}.class_embedding"].shape[1]
    layers = count(weights, rf"{part}\.transformer\.(\d+)\..+")
    known = {size[:2]: size[2] for size in SIZES.values()}
    heads = heads or known.get((dim, layers))
    if heads is None:
        raise UserError(
            f"{source}: its {part} has {layers} layers of width {dim}, not a published size; pass "
            "heads=(encoder, decoder)."
        )
    return dim, layers, heads


def _read_pixel_decoder(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the widths of the pixel decoder off its weights."""
    levels = count(weights, r"pixel_decoder\.up\.(\d+)\..+")
    widths = [weights[f"pixel_decoder.up.{i}.block.0.conv2.weight"].shape[0] for i in range(levels)]
    return {
        "hidden_channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths],
        "num_res_blocks": count(weights, r"pixel_decoder\.mid\.(\d+)\..+"),
        "z_channels": weights["pixel_decoder.conv_in.weight"].shape[1],
    }
