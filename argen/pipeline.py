"""Tokenizer, generator and decoder in one object: the only place that can draw a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from argen.classes import class_ids
from argen.controls import controls
from argen.decoding.base import Decoder, Observer
from argen.decoding.default import default_decoder
from argen.errors import UserError
from argen.generators.base import Generator
from argen.layers.noise import SeededNoise
from argen.model_directory import read_model, write_model
from argen.samples import Samples
from argen.spec import require_same_spec
from argen.tokenizers.base import Tokenizer


@dataclass
class Pipeline:
    """Draws pictures: `pipe(["cat"], n=4, seed=0)`.

    Attributes:
        tokenizer: images to codes and back.
        generator: models the codes; None for a tokenizer alone, which only encodes and decodes.
        decoder: the default decoding strategy; the plainest that fits the generator when None.
        class_names: in the order of the labels; empty when not known.
        defaults: sampling settings that stand when a call does not name them (cfg, top_k, ...).
        provenance: where the weights come from: which copy (ema or raw), step, commit, data.
    """

    tokenizer: Tokenizer
    generator: Generator | None = None
    decoder: Decoder | None = None
    class_names: tuple[str, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tokenizer.eval()
        if self.generator is not None:
            require_same_spec(
                self.tokenizer.spec,
                self.generator.spec,
                found_in="the tokenizer",
                wanted_by="the generator",
            )
            self.generator.eval()
            self.generator.bind(self.tokenizer)

    @property
    def device(self) -> torch.device:
        """Where the parts are."""
        return next(self.tokenizer.parameters()).device

    def to(self, device: torch.device | str) -> Pipeline:
        """Move both parts."""
        self.tokenizer.to(device)
        if self.generator is not None:
            self.generator.to(device)
        return self

    def to_dtype(self, dtype: torch.dtype) -> Pipeline:
        """Convert the weights, e.g. to bfloat16 for speed."""
        self.tokenizer.to(dtype)
        if self.generator is not None:
            self.generator.to(dtype)
        return self

    def labels(self, classes: Any) -> list[int]:
        """Return class ids of names, ids, a mixture of both, or "all".

        Raises:
            UserError: for a class this model does not know, with close matches.
        """
        return class_ids(classes, self.class_names, count=self._num_classes())

    def __call__(
        self,
        classes: Any = "all",
        n: int = 1,
        *,
        seed: int = 0,
        batch_size: int = 32,
        decoder: Decoder | None = None,
        observer: Observer | None = None,
        known: tuple[Tensor, Tensor] | None = None,
        **settings: Any,
    ) -> Samples:
        """Draw `n` pictures of every class.

        Args:
            classes: names, ids or "all".
            n: pictures a class.
            seed: picture i of the call has seed `seed + i`, whatever the batch size.
            batch_size: pictures drawn at once.
            decoder: strategy of this call; the pipeline's own when None.
            observer: is told of finished codes as they come.
            known: positions (n,) and codes (n, ...) that every picture is given, for completion
                and inpainting; see `argen.inpainting.known_codes`.
            **settings: see `argen.controls`: cfg (guidance scale), cfg_schedule, ...,
                temperature, top_k, top_p, min_p.

        Returns:
            the pictures, class by class.
        """
        labels = [label for label in self.labels(classes) for _ in range(n)]
        if n < 1:
            raise UserError(f"n={n}: ask for at least one picture a class.")
        seeds = [seed + i for i in range(len(labels))]
        parts = list(
            self.batches(
                labels,
                seeds,
                batch_size=batch_size,
                decoder=decoder,
                observer=observer,
                known=known,
                **settings,
            )
        )
        names = [self.class_names[i] if self.class_names else str(i) for i in labels]
        return Samples(
            images=torch.cat([p.images for p in parts]),
            codes=torch.cat([p.codes for p in parts]),
            labels=torch.tensor(labels),
            names=names,
            seeds=seeds,
            passes=parts[0].passes,
            exact=parts[0].exact,
        )

    @torch.inference_mode()
    def batches(
        self,
        labels: Sequence[int],
        seeds: Sequence[int],
        *,
        batch_size: int = 32,
        decoder: Decoder | None = None,
        observer: Observer | None = None,
        known: tuple[Tensor, Tensor] | None = None,
        **settings: Any,
    ) -> Iterator[Samples]:
        """Draw one picture for each label and seed, a batch at a time; settings as in a call."""
        generator = self._generator()
        decoder = self.strategy(decoder, known=known is not None)
        guidance, filters = controls(settings, self.defaults)
        if guidance.active:
            generator.conditioner.require_null()
        if generator.spec.kind == "discrete":
            filters.check(max(max(s.vocab_sizes) for s in generator.spec.segments))
        for start in range(0, len(labels), batch_size):
            label, own = labels[start : start + batch_size], seeds[start : start + batch_size]
            inputs = torch.tensor(label, device=self.device)
            with _full_precision(self.device):
                result = decoder(
                    generator,
                    generator.conditioner(inputs),
                    guidance=guidance,
                    filters=filters,
                    noise=SeededNoise(own, device=self.device),
                    observer=observer,
                    **({} if known is None else {"known": known}),
                )
                if result.latents is None:
                    images = self.tokenizer.decode(result.codes)
                else:
                    images = cast(Any, self.tokenizer).decode_latents(result.latents)
                images = images.float().clamp(-1, 1)
            yield Samples(
                images=images.cpu(),
                codes=result.codes.cpu(),
                labels=torch.tensor(label),
                names=[self.class_names[i] if self.class_names else str(i) for i in label],
                seeds=list(own),
                passes=result.passes,
                exact=decoder.exact,
            )

    @torch.inference_mode()
    def encode(self, images: Tensor, **options: Any) -> Tensor:
        """Return the codes of images (B, 3, H, W) in [-1, 1]."""
        return self.tokenizer.encode(images.to(self.device), **options)

    @torch.inference_mode()
    def decode(self, codes: Tensor, **options: Any) -> Tensor:
        """Return the images (B, 3, H, W), in [-1, 1], of codes."""
        return self.tokenizer.decode(codes.to(self.device), **options).clamp(-1, 1)

    def strategy(self, decoder: Decoder | None = None, *, known: bool = False) -> Decoder:
        """Return the strategy that a call would use, checked against the generator.

        Args:
            decoder: the one asked for; the pipeline's own, or the plainest that fits, when None.
            known: whether codes will be given beforehand.

        Raises:
            IncompatibleError: if it cannot drive the generator, or take codes that are given.
        """
        generator = self._generator()
        decoder = decoder or self.decoder or default_decoder(generator, known=known)
        if known:
            decoder.require_known()
        decoder.bind(self.tokenizer)
        decoder.check(generator)
        return decoder

    def _generator(self) -> Generator:
        if self.generator is None:
            raise UserError(
                "This model is a tokenizer alone: it encodes and decodes, but has no generator to "
                "draw with. Train one on its codes: argen train stage=generator."
            )
        return self.generator

    def _num_classes(self) -> int:
        conditioner = self._generator().conditioner
        count = getattr(conditioner, "num_classes", None)
        if count is None:
            raise UserError(
                f"This model's {type(conditioner).__name__} takes no classes, so it cannot be "
                "asked for one."
            )
        return int(count)

    def save(self, directory: Path | str) -> None:
        """Write a model directory; see `argen.model_directory`."""
        write_model(
            directory,
            tokenizer=self.tokenizer,
            generator=self.generator,
            about={
                "class_names": list(self.class_names),
                "defaults": self.defaults,
                "provenance": self.provenance,
            },
        )


def load(
    path: Path | str, *, device: torch.device | str | None = None, trust: bool = False
) -> Pipeline:
    """Load a model directory.

    Args:
        path: directory written by training, `argen.convert` or `Pipeline.save`.
        device: where to put it; the CPU when None.
        trust: build classes from outside argen that the configuration names.

    Raises:
        CheckpointError: if the directory is missing, incomplete or damaged.
    """
    tokenizer, generator, config = read_model(path, trust=trust)
    pipeline = Pipeline(
        tokenizer=tokenizer,
        generator=generator,
        class_names=tuple(config.get("class_names", ())),
        defaults=dict(config.get("defaults", {})),
        provenance=dict(config.get("provenance", {})),
    )
    return pipeline if device is None else pipeline.to(device)


def _full_precision(device: torch.device) -> Any:
    """Keep TF32 out of convolutions, so that a picture does not depend on its batch."""
    if device.type != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
