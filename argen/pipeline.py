"""Tokenizer, generator and decoder in one object: the only place that knows how to draw a picture.

A saved pipeline is a directory with `config.json` (how to build the parts, their code spec, class
names, where the weights come from) and one safetensors file a part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from argen import __version__
from argen.build import build
from argen.checkpoint import load_strict, read_json, read_weights, save_weights, write_json
from argen.decoding.base import Decoder, Observer
from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.decoding.sequential import Sequential
from argen.errors import CheckpointError, UserError, suggest
from argen.generators.base import Generator
from argen.generators.conditioning import ClassConditioner
from argen.grid import draw_grid, to_pil
from argen.layers.noise import SeededNoise
from argen.spec import CodeSpec, require_same_spec
from argen.tokenizers.base import Tokenizer

if TYPE_CHECKING:
    from PIL import Image

FORMAT = 1


@dataclass
class Samples:
    """Drawn pictures.

    Attributes:
        images: (N, 3, H, W) in [-1, 1].
        codes: what they were decoded from.
        labels: class of each, long (N,).
        names: class name of each.
        seeds: seed of each; drawing it again gives the same picture.
        passes: network passes a picture.
    """

    images: Tensor
    codes: Tensor
    labels: Tensor
    names: list[str]
    seeds: list[int]
    passes: int

    def __len__(self) -> int:
        return len(self.seeds)

    def pil(self) -> list[Image.Image]:
        """Return PIL pictures."""
        return to_pil(self.images)

    def grid(self) -> Image.Image:
        """Return one picture with a labelled row a class."""
        rows: dict[str, list[int]] = {}
        for i, name in enumerate(self.names):
            rows.setdefault(name, []).append(i)
        return draw_grid([(name, self.images[index]) for name, index in rows.items()])


@dataclass
class Pipeline:
    """Draws pictures: `pipe(["cat"], n=4, seed=0)`.

    Attributes:
        tokenizer: images to codes and back.
        generator: models the codes; None for a tokenizer alone, which only encodes and decodes.
        decoder: the default decoding strategy.
        class_names: in the order of the labels; empty when not known.
        defaults: sampling settings that stand when a call does not name them (cfg, top_k, ...).
        provenance: where the weights come from: which copy (ema or raw), step, commit, data.
    """

    tokenizer: Tokenizer
    generator: Generator | None = None
    decoder: Decoder = field(default_factory=Sequential)
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
        count = self._num_classes()
        if isinstance(classes, Tensor):
            classes = classes.tolist()
        if isinstance(classes, str | int):
            classes = [classes]
        if list(classes) == ["all"]:
            return list(range(count))
        known = {name.lower(): i for i, name in enumerate(self.class_names)}
        ids = []
        for item in classes:
            text = str(item).strip()
            if text.lower() in known:
                ids.append(known[text.lower()])
            elif text.lstrip("-").isdigit():
                if not 0 <= int(text) < count:
                    raise UserError(
                        f"Class {text} is outside 0 to {count - 1}; this model knows "
                        f"{count} classes."
                    )
                ids.append(int(text))
            elif not self.class_names:
                raise UserError(
                    f"Unknown class {text!r}: this model stores no class names; use ids 0 to "
                    f"{count - 1}."
                )
            else:
                shown = ", ".join(self.class_names[:12]) + (", ..." if count > 12 else "")
                raise UserError(
                    f"Unknown class {text!r}.{suggest(text, self.class_names)} Known: {shown}."
                )
        return ids

    def __call__(
        self,
        classes: Any = "all",
        n: int = 1,
        *,
        seed: int = 0,
        batch_size: int = 32,
        decoder: Decoder | None = None,
        observer: Observer | None = None,
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
            **settings: cfg (guidance scale), cfg_schedule, cfg_power, cfg_interval, temperature,
                top_k, top_p, min_p.

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
        **settings: Any,
    ) -> Iterator[Samples]:
        """Draw one picture for each label and seed, a batch at a time; settings as in a call."""
        generator, decoder = self._generator(), decoder or self.decoder
        decoder.bind(self.tokenizer)
        decoder.check(generator)
        guidance, filters = self._controls(settings)
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
            )

    @torch.inference_mode()
    def encode(self, images: Tensor, **options: Any) -> Tensor:
        """Return the codes of images (B, 3, H, W) in [-1, 1]."""
        return self.tokenizer.encode(images.to(self.device), **options)

    @torch.inference_mode()
    def decode(self, codes: Tensor, **options: Any) -> Tensor:
        """Return the images (B, 3, H, W), in [-1, 1], of codes."""
        return self.tokenizer.decode(codes.to(self.device), **options).clamp(-1, 1)

    def _generator(self) -> Generator:
        if self.generator is None:
            raise UserError(
                "This model is a tokenizer alone: it encodes and decodes, but has no generator to "
                "draw with. Train one on its codes: argen train stage=generator."
            )
        return self.generator

    def _num_classes(self) -> int:
        conditioner = self._generator().conditioner
        if isinstance(conditioner, ClassConditioner):
            return conditioner.num_classes
        raise UserError("This model is conditioned on text, not on classes.")

    def _controls(self, settings: dict[str, Any]) -> tuple[Guidance, Filters]:
        """Split sampling settings into guidance and filters; defaults fill the gaps."""
        guidance = {
            "cfg": "scale",
            "cfg_schedule": "schedule",
            "cfg_power": "power",
            "cfg_interval": "interval",
        }
        filters = ("temperature", "top_k", "top_p", "min_p")
        merged = {**self.defaults, **{k: v for k, v in settings.items() if v is not None}}
        unknown = [k for k in merged if k not in guidance and k not in filters]
        if unknown:
            names = (*guidance, *filters)
            raise UserError(
                f"Unknown sampling setting {unknown[0]!r}.{suggest(unknown[0], names)} "
                f"Known: {', '.join(names)}."
            )
        return (
            Guidance(**{guidance[k]: v for k, v in merged.items() if k in guidance}),
            Filters(**{k: v for k, v in merged.items() if k in filters}),
        )

    def save(self, directory: Path | str) -> None:
        """Write config.json, tokenizer.safetensors and generator.safetensors."""
        directory = Path(directory)
        config: dict[str, Any] = {
            "format": FORMAT,
            "argen": __version__,
            "spec": self.tokenizer.spec.to_dict(),
            "spec_fingerprint": self.tokenizer.spec.fingerprint(),
            "class_names": list(self.class_names),
            "defaults": self.defaults,
            "provenance": self.provenance,
            "tokenizer": _config_of(self.tokenizer),
        }
        save_weights(self.tokenizer.state_dict(), directory / "tokenizer.safetensors")
        if self.generator is not None:
            config["generator"] = _config_of(self.generator)
            save_weights(self.generator.state_dict(), directory / "generator.safetensors")
        write_json(directory / "config.json", config)


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
    path = Path(path)
    if not (path / "config.json").is_file():
        inside = path / "model" / "config.json"
        hint = f" Did you mean {path / 'model'}?" if inside.is_file() else ""
        raise CheckpointError(
            f"{path} is not an argen model directory (no config.json in it).{hint}"
        )
    config = read_json(path / "config.json")
    if config.get("format", 0) > FORMAT:
        raise CheckpointError(f"{path} was written by a newer argen; upgrade with pip.")
    tokenizer = _build_part(path, config, "tokenizer", trust=trust)
    generator = _build_part(path, config, "generator", trust=trust)
    if tokenizer is None:
        raise CheckpointError(f"{path / 'config.json'} describes no tokenizer.")
    require_same_spec(
        tokenizer.spec,
        CodeSpec.from_dict(config["spec"]),
        found_in=f"{path}: the tokenizer",
        wanted_by="its config.json",
    )
    pipeline = Pipeline(
        tokenizer=tokenizer,
        generator=generator,
        class_names=tuple(config.get("class_names", ())),
        defaults=dict(config.get("defaults", {})),
        provenance=dict(config.get("provenance", {})),
    )
    return pipeline if device is None else pipeline.to(device)


def weights_fingerprint(module: nn.Module) -> str:
    """Return 16 hexadecimal digits that name a module's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(
            tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()[:16]


def _config_of(module: nn.Module) -> dict[str, Any]:
    config = getattr(module, "config", None)
    if not isinstance(config, dict):
        raise UserError(
            f"{type(module).__name__} was not made from a configuration, so it cannot be saved as "
            "a model directory; make it with argen.build.build(config)."
        )
    return config


def _build_part(path: Path, config: dict[str, Any], part: str, *, trust: bool) -> Any:
    if part not in config:
        return None
    module = build(config[part], trust=trust)
    weights = path / f"{part}.safetensors"
    load_strict(module, read_weights(weights), source=str(weights))
    return module


def _full_precision(device: torch.device) -> Any:
    """Keep TF32 out of convolutions, so that a picture does not depend on its batch."""
    if device.type != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
