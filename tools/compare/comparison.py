"""Train one family of generators on the codes it can model, and score what it draws."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from torch import Tensor

from argen.build import build
from argen.data.codes import CodeDataset
from argen.evaluation.report import evaluate
from argen.generators.xar import XAR
from argen.images.files import save_image
from argen.images.grid import draw_grid
from argen.pipeline import Pipeline
from argen.recipes.run_metrics import code_numbers, heldout_psnr
from argen.recipes.two_stage import Recipe
from argen.runtime.command import plain
from argen.runtime.files import read_json
from argen.runtime.presets import config_dir
from argen.tokenizers.base import Tokenizer
from argen.train import stage_config
from argen.zoo.checks import read_yaml

ROOT = Path(__file__).parents[2]
UNIGRAM = "unigram"  # ids drawn by how often they occur, wherever and in whatever class
GENERATOR = "override /generator"  # in an experiment's defaults


def families() -> tuple[str, ...]:
    """Return the experiments of configs/experiment/compare that train a generator."""
    paths = (config_dir() / "experiment" / "compare").glob("*.yaml")
    made = {path.stem: read_yaml(path)["defaults"] for path in paths}
    return tuple(sorted(name for name, base in made.items() if any(GENERATOR in d for d in base)))


FAMILIES = families()


@dataclass(frozen=True)
class Settings:
    """What the command line may say of the comparison itself."""

    only: tuple[str, ...] = FAMILIES
    out: str = str(ROOT / "benchmarks" / "generators")
    runs: str = "outputs/compare"
    seed: int = 0
    samples: int = 1000
    batch_size: int = 125  # of drawing
    seconds: float | None = None  # of training, by measured steps; the experiments' steps if null
    probe: int = 40  # steps that are timed to find that number
    dry: bool = False  # only say how many steps that are
    speed: bool = False
    speed_images: int = 64
    speed_rounds: int = 3


class Comparison:
    """Trains and scores one family after another.

    Args:
        settings: of the comparison.
        overrides: of the training commands; `NAME:KEY=VALUE` for those of one experiment.
    """

    def __init__(self, settings: Settings, overrides: list[str]) -> None:
        self.settings, self.overrides = settings, overrides

    def recipe(self, name: str, *more: str, runs: str | None = None) -> Recipe:
        """Return the recipe that `argen train experiment=compare/NAME` would run."""
        words = [f"experiment=compare/{name}", f"seed={self.settings.seed}"]
        words.append(f"out={runs or self.settings.runs}")
        for word in self.overrides:
            owner, _, rest = word.partition(":")
            if rest and "=" not in owner:
                words += [rest] if owner == name else []
            else:
                words.append(word)
        words += more
        # The stages look up what was typed in Hydra's own configuration.
        HydraConfig.instance().set_config(
            compose("train", overrides=words, return_hydra_config=True)
        )
        config = compose("train", overrides=words)
        stages = {stage: stage_config(config, stage) for stage in ("tokenizer", "generator")}
        return Recipe(plain(config), stages)

    def tokenizer(self, name: str) -> Tokenizer:
        """Return a trained tokenizer."""
        recipe = self.recipe(name)
        tokenizer = recipe.train_tokenizer()
        recipe.report_tokenizer(tokenizer)
        return tokenizer

    def steps(self, name: str, tokenizer: Tokenizer) -> int:
        """Return the steps that fit into `seconds`; the times of two short runs tell."""
        times = []
        with tempfile.TemporaryDirectory() as runs:
            for steps in (10, 10 + self.settings.probe):
                # No validation and no grid before the end.
                words = (f"fit.steps={steps}", "fit.val_every=1000000", f"name={name}-{steps}")
                recipe = self.recipe(name, *words, runs=runs)
                recipe.train_generator(tokenizer, recipe.write_codes(tokenizer))
                times.append(recipe.seconds["generator"])
        assert self.settings.seconds is not None
        return round(self.settings.seconds * self.settings.probe / (times[1] - times[0]))

    def family(self, name: str, unigram: float) -> dict[str, Any]:
        """Train one family if need be; return its numbers."""
        recipe = self.recipe(name)
        source = Path(recipe.config["model"]).parents[1].name
        tokenizer = self.tokenizer(source)
        if self.settings.seconds is not None and not self._begun(recipe):
            recipe = self.recipe(name, f"fit.steps={self.steps(name, tokenizer)}")
        elif self._begun(recipe):
            settings = read_json(recipe.directory / "generator" / "settings.json")["settings"]
            recipe = self.recipe(name, f"fit.steps={settings['fit']['steps']}")
        codes = recipe.write_codes(tokenizer)
        pipe = self.with_sampler(recipe.train_generator(tokenizer, codes), recipe)
        generator = pipe.generator
        assert generator is not None
        images, passes = self.draw(pipe)
        found = self.score(recipe, images, pipe.decode, tokenizer)
        grid = pipe("all", n=12, seed=self.settings.seed, batch_size=48).grid()
        save_image(grid, recipe.directory / "samples.png")
        fit = recipe.stages["generator"]["fit"]
        return {
            "generator": name,
            "tokenizer": source,
            **heldout_psnr(tokenizer, recipe.source, recipe.device)[1],
            **code_numbers(pipe, codes, recipe.device),
            **found,
            "factor_over_unigram": unigram / found["fd_lite"],
            "passes_per_image": passes,
            "parameters": sum(p.numel() for p in generator.parameters()),
            "steps": fit["steps"],
            "batch_size": fit["batch_size"],
            "training_seconds": round(recipe.seconds["generator"], 1),
            "sampling": pipe.defaults,
            "decoder": recipe.config["sampler"],
        }

    def unigram(self) -> dict[str, Any]:
        """Score images whose codes are drawn one by one from the histogram of all codes."""
        tokenizer, recipe = self.tokenizer("fsq"), self.recipe("gpt")
        codes = recipe.write_codes(tokenizer)
        pipe = Pipeline(tokenizer=tokenizer)
        images, image = unigram_images(pipe, codes["train"], self.settings)
        save_image(image, recipe.directory.with_name(UNIGRAM) / "samples.png")
        found = self.score(recipe, images, pipe.decode, tokenizer)
        return {
            "generator": UNIGRAM,
            "tokenizer": "fsq",
            **heldout_psnr(tokenizer, recipe.source, recipe.device)[1],
            **found,
            "factor_over_unigram": 1.0,
        }

    def draw(self, pipe: Pipeline) -> tuple[Tensor, int]:
        """Return as many images of every class, and the network's passes for one of them."""
        count = self.settings.samples
        seeds = list(range(self.settings.seed, self.settings.seed + count))
        labels, calls = even_labels(count, len(pipe.class_names)).tolist(), 0

        def counted(*_: Any) -> None:
            nonlocal calls
            calls += 1

        generator = pipe.generator
        # An xAR's whole network runs at every step of the flow, not once a group.
        flow = generator.network if isinstance(generator, XAR) else None
        hook = flow.register_forward_hook(counted) if flow is not None else None
        batches = list(pipe.batches(labels, seeds, batch_size=self.settings.batch_size))
        if hook is not None:
            hook.remove()
        passes = calls // len(batches) if flow is not None else batches[0].passes
        return torch.cat([batch.images for batch in batches]), passes

    def score(self, recipe: Recipe, images: Tensor, decode: Any, tokenizer: Any) -> dict[str, Any]:
        """Return `fd_lite` and what comes with it, against the training images."""
        train = recipe.source.train
        real = torch.stack([train[i]["image"] for i in range(len(train))])
        device = recipe.device
        copies = [decode(tokenizer.encode(part.to(device))).cpu() for part in real.split(64)]
        found = evaluate(
            images,
            protocol="fd_lite",
            labels=even_labels(len(images), len(recipe.source.classes)),
            source=recipe.source,
            copies_of=copies,
            quick=True,
            device=device,
            about={
                "seed": self.settings.seed,
                "device": device_name(device),
                "threads": torch.get_num_threads(),
            },
        )
        del found["wall_seconds"]  # of scoring alone
        return found

    @staticmethod
    def with_sampler(pipe: Pipeline, recipe: Recipe) -> Pipeline:
        """Return the pipeline, drawing with the strategy of its experiment."""
        if recipe.config["sampler"] is not None:
            pipe.decoder = build(recipe.config["sampler"], trust=True)
        return pipe

    @staticmethod
    def _begun(recipe: Recipe) -> bool:
        return (recipe.directory / "generator" / "settings.json").is_file()


def unigram_images(pipe: Pipeline, codes: CodeDataset, settings: Settings) -> tuple[Tensor, Any]:
    """Return images of independent ids, and a grid of the first of them."""
    ids = torch.stack([codes[i]["codes"] for i in range(len(codes))])
    counts = torch.bincount(ids.flatten(), minlength=pipe.tokenizer.spec.vocab_size)
    draws = torch.Generator().manual_seed(settings.seed)
    drawn = torch.multinomial(
        counts.double(), settings.samples * ids.shape[1], replacement=True, generator=draws
    ).view(settings.samples, -1)
    images = torch.cat([pipe.decode(part).cpu() for part in drawn.split(settings.batch_size)])
    return images, draw_grid([("any class", images[:12])])


def even_labels(count: int, classes: int) -> Tensor:
    """Return labels whose numbers differ by one at most."""
    return torch.arange(count) * classes // count


def device_name(device: torch.device) -> str:
    """Return the GPU's name, or the kind of device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
