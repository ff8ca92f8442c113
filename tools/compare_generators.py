"""Every family of generators, small, trained for the same time on the same images, and scored.

    python tools/compare_generators.py                     train and score what is missing
    python tools/compare_generators.py only=[gpt,var]      some of them
    python tools/compare_generators.py speed=true          images/s of what is trained, by turns
    python tools/compare_generators.py seconds=150 dry=true        steps that fit into 150 s here
    python tools/compare_generators.py out=DIR runs=DIR seconds=20 data=emoji fit.batch_size=128

A family is an experiment of configs/experiment/compare, which `python -m argen.train` also trains;
its steps are fixed there. `seconds` measures how many steps fit into that time on this machine and
trains that many instead. What is not a setting below goes to the training commands as it stands,
`NAME:KEY=VALUE` to those of NAME alone. A family that has its JSON under `out` is skipped; one that
was interrupted goes on from its last checkpoint.
"""

from __future__ import annotations

import logging
import statistics
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf

from argen.errors import UserError
from argen.pipeline import load
from argen.runtime.files import read_json, write_json
from argen.runtime.flat_names import teach_hydra
from argen.runtime.presets import config_dir

sys.path.insert(0, str(Path(__file__).parent))
from compare.comparison import (
    FAMILIES,
    UNIGRAM,
    Comparison,
    Settings,
    device_name,
    even_labels,
)


def speed(work: Comparison) -> None:
    """Add the median images/s to each JSON; the families take turns."""
    pipes, times = {}, {}
    for name in work.settings.only:
        recipe = work.recipe(name)
        directory = recipe.directory / "model"
        pipes[name] = work.with_sampler(load(directory, device=recipe.device), recipe)
        times[name] = [0.0] * work.settings.speed_rounds
    count = work.settings.speed_images
    for turn in range(-1, work.settings.speed_rounds):  # the first warms up
        for name, pipe in pipes.items():
            labels, start = even_labels(count, len(pipe.class_names)), time.perf_counter()
            list(pipe.batches(labels.tolist(), list(range(count)), batch_size=count))
            if turn >= 0:
                times[name][turn] = time.perf_counter() - start
    for name, spent in times.items():
        path = Path(work.settings.out) / f"{name}.json"
        rate = round(count / statistics.median(spent), 2)
        about = {
            "threads": torch.get_num_threads(),
            "batch_size": count,
            "device": device_name(pipes[name].device),
        }
        write_json(path, read_json(path) | {"images_per_second": rate, "speed": about})
        print(f"{name}: {rate} images/s", flush=True)


def run(settings: Settings, overrides: list[str]) -> None:
    """Do what is missing."""
    unknown = [name for name in settings.only if name not in FAMILIES]
    if unknown:
        raise UserError(f"There is no family {unknown[0]!r}; choose from {', '.join(FAMILIES)}.")
    work = Comparison(settings, overrides)
    if settings.speed:
        speed(work)
        return
    if settings.dry:
        for name in settings.only:
            recipe = work.recipe(name)
            tokenizer = load(recipe.config["model"], device=recipe.device).tokenizer
            print(f"{name}: {work.steps(name, tokenizer)} steps", flush=True)
        return
    unigram = float("nan")
    for name in (UNIGRAM, *settings.only):
        path = Path(settings.out) / f"{name}.json"
        if not path.is_file():
            write_json(path, work.unigram() if name == UNIGRAM else work.family(name, unigram))
        found = read_json(path)
        unigram = found["fd_lite"] if name == UNIGRAM else unigram
        print(f"{name}: fd_lite {found['fd_lite']:.1f}, see {path}", flush=True)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    own = {field.name for field in fields(Settings)}
    words: dict[bool, list[str]] = {True: [], False: []}
    for word in sys.argv[1:]:
        words[word.partition("=")[0] in own].append(word)
    given = OmegaConf.merge(OmegaConf.structured(Settings), OmegaConf.from_cli(words[True]))
    values: Any = OmegaConf.to_container(given)
    settings = Settings(**{**values, "only": tuple(values["only"])})
    try:
        teach_hydra(config_dir())
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            run(settings, words[False])
    except (UserError, HydraException) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
