"""Optimisers and learning-rate schedules, as data in `configs/optim/`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from argen.build import buildable
from argen.errors import UserError

FUSED = ("cpu", "cuda", "mps", "xpu")  # devices that torch has a fused AdamW for
SCHEDULES = ("constant", "linear", "cosine", "stairs")


@buildable()
@dataclass(frozen=True)
class Optim:
    """AdamW (arXiv 1711.05101) with a warm-up and a schedule.

    Attributes:
        lr: peak learning rate.
        betas: decay rates of the two moments.
        weight_decay: applied to weights with two or more axes; never to biases, norms, what a
            module names in `no_decay` and, unless `decay_embeddings`, embeddings.
        decay_embeddings: also decay embedding tables.
        eps: added to the denominator.
        schedule: `constant`, `linear` or `cosine` from the peak to `final`, or `stairs`, which
            multiply by `stair` at each of `milestones`.
        warmup: steps of linear rise from 0.
        plateau: steps at the peak after it.
        milestones: shares of all steps, for `stairs`.
        stair: factor at each milestone.
        final: last learning rate, as a share of the peak.
        clip: largest gradient norm; 0 for no clipping.
        clip_value: largest entry of a gradient, after that; 0 for no clipping.
    """

    lr: float = 1e-4
    betas: Sequence[float] = field(default=(0.9, 0.95))
    weight_decay: float = 0.05
    decay_embeddings: bool = True
    eps: float = 1e-8
    schedule: str = "cosine"
    warmup: int = 100
    plateau: int = 0
    milestones: Sequence[float] = ()
    stair: float = 0.1
    final: float = 0.0
    clip: float = 1.0
    clip_value: float = 0.0

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise UserError(
                f"Unknown schedule {self.schedule!r}; use one of {', '.join(SCHEDULES)}."
            )
        if self.schedule == "stairs" and not self.milestones:
            raise UserError("schedule=stairs needs milestones, e.g. optim.milestones=[0.5,0.75].")
        if self.lr <= 0:
            raise UserError(f"optim.lr={self.lr} must be positive.")

    def optimizer(self, *modules: nn.Module) -> torch.optim.AdamW:
        """Return the optimiser of all trainable parameters."""
        decayed: list[nn.Parameter] = []
        plain: list[nn.Parameter] = []
        for module in modules:
            for child in module.modules():
                exempt = getattr(child, "no_decay", ())
                for name, parameter in child.named_parameters(recurse=False):
                    if not parameter.requires_grad:
                        continue
                    embedding = isinstance(child, nn.Embedding) and not self.decay_embeddings
                    spared = parameter.ndim < 2 or embedding or name in exempt
                    (plain if spared else decayed).append(parameter)
        groups = [
            {"params": list(dict.fromkeys(decayed)), "weight_decay": self.weight_decay},
            {"params": list(dict.fromkeys(plain)), "weight_decay": 0.0},
        ]
        # Fused where there is such a kernel: one pass over all weights in place of a dozen.
        fused = all(p.device.type in FUSED for p in (*decayed, *plain))
        return torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=self.lr,
            betas=(self.betas[0], self.betas[1]),
            eps=self.eps,
            fused=fused,
        )

    def scheduler(self, optimizer: torch.optim.Optimizer, *, steps: int) -> LambdaLR:
        """Return the schedule over `steps` optimiser steps."""
        return LambdaLR(optimizer, lambda step: self.factor(step, steps))

    def factor(self, step: int, steps: int) -> float:
        """Return the learning rate of a step as a share of the peak."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "stairs":
            return self.stair ** sum(step >= share * steps for share in self.milestones)
        begin = self.warmup + self.plateau
        ratio = min(1.0, max(0, step - begin) / max(1, steps - begin))
        fall = ratio if self.schedule == "linear" else (1.0 - math.cos(math.pi * ratio)) / 2.0
        return 1.0 + (self.final - 1.0) * fall
