"""Images that a model draws for a score, kept in shards so that a killed run goes on.

Shapes: N images, B batch, H W pixels.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from argen.decoding.base import Decoder
from argen.images.pixels import to_uint8
from argen.pipeline import Pipeline
from argen.pipeline.keys import image_keys
from argen.pipeline.model_directory import weights_fingerprint
from argen.runtime.distributed import barrier, rank_and_world_size
from argen.runtime.files import replacing, write_json

SHARD = 256  # images a file; a multiple of it goes to each rank


class Generated:
    """N images with the keys of `image_keys(seed, N)`, in shards that ranks deal out among them.

    An image depends on its own key and label alone, and every shard is drawn in the same batches
    wherever that happens: the set is the same on 1 rank or 64, drawn in one go or in ten.

    Args:
        pipe: draws.
        labels: class of each image.
        prompts: what each is sampled for, where that is not its label: texts.
        seed: of the first image.
        directory: gets a sub-directory named by everything that decides the images.
        batch_size: images drawn at once.
        decoder: strategy; the plainest that fits when None.
        rounding: how floats become 8-bit values.
        precision: what `pipe` was turned to, a part of the sub-directory's name.
        **sampling: cfg, top_k, ...
    """

    def __init__(
        self,
        pipe: Pipeline,
        *,
        labels: list[int],
        prompts: Sequence[int] | Sequence[str] | None = None,
        seed: int,
        directory: Path,
        batch_size: int = 64,
        decoder: Decoder | None = None,
        rounding: str = "nearest",
        precision: str = "float32",
        **sampling: Any,
    ) -> None:
        self.pipe, self.labels, self.seed = pipe, labels, seed
        self.prompts = labels if prompts is None else prompts
        self.keys = image_keys(seed, len(labels))
        self.batch_size, self.rounding, self.sampling = batch_size, rounding, sampling
        self.decoder = pipe.strategy(decoder)
        assert pipe.generator is not None
        about = {
            "tokenizer": weights_fingerprint(pipe.tokenizer),
            "generator": weights_fingerprint(pipe.generator),
            "decoder": getattr(decoder, "config", None) or type(self.decoder).__name__,
            "sampling": {**pipe.defaults, **sampling},
            "labels": hashlib.sha256(json.dumps(labels).encode()).hexdigest(),
            "seed": seed,
            "keys": "hashed",  # image i had seed + i before 0.2
            "batch_size": batch_size,
            "rounding": rounding,
            "precision": precision,
        }
        if self.prompts != labels:
            # The entry keeps its first name, so that samples of killed runs are still found.
            about["asked"] = hashlib.sha256(json.dumps(list(self.prompts)).encode()).hexdigest()
        text = json.dumps(about, sort_keys=True, default=str)
        self.directory = directory / f"samples-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        if rank_and_world_size()[0] == 0 and not (self.directory / "about.json").is_file():
            write_json(self.directory / "about.json", json.loads(text))

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield numbers (B,), pixels uint8 (B, 3, H, W) and labels (B,) of this rank's shards."""
        rank, ranks = rank_and_world_size()
        starts = range(0, len(self), SHARD)
        for start in starts[rank::ranks]:
            index = torch.arange(start, min(start + SHARD, len(self)))
            path = self._path(start)
            pixels = _read(path) if path.is_file() else self._draw(index, path)
            yield index, pixels, torch.tensor([self.labels[i] for i in index.tolist()])

    def export(self, path: Path) -> None:
        """Write all images as ADM's script takes them: `arr_0` uint8 (N, H, W, 3), `labels`.

        Every rank must have drawn its share; one shard is in memory at a time.
        """
        barrier()
        if rank_and_world_size()[0] == 0:
            with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
                with archive.open("arr_0.npy", "w", force_zip64=True) as file:
                    for start in range(0, len(self), SHARD):
                        pixels = _read(self._path(start)).permute(0, 2, 3, 1).contiguous().numpy()
                        if start == 0:
                            header = {
                                "descr": np.lib.format.dtype_to_descr(pixels.dtype),
                                "fortran_order": False,
                                "shape": (len(self), *pixels.shape[1:]),
                            }
                            np.lib.format.write_array_header_1_0(file, header)
                        file.write(pixels.tobytes())
                with archive.open("labels.npy", "w") as file:
                    np.lib.format.write_array(file, np.array(self.labels))
        barrier()

    def remove(self) -> None:
        """Delete the shards, once every rank is done with them."""
        barrier()
        if rank_and_world_size()[0] == 0:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _path(self, start: int) -> Path:
        return self.directory / f"{start:08d}.npz"

    def _draw(self, index: Tensor, path: Path) -> Tensor:
        parts = self.pipe.batches(
            [self.prompts[i] for i in index.tolist()],
            [self.keys[i] for i in index.tolist()],
            batch_size=self.batch_size,
            decoder=self.decoder,
            **self.sampling,
        )
        pixels = torch.cat([to_uint8(part.images, rounding=self.rounding) for part in parts])
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, arr_0=pixels.permute(0, 2, 3, 1).contiguous().numpy())
        return pixels


def _read(path: Path) -> Tensor:
    with np.load(path, allow_pickle=False) as file:
        return torch.from_numpy(file["arr_0"]).permute(0, 3, 1, 2).contiguous()
