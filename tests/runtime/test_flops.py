"""FLOPs of real passes against the formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from argen.build import build
from argen.layers.cpu.packed import pack_weights
from argen.runtime.flops import count_flops, peak_flops
from argen.runtime.presets import for_codes, preset
from argen.spec import CodeSpec, Segment


def test_a_training_step_is_three_times_its_products() -> None:
    layer, x = nn.Linear(8, 16), torch.randn(4, 8, requires_grad=True)
    assert count_flops(lambda: layer(x).sum().backward()) == 3 * 2 * 4 * 8 * 16


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
def test_packed_weights_count_too() -> None:
    network, x = nn.Sequential(nn.Linear(8, 16)), torch.randn(2, 3, 8)
    assert pack_weights(network) == 1
    with torch.inference_mode():
        assert count_flops(lambda: network(x)) == 2 * 6 * 8 * 16


def test_attention_counts_two_products_forward_and_five_backward() -> None:
    q = torch.randn(1, 2, 5, 8, requires_grad=True)
    product = 2 * 2 * 5 * 5 * 8
    assert count_flops(lambda: F.scaled_dot_product_attention(q, q, q)) == 2 * product
    both = count_flops(lambda: F.scaled_dot_product_attention(q, q, q).sum().backward())
    assert both == 7 * product  # the backward pass makes the weights anew


def test_a_generator_agrees_with_six_n_d() -> None:
    spec = CodeSpec("discrete", (Segment((4, 4), (64,)),))
    model = build(for_codes(preset("generator", "tiny_gpt"), spec)).train()
    cond = model.conditioner(torch.tensor([0, 1]))
    codes = torch.randint(64, (2, 16))
    found = count_flops(lambda: model.loss(codes, cond).loss.backward())
    products = [m for m in model.modules() if isinstance(m, nn.Linear)]
    weights = sum(m.weight.numel() for m in products)
    attention = 7 * 2 * 2 * len(model.blocks) * 16 * 16 * model.blocks[0].attention.out.in_features
    # The condition takes the place of the last code: 16 vectors an image.
    assert found == 6 * weights * 2 * 16 + attention


def test_peaks_are_found_by_the_device_name() -> None:
    assert peak_flops("NVIDIA H200", torch.bfloat16) == 989e12
    assert peak_flops("NVIDIA H100 80GB HBM3", torch.bfloat16) == 989e12
    assert peak_flops("NVIDIA H100 PCIe", torch.bfloat16) == 756e12
    assert peak_flops("Tesla V100-SXM2-16GB", torch.bfloat16) is None
    assert peak_flops("A pocket calculator", torch.float32) is None
