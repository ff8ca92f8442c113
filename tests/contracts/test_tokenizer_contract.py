"""What every tokenizer promises, checked on every tiny preset."""

import copy
import json
import re

import pytest
import torch
from shipped import make_tokenizer, perturbed, random_codes, shared_tokenizer, tiny
from torch.nn import functional as F

from argen.errors import SpecError, UserError
from argen.runtime.checkpoint import load_strict, read_weights, save_weights
from argen.spec import CodeSpec

# Parameters that a training pass leaves without gradient, by preset: prefix of the name, why.
WITHOUT_GRADIENT: dict[str, dict[str, str]] = {}

pytestmark = pytest.mark.parametrize("name", tiny("tokenizer"))


def smooth_images(tokenizer, rows=2, seed=0):
    """Return images in [-1, 1] of the tokenizer's size."""
    draws = torch.Generator().manual_seed(seed)
    coarse = torch.rand(rows, 3, 4, 4, generator=draws) * 2 - 1
    return F.interpolate(coarse, size=tokenizer.image_size, mode="bilinear")


@torch.inference_mode()
def test_codes_follow_the_spec(name):
    tokenizer = shared_tokenizer(name)
    images = smooth_images(tokenizer, rows=3)
    codes = tokenizer.encode(images)
    tokenizer.spec.check(codes)
    decoded = tokenizer.decode(codes)
    assert decoded.shape == images.shape
    assert decoded.isfinite().all()


@torch.inference_mode()
def test_any_codes_of_the_spec_decode(name):
    tokenizer = shared_tokenizer(name)
    decoded = tokenizer.decode(random_codes(tokenizer.spec, 2))
    assert decoded.shape == (2, 3, *tokenizer.image_size)
    assert decoded.isfinite().all()


@torch.inference_mode()
def test_codes_depend_on_the_image_alone(name):
    tokenizer = shared_tokenizer(name)
    images = smooth_images(tokenizer, rows=3)
    torch.manual_seed(1)
    together = tokenizer.encode(images)
    torch.manual_seed(2)
    again = tokenizer.encode(images)
    assert torch.equal(together, again)
    alone = tokenizer.encode(images[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-4)
    perturbed_images = -images
    assert not torch.equal(together, tokenizer.encode(perturbed_images))


class Ones:
    """Noise that is one everywhere."""

    def normal(self, positions, size=(), *, use=0):
        return torch.ones(1, *positions.shape[-1:], *size)


@torch.inference_mode()
def test_moments_are_the_codes_that_noise_gives(name):
    tokenizer = shared_tokenizer(name)
    images = smooth_images(tokenizer)
    if not tokenizer.has_moments:
        with pytest.raises(UserError, match="no posterior"):
            tokenizer.moments(images)
        return
    mean, deviation = tokenizer.moments(images).chunk(2, dim=-1)
    torch.testing.assert_close(mean, tokenizer.encode(images))
    torch.testing.assert_close(mean + deviation, tokenizer.encode(images, noise=Ones()))
    assert bool((deviation > 0).all())


def test_training_pass_reaches_every_parameter(name):
    tokenizer = perturbed(make_tokenizer(name)).train()
    images = smooth_images(tokenizer, rows=4)
    # Some codebooks start on the first batch they see, and would fit it without error.
    tokenizer(smooth_images(tokenizer, rows=4, seed=1))
    output = tokenizer(images)
    assert output.images.shape == images.shape
    assert output.images.isfinite().all()
    assert all(loss.ndim == 0 and loss.isfinite() for loss in output.losses.values())
    (F.mse_loss(output.images, images) + sum(output.losses.values())).backward()
    excused = tuple(WITHOUT_GRADIENT.get(name, {}))
    missing = [
        key
        for key, parameter in tokenizer.named_parameters()
        if parameter.requires_grad
        and (parameter.grad is None or not parameter.grad.any())
        and not key.startswith(excused)
    ]
    assert not missing
    assert all(p.grad is None or p.grad.isfinite().all() for p in tokenizer.parameters())


def test_learns_to_reconstruct(name):
    tokenizer = make_tokenizer(name).train()
    images = smooth_images(tokenizer)
    optimizer = torch.optim.AdamW(
        [p for p in tokenizer.parameters() if p.requires_grad], lr=3e-3, weight_decay=0.0
    )
    errors = []
    for _ in range(20):
        output = tokenizer(images)
        error = F.mse_loss(output.images, images)
        loss = error + sum(output.losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(error.item())
    assert sum(errors[-3:]) < 0.8 * sum(errors[:3])


@torch.inference_mode()
def test_bfloat16_gives_codes_of_the_same_form(name):
    tokenizer = shared_tokenizer(name)
    images = smooth_images(tokenizer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes = tokenizer.encode(images)
        tokenizer.spec.check(codes)
        decoded = tokenizer.decode(codes)
    assert decoded.shape == images.shape
    assert decoded.isfinite().all()


@torch.inference_mode()
def test_weights_in_bfloat16_encode_and_decode(name):
    tokenizer = copy.deepcopy(shared_tokenizer(name)).bfloat16()
    images = smooth_images(tokenizer).bfloat16()
    codes = tokenizer.encode(images)
    tokenizer.spec.check(codes)
    decoded = tokenizer.decode(codes)
    assert decoded.shape == images.shape
    assert decoded.isfinite().all()


@torch.inference_mode()
def test_weights_round_trip(name, tmp_path):
    tokenizer = perturbed(make_tokenizer(name))
    save_weights(tokenizer.state_dict(), tmp_path / "tokenizer.safetensors")
    other = make_tokenizer(name, seed=1)
    load_strict(other, read_weights(tmp_path / "tokenizer.safetensors"), source="the copy")
    images = smooth_images(tokenizer)
    codes = tokenizer.encode(images)
    assert torch.equal(codes, other.encode(images))
    assert torch.equal(tokenizer.decode(codes), other.decode(codes))


@torch.inference_mode()
def test_deepcopy(name):
    tokenizer = shared_tokenizer(name)
    twin = copy.deepcopy(tokenizer)
    images = smooth_images(tokenizer)
    codes = twin.encode(images)
    assert torch.equal(tokenizer.encode(images), codes)
    assert torch.equal(tokenizer.decode(codes), twin.decode(codes))
    assert twin.spec == tokenizer.spec
    ours = {p.data_ptr() for p in tokenizer.parameters()}
    assert not ours & {p.data_ptr() for p in twin.parameters()}


@torch.inference_mode()
def test_bad_images_are_refused(name):
    tokenizer = shared_tokenizer(name)
    height, width = tokenizer.image_size
    if tokenizer.factor > 1:
        with pytest.raises(UserError, match=rf"nearest.*{height}x{width}"):
            tokenizer.encode(torch.zeros(1, 3, height + 1, width))
    with pytest.raises(UserError, match=r"\(B, 3, H, W\)"):
        tokenizer.encode(torch.zeros(1, 1, height, width))
    with pytest.raises(UserError, match=r"\[-1, 1\]"):
        tokenizer.encode(torch.full((1, 3, height, width), 255.0))
    with pytest.raises(UserError, match="floats"):
        tokenizer.encode(torch.zeros(1, 3, height, width, dtype=torch.uint8))


@torch.inference_mode()
def test_bad_codes_are_refused(name):
    tokenizer = shared_tokenizer(name)
    spec = tokenizer.spec
    codes = random_codes(spec, 1)
    if spec.kind == "continuous":
        with pytest.raises(SpecError, match="floats"):
            tokenizer.decode(codes.long())
    else:
        last = spec.segments[-1]
        limit = 2 if spec.kind == "binary" else last.vocab_sizes[-1]
        beyond = codes.clone()
        beyond.view(-1)[-1] = limit
        with pytest.raises(SpecError, match="outside the vocabulary"):
            tokenizer.decode(beyond)
        with pytest.raises(SpecError, match="outside the vocabulary"):
            tokenizer.decode(codes - limit)
    with pytest.raises(SpecError, match="do not fit"):
        tokenizer.decode(torch.cat((codes, codes), dim=1))


@torch.inference_mode()
def test_an_option_of_another_tokenizer_is_refused_by_name(name):
    tokenizer = shared_tokenizer(name)
    images, codes = smooth_images(tokenizer), random_codes(tokenizer.spec, 1)
    for call, given, takes in (
        ("encode", images, tokenizer.encode_options),
        ("decode", codes, tokenizer.decode_options),
    ):
        assert set(takes) <= {"noise", "length", "text", "scales", "steps", "guidance"}
        foreign = [option for option in ("guidance", "steps", "length") if option not in takes]
        for option in foreign:
            wanted = f"{type(tokenizer).__name__} cannot {call} with {option}=; it takes "
            with pytest.raises(UserError, match=re.escape(wanted + (", ".join(takes) or "no"))):
                getattr(tokenizer, call)(given, **{option: 2})
        assert foreign
        plain = getattr(tokenizer, call)(given)
        assert torch.equal(plain, getattr(tokenizer, call)(given, **dict.fromkeys(foreign)))


def test_spec_survives_json(name):
    spec = shared_tokenizer(name).spec
    again = CodeSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert again.fingerprint() == spec.fingerprint()
    assert spec.fingerprint() in spec.describe()
