"""Every tiny generator trains and draws on a CUDA device as it does on the CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from shipped import accepting_decoder, condition, make_generator, partner, random_codes, tiny

from argen.decoding.context import SamplingContext
from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.layers.noise import SeededNoise

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.parametrize("name", tiny("generator")),
]


def test_the_loss_is_that_of_the_cpu(name: str) -> None:
    model = make_generator(name, partner(name)).eval()
    codes, twin = random_codes(model.spec, 2), copy.deepcopy(model).cuda()
    torch.manual_seed(0)
    here = model.loss(codes, condition(model, 2), noise=SeededNoise([0, 1])).loss
    there = twin.loss(
        codes.cuda(), condition(twin, 2), noise=SeededNoise([0, 1], device="cuda")
    ).loss
    there.backward()
    torch.testing.assert_close(there.cpu(), here, rtol=1e-3, atol=1e-4)


def test_a_image_does_not_depend_on_its_batch(name: str) -> None:
    model = make_generator(name, partner(name)).eval().cuda()
    decoder = accepting_decoder(model)
    cond = condition(model, 3)

    def draw(rows: slice) -> torch.Tensor:
        with torch.inference_mode():
            return decoder(
                model,
                cond.rows(rows),
                SamplingContext(
                    guidance=Guidance(2.0),
                    filters=Filters(),
                    noise=SeededNoise(list(range(3))[rows], device="cuda"),
                ),
            ).codes

    whole, alone = draw(slice(0, 3)), draw(slice(1, 2))
    model.spec.check(whole.cpu())
    if whole.is_floating_point():
        torch.testing.assert_close(alone, whole[1:2], rtol=1e-2, atol=1e-2)
    else:
        # Products of another shape round otherwise, which may flip a draw now and then.
        assert (alone == whole[1:2]).float().mean() > 0.9
