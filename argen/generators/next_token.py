"""One code after another behind a condition prefix: what every next-token network shares.

Codes are fed in the order they are drawn; step s is the s-th code drawn, at position order[s] of
the tokenizer's sequence.

Shapes: R rows (samples, doubled under guidance), B samples, T prefix tokens, L codes, G sub-tokens,
D model width, V vocabulary, n codes of one pass, k drafted codes.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from argen.errors import IncompatibleError
from argen.generators.base import Generator, LossOutput
from argen.generators.conditioning import Cond
from argen.layers.adaln import ModulationCache
from argen.layers.cache import KVCache, Window
from argen.layers.masks import Predicate, causal, dense_mask, text_masked
from argen.layers.noise import Noise
from argen.layers.steps import arrange, restore, take
from argen.layers.transformer import Block
from argen.layers.tree import hide_branches, levels


@dataclass
class NextTokenState:
    """Decoding state of R rows.

    Attributes:
        cond: the conditions of the rows.
        codes: committed codes (R, L, ...) in the order they are drawn; steps at or beyond
            `length` are not meaningful.
        length: committed codes, one number when all rows agree, else long (R,).
        longest: the largest length, known on the host.
        cache: keys and values of the prefix and of the codes fed so far.
        order: position of each step, (L,) or (R, L); None when steps are positions.
        hidden: what the head read in the last pass, of every token fed, (R, fed, D).
        modulations: vectors of the condition in every block, where blocks are modulated.
    """

    cond: Cond
    codes: Tensor
    length: int | Tensor
    longest: int
    cache: KVCache
    order: Tensor | None = None
    hidden: Tensor | None = None
    modulations: ModulationCache = field(default_factory=ModulationCache)


class NextToken(Generator):
    """A causal transformer that predicts one code from the prefix and the codes before it.

    A subclass gives the network: `_prefix` and `_embed` make the input vectors, `_run` runs the
    blocks, `_pattern` says who sees whom. Teacher forcing, cached passes with look-ahead and the
    roll-back are here.

    Attributes:
        blocks: transformer blocks, all with the same heads.
        prefix_length: number of prefix tokens T.
        order: the fixed order codes are drawn in, long (L,), where it is not the tokenizer's.
        rotary: arguments of its `rotary_table`, which a drafter shares; empty where it has none.
    """

    rotary: Mapping[str, Any] = {}
    blocks: nn.ModuleList
    prefix_length: int
    order: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", None, persistent=False)

    @abstractmethod
    def _prefix(self, cond: Cond, order: Tensor | None) -> Tensor:
        """Return the prefix (R, T, D)."""

    @abstractmethod
    def _embed(self, codes: Tensor, steps: Tensor, order: Tensor | None) -> Tensor:
        """Embed codes (R, n, ...) of steps (n,) or (R, n)."""

    @abstractmethod
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
        """Run the blocks and the last norm.

        Args:
            x_RnD: the tokens.
            slots: their places in [prefix, codes in the order they are drawn], (n,) or (R, n).
            cond: the conditions of the rows.
            mask: (1 or R, 1, n, keys), true where a query may look; None for all keys, or the
                earlier ones where `causal`.
            causal: attend causally where there is no mask.
            cache: keys and values of earlier tokens.
            window: where in the cache these tokens go.
            modulations: those of earlier passes of this decoding, kept and read by networks whose
                blocks are modulated.

        Returns:
            what the head reads, (R, n, D).
        """

    def _pattern(self, cond: Cond) -> Predicate:
        """Return which slots see which."""
        return causal if cond.mask_BT is None else text_masked(cond.mask_BT)

    def loss(self, codes: Tensor, cond: Cond, *, noise: Noise | None = None) -> LossOutput:
        """Return the mean cross entropy in nats of codes; metrics: bits per code."""
        nll_BL = self.head.loss(self.score(codes, cond), codes)
        loss = nll_BL.mean()
        return LossOutput(loss, {"bits_per_code": loss.detach() / math.log(2)}, nll_BL)

    def score(self, codes: Tensor, cond: Cond, *, order: Tensor | None = None) -> Tensor:
        """Return the outputs (B, L, ...) of every position given the codes drawn before it.

        Args:
            codes: as `spec` says, in the tokenizer's order.
            cond: B conditions.
            order: positions in the order they are drawn, (L,) or (B, L), for plans that can be
                permuted; the plan's own when None.
        """
        order = self._ordered(order)
        return restore(self.head(self.hidden(arrange(codes, order), cond, order=order)), order)

    def hidden(
        self,
        drawn: Tensor,
        cond: Cond,
        *,
        order: Tensor | None = None,
        beyond: bool = False,
        prefix: bool = False,
    ) -> Tensor:
        """Return what the head reads at every step, teacher forced, (B, L, D).

        Args:
            drawn: codes (B, L, ...) in the order they are drawn.
            cond: B conditions.
            order: that order, (L,) or (B, L); None for the tokenizer's.
            beyond: also feed the last code, which gives L + 1 steps.
            prefix: also return the T - 1 vectors of the prefix before the first step.
        """
        fed = drawn if beyond else drawn[:, :-1]
        first, steps = self._prefix(cond, order), torch.arange(fed.shape[1], device=fed.device)
        x_BSD = torch.cat((first, self._embed(fed, steps, order)), dim=1)  # S = T + fed codes
        slots = torch.arange(x_BSD.shape[1], device=fed.device)
        pattern, mask = self._pattern(cond), None
        if pattern is not causal:
            mask = dense_mask(pattern, slots, slots, rows=mask_rows(cond))
        hidden = self._run(x_BSD, slots, cond, mask=mask, causal=True)
        return hidden if prefix else hidden[:, first.shape[1] - 1 :]

    def start(
        self, cond: Cond, *, longest_draft: int = 0, order: Tensor | None = None
    ) -> NextTokenState:
        """Allocate codes and cache for R = len(cond) rows.

        Args:
            cond: the conditions.
            longest_draft: the most future codes a `predict` call will be given.
            order: positions in the order they will be drawn, (L,) or (R, L), for plans that can
                be permuted; the plan's own when None.
        """
        block, R = self.blocks[0], len(cond)
        assert isinstance(block, Block)
        attention, weight = block.attention, block.attention.qkv.weight
        cache = KVCache(
            layers=len(self.blocks),
            rows=R,
            heads=attention.kv_heads,
            # The last code is never fed; a draft may reach past the end before it is cut.
            slots=self.prefix_length + self.spec.length - 1 + longest_draft,
            head_dim=attention.head_dim,
            dtype=compute_dtype(weight),
            device=weight.device,
        )
        codes = torch.zeros(self.spec.code_shape(R), dtype=torch.long, device=weight.device)
        return NextTokenState(cond, codes, 0, 0, cache, self._ordered(order))

    def predict(
        self, state: NextTokenState, draft: Tensor | None = None, *, parents: Tensor | None = None
    ) -> Tensor:
        """Return the outputs of the next step (R, 1, ...), or of the next k + 1 under a draft.

        Args:
            state: from `start`.
            draft: codes (R, k, ...) proposed for the next k steps; with `parents`, the nodes of a
                tree of proposals. What follows node i then stands at i, what follows the last
                committed code at 0.
            parents: number of each node's parent, (k,) or (R, k), 0 for the last committed code
                and 1 to k for the nodes, parents before children.
        """
        device, T = state.codes.device, self.prefix_length
        k = 0 if draft is None else draft.shape[1]
        ahead = torch.arange(k, device=device)
        if parents is not None:
            ahead = levels(parents) - 1
        if state.longest == 0:
            parts = [self._prefix(state.cond, state.order)]
            window = Window(start=0, n=T + k, reach=T + k)
            slots, fed = torch.arange(T, device=device), ahead
        else:
            # The last committed code is the one token the cache has not seen yet.
            last = state.length - 1
            at = torch.tensor([last], device=device) if isinstance(last, int) else last[:, None]
            parts = [self._embed(take(state.codes, at), at, state.order)]
            window = Window(start=T + last, n=1 + k, reach=T + state.longest + k)
            slots, fed = T + at, at + 1 + ahead
        if draft is not None:
            parts.append(self._embed(draft, fed, state.order))
        stored = window.slots(device)
        mask = self._window_mask(state.cond, window, stored)
        if parents is None:
            slots = stored
        else:
            slots = torch.cat((slots.expand(*fed.shape[:-1], -1), T + fed), dim=-1)
            mask = hide_branches(mask, parents, stored)
        state.hidden = self._run(
            torch.cat(parts, dim=1),
            slots,
            state.cond,
            mask=mask,
            cache=state.cache,
            window=window,
            modulations=state.modulations,
        )
        return self.head(state.hidden[:, -(1 + k) :])

    def commit(
        self,
        state: NextTokenState,
        codes: Tensor,
        counts: Tensor | None = None,
        *,
        path: Tensor | None = None,
    ) -> None:
        """Fix the next n codes (R, n, ...), or the first `counts` of them in each row.

        Args:
            state: changed in place.
            codes: the codes.
            counts: how many each row keeps, long (R,).
            path: after a tree of proposals, the numbers (R, m) of the nodes that the first codes
                were, whose cache entries are moved to where the codes now stand; 0 for none.
        """
        n, L = codes.shape[1], self.spec.length
        if path is not None:
            length = torch.as_tensor(state.length, device=codes.device).expand(codes.shape[0])
            target = torch.arange(path.shape[1], device=codes.device).expand_as(path)
            source = torch.where(path > 0, path - 1, target)
            first = self.prefix_length + length[:, None]
            state.cache.move(first + source, first + target)
        if counts is None and isinstance(state.length, int):
            state.codes[:, state.length : state.length + n] = codes
            state.length = state.longest = state.length + n
            return
        length = torch.as_tensor(state.length, device=codes.device).expand(codes.shape[0])
        counts = torch.full_like(length, n) if counts is None else counts
        step_RL = torch.arange(L, device=codes.device) - length[:, None]
        new = (step_RL >= 0) & (step_RL < counts[:, None])
        new = new.view(*new.shape, *(1,) * (codes.ndim - 2))
        state.codes = torch.where(new, take(codes, step_RL.clamp(0, n - 1)), state.codes)
        state.length = (length + counts).clamp(max=L)
        state.longest = int(state.length.max())

    def _ordered(self, order: Tensor | None) -> Tensor | None:
        """Return the order of the codes: the one given, if the plan allows it, or the plan's."""
        if order is None:
            return self.order
        if not self.plan.permutable:
            raise IncompatibleError(
                f"{type(self).__name__} draws codes in one fixed order; leave `order` out, or use "
                "a generator trained on permuted orders, such as RAR."
            )
        steps = torch.arange(self.spec.length, device=order.device)
        if order.shape[-1] != len(steps) or not bool((order.sort(-1).values == steps).all()):
            raise IncompatibleError(
                f"An order must hold each of the {len(steps)} positions exactly once."
            )
        return order

    def _window_mask(self, cond: Cond, window: Window, slots: Tensor) -> Tensor | None:
        """Return the mask of a cached pass, or None when every slot within reach is visible."""
        pattern = self._pattern(cond)
        if pattern is causal and window.n == 1 and isinstance(window.start, int):
            return None
        keys = torch.arange(window.reach, device=slots.device)
        return dense_mask(pattern, slots, keys, rows=mask_rows(cond))


def compute_dtype(weight: Tensor) -> torch.dtype:
    """Return the type that a matmul gives: autocast's when it is on."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def mask_rows(cond: Cond) -> int | None:
    """Return R where the attention pattern differs between rows."""
    return None if cond.mask_BT is None else len(cond)
