"""Draw pictures with a trained model: `python -m argen.sample --help`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from argen.app import require_positive, require_writable, run, show
from argen.errors import UserError


def main(config: Any) -> None:
    """Draw, then write pictures and a grid."""
    import numpy as np

    from argen.build import build
    from argen.checkpoint import replacing
    from argen.controls import SETTINGS
    from argen.device import pick_device, pick_dtype
    from argen.grid import save_picture, to_uint8
    from argen.pipeline import load
    from argen.preview import Preview, save_animation
    from argen.train import plain

    settings = plain(config)
    require_positive(settings, "batch_size")
    if settings["format"] not in ("png", "npz"):
        raise UserError(f"Unknown format={settings['format']}; use png or npz.")
    dtype = pick_dtype(settings["precision"])
    pipe = load(settings["model"], device=pick_device(settings["device"]), trust=settings["trust"])
    pipe.to_dtype(dtype)
    decoder = pipe.strategy(build(settings["decoder"]) if settings.get("decoder") else None)
    if settings["require_exact"]:
        decoder.require_exact()
    labels = pipe.labels(settings["classes"])
    kind = _preview_format(settings, pictures=len(labels) * settings["n"])
    preview = Preview(pipe.tokenizer) if kind else None
    out = require_writable(settings["out"])
    samples = pipe(
        labels,
        n=settings["n"],
        seed=settings["seed"],
        batch_size=settings["batch_size"],
        decoder=decoder,
        observer=preview,
        **{key: settings.get(key) for key in SETTINGS},
    )
    if settings["format"] == "npz":
        with replacing(out / "samples.npz") as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                arr_0=to_uint8(samples.images).numpy(),
                labels=samples.labels.numpy(),
                seeds=np.array(samples.seeds),
            )
    else:
        for i, picture in enumerate(samples.pil()):
            name = f"{i:05d}-{samples.names[i].replace('/', '-')}-seed{samples.seeds[i]}.png"
            save_picture(picture, out / name)
    save_picture(samples.grid(), out / "grid.png")
    if preview is not None:
        frames = [replace(samples, images=f).grid() for f in preview.frames()]
        save_animation([*frames, samples.grid()], out / f"preview.{kind}")
    exact = "exact" if samples.exact else "not exact: other pictures than the model's own"
    show(f"{len(samples)} pictures in {out} ({samples.passes} passes each, decoder {exact})")
    show(f"grid {out / 'grid.png'}")
    if kind:
        show(f"preview {out / f'preview.{kind}'}")


def _preview_format(settings: dict[str, Any], *, pictures: int) -> str | None:
    """Return gif, webp or, when no preview is asked for, None."""
    asked = settings["preview"]
    if asked in (False, None):
        return None
    kind = "gif" if asked is True else str(asked).lower()
    if kind not in ("gif", "webp"):
        raise UserError(f"Unknown preview={asked}; use true (a GIF), gif, webp or false.")
    if pictures > settings["batch_size"]:
        raise UserError(
            f"preview animates pictures that are drawn at once, but {pictures} are more than "
            f"batch_size={settings['batch_size']}: ask for fewer, or raise batch_size."
        )
    return kind


if __name__ == "__main__":
    run(main, "sample")
