"""Images to codes and back with a trained tokenizer: `python -m argen.reconstruct --help`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from argen.errors import UserError
from argen.runtime.command import require_positive, require_writable, run, show

SHOWN = 16  # images in the grid


def main(config: Any) -> None:
    """Encode and decode images, or decode codes that were kept."""
    from argen.pipeline import load
    from argen.runtime.command import plain
    from argen.runtime.device import pick_device, pick_dtype

    settings = plain(config)
    if (settings["images"] is None) == (settings["codes"] is None):
        raise UserError("Give images=FOLDER to encode and decode, or codes=FILE.npz to decode.")
    require_positive(settings, "batch_size")
    dtype = pick_dtype(settings["precision"])
    pipe = load(settings["model"], device=pick_device(settings["device"]), trust=settings["trust"])
    pipe.tokenizer.to(dtype)
    if settings["codes"] is not None:
        _decode(pipe, settings)
    else:
        _reconstruct(pipe, settings)


def _reconstruct(pipe: Any, settings: dict[str, Any]) -> None:
    """Write what the tokenizer makes of every image, and its codes if asked to."""
    import torch

    from argen.data.transforms import center_crop
    from argen.evaluation.metrics import psnr_db
    from argen.images.files import UNREADABLE, decode_image, image_files, save_image
    from argen.images.grid import draw_grid
    from argen.images.pixels import to_float

    given, tokenizer = Path(settings["images"]), pipe.tokenizer
    files = [given] if given.is_file() else image_files(given)
    root = given.parent if given.is_file() else given
    names = [path.relative_to(root) for path in files]
    _check_names(names)
    out = require_writable(settings["out"])
    dtype = next(tokenizer.parameters()).dtype
    codes, ratios = [], []
    shown: list[tuple[torch.Tensor, torch.Tensor]] = []
    for start in range(0, len(files), settings["batch_size"]):
        part = files[start : start + settings["batch_size"]]
        pixels = []
        for path in part:
            try:
                pixels.append(decode_image(path, tuple(tokenizer.image_size), center_crop))
            except UNREADABLE as error:
                raise UserError(f"{path} is not a readable image ({error}).") from error
        images = to_float(torch.stack(pixels))
        codes.append(pipe.encode(images.to(dtype)).cpu())
        made = pipe.decode(codes[-1]).float().cpu()
        ratios += [psnr_db(a[None], b[None]) for a, b in zip(made, images)]
        shown += list(zip(images, made))[: SHOWN - len(shown)]
        _write(made, names[start : start + len(part)], out)
    before, after = (torch.stack(side) for side in zip(*shown))
    save_image(draw_grid([("original", before), ("reconstruction", after)]), out / "grid.png")
    if settings["keep"] is not None:
        _keep(Path(settings["keep"]), torch.cat(codes), files, root, tokenizer.spec)
        show(f"codes {settings['keep']}: {tokenizer.spec.describe()}")
    show(f"{len(files)} images in {out}, mean PSNR {sum(ratios) / len(ratios):.2f} dB")
    show(f"grid {out / 'grid.png'}")


def _keep(path: Path, codes: Any, files: list[Path], root: Path, spec: Any) -> None:
    """Write codes with the names of their images and what they are."""
    import json

    import numpy as np

    from argen.evaluation.statistics import write_npz

    require_writable(path.parent)
    arrays = {
        "codes": (codes.float() if codes.is_floating_point() else codes).numpy(),
        "names": np.array([str(file.relative_to(root)) for file in files]),
        "spec": np.array(json.dumps(spec.to_dict())),
    }
    write_npz(path, arrays)


def _decode(pipe: Any, settings: dict[str, Any]) -> None:
    """Write the images of codes that an earlier call kept."""
    import json

    import torch

    from argen.evaluation.statistics import read_npz
    from argen.spec import CodeSpec, require_same_spec

    path = Path(settings["codes"])
    arrays = read_npz(path)
    if not {"codes", "names", "spec"} <= set(arrays):
        raise UserError(f"{path} holds {sorted(arrays)}, not codes that argen reconstruct kept.")
    spec = CodeSpec.from_dict(json.loads(str(arrays["spec"])))
    require_same_spec(spec, pipe.tokenizer.spec, found_in=str(path), wanted_by="this tokenizer")
    codes, names = torch.from_numpy(arrays["codes"]), [Path(str(n)) for n in arrays["names"]]
    pipe.tokenizer.spec.check(codes)
    if len(names) != len(codes):
        raise UserError(f"{path} names {len(names)} images, but holds codes of {len(codes)}.")
    _check_names(names)
    out = require_writable(settings["out"])
    dtype = next(pipe.tokenizer.parameters()).dtype
    for start in range(0, len(codes), settings["batch_size"]):
        part = slice(start, start + settings["batch_size"])
        some = codes[part].to(dtype) if codes.is_floating_point() else codes[part]
        _write(pipe.decode(some).float().cpu(), names[part], out)
    show(f"{len(codes)} images in {out}")


def _check_names(names: list[Path]) -> None:
    """Raise unless every image has a place of its own below the output directory."""
    taken: dict[Path, Path] = {Path("grid.png"): Path("the grid")}
    for name in names:
        if name.is_absolute() or ".." in name.parts:
            raise UserError(f"An image is called {name}, which lies outside the output directory.")
        place = name.with_suffix(".png")
        if place in taken:
            raise UserError(
                f"{name} and {taken[place]} would both be written to {place}: rename one."
            )
        taken[place] = name


def _write(images: Any, names: list[Path], out: Path) -> None:
    from argen.images.files import save_image
    from argen.images.grid import to_pil

    for name, image in zip(names, to_pil(images)):
        place = (out / name).with_suffix(".png")
        place.parent.mkdir(parents=True, exist_ok=True)
        save_image(image, place)


if __name__ == "__main__":
    run(main, "reconstruct")
