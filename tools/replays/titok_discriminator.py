"""Replays TiTok's discriminator and adversarial losses."""

from __future__ import annotations

import torch
from torch import Tensor

from argen.build import build
from argen.interop.titok import titok_objective
from argen.objectives.adversarial import generator_loss
from argen.objectives.objective import Objective
from replays.fixture import Bound, Fixture

SYSTEMS = ("TiTok discriminator",)


def replay(fixture: Fixture) -> dict[str, Tensor]:
    """Compute every expected tensor of an `NLayerDiscriminator` fixture.

    The reference judges images in [0, 1]; argen's discriminators, as all, [-1, 1].
    """
    real, fake = fixture["real"] * 2 - 1, fixture["fake"] * 2 - 1
    config = titok_objective.objective_config(fixture.config)
    after = config["discriminator_start"]
    objective = build(config, trust=True)
    assert isinstance(objective, Objective)
    assert objective.discriminator is not None
    objective.load_state_dict(titok_objective.objective_weights(fixture.weights))
    # In training, or the running means would rest; this network has nothing else that minds.
    total, terms = objective.train().discriminator_loss(real, fake, step=after)
    with torch.no_grad():
        logits = objective.discriminator(fake)
        found = {
            "logits_real": objective.discriminator(real),
            "logits_fake": logits,
            "discriminator_loss": total.detach(),
            "generator_loss": generator_loss(objective.generator_form)(logits),
        }
    if objective.lecam is not None:
        found |= {
            "lecam_loss": objective.lecam_weight * terms["lecam"],
            "ema_real_after": objective.lecam.real,
            "ema_fake_after": objective.lecam.fake,
        }
    elif fixture.wants("lecam_loss"):
        found["lecam_loss"] = total.new_zeros(())

    def loss(name: str, ours: dict[str, Tensor]) -> Tensor:
        bound = Bound(build(config, trust=True))
        if name == "discriminator_loss":
            return bound.under(ours, name, real, fake, step=after)[0]
        judge = {
            k.removeprefix("discriminator."): v
            for k, v in ours.items()
            if k.startswith("discriminator.")
        }
        assert objective.discriminator is not None
        logits = Bound(objective.discriminator).under(judge, "forward", fake)
        return generator_loss(objective.generator_form)(logits)

    return found | fixture.gradients(loss, titok_objective.objective_weights)
