"""The network of xAR: two stacks of adaptively normed blocks that predict velocities.

Made of (arXiv 2502.20388):
- a linear input layer, learned absolute positions, an RMSNorm
- two stacks of blocks: RMSNorm without weights, adaptive norms, attention with 2-D rotary
  positions, GEGLU, biases; each ends in an RMSNorm, and a linear layer lies between them
- a linear output layer to velocities

Shapes: R rows, n places of the sequence, K times, C code width, D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from argen.generators.next_token import compute_dtype
from argen.layers.adaln import AdaLNBlock
from argen.layers.cache import KVCache, Window
from argen.layers.init import init_xavier
from argen.layers.norms import RMSNorm
from argen.layers.rope import rope_table_at
from argen.layers.timestep import TimestepEmbedding


class FlowTransformer(nn.Module):
    """Maps noisy codes, their times and a condition vector to velocities.

    Args:
        code_dim: C.
        places: row and column of each place of the sequence, for the rotary positions.
        dim: model width D.
        depth: blocks of the first stack.
        heads: its attention heads.
        second_depth: blocks of the second stack, which has its own position table.
        second_heads: its attention heads.
        mlp_ratio: the gated feed-forward layers are 2/3 of this times `dim` wide.
        rope_base: base of the rotary frequencies.
        dropout: dropout after attention.
        attention_dropout: dropout of attention weights.
    """

    def __init__(
        self,
        *,
        code_dim: int,
        places: tuple[tuple[float, float], ...],
        dim: int,
        depth: int,
        heads: int,
        second_depth: int,
        second_heads: int,
        mlp_ratio: float = 4.0,
        rope_base: float = 10000.0,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads, self.length = (heads, second_heads), len(places)
        # 1. Time and inputs.
        self.time = TimestepEmbedding(dim)
        self.input = nn.Linear(code_dim, dim)
        self.first_positions = nn.Parameter(torch.empty(1, self.length, dim))
        self.input_norm = RMSNorm(dim, 1e-6)
        self.second_input = nn.Linear(dim, dim)
        self.second_positions = nn.Parameter(torch.empty(1, self.length, dim))

        # 2. Blocks.
        def stack(count: int, heads: int) -> nn.ModuleList:
            return nn.ModuleList(
                AdaLNBlock(
                    dim,
                    heads,
                    norm="rms_plain",
                    norm_eps=1e-6,
                    ffn="geglu",
                    ffn_hidden=int(dim * mlp_ratio * 2 / 3),
                    bias=True,
                    residual_dropout=dropout,
                    attention_dropout=attention_dropout,
                )
                for _ in range(count)
            )

        self.first_blocks, self.first_norm = stack(depth, heads), RMSNorm(dim, 1e-6)
        self.second_blocks, self.second_norm = stack(second_depth, second_heads), RMSNorm(dim, 1e-6)
        # 3. Output.
        self.out = nn.Linear(dim, code_dim)
        # 4. Rotary positions.
        self.first_rope: Tensor
        self.second_rope: Tensor
        rows, columns = torch.tensor(places).unbind(-1)
        for name, count in (("first_rope", heads), ("second_rope", second_heads)):
            table = rope_table_at(rows, columns, dim // count, base=rope_base)
            self.register_buffer(name, table, persistent=False)
        self._init_weights()

    def _init_weights(self) -> None:
        init_xavier(self)
        for table in (self.first_positions, self.second_positions):
            nn.init.normal_(table, std=0.02)
        nn.init.normal_(self.time.fc1.weight, std=0.02)
        nn.init.normal_(self.time.fc2.weight, std=0.02)
        # Blocks start as the identity and velocities at zero (DiT, arXiv 2212.09748).
        for block in (*self.first_blocks, *self.second_blocks):
            assert isinstance(block, AdaLNBlock)
            assert block.modulation is not None
            nn.init.zeros_(block.modulation.proj.weight)
        nn.init.zeros_(self.out.weight)

    def caches(self, rows: int) -> list[KVCache]:
        """Return empty caches for the whole sequence, one a stack."""
        weight = self.out.weight
        return [
            KVCache(
                layers=len(blocks),
                rows=rows,
                heads=heads,
                slots=self.length,
                head_dim=2 * rope.shape[1],
                dtype=compute_dtype(weight),
                device=weight.device,
            )
            for blocks, rope, heads in (
                (self.first_blocks, self.first_rope, self.heads[0]),
                (self.second_blocks, self.second_rope, self.heads[1]),
            )
        ]

    def forward(
        self,
        x: Tensor,
        times: Tensor,
        vector: Tensor,
        places: Tensor,
        time_index: Tensor,
        *,
        mask: Tensor | None = None,
        caches: list[KVCache] | None = None,
        window: Window | None = None,
    ) -> Tensor:
        """Return velocities (R, n, C), float32, of codes at `places` of the sequence.

        Args:
            x: (R, n, C).
            times: 0 .. 1000, long (R, K).
            vector: condition vectors (R, D).
            places: long (n,).
            time_index: which of the K times each place has, long (n,).
            mask: true where a query may look.
            caches: one a stack.
            window: where in the caches these places go.
        """
        cond = vector[:, None] + self.time(times)  # R K D
        h = self.input(x.to(self.input.weight.dtype)) + self.first_positions[:, places]  # R n D
        h = self.input_norm(h)
        for i, (blocks, norm, rope) in enumerate(
            (
                (self.first_blocks, self.first_norm, self.first_rope),
                (self.second_blocks, self.second_norm, self.second_rope),
            )
        ):
            if i == 1:
                h = self.second_input(h) + self.second_positions[:, places]
            for layer, block in enumerate(blocks):
                h = block(
                    h,
                    cond=cond,
                    cond_index=time_index,
                    rope=rope[places],
                    mask=mask,
                    cache=None if caches is None else caches[i],
                    layer=layer,
                    window=window,
                )
            h = norm(h)
        return self.out(h).float()
