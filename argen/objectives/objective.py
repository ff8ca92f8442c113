"""What a tokenizer is trained on: a weighted sum of named terms, and the discriminator's loss.

The class holds everything the losses need besides the tokenizer (perceptual networks,
discriminator, running means), so that a training loop only calls it twice a step:

    total, terms = objective.tokenizer_loss(images, output, step=step, last_layer=...)
    if objective.trains_discriminator(step):
        total, terms = objective.discriminator_loss(images, output.images, step=step)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from argen.errors import UserError, suggest
from argen.objectives.adversarial import (
    DiscriminatorLoss,
    GeneratorLoss,
    discriminator_loss,
    generator_loss,
)
from argen.objectives.alignment import AlignmentLoss, alignment_scale
from argen.objectives.balance import adaptive_weight
from argen.objectives.image_terms import with_pixel_errors
from argen.objectives.regularizers import LeCam, gradient_penalty
from argen.tokenizers.base import TokenizerOutput
from argen.tokenizers.schedules import Linear, Scheduled, value_at

Terms = dict[str, Tensor]


class Objective(nn.Module):
    """The losses of a recipe.

    All images are (B, 3, H, W) in [-1, 1], and every term is a mean over the batch; what a term is
    a mean of, and in which range, its own class says.

    Args:
        weights: weight of every term by name, a number or a schedule (any callable from the
            training step to a number, e.g. `argen.tokenizers.schedules.Linear`): `l1`, `l2`, those
            of `image_terms` and `latent_terms`, `adversarial`, `alignment`, and whatever the
            tokenizer's own losses are called. Every loss that the tokenizer gives needs one, 0 if
            it is only to be logged; weights of losses that it does not give are ignored, so that
            quantisers may be exchanged.
        image_terms: distances between reconstructions and images by name, see `image_terms.py`;
            `l1` and `l2` are there without being named, and can be replaced.
        latent_terms: losses of anything a `TokenizerOutput` holds, by name: modules with
            `forward(output, images)` that give a scalar.
        discriminator: maps images to logits; without it there is no adversarial term.
        discriminator_form: what the discriminator minimises, a name of `adversarial.py` or a
            callable of the logits of images and of reconstructions.
        generator_form: what the tokenizer minimises to make reconstructions look real, a name or a
            callable of the logits of reconstructions.
        adaptive: scale the adversarial term to the gradient of the reconstruction at the last
            layer (see `adaptive_weight`), before its weight.
        adaptive_range: least and largest value of that scale.
        discriminator_start: first step at which the discriminator is trained.
        adversarial_start: first step at which the adversarial term counts for the tokenizer;
            `discriminator_start` if not given. A later one lets the discriminator catch up first.
        adversarial_warmup: steps over which the adversarial weight then rises in a line.
        discriminator_weight: multiplies the discriminator's own loss.
        lecam: regulariser of the logits.
        lecam_weight: its weight.
        r1_weight: weight of the gradient penalty on real images.
        r1_every: it is computed every so many steps, and weighs as many times more.
        augment: differentiable augmentation of whatever the discriminator sees.
        consistency_weight: weight of the squared difference between the logits of plain and
            augmented images (balanced consistency, arXiv 2002.04724).
        alignment: pulls the sampled latents of a KL tokenizer towards features of a frozen
            network; scaled to the gradient of the reconstruction at the encoder's last layer,
            before `weights.alignment`.

    Raises:
        UserError: if a term has no weight, a form is unknown, or a part is missing.
    """

    def __init__(
        self,
        *,
        weights: Mapping[str, Scheduled],
        image_terms: Mapping[str, nn.Module] | None = None,
        latent_terms: Mapping[str, nn.Module] | None = None,
        discriminator: nn.Module | None = None,
        discriminator_form: str | DiscriminatorLoss = "hinge",
        generator_form: str | GeneratorLoss = "hinge",
        adaptive: bool = False,
        adaptive_range: tuple[float, float] = (0.0, 1e4),
        discriminator_start: int = 0,
        adversarial_start: int | None = None,
        adversarial_warmup: int = 0,
        discriminator_weight: float = 1.0,
        lecam: LeCam | None = None,
        lecam_weight: float = 0.0,
        r1_weight: float = 0.0,
        r1_every: int = 16,
        augment: nn.Module | None = None,
        consistency_weight: float = 0.0,
        alignment: AlignmentLoss | None = None,
    ) -> None:
        super().__init__()
        discriminator_loss(discriminator_form), generator_loss(generator_form)  # do they exist?
        self.discriminator_form, self.generator_form = discriminator_form, generator_form
        self.weights = dict(weights)
        self.image_terms = nn.ModuleDict(with_pixel_errors(image_terms or {}))
        self.latent_terms = nn.ModuleDict(dict(latent_terms or {}))
        terms = {**(image_terms or {}), **self.latent_terms}
        unweighted = [name for name in terms if name not in self.weights]
        if discriminator is not None and "adversarial" not in self.weights:
            unweighted.append("adversarial")
        if alignment is not None and "alignment" not in self.weights:
            unweighted.append("alignment")
        if unweighted:
            raise UserError(f"No weight for {', '.join(unweighted)}; add it to weights.")
        if discriminator is None and self.weights.get("adversarial"):
            raise UserError("weights.adversarial needs a discriminator; give one, or set it to 0.")
        if consistency_weight and augment is None:
            raise UserError("consistency_weight compares augmented logits; give augment as well.")
        if lecam_weight and lecam is None:
            raise UserError("lecam_weight needs lecam; give argen.objectives.regularizers.LeCam.")
        self.discriminator = discriminator
        self.adaptive = adaptive
        self.adaptive_range = (float(adaptive_range[0]), float(adaptive_range[1]))
        self.discriminator_start = discriminator_start
        if adversarial_start is None:
            adversarial_start = discriminator_start
        self.strength = Linear(0.0, 1.0, begin=adversarial_start, steps=adversarial_warmup)
        self.discriminator_weight = discriminator_weight
        self.lecam, self.lecam_weight = lecam, lecam_weight
        self.r1_weight, self.r1_every = r1_weight, r1_every
        self.augment, self.consistency_weight = augment, consistency_weight
        self.alignment = alignment

    def trains_discriminator(self, step: int) -> bool:
        """Whether the discriminator takes a step."""
        return self.discriminator is not None and step >= self.discriminator_start

    def tokenizer_loss(
        self,
        images: Tensor,
        output: TokenizerOutput,
        *,
        step: int,
        last_layer: Tensor | None = None,
        encoder_layer: Tensor | None = None,
    ) -> tuple[Tensor, Terms]:
        """Return the tokenizer's total and its unweighted, detached terms.

        Args:
            images: images (B, 3, H, W) in [-1, 1].
            output: what the tokenizer made of them.
            step: training step.
            last_layer: the tokenizer's `last_layer()`, for the adaptive weight.
            encoder_layer: its `encoder_last_layer()`, for the scale of the alignment.

        Raises:
            UserError: if the tokenizer gives a loss that has no weight.
        """
        with torch.autocast(images.device.type, enabled=False):
            return self._tokenizer_loss(images.float(), output, step, last_layer, encoder_layer)

    def _tokenizer_loss(
        self,
        images: Tensor,
        output: TokenizerOutput,
        step: int,
        last_layer: Tensor | None,
        encoder_layer: Tensor | None,
    ) -> tuple[Tensor, Terms]:
        reconstruction = output.images.float()
        seen = {
            name: term(reconstruction, images)
            for name, term in self.image_terms.items()
            if getattr(term, "always", False) or value_at(self.weights.get(name, 0.0), step)
        }
        missing = [name for name in output.losses if name not in self.weights]
        if missing:
            raise UserError(
                f"The tokenizer gives a loss {missing[0]!r} without a weight; add "
                f"weights.{missing[0]} (0 only logs it).{suggest(missing[0], self.weights)}"
            )
        latent = {
            name: term(output, images)
            for name, term in self.latent_terms.items()
            if value_at(self.weights[name], step)
        }
        fidelity = self._weighted(seen, step, images)
        total = fidelity + self._weighted({**output.losses, **latent}, step, images)
        terms = {**seen, **output.losses, **latent}
        if self.alignment is not None:
            pull, aligned = self._align(images, output, fidelity, encoder_layer)
            total = total + value_at(self.weights["alignment"], step) * pull
            terms |= aligned
        strength = self.strength(step) if self.trains_discriminator(step) else 0.0
        if strength:
            adversarial = generator_loss(self.generator_form)(self._frozen_logits(reconstruction))
            weight = strength * value_at(self.weights["adversarial"], step)
            scale = self._adaptive_scale(fidelity, adversarial, last_layer)
            total = total + weight * scale * adversarial
            terms |= {"adversarial": adversarial, "adaptive_weight": scale}
        return total, {name: value.detach() for name, value in terms.items()}

    def _weighted(self, terms: Mapping[str, Tensor], step: int, like: Tensor) -> Tensor:
        """Return the weighted sum; terms of weight 0 leave the graph alone."""
        total = like.new_zeros(())
        for name, value in terms.items():
            weight = value_at(self.weights.get(name, 0.0), step)
            if weight:
                total = total + weight * value.float()
        return total

    def _adaptive_scale(self, fidelity: Tensor, adversarial: Tensor, last: Tensor | None) -> Tensor:
        if not self.adaptive:
            return adversarial.new_ones(())
        if not adversarial.requires_grad:  # Validation: no gradient to balance.
            return adversarial.new_zeros(())
        if last is None:
            raise UserError(
                "adaptive=true balances gradients at the tokenizer's last layer, which this "
                "tokenizer does not name; set adaptive=false."
            )
        low, high = self.adaptive_range
        return adaptive_weight(fidelity, adversarial, last, low=low, high=high)

    def _align(
        self, images: Tensor, output: TokenizerOutput, fidelity: Tensor, layer: Tensor | None
    ) -> tuple[Tensor, Terms]:
        """Return the scaled alignment loss, and its parts for the log."""
        assert self.alignment is not None
        if output.latents is None or layer is None:
            raise UserError(
                "The alignment loss needs a tokenizer with sampled latents and an "
                "encoder_last_layer, such as KLTokenizer; leave alignment out."
            )
        value, terms = self.alignment(images, output.latents)
        balanced = torch.is_grad_enabled() and fidelity.requires_grad
        if not balanced:
            return value * 0, {**terms, "alignment_scale": value.new_zeros(())}
        scale = alignment_scale(fidelity, value, layer, high=self.alignment.max_scale)
        return scale * value, {**terms, "alignment_scale": scale}

    def _frozen_logits(self, reconstruction: Tensor) -> Tensor:
        """Return the logits of reconstructions; the discriminator's weights get no gradient."""
        assert self.discriminator is not None
        if self.augment is not None:
            reconstruction = self.augment(reconstruction)
        frozen = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        return torch.func.functional_call(self.discriminator, frozen, (reconstruction,))

    def discriminator_loss(
        self, images: Tensor, reconstruction: Tensor, *, step: int
    ) -> tuple[Tensor, Terms]:
        """Return the discriminator's total and its unweighted, detached terms.

        Args:
            images: images (B, 3, H, W) in [-1, 1].
            reconstruction: the tokenizer's, same shape; detached here.
            step: training step.
        """
        if self.discriminator is None:
            raise UserError("This objective has no discriminator.")
        with torch.autocast(images.device.type, enabled=False):
            return self._discriminator_loss(images.float(), reconstruction.detach().float(), step)

    def _discriminator_loss(
        self, images: Tensor, reconstruction: Tensor, step: int
    ) -> tuple[Tensor, Terms]:
        assert self.discriminator is not None
        penalise = self.r1_weight > 0 and step % self.r1_every == 0 and torch.is_grad_enabled()
        images = images.detach().requires_grad_(penalise)
        seen_real, seen_fake = images, reconstruction
        if self.augment is not None:
            seen_real, seen_fake = self.augment(images), self.augment(reconstruction)
        real, fake = self.discriminator(seen_real), self.discriminator(seen_fake)
        loss = discriminator_loss(self.discriminator_form)(real, fake)
        total = self.discriminator_weight * loss
        terms = {"discriminator": loss, "logits_real": real.mean(), "logits_fake": fake.mean()}
        if self.lecam is not None:
            terms["lecam"] = self.lecam(real, fake)
            total = total + self.lecam_weight * terms["lecam"]
        if self.consistency_weight:
            terms["consistency"] = sum(
                (self.discriminator(plain) - logits).square().mean()
                for plain, logits in ((images, real), (reconstruction, fake))
            )
            total = total + self.consistency_weight * terms["consistency"]
        if penalise:
            terms["r1"] = gradient_penalty(real, images)
            total = total + self.r1_weight * self.r1_every * terms["r1"]
        return total, {name: value.detach() for name, value in terms.items()}
