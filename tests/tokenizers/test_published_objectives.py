"""The presets against what their papers' code computes, derived here with plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from argen.build import build
from argen.interop.titok import titok_objective
from argen.runtime.presets import preset
from argen.tokenizers.base import TokenizerOutput
from argen.tokenizers.quantizers.lfq import BSQ, LFQ


def lecam_of_each_logit(batches, decay=0.999):
    """Return the regulariser of every batch: running means first, then each logit squared."""
    mean_real = mean_fake = 0.0
    found = []
    for real, fake in batches:
        mean_real = decay * mean_real + (1 - decay) * real.mean()
        mean_fake = decay * mean_fake + (1 - decay) * fake.mean()
        above = np.maximum(real - mean_fake, 0) ** 2
        below = np.maximum(mean_real - fake, 0) ** 2
        found.append(above.mean() + below.mean())
    return found


def lecam_of_means(batches, decay=0.999):
    """Return the regulariser of every batch: means of logits against the means before them."""
    mean_real = mean_fake = 0.0
    found = []
    for real, fake in batches:
        above, below = max(real.mean() - mean_fake, 0), max(mean_real - fake.mean(), 0)
        found.append(above**2 + below**2)
        mean_real = decay * mean_real + (1 - decay) * real.mean()
        mean_fake = decay * mean_fake + (1 - decay) * fake.mean()
    return found


@pytest.mark.parametrize(
    ("name", "weight", "by_hand"),
    [
        ("open_magvit2", 0.05, lecam_of_each_logit),
        ("ibq", 0.05, lecam_of_each_logit),
        ("wetok_stage2", 0.05, lecam_of_each_logit),
        ("titok_stage2", 0.001, lecam_of_means),
        ("titok_single_stage", 0.001, lecam_of_means),
    ],
)
def test_lecam_of_the_card(name, weight, by_hand):
    config = preset("objective", name)
    assert config["lecam_weight"] == weight
    lecam = build(config["lecam"]).train()
    draws = np.random.default_rng(0)
    batches = [(draws.normal(0.4, 1.5, (4, 1, 6, 6)), draws.normal(-0.1, 1.5, (4, 1, 6, 6)))] * 3
    ours = [float(lecam(torch.tensor(r).float(), torch.tensor(f).float())) for r, f in batches]
    np.testing.assert_allclose(ours, by_hand(batches), rtol=1e-5)
    other = lecam_of_means if by_hand is lecam_of_each_logit else lecam_of_each_logit
    assert not np.allclose(ours, other(batches), rtol=0.5)


def titok(name):
    """Return an objective of TiTok without networks that need files, and pixels alone weighted."""
    if name == "importer":
        config = titok_objective.objective_config({"discriminator_weight": 0.0})
        return build(config | {"discriminator": None, "lecam": None, "lecam_weight": 0.0})
    config = preset("objective", name)
    terms = {"l2": config["image_terms"]["l2"]}
    weights = {"l2": config["weights"]["l2"]}
    target = config["_target_"]
    return build({"_target_": target, "weights": weights, "image_terms": terms})


@pytest.mark.parametrize("name", ["titok_stage2", "titok_single_stage", "importer"])
def test_the_squared_error_of_titok_is_that_of_images_from_0_to_1(name):
    objective = titok(name)
    draws = np.random.default_rng(1)
    real, made = draws.uniform(0, 1, (2, 2, 3, 8, 8))
    ours = [torch.tensor(x * 2 - 1).float() for x in (real, made)]
    total, terms = objective.tokenizer_loss(ours[0], TokenizerOutput(images=ours[1]), step=0)
    np.testing.assert_allclose(float(total), ((real - made) ** 2).mean(), rtol=1e-5)
    np.testing.assert_allclose(float(terms["l2"]), float(total), rtol=1e-6)


def test_va_vaes_sums_are_rescaled_to_means():
    """Sums over 3 * 256 * 256 numbers there, means here: every ratio between terms is kept."""
    config, numbers, latents = preset("objective", "vavae"), 3 * 256 * 256, 16 * 16
    assert config["weights"]["kl"] * numbers == pytest.approx(1e-6 * latents, rel=2e-3)
    assert config["adaptive_range"][1] * numbers == pytest.approx(1e4, rel=2e-3)
    assert config["alignment"]["max_scale"] * numbers == pytest.approx(1e8, rel=2e-3)
    stages = [preset("objective", name) for name in ("vavae", "vavae_stage2", "vavae_stage3")]
    assert [stage["discriminator_start"] for stage in stages] == [5001, 1, 1]
    assert [stage["weights"]["alignment"] for stage in stages] == [0.5, 0.1, 0.1]
    assert preset("objective", "kl16")["weights"]["kl"] == config["weights"]["kl"]


@pytest.mark.parametrize(("kind", "clamp"), [(LFQ, 1.5), (BSQ, 2.0)])
def test_soft_clamp(kind, clamp):
    draws = np.random.default_rng(2)
    z = draws.normal(0, 3, (5, 4))
    clamped = clamp * np.tanh(z / clamp)
    codes = np.sign(z)
    if kind is BSQ:
        clamped /= np.linalg.norm(clamped, axis=-1, keepdims=True)
        codes /= 2
    quantizer = kind(4, soft_clamp=clamp).train()
    given = torch.tensor(z, dtype=torch.float32, requires_grad=True)
    found = quantizer(given)
    np.testing.assert_allclose(found.z.detach(), codes, rtol=1e-6)
    expected = ((clamped - codes) ** 2).mean()
    np.testing.assert_allclose(found.losses["commitment"].item(), expected, rtol=1e-5)
    assert torch.equal(found.ids, kind(4)(given).ids)
    assert torch.equal(found.ids, quantizer.encode(given))
    (slope,) = torch.autograd.grad(found.z.sum(), given)
    if kind is LFQ:  # straight through, then the slope of the clamp
        np.testing.assert_allclose(slope, 1 / np.cosh(z / clamp) ** 2, rtol=1e-4, atol=1e-6)
    signs = 2.0 * np.array(list(np.ndindex(2, 2, 2, 2))) - 1  # all 16 codes
    logits = 2 * clamped @ (signs / 2 if kind is BSQ else signs).T / 0.01
    logits -= logits.max(-1, keepdims=True)
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    entropy = -(probs * np.log(np.maximum(probs, 1e-300))).sum(-1).mean()
    np.testing.assert_allclose(found.losses["sample_entropy"].item(), entropy, atol=1e-5)


def test_alignment_is_scaled_no_further_than_told():
    objective = build(
        {
            "_target_": "argen.objectives.objective.Objective",
            "weights": {"l1": 1.0, "alignment": 1.0},
        }
    )

    class Pull(nn.Module):
        max_scale = 3.0

        def forward(self, images, latents):
            return 1e-6 * latents.sum(), {}

    objective.alignment = Pull()
    layer = torch.full((2,), 0.5, requires_grad=True)
    output = TokenizerOutput(images=layer[0] * torch.ones(1, 3, 4, 4), latents=layer[1] * layer)
    total, terms = objective.tokenizer_loss(
        torch.zeros(1, 3, 4, 4), output, step=0, encoder_layer=layer
    )
    assert float(terms["alignment_scale"]) == 3.0
    assert float(total) == pytest.approx(0.5 + 3.0 * 1e-6 * 0.5, rel=1e-6)
