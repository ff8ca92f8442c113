"""IBQ's and ELM's generators against the same networks written out from their weights alone.

The recorded runs show one choice of options; these cover the others: shared modulation, grouped
heads, an embedding projected from a codebook, split vocabularies.
"""

import pytest
import torch
from torch.nn import functional as F

from argen.errors import CheckpointError, UserError
from argen.interop import elm, ibq_ar
from argen.interop.base import Imported

GRID, DIM, HIDDEN, VOCAB, CLASSES = 3, 24, 32, 40, 5


class Weights(dict):
    """A state dict that is filled with seeded numbers as names are first asked for."""

    def __init__(self):
        super().__init__()
        self.draws = torch.Generator().manual_seed(0)

    def get_or_draw(self, name, *shape):
        if name not in self:
            self[name] = torch.randn(shape, generator=self.draws) * 0.3
        return self[name]


def rms(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def turn(x, heads):
    """Turn adjacent pairs of (B, heads, 1 + L, hd) by the row, then the column, of a grid."""
    half = x.shape[-1] // 2
    freq = 10000.0 ** (-torch.arange(0, half, 2).float() / half)
    cells = [(r, c) for r in range(GRID) for c in range(GRID)]
    angle = torch.stack([torch.cat((r * freq, c * freq)) for r, c in cells])
    # The class token's query and key vanish.
    z = torch.cat((torch.zeros(1, half), torch.ones_like(angle))) * torch.polar(
        torch.ones(1), torch.cat((torch.zeros(1, half), angle))
    )
    z = z[: x.shape[2]]
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * z).flatten(-2)


def block(w, name, x, heads, kv, modulation):
    """Run a Llama block; `modulation` holds shift, scale, gate of attention and feed-forward."""
    B, S, D = x.shape
    hd = D // heads
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation
    y = rms(x, w.get_or_draw(f"{name}.attention_norm.weight", D)) * (1 + scale1) + shift1
    qkv = y @ w.get_or_draw(f"{name}.attention.wqkv.weight", (heads + 2 * kv) * hd, D).T
    q, k, v = qkv.split((D, kv * hd, kv * hd), dim=-1)
    q = turn(q.view(B, S, heads, hd).transpose(1, 2), heads)
    k = turn(k.view(B, S, kv, hd).transpose(1, 2), kv)
    v = v.view(B, S, kv, hd).transpose(1, 2)
    k, v = (t.repeat_interleave(heads // kv, dim=1) for t in (k, v))
    logits = q @ k.transpose(-1, -2) * hd**-0.5
    logits = logits.masked_fill(~torch.ones(S, S, dtype=torch.bool).tril(), float("-inf"))
    y = (torch.softmax(logits, -1) @ v).transpose(1, 2).reshape(B, S, D)
    x = x + gate1 * (y @ w.get_or_draw(f"{name}.attention.wo.weight", D, D).T)
    y = rms(x, w.get_or_draw(f"{name}.ffn_norm.weight", D)) * (1 + scale2) + shift2
    gate = F.silu(y @ w.get_or_draw(f"{name}.feed_forward.w1.weight", HIDDEN, D).T)
    up = y @ w.get_or_draw(f"{name}.feed_forward.w3.weight", HIDDEN, D).T
    return x + gate2 * ((gate * up) @ w.get_or_draw(f"{name}.feed_forward.w2.weight", D, HIDDEN).T)


def linear(w, name, x, out):
    weight = w.get_or_draw(f"{name}.weight", out, x.shape[-1])
    return x @ weight.T + w.get_or_draw(f"{name}.bias", out)


def ibq(w, ids, labels, *, heads, kv, layers, shared, codebook):
    p = "transformer."
    x = w.get_or_draw(f"{p}tok_emb.weight", VOCAB, codebook or DIM)[ids[:, :-1]]
    if codebook:
        x = F.gelu(linear(w, f"{p}embedding_projection.fc1", x, DIM), approximate="tanh")
        x = linear(w, f"{p}embedding_projection.fc2", x, DIM)
    cls = w.get_or_draw(f"{p}class_emb.embedding_table.weight", CLASSES + 1, DIM)[labels][:, None]
    x = torch.cat((cls, x), dim=1)
    common = linear(w, f"{p}shared_ada_lin.1", F.silu(cls), 6 * DIM) if shared else None
    for i in range(layers):
        name = f"{p}blocks.{i}"
        if shared:
            vectors = common.unflatten(-1, (6, DIM)) + w.get_or_draw(
                f"{name}.ada_gss", 1, 1, 6, DIM
            )
        else:
            vectors = linear(w, f"{name}.ada_lin.1", F.silu(cls), 6 * DIM).unflatten(-1, (6, DIM))
        gate1, gate2, scale1, scale2, shift1, shift2 = vectors.unbind(2)
        x = block(w, name, x, heads, kv, (shift1, scale1, gate1, shift2, scale2, gate2))
    ends = linear(w, f"{p}head_nm.ada_lin.1", F.silu(cls), 2 * DIM).unflatten(-1, (2, DIM))
    scale, shift = ends.unbind(2)
    x = rms(x, w.get_or_draw(f"{p}head_nm.rmsnorm.weight", DIM)) * (1 + scale) + shift
    return x @ w.get_or_draw(f"{p}head.weight", VOCAB, DIM).T


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("heads", "kv"), [(3, 3), (6, 2)])
@pytest.mark.parametrize("codebook", [0, 7])
@torch.no_grad()
def test_ibq(shared, heads, kv, codebook):
    ids, labels = torch.randint(VOCAB, (2, GRID**2)), torch.tensor([1, CLASSES])
    w = Weights()
    expected = ibq(w, ids, labels, heads=heads, kv=kv, layers=2, shared=shared, codebook=codebook)
    network = {
        "vocab_size": VOCAB,
        "block_size": GRID**2,
        "n_layer": 2,
        "n_head": heads,
        "n_kv_head": kv,
        "n_embd": DIM,
        "class_num": CLASSES,
        "multiple_of": HIDDEN,
        "ffn_dim_multiplier": 0.5,
        "shared_aln": shared,
        "use_pretrained_codebook": codebook > 0,
        "n_codebook_embd": codebook,
    }
    config = ibq_ar.generator_config({"transformer_config": {"params": network}})
    model = Imported(config, ibq_ar.generator_weights(w), "here").build()
    found = model.score(ids, model.conditioner(labels))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    # Every size is read off a checkpoint; only the heads are not in it.
    read = ibq_ar.import_generator(
        {"state_dict": dict(w)}, source="here", image_size=GRID, factor=1, heads=heads
    ).build()
    assert torch.equal(read.score(ids, read.conditioner(labels)), found)


def written_elm(w, ids, labels, *, parts, bits, adaln, layers=2, heads=3):
    vocab = 2**bits
    rows = [
        w.get_or_draw(
            f"tok_embedder.{g}.weight" if parts > 1 else "tok_embedder.weight", vocab, DIM
        )[ids[:, :-1, g]]
        for g in range(parts)
    ]
    x = torch.cat(rows, dim=-1)
    if parts > 1:
        x = x @ w.get_or_draw("proj.weight", DIM, parts * DIM).T
    cls = w.get_or_draw("cls_embedding.embedding_table.weight", CLASSES + 1, DIM)[labels][:, None]
    x, zero = torch.cat((cls, x), dim=1), torch.zeros(())
    for i in range(layers):
        modulation = (zero, zero, 1.0, zero, zero, 1.0)
        if adaln:
            name = f"layers.{i}.adaLN_modulation.1"
            modulation = linear(w, name, F.silu(cls), 6 * DIM).chunk(6, dim=2)
        x = block(w, f"layers.{i}", x, heads, heads, modulation)
    x = rms(x, w.get_or_draw("norm.weight", DIM))
    if adaln:
        shift, scale = linear(w, "final_adaLN.1", F.silu(cls), 2 * DIM).chunk(2, dim=2)
        x = x * (1 + scale) + shift
    names = [f"output.{g}.weight" for g in range(parts)] if parts > 1 else ["output.weight"]
    return [x @ w.get_or_draw(name, vocab, DIM).T for name in names]


@pytest.mark.parametrize("adaln", [False, True])
@pytest.mark.parametrize(("parts", "bits"), [(1, 6), (2, 5), (4, 3)])
@torch.no_grad()
def test_elm(adaln, parts, bits):
    codes, labels = torch.randint(2, (2, GRID**2, parts * bits)), torch.tensor([1, CLASSES])
    # The first bit of a group counts most.
    ids = (codes.unflatten(-1, (parts, bits)) * 2 ** torch.arange(bits - 1, -1, -1)).sum(-1)
    w = Weights()
    expected = written_elm(w, ids, labels, parts=parts, bits=bits, adaln=adaln)
    model = elm.import_generator(dict(w), source="here", image_size=GRID, factor=1, heads=3).build()
    params = model.score(codes, model.conditioner(labels))
    found = model.head.logits(params, codes)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    mean = torch.stack(
        [F.cross_entropy(x.flatten(0, 1), ids[..., g].flatten()) for g, x in enumerate(expected)]
    ).mean()
    loss = model.loss(codes, model.conditioner(labels)).loss
    torch.testing.assert_close(loss, mean, rtol=1e-4, atol=1e-4)


def test_what_is_not_theirs_is_refused():
    with pytest.raises(CheckpointError, match="head_nm"):
        ibq_ar.import_generator({"state_dict": {"a": torch.zeros(1)}}, source="file")
    with pytest.raises(CheckpointError, match="tok_embedder"):
        elm.import_generator({"a": torch.zeros(1)}, source="file")
    w = Weights()
    ids, labels = torch.randint(VOCAB, (1, GRID**2)), torch.tensor([0])
    ibq(w, ids, labels, heads=3, kv=3, layers=1, shared=False, codebook=0)
    with pytest.raises(UserError, match="heads=N"):
        ibq_ar.import_generator(dict(w), source="file", image_size=GRID, factor=1)
    with pytest.raises(CheckpointError, match="unknown"):
        ibq_ar.import_generator(
            {**w, "transformer.more": torch.zeros(1)},
            source="file",
            image_size=GRID,
            factor=1,
            heads=3,
        )
    with pytest.raises(UserError, match="not a square"):
        ibq_ar.generator_config(
            {"transformer_config": {"params": {"vocab_size": 8, "block_size": 8}}}
        )
    with pytest.raises(UserError, match="cosine"):
        elm.generator_config({"attn_type": "cs", "dim": 8, "code_dim": 4})
