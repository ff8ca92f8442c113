import math

import pytest
import torch
import torch.multiprocessing as mp
from torch.nn import functional as F

from argen.build import build
from argen.data.emoji import emoji
from argen.errors import UserError
from argen.runtime.presets import preset
from argen.tokenizers.quantizers.hits import HitCounter
from argen.tokenizers.quantizers.multiscale import MultiScaleVQ, phi_of_scale


def quantizer(**options):
    torch.manual_seed(0)
    made = MultiScaleVQ(32, 6, **{"scales": [1, 2, 3, 5], **options})
    torch.nn.init.normal_(made.codebook.weight)
    return made.eval()


def tokenizer(**quantizer_options):
    torch.manual_seed(0)
    config = preset("tokenizer", "tiny_multiscale")
    config["quantizer"] |= quantizer_options
    return build(config).eval()


def test_phis_are_shared_as_published():
    # The published maps for 256 and 1024 px; scales 2 and 7 of ten lie exactly between two ticks.
    assert phi_of_scale(4, 10) == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert phi_of_scale(4, 14) == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3]
    assert phi_of_scale(1, 3) == [0, 0, 0]
    assert phi_of_scale(7, 7) == list(range(7))
    assert phi_of_scale(4, 1) == [0]


@pytest.mark.parametrize("cosine", [False, True])
def test_each_scale_takes_the_best_row_for_what_is_missing(cosine):
    q = quantizer(cosine=cosine)
    z = torch.randn(2, 5, 5, 6)
    ids, rest = q.encode(z), z.permute(0, 3, 1, 2)
    start = 0
    for k, (h, w) in enumerate(q.scales):
        part = ids[:, start : start + h * w]
        start += h * w
        cells = F.adaptive_avg_pool2d(rest, (h, w)).flatten(2).transpose(1, 2)
        rows = q.codebook.weight
        if cosine:
            score = F.normalize(cells, dim=-1) @ F.normalize(rows, dim=-1).T
        else:
            score = -torch.cdist(cells, rows)
        assert torch.equal(part, score.argmax(-1))
        rest = rest - q.upsample(q.embed(part), k)
    torch.testing.assert_close(q.lookup(ids), z - rest.permute(0, 2, 3, 1))


def test_generator_inputs_are_the_maps_so_far():
    q = quantizer()
    ids = q.encode(torch.randn(2, 5, 5, 6))
    maps, inputs = q.maps(ids), q.next_scale_inputs(ids)
    assert inputs.shape == (2, 4 + 9 + 25, 6)
    torch.testing.assert_close(
        inputs[:, 4:13], F.adaptive_avg_pool2d(maps[1], 3).flatten(2).transpose(1, 2)
    )
    # The last scale is as fine as the map, so nothing is averaged.
    torch.testing.assert_close(inputs[:, 13:], maps[2].flatten(2).transpose(1, 2))


def test_losses_are_means_over_the_maps_and_reach_every_parameter():
    q = quantizer().train()
    z = torch.randn(2, 5, 5, 6, requires_grad=True)
    out = q(z)
    maps = [m.permute(0, 2, 3, 1) for m in q.maps(out.ids)]
    expected = torch.stack([(m - z).square().mean() for m in maps]).mean()
    torch.testing.assert_close(out.losses["codebook"], expected)
    torch.testing.assert_close(out.losses["commitment"], expected)
    (out.losses["codebook"] + out.losses["commitment"]).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in q.parameters())
    (grad,) = torch.autograd.grad(q(z).z.square().sum(), z)
    torch.testing.assert_close(grad, 2 * q(z).z)  # straight through


def test_stays_in_float32_under_autocast_and_in_bfloat16():
    q, z = quantizer(), torch.randn(2, 5, 5, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(q(z).ids, q(z).ids)
        torch.testing.assert_close(q(z).z, quantizer()(z).z)
    half = quantizer().bfloat16()
    assert half(z).z.dtype == torch.float32


def test_frozen_copy_has_no_weights_but_the_same_maps():
    q = quantizer()
    twin = q.frozen()
    ids = q.encode(torch.randn(2, 5, 5, 6))
    assert not list(twin.parameters())
    assert not twin.state_dict()
    assert torch.equal(twin.next_scale_inputs(ids), q.next_scale_inputs(ids))
    q.codebook.weight.data.zero_()
    assert twin.next_scale_inputs(ids).abs().sum() > 0


def test_previews_by_prefix():
    t = tokenizer()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    codes = t.encode(images)
    assert t.preview_lengths == [1, 5, 21, 85]
    assert torch.equal(t.decode(codes, length=85), t.decode(codes))
    changed = codes.clone()
    changed[:, 5:] = 0
    assert torch.equal(t.decode(codes, length=5), t.decode(changed, length=5))
    with pytest.raises(UserError, match=r"7 codes end inside a scale.*1, 5, 21, 85"):
        t.decode(codes, length=7)


def test_another_pyramid_for_another_shape():
    t = tokenizer()
    wide = torch.rand(1, 3, 12, 20) * 2 - 1
    with pytest.raises(UserError, match="latent map is 6x10, but the scales end at 8x8"):
        t.encode(wide)
    scales = [1, (2, 3), (6, 10)]
    codes = t.encode(wide, scales=scales)
    assert codes.shape == (1, 1 + 6 + 60)
    assert t.decode(codes, scales=scales).shape == wide.shape


def test_wrong_sizes_are_named():
    config = preset("tokenizer", "tiny_multiscale")
    with pytest.raises(UserError, match="end at 8x8, which is an image of 16x16"):
        build(config, image_size=32)
    with pytest.raises(UserError, match="must be the finest"):
        tokenizer(scales=[1, 16, 8])


def test_hits_warm_up_by_step_or_by_scale():
    first, second = [torch.tensor([0, 0, 1])] * 2, [torch.tensor([1, 1, 1])] * 2
    by_step, by_scale = HitCounter(2, 2), HitCounter(2, 2, counter="scale")
    for counter in (by_step, by_scale):
        counter.update(first)
    assert by_step.average.tolist() == [[2.0, 1.0], [2.0, 1.0]]
    torch.testing.assert_close(by_scale.average, torch.tensor([[2.0, 1.0], [0.2, 0.1]]))
    by_step.update(second)
    torch.testing.assert_close(by_step.average, torch.tensor([[1.8, 1.2]] * 2))
    assert by_step.usage(40).tolist() == [0.5, 0.5]  # 0.08 * 40 / 2 hits make a code used
    assert by_step.usage([20, 80]).tolist() == [1.0, 0.0]
    assert by_step.perplexity()[0] == pytest.approx(
        math.exp(-(0.6 * math.log(0.6) + 0.4 * math.log(0.4))), abs=1e-5
    )


def test_metrics_name_every_scale():
    t = tokenizer().train()
    metrics = t(torch.rand(2, 3, 16, 16) * 2 - 1).metrics
    assert sorted(metrics) == [
        f"{n}/scale_{k:02d}" for n in ("perplexity", "usage") for k in range(4)
    ]
    assert not t.eval()(torch.rand(2, 3, 16, 16)).metrics


def _rank(rank, path, z, results):
    torch.distributed.init_process_group("gloo", f"file://{path}", rank=rank, world_size=2)
    q = quantizer().train()
    metrics = q(z[rank::2]).metrics
    if rank == 0:
        results.update(
            hits=q.hits.average.tolist(), metrics={k: float(v) for k, v in metrics.items()}
        )
    torch.distributed.destroy_process_group()


def test_hits_are_summed_over_processes(tmp_path):
    z = torch.randn(4, 5, 5, 6, generator=torch.Generator().manual_seed(0))
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(_rank, (tmp_path / "store", z, results), nprocs=2)
        hits, metrics = results["hits"], results["metrics"]
    q = quantizer().train()
    expected = q(z).metrics
    assert q.hits.average.tolist() == hits
    assert metrics == pytest.approx({k: float(v) for k, v in expected.items()})


def test_trains_on_images():
    source = emoji(image_size=16, categories=["smileys"], shift=0)
    images = torch.stack([source.train[i]["image"] for i in range(64)])
    torch.manual_seed(0)
    t = build(preset("tokenizer", "tiny_multiscale")).train()
    optimizer = torch.optim.AdamW(t.parameters(), lr=3e-3)
    seen = []
    for step in range(160):
        batch = images[torch.arange(16 * step, 16 * step + 16) % 64]
        out = t(batch)
        error = (out.images - batch).square().mean()
        loss = error + out.losses["codebook"] + 0.25 * out.losses["commitment"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(t.parameters(), 1.0)
        optimizer.step()
        seen.append(float(loss.detach()))
    assert sum(seen[-10:]) < 0.4 * sum(seen[:10])
    t.eval()
    with torch.no_grad():
        codes = t.encode(images)
        psnr = [
            10
            * math.log10(
                4 / float((t.decode(codes, length=n).clamp(-1, 1) - images).square().mean())
            )
            for n in t.preview_lengths
        ]
    assert psnr[-1] > 15
    assert psnr == sorted(psnr)  # every scale adds something
