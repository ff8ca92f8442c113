"""Write a folder of images as tar shards that `data=webdataset` reads.

    python tools/make_shards.py images shards
    python tools/make_shards.py images shards --items 5000 --holdout 0.02

`images` holds one sub-directory a class (or `train` and `val` with them, see `data=folder`). The
files go into the shards byte for byte, mixed over the classes, each with `.cls` (the number of its
class), `.json` (number, name of the class, name of the file) and, where there are captions, `.txt`.
`manifest.json` names the classes and gives counts and a sha256 a shard. A killed run goes on with
the shards that are missing.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from argen.data.draws import hash_seed
from argen.data.folder import folder
from argen.data.images import FileImages, check_bad_rate
from argen.data.shards import read_manifest
from argen.data.tar_source import MANIFEST
from argen.data.transforms import center_crop
from argen.errors import UserError
from argen.images.files import UNREADABLE, decode_image
from argen.runtime.files import replacing, sha256_of, write_json

log = logging.getLogger(__name__)
FORMAT = 1


def main(words: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path, help="one sub-directory a class")
    parser.add_argument("out", type=Path, help="gets train-00000.tar, ..., val-00000.tar, ...")
    parser.add_argument("--items", type=int, default=1000, help="images in a shard (1000)")
    parser.add_argument("--holdout", type=float, default=0.05, help="share for val (0.05)")
    parser.add_argument("--seed", type=int, default=0, help="names the split and the order")
    parser.add_argument("--captions", help="captions.csv, .txt, .json, or beside; see data=folder")
    parser.add_argument("--unconditional", action="store_true", help="one class, all")
    parser.add_argument(
        "--max-bad-fraction", type=float, default=0.01, help="unreadable images allowed (0.01)"
    )
    options = parser.parse_args(words)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        if options.items < 1:
            raise UserError(f"--items {options.items} must be at least 1.")
        manifest = make_shards(**vars(options))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for split, count in manifest["items"].items():
        files = [shard for shard in manifest["shards"] if shard["file"].startswith(split)]
        print(f"{split}: {count} images in {len(files)} shards")
    print(f"left out as unreadable: {len(manifest['left_out'])}")
    print(f"read them with data=webdataset 'data.urls={options.out}/train-*.tar' "
          f"'data.val_urls={options.out}/val-*.tar'")  # fmt: skip
    return 0


def make_shards(
    images: Path,
    out: Path,
    *,
    items: int,
    holdout: float,
    seed: int,
    captions: str | None,
    unconditional: bool,
    max_bad_fraction: float,
) -> dict[str, Any]:
    """Write the shards that are missing, then the manifest, which is returned."""
    source = folder(
        images, holdout=holdout, seed=seed, captions=captions, unconditional=unconditional,
        cache=False,
    )  # fmt: skip
    plan = {
        "source": source.manifest()["fingerprint"],
        "items": items,
        "seed": seed,
        "captions": captions,
    }
    _begin(out, plan)
    classes, left_out, shards = source.classes, [], []
    counts: dict[str, dict[str, int]] = {}
    for split, data in (("train", source.train), ("val", source.val)):
        assert isinstance(data, FileImages)
        good, bad = _readable(data)
        left_out += bad
        check_bad_rate(left_out, len(source.train) + len(source.val), max_bad_fraction)
        if not good:
            raise UserError(f"No image of {split} can be read.")
        order = sorted(good, key=lambda i: hash_seed("shards", seed, data.names[i]))
        counts[split] = {
            name: sum(int(data.labels[i]) == k for i in good) for k, name in enumerate(classes)
        }
        for number, start in enumerate(range(0, len(order), items)):
            place = out / f"{split}-{number:05d}.tar"
            part = order[start : start + items]
            if not place.is_file():
                _write(place, data, part, classes)
            shards.append(
                {"file": place.name, "items": len(part), "sha256": sha256_of(place)}
            )  # fmt: skip
    manifest = {
        "format": FORMAT,
        "classes": list(classes),
        "items": {split: sum(each.values()) for split, each in counts.items()},
        "class_counts": counts,
        "left_out": left_out,
        "shards": shards,
        "plan": plan,
    }
    write_json(out / MANIFEST, manifest)
    return manifest


def _begin(out: Path, plan: dict[str, Any]) -> None:
    """Make the directory, and refuse one that holds shards of something else."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        found = read_manifest(out / "plan.json")
        if found is None:
            if any(out.glob("*.tar")):
                raise UserError(f"{out} holds tar files already: choose an empty directory.")
            write_json(out / "plan.json", plan)
    except OSError as error:
        raise UserError(f"Shards cannot be written to {out}: {error.strerror}.") from error
    if found not in (None, plan):
        raise UserError(
            f"{out} holds shards of other images or settings: delete it, or choose another."
        )


def _readable(data: FileImages) -> tuple[list[int], list[str]]:
    """Decode every image once; returns the numbers of the good and the paths of the bad."""
    good, bad = [], []
    for index in range(len(data)):
        try:
            decode_image(data.paths[index], (8, 8), center_crop)
        except UNREADABLE as error:
            log.warning("Left out %s: %s", data.paths[index], error)
            bad.append(data.paths[index])
        else:
            good.append(index)
    return good, bad


def _write(place: Path, data: FileImages, part: list[int], classes: tuple[str, ...]) -> None:
    """Write one shard; it gets its name when it is whole."""
    from webdataset import TarWriter

    try:
        with replacing(place) as temporary, temporary.open("wb") as file:
            writer = TarWriter(file, encoder=False, mtime=0)
            for sample in _samples(data, part, classes):
                writer.write(sample)
            writer.close()
    except OSError as error:
        raise UserError(f"{place} cannot be written: {error.strerror}. Make room and run the same "
                        "command again.") from error  # fmt: skip


def _samples(
    data: FileImages, part: list[int], classes: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    for index in part:
        path, label = Path(data.paths[index]), int(data.labels[index])
        about = {"label": label, "class": classes[label], "name": data.names[index]}
        sample = {
            "__key__": f"{index:09d}",
            path.suffix[1:].lower(): path.read_bytes(),
            "cls": str(label).encode(),
            "json": json.dumps(about).encode(),
        }
        if data.captions is not None:
            sample["txt"] = data.captions[index].encode()
        yield sample


if __name__ == "__main__":
    sys.exit(main())
