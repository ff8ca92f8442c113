"""Replays TiTok, TA-TiTok and One-D-Piece: two-stage, single-stage, Gaussian, text-aware."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from argen.interop.base import Imported
from argen.interop.titok import tokenizer as titok
from argen.tokenizers.latent_vit import PixelHead
from argen.tokenizers.quantizers.base import Quantized
from argen.tokenizers.quantizers.gaussian import Gaussian
from argen.tokenizers.titok import TiTok, proxy_loss
from replays.fixture import Fixture

SYSTEMS = (
    "TiTok",
    "TiTok (VAE)",
    "TA-TiTok",
    "One-D-Piece",
)


class RecordedNoise:
    """Gives the recorded posterior noise (B, C, 1, K), or the draw that keeps n tokens of K."""

    def __init__(self, normal: Tensor | None = None, keep: tuple[int, int] | None = None) -> None:
        self.recorded, self.keep = normal, keep

    def uniform(self, positions: Tensor, size: Sequence[int] = (), *, use: int = 0) -> Tensor:
        """Return the middle of the interval that keeps n of K tokens."""
        assert self.keep is not None
        return torch.full((1, 1), (self.keep[0] - 0.5) / self.keep[1])

    def normal(self, positions: Tensor, size: Sequence[int] = (), *, use: int = 0) -> Tensor:
        """Return the recorded draws (B, K, C)."""
        assert self.recorded is not None
        return rows(self.recorded)

    def gumbel(self, positions: Tensor, size: Sequence[int] = (), *, use: int = 0) -> Tensor:
        """Nothing here draws Gumbel noise."""
        raise NotImplementedError


def rows(x_BC1K: Tensor) -> Tensor:
    """Turn the reference's (B, C, 1, K) into (B, K, C)."""
    return x_BC1K.squeeze(2).transpose(1, 2)


def columns(x_BKC: Tensor) -> Tensor:
    """Turn (B, K, C) into the reference's (B, C, 1, K)."""
    return x_BKC.transpose(1, 2).unsqueeze(2)


def unit(images: Tensor) -> Tensor:
    """Turn images in [-1, 1] into the reference's [0, 1]."""
    return (images + 1) / 2


def replay(fixture: Fixture) -> dict[str, Tensor]:
    """Compute every expected tensor of a fixture."""
    text_aware = "decoder.text_guidance_proj.weight" in fixture.weights
    head = fixture.weights.get("decoder.ffn.2.bias")
    config = titok.tokenizer_config(
        fixture.config,
        proxy_codes=1024 if head is None else len(head),
        text_aware=text_aware,
        one_d_piece=fixture.card["class"] == "OneDPiece",
    )
    clustering = "Clustering" in config["quantizer"]["_target_"]

    def convert(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return titok.tokenizer_weights(weights, clustering=clustering)

    imported = Imported(config, dict(convert(fixture.weights)), fixture.name)
    model = imported.build()
    assert isinstance(model, TiTok)
    replayed = Replay(fixture, model)
    with torch.no_grad():
        found = replayed.encoding() | replayed.decoding() | replayed.training()
        found |= replayed.clustering(imported)
    return found | fixture.gradients(Objective(model, fixture).under, convert)


class Replay:
    """The procedure, in parts."""

    def __init__(self, fixture: Fixture, model: TiTok) -> None:
        self.fixture, self.model = fixture, model
        self.images = fixture["image"] * 2 - 1
        self.text = fixture.io.get("text_guidance")
        self.weights = titok.loss_weights(fixture.config)
        noise = fixture.io.get("noise")
        self.noise = None if noise is None else RecordedNoise(normal=noise)
        self.z = model.latents(self.images).detach()
        self.quantized: Quantized = model.quantizer(self.z, noise=self.noise)

    def encoding(self) -> dict[str, Tensor]:
        """Latents, codes and the losses of the quantiser."""
        found = {"latents": columns(self.z), "moments": columns(self.z)}
        if isinstance(self.model.quantizer, Gaussian):
            posterior = self.model.quantizer.posterior(self.z)
            found |= {
                "mean": columns(posterior.mean),
                "logvar": columns(posterior.log_variance),
                "sample": columns(self.quantized.z),
                "kl": posterior.kl(),
                "kl_loss": posterior.kl().sum(-1).mean(),
            }
            return found
        losses = {k: self.weights[k] * v for k, v in self.quantized.losses.items()}
        return found | {
            "indices": self.model.encode(self.images)[:, None],
            "quantized": columns(self.quantized.z),
            "quantizer_loss": losses["codebook"] + losses["commitment"],
            "commitment_loss": losses["commitment"],
            "codebook_loss": losses["codebook"],
        }

    def decode(self, z: Tensor, text: Tensor | None = None) -> Tensor:
        """Decode vectors as the reference does: logits in a first stage, else images."""
        text = self.text if text is None else text
        if isinstance(self.model.decoder.head, PixelHead) or self.model.second_stage:
            return unit(self.model.decode_latents(z, text=text))
        return self.model.decoder(z, text).permute(0, 3, 1, 2)

    def tokens(self, ids: Tensor, length: int | None = None) -> Tensor:
        """Decode ids (B, 1, n) or (B, n)."""
        ids = ids.squeeze(1) if ids.ndim == 3 else ids
        return self.decode(self.model.quantizer.lookup(ids[:, :length]))

    def decoding(self) -> dict[str, Tensor]:
        """Everything that is decoded in evaluation mode."""
        found: dict[str, Tensor] = {}
        for name in self.fixture.expected:
            if name == "reconstruction":
                found[name] = self.decode(self.quantized.z)
            elif name == "decoder_output":
                found[name] = self.raw(self.quantized.z)
            elif name == "reconstruction_from_indices":
                found[name] = self.tokens(self._encode())
            elif name == "reconstruction_from_mean":
                found[name] = self.decode(self.model.encode(self.images))
            elif match := re.fullmatch(r"reconstruction_(\w+)_text", name):
                other = self.fixture[f"{match[1]}_text_guidance"]
                found[name] = self.decode(self.quantized.z, other)
            elif match := re.fullmatch(r"reconstruction_len(\d+)", name):
                found[name] = self.prefix(int(match[1]))
            elif match := re.fullmatch(r"decoded_(\w+)", name):
                found[name] = self.tokens(self.fixture[match[1]])
        return found

    def raw(self, z: Tensor) -> Tensor:
        """Return what the transformer decoder alone gives, in the reference's layout."""
        output = self.model.decoder(z, self.text)
        if isinstance(self.model.decoder.head, PixelHead):
            return output
        return output.permute(0, 3, 1, 2)

    def prefix(self, length: int) -> Tensor:
        """Decode the first `length` codes, through the public interface where it gives images."""
        ids = self._encode()
        if self.model.proxy is None and not isinstance(self.model.decoder.head, PixelHead):
            return self.tokens(ids, length)
        return unit(self.model.decode(ids, length=length, text=self.text))

    def _encode(self) -> Tensor:
        return self.model.encode(self.images, noise=self.noise)

    def training(self) -> dict[str, Tensor]:
        """The first stage's losses, and passes that keep a recorded number of tokens."""
        found: dict[str, Tensor] = {}
        if "proxy_codes" in self.fixture.io:
            objective = Objective(self.model, self.fixture)
            found |= {name: objective(name) for name in ("total_loss", "reconstruction_loss")}
        for name in self.fixture.expected:
            if match := re.fullmatch(r"train_drop(\d+)", name):
                found[name] = self._train(int(match[1]))
        return found

    def _train(self, keep: int) -> Tensor:
        noise = RecordedNoise(keep=(keep, self.model.encoder.latents))
        self.model.train()
        if self.model.proxy is None and not isinstance(self.model.decoder.head, PixelHead):
            kept = self.model.quantizer(self.z).z[:, : self.model.keep(noise)]
            found = self.decode(kept)
        else:
            found = unit(self.model(self.images, noise=noise, text=self.text).images)
        self.model.eval()
        return found

    def clustering(self, imported: Imported) -> dict[str, Tensor]:
        """One training call of the quantiser, which moves the codebook."""
        if "cvq_input" not in self.fixture.io:
            return {}
        quantizer: Any = imported.build().train().quantizer
        quantized = quantizer(rows(self.fixture["cvq_input"]))
        losses = {k: self.weights[k] * v for k, v in quantized.losses.items()}
        return {
            "cvq_quantized": columns(quantized.z),
            "cvq_indices": quantized.ids[:, None],
            "cvq_codebook_after": quantizer.codebook.weight.detach(),
            "cvq_embed_prob_after": quantizer.usage,
            "cvq_quantizer_loss": losses["codebook"] + losses["commitment"],
            "cvq_commitment_loss": losses["commitment"],
            "cvq_codebook_loss": losses["codebook"],
        }


class Objective(nn.Module):
    """The named losses of the first stage and of the bottleneck."""

    def __init__(self, model: TiTok, fixture: Fixture) -> None:
        super().__init__()
        self.model, self.fixture = model, fixture

    def forward(self, name: str) -> Tensor:
        """Return one loss."""
        z = self.model.latents(self.fixture["image"] * 2 - 1)
        quantized = self.model.quantizer(z)
        scale = titok.loss_weights(self.fixture.config)
        losses = {k: scale[k] * v for k, v in quantized.losses.items()}
        if name == "kl_loss":
            return quantized.losses["kl"] * self.model.encoder.latents
        if name in ("commitment_loss", "codebook_loss"):
            return losses[name.removesuffix("_loss")]
        total = torch.stack(list(losses.values())).sum()
        if name == "quantizer_loss":
            return total
        logits = self.model.decoder(quantized.z)
        entropy = proxy_loss(logits, self.fixture["proxy_codes"].view(logits.shape[:3]))
        return entropy if name == "reconstruction_loss" else entropy + total

    def under(self, name: str, weights: Mapping[str, Tensor]) -> Tensor:
        """Return one loss with other weights in place."""
        named = {f"model.{key}": value for key, value in weights.items()}
        return torch.func.functional_call(self, named, (name,))
