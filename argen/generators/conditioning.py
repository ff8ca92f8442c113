"""Conditions: from labels or text features to what a network reads, with a null twin for guidance.

The null condition is a row of the same table (or a stored buffer), so every parameter takes part
in every training step and distributed training never meets an unused one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from argen.errors import SpecError, UserError
from argen.text.features import TextFeatures, TextSpec, require_same_text


@dataclass
class Cond:
    """A batch of conditions; a network uses the parts it needs.

    Attributes:
        vector_BD: one vector a sample, for modulation.
        tokens_BTD: a prefix of T tokens.
        mask_BT: true for the valid tokens of the prefix; None when all are.
        inputs: the labels or text features it was made from, for a second network with a
            conditioner of its own (a draft model); None where some were dropped or rows stacked.
    """

    vector_BD: Tensor | None = None
    tokens_BTD: Tensor | None = None
    mask_BT: Tensor | None = None
    inputs: Any = None

    def __len__(self) -> int:
        part = self.vector_BD if self.vector_BD is not None else self.tokens_BTD
        if part is None:
            raise ValueError("An empty condition has no length.")
        return part.shape[0]

    def tensors(self) -> tuple[Tensor | None, ...]:
        """Return every tensor that a network reads, None where there is none."""
        return tuple(getattr(self, name) for name in _READ)

    def map(self, function: Any) -> Cond:
        """Apply a function to every tensor that a network reads."""
        parts = {name: getattr(self, name) for name in _READ}
        mapped = {k: None if v is None else function(v) for k, v in parts.items()}
        return Cond(**mapped, inputs=self.inputs)

    def cat(self, other: Cond) -> Cond:
        """Stack the rows of two conditions."""
        parts = {}
        for name in _READ:
            a, b = getattr(self, name), getattr(other, name)
            parts[name] = None if a is None else torch.cat((a, b))
        return Cond(**parts)

    def rows(self, index: Tensor | slice) -> Cond:
        """Pick rows."""
        picked = self.map(lambda part: part[index])
        picked.inputs = None if self.inputs is None else self.inputs[index]
        return picked


_READ = ("vector_BD", "tokens_BTD", "mask_BT")


class Conditioner(nn.Module, ABC):
    """Turns labels or text features into a `Cond`.

    Attributes:
        drop_rate: share of training conditions replaced by the null one.
        has_null: whether there is a null condition, which guidance needs.
        length: number of prefix tokens T.
    """

    drop_rate: float
    has_null: bool
    length: int

    @abstractmethod
    def forward(self, inputs: Any, *, drop_B: Tensor | None = None) -> Cond:
        """Encode inputs; where `drop_B` is true the null condition takes their place.

        Where nothing is dropped, the result also carries the inputs themselves, for strategies
        with a second network.
        """

    @abstractmethod
    def null(self, cond: Cond) -> Cond:
        """Return the unconditional twin of `cond`, same shapes."""

    def of_batch(self, batch: Mapping[str, Tensor]) -> Any:
        """Return what this conditioner reads of a batch of codes: their labels, unless it says."""
        return batch["label"]

    def require_null(self) -> None:
        """Raise unless there is a null condition."""
        if not self.has_null:
            raise UserError(
                "Guidance needs a null condition and this model was trained without one "
                "(drop_rate=0). Sample with cfg=1, or train with conditioner.drop_rate=0.1."
            )


def condition_vector(cond: Cond) -> Tensor:
    """Return what modulates blocks, (R, D): the condition's vector, or the mean of its tokens."""
    if cond.vector_BD is not None:
        return cond.vector_BD
    if cond.tokens_BTD is None:
        raise UserError("Adaptive norms need a condition; use a class or text conditioner.")
    if cond.mask_BT is None:
        return cond.tokens_BTD.mean(1)
    valid_BT1 = cond.mask_BT.to(cond.tokens_BTD.dtype)[..., None]
    return (cond.tokens_BTD * valid_BT1).sum(1) / valid_BT1.sum(1).clamp(min=1)


class ClassConditioner(Conditioner):
    """One learned row a class; the last row is the null class.

    Args:
        num_classes: number of classes.
        dim: width D of a row.
        drop_rate: share of labels dropped in training.
        null_row: whether the table has the null row; when None, if labels are ever dropped.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        drop_rate: float = 0.1,
        null_row: bool | None = None,
    ) -> None:
        super().__init__()
        self.num_classes, self.drop_rate, self.length = num_classes, drop_rate, 1
        self.has_null = drop_rate > 0 if null_row is None else null_row
        self.table = nn.Embedding(num_classes + int(self.has_null), dim)

    def forward(self, inputs: Tensor, *, drop_B: Tensor | None = None) -> Cond:
        """Encode labels (B,), each in [0, num_classes), or equal to it for the null class."""
        if inputs.numel() and not torch.compiler.is_compiling() and inputs.device.type == "cpu":
            low, high = int(inputs.min()), int(inputs.max())
            if low < 0 or high >= self.table.num_embeddings:
                raise UserError(
                    f"Labels lie in [{low}, {high}], but this model knows {self.num_classes} "
                    f"classes, 0 to {self.num_classes - 1}."
                )
        labels = inputs
        if drop_B is not None:
            if drop_B.any():
                self.require_null()
            labels = torch.where(drop_B.bool(), self.num_classes, inputs)
        vector_BD = self.table(labels)
        return Cond(
            vector_BD=vector_BD,
            tokens_BTD=vector_BD[:, None],
            inputs=inputs if drop_B is None else None,
        )

    def null(self, cond: Cond) -> Cond:
        """Return the null class for every row."""
        self.require_null()
        label = torch.full((len(cond),), self.num_classes, device=self.table.weight.device)
        return self(label)


class TextConditioner(Conditioner):
    """Projects text features to a token prefix with a two-layer GELU network.

    The null caption is a buffer of random features, stored but never trained, as in LlamaGen
    (arXiv 2406.06525); its mask is that of the caption it stands in for.

    Args:
        feature_dim: width F of the features.
        dim: width D of the prefix tokens.
        length: number of text tokens T.
        drop_rate: share of captions dropped in training.
        null_length: rows of the stored null caption, at least `length`.
        text: what made the features it is trained on; None when that is not known.

    Raises:
        SpecError: if `text` makes features of another size.
    """

    def __init__(
        self,
        feature_dim: int,
        dim: int,
        *,
        length: int = 120,
        drop_rate: float = 0.1,
        null_length: int | None = None,
        text: TextSpec | dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.text = None if text is None else TextSpec.of(text)
        if self.text is not None and (self.text.length, self.text.dim) != (length, feature_dim):
            raise SpecError(
                f"The text features are those of {self.text.describe()}, but this generator is "
                f"built for {length} tokens, {feature_dim} wide: set generator.conditioner.length="
                f"{self.text.length} generator.conditioner.feature_dim={self.text.dim}, or use the "
                f"encoder that it was made for."
            )
        self.feature_dim, self.length, self.drop_rate = feature_dim, length, drop_rate
        self.has_null = True
        rows = max(length, null_length or length)
        self.fc1 = nn.Linear(feature_dim, dim, bias=False)
        self.fc2 = nn.Linear(dim, dim, bias=False)
        self.null_caption: Tensor
        self.register_buffer("null_caption", torch.randn(rows, feature_dim) / feature_dim**0.5)

    def forward(self, inputs: TextFeatures, *, drop_B: Tensor | None = None) -> Cond:
        """Encode text features."""
        if inputs.spec is not None and self.text is not None:
            require_same_text(
                inputs.spec,
                self.text,
                found_in="The condition",
                wanted_by="this generator",
                fix="encode the text with the encoder it was trained with",
            )
        features = inputs.features_BTF.to(self.fc1.weight.dtype)
        if features.shape[1:] != (self.length, self.feature_dim):
            raise UserError(
                f"Text features of shape {tuple(features.shape[1:])} do not fit: this model reads "
                f"({self.length}, {self.feature_dim}). Encode the text with the encoder it was "
                "trained with."
            )
        if drop_B is not None:
            null = self.null_caption[: self.length].to(features.dtype)
            features = torch.where(drop_B.bool()[:, None, None], null, features)
        tokens_BTD = self.fc2(F.gelu(self.fc1(features), approximate="tanh"))
        return Cond(
            tokens_BTD=tokens_BTD,
            mask_BT=inputs.mask_BT,
            inputs=inputs if drop_B is None else None,
        )

    def of_batch(self, batch: Mapping[str, Tensor]) -> TextFeatures:
        """Return the stored text features and their mask.

        Raises:
            UserError: if the codes have none.
        """
        if "text" not in batch:
            raise UserError(
                "This generator reads text, but the codes have no text features: write them with "
                "text_encoder=minilm, or text_encoder=pretrained text_encoder.path=DIR."
            )
        return TextFeatures(batch["text"].float(), batch["text_mask"].bool())

    def null(self, cond: Cond) -> Cond:
        """Return the null caption under the masks of `cond`."""
        rows = len(cond)
        features = self.null_caption[: self.length].expand(rows, -1, -1)
        features = features.to(self.fc1.weight.dtype)
        mask = cond.mask_BT
        if mask is None:
            mask = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        return self(TextFeatures(features, mask, self.text))
