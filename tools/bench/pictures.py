"""Seconds from class labels to PNG files, and which part takes them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from argen.images.files import save_image
from argen.pipeline import Pipeline
from argen.runtime.device import pick_device
from argen.runtime.flops import count_flops
from bench.cases import Case
from bench.models import check, generator, published, read_bytes, tokenizer
from bench.sample import decoder_of

PARTS = ("generator", "head", "pixels", "PNG")


def groups(settings: Mapping[str, Any]) -> Iterator[list[Case]]:
    """Yield a group a model, its precisions and batch sizes taking turns."""
    device = pick_device(settings["device"])
    check(settings)
    with TemporaryDirectory() as place:
        for model in settings["models"]:
            cases = []
            for precision in settings["precisions"]:
                pipe = _pipeline(model, device, precision, settings)
                cases += [
                    _case(pipe, model, precision, batch, settings, Path(place))
                    for batch in settings["batches"]
                ]
            yield cases


def _pipeline(
    model: str, device: torch.device, precision: str, settings: Mapping[str, Any]
) -> Pipeline:
    how = published(model)
    network = generator(model, device=device, dtype=torch.float32, **settings["changes"])
    return Pipeline(
        tokenizer=tokenizer(how.tokenizer, device=device, dtype=torch.float32, changes=how.changes),
        generator=network,
        decoder=decoder_of(settings["decoder"], network, how),
        defaults=how.settings,
    ).to_precision(precision, batch_size=max(settings["batches"]))


def _case(
    pipe: Pipeline,
    model: str,
    precision: str,
    batch: int,
    settings: Mapping[str, Any],
    place: Path,
) -> Case:
    draw = Drawing(pipe, batch, settings["seed"], place)
    flops = count_flops(draw)
    waits = pipe.device.type == "cuda"  # then timing the parts slows the whole down
    parts = draw.in_parts() if waits else {}
    network: Any = pipe.generator
    read = read_bytes(network) + read_bytes(pipe.tokenizer) / draw.passes
    return Case(
        {"model": model, "precision": precision, "batch": batch},
        call=(lambda: draw() or parts) if waits else draw.in_parts,
        units=batch,
        unit="images",
        bytes=read * draw.passes,
        flops=flops,
        dtype=precision,
        bases={"x float32": {"precision": "float32"}},
    )


class Drawing:
    """Draws a batch and writes its images.

    Attributes:
        passes: of the generator, after a call.
    """

    def __init__(self, pipe: Pipeline, batch: int, seed: int, place: Path) -> None:
        self.pipe, self.batch, self.seed, self.place = pipe, batch, seed, place
        self.passes = 0

    def __call__(self) -> None:
        """Draw and write."""
        network: Any = self.pipe.generator
        labels = [i % network.conditioner.num_classes for i in range(self.batch)]
        samples = self.pipe(labels, seed=self.seed, batch_size=self.batch)
        self.passes = samples.passes
        self._write(samples)

    def _write(self, samples: Any) -> None:
        for i, image in enumerate(samples.pil()):
            save_image(image, self.place / f"{i}.png")

    def in_parts(self) -> dict[str, float]:
        """Do the same and return the passes, and the share of the time of each part in percent.

        On a GPU every part is waited for, which the plain call does not do.
        """
        spent: dict[str, float] = defaultdict(float)
        running: set[str] = set()
        pipe, network = self.pipe, self.pipe.generator
        assert network is not None
        timed = [
            *((network, name, "generator") for name in ("start", "predict", "commit")),
            (network.head, "sample", "head"),
            *((pipe.tokenizer, name, "pixels") for name in ("decode", "decode_latents")),
            (self, "_write", "PNG"),
        ]
        timed = [entry for entry in timed if hasattr(entry[0], entry[1])]
        for owner, name, part in timed:
            owner.__dict__[name] = self._timing(getattr(owner, name), part, spent, running)
        begin = time.perf_counter()
        try:
            self()
        finally:
            for owner, name, _ in timed:
                del owner.__dict__[name]
        whole = time.perf_counter() - begin
        shares = {f"{part} %": round(100 * spent[part] / whole, 1) for part in PARTS}
        rest = round(100 * (1 - sum(spent.values()) / whole), 1)
        return {"passes": self.passes, **shares, "rest %": rest}

    def _timing(
        self, call: Callable[..., Any], part: str, spent: dict[str, float], running: set[str]
    ) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if part in running:  # decode goes through decode_latents
                return call(*args, **kwargs)
            running.add(part)
            begin = self._now()
            result = call(*args, **kwargs)
            spent[part] += self._now() - begin
            running.remove(part)
            return result

        return timed

    def _now(self) -> float:
        if self.pipe.device.type == "cuda":
            torch.cuda.synchronize(self.pipe.device)
        return time.perf_counter()
