"""Bernoulli codes and decoders that draw: noise decides, seeds repeat, gradients pass."""

import pytest
import torch

from argen.build import build
from argen.layers.noise import SeededNoise
from argen.runtime.presets import preset
from argen.tokenizers.generative import from_plain
from argen.tokenizers.quantizers.bernoulli import Bernoulli


@pytest.mark.parametrize("signed", [False, True])
def test_bits_follow_their_probabilities(signed):
    torch.manual_seed(0)
    quantizer = Bernoulli(6, 5, signed=signed).eval()
    z = torch.randn(1, 5).expand(4000, 3, 5)
    probs = quantizer.probabilities(z[0, 0]).detach()
    with torch.no_grad():
        drawn = quantizer.encode(z, noise=SeededNoise(range(4000)))
        trained = quantizer.train()(z).codes
        likely = quantizer.eval().encode(z)
    assert torch.equal(likely, (probs > 0.5).long().expand_as(likely))
    for codes in (drawn, trained):
        assert (codes.float().mean((0, 1)) - probs).abs().max() < 0.03
    values = quantizer.values(drawn)
    assert set(values.unique().tolist()) == ({-1.0, 1.0} if signed else {0.0, 1.0})
    torch.testing.assert_close(quantizer.lookup(drawn), values @ quantizer.embed.weight)


def test_draws_belong_to_the_sample():
    quantizer = Bernoulli(6, 5).eval()
    z = torch.randn(3, 2, 4, 5)
    together = quantizer.encode(z, noise=SeededNoise([5, 6, 7]))
    assert torch.equal(together[1:2], quantizer.encode(z[1:2], noise=SeededNoise([6])))
    assert not torch.equal(together, quantizer.encode(z, noise=SeededNoise([1, 2, 3])))


def test_deterministic_never_draws():
    quantizer = Bernoulli(6, 5, deterministic=True).train()
    z = torch.randn(8, 5)
    first = quantizer(z).codes
    assert all(torch.equal(first, quantizer(z).codes) for _ in range(3))
    assert torch.equal(first, quantizer.encode(z, noise=SeededNoise(range(8))))


def test_gradient_passes_to_the_probabilities():
    quantizer = Bernoulli(6, 5).train()
    z = torch.randn(7, 5, requires_grad=True)
    weight = torch.randn(7, 5)
    (found,) = torch.autograd.grad((quantizer(z).z * weight).sum(), z)
    (expected,) = torch.autograd.grad(
        (quantizer.probabilities(z) * (weight @ quantizer.embed.weight.T).detach()).sum(), z
    )
    torch.testing.assert_close(found, expected)


def test_generative_decoder_needs_the_same_noise_for_the_same_image():
    torch.manual_seed(0)
    tokenizer = build(preset("tokenizer", "tiny_wetok")).eval()
    codes = torch.randint(16, (2, 64, 2))
    with torch.no_grad():
        one = tokenizer.decode(codes, noise=SeededNoise([1, 2]))
        again = tokenizer.decode(codes, noise=SeededNoise([1, 2]))
        other = tokenizer.decode(codes, noise=SeededNoise([1, 3]))
        fixed = tokenizer.decode(codes)
        alone = tokenizer.decode(codes[1:])
    assert torch.equal(one, again)
    torch.testing.assert_close(one[0], other[0])
    assert (one[1] - other[1]).abs().max() > 1e-3
    torch.testing.assert_close(fixed[1:], alone, rtol=1e-4, atol=1e-5)
    tokenizer.train()
    images = torch.zeros(2, 3, 16, 16)
    assert not torch.equal(tokenizer(images).images, tokenizer(images).images)


def test_second_stage_trains_the_decoder_alone():
    torch.manual_seed(0)
    config = preset("tokenizer", "tiny_wetok")
    config["_target_"] = "argen.tokenizers.generative.SecondStage"
    tokenizer = build(config).train()
    assert not tokenizer.encoder.training
    assert tokenizer.decoder.training
    before = {k: v.clone() for k, v in tokenizer.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in tokenizer.parameters() if p.requires_grad], lr=0.1)
    output = tokenizer(torch.rand(2, 3, 16, 16) * 2 - 1)
    assert output.losses == {}
    output.images.square().mean().backward()
    optimizer.step()
    moved = {
        k.partition(".")[0] for k, v in tokenizer.state_dict().items() if (v != before[k]).any()
    }
    assert moved == {"decoder"}


def test_generative_decoder_starts_as_the_plain_one():
    torch.manual_seed(0)
    config = preset("tokenizer", "tiny_wetok")
    generative = build(config).eval()
    config["decoder"]["_target_"] = "argen.tokenizers.cnn.Decoder"
    plain = build(config).eval()
    generative.load_state_dict(from_plain(plain.state_dict()))
    codes = torch.randint(16, (2, 64, 2))
    with torch.no_grad():
        expected = plain.decode(codes)
        for seeds in ([1, 2], [3, 4]):
            torch.testing.assert_close(
                generative.decode(codes, noise=SeededNoise(seeds)), expected, rtol=1e-4, atol=1e-5
            )
