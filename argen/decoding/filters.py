"""Logit filters: pure functions from logits to logits, in the order the field applies them.

Guided logits are cut by entropy, divided by the temperature, cut to the top k, then to the nucleus,
then to the tokens within a factor of the best; what is cut becomes -inf. Every filter looks at one
position alone, so a distribution is the same whether positions are filtered one by one or in a
window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from argen.errors import UserError

MIN_TEMPERATURE = 1e-5  # LlamaGen's floor: below it a sample is the argmax up to ties.


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the `k` largest of (..., V), and everything that ties with the k-th; 0 keeps all."""
    if k <= 0 or k >= logits.shape[-1]:
        return logits
    threshold = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < threshold, float("-inf"))


def keep_top_p(logits: Tensor, p: float, *, from_below: bool = False) -> Tensor:
    """Keep the smallest set of tokens whose probability reaches `p` (nucleus, arXiv 1904.09751).

    Args:
        logits: (..., V).
        p: the token that crosses this line stays, so at least one always does; 1 keeps all.
        from_below: sum up from the least likely token and drop while the sum is at most 1 - p, as
            VAR and Hugging Face do. The same set up to rounding, but among equal values the
            lower indices go first instead of last.
    """
    if p >= 1.0:
        return logits
    ordered, index = logits.sort(dim=-1, descending=not from_below, stable=True)
    total = torch.softmax(ordered, dim=-1).cumsum(-1)
    drop = total <= 1.0 - p if from_below else total > p
    kept = torch.zeros_like(drop[..., :1])
    drop = torch.cat((drop[..., :-1], kept) if from_below else (kept, drop[..., :-1]), dim=-1)
    return logits.masked_fill(drop.scatter(-1, index, drop), float("-inf"))


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Keep tokens at least `p` times as likely as the likeliest (arXiv 2407.01082); 0 keeps all."""
    if p <= 0.0:
        return logits
    probs = torch.softmax(logits, dim=-1)
    return logits.masked_fill(probs < p * probs.amax(-1, keepdim=True), float("-inf"))


def entropy(logits: Tensor) -> Tensor:
    """Return the Shannon entropy (...) of softmax(logits) in nats."""
    probs = torch.softmax(logits, dim=-1)
    return -(probs * (probs + 1e-10).log()).sum(-1)


def entropy_to_k(nats: Tensor, min_k: int, max_k: int) -> Tensor:
    """Return how many tokens PURE (arXiv 2503.11073) keeps at an entropy: a logistic curve.

    Few where the model is sure (flat or structured areas), many in texture; the curve is centred
    on 5 nats, and entropies beyond 0 and 10 count as those.
    """
    rise = torch.sigmoid(nats.clamp(0.0, 10.0) - 5.0)
    return (min_k + (max_k - min_k) * rise).round().clamp(min_k, max_k).long()


def keep_entropy_top_k(logits: Tensor, min_k: int, max_k: int, *, shared: bool = False) -> Tensor:
    """Keep the k largest of (..., V), with k from each row's own entropy.

    Args:
        logits: (..., V).
        min_k: smallest number of tokens kept.
        max_k: largest number of tokens kept; more than V means V.
        shared: one k for all rows, from their mean entropy, as the published windowed form has it.
            A position's distribution then depends on its neighbours in the window, so speculative
            strategies are no longer exact with it.
    """
    nats = entropy(logits)
    nats = nats.mean().expand_as(nats) if shared else nats
    k = entropy_to_k(nats, min_k, max_k).clamp(1, logits.shape[-1])
    ordered = logits.sort(dim=-1, descending=True).values
    threshold = ordered.gather(-1, k[..., None] - 1)
    return logits.masked_fill(logits < threshold, float("-inf"))


def keep_argmax(logits: Tensor) -> Tensor:
    """Keep only the first of the largest logits: sampling becomes greedy."""
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
        entropy_k: (min, max) number of tokens kept by PURE's entropy rule, None for no such cut.
        top_p_from_below: build the nucleus as VAR does, see `keep_top_p`.
        sub_tokens: filters of each sub-token in place of all of the above, for factorised heads.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    entropy_k: tuple[int, int] | None = None
    top_p_from_below: bool = False
    sub_tokens: Sequence[Filters | Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        each = tuple(f if isinstance(f, Filters) else Filters(**f) for f in self.sub_tokens)
        object.__setattr__(self, "sub_tokens", each)
        if self.temperature < 0:
            raise UserError(f"temperature={self.temperature} is negative; 0 means greedy.")
        if self.top_k < 0:
            raise UserError(f"top_k={self.top_k} is negative; 0 keeps every token.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} must lie in (0, 1]; 1 keeps every token.")
        if not 0 <= self.min_p < 1:
            raise UserError(f"min_p={self.min_p} must lie in [0, 1); 0 keeps every token.")
        if self.entropy_k is not None and not 1 <= self.entropy_k[0] <= self.entropy_k[1]:
            raise UserError(
                f"entropy_k={tuple(self.entropy_k)} must be (min, max) with 1 <= min <= max; "
                "PURE uses (1, 2000)."
            )

    def check(self, vocab_size: int) -> None:
        """Raise when the filters do not fit a vocabulary."""
        if self.top_k > vocab_size:
            raise UserError(
                f"top_k={self.top_k} is larger than the vocabulary of {vocab_size} codes; "
                "use top_k=0 to keep all."
            )

    def __call__(self, logits: Tensor) -> Tensor:
        """Filter float logits (..., V)."""
        if self.sub_tokens:
            raise UserError(
                "Filters for each sub-token need a generator with a factorised head and "
                "decoder=sequential; elsewhere give one temperature, top_k and top_p."
            )
        if self.temperature == 0:
            return keep_argmax(logits)
        if self.entropy_k is not None:
            logits = keep_entropy_top_k(logits, *self.entropy_k)
        logits = keep_top_k(logits / max(self.temperature, MIN_TEMPERATURE), self.top_k)
        logits = keep_top_p(logits, self.top_p, from_below=self.top_p_from_below)
        return keep_min_p(logits, self.min_p)
