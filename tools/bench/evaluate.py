"""Seconds and peak memory of FID and IS of PNG files: argen's command beside torch-fidelity's."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from argen.runtime.files import sha256_of
from bench.cases import Case


def groups(settings: Mapping[str, Any]) -> Iterator[list[Case]]:
    """Yield a group a number of images."""
    with tempfile.TemporaryDirectory() as place:
        weights = random_inception(Path(place) / "inception.pth")
        for count in settings["counts"]:
            folders = [Path(place) / f"{name}{count}" for name in "ab"]
            for seed, folder in enumerate(folders):
                write_images(folder, count, settings["side"], seed)
            yield [
                Case(
                    {"command": name, "images": 2 * count},
                    call=partial(_run, words, Path(place)),
                    units=2 * count,
                    unit="images",
                    bases={"x base": {"command": "torch-fidelity"}},
                )
                for name, words in _commands(*folders, weights).items()
            ]


def _commands(a: Path, b: Path, weights: Path) -> dict[str, list[str]]:
    ours = [
        *("-m", "argen.evaluate", f"samples={a}", f"reference={b}", "protocol=custom"),
        *("protocol.metrics=[frechet,inception_score]", "quick=true", "device=cpu"),
        *(f"protocol.sha256={sha256_of(weights)[:8]}", f"features_path={weights}"),
        *("protocol.least=2", "out=metrics.json"),
    ]
    theirs = [
        *("-m", "torch_fidelity.fidelity", "--cpu", "--fid", "--isc", "--no-cache", "--silent"),
        *("--input1", str(a), "--input2", str(b)),
        *("--feature-extractor-weights-path", str(weights)),
    ]
    return {"torch-fidelity": theirs, "argen": ours}


def _run(words: list[str], place: Path) -> dict[str, Any]:
    """Run a command to its end; return the peak of its memory."""
    process = subprocess.Popen(
        [sys.executable, *words], cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    said = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{words} ended with status {process.returncode}: {said[-2000:]}")
    return {"peak MB": round(usage.ru_maxrss / 1024)}


def write_images(folder: Path, count: int, side: int, seed: int) -> None:
    """Write smooth random images with some noise as PNG files."""
    folder.mkdir()
    draws = np.random.default_rng(seed)
    for number in range(count):
        coarse = draws.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))
        noisy = smooth.astype(np.int16) + draws.integers(-4, 5, smooth.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:05d}.png")


def random_inception(path: Path) -> Path:
    """Write weights of torch-fidelity's Inception that nobody trained, as the published file is."""
    from torch_fidelity import feature_extractor_inceptionv3 as source

    class Untrained(source.FeatureExtractorInceptionV3):
        def load_state_dict(self, *args: Any, **kwargs: Any) -> None:
            """Keep the initial weights."""

    torch.save({}, path)
    torch.manual_seed(0)
    network = Untrained("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    torch.save(network.state_dict(), path)
    return path
