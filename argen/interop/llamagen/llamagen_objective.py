"""The training losses of LlamaGen's tokenizers (FoundationVision, MIT, arXiv 2406.06525)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from argen.interop.base import Rule, StateDict, rename
from argen.interop.llamagen.llamagen import loss_weights

ADVERSARIAL = {"hinge": "hinge", "vanilla": "vanilla", "non-saturating": "swapped_bce"}


def objective_config(
    config: Mapping[str, Any], *, quantizer: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Translate the arguments of `VQLoss`, without the perceptual network.

    Args:
        config: the arguments.
        quantizer: weights of the quantiser's losses; the published ones if not given.
    """
    weight = config.get("disc_weight", 1.0)
    style = config.get("disc_type", "patchgan") == "stylegan"
    size = {"image_size": config.get("image_size", 256)}
    patch = {"channels": config.get("disc_dim", 64), "layers": config.get("disc_num_layers", 3)}
    return {
        "_target_": "argen.objectives.objective.Objective",
        "weights": {
            config.get("reconstruction_loss", "l2"): config.get("reconstruction_weight", 1.0),
            "perceptual": config.get("perceptual_weight", 1.0),
            "adversarial": weight,
            **(loss_weights({}) if quantizer is None else quantizer),
        },
        "discriminator": {
            "_target_": "argen.objectives.discriminators."
            + ("StyleGANDiscriminator" if style else "PatchDiscriminator"),
            "in_channels": config.get("disc_in_channels", 3),
            **(size if style else patch),
        },
        "discriminator_form": ADVERSARIAL[config.get("disc_loss", "hinge")],
        "generator_form": ADVERSARIAL[config.get("gen_adv_loss", "hinge")],
        "adaptive": config.get("disc_adaptive_weight", False),
        "discriminator_start": config["disc_start"],
        "discriminator_weight": weight,
    }


STYLE_RULES: list[Rule] = [
    (r"blocks\.0\.(weight|bias)", r"conv_in.\1"),
    (r"blocks\.(\d+)\.conv_res\.(.+)", r"stages.\1.skip.\2"),
    (r"blocks\.(\d+)\.net\.0\.(.+)", r"stages.\1.conv1.\2"),
    (r"blocks\.(\d+)\.net\.2\.(.+)", r"stages.\1.conv2.\2"),
    (r"blocks\.(\d+)\.downsample\.1\.(.+)", r"stages.\1.down.\2"),
    (r"blocks\.\d+\.downsample\.0\.f", None),
    (r"final_conv\.0\.(.+)", r"conv_out.\1"),
    (r"final_linear\.0\.(.+)", r"hidden.\1"),
    (r"final_linear\.2\.(.+)", r"logit.\1"),
]


def discriminator_weights(
    weights: Mapping[str, Tensor], *, source: str = "LlamaGen discriminator"
) -> StateDict:
    """Translate a discriminator's state dict, as the trainer stores it under `discriminator`."""
    weights = {k.removeprefix("discriminator."): v for k, v in weights.items()}
    if "main.0.weight" in weights:
        return weights
    renamed = rename(weights, STYLE_RULES, source=source)
    # Stages come third in the reference's list.
    return {
        re.sub(r"^stages\.(\d+)", lambda m: f"stages.{int(m[1]) - 2}", k): v
        for k, v in renamed.items()
    }
