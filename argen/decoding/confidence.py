"""Confidence decoding: draw all unknown codes at once, keep the surest (MaskGIT, 2202.04200).

The exact steps are those of TiTok (arXiv 2406.07550) and MaskGen (arXiv 2501.07730).
"""

from __future__ import annotations

import torch
from torch import Tensor

from argen.decoding.base import Decoder, DecodeResult, Observer
from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.decoding.known import Known
from argen.decoding.masked import repeat
from argen.errors import IncompatibleError, UserError
from argen.generators.base import AnyOrderGenerator, Generator
from argen.generators.conditioning import Cond
from argen.generators.heads.base import guide
from argen.generators.heads.categorical import CategoricalHead
from argen.generators.maskgit.mask_schedule import check_schedule, unknown_after
from argen.layers.noise import Noise


class Confidence(Decoder):
    """Draw every unknown code, keep the most confident, draw the others again.

    In step s of S, with r = (s + 1) / S and heat = randomize (1 - r), each unknown code is the
    argmax of its guided logits plus heat times Gumbel noise. Its confidence is its own logit plus
    heat times fresh Gumbel noise, and the schedule's share of codes with the lowest confidence
    stays unknown. The last step keeps everything and adds no noise.

    Args:
        steps: number of passes S.
        randomize: heat of the first step; the published values are large because confidences are
            logits, not probabilities.
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
        randomize: float = 4.5,
        schedule: str = "arccos",
        anneal: bool = False,
        sort_noise: bool = True,
        guide_after: bool = False,
    ) -> None:
        check_schedule(schedule)
        if steps < 1:
            raise UserError(f"steps={steps}: decoder `confidence` needs at least one pass.")
        if randomize < 0:
            raise UserError(f"randomize={randomize} is negative; 0 means greedy.")
        self.steps, self.randomize, self.schedule = steps, randomize, schedule
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
                f"decoder `confidence` compares the logits of codes; {name} draws with a "
                f"{type(generator.head).__name__}: use decoder=masked."
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
        known: tuple[Tensor, Tensor] | None = None,
    ) -> DecodeResult:
        """Draw the codes of B = len(cond) samples in `steps` passes.

        Args:
            generator: an any-order generator with a softmax head.
            cond: the conditions.
            guidance: weight and schedule.
            filters: cut the guided logits before the draw; confidences are those before the cut.
            noise: draws of codes and confidences.
            observer: is told all unknown positions (B, n) of a step and their candidates, of
                which the surest are kept.
            known: positions (n,) or (B, n) and codes (n,) or (B, n) that are given beforehand,
                for completion and inpainting.
        """
        self.check(generator)
        assert isinstance(generator, AnyOrderGenerator)
        B, L, rows = len(cond), generator.spec.length, guidance.rows(generator, cond)
        copies, device = len(rows) // B, next(generator.parameters()).device
        state = generator.start(rows)
        codes_BL = torch.zeros(B, L, dtype=torch.long, device=device)
        open_Bn = torch.arange(L, device=device).expand(B, L)
        if known is not None:
            given = Known.at(*known, spec=generator.spec, batch=B, device=device)
            codes_BL, where = given.codes, rows_of(given.mask_BL)
            fixed = codes_BL.gather(1, where)
            generator.commit(state, repeat(fixed, copies), positions=repeat(where, copies))
            open_Bn = rows_of(~given.mask_BL)
        total, accepted = open_Bn.shape[1], []
        for step in range(self.steps if total else 0):
            done = (step + 1) / self.steps
            heat = self.randomize * (1.0 - done)
            params = generator.predict(state, positions=repeat(open_Bn, copies))
            logits = guide(params, self._weight(guidance, step))  # B n V
            if self.anneal:
                logits = logits / (0.5 + 0.8 * (1.0 - done))
            candidates = self._draw(filters(logits), heat, noise, open_Bn, step)
            if observer is not None:
                observer(open_Bn, candidates, logits)
            unknown = open_Bn.shape[1]
            after = unknown_after(self.schedule, total, step, self.steps, unknown=unknown)
            surest = self._rank(logits, candidates, heat, noise, open_Bn, step)
            kept = surest[:, after:].sort(dim=-1).values
            codes, positions = candidates.gather(1, kept), open_Bn.gather(1, kept)
            generator.commit(state, repeat(codes, copies), positions=repeat(positions, copies))
            codes_BL = codes_BL.scatter(1, positions, codes)
            open_Bn = open_Bn.gather(1, surest[:, :after].sort(dim=-1).values)
            accepted.append(torch.full((B,), unknown - after))
        count = torch.stack(accepted) if accepted else torch.zeros(0, B, dtype=torch.long)
        return DecodeResult(codes=codes_BL, passes=len(accepted), accepted=count)

    def _weight(self, guidance: Guidance, step: int) -> float | tuple[float, ...] | None:
        if guidance.active and self.guide_after:
            return guidance.at((step + 1) / self.steps)
        return guidance.weight(step, self.steps)

    def _draw(
        self, logits: Tensor, heat: float, noise: Noise, open_Bn: Tensor, step: int
    ) -> Tensor:
        """Return candidates (B, n)."""
        if heat == 0.0:
            return logits.argmax(-1)
        gumbel = noise.gumbel(open_Bn, (logits.shape[-1],), use=2 * step)
        return (logits + heat * gumbel.to(logits.device)).argmax(-1)

    def _rank(
        self,
        logits: Tensor,
        candidates: Tensor,
        heat: float,
        noise: Noise,
        open_Bn: Tensor,
        step: int,
    ) -> Tensor:
        """Return indices (B, n) into the unknown positions, from the least to the most sure."""
        confidence = logits.gather(-1, candidates[..., None])[..., 0]
        if self.sort_noise and heat > 0.0:
            gumbel = noise.gumbel(open_Bn, use=2 * step + 1)
            confidence = confidence + heat * gumbel.to(confidence.device)
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
