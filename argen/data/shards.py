"""How code shards lie on disk; written by `code_writer`, read by `codes`.

A directory holds one side of a data set (`codes/train`, `codes/val`):

    plan.json            what is being made: code language, tokenizer, classes, views, sizes
    codes-00000.npy      (items, views, ...code shape without B), smallest type that holds it
    labels-00000.npy     int64 (items,)
    indices-00000.npy    int64 (items,): which image of the data set
    NAME-00000.npy       (items, ...): more about each image, e.g. features of its caption
    manifest.json        the plan, and a sha256 of each file, once all of it is there

Binary codes are packed eight to a byte. Continuous ones are floats; with `channels="mean_std"`
each position holds C means and C standard deviations, and reading draws from them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from argen.errors import UserError
from argen.runtime.files import read_json_object
from argen.spec import CodeSpec

FORMAT = 1
AGAIN = "run the same `argen tokenize` command again (finished shards are kept)"

Channels = Literal["codes", "mean_std"]

# What every item has besides its extra arrays.
OWN = ("codes", "labels", "indices", "label", "index", "image", "plan", "manifest")
EXTRA_DTYPES = ("bool", "uint8", "int32", "int64", "float16", "float32")


class Extra(NamedTuple):
    """An array that is stored for each image beside its codes.

    Attributes:
        shape: of one image's array, e.g. (77, 768) for token features; () for a number.
        dtype: one of `EXTRA_DTYPES`.
    """

    shape: tuple[int, ...]
    dtype: str = "float16"


class Shard(NamedTuple):
    """Items [start, stop) of the data set, stored in shard `number`."""

    number: int
    start: int
    stop: int


def shards_of(num_items: int, shard_size: int) -> list[Shard]:
    """Return all shards of a data set; the last one may be smaller."""
    return [
        Shard(number, start, min(start + shard_size, num_items))
        for number, start in enumerate(range(0, num_items, shard_size))
    ]


def storage_dtype(spec: CodeSpec, float_dtype: str = "float16") -> np.dtype:
    """Return the smallest type that holds codes of `spec` (binary codes: eight to a byte)."""
    if spec.kind == "continuous":
        return np.dtype(float_dtype)
    if spec.kind == "binary":
        return np.dtype(np.uint8)
    largest = max(size for segment in spec.segments for size in segment.vocab_sizes)
    return np.dtype(np.uint8 if largest <= 2**8 else np.uint16 if largest <= 2**16 else np.int32)


def stored_shape(spec: CodeSpec, plan: dict[str, Any], items: int) -> tuple[int, ...]:
    """Return the shape of a shard's codes: (items, views, ...)."""
    shape = spec.code_shape(1)[1:]
    if spec.kind == "binary":
        shape = (*shape[:-1], -(-shape[-1] // 8))
    if plan["channels"] == "mean_std":
        shape = (*shape[:-1], 2 * shape[-1])
    return (items, len(plan["views"]), *shape)


def extras_to_plan(extras: Mapping[str, Extra]) -> dict[str, Any]:
    """Return the declared extra arrays as plain values, checked.

    Raises:
        UserError: a name that cannot be a file or is taken, or an unknown type.
    """
    for name, extra in extras.items():
        if not name.isidentifier() or name in OWN:
            raise UserError(
                f"An extra array cannot be called {name!r}: use a plain word other than "
                f"{', '.join(OWN)}."
            )
        if extra.dtype not in EXTRA_DTYPES:
            raise UserError(
                f"Extra array {name} has dtype {extra.dtype!r}; use one of "
                f"{', '.join(EXTRA_DTYPES)}."
            )
    return {
        name: {"shape": list(extra.shape), "dtype": extra.dtype} for name, extra in extras.items()
    }


def extras_of(plan: dict[str, Any]) -> dict[str, Extra]:
    """Return the extra arrays that a plan or manifest declares."""
    return {
        name: Extra(tuple(extra["shape"]), extra["dtype"])
        for name, extra in plan.get("extras", {}).items()
    }


def shard_problem(directory: Path, plan: dict[str, Any], spec: CodeSpec, shard: Shard) -> str:
    """Return what is wrong with a shard's files judging by headers and lengths, or nothing."""
    items = shard.stop - shard.start
    expected: dict[str, tuple[tuple[int, ...], np.dtype]] = {
        "codes": (stored_shape(spec, plan, items), np.dtype(plan["dtype"])),
        "labels": ((items,), np.dtype(np.int64)),
        "indices": ((items,), np.dtype(np.int64)),
    }
    for name, extra in extras_of(plan).items():
        expected[name] = ((items, *extra.shape), np.dtype(extra.dtype))
    for what, (shape, dtype) in expected.items():
        path = directory / f"{what}-{shard.number:05d}.npy"
        try:
            array = np.load(path, mmap_mode="r")
        except FileNotFoundError:
            return f"{path.name} is missing"
        except (OSError, ValueError, EOFError):
            return f"{path.name} is truncated or not an array"
        if array.shape != shape or array.dtype != dtype:
            return f"{path.name} holds {array.dtype} {array.shape}, expected {dtype} {shape}"
    return ""


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Return what a plan or manifest says, or None if there is no such file."""
    if not path.exists():
        return None
    try:
        return read_json_object(path)
    except UserError as error:
        raise UserError(
            f"{path} is damaged ({error}): delete {path.parent} and tokenise again."
        ) from error


def save_array(path: Path, array: np.ndarray) -> None:
    """Write a .npy file that is there whole, and on disk, or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.save(file, array)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
