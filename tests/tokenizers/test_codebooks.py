"""Learned codebooks: search, moving averages, k-means, revival, gradients."""

import pytest
import torch
from sizes import Largest
from torch.nn import functional as F

from argen.errors import UserError
from argen.tokenizers.quantizers.base import best_product, nearest_code, rotate
from argen.tokenizers.quantizers.ema import EMAVQ
from argen.tokenizers.quantizers.grouped import Grouped
from argen.tokenizers.quantizers.kmeans import kmeans
from argen.tokenizers.quantizers.latent import LatentQuantizer
from argen.tokenizers.quantizers.projected import Projected
from argen.tokenizers.quantizers.residual import Residual
from argen.tokenizers.quantizers.simvq import SimVQ
from argen.tokenizers.quantizers.vq import VQ


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def blobs(centres, per=20, spread=0.02):
    return (centres[:, None] + spread * torch.randn(len(centres), per, centres.shape[1])).flatten(
        0, 1
    )


def test_search_is_exact_in_chunks_and_bounded():
    z, rows = torch.randn(300, 24), torch.randn(70, 24)
    by_force = torch.cdist(z.double(), rows.double()).argmin(-1)
    with Largest() as largest:
        found = nearest_code(z, rows, max_elements=2000)
    assert torch.equal(found, by_force)
    assert largest.elements <= max(2000, z.numel())
    with Largest() as largest:
        found = best_product(z, rows, max_elements=2000)
    assert torch.equal(found, (z.double() @ rows.double().T).argmax(-1))
    assert largest.elements <= max(2000, z.numel())
    assert nearest_code(z[:0], rows).shape == (0,)


@pytest.mark.parametrize("quantizer", [VQ(16, 4), EMAVQ(16, 4), EMAVQ(16, 4, l2_norm=True)])
def test_a_row_is_its_own_code(quantizer):
    quantizer = quantizer.eval()
    ids = torch.randperm(16).view(4, 4)
    rows = quantizer.lookup(ids)
    found = quantizer(rows)
    assert torch.equal(found.ids, ids)
    assert torch.equal(quantizer.encode(rows), ids)
    torch.testing.assert_close(found.z, rows)


@pytest.mark.parametrize("kind", [VQ, EMAVQ])
def test_bfloat16_latents_are_compared_in_float32(kind):
    quantizer = kind(512, 6).eval()
    with torch.no_grad():
        quantizer.rows().copy_(torch.randn(512, 6) * 0.02 + 3)
    z = torch.randn(50, 6) * 0.02 + 3
    coarse = z.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ids = quantizer(coarse).ids
    assert torch.equal(ids, nearest_code(coarse.float(), quantizer.rows()))


def test_averages_follow_the_formula():
    quantizer = EMAVQ(8, 3, decay=0.9, eps=1e-3).train()
    rows, count, total = (x.clone() for x in (quantizer.codebook, quantizer.count, quantizer.total))
    z = torch.randn(5, 6, 3)
    found = quantizer(z)
    flat = z.view(-1, 3)
    for code in range(8):
        mine = flat[found.ids.view(-1) == code]
        count[code] = 0.9 * count[code] + 0.1 * len(mine)
        total[code] = 0.9 * total[code] + 0.1 * mine.sum(0)
    smoothed = (count + 1e-3) / (count.sum() + 8e-3) * count.sum()
    torch.testing.assert_close(quantizer.count, count)
    torch.testing.assert_close(quantizer.codebook, total / smoothed[:, None])
    torch.testing.assert_close(found.losses["commitment"], F.mse_loss(z, rows[found.ids]))
    quantizer.eval()
    before = quantizer.codebook.clone()
    quantizer(z)
    assert torch.equal(before, quantizer.codebook)


def test_averages_settle_on_the_means_of_the_data():
    centres = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 3.0]])
    quantizer = EMAVQ(3, 2, decay=0.5, kmeans_steps=5).train()
    for _ in range(30):
        quantizer(blobs(centres))
    distance = torch.cdist(centres, quantizer.codebook).min(-1).values
    assert distance.max() < 0.05


def test_kmeans_finds_separate_blobs():
    centres = torch.randn(6, 4) * 5
    z = blobs(centres)
    found, sizes = kmeans(z, 6, start=centres + torch.randn(6, 4))
    torch.testing.assert_close(found, z.view(6, 20, 4).mean(1))
    assert sizes.tolist() == [20.0] * 6


@pytest.mark.parametrize("kind", [VQ, EMAVQ])
def test_kmeans_runs_once_and_not_after_loading(kind):
    centres = torch.randn(4, 3) * 5
    quantizer = kind(4, 3, kmeans_steps=10).train()
    assert not quantizer.initialised
    quantizer(blobs(centres))
    assert quantizer.initialised
    trained = {k: v.clone() for k, v in quantizer.state_dict().items()}
    again = kind(4, 3, kmeans_steps=10)
    again.load_state_dict(trained)
    before = again.rows().clone()
    again.train().prepare(torch.randn(40, 3) + 100)
    assert torch.equal(before, again.rows())


@pytest.mark.parametrize("kind", [VQ, EMAVQ])
def test_dead_codes_move_to_the_data(kind):
    decay = {"decay": 0.5} if kind is EMAVQ else {"count_decay": 0.5}
    quantizer = kind(16, 2, revive_below=0.5, **decay).train()
    far = torch.full((16, 2), 1e3) + torch.randn(16, 2)
    quantizer.place(torch.ones(16, dtype=torch.bool), far, torch.ones(16))
    z = torch.randn(64, 2)
    used = [len(quantizer(z).ids.unique()) for _ in range(6)]
    assert used[0] == 1
    assert used[-1] >= 12
    quiet = kind(16, 2, **decay).train()
    quiet.place(torch.ones(16, dtype=torch.bool), far, torch.ones(16))
    assert [len(quiet(z).ids.unique()) for _ in range(6)][-1] == 1


def test_rotation_turns_gradients_as_it_turns_vectors():
    z, q = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4)
    turned = rotate(z, q)
    torch.testing.assert_close(turned, q)
    gradient = torch.randn(5, 4)
    (found,) = torch.autograd.grad(turned, z, gradient)
    scale = q.norm(dim=-1) / z.detach().norm(dim=-1)
    torch.testing.assert_close(found.norm(dim=-1), gradient.norm(dim=-1) * scale)
    # The angle between gradient and vector is the same before and after.
    before = F.cosine_similarity(gradient, q, dim=-1)
    torch.testing.assert_close(F.cosine_similarity(found, z.detach(), dim=-1), before)


@pytest.mark.parametrize("make", [lambda: VQ(8, 4), lambda: SimVQ(8, 4, base_dim=6)])
def test_gradients_reach_latents_and_codebook(make):
    quantizer = make().train()
    z = torch.randn(3, 5, 4, requires_grad=True)
    found = quantizer(z)
    found.z.sum().backward(retain_graph=True)
    torch.testing.assert_close(z.grad, torch.ones_like(z))
    sum(found.losses.values()).backward()
    assert all(p.grad.abs().sum() > 0 for p in quantizer.parameters())


def test_simvq_trains_the_map_and_never_the_rows():
    quantizer = SimVQ(8, 4)
    assert [name for name, _ in quantizer.named_parameters()] == ["transform.weight"]
    torch.testing.assert_close(quantizer.rows()[3], quantizer.lookup(torch.tensor(3)))


def test_residual_levels_refine():
    levels = [EMAVQ(8, 4, kmeans_steps=5) for _ in range(4)]
    quantizer = Residual(levels).train()
    z = torch.randn(400, 4)
    quantizer(z)
    quantizer.eval()
    ids = quantizer.encode(z)
    assert torch.equal(ids, quantizer(z).ids)
    errors = [F.mse_loss(quantizer.lookup(ids[..., :g]), z).item() for g in range(1, 5)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.3 * errors[0]
    torch.testing.assert_close(quantizer(z).z, quantizer.lookup(ids))


def test_residual_gradient_by_sum_or_by_level():
    z = torch.randn(7, 4, requires_grad=True)
    for gradient, factor in (("sum", 1.0), ("level", 3.0)):
        quantizer = Residual([VQ(8, 4) for _ in range(3)], gradient=gradient)
        (found,) = torch.autograd.grad(quantizer(z).z.sum(), z)
        torch.testing.assert_close(found, torch.full_like(z, factor))


def test_residual_dropout_leaves_out_fine_levels():
    quantizer = Residual([VQ(8, 4) for _ in range(4)], dropout=1.0).train()
    z, seen = torch.randn(6, 4), set()
    for _ in range(30):
        found = quantizer(z)
        used = int((found.ids[0] >= 0).sum())
        assert torch.equal(found.ids < 0, torch.arange(4).expand(6, 4) >= used)
        torch.testing.assert_close(found.z, quantizer.lookup(found.ids))
        seen.add(used)
    assert seen == {1, 2, 3, 4}
    assert (quantizer.eval()(z).ids >= 0).all()


def test_shared_residual_codebook_learns_from_all_levels():
    quantizer = Residual([EMAVQ(6, 3, decay=0.5)], shared=3).train()
    inner = quantizer.levels[0]
    rows, count = inner.codebook.clone(), inner.count.clone()
    z = torch.randn(40, 3)
    found = quantizer(z)
    rest = z
    for level in range(3):
        ids = nearest_code(rest, rows)
        assert torch.equal(ids, found.ids[:, level])
        count = 0.5 * count + 0.5 * torch.bincount(ids, minlength=6)
        rest = rest - rows[ids]
    torch.testing.assert_close(inner.count, count)
    assert not torch.equal(rows, inner.codebook)


def test_groups_cut_channels():
    apart = Grouped([VQ(8, 2), VQ(4, 3)])
    z = torch.randn(5, 6, 5)
    ids = apart(z).ids
    assert apart.vocab_sizes == (8, 4)
    assert torch.equal(ids[..., 0], apart.quantizers[0](z[..., :2]).ids)
    assert torch.equal(ids[..., 1], apart.quantizers[1](z[..., 2:]).ids)
    torch.testing.assert_close(apart(z).z, apart.lookup(ids))
    one = Grouped([VQ(8, 2)], shared=3)
    z = torch.randn(5, 6)
    assert one.vocab_sizes == (8, 8, 8)
    torch.testing.assert_close(one(z).z, one.lookup(one(z).ids))


def test_projection_fits_another_width():
    quantizer = Projected(VQ(8, 3), 10)
    z = torch.randn(2, 4, 10)
    found = quantizer(z)
    assert found.z.shape == z.shape
    torch.testing.assert_close(found.z, quantizer.lookup(quantizer.encode(z)))


def test_latent_tables_stay_true_to_their_ids_while_they_learn():
    quantizer = LatentQuantizer([4, 7])
    with torch.no_grad():
        for table in quantizer.tables:
            table.copy_(torch.randn_like(table) * 3)
    z = torch.randn(50, 2) * 2
    found = quantizer(z)
    for j, table in enumerate(quantizer.tables):
        by_force = (z[:, j, None] - table.detach()).abs().argmin(-1)
        assert torch.equal(found.ids[:, j], by_force)
        torch.testing.assert_close(found.z[:, j].detach(), table.detach()[by_force])
    torch.testing.assert_close(quantizer.lookup(found.ids), found.z)
    found.losses["codebook"].backward()
    assert all(table.grad.abs().sum() > 0 for table in quantizer.tables)


def test_impossible_codebooks_are_refused():
    with pytest.raises(UserError, match="codes >= 2"):
        VQ(1, 4)
    with pytest.raises(UserError, match=r"straight_through or rotation"):
        VQ(8, 4, gradient="none")
    with pytest.raises(UserError, match="one width"):
        Residual([VQ(8, 4), VQ(8, 5)])
    with pytest.raises(UserError, match="one id each"):
        Residual([LatentQuantizer([3, 3])])
    with pytest.raises(UserError, match="4 levels do not fit 2"):
        Residual([VQ(8, 4), VQ(8, 4)]).lookup(torch.zeros(3, 4, dtype=torch.long))
    with pytest.raises(UserError, match="at least two values"):
        LatentQuantizer([4, 1])
