"""Draw images with a trained model: `python -m argen.sample --help`."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from argen.errors import UserError
from argen.runtime.command import require_positive, require_writable, run, show


def main(config: Any) -> None:
    """Draw, then write images and a grid."""
    import numpy as np
    import torch

    from argen.build import build
    from argen.images.files import save_image
    from argen.images.grid import to_uint8
    from argen.layers.inference_precision import check_precision
    from argen.pipeline import load
    from argen.pipeline.preview import Preview, save_animation
    from argen.pipeline.settings import SETTINGS
    from argen.runtime.command import plain
    from argen.runtime.device import pick_device
    from argen.runtime.files import replacing

    settings = plain(config)
    require_positive(settings, "batch_size")
    if settings["format"] not in ("png", "npz"):
        raise UserError(f"Unknown format={settings['format']}; use png or npz.")
    check_precision(settings["precision"])
    texts = _texts(settings)
    pipe = load(
        settings["model"],
        device=pick_device(settings["device"]),
        trust=settings["trust"],
        text_encoder=settings.get("text_encoder"),
    )
    decoder = build(settings["decoder"], trust=True) if settings.get("decoder") else None
    decoder = pipe.strategy(decoder, known=settings["image"] is not None)
    if settings["require_exact"]:
        decoder.require_exact()
    asked = texts or pipe.labels(settings["classes"])
    count = len(asked) * settings["n"]
    at_once = min(count, settings["batch_size"])
    pipe.to_precision(settings["precision"], batch_size=at_once, decoder=decoder)
    given = _given(pipe, settings)
    known = None if given is None else given[2]
    kind = _preview_format(settings, images=count)
    preview = Preview(pipe.tokenizer, known=known) if kind else None
    out = require_writable(settings["out"])
    samples = pipe(
        "all" if texts else asked,
        text=texts,
        n=settings["n"],
        seed=settings["seed"],
        batch_size=settings["batch_size"],
        decoder=decoder,
        observer=preview,
        known=known,
        **{key: settings.get(key) for key in SETTINGS},
    )
    if given is not None and settings["paste"]:
        samples = replace(samples, images=torch.where(given[1], given[0], samples.images))
    if settings["format"] == "npz":
        with replacing(out / "samples.npz") as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                arr_0=to_uint8(samples.images).numpy(),
                labels=samples.labels.numpy(),
                seeds=np.array(samples.seeds),
                names=np.array(samples.names),
            )
    else:
        for i, image in enumerate(samples.pil()):
            name = f"{i:05d}-{_file_word(samples.names[i])}-seed{samples.seeds[i]}.png"
            save_image(image, out / name)
    first_row = [] if given is None else [("given", torch.where(given[1], given[0], 0.0)[None])]
    save_image(samples.grid(first_row), out / "grid.png")
    if preview is not None:
        frames = [replace(samples, images=f).grid() for f in preview.frames()]
        save_animation([*frames, samples.grid()], out / f"preview.{kind}")
    exact = "exact" if samples.exact else "not exact: other images than the model's own"
    show(f"{len(samples)} images in {out} ({samples.passes} passes each, decoder {exact})")
    show(f"grid {out / 'grid.png'}")
    if kind:
        show(f"preview {out / f'preview.{kind}'}")


def _given(pipe: Any, settings: dict[str, Any]) -> tuple[Any, Any, tuple[Any, Any]] | None:
    """Return an image to go on from, its kept pixels, and its known positions and codes."""
    from argen.data.transforms import center_crop
    from argen.images.files import UNREADABLE, decode_image
    from argen.images.pixels import to_float
    from argen.pipeline.inpainting import kept_pixels, known_codes, read_mask

    path, mask, keep = (settings[name] for name in ("image", "mask", "keep"))
    if path is None:
        if mask is not None or keep is not None:
            raise UserError("keep= and mask= say what of an image is kept: add image=FILE.")
        return None
    if (mask is None) == (keep is None):
        raise UserError(
            "Say what of the image is kept: keep=top (or another side, centre, border, a box), "
            "or mask=FILE, bright where pixels shall be drawn."
        )
    size = tuple(pipe.tokenizer.image_size)
    try:
        image = to_float(decode_image(path, size, center_crop))
    except UNREADABLE as error:
        raise UserError(f"image={path} is not a readable image ({error}).") from error
    kept = kept_pixels(size, keep, settings["share"]) if mask is None else read_mask(mask, size)
    return image, kept, known_codes(pipe.tokenizer, image, kept)


def _texts(settings: dict[str, Any]) -> list[str] | None:
    """Return the texts asked for, None where classes are."""
    from argen.text.prompts import as_texts, read_texts

    given = [key for key in ("text", "text_file") if settings[key] is not None]
    if not given:
        return None
    if len(given) > 1 or settings["classes"] != "all":
        others = given if len(given) > 1 else [*given, "classes"]
        raise UserError(f"{' and '.join(others)} say what to draw twice: keep one of them.")
    return as_texts(settings["text"]) if given == ["text"] else read_texts(settings["text_file"])


def _file_word(name: str) -> str:
    """Return a class name or a text as a part of a file's name."""
    return "-".join(re.findall(r"[\w.+]+", name))[:60].strip(".") or "x"


def _preview_format(settings: dict[str, Any], *, images: int) -> str | None:
    """Return gif, webp or, when no preview is asked for, None."""
    asked = settings["preview"]
    if asked in (False, None):
        return None
    kind = "gif" if asked is True else str(asked).lower()
    if kind not in ("gif", "webp"):
        raise UserError(f"Unknown preview={asked}; use true (a GIF), gif, webp or false.")
    if images > settings["batch_size"]:
        raise UserError(
            f"preview animates images that are drawn at once, but {images} are more than "
            f"batch_size={settings['batch_size']}: ask for fewer, or raise batch_size."
        )
    return kind


if __name__ == "__main__":
    run(main, "sample")
