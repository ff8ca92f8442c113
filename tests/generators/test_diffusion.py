"""The diffusion process against its definitions, and the head that uses it."""

import math

import pytest
import torch

from argen.decoding.filters import Filters
from argen.errors import UserError
from argen.generators.heads.diffusion import DiffusionHead, noise_temperature
from argen.generators.heads.guidance import GuidanceStep
from argen.layers.diffusion import GaussianDiffusion, binned_log_likelihood, spaced_timesteps
from argen.layers.noise import SeededNoise


def perturbed(module, scale=0.2):
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=draws))
    return module.eval()


def head(**options):
    return DiffusionHead(code_dim=3, cond_dim=5, width=16, depth=2, **options)


def test_spacings():
    assert spaced_timesteps(1000, None) == list(range(1000))
    assert spaced_timesteps(10, "4") == [0, 3, 6, 9]
    assert spaced_timesteps(1000, "ddim50") == list(range(0, 1000, 20))
    # Two sections of 5: 3 of the first, 1 of the second.
    assert spaced_timesteps(10, "3,1") == [0, 2, 4, 5]
    assert spaced_timesteps(11, "2,2,2") == [0, 3, 4, 7, 8, 10]
    for wrong in ("11", "ddim7", "many", "0"):
        with pytest.raises(UserError, match=r"timestep|stride"):
            spaced_timesteps(10, wrong)


def test_respaced_process_keeps_the_marginals():
    whole, short = GaussianDiffusion(), GaussianDiffusion(spacing="10,5")
    kept = whole.tables["alphas_cumprod"][short.timesteps]
    torch.testing.assert_close(short.tables["alphas_cumprod"], kept)
    assert len(short) == 15
    torch.testing.assert_close((1 - short.tables["betas"].double()).cumprod(0).float(), kept)


@pytest.mark.parametrize("variance", ["learned_range", "fixed_large", "fixed_small"])
def test_a_perfect_prediction_leads_back_to_the_data(variance):
    process = GaussianDiffusion(spacing="50", variance=variance)
    clean, noise = torch.randn(4, 3), torch.randn(4, 3)
    x = process.noised(clean, torch.full((4,), len(process) - 1), noise)
    for step in range(len(process) - 1, -1, -1):
        scale = float(process.tables["sqrt_alphas_cumprod"][step])
        spread = float(process.tables["sqrt_one_minus_alphas_cumprod"][step])
        eps = (x - scale * clean) / spread
        values = torch.zeros(4, 3) if variance == "learned_range" else None
        x = process.reverse(x, eps, values, step, torch.randn(4, 3))
    torch.testing.assert_close(x, clean, rtol=1e-3, atol=1e-3)


def test_ddim_without_noise_keeps_the_implied_noise():
    process = GaussianDiffusion(spacing="20")
    clean, noise = torch.randn(4, 3), torch.randn(4, 3)
    x = process.noised(clean, torch.full((4,), len(process) - 1), noise)
    for step in range(len(process) - 1, -1, -1):
        x = process.reverse_ddim(x, noise, step, None)
    torch.testing.assert_close(x, clean, rtol=1e-2, atol=1e-2)


def test_full_noise_ddim_is_ddpm_with_the_small_variance():
    process = GaussianDiffusion(spacing="20", variance="fixed_small")
    x, eps, noise = torch.randn(3, 4, 3).unbind()
    torch.testing.assert_close(
        process.reverse_ddim(x, eps, 10, noise, eta=1.0),
        process.reverse(x, eps, None, 10, noise),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("method", ["reverse", "reverse_ddim"])
def test_a_limit_tames_bad_predictions(method):
    free, limited = GaussianDiffusion(spacing="50"), GaussianDiffusion(spacing="50", clip=5.0)
    x, wrong = torch.randn(8, 3), torch.randn(8, 3)
    options = {"values": torch.zeros(8, 3)} if method == "reverse" else {}
    first = {
        p: getattr(p, method)(x, wrong, step=49, noise=None, **options) for p in (free, limited)
    }
    assert first[limited].abs().max() < 6
    assert first[free].abs().max() > 100
    # Good predictions are left alone.
    clean = torch.rand(8, 3)
    noisy = limited.noised(clean, torch.full((8,), 20), wrong)
    one, other = (
        getattr(p, method)(noisy, wrong, step=20, noise=None, **options) for p in (free, limited)
    )
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_variational_term_is_the_divergence_between_two_normals():
    process = GaussianDiffusion()
    clean, noise, eps = torch.randn(3, 6, 4).unbind()
    values = torch.rand(6, 4) * 2 - 1
    t = torch.tensor([1, 10, 200, 500, 900, 999])
    x = process.noised(clean, t, noise)
    found = process.variational_term(clean, x, t, eps, values)
    mean_p = process.posterior_mean(clean, x, t)
    mean_q = process.posterior_mean(process.clean(x, eps, t), x, t)
    std_p = torch.exp(0.5 * process.tables["posterior_log_variance_clipped"][t])[:, None]
    std_q = torch.exp(0.5 * process.log_variance(values, t))
    normal = torch.distributions.Normal
    wanted = torch.distributions.kl_divergence(
        normal(mean_p, std_p.expand(6, 4)), normal(mean_q, std_q)
    ).mean(-1) / math.log(2)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_variational_term_trains_only_the_variance():
    process = GaussianDiffusion()
    eps = torch.randn(5, 3, requires_grad=True)
    values = torch.zeros(5, 3, requires_grad=True)
    t = torch.tensor([0, 1, 5, 100, 999])
    clean = torch.randn(5, 3)
    x = process.noised(clean, t, torch.randn(5, 3))
    process.variational_term(clean, x, t, eps, values).sum().backward()
    assert eps.grad is None
    assert values.grad.abs().sum(-1).gt(0).all()


def test_binned_likelihood_sums_to_one():
    # 255 closed bins and two open ones, one of which holds each end.
    centres = torch.arange(0, 256) / 127.5 - 1
    mean, log_scale = torch.tensor(0.3), torch.tensor(-1.5)
    total = binned_log_likelihood(centres, mean, log_scale).exp().sum()
    torch.testing.assert_close(total, torch.tensor(1.0), rtol=1e-3, atol=1e-3)


def test_the_network_sees_original_timesteps():
    model, seen = perturbed(head(sampling_steps="4")), []
    model.net.time.register_forward_hook(lambda module, args, out: seen.append(int(args[0])))
    model.sample(
        torch.zeros(1, 2, 5),
        guidance=None,
        filters=Filters(),
        noise=SeededNoise([0]),
        positions=torch.arange(2),
    )
    assert seen == [999, 666, 333, 0]


def draw(model, hidden, *, weight=None, temperature=1.0):
    return model.sample(
        hidden,
        guidance=None if weight is None else GuidanceStep(weight),
        filters=Filters(temperature=temperature),
        noise=SeededNoise(range(2)),
        positions=torch.arange(hidden.shape[1]),
    )


@torch.no_grad()
@pytest.mark.parametrize("sampler", [{}, {"sampler": "ddim"}, {"sampler": "ddim", "eta": 0.7}])
def test_guidance_goes_from_null_to_conditional(sampler):
    model = perturbed(head(sampling_steps="5,3,1", **sampler))
    cond, null = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    both = torch.cat((cond, null))
    plain = draw(model, cond)
    torch.testing.assert_close(draw(model, both, weight=1.0), plain)
    per_row = torch.ones(2, 4)
    torch.testing.assert_close(draw(model, both, weight=per_row), plain, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(draw(model, both, weight=3.0), plain)


@torch.no_grad()
def test_temperature_scales_step_noise_only():
    model = perturbed(head(sampling_steps="6,2"))
    hidden = torch.randn(2, 3, 5)
    cold, warm = draw(model, hidden, temperature=0.0), draw(model, hidden)
    assert not torch.allclose(cold, warm)
    torch.testing.assert_close(cold, draw(model, hidden, temperature=0.0))
    for filters in (Filters(top_k=2), Filters(top_p=0.5), Filters(min_p=0.1)):
        with pytest.raises(UserError, match="vocabulary"):
            noise_temperature(filters)


@torch.no_grad()
def test_respace_changes_only_sampling():
    model = perturbed(head(sampling_steps="5"))
    before = len(model.process)
    model.respace("25")
    assert (len(model.sampling), len(model.process)) == (25, before)


def test_loss_averages_its_repeats():
    model = perturbed(head(repeats=3))
    hidden, codes = torch.randn(2, 4, 5), torch.randn(2, 4, 3)
    t, noise = torch.randint(1000, (3, 2, 4)), torch.randn(3, 2, 4, 3)
    whole = model.loss(hidden, codes, t=t, noise=noise)
    single = [model.loss(hidden, codes, t=t[i : i + 1], noise=noise[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(whole, torch.stack(single).mean(0))
    assert model.loss(hidden, codes).shape == (2, 4)


def test_fixed_variance_has_no_variance_values():
    model = head(variance="fixed_large")
    assert model.net.out.out_features == 3
    error, bound = model.terms(
        torch.randn(2, 4, 5),
        torch.randn(2, 4, 3),
        torch.randint(1000, (1, 2, 4)),
        torch.randn(1, 2, 4, 3),
    )
    assert bound.abs().sum() == 0
    assert error.isfinite().all()


def test_wrong_options_are_named():
    for options, word in (
        ({"sampler": "heun"}, "sampler"),
        ({"eta": 0.5}, "ddim"),
        ({"repeats": 0}, "timestep"),
        ({"variance": "learned"}, "variance"),
        ({"schedule": "sqrt"}, "schedule"),
    ):
        with pytest.raises(UserError, match=word):
            head(**options)
