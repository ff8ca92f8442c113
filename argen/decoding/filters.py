"""Logit filters: pure functions from logits to logits, in the order the field applies them.

Guided logits are divided by the temperature, cut to the top k, then to the nucleus, then to the
tokens within a factor of the best; what is cut becomes -inf.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from argen.errors import UserError

MIN_TEMPERATURE = 1e-5  # LlamaGen's floor: below it a draw is the argmax up to ties.


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the `k` largest of (..., V), and everything that ties with the k-th; 0 keeps all."""
    if k <= 0 or k >= logits.shape[-1]:
        return logits
    threshold = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < threshold, float("-inf"))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of tokens whose probability reaches `p` (nucleus, arXiv 1904.09751).

    The token that crosses the line stays, so at least one always does; 1 keeps all.
    """
    if p >= 1.0:
        return logits
    ordered, index = logits.sort(dim=-1, descending=True)
    before = torch.softmax(ordered, dim=-1).cumsum(-1)
    drop = before > p
    drop = torch.cat((torch.zeros_like(drop[..., :1]), drop[..., :-1]), dim=-1)
    return logits.masked_fill(drop.scatter(-1, index, drop), float("-inf"))


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Keep tokens at least `p` times as likely as the likeliest (arXiv 2407.01082); 0 keeps all."""
    if p <= 0.0:
        return logits
    probs = torch.softmax(logits, dim=-1)
    return logits.masked_fill(probs < p * probs.amax(-1, keepdim=True), float("-inf"))


def keep_argmax(logits: Tensor) -> Tensor:
    """Keep only the first of the largest logits: a draw becomes greedy."""
    best = logits.argmax(dim=-1, keepdim=True)
    return torch.full_like(logits, float("-inf")).scatter(-1, best, 0.0)


@dataclass(frozen=True)
class Filters:
    """The usual filters, chained.

    Attributes:
        temperature: divides the logits; 0 means greedy.
        top_k: number of tokens kept, 0 for all.
        top_p: nucleus probability kept, 1 for all.
        min_p: share of the best token's probability below which a token is cut, 0 for none.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise UserError(f"temperature={self.temperature} is negative; 0 means greedy.")
        if self.top_k < 0:
            raise UserError(f"top_k={self.top_k} is negative; 0 keeps every token.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} must lie in (0, 1]; 1 keeps every token.")
        if not 0 <= self.min_p < 1:
            raise UserError(f"min_p={self.min_p} must lie in [0, 1); 0 keeps every token.")

    def check(self, vocab_size: int) -> None:
        """Raise when the filters do not fit a vocabulary."""
        if self.top_k > vocab_size:
            raise UserError(
                f"top_k={self.top_k} is larger than the vocabulary of {vocab_size} codes; "
                "use top_k=0 to keep all."
            )

    def __call__(self, logits: Tensor) -> Tensor:
        """Filter float logits (..., V)."""
        if self.temperature == 0:
            return keep_argmax(logits)
        logits = logits / max(self.temperature, MIN_TEMPERATURE)
        return keep_min_p(keep_top_p(keep_top_k(logits, self.top_k), self.top_p), self.min_p)
