"""The whole path: tokenizer, codes, generator, exported model, images, scores.

Each stage leaves `finished.json` in its directory, so that the same command skips what is done
and goes on with what is not.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import torch

from argen.build import build
from argen.data.codes import CodeDataset
from argen.data.images import ImageSource
from argen.errors import UserError
from argen.images.files import save_image
from argen.pipeline import Pipeline, load
from argen.pipeline.model_directory import weights_fingerprint
from argen.recipes.captions import captions_of, encoder_for, reader_for, shown_texts
from argen.recipes.encode import larger_source, write_codes
from argen.recipes.init import given_tokenizer, start_tokenizer
from argen.recipes.run_metrics import code_numbers, heldout_psnr, run_facts, sample_scores
from argen.recipes.stage import StageRecord, settings_key
from argen.runtime.checkpoint import load_strict
from argen.runtime.device import pick_device
from argen.runtime.distributed import barrier, destroy_process_group, is_rank_zero
from argen.runtime.files import read_json, write_json
from argen.runtime.presets import for_codes
from argen.runtime.provenance import provenance
from argen.text.base import TextEncoder
from argen.tokenizers.base import Tokenizer
from argen.training.batches import fit_settings
from argen.training.code_tasks import GeneratorTask
from argen.training.fit import FitSettings, fit
from argen.training.grids import ReconstructionGrid, SampleGrid, reconstruction_grid
from argen.training.sharding import ShardedGeneratorTask, gathered
from argen.training.stream import Stream
from argen.training.tokenizer_task import TokenizerTask

log = logging.getLogger(__name__)
# What a finished stage depends on.
TOKENIZER_KEYS = ("data", "tokenizer", "fit", "optim", "objective", "seed")
GENERATOR_KEYS = ("generator", "fit", "optim", "samples", "seed")


class Recipe:
    """Runs the stages of one configuration.

    Args:
        config: the resolved configuration, as `configs/train.yaml` describes it.
        stages: the resolved configuration of each stage, with its own overrides applied.
    """

    def __init__(self, config: dict[str, Any], stages: dict[str, dict[str, Any]]) -> None:
        self.config, self.stages = config, stages
        self.directory = Path(config["out"]) / config["name"]
        self.seed = int(config["seed"])
        self.device = pick_device(str(config["trainer"].get("accelerator", "auto")))
        self.seconds: dict[str, float] = {}
        self.text: TextEncoder | None = None
        self._source: ImageSource | None = None

    @property
    def source(self) -> ImageSource:
        """The images, read when first needed."""
        if self._source is None:
            self._source = build(self.config["data"], trust=True)
        return self._source

    def run(self) -> Path:
        """Run what `stage` asks for; returns the run's directory."""
        stage = self.config["stage"]
        if stage not in ("all", "tokenizer", "generator"):
            raise UserError(
                f"Unknown stage {stage!r}; use stage=all, tokenizer, generator or drafter."
            )
        if stage != "tokenizer":
            self._prepare_text(self.stages["generator"]["generator"])
        if stage == "generator":
            tokenizer = given_tokenizer(self.config, self.directory, device=self.device)
        else:
            tokenizer = self.train_tokenizer()
        if stage == "tokenizer":
            destroy_process_group()
            if is_rank_zero():
                self.report_tokenizer(tokenizer)
            return self.directory
        codes = self.write_codes(tokenizer)
        pipe = self.train_generator(tokenizer, codes)
        destroy_process_group()
        if is_rank_zero():
            self.report(pipe, codes)
        return self.directory

    def _prepare_text(self, generator: dict[str, Any]) -> None:
        """Load a generator's text encoder, if any, and look for captions, before the first step."""
        self.text = encoder_for(self.config, generator)
        if self.text is not None:
            captions_of(self.source, self.source.train)
            self.text.to(self.device)

    def train_tokenizer(self) -> Tokenizer:
        """Train stage 1, or load it if it is finished."""
        stage, directory = self.stages["tokenizer"], self.directory / "tokenizer"
        settings = {k: stage[k] for k in TOKENIZER_KEYS}
        settings |= {key: stage[key] for key in ("discriminator_optim",) if stage.get(key)}
        if any(stage["init"].values()):
            settings["init"] = stage["init"]
        record = StageRecord(directory, settings)
        if self._finished(record):
            return load(directory / "model", device=self.device).tokenizer
        torch.manual_seed(self.seed)
        size = self.config["data"].get("image_size", stage["tokenizer"].get("image_size"))
        tokenizer = build(stage["tokenizer"], trust=True, image_size=size)
        start_tokenizer(tokenizer, stage["init"], trust=self.config["trust"])
        fitting = fit_settings(stage, self.source.train)
        if fitting.channels_last:
            tokenizer.to(memory_format=torch.channels_last)
        source = self.source
        stream = self._stream(source.stream or source.train, source.val, fitting)
        optim = build(stage["optim"], trust=True)
        discriminates = stage.get("discriminator_optim")
        task = TokenizerTask(
            tokenizer,
            optim=optim,
            steps=fitting.steps,
            objective=build(stage["objective"], trust=True),
            discriminator_optim=build(stage["optim"] | discriminates, trust=True)
            if discriminates
            else None,
            seed=self.seed,
        )
        record.begin()
        shown = torch.stack([source.val[i]["image"] for i in range(min(32, len(source.val)))])
        seconds = fit(
            task,
            stream,
            fitting,
            title="tokenizer",
            directory=directory,
            callbacks=[ReconstructionGrid(shown, directory / "grids")],
            config=stage | provenance(),
            resume=self.config["auto_resume"],
        )
        tokenizer = tokenizer.to(self.device).eval()
        pipe = Pipeline(
            tokenizer=tokenizer,
            class_names=source.classes,
            provenance=self._provenance(fitting),
        )
        self._finish(record, seconds, pipe, directory / "model")
        return load(directory / "model", device=self.device).tokenizer

    def write_codes(self, tokenizer: Tokenizer) -> dict[str, CodeDataset]:
        """Encode both splits, or check that it was done, here or by `argen tokenize`."""
        start, settings = time.perf_counter(), dict(self.config["codes"])
        path, crop = settings.pop("path"), settings.pop("crop")
        if path is not None:
            given = {split: CodeDataset(path, split=split) for split in ("train", "val")}
            for part in given.values():
                part.require_tokenizer(weights_fingerprint(tokenizer), wanted_by="this run")
            return given
        larger = larger_source(self.config["data"], self.source, settings["views"], crop)
        codes = write_codes(
            tokenizer,
            self.source,
            self.directory / "codes",
            seed=self.seed,
            larger=larger,
            text=self.text,
            **settings,
        )
        self.text = None  # it has read all captions; its memory is wanted
        self.seconds["codes"] = time.perf_counter() - start
        return codes

    def train_generator(self, tokenizer: Tokenizer, codes: dict[str, CodeDataset]) -> Pipeline:
        """Train stage 2, or load it if it is finished; leaves the exported model."""
        stage, directory = self.stages["generator"], self.directory / "generator"
        settings = {k: stage[k] for k in GENERATOR_KEYS}
        settings |= {"tokenizer": codes["train"].tokenizer, "views": len(codes["train"].views)}
        trust, text = self.config["trust"], codes["train"].text or {}
        reader = reader_for(codes["train"], stage["generator"], trust=trust)
        if reader is not None:
            settings["text"] = {key: text[key] for key in ("spec", "captions")}
        record = StageRecord(directory, settings)
        if self._finished(record):
            return load(self.directory / "model", device=self.device)
        torch.manual_seed(self.seed)
        spec, classes = codes["train"].spec, codes["train"].classes
        wanted: dict[str, Any] = {"num_classes": len(classes), "text": text.get("spec")}
        network = for_codes(stage["generator"], spec, **wanted)
        generator = build(network, trust=True)
        generator.bind(tokenizer)
        fitting = fit_settings(stage, codes["train"])
        optim = build(stage["optim"], trust=True)
        sharded = fitting.trainer.get("strategy") == "fsdp2"
        make = ShardedGeneratorTask if sharded else GeneratorTask
        task = make(generator, optim=optim, steps=fitting.steps, seed=self.seed)
        defaults = {k: v for k, v in stage["samples"].items() if k != "per_class"}
        record.begin()
        texts = shown_texts(self.source) if reader else []
        shown: dict[str, Any] = {"texts": texts, "reader": reader, "settings": defaults}
        grid = SampleGrid(tokenizer, classes, directory / "grids", **shown)
        seconds = fit(
            task,
            self._stream(codes["train"], codes["val"], fitting),
            fitting,
            title="generator",
            directory=directory,
            callbacks=[] if sharded else [grid],  # drawing needs whole weights
            config=stage | provenance(),
            resume=self.config["auto_resume"],
        )
        if sharded:  # what was cut up stays so: the whole weights go into another
            weights, generator = gathered(generator), build(network, trust=True)
            generator.bind(tokenizer)
            load_strict(generator, weights, source="the ranks' shards")
        pipe = Pipeline(
            tokenizer=tokenizer,
            generator=generator.to(self.device),
            class_names=classes,
            defaults=defaults,
            provenance=self._provenance(fitting),
            text=reader,
        )
        self._finish(record, seconds, pipe, self.directory / "model")
        return load(self.directory / "model", device=self.device)

    def report_tokenizer(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """Draw reconstructions, and measure them on held-out images."""
        start = time.perf_counter()
        images, result = heldout_psnr(tokenizer, self.source, self.device)
        image = reconstruction_grid(tokenizer, images[:32])
        save_image(image, self.directory / "reconstructions.png")
        self.seconds["reconstructions"] = time.perf_counter() - start
        write_json(self.directory / "tokenizer" / "metrics.json", result | provenance())
        return result

    def report(self, pipe: Pipeline, codes: dict[str, CodeDataset]) -> dict[str, Any]:
        """Draw the sample grid and write metrics.json."""
        path, key = self.directory / "metrics.json", settings_key(self.config)
        if path.is_file() and read_json(path).get("settings") == key:
            log.info("scores: finished, see %s", path)
            return read_json(path)
        result: dict[str, Any] = self.report_tokenizer(pipe.tokenizer)
        start = time.perf_counter()
        prompts: Any = {"text": shown_texts(self.source)} if pipe.text else {"classes": "all"}
        samples = pipe(**prompts, n=self.config["samples"]["per_class"], seed=self.seed)
        save_image(samples.grid(), self.directory / "samples.png")
        result |= code_numbers(pipe, codes, self.device)
        if self.config["evaluate"]:
            result |= sample_scores(
                pipe, self.source, self.config["evaluate"], seed=self.seed, device=self.device
            )
        self.seconds["images and scores"] = time.perf_counter() - start
        result |= run_facts(pipe, self.config, self.device, self.seconds) | {"settings": key}
        write_json(path, result)
        return result

    def _stream(self, train: Any, val: Any, settings: FitSettings) -> Stream:
        return Stream(
            train,
            val,
            steps=settings.steps,
            batch_size=settings.batch_size,
            workers=settings.workers,
            seed=self.seed,
            overfit=settings.overfit,
        )

    def _provenance(self, settings: FitSettings) -> dict[str, Any]:
        return {
            "weights": "ema" if settings.ema else "raw",
            "steps": settings.steps,
            "seed": self.seed,
            "data": self.source.name,
            "data_config": self.config["data"],
            **provenance(),
        }

    def _finished(self, record: StageRecord) -> bool:
        seconds = record.seconds()
        if seconds is None:
            return False
        self.seconds[record.directory.name] = seconds
        log.info("%s: finished, see %s", record.directory.name, record.directory)
        return True

    def _finish(self, record: StageRecord, seconds: float, pipe: Pipeline, model: Path) -> None:
        """Save what a stage trained and note that it is done, on rank zero for all."""
        self.seconds[record.directory.name] = seconds
        if is_rank_zero():
            pipe.save(model)
            record.finish(seconds)
        barrier()
