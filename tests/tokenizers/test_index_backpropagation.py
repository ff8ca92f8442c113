"""IBQ against its definition with one-hot vectors."""

import torch
from sizes import Largest
from torch.nn import functional as F

from argen.tokenizers.quantizers.ibq import IBQ


def by_definition(z, rows, temperature):
    logits = z @ rows.T
    soft = logits.softmax(-1)
    hard = F.one_hot(soft.argmax(-1), len(rows)).to(z.dtype)
    passed = (hard - soft.detach() + soft) @ rows
    zq2 = hard @ rows
    p = (logits / temperature).softmax(-1)
    log_p = (logits / temperature).log_softmax(-1)
    mean = p.mean(0)
    return passed, {
        "index": F.mse_loss(passed, z),
        "commitment": F.mse_loss(zq2.detach(), z),
        "codebook": F.mse_loss(zq2, z.detach()),
        "sample_entropy": -(p * log_p).sum(-1).mean(),
        "batch_entropy": -(mean * (mean + 1e-5).log()).sum(),
    }


def gradients(z, quantizer, passed, losses, weight):
    scalar = (passed * weight).sum() + sum((i + 1) * v for i, v in enumerate(losses.values()))
    return torch.autograd.grad(scalar, (z, quantizer.codebook.weight))


def test_values_and_gradients_follow_the_definition_in_any_chunks():
    torch.manual_seed(0)
    z, weight = torch.randn(13, 5, requires_grad=True), torch.randn(13, 5)
    whole = IBQ(11, 5, entropy_temperature=0.5).train()
    passed, losses = by_definition(z, whole.codebook.weight, 0.5)
    expected = gradients(z, whole, passed, losses, weight)
    for max_elements in (1 << 20, 44):
        quantizer = IBQ(11, 5, entropy_temperature=0.5, max_elements=max_elements).train()
        quantizer.load_state_dict(whole.state_dict())
        found = quantizer(z)
        torch.testing.assert_close(found.z, passed)
        assert found.losses.keys() == losses.keys()
        ordered = {name: found.losses[name] for name in losses}
        for name, value in ordered.items():
            torch.testing.assert_close(value, losses[name])
        for ours, theirs in zip(gradients(z, quantizer, found.z, ordered, weight), expected):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_every_row_learns_from_one_vector():
    torch.manual_seed(0)
    quantizer = IBQ(9, 4).train()
    quantizer(torch.randn(1, 4)).z.square().sum().backward()
    assert (quantizer.codebook.weight.grad.abs().sum(-1) > 0).all()


def test_long_rows_win():
    quantizer = IBQ(2, 2, entropy=False).eval()
    with torch.no_grad():
        quantizer.codebook.weight.copy_(torch.tensor([[1.0, 0.0], [3.0, 3.0]]))
    z = torch.tensor([[1.0, 0.1]])
    assert quantizer(z).ids.tolist() == quantizer.encode(z).tolist() == [1]
    assert set(quantizer(z).losses) == {"index", "codebook", "commitment"}


def test_memory_is_bounded_by_the_chunk():
    quantizer = IBQ(512, 4, max_elements=4096).eval()
    z = torch.randn(200, 4)
    with Largest() as largest, torch.no_grad():
        quantizer(z)
    assert largest.elements <= 4096
