"""Products of a few rows with a matrix as sums over the matrix, for a compiler to fuse on a GPU.

Such a product is bound by reading the matrix. Libraries pad the rows to a tile and split the sum;
a compiler that is shown multiplications and sums reads each weight once and fuses what stands
before and after.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MOST_ROWS = 4


def compile_few_rows(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
    """Compile with inductor, products of up to four rows written out; a `torch.compile` backend."""
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.decomposition import select_decomp_table

    table = {**select_decomp_table(), torch.ops.aten.mm.default: product}
    return compile_fx(graph, inputs, decompositions=table)


def product(rows: Tensor, matrix: Tensor) -> Tensor:
    """Return rows (R, K) times a matrix (K, N), summed in float32.

    `NotImplemented`, which tells the compiler to go on as usual, for many rows or float32.
    """
    if rows.shape[0] > MOST_ROWS or rows.dtype not in (torch.bfloat16, torch.float16):
        return NotImplemented
    wide = matrix.t().float()  # (N, K), as linear layers store their weight
    sums = [(wide * row.float()).sum(-1) for row in rows.unbind(0)]
    return torch.stack(sums).to(rows.dtype)
