"""Images a second out of files, and how long a training step waits for its codes.

Images: the bundled emoji, enlarged and written as JPEG files, read as argen reads a folder and
tar shards, and by torchvision's `ImageFolder` and torch's `DataLoader` with the same resize, crop,
mirror and scale. Codes: shards of random codes, read for training steps of a published size.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from argen.data.code_writer import CodeWriter
from argen.data.codes import CodeDataset
from argen.data.draws import DrawSampler
from argen.data.emoji import emoji
from argen.data.folder import folder
from argen.data.tar_source import webdataset
from argen.data.transforms import center_crop
from argen.errors import UserError
from argen.runtime.device import pick_device
from argen.training.stream import Stream
from bench.cases import Case
from bench.models import generator, published
from bench.train import TrainingStep

sys.path.insert(0, str(Path(__file__).parents[1]))
READERS = ("ImageFolder", "folder", "webdataset")


def groups(settings: Mapping[str, Any]) -> Iterator[list[Case]]:
    """Yield a group for images, and one a model for codes."""
    for reader in settings["readers"]:
        if reader not in READERS:
            raise UserError(f"There is no reader {reader!r}; choose from {', '.join(READERS)}.")
    for model in settings["models"]:
        published(model)
    with tempfile.TemporaryDirectory() as place:
        if settings["readers"]:
            cases = list(_images(settings, Path(place)))
            yield cases
            for case in cases:
                case.call.close()  # type: ignore[attr-defined]
        for model in settings["models"]:
            yield list(_codes(settings, model, Path(place)))


def _images(settings: Mapping[str, Any], place: Path) -> Iterator[Case]:
    from make_shards import make_shards

    root, count, side = place / "images", settings["images"], settings["size"]
    batch, workers = settings["batch"], settings["workers"]
    write_images(root, count, settings["side"])
    for reader in settings["readers"]:
        if reader == "webdataset":
            make_shards(
                root, place / "shards", items=max(1, count // 16), holdout=0.02, seed=0,
                captions=None, unconditional=False, max_bad_fraction=0.0,
            )  # fmt: skip
            source = webdataset(str(place / "shards" / "train-*.tar"), image_size=side)
            assert source.stream is not None
            stream = source.stream.dealt_to(0, 1)
            loader: Any = DataLoader(
                stream, batch_size=batch, num_workers=workers, persistent_workers=workers > 0
            )
        elif reader == "folder":
            data = folder(root, image_size=side, cache=False, holdout=0.02).train
            sampler = DrawSampler(len(data), num_draws=count)
            loader = StatefulDataLoader(
                data, batch_size=batch, sampler=sampler, num_workers=workers, drop_last=True,
                persistent_workers=workers > 0,
            )  # fmt: skip
        else:
            loader = _image_folder(root, side, batch, workers)
        batches = count // batch
        yield Case(
            {"reads": reader, "workers": workers, "batch": batch},
            call=Endless(loader, batches),
            units=batches * batch,
            unit="images",
            bases={"x base": {"reads": "ImageFolder"}},
        )


def write_images(root: Path, count: int, side: int) -> None:
    """Write JPEG files of about a photograph's size in class folders."""
    from PIL import Image

    source = emoji(72, shift=0)
    for i in range(count):
        index = i * len(source.train) // count % len(source.train)
        name = source.classes[int(source.train.labels[index])]
        (root / name).mkdir(parents=True, exist_ok=True)
        pixels = source.train.pixels(index).permute(1, 2, 0).numpy()
        image = Image.fromarray(pixels).resize((side + i % 97, side), Image.Resampling.BICUBIC)
        image.save(root / name / f"{i}.jpg", quality=90)


def _image_folder(root: Path, side: int, batch: int, workers: int) -> DataLoader[Any]:
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    steps = transforms.Compose(
        [
            _Crop(side),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    return DataLoader(
        ImageFolder(str(root), steps), batch_size=batch, shuffle=True, num_workers=workers,
        drop_last=True, persistent_workers=workers > 0,
    )  # fmt: skip


class _Crop:
    """The resize and crop of argen, as a transform of torchvision's."""

    def __init__(self, side: int) -> None:
        self.size = (side, side)

    def __call__(self, image: Any) -> Any:
        return center_crop(image, self.size)


class Endless:
    """Reads on through the epochs of a loader, some batches a call."""

    def __init__(self, loader: Any, batches: int) -> None:
        self.loader, self.batches = loader, batches
        self.running: Any = iter(loader)

    def __call__(self) -> None:
        """Read as many batches as a call shall."""
        for _ in range(self.batches):
            if next(self.running, None) is None:
                self.running = iter(self.loader)
                next(self.running)

    def close(self) -> None:
        """End the worker processes, which read ahead, before their files are gone."""
        self.loader = self.running = None


def _codes(settings: Mapping[str, Any], model: str, place: Path) -> Iterator[Case]:
    device = pick_device(settings["device"])
    network = generator(model, device=device, dtype=torch.float32, **settings["changes"]).train()
    step = TrainingStep(network, settings["batch"])
    write_codes(network.spec, place / "codes" / model, settings["codes"])
    data = CodeDataset(place / "codes" / model)
    for workers in (0, settings["workers"]):
        stream = Stream(
            data, data, steps=10**6, batch_size=settings["batch"], workers=workers
        )  # fmt: skip
        yield Case(
            {"reads": f"codes, {model} step", "workers": workers, "batch": settings["batch"]},
            call=WaitingStep(step, stream, settings["precision"]),
            units=settings["batch"],
            unit="images",
            dtype=settings["precision"],
        )


def write_codes(spec: Any, directory: Path, count: int) -> None:
    """Write one shard after another of random codes."""
    writer = CodeWriter(
        directory, spec=spec, tokenizer_fingerprint="none", classes=["any"], transform="none",
        views=["plain"], num_items=count,
    )  # fmt: skip
    for shard in writer.missing():
        items = shard.stop - shard.start
        shape = spec.code_shape(items)
        if spec.kind == "continuous":
            codes = torch.randn(shape)
        else:
            codes = torch.randint(min(min(s.vocab_sizes) for s in spec.segments), shape)
        index = torch.arange(shard.start, shard.stop)
        writer.write(shard, codes[:, None], torch.zeros(items), index)
    writer.finish()


class WaitingStep:
    """A training step on codes that are read for it; says which share of it is waiting."""

    def __init__(self, step: TrainingStep, stream: Stream, precision: str) -> None:
        self.step, self.precision = step, precision
        self.batches = iter(stream.train_dataloader())

    def __call__(self) -> dict[str, float]:
        """Read a batch and make the step."""
        begin = time.perf_counter()
        batch = next(self.batches)
        read = time.perf_counter()
        label = self.step.batch["label"]
        self.step.batch = {"codes": batch["codes"].to(label.device), "label": label}
        self.step(self.precision)
        if label.is_cuda:
            torch.cuda.synchronize()
        whole = time.perf_counter() - begin
        return {"waiting": (read - begin) / whole}
