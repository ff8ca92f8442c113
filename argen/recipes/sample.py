"""`argen sample`: images of classes or texts, as files and a grid."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from argen.build import build
from argen.data.transforms import center_crop
from argen.errors import UserError
from argen.images.files import UNREADABLE, decode_image, save_image
from argen.images.pixels import to_float, to_uint8
from argen.layers.inference_precision import check_precision
from argen.pipeline import Pipeline, load
from argen.pipeline.inpainting import kept_pixels, known_codes, read_mask
from argen.pipeline.preview import Preview, save_animation
from argen.pipeline.samples import Samples
from argen.pipeline.settings import given_settings
from argen.runtime.command import require_positive, require_writable
from argen.runtime.device import pick_device
from argen.runtime.files import replacing
from argen.text.prompts import as_texts, read_texts


@dataclass(frozen=True)
class PartOfImage:
    """An image to complete.

    Attributes:
        image: its file.
        keep: what of it is kept, by name or as a box; None with a mask.
        share: see `kept_pixels`.
        mask: a file, bright where pixels shall be sampled; None with `keep`.
        paste: whether the kept pixels themselves are put back into the result.
    """

    image: str
    keep: Any
    share: float
    mask: str | None
    paste: bool

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> PartOfImage | None:
        """Return what the command's settings say, None where no image is given.

        Raises:
            UserError: settings that contradict each other or say too little.
        """
        image, mask, keep = (settings[name] for name in ("image", "mask", "keep"))
        if image is None:
            if mask is not None or keep is not None:
                raise UserError("keep= and mask= say what of an image is kept: add image=FILE.")
            return None
        if (mask is None) == (keep is None):
            raise UserError(
                "Say what of the image is kept: keep=top (or another side, centre, border, a "
                "box), or mask=FILE, bright where pixels shall be drawn."
            )
        return cls(image, keep, settings["share"], mask, settings["paste"])

    def read(self, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the image (3, H, W) in [-1, 1] and which of its pixels are kept (H, W).

        Raises:
            UserError: a file that is no image, or an impossible part.
        """
        try:
            image = to_float(decode_image(self.image, size, center_crop))
        except UNREADABLE as error:
            raise UserError(f"image={self.image} is not a readable image ({error}).") from error
        if self.mask is not None:
            return image, read_mask(self.mask, size)
        return image, kept_pixels(size, self.keep, self.share)


@dataclass(frozen=True)
class SamplingRequest:
    """What to sample with which model, and where it goes.

    Attributes:
        model: directory.
        classes: names, ids or "all".
        texts: in place of classes; None where there are none.
        n: images a class or text.
        seed: of the first image.
        batch_size: images sampled at once.
        sampling: settings by name, see `argen.pipeline.settings`.
        decoder: how to build the strategy; the plainest that fits the model when None.
        require_exact: refuse a strategy that samples from another distribution than the model's.
        precision: of the weights.
        device: as in the configuration.
        text_encoder: how to build it, where the model does not say.
        trust: build classes from outside argen that the model names.
        part: an image to complete.
        format: png or npz.
        preview: gif or webp; None for no animation.
        out: directory of the files.
    """

    model: str
    classes: Any
    texts: tuple[str, ...] | None
    n: int
    seed: int
    batch_size: int
    sampling: Mapping[str, Any]
    decoder: Mapping[str, Any] | None
    require_exact: bool
    precision: str
    device: str
    text_encoder: Mapping[str, Any] | None
    trust: bool
    part: PartOfImage | None
    format: str
    preview: str | None
    out: Path

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> SamplingRequest:
        """Return what the command's settings ask for.

        Raises:
            UserError: values that are not known, or contradict each other.
        """
        require_positive(settings, "batch_size")
        if settings["format"] not in ("png", "npz"):
            raise UserError(f"Unknown format={settings['format']}; use png or npz.")
        check_precision(settings["precision"])
        return cls(
            model=settings["model"],
            classes=settings["classes"],
            texts=_texts(settings),
            n=settings["n"],
            seed=settings["seed"],
            batch_size=settings["batch_size"],
            sampling=given_settings(settings),
            decoder=settings.get("decoder"),
            require_exact=settings["require_exact"],
            precision=settings["precision"],
            device=settings["device"],
            text_encoder=settings.get("text_encoder"),
            trust=settings["trust"],
            part=PartOfImage.from_settings(settings),
            format=settings["format"],
            preview=_preview_format(settings["preview"]),
            out=Path(settings["out"]),
        )


def sample_images(request: SamplingRequest) -> list[str]:
    """Sample images and write them; returns the lines to print.

    Raises:
        UserError: a model, class, text or strategy that cannot be used.
    """
    pipe = load(
        request.model,
        device=pick_device(request.device),
        trust=request.trust,
        text_encoder=request.text_encoder,
    )
    decoder = build(request.decoder, trust=True) if request.decoder else None
    decoder = pipe.strategy(decoder, known=request.part is not None)
    if request.require_exact:
        decoder.require_exact()
    prompts = list(request.texts or pipe.labels(as_words(request.classes)))
    count = len(prompts) * request.n
    pipe.to_precision(request.precision, batch_size=min(count, request.batch_size), decoder=decoder)
    given = _given(request, pipe)
    known = None if given is None else given[2]
    if request.preview and count > request.batch_size:
        raise UserError(
            f"preview animates images that are drawn at once, but {count} are more than "
            f"batch_size={request.batch_size}: ask for fewer, or raise batch_size."
        )
    preview = Preview(pipe.tokenizer, known=known) if request.preview else None
    require_writable(request.out)
    samples = pipe(
        "all" if request.texts else prompts,
        text=list(request.texts) if request.texts else None,
        n=request.n,
        seed=request.seed,
        batch_size=request.batch_size,
        decoder=decoder,
        observer=preview,
        known=known,
        **request.sampling,
    )
    if given is not None and request.part is not None and request.part.paste:
        samples = replace(samples, images=torch.where(given[1], given[0], samples.images))
    if request.format == "npz":
        _write_npz(samples, request.out / "samples.npz")
    else:
        for image, name in zip(samples.pil(), file_names(samples)):
            save_image(image, request.out / name)
    first_row = [] if given is None else [("given", torch.where(given[1], given[0], 0.0)[None])]
    save_image(samples.grid(first_row), request.out / "grid.png")
    exact = "exact" if samples.exact else "not exact: other images than the model's own"
    lines = [
        f"{len(samples)} images in {request.out} ({samples.passes} passes each, decoder {exact})",
        f"grid {request.out / 'grid.png'}",
    ]
    if preview is not None:
        path = request.out / f"preview.{request.preview}"
        frames = [replace(samples, images=images).grid() for images in preview.frames()]
        save_animation([*frames, samples.grid()], path)
        lines.append(f"preview {path}")
    return lines


def as_words(classes: Any) -> Any:
    """Return the classes of a command line as the words that were typed.

    There a class may be called 10, and who types 10 has read that name; where none is called so,
    it is an id. `class_ids` does both for words.
    """
    if isinstance(classes, Sequence) and not isinstance(classes, str):
        return [str(word) for word in classes]
    return str(classes)


def file_names(samples: Samples) -> list[str]:
    """Return the name of each image's file: its number, class or text, and key."""
    return [
        f"{i:05d}-{_file_word(name)}-seed{seed}.png"
        for i, (name, seed) in enumerate(zip(samples.names, samples.seeds))
    ]


def _file_word(name: str) -> str:
    """Return a class name or a text as a part of a file's name."""
    return "-".join(re.findall(r"[\w.+]+", name))[:60].strip(".") or "x"


def _write_npz(samples: Samples, path: Path) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            arr_0=to_uint8(samples.images).permute(0, 2, 3, 1).contiguous().numpy(),
            labels=samples.labels.numpy(),
            seeds=np.array(samples.seeds),
            names=np.array(samples.names),
        )


def _given(
    request: SamplingRequest, pipe: Pipeline
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]] | None:
    """Return an image to go on from, its kept pixels, and its known positions and codes."""
    if request.part is None:
        return None
    height, width = pipe.tokenizer.image_size
    image, kept = request.part.read((height, width))
    return image, kept, known_codes(pipe.tokenizer, image, kept)


def _texts(settings: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the texts to sample for, None where classes are."""
    given = [key for key in ("text", "text_file") if settings[key] is not None]
    if not given:
        return None
    if len(given) > 1 or settings["classes"] != "all":
        others = given if len(given) > 1 else [*given, "classes"]
        raise UserError(f"{' and '.join(others)} say what to draw twice: keep one of them.")
    if given == ["text"]:
        return tuple(as_texts(settings["text"]))
    return tuple(read_texts(settings["text_file"]))


def _preview_format(preview: Any) -> str | None:
    """Return gif, webp or, when no preview is wanted, None."""
    if preview in (False, None):
        return None
    kind = "gif" if preview is True else str(preview).lower()
    if kind not in ("gif", "webp"):
        raise UserError(f"Unknown preview={preview}; use true (a GIF), gif, webp or false.")
    return kind
