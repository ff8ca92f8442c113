"""Tokenizer, generator and decoder in one object: the only place that can sample an image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from argen.decoding.base import Decoder
from argen.decoding.context import Observer, SamplingContext
from argen.decoding.default import default_decoder
from argen.errors import UserError
from argen.generators.base import Generator
from argen.layers.cpu.packed import unpack_weights
from argen.layers.inference_precision import check_precision, to_precision
from argen.layers.noise import SeededNoise
from argen.pipeline.keys import image_keys
from argen.pipeline.model_directory import read_model, write_model
from argen.pipeline.prompts import Prompts, class_ids, encode_text, num_classes, reader_of
from argen.pipeline.samples import Samples
from argen.pipeline.settings import controls
from argen.runtime.device import full_precision
from argen.spec import require_same_spec
from argen.text.features import TextFeatures
from argen.text.prompts import as_texts
from argen.text.reader import TextReader
from argen.tokenizers.base import Tokenizer


@dataclass
class Pipeline:
    """Samples images: `pipe(["cat"], n=4, seed=0)`.

    Attributes:
        tokenizer: images to codes and back.
        generator: models the codes; None for a tokenizer alone, which only encodes and decodes.
        decoder: the default decoding strategy; the plainest that fits the generator when None.
        class_names: in the order of the labels; empty when not known.
        defaults: sampling settings that stand when a call does not name them (cfg, top_k, ...).
        text: the text encoder that the generator was trained with, loaded when first needed.
        provenance: where the weights come from: which copy (ema or raw), step, commit, data.
    """

    tokenizer: Tokenizer
    generator: Generator | None = None
    decoder: Decoder | None = None
    class_names: tuple[str, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    text: TextReader | None = None

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
        for part in filter(None, (self.tokenizer, self.generator)):
            unpack_weights(part)
            part.to(device)
        return self

    def to_precision(
        self, name: str, *, batch_size: int | None = None, decoder: Decoder | None = None
    ) -> Pipeline:
        """Convert the weights: `float32`, `bfloat16`, `int8` for the generator's matmuls.

        On a CPU they are also packed for its matmuls, which makes sampling faster. int8 is for
        sampling on a CPU, and for good: such a pipeline cannot be saved or converted.

        Args:
            name: of the precision.
            batch_size: images that will be sampled at once, where known; see `pack_weights`.
            decoder: the strategy, likewise; as in a call when None.

        Raises:
            UserError: for another name, or int8 where there is no such product.
        """
        check_precision(name)
        to_precision(self.tokenizer, "float32" if name == "int8" else name)
        if self.generator is not None:
            rows = None
            if batch_size is not None:
                rows = self.strategy(decoder).max_rows(self.generator, batch_size)
            to_precision(self.generator, name, rows=rows)
        return self

    def labels(self, classes: Any) -> list[int]:
        """Return class ids of names, ids, a mixture of both, or "all".

        Raises:
            UserError: for a class this model does not know, with close matches.
        """
        count = num_classes(self._generator().conditioner)
        return class_ids(classes, self.class_names, count=count)

    def encode_text(self, texts: Sequence[str]) -> TextFeatures:
        """Return the features of texts that the generator is conditioned on.

        Raises:
            UserError: if it reads no text, or the text encoder is not known or not at hand.
        """
        return encode_text(texts, self._generator().conditioner, self.text, self.device)

    def __call__(
        self,
        classes: Any = "all",
        n: int = 1,
        *,
        text: str | Sequence[str] | None = None,
        seed: int = 0,
        batch_size: int = 32,
        decoder: Decoder | None = None,
        observer: Observer | None = None,
        known: tuple[Tensor, Tensor] | None = None,
        **settings: Any,
    ) -> Samples:
        """Sample `n` images of every class, or of every text.

        Args:
            classes: names, ids or "all".
            n: images a class.
            text: for models that read text, one or several in place of classes.
            seed: key of the first image; image i has a hash of (seed, i), whatever the batch size;
                given as `seed`, the key that `Samples.seeds` names samples that image alone.
            batch_size: images sampled at once.
            decoder: strategy of this call; the pipeline's own when None.
            observer: is told of finished codes as they come.
            known: positions (n,) and codes (n, ...) that every image is given, for completion
                and inpainting; see `argen.pipeline.inpainting.known_codes`.
            **settings: see `argen.pipeline.settings`: cfg (guidance scale), cfg_schedule, ...,
                temperature, top_k, top_p, min_p.

        Returns:
            the images, class by class; the label of a text is its place in the list.
        """
        each: Any = self.labels(classes) if text is None else as_texts(text)
        prompts = [prompt for prompt in each for _ in range(n)]
        if n < 1:
            raise UserError(f"n={n}: ask for at least one image a class.")
        seeds = image_keys(seed, len(prompts))
        how: dict[str, Any] = {"decoder": decoder, "observer": observer, "known": known}
        return Samples.cat(
            list(self.batches(prompts, seeds, batch_size=batch_size, **how, **settings))
        )

    @torch.inference_mode()
    def batches(
        self,
        prompts: Sequence[int] | Sequence[str],
        seeds: Sequence[int],
        *,
        batch_size: int = 32,
        decoder: Decoder | None = None,
        observer: Observer | None = None,
        known: tuple[Tensor, Tensor] | None = None,
        **settings: Any,
    ) -> Iterator[Samples]:
        """Sample one image for each label or text and its seed, a batch at a time.

        Settings are those of a call.
        """
        generator = self._generator()
        decoder = self.strategy(decoder, known=known is not None)
        guidance, filters = controls(settings, self.defaults)
        if guidance.active:
            generator.conditioner.require_null()
        if generator.spec.kind == "discrete":
            filters.check(max(max(s.vocab_sizes) for s in generator.spec.segments))
        names, device = self.class_names, self.device
        conditions = Prompts.of(
            prompts, generator.conditioner, class_names=names, reader=self.text, device=device
        )
        for start in range(0, len(prompts), batch_size):
            part = slice(start, start + batch_size)
            own = seeds[part]
            with full_precision(self.device):
                result = decoder(
                    generator,
                    generator.conditioner(conditions.inputs[part]),
                    SamplingContext(
                        guidance=guidance,
                        filters=filters,
                        noise=SeededNoise(own, device=self.device),
                        observer=observer,
                        known=known,
                    ),
                )
                if result.latents is None:
                    images = self.tokenizer.decode(result.codes)
                else:
                    images = cast(Any, self.tokenizer).decode_latents(result.latents)
                images = require_numbers(images.float()).clamp(-1, 1)
            yield Samples(
                images=images.cpu(),
                codes=result.codes.cpu(),
                labels=conditions.labels[part],
                names=conditions.names[part],
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
            decoder: the wanted one; the pipeline's own, or the plainest that fits, when None.
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

    def save(self, directory: Path | str) -> None:
        """Write a model directory; see `argen.pipeline.model_directory`."""
        write_model(
            directory,
            tokenizer=self.tokenizer,
            generator=self.generator,
            about={
                "class_names": list(self.class_names),
                "defaults": self.defaults,
                "provenance": self.provenance,
                **({} if self.text is None else {"text": self.text.config}),
            },
        )


def load(
    path: Path | str,
    *,
    device: torch.device | str | None = None,
    trust: bool = False,
    text_encoder: Path | str | Mapping[str, Any] | None = None,
) -> Pipeline:
    """Load a model directory.

    Args:
        path: directory written by training, `argen.convert` or `Pipeline.save`.
        device: where to put it; the CPU when None.
        trust: build whatever the configuration names, code from outside argen too, and follow
            links and addresses in it: for directories whose origin you know.
        text_encoder: directory of the text encoder, or how to build it, where the model does not
            say or it was moved.

    Raises:
        CheckpointError: if the directory is missing, incomplete or damaged.
    """
    tokenizer, generator, config = read_model(path, trust=trust)
    pipeline = Pipeline(
        tokenizer=tokenizer,
        generator=generator,
        class_names=tuple(config.get("class_names") or ()),
        defaults=dict(config.get("defaults") or {}),
        provenance=dict(config.get("provenance") or {}),
        text=_text_reader(path, config, trust=trust),
    )
    if text_encoder is not None:
        conditioner = None if generator is None else generator.conditioner
        pipeline.text = reader_of(text_encoder, conditioner)
    return pipeline if device is None else pipeline.to(device)


def require_numbers(images: Tensor) -> Tensor:
    """Return images (B, 3, H, W), all of whose values are numbers.

    Raises:
        UserError: if any is NaN.
    """
    bad = images.isnan().flatten(1).any(1)
    if bad.any():
        raise UserError(
            f"{int(bad.sum())} of {len(bad)} sampled images hold NaN values: "
            "the weights are damaged or overflow in this precision. Sample with "
            "precision=float32, and convert or train the model again if that does not help."
        )
    return images


def _text_reader(path: Path | str, config: Mapping[str, Any], *, trust: bool) -> TextReader | None:
    if not config.get("text"):
        return None
    return TextReader(config["text"], trust=trust, source=str(Path(path) / "config.json"))
