import pytest
import torch

import argen.layers.cpu.matmul_attention as in_matmuls
from argen.errors import UserError
from argen.layers.attention import SelfAttention, attend, manual_attention
from argen.layers.cache import KVCache, Window
from argen.layers.cpu.matmul_attention import matmul_attention
from argen.layers.masks import block_causal, causal, dense_mask, text_masked
from argen.layers.rope import rope_table_1d


def draws(*shape, seed=0, **options):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **options)


def one_by_one(q, k, v, mask):
    """Return attention by loops over rows, heads and queries."""
    out = torch.zeros_like(q)
    share = q.shape[1] // k.shape[1]
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                seen = [j for j in range(k.shape[2]) if mask is None or mask[b, h, i, j]]
                logits = torch.stack([q[b, h, i] @ k[b, h // share, j] for j in seen])
                weights = torch.softmax(logits / q.shape[3] ** 0.5, dim=0)
                out[b, h, i] = sum(w * v[b, h // share, j] for w, j in zip(weights, seen))
    return out


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("pattern", ["full", "causal", "random"])
def test_every_route_gives_the_same(kv_heads, pattern):
    q = draws(2, 4, 6, 8)
    k, v = draws(2, kv_heads, 6, 8, seed=1), draws(2, kv_heads, 6, 8, seed=2)
    mask = None
    if pattern == "causal":
        mask = torch.ones(6, 6, dtype=torch.bool).tril().expand(2, 4, 6, 6)
    elif pattern == "random":
        mask = (draws(2, 1, 6, 6, seed=3) > 0) | torch.eye(6, dtype=torch.bool)
        mask = mask.expand(2, 4, 6, 6)
    expected = one_by_one(q, k, v, mask)
    torch.testing.assert_close(manual_attention(q, k, v, mask), expected)
    torch.testing.assert_close(attend(q, k, v, mask=mask), expected)
    if pattern == "causal":
        torch.testing.assert_close(attend(q, k, v, causal=True), expected)


def test_bfloat16_route_agrees_and_learns():
    q = draws(2, 4, 6, 8).bfloat16().requires_grad_()
    k, v = (draws(2, 2, 6, 8, seed=s).bfloat16().requires_grad_() for s in (1, 2))
    rounded = attend(q, k, v, causal=True)
    exact = attend(q.detach().float(), k.detach().float(), v.detach().float(), causal=True)
    torch.testing.assert_close(rounded.float(), exact, rtol=0.03, atol=0.03)
    rounded.float().square().sum().backward()
    assert all(x.grad is not None and x.grad.any() for x in (q, k, v))


@pytest.mark.parametrize("heads_at_once", [1, 3, 99])
@pytest.mark.parametrize("masked", ["alike", "a row each"])
def test_products_of_a_few_heads_at_a_time(heads_at_once, masked, monkeypatch):
    q, k, v = (draws(2, 4, 5, 3, seed=s).double().requires_grad_() for s in range(3))
    monkeypatch.setattr(in_matmuls, "CHUNK_BYTES", heads_at_once * 5 * 5 * 8)
    shape = (5, 5) if masked == "alike" else (2, 1, 5, 5)
    mask = (draws(*shape, seed=3) > 0) | torch.eye(5, dtype=torch.bool)
    bias = torch.zeros(shape).double().masked_fill_(~mask, float("-inf"))
    expected = manual_attention(q, k, v, mask)
    torch.testing.assert_close(matmul_attention(q, k, v, bias), expected)
    assert torch.autograd.gradcheck(lambda *x: matmul_attention(*x, bias), (q, k, v))


def test_more_queries_than_one_with_fewer_keys():
    q, k, v = draws(1, 2, 3, 4), draws(1, 2, 5, 4, seed=1), draws(1, 2, 5, 4, seed=2)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    expected = one_by_one(q, k, v, mask.expand(1, 2, 3, 5))
    torch.testing.assert_close(attend(q, k, v, mask=mask), expected)


def test_masks_are_what_their_names_say():
    at = torch.arange(4)
    assert torch.equal(dense_mask(causal, at, at)[0, 0], torch.ones(4, 4).tril().bool())
    groups = dense_mask(block_causal(torch.tensor([0, 0, 1, 1])), at, at)[0, 0]
    assert torch.equal(groups.int(), torch.tensor([[1, 1, 0, 0]] * 2 + [[1] * 4] * 2).int())
    valid = torch.tensor([[True, False], [True, True]])
    text = dense_mask(text_masked(valid), at, at, rows=2)[:, 0].int()
    assert torch.equal(text[1], torch.ones(4, 4).tril().int())
    expected = torch.ones(4, 4).tril().int()
    expected[2:, 1] = 0  # the padded token is seen by itself alone
    assert torch.equal(text[0], expected)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_cached_windows_equal_one_pass(kv_heads):
    torch.manual_seed(0)
    layer = SelfAttention(32, 4, kv_heads=kv_heads, qk_norm=True).eval()
    x, table = draws(3, 7, 32), rope_table_1d(7, 8)
    with torch.no_grad():
        expected = layer(x, rope=table, causal=True)
        cache = new_cache(3, kv_heads)
        parts = []
        for start, n in ((0, 3), (3, 1), (4, 3)):
            window = Window(start=start, n=n, reach=start + n)
            slots = window.slots(x.device)
            parts.append(
                layer(
                    x[:, start : start + n],
                    rope=table[slots],
                    mask=dense_mask(causal, slots, torch.arange(start + n)),
                    cache=cache,
                    window=window,
                )
            )
    torch.testing.assert_close(torch.cat(parts, dim=1), expected)


def new_cache(rows, heads, slots=8):
    cpu = torch.device("cpu")
    return KVCache(
        layers=1, rows=rows, heads=heads, slots=slots, head_dim=8, dtype=torch.float32, device=cpu
    )


def test_windows_of_their_own_equal_uniform_ones():
    k, v = draws(3, 2, 2, 8), draws(3, 2, 2, 8, seed=1)
    base_k, base_v = draws(3, 2, 4, 8, seed=2), draws(3, 2, 4, 8, seed=3)
    uniform, own = new_cache(3, 2), new_cache(3, 2)
    for cache, start in ((uniform, 4), (own, torch.tensor([4, 4, 4]))):
        cache.write(0, base_k, base_v, Window(start=0, n=4, reach=4))
        keys, values = cache.write(0, k, v, Window(start=start, n=2, reach=6))
        torch.testing.assert_close(keys, torch.cat((base_k, k), dim=2))
        torch.testing.assert_close(values, torch.cat((base_v, v), dim=2))
    # Rows at lengths of their own hold what each would hold alone.
    lengths = [1, 4, 2]
    ragged = new_cache(3, 2)
    ragged.write(0, base_k, base_v, Window(start=0, n=4, reach=4))
    keys, _ = ragged.write(0, k, v, Window(start=torch.tensor(lengths), n=2, reach=6))
    for row, length in enumerate(lengths):
        alone = torch.cat((base_k[row, :, :length], k[row]), dim=1)
        torch.testing.assert_close(keys[row, :, : length + 2], alone)


def test_gathered_rows_are_copies():
    cache = new_cache(3, 2)
    keys = draws(3, 2, 4, 8)
    cache.write(0, keys, keys, Window(start=0, n=4, reach=4))
    cache.gather(torch.tensor([2, 0, 2, 1]))
    assert cache.slots == 8
    torch.testing.assert_close(cache.keys[0][:, :, :4], keys[[2, 0, 2, 1]])


def test_widths_that_do_not_divide_are_refused():
    with pytest.raises(UserError, match="divisible"):
        SelfAttention(30, 4)
    with pytest.raises(UserError, match="divisible"):
        SelfAttention(32, 4, kv_heads=3)
