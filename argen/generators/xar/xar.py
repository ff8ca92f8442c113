"""xAR: next-X prediction by flow matching, with noisy context (arXiv 2502.20388).

X is an entity, a set of codes that is sampled together by following a velocity field. In training
every entity is noised to a time of its own, so each learns from an imperfect context; in sampling
the context is clean and has time 0.

What the network is made of:
- two stacks of blocks with adaptive norms (`flow_transformer.py`) over noisy codes, conditioned on
  the time of each entity and the condition's vector
- a flow head, which follows the velocities that the network predicts (`heads/flow.py`)

Shapes: B batch, R rows (B, doubled under guidance), S places of the sequence (coarse maps, then
the L codes), E entities, n places of one entity, C code width, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from argen.generators.base import Generator, LossOutput
from argen.generators.conditioning import Cond, Conditioner, condition_vector
from argen.generators.heads.flow import FlowHead, Velocity, interpolate
from argen.generators.xar.entities import entities
from argen.generators.xar.flow_transformer import FlowTransformer
from argen.layers.cache import KVCache, ReadOnlyView, Window
from argen.layers.init import init_embeddings
from argen.layers.masks import block_causal, dense_mask
from argen.layers.noise import Noise
from argen.spec import CodeSpec

TIME, NOISE = 1, 2  # the uses of the random numbers of the loss


@dataclass
class XARNoise:
    """The random numbers of the training loss.

    Attributes:
        t_BE: time of each entity, in (0, 1).
        noise_BSC: standard normal noise of each place, in the order of the sequence.
    """

    t_BE: Tensor
    noise_BSC: Tensor


@dataclass
class XARState:
    """Decoding state of R rows.

    Attributes:
        vector_RD: the condition vectors.
        sequence_RSC: what is fixed; places of later entities mean nothing.
        done: number of fixed entities, coarse maps included.
        cached: number of them whose keys and values are in the caches.
        caches: one for each of the two stacks.
    """

    vector_RD: Tensor
    sequence_RSC: Tensor
    done: int
    cached: int
    caches: list[KVCache]


class XAR(Generator):
    """Two stacks of adaptively normed blocks, causal between entities, full within one.

    Args:
        spec: continuous codes.
        conditioner: gives the condition vector, of width `dim`.
        dim: model width D.
        depth: blocks of the first stack.
        heads: its attention heads.
        second_depth: blocks of the second stack, which has its own position table; as many as
            in the first when None.
        second_heads: attention heads of the second stack; as in the first when None.
        mlp_ratio: the gated feed-forward layers are 2/3 of this times `dim` wide.
        entity: what is sampled together: `token`, `cell`, `subsample`, `scale` or `image`.
        entity_size: side of a cell, stride of a subsample or number of scales, see `entities`.
        rope_base: base of the rotary frequencies.
        sampler: `euler_maruyama` or `euler`, see `FlowHead`.
        sampling_steps: evaluations of the field for each entity.
        guidance_interval: times between which guidance acts.
        dropout: dropout after attention.
        attention_dropout: dropout of attention weights.
    """

    def __init__(
        self,
        *,
        spec: CodeSpec | dict[str, Any],
        conditioner: Conditioner,
        dim: int,
        depth: int,
        heads: int,
        second_depth: int | None = None,
        second_heads: int | None = None,
        mlp_ratio: float = 4.0,
        entity: str = "cell",
        entity_size: int | None = None,
        rope_base: float = 10000.0,
        sampler: str = "euler_maruyama",
        sampling_steps: int = 50,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.spec = CodeSpec.of(spec)
        self.require_vectors(self.spec)
        self.entities = entities(self.spec, entity, entity_size)
        self.plan = self.entities.plan
        self.conditioner = conditioner
        self.lengths = self.entities.lengths
        self.starts = [sum(self.lengths[:e]) for e in range(len(self.lengths) + 1)]
        self.network = FlowTransformer(
            code_dim=self.spec.dim,
            places=self.entities.places,
            dim=dim,
            depth=depth,
            heads=heads,
            second_depth=depth if second_depth is None else second_depth,
            second_heads=heads if second_heads is None else second_heads,
            mlp_ratio=mlp_ratio,
            rope_base=rope_base,
            dropout=dropout,
            attention_dropout=attention_dropout,
        )
        self.head: FlowHead = FlowHead(
            sampler=sampler, steps=sampling_steps, interval=guidance_interval
        )
        self.entity_of: Tensor
        self.order: Tensor
        self.register_buffer("entity_of", self.entities.numbers(), persistent=False)
        self.register_buffer("order", self.entities.order(), persistent=False)
        init_embeddings(conditioner, 0.02)

    def loss(
        self,
        codes: Tensor,
        cond: Cond,
        *,
        noise: Noise | None = None,
        draws: XARNoise | None = None,
    ) -> LossOutput:
        """Return the mean squared error of the velocities of codes (B, L, C).

        Args:
            codes: unit-scale latents.
            cond: their conditions.
            noise: where the random numbers come from; torch's generator when None.
            draws: the random numbers themselves, for exact replay.
        """
        draws = self.sample_noise(len(cond), noise=noise) if draws is None else draws
        sequence = self.entities.sequence(codes.float())  # B S C
        x = interpolate(sequence, draws.noise_BSC, draws.t_BE[:, self.entity_of])
        velocity = self.velocity(x, draws.t_BE, cond)
        error_BS = self.head.loss(velocity, sequence, noise=draws.noise_BSC)
        return LossOutput(error_BS.mean())

    def sample_noise(self, batch: int, *, noise: Noise | None = None) -> XARNoise:
        """Sample logit-normal times and noise for a training batch."""
        E, S, C, device = len(self.lengths), self.starts[-1], self.spec.dim, self.order.device
        if noise is None:
            normal = torch.randn(batch, E, device=device)
            noise_BSC = torch.randn(batch, S, C, device=device)
        else:
            normal = noise.normal(torch.arange(E), use=TIME).to(device)
            noise_BSC = noise.normal(torch.arange(S), (C,), use=NOISE).to(device)
        return XARNoise(torch.sigmoid(normal), noise_BSC)

    def velocity(self, x_BSC: Tensor, t_BE: Tensor, cond: Cond) -> Tensor:
        """Return velocities (B, S, C) of a sequence whose entities have times `t_BE`."""
        slots = torch.arange(x_BSC.shape[1], device=x_BSC.device)
        mask = dense_mask(block_causal(self.entity_of), slots, slots)
        times = (t_BE.float() * 1000).long()
        return self.network(x_BSC, times, condition_vector(cond), slots, self.entity_of, mask=mask)

    def score(self, codes: Tensor, cond: Cond) -> Any:
        """Return the `Velocity` of all codes (B, L, C), each entity given the clean ones before it.

        One pass over twice the sequence: clean entities at time 0, then the codes at the time
        given.
        """
        vector, first = condition_vector(cond), self.starts[len(self.entities.coarse)]
        clean = self.entities.sequence(codes.float())  # B S C
        S, device = clean.shape[1], clean.device
        places = torch.cat((torch.arange(S), torch.arange(first, S))).to(device)
        entity = self.entity_of[places]
        noisy = torch.arange(len(places), device=device) >= S

        def allowed(row: Tensor, q: Tensor, k: Tensor) -> Tensor:
            earlier, same = entity[k] < entity[q], entity[k] == entity[q]
            return (~noisy[k] & earlier) | (same & (noisy[k] == noisy[q]))

        index = torch.arange(len(places), device=device)
        mask = dense_mask(allowed, index, index)
        return SequenceVelocity(self, clean, vector, places, noisy.long(), mask)

    def start(self, cond: Cond, *, longest_draft: int = 0) -> XARState:
        """Allocate sequence and caches for R = len(cond) rows."""
        self.refuse_drafts(longest_draft > 0, use="decoder=sequential")
        vector = condition_vector(cond)
        caches = self.network.caches(len(vector))
        sequence = torch.zeros(
            len(vector), self.starts[-1], self.spec.dim, device=self.order.device
        )
        return XARState(vector, sequence, done=0, cached=0, caches=caches)

    def predict(self, state: XARState, draft: Tensor | None = None) -> Any:
        """Return the `Velocity` of the next entity; it stays valid as the state moves on."""
        self.refuse_drafts(draft is not None, use="decoder=sequential")
        for entity in range(state.cached, state.done):
            clean = state.sequence_RSC[:, self.starts[entity] : self.starts[entity + 1]]
            self.one_entity(clean, 0, state.vector_RD, entity, state.caches)
        state.cached = state.done
        caches: list[KVCache] = [ReadOnlyView(cache) for cache in state.caches]

        return EntityVelocity(self, state, state.done, caches)

    def commit(self, state: XARState, codes: Tensor, counts: Tensor | None = None) -> None:
        """Fix the codes (R, n, C) of the next entity."""
        self.refuse_drafts(counts is not None, use="decoder=sequential")
        coarse = len(self.entities.coarse)
        if state.done < coarse and codes.shape[1] == self.spec.length:
            # Given codes, not drawn ones: their coarse maps follow from them.
            state.sequence_RSC = self.entities.sequence(codes.to(state.sequence_RSC.dtype))
            state.done = len(self.lengths)
            return
        self.fix(state, codes)

    def fix(self, state: XARState, values: Tensor) -> None:
        """Fix the next entity, codes or coarse map, (R, n, C)."""
        first, end = self.starts[state.done], self.starts[state.done + 1]
        state.sequence_RSC = torch.cat(
            (
                state.sequence_RSC[:, :first],
                values.to(state.sequence_RSC.dtype),
                state.sequence_RSC[:, end:],
            ),
            dim=1,
        )
        state.done += 1

    def one_entity(
        self, x_RnC: Tensor, time: int, vector_RD: Tensor, entity: int, caches: list[KVCache]
    ) -> Tensor:
        """Run one entity at one time, after what the caches hold."""
        first, end = self.starts[entity], self.starts[entity + 1]
        slots = torch.arange(first, end, device=x_RnC.device)
        times = torch.full((len(vector_RD), 1), time, device=x_RnC.device)
        window = Window(start=first, n=end - first, reach=end)
        first_time = torch.zeros_like(slots)
        return self.network(
            x_RnC, times, vector_RD, slots, first_time, caches=caches, window=window
        )


def whole_time(t: float) -> int:
    """Return the whole number that stands for a time: 1000 t in float32, cut off."""
    return int(torch.tensor(t, dtype=torch.float32, device="cpu") * 1000)


class EntityVelocity(Velocity):
    """The field of one entity behind what is fixed; it stays valid as the state moves on.

    Args:
        model: the generator.
        state: its state.
        entity: number of the entity.
        caches: read-only views of what the state held, one a stack.
    """

    def __init__(self, model: XAR, state: XARState, entity: int, caches: list[KVCache]) -> None:
        self.model, self.state, self.entity, self.caches = model, state, entity, caches
        length = model.lengths[entity]
        self.shape = (len(state.vector_RD), length, model.spec.dim)
        self.device = model.order.device
        self.is_context = entity < len(model.entities.coarse)
        if self.is_context:
            # Keys beyond the codes' own positions, so that no random number is used twice.
            first = model.spec.length + model.starts[entity]
            self.positions = torch.arange(first, first + length)

    def __call__(self, x: Tensor, t: float) -> Tensor:
        """Return the velocities (R, n, C) at points `x` and time `t`."""
        vector = self.state.vector_RD
        return self.model.one_entity(x, whole_time(t), vector, self.entity, self.caches)

    def after(self, context_BnC: Tensor) -> Velocity:
        """Fix a coarse map in all rows; returns the field of the next entity."""
        copies = len(self.state.vector_RD) // len(context_BnC)
        self.model.fix(self.state, context_BnC.repeat(copies, 1, 1))
        return self.model.predict(self.state)


class SequenceVelocity(Velocity):
    """The field of all codes, each entity given the clean ones before it (teacher forcing).

    Args:
        model: the generator.
        clean_BSC: the clean sequence.
        vector: condition vectors (B, D).
        places: of the clean sequence and behind it of the codes, long (n,).
        noisy: 1 for the places that have the time asked for, 0 for the clean ones, long (n,).
        mask: which places each sees, (n, n).
    """

    def __init__(
        self,
        model: XAR,
        clean_BSC: Tensor,
        vector: Tensor,
        places: Tensor,
        noisy: Tensor,
        mask: Tensor,
    ) -> None:
        self.model, self.clean_BSC, self.vector = model, clean_BSC, vector
        self.places, self.noisy, self.mask = places, noisy, mask
        self.shape = (len(vector), model.spec.length, model.spec.dim)
        self.device = clean_BSC.device

    def __call__(self, x: Tensor, t: float) -> Tensor:
        """Return the velocities (B, L, C) at points `x` and time `t`."""
        clean, order = self.clean_BSC, self.model.order
        both = torch.cat((clean, x[:, order].to(clean)), dim=1)
        times = torch.tensor([[0, whole_time(t)]], device=self.device)
        times = times.expand(len(self.vector), -1)
        network = self.model.network
        found = network(both, times, self.vector, self.places, self.noisy, mask=self.mask)
        return found[:, clean.shape[1] :][:, order.argsort()]
