"""A drafter that reads the target's hidden vectors: EAGLE's network as LANTERN trains it.

Row i stands for code i: it reads the embedding of code i and the hidden vector with which the
target predicted code i, and predicts the hidden vector with which the target will predict code
i + 1; the target's own head turns it into logits (arXiv 2410.03355, 2401.15077). Rows of the
condition's prefix come first, one fewer than the prefix has.

What the network is made of:
- a linear layer over [embedding of the code, the target's hidden vector]
- Llama blocks with the target's rotary positions, the first without a norm
- no head: the target's own makes logits of what it predicts

Shapes: R rows, B samples, L codes, T prefix tokens, n rows of one pass, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argen.build import build_stored
from argen.errors import CheckpointError, IncompatibleError
from argen.generators.base import LossOutput
from argen.generators.conditioning import Cond
from argen.generators.next_token import NextToken, compute_dtype
from argen.generators.rotary import RotaryTable, rotary_table
from argen.layers.cache import KVCache, Window
from argen.layers.noise import Noise
from argen.layers.steps import arrange
from argen.layers.transformer import Block
from argen.runtime.checkpoint import load_strict, read_part, save_weights
from argen.runtime.files import file_inside, read_json_object, write_json
from argen.spec import CodeSpec

WEIGHTS = "drafter.safetensors"
NOISE_LENGTH = 512  # tokens; the noise on the hidden vectors is given for sequences this long


class FeatureDrafter(nn.Module):
    """Linear layer over [embedding, hidden vector], then Llama blocks, the first without a norm.

    Args:
        spec: discrete codes with one id a position.
        dim: width D of the target's hidden vectors.
        heads: query heads.
        ffn_hidden: hidden width of the feed-forward layer.
        prefix_length: number of the target's prefix tokens T.
        kv_heads: key/value heads.
        layers: number of blocks.
        norm_eps: epsilon of the norms.
        rope: rotary table of the codes, as the target's, see `rotary_table`.
        rope_base: base of the rotary frequencies.
        condition_rope: rotary rows of the prefix, as the target's.
        bias: whether the linear layer has one.
    """

    config: dict[str, Any]

    def __init__(
        self,
        *,
        spec: CodeSpec | dict[str, Any],
        dim: int,
        heads: int,
        ffn_hidden: int,
        prefix_length: int = 1,
        kv_heads: int | None = None,
        layers: int = 1,
        norm_eps: float = 1e-6,
        rope: str | RotaryTable = "2d",
        rope_base: float = 10000.0,
        condition_rope: str = "zero",
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.spec, self.dim, self.prefix_rows = CodeSpec.of(spec), dim, prefix_length - 1
        if self.spec.kind != "discrete" or self.spec.sub_tokens != 1:
            raise IncompatibleError(
                f"FeatureDrafter drafts codes of one id, not {self.spec.describe()}; use "
                "decoder=jacobi, which needs no drafter."
            )
        # Frozen: it is a copy of the target's, and drafts must not drift away from its codes.
        self.embed = nn.Embedding(self.spec.vocab_size, dim).requires_grad_(False)
        self.fc = nn.Linear(2 * dim, dim, bias=bias)
        self.blocks = nn.ModuleList(
            Block(dim, heads, kv_heads=kv_heads, ffn_hidden=ffn_hidden, norm_eps=norm_eps)
            for _ in range(layers)
        )
        self.blocks[0].attention_norm = nn.Identity()
        rows = rotary_table(
            self.spec,
            dim // heads,
            rope,
            base=rope_base,
            prefix=self.prefix_rows,
            prefix_kind=condition_rope,
        )
        self.rope_table: Tensor
        self.register_buffer("rope_table", rows, persistent=False)

    def cache(self, rows: int, longest_tree: int) -> KVCache:
        """Return a cache for R rows, with room for a tree behind the last code."""
        block = self.blocks[0]
        assert isinstance(block, Block)
        weight = block.attention.qkv.weight
        return KVCache(
            layers=len(self.blocks),
            rows=rows,
            heads=block.attention.kv_heads,
            slots=self.prefix_rows + self.spec.length + longest_tree,
            head_dim=block.attention.head_dim,
            dtype=compute_dtype(weight),
            device=weight.device,
        )

    def forward(
        self,
        target: NextToken,
        codes: Tensor,
        cond: Cond,
        *,
        noise: Noise | None = None,
        noise_scale: float = 0.1,
        logit_weight: float = 0.1,
    ) -> LossOutput:
        """Return the training loss, see `loss`: one pass, for hooks and compilers."""
        return self.loss(
            target, codes, cond, noise=noise, noise_scale=noise_scale, logit_weight=logit_weight
        )

    def next_hidden(
        self,
        codes: Tensor,
        hidden: Tensor,
        places: Tensor,
        *,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        window: Window | None = None,
    ) -> Tensor:
        """Predict the target's next hidden vectors (R, n, D).

        Args:
            codes: ids (R, n); 0 in rows of the prefix.
            hidden: the target's hidden vectors (R, n, D), or predicted ones.
            places: which rows of the sequence these are, (n,) or (R, n), prefix rows first.
            mask: (1 or R, 1, n, keys), true where a row may look; causal when None.
            cache: keys and values of the rows before.
            window: where in the cache these rows go.
        """
        x_RnD = self.fc(torch.cat((self.embed(codes).to(hidden.dtype), hidden), dim=-1))
        rope = self.rope_table[places.clamp(max=len(self.rope_table) - 1)]
        rope = rope[:, None] if rope.ndim == 4 else rope  # R 1 n hd/2 2
        for layer, block in enumerate(self.blocks):
            x_RnD = block(
                x_RnD,
                rope=rope,
                mask=mask,
                causal=mask is None,
                cache=cache,
                layer=layer,
                window=window,
            )
        return x_RnD

    def loss(
        self,
        target: NextToken,
        codes: Tensor,
        cond: Cond,
        *,
        noise: Noise | None = None,
        noise_scale: float = 0.1,
        logit_weight: float = 0.1,
    ) -> LossOutput:
        """Return the loss of imitating the target on codes (B, L) of images.

        Smooth L1 distance of the hidden vectors, and the cross entropy of the target's
        distribution of the next code, both over code positions. The metric `kept` is the share of
        drafts, one a position, that plain speculative sampling would accept.

        Args:
            target: the frozen generator.
            codes: in the tokenizer's order.
            cond: from the target's conditioner.
            noise: random numbers of the noise on the hidden vectors; fresh ones when None.
            noise_scale: that noise is uniform in +- this times 512 / sequence length.
            logit_weight: weight of the cross entropy.
        """
        with torch.no_grad():
            codes = arrange(codes, target.order)
            read = target.hidden(codes, cond, order=target.order, prefix=True)  # B T+L-1 D
            wanted = read[:, self.prefix_rows + 1 :]  # B L-1 D
            target_probs = torch.softmax(_logits(target, wanted), dim=-1)
        given, S = read[:, :-1], read.shape[1] - 1
        places = torch.arange(S, device=codes.device)
        if noise is None:
            uniform = torch.rand_like(given)
        else:
            uniform = noise.uniform(places, (self.dim,)).to(given)
        given = given + (2 * uniform - 1) * noise_scale * NOISE_LENGTH / S
        ids = F.pad(codes[:, :-1], (self.prefix_rows, 0))  # B S
        found = self.next_hidden(ids, given, places)[:, self.prefix_rows :]  # B L-1 D
        feature = F.smooth_l1_loss(found, wanted, reduction="none").mean(-1)
        draft_log_probs = torch.log_softmax(_logits(target, found), dim=-1)  # B L-1 V
        logit = -(target_probs * draft_log_probs).sum(-1)
        nll = feature + logit_weight * logit  # B L-1
        kept = torch.minimum(target_probs, draft_log_probs.detach().exp()).sum(-1)
        parts = {"feature": feature, "logit": logit, "kept": kept}
        return LossOutput(nll.mean(), {k: v.detach().mean() for k, v in parts.items()}, nll)


def _logits(target: NextToken, hidden: Tensor) -> Tensor:
    """Return the logits (B, n, V) of the next code that hidden vectors (B, n, D) lead to."""
    outputs = target.head(hidden)
    empty = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
    return target.head.conditional(outputs, empty)[:, :, 0]


def save_drafter(
    drafter: FeatureDrafter, directory: Path | str, *, about: Mapping[str, Any] | None = None
) -> None:
    """Write a drafter that was made by `argen.build.build`: config.json and its weights.

    Args:
        drafter: what is written.
        directory: where; made if need be.
        about: where its weights come from.
    """
    directory = Path(directory)
    sha256 = save_weights(drafter.state_dict(), directory / WEIGHTS)
    # The configuration comes last, so that half a drafter is never read.
    described = {
        "drafter": drafter.config,
        "provenance": {**(about or {})},
        "sha256": {WEIGHTS: sha256},
    }
    write_json(directory / "config.json", described)


def load_drafter(directory: Path | str) -> FeatureDrafter:
    """Read what `save_drafter` wrote; only registered classes are built, as of a model directory.

    Raises:
        CheckpointError: if there is no drafter in the directory, or a damaged one.
    """
    path = file_inside(directory, "config.json")
    config = read_json_object(path) if path.is_file() else {}
    if config.get("drafter") is None:
        raise CheckpointError(f"{directory} holds no drafter: no config.json that describes one.")
    drafter = build_stored(config["drafter"], FeatureDrafter, source=path)
    load_strict(
        drafter, read_part(directory, WEIGHTS, config), source=str(Path(directory) / WEIGHTS)
    )
    return drafter.eval()
