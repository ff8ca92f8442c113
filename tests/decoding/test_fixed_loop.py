"""decoder=sequential compile=true: the same codes in shapes that never change."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "contracts"))
from shipped import condition, make_generator, partner, random_codes, tiny

from argen.decoding.compiled import CompiledSequential, predict_at
from argen.decoding.context import SamplingContext
from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.decoding.sequential import Sequential
from argen.errors import IncompatibleError, UserError
from argen.generators.next_token import NextToken
from argen.layers.noise import SeededNoise

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]
MODELS = {name: make_generator(name, partner(name)) for name in tiny("generator")}
NEXT_TOKEN = [name for name, model in MODELS.items() if isinstance(model, NextToken)]


@pytest.mark.parametrize("name", NEXT_TOKEN)
@torch.inference_mode()
def test_a_step_of_fixed_shape_predicts_the_same(name: str) -> None:
    model = MODELS[name]
    codes, cond = random_codes(model.spec, 3), condition(model, 3)
    plain, fixed = model.start(cond), model.start(cond)
    model.predict(plain)
    model.predict(fixed)
    for step in range(4):
        model.commit(plain, codes[:, step : step + 1])
        fixed.codes[:, step] = codes[:, step]
        expected = model.predict(plain)
        found = predict_at(model, fixed, torch.tensor([step]))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["tiny_gpt", "tiny_ibq", "tiny_rar"])
@pytest.mark.parametrize("device", DEVICES)
def test_compiled_codes_are_those_of_the_plain_loop_batch_after_batch(
    device: str, name: str
) -> None:
    model = MODELS[name].to(device)
    with torch.no_grad():  # modulations start at zero, where conditions change nothing
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    plain, compiled = Sequential(), Sequential(compile=True)
    try:
        for seeds, temperature, parallel in (
            ([1, 2], 0.0, 1.0),
            ([1, 2], 1.0, 0.5),
            ([3, 4], 1.0, 0.5),
        ):
            with torch.inference_mode():
                cond = model.conditioner(torch.tensor(seeds, device=device) % 3)
            settings = {
                "guidance": Guidance(3.0, schedule="linear", parallel=parallel),
                "filters": Filters(temperature=temperature, top_k=9),
            }
            seen: list[torch.Tensor] = []

            def context(observer=None, seeds=seeds, settings=settings):
                noise = SeededNoise(seeds, device=device)
                return SamplingContext(noise=noise, observer=observer, **settings)

            expected = plain(model, cond, context())
            observer = lambda positions, codes, outputs, seen=seen: seen.append(codes.clone())  # noqa: E731
            found = compiled(model, cond, context(observer))
            assert found.passes == expected.passes
            assert torch.equal(found.codes, expected.codes)
            assert torch.equal(torch.cat(seen, dim=1), expected.codes)
        assert (
            len(compiled.compiled._loops) == 2
        )  # one for each temperature, kept from batch to batch
    finally:
        model.to("cpu")


def test_what_cannot_be_compiled_is_refused() -> None:
    with pytest.raises(IncompatibleError, match="compile=true"):
        Sequential(compile=True).check(MODELS["tiny_var"])
    model = MODELS["tiny_gpt"]
    guidance = Guidance(sub_tokens=[2.0])
    with pytest.raises(UserError, match="one guidance weight a step"):
        Sequential(compile=True)(
            model,
            condition(model, 1),
            SamplingContext(guidance=guidance, noise=SeededNoise([0])),
        )


class Halves:
    """Recorded numbers: one half each."""

    def uniform(self, positions, size=(), *, use=0):
        return torch.full((1, len(positions), *size), 0.5)


def test_recorded_noise_is_refused() -> None:
    model = MODELS["tiny_gpt"]
    with pytest.raises(UserError, match="recorded"):
        CompiledSequential()(model, condition(model, 1), SamplingContext(noise=Halves()))
