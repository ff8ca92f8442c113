"""The two losses of adversarial training: the discriminator's, and the tokenizer's against it.

Each loss is a mean over all logits: (B, 1, h, w), one a patch, or (B, 1), one an image. Those below
come by their names; another one is any callable of the same arguments, by `_target_` in YAML.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from argen.errors import UserError, suggest

DiscriminatorLoss = Callable[[Tensor, Tensor], Tensor]  # logits of images, of reconstructions
GeneratorLoss = Callable[[Tensor], Tensor]  # logits of reconstructions


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Return half the mean of relu(1 - real) plus half that of relu(1 + fake) (1705.02894)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def vanilla(real: Tensor, fake: Tensor) -> Tensor:
    """Return half the binary cross entropy, in nats, of either side (arXiv 1406.2661)."""
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def swapped_bce(real: Tensor, fake: Tensor) -> Tensor:
    """Return LlamaGen's `non-saturating` option, only to repeat its runs.

    Logits and targets of the cross entropy have changed places there, so that reconstructions give
    the discriminator no gradient.
    """
    return 0.5 * (_swapped(real, 1.0) + _swapped(fake, 0.0))


def minus_logit(fake: Tensor) -> Tensor:
    """Return minus the mean logit: what stands against `hinge`, without bounds."""
    return -fake.mean()


def non_saturating(fake: Tensor) -> Tensor:
    """Return the mean of softplus(-logit), at least 0 (arXiv 1406.2661)."""
    return F.softplus(-fake).mean()


def non_saturating_image(fake: Tensor) -> Tensor:
    """Return the mean over images of softplus(-mean logit of the image) (Open-MAGVIT2)."""
    return F.softplus(-fake.flatten(1).mean(1)).mean()


def swapped_bce_fake(fake: Tensor) -> Tensor:
    """Return what stands against `swapped_bce`."""
    return _swapped(fake, 1.0)


def _swapped(logits: Tensor, label: float) -> Tensor:
    """Return the cross entropy of the constant logit `label` against the target `logits`."""
    return math.log1p(math.exp(label)) - label * logits.mean()


DISCRIMINATOR_LOSSES: dict[str, DiscriminatorLoss] = {
    "hinge": hinge,
    "vanilla": vanilla,
    "swapped_bce": swapped_bce,
}
GENERATOR_LOSSES: dict[str, GeneratorLoss] = {
    "hinge": minus_logit,
    "non_saturating": non_saturating,
    "non_saturating_image": non_saturating_image,
    "swapped_bce": swapped_bce_fake,
}


def discriminator_loss(form: str | DiscriminatorLoss) -> DiscriminatorLoss:
    """Return the loss of a name, or the one that is given."""
    return _by_name("discriminator_form", form, DISCRIMINATOR_LOSSES)


def generator_loss(form: str | GeneratorLoss) -> GeneratorLoss:
    """Return the loss of a name, or the one that is given."""
    return _by_name("generator_form", form, GENERATOR_LOSSES)


def _by_name(setting: str, form: Any, known: Mapping[str, Any]) -> Any:
    if callable(form):
        return form
    if form not in known:
        raise UserError(
            f"Unknown {setting} {form!r}; use one of {', '.join(known)}, or _target_, the path of "
            f"a class whose objects are called with logits.{suggest(str(form), known)}"
        )
    return known[form]
