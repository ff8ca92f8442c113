"""A GPT whose blocks are modulated by the condition: IBQ (arXiv 2412.02692), ELM's variant.

What it adds to a GPT (`gpt.py`):
- adaptive norms: the condition's vector shifts, scales and gates both halves of every block, by a
  linear map of its own in each block, or by one that all blocks share
- an adaptive norm before the head

Shapes: R rows, n tokens of one pass, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from argen.generators.conditioning import Cond, condition_vector
from argen.generators.gpt import GPT
from argen.generators.subtoken import SubTokenGPT
from argen.layers.adaln import (
    AdaLNBlock,
    AdaNorm,
    Modulation,
    ModulationCache,
    Modulations,
    init_modulated,
    run_modulated,
)
from argen.layers.cache import KVCache, Window
from argen.layers.norms import NormFactory


class AdaLNGPT(GPT):
    """A GPT with adaptive norms.

    Args:
        shared_adaln: one modulation layer for all blocks, with learned offsets in each.
        init_modulation: factor on the initial weights of shifts and scales.
        init_gate: factor on the initial weights of the gates.
        options: as for `GPT`.
    """

    def __init__(
        self,
        *,
        shared_adaln: bool = False,
        init_modulation: float = 0.5,
        init_gate: float = 1e-5,
        **options: Any,
    ) -> None:
        # Plain values, which the parts that `GPT.__init__` makes are made by.
        self.shared_adaln = shared_adaln
        self.init_modulation, self.init_gate = init_modulation, init_gate
        super().__init__(**options)

    def _make_blocks(
        self, drop_paths: Sequence[float], *, dim: int, heads: int, **options: Any
    ) -> None:
        self.modulation = Modulation(dim, dim, 6) if self.shared_adaln else None
        self.blocks = nn.ModuleList(
            AdaLNBlock(dim, heads, shared=self.shared_adaln, drop_path=rate, **options)
            for rate in drop_paths
        )

    def _make_norm(self, dim: int, norm: str | NormFactory, eps: float) -> nn.Module:
        return AdaNorm(dim, norm=norm)

    def _init_weights(self, std: float, zero_init_head: bool) -> None:
        super()._init_weights(std, zero_init_head)
        init_modulated(self.blocks, self.norm, modulation=self.init_modulation, gate=self.init_gate)

    def _run(
        self,
        x_RnD: Tensor,
        slots: Tensor,
        cond: Cond,
        *,
        mask: Tensor | None,
        causal: bool = False,
        cache: KVCache | None = None,
        window: Window | None = None,
        modulations: ModulationCache | None = None,
    ) -> Tensor:
        attention: dict[str, Any] = {
            "rope": self._rope(slots),
            "mask": mask,
            "causal": causal,
            "cache": cache,
            "window": window,
        }
        if modulations is not None:
            if modulations.kept is None:  # in the first pass; every slot has the same
                vector_R1D = condition_vector(cond)[:, None]
                modulations.kept = Modulations.of(
                    self.blocks, self.norm, vector_R1D, self._shared(vector_R1D)
                )
            return run_modulated(x_RnD, self.blocks, self.norm, modulations.kept, **attention)
        vector_R1D = condition_vector(cond)[:, None]
        shared = self._shared(vector_R1D)
        for layer, block in enumerate(self.blocks):
            x_RnD = block(x_RnD, layer=layer, cond=shared, **attention)
        return self.norm(x_RnD, vector_R1D) if isinstance(self.norm, AdaNorm) else self.norm(x_RnD)

    def _shared(self, vector_R1D: Tensor) -> Tensor:
        """Return the condition as blocks take it."""
        return vector_R1D if self.modulation is None else self.modulation(vector_R1D)


class AdaLNSubTokenGPT(AdaLNGPT, SubTokenGPT):
    """A `SubTokenGPT` with adaptive norms; arguments of both."""
