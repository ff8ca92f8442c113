"""Generators can learn: four images, known by heart within two hundred steps."""

import pytest
import torch
from shipped import condition, make_generator, partner, random_codes, tiny, tokenizer_spec

from argen.build import locate
from argen.generators.base import Generator
from argen.layers.noise import SeededNoise
from argen.runtime.presets import preset


def learn_four_images_by_heart(name):
    generator = make_generator(name, partner(name)).train()
    codes = random_codes(generator.spec, 4)
    optimizer = torch.optim.AdamW(generator.parameters(), lr=3e-3, weight_decay=0.0)
    fixed = None if generator.spec.kind != "continuous" else SeededNoise(range(4))
    losses: list[float] = []
    for _ in range(200):
        loss = generator.loss(codes, condition(generator, 4), noise=fixed).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(generator.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if sum(losses[-5:]) / 5 < 0.05 * losses[0] and len(losses) > 5:
            break
    # Codes that are drawn from a density keep a floor that depends on the model; its loss on
    # fixed draws must still fall far below where it began.
    bound = 0.05 if generator.spec.kind != "continuous" else 0.5
    assert sum(losses[-5:]) / 5 < bound * losses[0]


def base_class(name):
    """Return the class right below `Generator` that a preset's network is one of."""
    ancestors = locate(preset("generator", name)["_target_"]).__mro__
    return ancestors[ancestors.index(Generator) - 1]


def one_of_each():
    """Return one preset of each base class of the contract and kind of codes, the first of each."""
    found = {}
    for name in tiny("generator"):
        found.setdefault((base_class(name), tokenizer_spec(partner(name)).kind), name)
    return list(found.values())


def test_one_of_each_base_class_learns():
    failed = {}
    for name in one_of_each():
        try:
            learn_four_images_by_heart(name)
        except AssertionError as error:
            failed[name] = error
    assert not failed, failed


@pytest.mark.full
@pytest.mark.parametrize("name", tiny("generator"))
def test_every_preset_learns(name):
    learn_four_images_by_heart(name)
