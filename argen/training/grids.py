"""Images to look at while a stage trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from argen.images.files import save_image
from argen.images.grid import draw_grid
from argen.pipeline import Pipeline
from argen.text.reader import TextReader
from argen.tokenizers.base import Tokenizer
from argen.training.loggers import log_image


def reconstruction_grid(tokenizer: Tokenizer, images: Tensor) -> Any:
    """Return originals above their reconstructions.

    Args:
        tokenizer: encodes and decodes.
        images: (n, 3, H, W) in [-1, 1].
    """
    with torch.inference_mode():
        device = next(tokenizer.parameters()).device
        decoded = tokenizer.decode(tokenizer.encode(images.to(device))).float().clamp(-1, 1)
    rows = [("held-out images", images), ("reconstructed from their codes", decoded.cpu())]
    return draw_grid(rows, columns=16)


class ReconstructionGrid(Callback):
    """Draws held-out images and their reconstructions after each validation.

    Args:
        images: (n, 3, H, W) in [-1, 1].
        directory: where `step-N.png` goes.
    """

    def __init__(self, images: Tensor, directory: Path) -> None:
        self.images, self.directory = images, directory

    @rank_zero_only
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, unless this is the sanity check before training."""
        if not trainer.sanity_checking:
            image = reconstruction_grid(pl_module.tokenizer, self.images)  # type: ignore[arg-type]
            _publish(trainer, image, self.directory, "reconstructions")


class SampleGrid(Callback):
    """Draws a grid of new images, one row a class or text, after each validation.

    Args:
        tokenizer: decodes what the generator draws.
        class_names: in the order of the labels.
        directory: where `step-N.png` goes.
        per_class: images a row.
        most_classes: rows at most.
        texts: one a row, in place of classes.
        reader: reads them.
        settings: sampling settings, as for `Pipeline`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        class_names: tuple[str, ...],
        directory: Path,
        *,
        per_class: int = 8,
        most_classes: int = 10,
        texts: Sequence[str] = (),
        reader: TextReader | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.tokenizer, self.class_names, self.directory = tokenizer, class_names, directory
        self.per_class, self.most_classes = per_class, most_classes
        self.texts, self.reader = list(texts), reader
        self.settings = settings or {}

    @rank_zero_only
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, unless this is the sanity check before training."""
        if trainer.sanity_checking:
            return
        generator: Any = pl_module.generator
        training = generator.training
        pipe = Pipeline(
            tokenizer=self.tokenizer.to(pl_module.device),
            generator=generator,
            class_names=self.class_names,
            defaults=self.settings,
            text=self.reader,
        )
        asked: Any = {"text": self.texts}
        if not self.texts:
            asked = {"classes": pipe.labels("all")[: self.most_classes]}
        samples = pipe(**asked, n=self.per_class, seed=0, batch_size=64)
        generator.train(training)
        _publish(trainer, samples.grid(), self.directory, "samples")


def _publish(trainer: Trainer, image: Any, directory: Path, name: str) -> None:
    """Write a grid beside the checkpoints, and hand it to loggers that take images."""
    save_image(image, directory / f"step-{trainer.global_step:07d}.png")
    log_image(trainer, name, image)
