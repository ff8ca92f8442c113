"""The weighted objective: which terms count when, and what reaches whom."""

import pytest
import torch
from torch import nn

from argen.build import build
from argen.errors import CheckpointError, UserError
from argen.objectives.diffaugment import DiffAugment
from argen.objectives.discriminators import PatchDiscriminator
from argen.objectives.objective import Objective
from argen.objectives.regularizers import LeCam
from argen.runtime.presets import preset, preset_names
from argen.tokenizers.base import TokenizerOutput
from argen.tokenizers.schedules import Linear


class Mirror(nn.Module):
    """A one-layer tokenizer: images times a matrix of colours."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1, bias=False)

    def forward(self, images):
        reconstruction = self.layer(images)
        losses = {"commitment": reconstruction.square().mean()}
        return TokenizerOutput(images=reconstruction, losses=losses)


class Mean(nn.Module):
    """Judges an image by its weighted mean."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, images):
        return self.weight * images.mean((1, 2, 3), keepdim=True)[:, :1]


@pytest.fixture
def images():
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    return Mirror()


def objective(**options):
    weights = {"l1": 1.0, "l2": 0.5, "commitment": 0.25, "adversarial": 0.1}
    return Objective(**{"weights": weights, "discriminator": Mean(), **options})


def run(objective, tokenizer, images, step):
    return objective.tokenizer_loss(
        images, tokenizer(images), step=step, last_layer=tokenizer.layer.weight
    )


def test_total_is_the_weighted_sum_of_unweighted_terms(tokenizer, images):
    total, terms = run(objective(), tokenizer, images, 0)
    assert set(terms) == {"l1", "l2", "commitment", "adversarial", "adaptive_weight"}
    expected = terms["l1"] + 0.5 * terms["l2"] + 0.25 * terms["commitment"]
    torch.testing.assert_close(total.detach(), expected + 0.1 * terms["adversarial"])
    assert terms["l1"] == (tokenizer(images).images - images).abs().mean()
    assert not any(value.requires_grad for value in terms.values())


def test_adversarial_warm_up_is_apart_from_its_weight(tokenizer, images):
    ours = objective(discriminator_start=10, adversarial_start=20, adversarial_warmup=10)
    assert [ours.trains_discriminator(s) for s in (9, 10, 20)] == [False, True, True]
    plain = objective(weights={"l1": 1.0, "l2": 0.5, "commitment": 0.25}, discriminator=None)
    base = run(plain, tokenizer, images, 0)[0]
    for step, share in ((0, 0.0), (15, 0.0), (20, 0.0), (25, 0.5), (30, 1.0), (99, 1.0)):
        total, terms = run(ours, tokenizer, images, step)
        added = share * 0.1 * terms.get("adversarial", torch.tensor(0.0))
        torch.testing.assert_close(total, base + added)
        assert ("adversarial" in terms) == (share > 0)


def test_scheduled_weights(tokenizer, images):
    ours = objective(
        weights={"l1": Linear(0.0, 2.0, steps=10), "commitment": 0.0, "adversarial": 0}
    )
    total, terms = run(ours, tokenizer, images, 5)
    torch.testing.assert_close(total.detach(), terms["l1"])
    assert set(terms) > {"l2", "commitment"}


def test_adaptive_weight_makes_the_pulls_equal(tokenizer, images):
    ours = objective(adaptive=True, weights={"l1": 1.0, "commitment": 0.0, "adversarial": 1.0})
    _, terms = run(ours, tokenizer, images, 0)
    output = tokenizer(images)
    pixel = torch.autograd.grad((output.images - images).abs().mean(), tokenizer.layer.weight)[0]
    judged = torch.autograd.grad(-2 * tokenizer(images).images.mean(), tokenizer.layer.weight)[0]
    torch.testing.assert_close(terms["adaptive_weight"], pixel.norm() / (judged.norm() + 1e-4))
    with torch.no_grad():
        assert run(ours, tokenizer, images, 0)[1]["adaptive_weight"] == 0
    with pytest.raises(UserError, match="adaptive=false"):
        ours.tokenizer_loss(images, tokenizer(images), step=0)


def test_gradients_stay_on_their_side(tokenizer, images):
    ours = objective(lecam=LeCam(), lecam_weight=0.1)
    run(ours, tokenizer, images, 0)[0].backward()
    assert ours.discriminator.weight.grad is None
    assert tokenizer.layer.weight.grad.abs().sum() > 0
    tokenizer.zero_grad()
    total, terms = ours.discriminator_loss(images, tokenizer(images).images, step=0)
    total.backward()
    assert ours.discriminator.weight.grad.abs() > 0
    assert tokenizer.layer.weight.grad is None
    assert set(terms) == {"discriminator", "logits_real", "logits_fake", "lecam"}
    torch.testing.assert_close(total.detach(), terms["discriminator"] + 0.1 * terms["lecam"])


def test_gradient_penalty_is_lazy(tokenizer, images):
    ours = objective(r1_weight=10.0, r1_every=4, discriminator_weight=0.5)
    reconstruction = tokenizer(images).images
    total, terms = ours.discriminator_loss(images, reconstruction, step=8)
    # The slope of a mean over 192 numbers, times 2, everywhere.
    assert terms["r1"].item() == pytest.approx(0.5 * 4 / 192)
    torch.testing.assert_close(total.detach(), 0.5 * terms["discriminator"] + 10 * 4 * terms["r1"])
    assert "r1" not in ours.discriminator_loss(images, reconstruction, step=9)[1]


def test_consistency(tokenizer, images):
    torch.manual_seed(0)
    ours = objective(augment=DiffAugment(policies=["color"]), consistency_weight=4.0)
    total, terms = ours.discriminator_loss(images, tokenizer(images).images, step=0)
    assert terms["consistency"] > 0
    torch.testing.assert_close(total.detach(), terms["discriminator"] + 4 * terms["consistency"])


def test_bfloat16_reconstructions_are_judged_in_float32(tokenizer, images):
    ours = objective()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = tokenizer(images)
        assert output.images.dtype == torch.bfloat16
        total, terms = ours.tokenizer_loss(images, output, step=0)
    assert total.dtype == terms["adversarial"].dtype == torch.float32


def test_batch_statistics_move_in_both_steps(images):
    judge = PatchDiscriminator(channels=4, layers=1)
    ours = objective(discriminator=judge)
    norm = judge.main[3]
    output = TokenizerOutput(images=images.clone(), losses={})
    ours.tokenizer_loss(images, output, step=0)
    assert norm.num_batches_tracked == 1
    ours.discriminator_loss(images, output.images, step=0)
    assert norm.num_batches_tracked == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"discriminator": None}, "needs a discriminator"),
        ({"weights": {"l1": 1.0}}, "No weight for adversarial"),
        ({"image_terms": {"lpips": nn.Identity()}}, "No weight for lpips"),
        ({"image_terms": {"l1": "l3"}}, "give _target_"),
        ({"latent_terms": {"small": nn.Identity()}}, "No weight for small"),
        ({"generator_form": "hing"}, "Did you mean 'hinge'"),
        ({"consistency_weight": 1.0}, "give augment"),
        ({"lecam_weight": 1.0}, "needs lecam"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(UserError, match=message):
        objective(**options)


def test_a_loss_without_a_weight_is_named(tokenizer, images):
    ours = objective(weights={"l1": 1.0, "comitment": 0.25, "adversarial": 0.1})
    with pytest.raises(UserError, match="Did you mean 'comitment'"):
        run(ours, tokenizer, images, 0)


NARROW = {"PatchDiscriminator": 4, "BlurDiscriminator": 32}  # instead of the published widths


@pytest.mark.parametrize("name", preset_names("objective"))
def test_presets(name, images, monkeypatch):
    for variable in ("ARGEN_VGG16", "ARGEN_CONVNEXT_S", "ARGEN_DINO"):
        monkeypatch.delenv(variable, raising=False)
    config = preset("objective", name)
    config.pop("alignment", None)  # Needs a tokenizer of its own; tested with it.
    judge = config.get("discriminator")
    width = NARROW.get(judge["_target_"].rsplit(".", 1)[1]) if judge else None
    if judge and width:
        judge["channels"] = width
    if "convnext" in config.get("image_terms", {}):
        with pytest.raises(CheckpointError, match="download"):
            build(config, trust=True)
        del config["image_terms"]["convnext"]
    ours = build(config, trust=True)
    step = max(ours.discriminator_start, ours.strength.begin) + ours.strength.steps
    images = nn.functional.interpolate(images[:2], size=32)
    names = ("codebook", "commitment", "kl", "indecision", "proxy")
    own = {name: images.mean() * 0 + 1 for name in names if name in ours.weights}
    assert own
    image = (images * 0.5).requires_grad_()
    own["proxy" if "proxy" in own else next(iter(own))] = 0.3 * image.square().mean()
    output = TokenizerOutput(images=image, losses=own)
    total, terms = ours.tokenizer_loss(images, output, step=step, last_layer=image)
    total.backward()
    assert image.grad.abs().sum() > 0
    assert {*ours.image_terms, *own} <= set(terms)
    if ours.discriminator is None:
        assert "adversarial" not in terms
        return
    assert "adversarial" in terms
    ours.discriminator_loss(images, image, step=step)[0].backward()
    trained = [p for p in ours.discriminator.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)
