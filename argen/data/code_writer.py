"""Write the codes of a data set, shard by shard, so that a killed run can go on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from argen.data.shards import (
    AGAIN,
    FORMAT,
    Channels,
    Extra,
    Shard,
    extras_of,
    extras_to_plan,
    read_manifest,
    save_array,
    shard_problem,
    shards_of,
    storage_dtype,
)
from argen.errors import UserError
from argen.runtime.files import sha256_of, write_json
from argen.spec import CodeSpec, SpecError


class CodeWriter:
    """Write the codes of a data set shard by shard; goes on where a killed run stopped.

    Several processes may write different shards of `missing()`; one of them calls `finish()` after
    the others are done.

    Args:
        directory: where to write, e.g. `codes/train`.
        spec: the tokenizer's code language.
        tokenizer_fingerprint: names the tokenizer's weights.
        classes: class names, in the order of the labels.
        transform: how files became pixels, in words.
        views: one name per stored version of each image, e.g. `["centre", "flip"]`.
        num_items: images in the data set.
        shard_size: images in a shard.
        channels: what continuous codes hold: `codes`, or `mean_std` of their posterior.
        float_dtype: storage of continuous codes.
        source: manifest of the images, kept beside the codes.
        extras: arrays that each image has besides its codes, by name.
        text: what made the text features among them, as plain values.

    Raises:
        UserError: the directory holds codes of something else, or cannot be written.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        spec: CodeSpec,
        tokenizer_fingerprint: str,
        classes: Sequence[str],
        transform: str,
        views: Sequence[str],
        num_items: int,
        shard_size: int = 4096,
        channels: Channels = "codes",
        float_dtype: Literal["float16", "float32"] = "float16",
        source: dict[str, Any] | None = None,
        extras: Mapping[str, Extra] | None = None,
        text: dict[str, Any] | None = None,
    ) -> None:
        if num_items < 1 or shard_size < 1 or not views:
            raise UserError(
                f"Code shards need images, views and a shard size, not num_items={num_items}, "
                f"views={list(views)}, shard_size={shard_size}."
            )
        if channels == "mean_std" and spec.kind != "continuous":
            raise UserError(f"Means and deviations need continuous codes, not {spec.describe()}.")
        self.directory = Path(directory)
        self.spec = spec
        self.plan: dict[str, Any] = {
            "format": FORMAT,
            "spec": spec.to_dict(),
            "spec_fingerprint": spec.fingerprint(),
            "tokenizer": tokenizer_fingerprint,
            "classes": list(classes),
            "transform": transform,
            "views": list(views),
            "num_items": num_items,
            "shard_size": shard_size,
            "channels": channels,
            "dtype": storage_dtype(spec, float_dtype).name,
            "source": json.loads(json.dumps(source)),
        }
        if extras:
            self.plan["extras"] = extras_to_plan(extras)
        if text is not None:
            self.plan["text"] = json.loads(json.dumps(text))
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            found = read_manifest(self.directory / "plan.json")
            if found is None:
                write_json(self.directory / "plan.json", self.plan)
            else:
                self._require_same_plan(found)
        except OSError as error:
            raise UserError(
                f"Codes cannot be written to {self.directory}: {error.strerror}."
            ) from error

    def _require_same_plan(self, found: dict[str, Any]) -> None:
        for key in {**self.plan, **found}:
            wanted = self.plan.get(key)
            if found.get(key) != wanted:
                was, now = (
                    text if len(text) < 100 else text[:97] + "..."
                    for text in (json.dumps(found.get(key)), json.dumps(wanted))
                )
                raise UserError(
                    f"{self.directory} holds codes made with another {key} ({was}, now {now}): "
                    f"delete that directory or write to another one."
                )

    @property
    def finished(self) -> bool:
        """Whether `finish()` was called and every shard is there."""
        return (self.directory / "manifest.json").exists() and not self.missing()

    def shards(self) -> list[Shard]:
        """Return all shards, written or not."""
        return shards_of(self.plan["num_items"], self.plan["shard_size"])

    def missing(self) -> list[Shard]:
        """Return the shards that are still to be written (absent or damaged)."""
        return [
            shard
            for shard in self.shards()
            if shard_problem(self.directory, self.plan, self.spec, shard)
        ]

    def write(
        self,
        shard: Shard,
        codes: Tensor,
        labels: Tensor,
        indices: Tensor,
        extras: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write one shard; it counts as written only when all of it is on disk.

        Args:
            shard: one of `missing()`.
            codes: (items, views, ...code shape), as `spec.check` accepts them view by view; with
                `channels="mean_std"` float (items, views, L, 2C).
            labels: (items,), in [0, number of classes).
            indices: (items,), which images these are.
            extras: the declared extra arrays, (items, ...) each.

        Raises:
            UserError: wrong shapes or values, or the disk is full.
        """
        items = shard.stop - shard.start
        if codes.shape[:2] != (items, len(self.plan["views"])):
            raise SpecError(
                f"Shard {shard.number} needs {items} items x {len(self.plan['views'])} views, "
                f"but got codes of shape {tuple(codes.shape)}."
            )
        stored = self._stored(codes.detach().cpu())
        per_item = {"labels": labels, "indices": indices}
        for what, values in per_item.items():
            if values.shape != (items,):
                raise SpecError(f"Shard {shard.number} needs {items} {what}.")
        if not 0 <= int(labels.min()) <= int(labels.max()) < len(self.plan["classes"]):
            raise SpecError(f"A label lies outside the {len(self.plan['classes'])} classes.")
        more = self._extra_arrays(extras or {}, shard)
        try:
            for what, values in per_item.items():
                more[what] = values.detach().cpu().numpy().astype(np.int64)
            for what, array in more.items():
                save_array(self.directory / f"{what}-{shard.number:05d}.npy", array)
            # The codes last: their presence is what marks a shard as written.
            save_array(self.directory / f"codes-{shard.number:05d}.npy", stored)
        except OSError as error:
            raise UserError(
                f"Codes cannot be written to {self.directory}: {error.strerror}. Make room, then "
                f"{AGAIN}."
            ) from error

    def _extra_arrays(self, given: Mapping[str, Tensor], shard: Shard) -> dict[str, np.ndarray]:
        declared = extras_of(self.plan)
        if set(given) != set(declared):
            raise SpecError(
                f"Shard {shard.number} needs the extra arrays {sorted(declared)}, "
                f"but got {sorted(given)}."
            )
        arrays = {}
        for name, extra in declared.items():
            values = given[name].detach().cpu()
            wanted = (shard.stop - shard.start, *extra.shape)
            if values.shape != wanted:
                raise SpecError(
                    f"Extra array {name} must have shape {wanted}, not {tuple(values.shape)}."
                )
            if not bool(torch.isfinite(values).all()):
                raise SpecError(f"Extra array {name} of shard {shard.number} is not finite.")
            exact = values.float() if values.dtype == torch.bfloat16 else values
            with np.errstate(over="ignore"):  # the next line looks for it
                arrays[name] = exact.numpy().astype(extra.dtype)
            if not np.isfinite(arrays[name]).all():
                raise SpecError(f"Extra array {name} is too large to be stored as {extra.dtype}.")
        return arrays

    def _stored(self, codes: Tensor) -> np.ndarray:
        flat = codes.flatten(0, 1)
        if self.plan["channels"] == "mean_std":
            if flat.shape[-1] != 2 * self.spec.dim:
                raise SpecError(f"Expected {self.spec.dim} means and as many deviations.")
            self.spec.check(flat[..., : self.spec.dim])
        else:
            self.spec.check(flat)
        array = codes.numpy() if codes.dtype != torch.bfloat16 else codes.float().numpy()
        if self.spec.kind == "binary":
            return np.packbits(array.astype(np.uint8), axis=-1)
        dtype = np.dtype(self.plan["dtype"])
        # Written so that NaN fails the comparison too.
        if self.spec.kind == "continuous" and not np.abs(array).max() <= np.finfo(dtype).max:
            raise SpecError(f"Codes are not finite, or too large to be stored as {dtype}.")
        return array.astype(dtype)

    def finish(self) -> dict[str, Any]:
        """Write the manifest, which makes the directory readable, and return it.

        Raises:
            UserError: when shards are missing.
        """
        missing = self.missing()
        if missing:
            raise UserError(
                f"{self.directory} still lacks {len(missing)} of {len(self.shards())} shards: "
                f"{AGAIN}."
            )
        counts = np.zeros(len(self.plan["classes"]), dtype=np.int64)
        shards = []
        for shard in self.shards():
            labels = np.load(self.directory / f"labels-{shard.number:05d}.npy")
            counts += np.bincount(labels, minlength=len(counts))
            shards.append({"items": shard.stop - shard.start, "sha256": self._sha256(shard)})
        manifest = self.plan | {
            "class_counts": dict(zip(self.plan["classes"], counts.tolist())),
            "shards": shards,
        }
        write_json(self.directory / "manifest.json", manifest)
        for left_over in self.directory.glob(".*.tmp"):  # of killed processes
            left_over.unlink(missing_ok=True)
        return manifest

    def _sha256(self, shard: Shard) -> dict[str, str]:
        return {
            what: sha256_of(self.directory / f"{what}-{shard.number:05d}.npy")
            for what in ("codes", "labels", "indices", *extras_of(self.plan))
        }
