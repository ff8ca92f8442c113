"""TiTok's adversarial losses (bytedance/1d-tokenizer, Apache-2.0, arXiv 2406.07550)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from argen.interop.base import Rule, StateDict, rename

RULES: list[Rule] = [
    (r"discriminator\.block_in\.0\.(.+)", r"discriminator.conv_in.\1"),
    (r"discriminator\.blocks\.\d+\.1\.kernel", None),  # Fixed: the blur.
    (r"discriminator\.(blocks\.\d+\.[02]|to_logits\.\d+)\.(.+)", r"discriminator.\1.\2"),
    (r"ema_real_logits_mean", "lecam.real"),
    (r"ema_fake_logits_mean", "lecam.fake"),
]


def objective_weights(weights: Mapping[str, Tensor], *, source: str = "TiTok losses") -> StateDict:
    """Translate the state dict of a reconstruction loss: discriminator and running means."""
    return rename(weights, RULES, source=source)


def objective_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Translate `losses` and the discriminator's arguments, without the perceptual networks.

    The quantiser's own losses weigh `quantizer_weight`, with 0.25 on the commitment, or, for a
    Gaussian, `kl_weight`.
    """
    factor = config.get("discriminator_factor", 1.0)
    quantizer = config.get("quantizer_weight", 1.0)
    lecam = config.get("lecam_regularization_weight", 0.001)
    fidelity = config.get("reconstruction_loss", "l2")
    objective: dict[str, Any] = {
        "_target_": "argen.objectives.objective.Objective",
        # Images are in [0, 1] there, and the weight is meant for errors of that range.
        "image_terms": {
            fidelity: {
                "_target_": f"argen.objectives.image_terms.{fidelity.upper()}",
                "unit_range": True,
            }
        },
        "weights": {
            fidelity: config.get("reconstruction_weight", 1.0),
            "perceptual": config.get("perceptual_weight", 1.1),
            "codebook": quantizer,
            "commitment": quantizer * config.get("commitment_cost", 0.25),
            "kl": config.get("kl_weight", 1e-6),
            "adversarial": factor * config.get("discriminator_weight", 0.1),
        },
        "discriminator": {
            "_target_": "argen.objectives.discriminators.BlurDiscriminator",
            "channels": config.get("hidden_channels", 128),
            "stages": config.get("num_stages", 3),
            "in_channels": config.get("num_channels", 3),
            "blur": config.get("blur_resample", True),
            "blur_kernel": config.get("blur_kernel_size", 4),
        },
        "discriminator_start": config.get("discriminator_start", 0),
        "discriminator_weight": factor,
    }
    if lecam > 0:
        objective |= {
            "lecam_weight": lecam,
            "lecam": {
                "_target_": "argen.objectives.regularizers.LeCam",
                "decay": config.get("lecam_ema_decay", 0.999),
            },
        }
    return objective
