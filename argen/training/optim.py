"""Optimisers and learning-rate schedules, as data in `configs/optim/`."""

from __future__ import annotations

import inspect
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from argen.build import META, TARGET, build, buildable, locate
from argen.errors import UserError
from argen.training.joined_optimizer import JoinedOptimizer
from argen.training.schedule import Schedule

log = logging.getLogger(__name__)

FUSED = ("cpu", "cuda", "mps", "xpu")  # devices that torch has a fused AdamW for
SCHEDULES = ("constant", "linear", "cosine", "multistep")
ADAMW = "torch.optim.AdamW"
TRIAL = 100  # a run of fewer steps shows that things work: its warm-up may be longer than it is
Length = int | float  # of a part of the run: steps (a whole number), or a share in (0, 1)


@buildable()
@dataclass(frozen=True)
class Optim:
    """An optimiser, AdamW (arXiv 1711.05101) unless another is named, and a schedule.

    Attributes:
        lr: peak learning rate.
        betas: decay rates of the two moments, for optimisers that take them (Adam's kind).
        weight_decay: applied to weights with two or more axes; never to biases, norms, what a
            module names in `no_decay` and, unless `decay_embeddings`, embeddings.
        weight_decay_end: value of `weight_decay` at the last step, which it reaches along half a
            cosine over all steps (VAR, arXiv 2404.02905); None for one that stays as it is.
        decay_embeddings: also decay embedding tables.
        eps: added to the denominator, for the same ones.
        optimizer: `_target_`, a class with the interface of `torch.optim.Optimizer`, and further
            arguments of its constructor. It gets the parameter groups, and of `lr`, `betas` and
            `eps` what its constructor takes; arguments given here win. None for AdamW.
        matrices_only: the optimiser takes nothing but the matrices of linear layers, all other
            parameters (embeddings, convolutions, norms, biases) go to AdamW at the same rate. None:
            what the class says in an attribute of this name, and true for `torch.optim.Muon`.
        schedule: `constant`, `linear` or `cosine` from the peak to `min_lr_ratio`, or `multistep`,
            which multiplies by `gamma` at each of `milestones`.
        warmup: linear rise from 0, in steps or as a share of all steps.
        hold: time at the peak after it, likewise.
        milestones: shares of all steps, for `multistep`.
        gamma: factor at each milestone.
        min_lr_ratio: last learning rate, as a share of the peak.
        scheduler: `_target_`, a class with the interface of torch's schedulers, and its arguments.
            It is stepped once an optimiser step and takes the place of `schedule`, `warmup`,
            `hold`, `milestones`, `gamma` and `min_lr_ratio`. None for these.
        clip: largest gradient norm; 0 for no clipping.
        clip_value: largest entry of a gradient, after that; 0 for no clipping.
    """

    # `build` hands these over as they are: they are built once there are parameters.
    deferred: ClassVar[tuple[str, ...]] = ("optimizer", "scheduler")

    lr: float = 1e-4
    betas: Sequence[float] = field(default=(0.9, 0.95))
    weight_decay: float = 0.05
    weight_decay_end: float | None = None
    decay_embeddings: bool = True
    eps: float = 1e-8
    optimizer: Mapping[str, Any] | None = None
    matrices_only: bool | None = None
    schedule: str = "cosine"
    warmup: Length = 100
    hold: Length = 0
    milestones: Sequence[float] = ()
    gamma: float = 0.1
    min_lr_ratio: float = 0.0
    scheduler: Mapping[str, Any] | None = None
    clip: float = 1.0
    clip_value: float = 0.0

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise UserError(
                f"Unknown schedule {self.schedule!r}; use one of {', '.join(SCHEDULES)}, or give "
                "optim.scheduler._target_=CLASS."
            )
        if self.schedule == "multistep" and not self.milestones and self.scheduler is None:
            raise UserError(
                "schedule=multistep needs milestones, e.g. optim.milestones=[0.5,0.75]."
            )
        if self.lr <= 0:
            raise UserError(f"optim.lr={self.lr} must be positive.")
        if self.scheduler is not None and self.weight_decay_end is not None:
            raise UserError(
                "optim.weight_decay_end follows argen's own schedules: leave out optim.scheduler."
            )
        for name in ("warmup", "hold"):
            value = getattr(self, name)
            whole = isinstance(value, int | float) and float(value).is_integer() and value >= 0
            if isinstance(value, bool) or not (whole or 0 < value < 1):
                raise UserError(
                    f"optim.{name}={value} must be a number of steps (0, 1, 2, ...) or a share of "
                    "all steps between 0 and 1."
                )

    @classmethod
    def settled(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return a configuration with its defaults, for comparisons."""
        own = {name: value for name, value in config.items() if name != META}
        known = {f.name: f.default for f in fields(cls)}
        settled = {**known, **own}
        settled["optimizer"] = settled["optimizer"] or {TARGET: ADAMW}
        return json.loads(json.dumps(settled, default=str))

    def check(self, steps: int) -> None:
        """Refuse a warm-up and hold that a run of this length never gets through.

        A run of fewer than 100 steps is a trial, for which a line in the log is enough.

        Raises:
            UserError: they reach past the end.
        """
        warmup, begin = self.spans(steps)
        if begin <= steps or self.scheduler is not None:
            return
        reached = min(1.0, steps / warmup) if warmup else 1.0
        told = (
            f"optim.warmup={self.warmup} and optim.hold={self.hold} take {begin} steps, and the "
            f"run has {steps}: its last learning rate would be {reached:.0%} of optim.lr"
        )
        if steps < TRIAL:
            log.warning("%s (a run this short is taken for a trial)", told)
            return
        raise UserError(
            f"{told}. Give them as shares of the run, e.g. optim.warmup=0.02 optim.hold=0, or "
            f"train for longer (fit.steps above {begin})."
        )

    def spans(self, steps: int) -> tuple[int, int]:
        """Return at which step the warm-up and the time at the peak are over."""
        warmup, hold = (
            round(value * steps) if 0 < value < 1 else int(value)
            for value in (self.warmup, self.hold)
        )
        return warmup, warmup + hold

    def make_optimizer(self, *modules: nn.Module) -> torch.optim.Optimizer:
        """Return the optimiser of all trainable parameters.

        Raises:
            UserError: the class does not take what it is given.
        """
        matrices: dict[nn.Parameter, None] = {}
        decayed: dict[nn.Parameter, None] = {}
        plain: dict[nn.Parameter, None] = {}
        target, given = self._target()
        apart = self._matrices_only(target)
        for module in modules:
            for child in module.modules():
                exempt = getattr(child, "no_decay", ())
                for name, parameter in child.named_parameters(recurse=False):
                    if not parameter.requires_grad:
                        continue
                    table = isinstance(child, nn.Embedding)
                    embedding = table and not self.decay_embeddings
                    spared = parameter.ndim < 2 or embedding or name in exempt
                    if apart and parameter.ndim == 2 and not table and name not in exempt:
                        matrices[parameter] = None
                    else:
                        (plain if spared else decayed)[parameter] = None
        groups = self._groups(decayed, plain)
        if not apart:
            return self._construct(target, given, groups)
        parts = [self._construct(target, given, self._groups(matrices, {}))] if matrices else []
        parts += [self._construct(torch.optim.AdamW, {}, groups)] if groups else []
        return JoinedOptimizer(parts) if len(parts) > 1 else parts[0]

    def _groups(
        self, decayed: dict[nn.Parameter, None], plain: dict[nn.Parameter, None]
    ) -> list[dict[str, Any]]:
        groups = [
            {"params": list(decayed), "weight_decay": self.weight_decay},
            {"params": list(plain), "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def _target(self) -> tuple[Any, dict[str, Any]]:
        given = dict(self.optimizer or {})
        target = locate(given.pop(TARGET, None) or ADAMW, trust=True)
        given.pop("_partial_", None)  # Hydra's word for what happens here in any case
        return target, {name: build(value, trust=True) for name, value in given.items()}

    def _matrices_only(self, target: Any) -> bool:
        if self.matrices_only is not None:
            return self.matrices_only
        muon = getattr(torch.optim, "Muon", None)
        return bool(getattr(target, "matrices_only", muon is not None and target is muon))

    def _construct(
        self, target: Any, given: dict[str, Any], groups: list[dict[str, Any]]
    ) -> torch.optim.Optimizer:
        takes = inspect.signature(target).parameters
        anything = any(p.kind is p.VAR_KEYWORD for p in takes.values())
        arguments: dict[str, Any] = {}
        if "lr" in takes or anything:
            arguments["lr"] = self.lr
        if "betas" in takes:  # of Adam's kind, whose eps means the same
            arguments["betas"] = (self.betas[0], self.betas[1])
            if "eps" in takes and isinstance(takes["eps"].default, float):
                arguments["eps"] = self.eps
        if target is torch.optim.AdamW:
            # Fused where there is such a kernel: one pass over all weights in place of a dozen.
            places = {p.device.type for group in groups for p in group["params"]}
            arguments["fused"] = places <= set(FUSED)
        if "weight_decay" not in takes and not anything and self.weight_decay:
            raise UserError(
                f"{target.__name__} has no weight decay of its own: set optim.weight_decay=0."
            )
        try:
            return target(groups, **{**arguments, **given})
        except (TypeError, ValueError) as error:
            raise UserError(f"optim.optimizer={target.__name__}: {error}") from error

    def make_scheduler(self, optimizer: torch.optim.Optimizer, *, steps: int) -> LRScheduler:
        """Return the schedule over `steps` optimiser steps.

        Raises:
            UserError: `scheduler` is none of torch's kind, or needs a score to go by.
        """
        if self.scheduler is None:
            return Schedule(
                optimizer,
                rate=lambda step: self.factor(step, steps),
                decay=None
                if self.weight_decay_end is None
                else lambda step: self.decay(step, steps),
            )
        given = {name: value for name, value in self.scheduler.items() if name != "_partial_"}
        target = locate(given.pop(TARGET, ""), trust=True)
        if isinstance(target, type) and issubclass(target, ReduceLROnPlateau):
            raise UserError("ReduceLROnPlateau waits for a score; choose one that counts steps.")
        try:
            made = target(
                optimizer, **{name: build(value, trust=True) for name, value in given.items()}
            )
        except (TypeError, ValueError) as error:
            raise UserError(f"optim.scheduler={target.__name__}: {error}") from error
        if not isinstance(made, LRScheduler):
            raise UserError(f"optim.scheduler={target.__name__} is no scheduler of torch's kind.")
        return made

    def factor(self, step: int, steps: int) -> float:
        """Return the learning rate of a step as a share of the peak."""
        warmup, begin = self.spans(steps)
        if step < warmup:
            return (step + 1) / warmup
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "multistep":
            return self.gamma ** sum(step >= share * steps for share in self.milestones)
        ratio = min(1.0, max(0, step - begin) / max(1, steps - begin))
        fall = ratio if self.schedule == "linear" else (1.0 - math.cos(math.pi * ratio)) / 2.0
        return 1.0 + (self.min_lr_ratio - 1.0) * fall

    def decay(self, step: int, steps: int) -> float:
        """Return the weight decay of a step."""
        if self.weight_decay_end is None:
            return self.weight_decay
        left = 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / max(1, steps - 1)))
        return self.weight_decay_end + (self.weight_decay - self.weight_decay_end) * left
