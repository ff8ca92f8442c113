"""Softmax over one vocabulary: the head of most next-token and masked generators."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from argen.generators.heads.base import Filter, Head
from argen.generators.heads.guidance import GuidanceStep, guide
from argen.generators.heads.sampling import sample_categorical
from argen.layers.noise import Noise


class CategoricalHead(Head):
    """Softmax over a vocabulary of V codes.

    Args:
        dim: width D of the hidden vectors.
        vocab_size: V.
        bias: bias of the output projection.
        codes: only ids below this are sampled, where the vocabulary holds others too.
    """

    def __init__(
        self, dim: int, vocab_size: int, *, bias: bool = False, codes: int | None = None
    ) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, vocab_size, bias=bias)
        self.codes = vocab_size if codes is None else codes

    def output_layers(self) -> list[nn.Linear]:
        """Return the one projection."""
        return [self.proj]

    def forward(self, hidden_BnD: Tensor) -> Tensor:
        """Return float32 logits (B, n, V)."""
        return self.proj(hidden_BnD).float()

    def loss(self, outputs: Tensor, target: Tensor, **options: Any) -> Tensor:
        """Return the cross entropy in nats, (B, n)."""
        return F.cross_entropy(outputs.flatten(0, 1), target.flatten(), reduction="none").view(
            target.shape
        )

    @property
    def id_sizes(self) -> tuple[int, ...]:
        """Number of codes."""
        return (self.codes,)

    def conditional(self, outputs: Tensor, codes: Tensor) -> Tensor:
        """Return the logits as those of one sub-token, (R, n, 1, V)."""
        return outputs[..., None, : self.codes]

    def sample(
        self,
        outputs: Tensor,
        *,
        guidance: GuidanceStep | None,
        filters: Filter,
        noise: Noise,
        positions: Tensor,
    ) -> Tensor:
        """Sample ids (B, n)."""
        logits = filters(guide(outputs, guidance)[..., : self.codes])
        uniform = noise.uniform(positions).to(logits.device)
        return sample_categorical(logits, uniform.expand(logits.shape[:-1]))
