"""The alignment of latents with frozen features, and its place in an objective."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from argen.build import build
from argen.errors import CheckpointError, UserError
from argen.objectives.alignment import (
    AlignmentLoss,
    FrozenFeatures,
    alignment_scale,
    foundation_features,
)
from argen.objectives.objective import Objective
from argen.runtime.presets import preset


class Patches(nn.Module):
    """A network that gives a class token and the 4 x 4 patches of an image as tokens."""

    def __init__(self, width=6):
        super().__init__()
        self.proj = nn.Conv2d(3, width, 4, stride=4)

    def forward(self, images):
        tokens = self.proj(images).flatten(2).transpose(1, 2)
        return torch.cat((tokens.mean(1, keepdim=True) + 9, tokens), dim=1)


def features(**options):
    torch.manual_seed(0)
    return FrozenFeatures(Patches(), dim=6, **options)


def loss(**options):
    torch.manual_seed(1)
    return AlignmentLoss(features(), latent_dim=4, **options)


IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_tokens_become_a_map():
    found = features()(IMAGES)
    assert found.shape == (2, 6, 4, 4)
    torch.testing.assert_close(found, features().network.proj(IMAGES))
    assert features(size=32)(IMAGES).shape == (2, 6, 8, 8)
    with pytest.raises(UserError, match="leading"):
        features(leading=0)(IMAGES)


def test_terms_follow_their_definition():
    z = torch.randn(2, 4, 4, 4)
    module = loss(cosine_margin=0.5, distance_margin=0.25)
    found = module.terms(IMAGES, z)
    f = module.features(IMAGES).flatten(2).transpose(1, 2)  # B N F
    mapped = z.flatten(1, 2) @ module.projection.weight[..., 0, 0].T  # B N F
    cosine, gap = [], []
    for b in range(2):
        for i in range(16):
            alike = F.cosine_similarity(f[b, i], mapped[b, i], dim=0)
            cosine.append(F.relu(1 - 0.5 - alike))
            for j in range(16):
                theirs = F.cosine_similarity(f[b, i], f[b, j], dim=0)
                ours = F.cosine_similarity(mapped[b, i], mapped[b, j], dim=0)
                gap.append(F.relu((theirs - ours).abs() - 0.25))
    torch.testing.assert_close(found["alignment_cosine"], torch.stack(cosine).mean())
    torch.testing.assert_close(found["alignment_distance"], torch.stack(gap).mean())


@pytest.mark.parametrize("project", ["latent", "features"])
def test_aligned_latents_cost_nothing(project):
    module = AlignmentLoss(features(), latent_dim=6, project=project)
    with torch.no_grad():
        module.projection.weight.copy_(torch.eye(6)[..., None, None])
        if module.projection.bias is not None:
            module.projection.bias.zero_()
    assert (module.projection.bias is None) == (project == "latent")
    z = 3.0 * module.features(IMAGES).permute(0, 2, 3, 1)  # only directions count
    value, _ = module(IMAGES, z)
    assert float(value.detach()) == pytest.approx(0.0, abs=1e-5)
    value, _ = module(IMAGES, z.flip(1))
    assert float(value.detach()) > 0.01


def test_weights_and_other_grids():
    z = torch.randn(2, 8, 8, 4)  # a finer grid than the features'
    module = loss(cosine_weight=2.0, distance_weight=0.5)
    value, terms = module(IMAGES, z)
    wanted = 2.0 * terms["alignment_cosine"] + 0.5 * terms["alignment_distance"]
    torch.testing.assert_close(value, wanted)


def test_features_are_frozen_and_not_saved():
    module = loss()
    assert set(module.state_dict()) == {"projection.weight"}
    assert [name for name, p in module.named_parameters() if p.requires_grad] == [
        "projection.weight"
    ]
    module.load_state_dict(module.state_dict())


def tokenizer():
    torch.manual_seed(0)
    return build(preset("tokenizer", "tiny_kl")).train()


def test_scale_balances_gradients_at_the_encoder():
    model = tokenizer()
    output = model(IMAGES)
    reconstruction = F.l1_loss(output.images, IMAGES)
    value, _ = loss()(IMAGES, output.latents)
    layer = model.encoder_last_layer()
    scale = alignment_scale(reconstruction, value, layer)
    (a,) = torch.autograd.grad(reconstruction, layer, retain_graph=True)
    (b,) = torch.autograd.grad(value, layer)
    torch.testing.assert_close(scale, a.norm() / (b.norm() + 1e-4))
    assert not scale.requires_grad


def test_an_objective_pulls_latents_towards_features():
    model = tokenizer()
    objective = Objective(weights={"l1": 1.0, "kl": 1e-6, "alignment": 2.0}, alignment=loss())
    parameters = [*model.parameters(), *objective.alignment.projection.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3)
    seen = []
    for step in range(30):
        total, terms = objective.tokenizer_loss(
            IMAGES, model(IMAGES), step=step, encoder_layer=model.encoder_last_layer()
        )
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        seen.append(float(terms["alignment_cosine"]))
        assert float(terms["alignment_scale"]) > 0
    assert sum(seen[-5:]) < 0.85 * sum(seen[:5])  # the sampling noise sets a floor
    with torch.no_grad():
        _, terms = objective.tokenizer_loss(
            IMAGES, model.eval()(IMAGES), step=0, encoder_layer=model.encoder_last_layer()
        )
    assert float(terms["alignment_scale"]) == 0.0  # nothing to balance without gradients
    with pytest.raises(UserError, match="KLTokenizer"):
        objective.tokenizer_loss(IMAGES, model(IMAGES), step=0)
    with pytest.raises(UserError, match="alignment"):
        Objective(weights={"l1": 1.0}, alignment=loss())


def test_the_installed_network_gives_features(caplog):
    found = foundation_features(size=64)
    assert "EfficientNet-Lite0" in caplog.text
    assert found(IMAGES).shape == (2, found.dim, 4, 4)
    with pytest.raises((CheckpointError, UserError), match=r"config\.json|transformers"):
        foundation_features("nowhere")


def test_published_objectives_are_built():
    for name in ("vavae", "kl16"):
        objective = build(preset("objective", name), trust=True)
        assert isinstance(objective, Objective)
        model = tokenizer()
        if name == "vavae":
            objective.alignment.projection = nn.Conv2d(4, objective.alignment.features.dim, 1)
        total, terms = objective.tokenizer_loss(
            IMAGES,
            model(IMAGES),
            step=0,
            last_layer=model.last_layer(),
            encoder_layer=model.encoder_last_layer(),
        )
        assert total.isfinite()
        assert ("alignment_cosine" in terms) == (name == "vavae")
