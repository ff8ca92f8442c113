"""Options of vector-quantize-pytorch in our terms; what has no counterpart is refused by name."""

import pytest
import torch
from replays import vector_quantize_pytorch as lucidrains

from argen.build import build
from argen.errors import UserError


def made(name, **config):
    return build(lucidrains.quantizer_config(name, config))


def test_a_full_state_goes_in_and_out():
    config = {"dim": 6, "codebook_dim": 4, "codebook_size": 10, "heads": 2}
    config["separate_codebook_per_head"] = True
    tables = {
        "_codebook.initted": torch.tensor(True),
        "_codebook.embed": torch.randn(2, 10, 4),
        "_codebook.cluster_size": torch.rand(2, 10),
        "_codebook.embed_avg": torch.randn(2, 10, 4),
    }
    linear = {
        "project_in.weight": torch.randn(8, 6),
        "project_in.bias": torch.randn(8),
        "project_out.weight": torch.randn(6, 8),
        "project_out.bias": torch.randn(6),
    }
    module = made("VectorQuantize", **config)
    module.load_state_dict(
        lucidrains.quantizer_weights("VectorQuantize", config, tables | linear), strict=True
    )
    assert module.vocab_sizes == (10, 10)
    back = lucidrains.reference_state(module)
    assert back.keys() == tables.keys() - {"_codebook.initted"}
    assert all(torch.equal(back[k], tables[k]) for k in back)


def test_levels_of_a_shared_codebook_are_one():
    config = {"dim": 4, "codebook_size": 8, "num_quantizers": 3, "shared_codebook": True}
    one = {
        "_codebook.initted": torch.tensor(True),
        "_codebook.embed": torch.randn(1, 8, 4),
        "_codebook.cluster_size": torch.rand(1, 8),
        "_codebook.embed_avg": torch.randn(1, 8, 4),
    }
    weights = {f"layers.{i}.{k}": v for i in range(3) for k, v in one.items()}
    module = made("ResidualVQ", **config)
    module.load_state_dict(lucidrains.quantizer_weights("ResidualVQ", config, weights), strict=True)
    assert module.vocab_sizes == (8, 8, 8)


def test_defaults_are_the_librarys():
    assert made("SimVQ", dim=4, codebook_size=8).pass_gradient.__name__ == "rotate"
    assert made("VectorQuantize", dim=4, codebook_size=8).count_decay == 0.8
    assert made("VectorQuantize", dim=1, codebook_size=8).pass_gradient.__name__ != "rotate"
    assert lucidrains.loss_weights("LFQ", {"dim": 4}) == {
        "sample_entropy": 0.1,
        "batch_entropy": -0.1,
        "commitment": 0.0,
    }
    bsq = made("LFQ with spherical=True (BSQ)", codebook_size=16, spherical=True, dim=9)
    assert bsq.vocab_sizes == (16,)
    assert bsq.dim == 9


def test_what_has_no_counterpart_is_refused():
    with pytest.raises(UserError, match="orthogonal_reg_weight=10"):
        made("VectorQuantize", dim=4, codebook_size=8, orthogonal_reg_weight=10)
    with pytest.raises(UserError, match="ema_update=False"):
        made("VectorQuantize", dim=4, codebook_size=8, learnable_codebook=True)
    with pytest.raises(UserError, match="HierarchicalVQ"):
        made("HierarchicalVQ", dim=4)
