"""The training losses of taming-transformers (CompVis, MIT, arXiv 2012.09841)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from argen.interop.base import StateDict
from argen.interop.taming.tokenizer import BETA, is_gumbel


def objective_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Translate `lossconfig` (`VQLPIPSWithDiscriminator`), without the perceptual network.

    The released models were trained with the `legacy` weights, 0.25 on the codebook's side.
    """
    loss = config.get("lossconfig", {}).get("params") or {}
    own = loss.get("codebook_weight", 1.0)
    if is_gumbel(config):
        weights = {"kl": own * config.get("kl_weight", 1e-8)}
    else:
        weights = {"codebook": own * BETA, "commitment": own}
    weights = {"l1": 1.0, "perceptual": loss.get("perceptual_weight", 1.0), **weights}
    objective: dict[str, Any] = {
        "_target_": "argen.objectives.objective.Objective",
        "weights": weights,
    }
    if "disc_start" not in loss:
        return objective
    factor = loss.get("disc_factor", 1.0)
    weights["adversarial"] = factor * loss.get("disc_weight", 1.0)
    return objective | {
        "discriminator": {
            "_target_": "argen.objectives.discriminators.PatchDiscriminator",
            "channels": loss.get("disc_ndf", 64),
            "layers": loss.get("disc_num_layers", 3),
            "in_channels": loss.get("disc_in_channels", 3),
            "norm": "act" if loss.get("use_actnorm", False) else "batch",
        },
        "discriminator_form": loss.get("disc_loss", "hinge"),
        "adaptive": True,
        "discriminator_start": loss["disc_start"],
        "discriminator_weight": factor,
    }


def discriminator_weights(
    weights: Mapping[str, Tensor], *, prefix: str = "loss.discriminator."
) -> StateDict:
    """Return the discriminator's part of a training checkpoint."""
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
