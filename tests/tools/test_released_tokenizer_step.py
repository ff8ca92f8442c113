"""The published training step of a tokenizer has argen's losses and gradients on equal weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bench.tokenizer_step import TokenizerStep, tokenizer_task
from bench.train import groups
from released.vq_step import ReleasedStep
from torch import Tensor, nn

from argen.errors import UserError
from argen.interop.llamagen import llamagen
from argen.interop.llamagen.llamagen_objective import discriminator_weights
from argen.layers.gradient_checkpointing import enable_gradient_checkpointing
from argen.runtime.checkpoint import load_strict
from argen.training.tokenizer_task import TokenizerTask

CPU = torch.device("cpu")
SMALL = {
    "image_size": 32,
    "encoder": {"channels": 32, "multipliers": [1, 2], "blocks": 1, "out_channels": 16},
    "decoder": {"channels": 32, "multipliers": [1, 2], "blocks": 2, "in_channels": 16},
    "quantizer": {"codes": 64},
}


@pytest.fixture
def pair() -> tuple[ReleasedStep, TokenizerStep]:
    """Return the published step and argen's with its weights, nothing dropped out."""
    own = TokenizerStep(tokenizer_task("llamagen_vq16", device=CPU, changes=SMALL), "float32", 2)
    task = own.task
    released = ReleasedStep.like(task.tokenizer, task.objective, own.images, "float32")
    weights = llamagen.tokenizer_weights(released.network.state_dict())
    load_strict(task.tokenizer, weights, source="released")
    judge = released.losses.discriminator
    load_strict(
        task.objective.discriminator, discriminator_weights(judge.state_dict()), source="released"
    )
    distance: Any = released.losses.perceptual.eval()
    copy_vgg(task.objective.image_terms["perceptual"], distance)
    return released, own


def copy_vgg(ours: Any, theirs: Any) -> None:
    convolutions = [
        [m for m in n.modules() if isinstance(m, nn.Conv2d)] for n in (ours.vgg, theirs.slices)
    ]
    with torch.no_grad():
        for i, head in enumerate(theirs.heads):
            head[1].weight.copy_(getattr(ours, f"head{i}"))
        for mine, other in zip(*convolutions, strict=True):
            other.weight.copy_(mine.weight)
            other.bias.copy_(mine.bias)


def norm_of(module: nn.Module) -> Tensor:
    squares = [p.grad.square().sum() for p in module.parameters() if p.grad is not None]
    return torch.stack(squares).sum().sqrt()


def ours(step: TokenizerStep) -> tuple[dict[str, Tensor], list[Tensor], list[Tensor]]:
    """Return argen's terms, and both sides' totals and norms of gradients."""
    totals, norms = [], []
    modules: list[Any] = [step.task.tokenizer, step.task.objective.discriminator]

    def move(side: int, loss: Tensor) -> None:
        loss.backward()
        totals.append(loss.detach())
        norms.append(norm_of(modules[side]))

    step.task.generator_and_discriminator_step(step.images, step.step, move)
    return step.task.values, totals, norms


def published(step: ReleasedStep) -> tuple[dict[str, Tensor], list[Tensor], list[Tensor]]:
    """Return the same of the published step."""
    network, losses = step.network, step.losses
    reconstruction, codebook = network(step.images)
    total, terms = losses.tokenizer_loss(
        step.images, reconstruction, codebook, network.last_layer()
    )
    total.backward()
    losses.discriminator.zero_grad()
    judged, other = losses.discriminator_loss(step.images, reconstruction)
    judged.backward()
    norms = [norm_of(network), norm_of(losses.discriminator)]
    return terms | other, [total.detach(), judged.detach()], norms


@pytest.mark.parametrize("adaptive", [False, True])
def test_losses_and_gradients(pair: tuple[ReleasedStep, TokenizerStep], adaptive: bool) -> None:
    released, own = pair
    own.task.objective.adaptive = released.losses.adaptive = adaptive
    mine, totals, norms = ours(own)
    theirs, their_totals, their_norms = published(released)
    theirs["commitment"] = theirs["commitment"] / own.task.objective.weights["commitment"]
    assert bool(mine["adaptive_weight"] != 1) == adaptive
    for name, value in theirs.items():
        assert value.detach().abs() > 1e-3, name
        torch.testing.assert_close(mine[name], value, rtol=1e-4, atol=1e-6, msg=name)
    torch.testing.assert_close(totals, their_totals, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(norms, their_norms, rtol=1e-3, atol=1e-6)


def test_steps_move_the_weights_alike(pair: tuple[ReleasedStep, TokenizerStep]) -> None:
    released, own = pair
    before = [own.task.tokenizer.last_layer().clone(), judge_layer(own.task).clone()]
    released()
    own()
    for mine, theirs, old in zip(
        (own.task.tokenizer.last_layer(), judge_layer(own.task)),
        (released.network.last_layer(), released.losses.discriminator.main[0].weight),
        before,
    ):
        assert (mine - old).abs().max() > 5e-5
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-5)


def judge_layer(task: TokenizerTask) -> Tensor:
    judge: Any = task.objective.discriminator
    return judge.main[0].weight


def test_recomputed_activations_change_nothing(pair: tuple[ReleasedStep, TokenizerStep]) -> None:
    own = pair[1]
    _, totals, norms = ours(own)
    own.task.zero_grad()
    enable_gradient_checkpointing(own.task.network)
    _, again, norms_again = ours(own)
    torch.testing.assert_close((again, norms_again), (totals, norms), rtol=1e-4, atol=1e-6)


def test_what_is_not_set_up_is_refused(pair: tuple[ReleasedStep, TokenizerStep]) -> None:
    settings = {"device": "cpu", "modes": ["eager"], "models": ["titok_l32"]}
    with pytest.raises(UserError, match="llamagen_vq"):
        next(groups(settings))
    lone = {**SMALL, "decoder": {**SMALL["decoder"], "blocks": 3}}
    task = tokenizer_task("llamagen_vq16", device=CPU, changes=lone)
    with pytest.raises(UserError, match="one block a level more"):
        ReleasedStep.like(task.tokenizer, task.objective, pair[1].images, "float32")
