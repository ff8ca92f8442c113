"""VAR's `more_smooth`: mix code vectors instead of drawing one (arXiv 2404.02905, demo code).

Each position adds the mean of the codebook rows under a perturbed, sharpened softmax to the
image. Smoother to look at, but no longer a draw from the model: for display, not for scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from argen.decoding.base import Decoder, DecodeResult, Observer
from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.decoding.sequential import in_position_order
from argen.errors import IncompatibleError, UserError
from argen.generators.base import Generator
from argen.generators.conditioning import Cond
from argen.generators.heads.base import guide
from argen.generators.var import VAR
from argen.layers.noise import Noise


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

    @torch.inference_mode()
    def __call__(
        self,
        generator: Generator,
        cond: Cond,
        *,
        guidance: Guidance,
        filters: Filters,
        noise: Noise,
        observer: Observer | None = None,
    ) -> DecodeResult:
        """Draw the latent maps of B = len(cond) samples, one pass a scale."""
        self.check(generator)
        assert isinstance(generator, VAR)
        state = generator.start(guidance.rows(generator, cond))
        rows_VC = generator.codebook()
        groups, drawn = generator.plan.groups, []
        for k, group in enumerate(groups):
            weight = guidance.weight(k, len(groups))
            guided = guide(generator.predict(state), weight)  # B n V
            logits = filters(guided)
            positions = torch.tensor(group, device=logits.device)
            ratio = k / (len(groups) - 1)
            gumbel = noise.gumbel(positions, (rows_VC.shape[0],)).to(logits.device)
            perturbed = logits * (1 + ratio) + gumbel
            sharpness = max(self.temperature * (1 - self.cooling * ratio), self.floor)
            mixed = torch.softmax(perturbed / sharpness, dim=-1) @ rows_VC  # B n C
            generator.commit(state, mixed if weight is None else torch.cat((mixed, mixed)))
            drawn.append(perturbed.argmax(-1))
            if observer is not None:
                observer(positions, drawn[-1], guided)
        latents = state.f_hat_RChw[: len(cond)].permute(0, 2, 3, 1)
        return DecodeResult(in_position_order(drawn, groups), len(groups), latents=latents)
