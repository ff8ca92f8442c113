"""The published training steps that argen is measured beside have argen's loss on equal weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bench.models import generator
from released.step import released_network

from argen.errors import UserError
from argen.generators.conditioning import ClassConditioner
from argen.generators.maskgit.maskgit import ORDER, SHARE
from argen.interop import mar, maskgit, nar, rar, var, xar
from argen.interop.llamagen import llamagen
from argen.layers.noise import SeededNoise
from argen.runtime.checkpoint import load_strict

CPU = torch.device("cpu")


def pair(name: str, importer: Any, **changes: Any) -> tuple[Any, Any]:
    """Return the published network and argen's with its weights, nothing dropped out."""
    ours = generator(name, device=CPU, dtype=torch.float32, **changes)
    released = released_network(name, ours)
    load_strict(ours, importer(released.state_dict()), source=name)
    return released.eval(), ours.eval()


def stir(released: Any, ours: Any, importer: Any) -> None:
    """Move all weights of both, so that zero gates and biases hide no difference."""
    with torch.no_grad():
        for weight in released.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    load_strict(ours, importer(released.state_dict()), source="stirred")


def assert_same_losses_and_gradients(
    released_loss: Any, loss: Any, released: Any, ours: Any
) -> None:
    torch.testing.assert_close(loss, released_loss, rtol=1e-5, atol=1e-6)
    norms = []
    for value, network in ((released_loss, released), (loss, ours)):
        value.backward()
        squares = [p.grad.square().sum() for p in network.parameters() if p.grad is not None]
        norms.append(torch.stack(squares).sum().sqrt())
    torch.testing.assert_close(norms[1], norms[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("system", [llamagen, nar], ids=["llamagen", "nar"])
def test_raster_codes(system: Any) -> None:
    torch.manual_seed(0)
    name = f"{system.__name__.rpartition('.')[2]}_b"
    released, ours = pair(name, system.generator_weights, layers=2)
    stir(released, ours, system.generator_weights)
    codes, label = torch.randint(16384, (2, 256)), torch.tensor([3, 999])
    loss = ours.loss(codes, ours.conditioner(label)).loss
    assert_same_losses_and_gradients(released(codes, label), loss, released, ours)


def test_rar() -> None:
    torch.manual_seed(0)
    released, ours = pair("rar_b", rar.generator_weights, layers=2)
    stir(released, ours, rar.generator_weights)
    codes, label = torch.randint(1024, (2, 256)), torch.tensor([3, 999])
    dropped = torch.tensor([True, False])
    orders = ours.sample_orders(2, noise=SeededNoise([5, 6]))
    loss = ours.loss(codes, ours.conditioner(label, drop_B=dropped), order=orders).loss
    released_loss = released.loss(codes, label, orders=orders, dropped=dropped)
    assert_same_losses_and_gradients(released_loss, loss, released, ours)


def test_mar() -> None:
    torch.manual_seed(0)
    changes = {"depth": 2, "head_depth": 2, "repeats": 2}
    released, ours = pair("mar_b", mar.generator_weights, **changes)
    codes, label = torch.randn(2, 256, 16), torch.tensor([3, 999])
    draws = ours.random_masking(2)
    draws.t_mBL[0, 0] = 0  # where likelihood takes the place of divergence
    released_loss = released.loss(
        codes,
        label,
        order=draws.order_BL,
        masked=draws.masked,
        t=draws.t_mBL.flatten(),
        noise=draws.noise_mBLC.flatten(0, 2),
    )
    loss = ours.loss(codes, ours.conditioner(label), draws=draws).loss
    assert_same_losses_and_gradients(released_loss, loss, released, ours)


def test_xar() -> None:
    torch.manual_seed(0)
    released, ours = pair("xar_b", xar.generator_weights, depth=2)
    codes, label = torch.randn(2, 256, 16), torch.tensor([3, 999])
    draws = ours.sample_noise(2)
    released_loss = released.loss(
        codes,
        label,
        t=draws.t_BE.T.flatten(),
        noise=torch.cat(draws.noise_BSC.chunk(4, dim=1)),
    )
    loss = ours.loss(codes, ours.conditioner(label), draws=draws).loss
    assert_same_losses_and_gradients(released_loss, loss, released, ours)


def test_xar_in_other_entities_is_refused() -> None:
    ours = generator("xar_b", device=CPU, dtype=torch.float32, depth=1, entity="subsample")
    with pytest.raises(UserError, match="entity=cell"):
        released_network("xar_b", ours)


@pytest.mark.parametrize(
    "changes", [{}, {"shared_adaln": True, "cosine_attention": False}], ids=["d16", "shared"]
)
def test_var(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    conditioner = ClassConditioner(1000, 256)
    small = {"layers": 2, "dim": 256, "heads": 4, "conditioner": conditioner}
    released, ours = pair("var_d16", var.generator_weights, **small, **changes)
    stir(released, ours, var.generator_weights)
    with torch.no_grad():  # the rows start near zero; both networks hold the same ones
        ours.pyramid.codebook.weight.normal_()
    codes, label = torch.randint(4096, (2, 680)), torch.tensor([3, 999])
    dropped = torch.tensor([False, True])
    loss = ours.loss(codes, ours.conditioner(label, drop_B=dropped)).loss
    released_loss = released.loss(codes, label, dropped=dropped)
    assert_same_losses_and_gradients(released_loss, loss, released, ours)


@pytest.mark.parametrize("name", ["maskgit_titok_l32", "maskgit_titok_s128"])
def test_maskgit(name: str) -> None:
    torch.manual_seed(0)
    released, ours = pair(name, maskgit.generator_weights, layers=2)
    stir(released, ours, maskgit.generator_weights)
    if name == "maskgit_titok_l32":  # argen has the one token type within the positions
        released.model.embeddings.token_type_embeddings.requires_grad_(False)
    L = ours.spec.length
    codes, label = torch.randint(4096, (3, L)), torch.tensor([3, 999, 0])
    dropped, noise = torch.tensor([False, True, False]), SeededNoise([1, 2, 3])
    output = ours.loss(codes, ours.conditioner(label, drop_B=dropped), noise=noise)
    released_loss = released.loss(
        codes,
        label,
        progress=noise.uniform(torch.arange(1), use=SHARE)[:, 0],
        order=noise.uniform(torch.arange(L), use=ORDER),
        dropped=dropped,
    )
    assert_same_losses_and_gradients(released_loss, output.loss, released, ours)


def test_an_unknown_system_is_refused() -> None:
    with pytest.raises(UserError, match="llamagen_"):
        released_network("titok_b", None)
