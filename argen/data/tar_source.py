"""Labelled images in tar shards, local or elsewhere, as `data=webdataset` names them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from argen.build import buildable
from argen.data.images import ImageSource
from argen.data.random_crop import random_crop
from argen.data.shards import read_manifest
from argen.data.tar_images import TarImages
from argen.data.tar_stream import TarStream
from argen.data.transforms import Augment
from argen.errors import UserError
from argen.images.pixels import as_size

MANIFEST = "manifest.json"
SCHEME = re.compile(r"\s*([a-z][a-z0-9+.-]*:|-$)", re.IGNORECASE)  # of an address, or stdin


def require_local(arguments: Mapping[str, Any]) -> None:
    """Raise `UserError` unless all shards that a stored configuration names are local files.

    Args:
        arguments: of `webdataset`.
    """
    from webdataset.shardlists import expand_urls

    for key in ("urls", "val_urls"):
        given = arguments.get(key)
        for url in [given] if isinstance(given, str) else given or ():
            # Braces and variables may spell an address that the text as it stands does not show.
            for one in expand_urls(str(url)):
                if SCHEME.match(one) or not is_local(one):
                    raise UserError(
                        f"A stored configuration takes its images from {one[:80]!r}. Addresses and "
                        f"commands are followed only where you give them yourself: add "
                        f"data=webdataset data.{key}=..., or load with trust=true if you trust "
                        "where the file comes from."
                    )


@buildable("data", check=require_local)
def webdataset(
    urls: str | Sequence[str] | None = None,
    val_urls: str | Sequence[str] | None = None,
    image_size: int | Sequence[int] = 256,
    classes: Sequence[str] | None = None,
    num_classes: int | None = None,
    unconditional: bool = False,
    holdout: float = 0.05,
    seed: int = 0,
    shift: int = 0,
    flip: bool = True,
    crop: str = "center",
    resize: Sequence[float] = (1.0, 1.0),
    resample: str = "adm",
    buffer: int = 1000,
    max_bad_fraction: float = 0.01,
    cache_dir: str | None = None,
) -> ImageSource:
    """Return the images of tar shards as a labelled data set.

    Stage 1 trains on them as a stream (`TarStream`); whatever needs an image by its number
    (validation, tokenising, scores) reads it out of a local file (`TarImages`).

    Args:
        urls: tar files with brace expansion, e.g. `shards/train-{00000..00099}.tar`, `*` in local
            paths, or a list of such; anything webdataset opens (http:, gs:, s3:, pipe:, ...).
        val_urls: held-out shards; None holds the last of `urls` out.
        image_size: side in pixels, or [height, width].
        classes: class names; None takes them from the `manifest.json` beside the shards.
        num_classes: names the classes 0, 1, ... where nothing else does.
        unconditional: make one class, `all`, of every image.
        holdout: share of the shards held out without `val_urls`, in (0, 1); at least one.
        seed: names the order of the stream.
        shift: training images move by up to this many pixels.
        flip: training images are mirrored half of the time.
        crop: training images are cut from the `center`, or at a `random` place.
        resize: of random crops: shorter side before it, as shares of `image_size`, from and to.
        resample: of random crops: `adm`, `bicubic`, `bilinear` or `lanczos`.
        buffer: images that the stream mixes in each loader process.
        max_bad_fraction: more damaged images than this share stop the run.
        cache_dir: where shards from elsewhere are kept once fetched.

    Raises:
        UserError: shards that are not there, no class names, impossible numbers.
    """
    if not 0 <= max_bad_fraction < 1:
        raise UserError(f"max_bad_fraction={max_bad_fraction} must lie in [0, 1).")
    if buffer < 1:
        raise UserError(f"buffer={buffer} must be at least 1; 1 keeps the order of the shards.")
    size = as_size(image_size)
    train, val = expand(urls, "data.urls"), None
    if val_urls is not None:
        val = expand(val_urls, "data.val_urls")
    else:
        train, val = _hold_out(train, holdout)
    names = _class_names(train, classes, num_classes, unconditional)
    augment = Augment(shift=shift, flip=flip, crop=random_crop(crop, resize, resample))
    by_number = partial(
        TarImages,
        classes=names,
        size=size,
        fetch=partial(local_file, cache_dir=cache_dir),
        unconditional=unconditional,
        max_bad_fraction=max_bad_fraction,
    )
    return ImageSource(
        name=_name_of(train),
        classes=names,
        image_size=size,
        train=by_number(train, augment=augment),
        val=by_number(val),
        stream=TarStream(
            train,
            names,
            size,
            unconditional=unconditional,
            augment=augment,
            buffer=buffer,
            max_bad_fraction=max_bad_fraction,
            cache_dir=cache_dir,
            seed=seed,
        ),
        notes=f"{len(train)} tar shards, {len(val)} held out",
        transform=f"RGB on white, scaled and centre-cropped to {size[0]}x{size[1]}",
    )


def expand(urls: str | Sequence[str] | None, key: str) -> list[str]:
    """Return the shards that braces and stars stand for, in order.

    Raises:
        UserError: none given, or local ones that are not there.
    """
    from webdataset.shardlists import expand_urls

    found: list[str] = []
    for url in [urls] if isinstance(urls, str) else list(urls or []):
        for one in expand_urls(url):
            path = Path(one).expanduser()
            if not is_local(one):
                found.append(one)
            elif "*" in path.name:
                found += sorted(str(p) for p in path.parent.glob(path.name))
            elif path.is_file():
                found.append(str(path))
            else:
                raise UserError(
                    f"There is no shard {path}: correct {key} (tools/make_shards.py writes shards)."
                )
    if not found:
        raise UserError(
            f"No shards given: add '{key}=\"shards/train-{{00000..00009}}.tar\"', both quotes too."
        )
    if len(set(found)) < len(found):
        raise UserError(f"{key} names a shard twice.")
    return found


def is_local(url: str) -> bool:
    """Whether a shard is a file of this machine."""
    return "://" not in url and not url.lower().lstrip().startswith("pipe:")


def local_file(url: str, *, cache_dir: str | None) -> Path:
    """Return where a shard lies on this machine; fetch it into the cache if need be.

    Raises:
        UserError: it lies elsewhere and there is no cache, or it cannot be fetched.
    """
    if is_local(url):
        return Path(url)
    if cache_dir is None:
        raise UserError(
            f"{url} has to be read image by image (for validation, tokenising or scores), "
            "which needs a local copy: add data.cache_dir=DIR."
        )
    from webdataset.cache import FileCache

    try:
        return Path(FileCache(cache_dir).get_file(url))
    except (OSError, ValueError) as error:
        raise UserError(f"{url} could not be fetched into {cache_dir}: {error}") from error


def _hold_out(shards: list[str], holdout: float) -> tuple[list[str], list[str]]:
    if not 0 < holdout < 1:
        raise UserError(f"holdout={holdout} must lie between 0 and 1, e.g. 0.05 for a twentieth.")
    if len(shards) < 2:
        raise UserError(
            "One shard cannot be split into training and held-out images: give data.val_urls, or "
            "write smaller shards."
        )
    count = min(max(1, round(holdout * len(shards))), len(shards) - 1)
    return shards[:-count], shards[-count:]


def _class_names(
    shards: list[str],
    classes: Sequence[str] | None,
    num_classes: int | None,
    unconditional: bool,
) -> tuple[str, ...]:
    if unconditional:
        return ("all",)
    if classes:
        return tuple(str(name) for name in classes)
    if num_classes:
        return tuple(str(number) for number in range(num_classes))
    beside = Path(shards[0]).parent / MANIFEST
    written: dict[str, Any] | None = read_manifest(beside) if is_local(shards[0]) else None
    if written and written.get("classes"):
        return tuple(written["classes"])
    raise UserError(
        f"Nothing says what the classes of {shards[0]} are called: add data.classes=[...], "
        f"data.num_classes=K to call them 0, 1, ..., or data.unconditional=true. Shards written by "
        f"tools/make_shards.py say it in {MANIFEST}."
    )


def _name_of(shards: list[str]) -> str:
    return Path(shards[0]).parent.name or "shards" if is_local(shards[0]) else shards[0]
