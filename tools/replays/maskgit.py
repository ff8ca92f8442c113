"""Replays MaskGIT: the BERT and U-ViT generators, and confidence decoding on its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from argen.decoding.confidence import Confidence, maskgit_guidance
from argen.decoding.filters import Filters
from argen.generators.base import AnyOrderGenerator, LossOutput
from argen.generators.conditioning import ClassConditioner, Cond
from argen.generators.heads.categorical import CategoricalHead
from argen.generators.maskgit import MaskGIT
from argen.generators.maskgit.maskgit import MaskGITState, masked_accuracy, masked_loss
from argen.generators.plan import Plan
from argen.interop import maskgit
from argen.interop.base import Imported
from argen.layers.noise import Noise
from argen.spec import CodeSpec, Segment
from replays.fixture import Fixture

SYSTEMS = (
    "MaskGIT BERT",
    "MaskGIT U-ViT",
    "maskgit-step",
)


class RecordedNoise:
    """Gives recorded uniforms: of the loss's draws, or of each step's codes and confidences."""

    def __init__(
        self, *, uniforms: Sequence[Tensor] = (), steps: tuple[Tensor, Tensor] | None = None
    ) -> None:
        self.uniforms, self.steps = uniforms, steps

    def uniform(self, positions: Tensor, size: Sequence[int] = (), *, use: int = 0) -> Tensor:
        """Return the recorded draw number `use`, (B, n)."""
        recorded = self.uniforms[use]
        return recorded if recorded.ndim > 1 else recorded[:, None]

    def gumbel(self, positions: Tensor, size: Sequence[int] = (), *, use: int = 0) -> Tensor:
        """Return Gumbel noise (B, n, *size) at positions (B, n), from that step's uniforms."""
        assert self.steps is not None
        u = self.steps[use % 2][use // 2]
        row = torch.arange(u.shape[0])[:, None]
        u = u[row, positions]
        return -torch.log((-torch.log(u.clamp(min=1e-20))).clamp(min=1e-20))

    def normal(self, positions: Tensor, size: Sequence[int] = (), *, use: int = 0) -> Tensor:
        """Nothing here draws normal noise."""
        raise NotImplementedError


def replay(fixture: Fixture) -> dict[str, Tensor]:
    """Compute every expected tensor of a fixture."""
    return _steps(fixture) if fixture.system == "maskgit-step" else _generator(fixture)


def _generator(fixture: Fixture) -> dict[str, Tensor]:
    imported = Imported(
        maskgit.generator_config(fixture.config),
        maskgit.generator_weights(fixture.weights),
        fixture.name,
    )
    model = imported.build()
    assert isinstance(model, MaskGIT)
    objective = Objective(model, fixture)
    with torch.no_grad():
        found = objective.results()
        for name in fixture.expected:
            if re.fullmatch(r"gen\w*_tokens", name):
                found[name] = _generate(model, fixture, name)
    return found | fixture.gradients(objective.under, maskgit.generator_weights)


class Objective(nn.Module):
    """Masking, the forward passes and the loss."""

    def __init__(self, model: MaskGIT, fixture: Fixture) -> None:
        super().__init__()
        self.model, self.fixture = model, fixture

    def results(self) -> dict[str, Tensor]:
        """Return everything but generated tokens."""
        fixture, model = self.fixture, self.model
        found: dict[str, Tensor] = {}
        if "timesteps" in fixture.io:
            noise = RecordedNoise(uniforms=(fixture["timesteps"], fixture["perm_uniform"]))
            ids, masked = model.mask(fixture["tokens"], noise)
            found |= {"masked_tokens": ids, "masks": masked.to(fixture["masks"].dtype)}
        cond = model.conditioner(fixture["class_labels"].flatten())
        ids = fixture["masked_tokens"]
        found["logits_cond"] = model.logits(ids, cond)
        found["logits_null"] = model.logits(ids, model.conditioner.null(cond))
        if "masks" in fixture.io:
            found["loss"] = self("loss")
            masked = fixture["masks"].bool()
            found["correct"] = masked_accuracy(found["logits_cond"], fixture["tokens"], masked)
        return found

    def forward(self, name: str) -> Tensor:
        """Return the loss, under the recorded mask and every label."""
        fixture, model = self.fixture, self.model
        cond = model.conditioner(fixture["class_labels"].flatten())
        if "null" in name:
            cond = model.conditioner.null(cond)
        loss, _ = masked_loss(
            model.logits(fixture["masked_tokens"], cond),
            fixture["tokens"],
            fixture["masks"].bool(),
            label_smoothing=model.label_smoothing,
            unmasked_weight=model.unmasked_weight,
        )
        return loss

    def under(self, name: str, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the loss with other weights in place."""
        named = {f"model.{key}": value for key, value in weights.items()}
        return torch.func.functional_call(self, named, (name,))


def _option(text: str, name: str, default: str) -> str:
    found = re.search(rf"\b{name}[ =:]+([\w.+-]+)", text)
    return found[1].rstrip(".,") if found else default


def _generate(model: MaskGIT, fixture: Fixture, name: str) -> Tensor:
    prefix = name.removesuffix("_tokens")
    draws = (fixture[f"{prefix}_token_uniform"], fixture[f"{prefix}_confidence_uniform"])
    text = fixture.description(name)
    decoder = Confidence(
        len(draws[0]),
        randomize=float(_option(text, "randomize_temperature", "4.5")),
        anneal=_option(text, "softmax_temperature_annealing", "False") == "True",
    )
    guidance = maskgit_guidance(
        float(_option(text, "guidance_scale", "3.0")),
        _option(text, "guidance_decay", "constant"),
        float(_option(text, "guidance_scale_pow", "3.0")),
    )
    labels = fixture.io.get(f"{prefix}_class_labels", fixture["class_labels"])
    return decoder(
        model,
        model.conditioner(labels.flatten()),
        guidance=guidance,
        filters=Filters(),
        noise=RecordedNoise(steps=draws),
    ).codes


class RecordedLogits(AnyOrderGenerator):
    """Stands for a network whose logits of each step are recorded; notes the ids it was shown."""

    def __init__(self, fixture: Fixture, guided: bool) -> None:
        super().__init__()
        self.steps = fixture["cond_logits"].shape[0]
        halves = (
            [fixture["cond_logits"], fixture["uncond_logits"]]
            if guided
            else [fixture["cond_logits"]]
        )
        self.recorded = torch.cat(halves, dim=1)  # steps R L V
        L, V = self.recorded.shape[2:]
        self.mask_id = fixture.config.get("mask_token_id", V)
        self.spec = CodeSpec("discrete", (Segment((1, L), vocab_sizes=(V,)),))
        self.plan = Plan.of_groups([range(L)], any_order=True)
        self.conditioner = ClassConditioner(1, 1)
        self.head = CategoricalHead(1, V)
        self.seen: list[Tensor] = []

    def loss(self, codes: Tensor, cond: Cond, *, noise: Noise | None = None) -> LossOutput:
        """There is nothing to train."""
        raise NotImplementedError

    def score(self, codes: Tensor, cond: Cond) -> Tensor:
        """There is nothing to score."""
        raise NotImplementedError

    def start(self, cond: Cond, *, longest_draft: int = 0) -> MaskGITState:
        """Return a state in which every code is masked."""
        return MaskGITState(cond, torch.full((len(cond), self.spec.length), self.mask_id))

    def predict(
        self, state: MaskGITState, draft: Tensor | None = None, *, positions: Tensor | None = None
    ) -> Tensor:
        """Return the recorded logits (R, n, V) of the next step."""
        assert positions is not None
        logits = self.recorded[len(self.seen)]
        self.seen.append(state.ids_RL[: self.recorded.shape[1]].clone())
        return logits.gather(1, positions[..., None].expand(-1, -1, logits.shape[-1]))

    def commit(
        self,
        state: MaskGITState,
        codes: Tensor,
        counts: Tensor | None = None,
        *,
        positions: Tensor | None = None,
    ) -> None:
        """Fix codes (R, n) at `positions`."""
        assert positions is not None
        state.ids_RL = state.ids_RL.scatter(1, positions, codes)


def _steps(fixture: Fixture) -> dict[str, Tensor]:
    config: dict[str, Any] = fixture.config
    guidance = maskgit_guidance(
        config["guidance_scale"], config["guidance_decay"], config["guidance_scale_pow"]
    )
    model = RecordedLogits(fixture, guidance.active)
    B = fixture["cond_logits"].shape[1]
    result = Confidence(
        config["steps"],
        randomize=config["randomize_temperature"],
        anneal=config["softmax_temperature_annealing"],
    )(
        model,
        model.conditioner(torch.zeros(B, dtype=torch.long)),
        guidance=guidance,
        filters=Filters(),
        noise=RecordedNoise(steps=(fixture["noise_tokens"], fixture["noise_confidence"])),
    )
    before = torch.stack([ids[:B] for ids in model.seen])
    return {"ids_before_step": before, "ids_final": result.codes}
