"""The causal predictor sees only the past, and its loss makes codes more predictable."""

from __future__ import annotations

import torch

from argen.tokenizers.causal_prior import CausalPrior


def test_a_prediction_depends_on_the_past_alone() -> None:
    torch.manual_seed(0)
    prior = CausalPrior(3, channels=8)
    z = torch.randn(1, 3, 6, 6, requires_grad=True)
    predicted = prior.net(z)
    (gradient,) = torch.autograd.grad(predicted[0, :, 2, 3].sum(), z)
    seen = gradient.abs().sum((0, 1)) > 0
    assert seen[2, 2]
    assert seen[1, 3]
    assert not seen[2, 3:].any()
    assert not seen[3:].any()


def test_its_loss_falls_when_vectors_follow_from_their_neighbours() -> None:
    torch.manual_seed(0)
    prior = CausalPrior(2, channels=8)
    rows = torch.linspace(-1, 1, 8)
    smooth = torch.stack(torch.meshgrid(rows, rows, indexing="ij"), dim=-1)[None]  # 1 8 8 2
    rough = torch.rand(1, 8, 8, 2) * 2 - 1
    losses = {}
    for name, z in (("smooth", smooth), ("rough", rough)):
        net = CausalPrior(2, channels=8)
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            loss = net(z)
            loss.backward()
            optimizer.step()
        losses[name] = float(loss)
    assert losses["smooth"] < 0.3 * losses["rough"]
    assert prior(smooth).shape == ()
