"""Codes to train a generator on, memory-mapped; how the files lie is in `shards`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from argen.data.code_writer import CodeWriter
from argen.data.draws import SampleRequest, as_request, hash_seed, pick
from argen.data.shards import (
    AGAIN,
    FORMAT,
    Shard,
    extras_of,
    read_manifest,
    shard_problem,
    shards_of,
)
from argen.errors import UserError
from argen.runtime.files import sha256_of
from argen.spec import CodeSpec, SpecError, require_same_spec

__all__ = ["CodeDataset", "CodeWriter"]

# Up to this size opening a directory also checks every sha256.
VERIFY_BYTES = 64 * 2**20


class CodeDataset(Dataset[dict[str, Tensor]]):
    """Codes of one side of a data set, read from memory-mapped shards.

    Items are `{"codes": ..., "label": int64, "index": int64}`, with codes as the spec has them:
    int64 (L,), (L, G) or (L, bits), float32 (L, C). A `SampleRequest` with a seed picks
    one of the views at random (and, for stored means and deviations, samples the code); without one
    it is view 0 and the mean. Extra arrays that were stored come under their names, in their type.

    Args:
        directory: where the codes lie.
        split: sub-directory, `train` or `val`; None when `directory` is that already.
        verify: check every sha256 when opening; None does so for small data sets.

    Attributes:
        spec: the code language.
        classes: class names.
        labels: int64 (N,).
        indices: int64 (N,), which image of the data set each item is.
        views: names of the stored views.
        tokenizer: fingerprint of the tokenizer that made the codes.
        extras: shape and type of the extra arrays by name.
        text: what made the text features among them: `spec`, `encoder` (how to build it), and the
            sha256 of the `captions`; None where there are none.
        manifest: everything known about them.

    Raises:
        UserError: no codes there, unfinished, or damaged.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        split: str | None = None,
        verify: bool | None = None,
    ) -> None:
        self.directory = Path(directory) / split if split else Path(directory)
        self.manifest = _read_manifest(self.directory)
        try:
            self._open(verify)
        except UserError:
            raise
        except Exception as error:  # a damaged manifest fails in whatever way its entries lead to
            raise UserError(
                f"{self.directory / 'manifest.json'} does not describe the codes beside it "
                f"({type(error).__name__}: {error}): delete {self.directory} and tokenise again."
            ) from error

    def _open(self, verify: bool | None) -> None:
        """Take everything from the manifest and look at the shards it names."""
        self.spec = CodeSpec.from_dict(self.manifest["spec"])
        self.classes: tuple[str, ...] = tuple(self.manifest["classes"])
        self.views: tuple[str, ...] = tuple(self.manifest["views"])
        self.tokenizer: str = self.manifest["tokenizer"]
        self.extras = extras_of(self.manifest)
        self.text: dict[str, Any] | None = self.manifest.get("text")
        self._arrays: dict[tuple[str, int], np.ndarray] = {}

        shards = shards_of(self.manifest["num_items"], self.manifest["shard_size"])
        for shard in shards:
            self._refuse(shard, shard_problem(self.directory, self.manifest, self.spec, shard))
        if verify is None:
            total = sum(self._path("codes", shard.number).stat().st_size for shard in shards)
            verify = total <= VERIFY_BYTES
        if verify:
            for shard in shards:
                for what, expected in self.manifest["shards"][shard.number]["sha256"].items():
                    if sha256_of(self._path(what, shard.number)) != expected:
                        self._refuse(shard, f"its {what} changed since they were written")
        self.labels = self._joined("labels", shards)
        self.indices = self._joined("indices", shards)

    def __len__(self) -> int:
        return int(self.manifest["num_items"])

    def __getitem__(self, item: SampleRequest | int) -> dict[str, Tensor]:
        request = as_request(item)
        if not 0 <= request.index < len(self):
            raise IndexError(f"item {request.index} of {len(self)}")
        number, place = divmod(request.index, self.manifest["shard_size"])
        view = 0 if request.seed is None else pick(hash_seed("view", request.seed), len(self.views))
        stored = self._shard("codes", number)[place, view]
        return {
            "codes": self._codes(stored, request.seed),
            "label": self.labels[request.index],
            "index": self.indices[request.index],
            **{
                name: torch.from_numpy(np.array(self._shard(name, number)[place]))
                for name in self.extras
            },
        }

    def every_view(self) -> Tensor:
        """Return the stored codes of all items and views, (N * views, L, ...)."""
        parts = [
            self._codes(stored, None)
            for number in range(len(self.manifest["shards"]))
            for item in self._shard("codes", number)
            for stored in item
        ]
        return torch.stack(parts)

    def require_spec(self, wanted: CodeSpec, *, wanted_by: str) -> None:
        """Raise `SpecError` unless the codes speak the language that a generator models."""
        require_same_spec(self.spec, wanted, found_in=str(self.directory), wanted_by=wanted_by)

    def require_tokenizer(self, fingerprint: str, *, wanted_by: str) -> None:
        """Raise `SpecError` unless the codes come from the tokenizer with this fingerprint."""
        if fingerprint != self.tokenizer:
            raise SpecError(
                f"{self.directory} was written by tokenizer {self.tokenizer}, but {wanted_by} "
                f"needs tokenizer {fingerprint}: tokenise the data again with that one."
            )

    def _codes(self, stored: np.ndarray, seed: int | None) -> Tensor:
        if self.spec.kind == "binary":
            bits = np.unpackbits(stored, axis=-1, count=self.spec.segments[0].bits)
            return torch.from_numpy(bits.astype(np.int64))
        if self.spec.kind == "discrete":
            return torch.from_numpy(stored.astype(np.int64))
        values = torch.from_numpy(stored.astype(np.float32))
        if self.manifest["channels"] == "codes":
            return values
        mean, deviation = values.split(self.spec.dim, dim=-1)  # (L, C) each
        if seed is None:
            return mean
        generator = torch.Generator().manual_seed(hash_seed("posterior", seed))
        return mean + deviation * torch.randn(mean.shape, generator=generator)

    def _shard(self, what: str, number: int) -> np.ndarray:
        if (what, number) not in self._arrays:
            self._arrays[what, number] = np.load(self._path(what, number), mmap_mode="r")
        return self._arrays[what, number]

    def _path(self, what: str, number: int) -> Path:
        return self.directory / f"{what}-{number:05d}.npy"

    def _joined(self, what: str, shards: Sequence[Shard]) -> Tensor:
        parts = [np.load(self._path(what, shard.number)) for shard in shards]
        return torch.from_numpy(np.concatenate(parts))

    def _refuse(self, shard: Shard, problem: str) -> None:
        if problem:
            raise UserError(
                f"Shard {shard.number} of {self.directory} is damaged ({problem}): delete "
                f"codes-{shard.number:05d}.npy there, then {AGAIN}."
            )

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map would carry its contents; a worker process opens its own.
        return self.__dict__ | {"_arrays": {}}


def _read_manifest(directory: Path) -> dict[str, Any]:
    if not directory.is_dir():
        raise UserError(
            f"There are no codes in {directory}: make them with `argen tokenize model=TOKENIZER "
            f"data=... out=...`."
        )
    manifest = read_manifest(directory / "manifest.json")
    if manifest is None:
        begun = len(list(directory.glob("codes-*.npy")))
        raise UserError(
            f"{directory} has no manifest.json ({begun} shards are there): tokenisation did not "
            f"finish; {AGAIN}."
        )
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"{directory} was written in format {manifest.get('format')}, this argen reads format "
            f"{FORMAT}: delete it and tokenise again."
        )
    return manifest
