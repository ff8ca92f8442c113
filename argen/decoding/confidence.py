"""Confidence decoding: sample all unknown codes, keep the most confident (MaskGIT, 2202.04200).

The exact steps are those of TiTok (arXiv 2406.07550) and MaskGen (arXiv 2501.07730).
"""

from __future__ import annotations

import torch
from torch import Tensor

from argen.decoding.base import Decoder, DecodeResult
from argen.decoding.context import SamplingContext
from argen.decoding.guidance import Guidance, repeat_for_cfg
from argen.decoding.known import Known
from argen.errors import IncompatibleError, UserError
from argen.generators.base import AnyOrderGenerator, Generator
from argen.generators.conditioning import Cond
from argen.generators.heads.categorical import CategoricalHead
from argen.generators.heads.guidance import GuidanceStep, guide
from argen.generators.maskgit.mask_schedule import check_schedule, unknown_after
from argen.layers.noise import Noise


class Confidence(Decoder):
    """Sample every unknown code, keep the most confident, sample the others again.

    In step s of S, with r = (s + 1) / S and tau = choice_temperature (1 - r), each unknown code is
    the argmax of its guided logits plus tau times Gumbel noise. Its confidence is its own logit
    plus tau times fresh Gumbel noise, and the schedule's share of codes with the lowest confidence
    stays unknown. The last step keeps everything and adds no noise.

    Args:
        steps: number of passes S.
        choice_temperature: tau of the first step (`randomize_temperature` in TiTok's code); the
            published values are large because confidences are logits, not probabilities.
        schedule: share of codes that stay unknown, see `argen.generators.maskgit.mask_schedule`.
        anneal: divide the logits by 0.5 + 0.8 (1 - r).
        sort_noise: add noise to the confidences.
        guide_after: let the guidance weight follow r, the share of steps done after the pass
            (MaskGen), not s / S, the share before it (TiTok).
    """

    exact = False
    takes_known = True

    def __init__(
        self,
        steps: int = 8,
        *,
        choice_temperature: float = 4.5,
        schedule: str = "arccos",
        anneal: bool = False,
        sort_noise: bool = True,
        guide_after: bool = False,
    ) -> None:
        check_schedule(schedule)
        if steps < 1:
            raise UserError(f"steps={steps}: decoder `confidence` needs at least one pass.")
        if choice_temperature < 0:
            raise UserError(f"choice_temperature={choice_temperature} is negative; 0 means greedy.")
        self.steps, self.choice_temperature, self.schedule = steps, choice_temperature, schedule
        self.anneal, self.sort_noise, self.guide_after = anneal, sort_noise, guide_after

    def check(self, generator: Generator) -> None:
        """Raise unless the generator scores any subset of codes by logits."""
        name = type(generator).__name__
        if not (generator.plan.any_order and isinstance(generator, AnyOrderGenerator)):
            raise IncompatibleError(
                f"decoder `confidence` keeps codes in any order; {name} has a fixed one: use "
                "decoder=sequential."
            )
        if not isinstance(generator.head, CategoricalHead):
            raise IncompatibleError(
                f"decoder `confidence` compares the logits of codes; {name} samples with a "
                f"{type(generator.head).__name__}: use decoder=masked."
            )

    def sample(self, generator: Generator, cond: Cond, context: SamplingContext) -> DecodeResult:
        """Sample the codes of B = len(cond) images in `steps` passes.

        The filters cut the guided logits before candidates are sampled; confidences are those
        before the cut. The observer is told all unknown positions (B, n) of a step and their
        candidates, of which the most confident are kept.
        """
        assert isinstance(generator, AnyOrderGenerator)
        guidance, noise = context.guidance, context.noise
        B, L, device = len(cond), generator.spec.length, next(generator.parameters()).device
        state = generator.start(guidance.rows(generator, cond))

        def both(x: Tensor) -> Tensor:
            return repeat_for_cfg(x, guidance.active)

        codes_BL = torch.zeros(B, L, dtype=torch.long, device=device)
        unknown_Bn = torch.arange(L, device=device).expand(B, L)
        if context.known is not None:
            given = Known.at(*context.known, spec=generator.spec, batch=B, device=device)
            codes_BL, where = given.codes, rows_of(given.mask_BL)
            fixed = codes_BL.gather(1, where)
            generator.commit(state, both(fixed), positions=both(where))
            unknown_Bn = rows_of(~given.mask_BL)
        total, accepted = unknown_Bn.shape[1], []
        for step in range(self.steps if total else 0):
            done = (step + 1) / self.steps
            tau = self.choice_temperature * (1.0 - done)
            outputs = generator.predict(state, positions=both(unknown_Bn))
            logits = guide(outputs, self._guidance(guidance, step))  # B n V
            if self.anneal:
                logits = logits / (0.5 + 0.8 * (1.0 - done))
            candidates = self._candidates(context.filters(logits), tau, noise, unknown_Bn, step)
            if context.observer is not None:
                context.observer(unknown_Bn, candidates, logits)
            before = unknown_Bn.shape[1]
            after = unknown_after(self.schedule, total, step, self.steps, unknown=before)
            ranked = self._rank(logits, candidates, tau, noise, unknown_Bn, step)
            kept = ranked[:, after:].sort(dim=-1).values
            codes, positions = candidates.gather(1, kept), unknown_Bn.gather(1, kept)
            generator.commit(state, both(codes), positions=both(positions))
            codes_BL = codes_BL.scatter(1, positions, codes)
            unknown_Bn = unknown_Bn.gather(1, ranked[:, :after].sort(dim=-1).values)
            accepted.append(torch.full((B,), before - after))
        count = torch.stack(accepted) if accepted else torch.zeros(0, B, dtype=torch.long)
        return DecodeResult(codes=codes_BL, passes=len(accepted), accepted=count)

    def _guidance(self, guidance: Guidance, step: int) -> GuidanceStep | None:
        if self.guide_after:
            return guidance.at((step + 1) / self.steps)
        return guidance.step(step, self.steps)

    def _candidates(
        self, logits: Tensor, tau: float, noise: Noise, unknown_Bn: Tensor, step: int
    ) -> Tensor:
        """Return candidates (B, n)."""
        if tau == 0.0:
            return logits.argmax(-1)
        gumbel = noise.gumbel(unknown_Bn, (logits.shape[-1],), use=2 * step)
        return (logits + tau * gumbel.to(logits.device)).argmax(-1)

    def _rank(
        self,
        logits: Tensor,
        candidates: Tensor,
        tau: float,
        noise: Noise,
        unknown_Bn: Tensor,
        step: int,
    ) -> Tensor:
        """Return indices (B, n) into the unknown positions, the least confident first."""
        confidence = logits.gather(-1, candidates[..., None])[..., 0]
        if self.sort_noise and tau > 0.0:
            gumbel = noise.gumbel(unknown_Bn, use=2 * step + 1)
            confidence = confidence + tau * gumbel.to(confidence.device)
        return confidence.argsort(dim=-1, stable=True)


def rows_of(mask_BL: Tensor) -> Tensor:
    """Return where a mask is true, (B, n); every row must hold equally many."""
    return mask_BL.nonzero()[:, 1].view(mask_BL.shape[0], -1)


def maskgit_guidance(scale: float, decay: str = "constant", power: float = 3.0) -> Guidance:
    """Return the guidance that TiTok's published settings mean.

    Its scales are not comparable between decays: `constant` and `linear` add scale (cond - null)
    to the conditional logits, so their weight is 1 + scale; `power-cosine` is the usual weight.

    Args:
        scale: guidance_scale.
        decay: guidance_decay: constant, linear or power-cosine.
        power: guidance_scale_pow.
    """
    if decay == "constant":
        return Guidance(scale=1.0 + scale)
    if decay == "linear":
        return Guidance(scale=1.0 + scale, schedule="linear")
    if decay == "power-cosine":
        return Guidance(scale=scale, schedule="power_cosine", power=power)
    raise UserError(f"Unknown guidance decay {decay!r}; use constant, linear or power-cosine.")
