import pytest
import torch

from argen.build import build
from argen.errors import CheckpointError
from argen.objectives.feature_discriminator import dino_discriminator
from argen.pretrained.dino import DinoViT, load_dino
from argen.runtime.presets import preset


def released_keys(network):
    """Return the network's weights under the keys of the released file."""
    twins = {
        "patch.": "patch_embed.proj.",
        "attention_norm.": "norm1.",
        "attention.qkv.": "attn.qkv.",
        "attention.out.": "attn.proj.",
        "ffn_norm.": "norm2.",
        "ffn.": "mlp.",
    }
    renamed = {}
    for key, value in network.state_dict().items():
        for ours, theirs in twins.items():
            if ours in key:
                key = key.replace(ours, theirs)
                break
        renamed[key] = value
    return renamed | {"norm.weight": torch.ones(384), "norm.bias": torch.zeros(384)}


def test_readings_are_patches_plus_class_token():
    torch.manual_seed(0)
    network = DinoViT(size=32, patch=8, dim=24, layers=4, heads=2, read=(0, 2)).eval()
    torch.nn.init.normal_(network.cls_token)
    images = torch.randn(2, 3, 32, 32)
    found = network(images)
    assert [tuple(r.shape) for r in found] == [(2, 16, 24)] * 3
    torch.testing.assert_close(
        found[0], network.patch(images).flatten(2).transpose(1, 2) + network.cls_token
    )
    # The last block is behind every reading.
    torch.nn.init.zeros_(network.blocks[3].ffn.fc1.weight)
    assert all(torch.equal(a, b) for a, b in zip(found, network(images)))


def test_released_file_judges_images(tmp_path):
    torch.manual_seed(0)
    network = DinoViT()
    torch.save(released_keys(network), tmp_path / "dino.pth")
    loaded = load_dino(tmp_path / "dino.pth")
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in loaded.state_dict().items())
    judge = dino_discriminator(tmp_path / "dino.pth").eval()
    images = (torch.rand(1, 3, 32, 32) * 2 - 1).requires_grad_()
    logits = judge(images)
    assert logits.shape == (1, 5 * 196)
    logits.mean().backward()
    assert images.grad.abs().sum() > 0
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="does not hold DINO's ViT-S/16"):
        load_dino(tmp_path / "other.pth")


def test_published_objective_trains_the_pyramid(monkeypatch):
    monkeypatch.delenv("ARGEN_DINO", raising=False)
    monkeypatch.delenv("ARGEN_VGG16", raising=False)
    torch.manual_seed(0)
    config = preset("objective", "var_vqvae") | {"discriminator_start": 0, "adversarial_warmup": 1}
    config["discriminator"]["size"] = 96
    objective = build(config, trust=True)
    tokenizer = build(preset("tokenizer", "tiny_multiscale"))
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    output = tokenizer(images)
    total, terms = objective.tokenizer_loss(
        images, output, step=1, last_layer=tokenizer.last_layer()
    )
    assert {"l1", "l2", "perceptual", "codebook", "commitment", "adversarial"} <= set(terms)
    total.backward()
    assert all(p.grad is not None for p in tokenizer.parameters())
    judged, terms = objective.discriminator_loss(images, output.images, step=1)
    judged.backward()
    assert "consistency" in terms
    assert all(p.grad is not None for p in objective.discriminator.heads.parameters())
