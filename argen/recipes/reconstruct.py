"""`argen reconstruct`: images through a tokenizer and back, and codes that are kept as a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from argen.data.transforms import center_crop
from argen.errors import UserError
from argen.evaluation.metrics import psnr_db
from argen.evaluation.statistics import read_npz, write_npz
from argen.images.files import UNREADABLE, decode_image, image_files, save_image
from argen.images.grid import draw_grid, to_pil
from argen.images.pixels import to_float
from argen.pipeline import Pipeline, load
from argen.runtime.command import require_positive, require_writable
from argen.runtime.device import pick_device, pick_dtype
from argen.spec import CodeSpec, require_same_spec

SHOWN = 16  # images in the grid


@dataclass(frozen=True)
class ReconstructionRequest:
    """Which images or codes go through which tokenizer, and where the result goes.

    Attributes:
        model: directory.
        images: a folder or a file to encode and decode; None where codes are given.
        codes: a file that an earlier call kept, to decode; None where images are given.
        keep: file that gets the codes of the images; None to keep none.
        out: directory of the images.
        batch_size: images at once.
        precision: of the tokenizer.
        device: as in the configuration.
        trust: build classes from outside argen that the model names.
    """

    model: str
    images: Path | None
    codes: Path | None
    keep: Path | None
    out: Path
    batch_size: int
    precision: str
    device: str
    trust: bool

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> ReconstructionRequest:
        """Return what the command's settings ask for.

        Raises:
            UserError: not exactly one of images and codes, or impossible numbers.
        """
        if (settings["images"] is None) == (settings["codes"] is None):
            raise UserError("Give images=FOLDER to encode and decode, or codes=FILE.npz to decode.")
        require_positive(settings, "batch_size")
        pick_dtype(settings["precision"])
        paths = {name: settings[name] for name in ("images", "codes", "keep")}
        return cls(
            model=settings["model"],
            **{name: None if path is None else Path(path) for name, path in paths.items()},
            out=Path(settings["out"]),
            batch_size=settings["batch_size"],
            precision=settings["precision"],
            device=settings["device"],
            trust=settings["trust"],
        )


def reconstruct(request: ReconstructionRequest) -> list[str]:
    """Encode and decode images, or decode kept codes; returns the lines to print.

    Raises:
        UserError: files or a model that cannot be used, or codes of another tokenizer.
    """
    pipe = load(request.model, device=pick_device(request.device), trust=request.trust)
    pipe.tokenizer.to(pick_dtype(request.precision))
    if request.codes is not None:
        return _decode(pipe, request.codes, request)
    assert request.images is not None
    return _reconstruct(pipe, request.images, request)


def _reconstruct(pipe: Pipeline, given: Path, request: ReconstructionRequest) -> list[str]:
    """Write what the tokenizer makes of every image, and its codes where they are to be kept."""
    tokenizer = pipe.tokenizer
    files = [given] if given.is_file() else image_files(given)
    root = given.parent if given.is_file() else given
    names = [path.relative_to(root) for path in files]
    _check_names(names)
    out = require_writable(request.out)
    dtype = next(tokenizer.parameters()).dtype
    height, width = tokenizer.image_size
    codes, ratios = [], []
    shown: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(files), request.batch_size):
        part = files[start : start + request.batch_size]
        pixels = []
        for path in part:
            try:
                pixels.append(decode_image(path, (height, width), center_crop))
            except UNREADABLE as error:
                raise UserError(f"{path} is not a readable image ({error}).") from error
        images = to_float(torch.stack(pixels))
        codes.append(pipe.encode(images.to(dtype)).cpu())
        made = pipe.decode(codes[-1]).float().cpu()
        ratios += [psnr_db(a[None], b[None]) for a, b in zip(made, images)]
        shown += list(zip(images, made))[: SHOWN - len(shown)]
        _write(made, names[start : start + len(part)], out)
    before, after = (torch.stack(column) for column in zip(*shown))
    save_image(draw_grid([("original", before), ("reconstruction", after)]), out / "grid.png")
    lines = []
    if request.keep is not None:
        _keep(request.keep, torch.cat(codes), names, tokenizer.spec)
        lines.append(f"codes {request.keep}: {tokenizer.spec.describe()}")
    return [
        *lines,
        f"{len(files)} images in {out}, mean PSNR {sum(ratios) / len(ratios):.2f} dB",
        f"grid {out / 'grid.png'}",
    ]


def _keep(path: Path, codes: Tensor, names: Sequence[Path], spec: CodeSpec) -> None:
    """Write codes with the names of their images and what they are."""
    require_writable(path.parent)
    arrays = {
        "codes": (codes.float() if codes.is_floating_point() else codes).numpy(),
        "names": np.array([str(name) for name in names]),
        "spec": np.array(json.dumps(spec.to_dict())),
    }
    write_npz(path, arrays)


def _decode(pipe: Pipeline, path: Path, request: ReconstructionRequest) -> list[str]:
    """Write the images of codes that an earlier call kept."""
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
    out = require_writable(request.out)
    dtype = next(pipe.tokenizer.parameters()).dtype
    for start in range(0, len(codes), request.batch_size):
        part = slice(start, start + request.batch_size)
        some = codes[part].to(dtype) if codes.is_floating_point() else codes[part]
        _write(pipe.decode(some).float().cpu(), names[part], out)
    return [f"{len(codes)} images in {out}"]


def _check_names(names: Sequence[Path]) -> None:
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


def _write(images: Tensor, names: Sequence[Path], out: Path) -> None:
    for name, image in zip(names, to_pil(images)):
        place = (out / name).with_suffix(".png")
        place.parent.mkdir(parents=True, exist_ok=True)
        save_image(image, place)
