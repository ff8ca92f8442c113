"""VAR's `more_smooth`: mix code vectors instead of sampling one (arXiv 2404.02905, demo code).

Each position adds the mean of the codebook rows under a perturbed, sharpened softmax to the
image. Smoother to look at, but no longer a sample of the model: for display, not for scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from argen.decoding.base import Decoder, DecodeResult
from argen.decoding.context import SamplingContext
from argen.decoding.group_order import in_position_order
from argen.decoding.guidance import repeat_for_cfg
from argen.errors import IncompatibleError, UserError
from argen.generators.base import Generator
from argen.generators.conditioning import Cond
from argen.generators.heads.guidance import guide
from argen.generators.var import VAR


@dataclass(frozen=True)
class SmoothScales(Decoder):
    """Scale after scale, with mixed vectors.

    With r from 0 at the first scale to 1 at the last, a position's vector is the mean of the
    codebook under softmax((logits (1 + r) + Gumbel noise) / t), t = max(temperature (1 - cooling
    r), floor). The codes returned are the likeliest rows; the image is decoded from the map.

    Attributes:
        temperature: t at the first scale.
        cooling: share of it gone at the last.
        floor: smallest t.
    """

    temperature: float = 0.27
    cooling: float = 0.95
    floor: float = 0.005

    exact = False

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.floor <= 0:
            raise UserError("decoder `smooth` needs a temperature and a floor above 0.")

    def check(self, generator: Generator) -> None:
        """Raise unless the generator adds vectors to a map."""
        if not isinstance(generator, VAR):
            raise IncompatibleError(
                "decoder `smooth` mixes the code vectors of a pyramid; "
                f"{type(generator).__name__} reads single codes: use decoder=sequential, or a VAR."
            )

    def sample(self, generator: Generator, cond: Cond, context: SamplingContext) -> DecodeResult:
        """Sample the latent maps of B = len(cond) images, one pass a scale."""
        assert isinstance(generator, VAR)
        state = generator.start(context.guidance.rows(generator, cond))
        rows_VC = generator.codebook()
        groups, sampled = generator.plan.groups, []
        for k, group in enumerate(groups):
            guidance = context.guidance.step(k, len(groups))
            guided = guide(generator.predict(state), guidance)  # B n V
            logits = context.filters(guided)
            positions = torch.tensor(group, device=logits.device)
            ratio = k / (len(groups) - 1)
            gumbel = context.noise.gumbel(positions, (rows_VC.shape[0],)).to(logits.device)
            perturbed = logits * (1 + ratio) + gumbel
            sharpness = max(self.temperature * (1 - self.cooling * ratio), self.floor)
            mixed = torch.softmax(perturbed / sharpness, dim=-1) @ rows_VC  # B n C
            generator.commit(state, repeat_for_cfg(mixed, context.guidance.active))
            sampled.append(perturbed.argmax(-1))
            if context.observer is not None:
                context.observer(positions, sampled[-1], guided)
        latents = state.f_hat_RChw[: len(cond)].permute(0, 2, 3, 1)
        return DecodeResult(in_position_order(sampled, groups), len(groups), latents=latents)
