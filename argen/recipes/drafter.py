"""The stage after the others: a drafter for a trained generator, which `decoder=relaxed` needs.

It is asked for by name (`stage=drafter`), lies in `drafter/` of the run, and is resumed and skipped
like the other stages.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from argen.build import build
from argen.data.codes import CodeDataset
from argen.errors import UserError
from argen.generators.conditioning import TextConditioner
from argen.generators.drafter.feature_drafter import FeatureDrafter, load_drafter, save_drafter
from argen.generators.drafter.target import new_drafter, require_target
from argen.generators.next_token import NextToken
from argen.pipeline import Pipeline
from argen.pipeline.model_directory import weights_fingerprint
from argen.pipeline.prompts import num_classes
from argen.recipes.captions import reader_for
from argen.recipes.init import given_target
from argen.recipes.run_metrics import drafter_numbers
from argen.recipes.stage import StageRecord
from argen.recipes.two_stage import Recipe
from argen.runtime.distributed import barrier, destroy_process_group, is_rank_zero
from argen.runtime.files import read_json, write_json
from argen.runtime.provenance import provenance
from argen.text.features import TextSpec, require_same_text
from argen.training.batches import fit_settings
from argen.training.code_tasks import DrafterTask
from argen.training.fit import fit

log = logging.getLogger(__name__)
# What a finished drafter depends on, besides its generator and the codes.
DRAFTER_KEYS = ("drafter", "fit", "optim", "seed")


class DrafterRecipe(Recipe):
    """Runs `stage=drafter` of one configuration."""

    def run(self) -> Path:
        """Train the drafter, or load it if it is finished; returns the run's directory."""
        pipe = given_target(self.config, self.directory, device=self.device)
        assert pipe.generator is not None
        target = require_target(pipe.generator)
        self._prepare_text(target.config)  # type: ignore[arg-type]
        codes = self.write_codes(pipe.tokenizer)
        require_same_conditions(codes["train"], pipe)
        drafter = self.train_drafter(target, codes)
        destroy_process_group()
        if is_rank_zero():
            self.report_drafter(pipe, drafter, codes["val"])
        return self.directory

    def train_drafter(self, target: NextToken, codes: dict[str, CodeDataset]) -> FeatureDrafter:
        """Train the drafter, or load it if it is finished; leaves `drafter/model`."""
        stage, directory = self.stages["drafter"], self.directory / "drafter"
        made_for = weights_fingerprint(target)
        settings = {key: stage[key] for key in DRAFTER_KEYS}
        settings |= {"target": made_for, "tokenizer": codes["train"].tokenizer}
        settings |= {"views": len(codes["train"].views)}
        record = StageRecord(directory, settings)
        if self._finished(record):
            return load_drafter(directory / "model").to(self.device)
        torch.manual_seed(self.seed)
        options = dict(stage["drafter"])
        losses = options.pop("loss")
        drafter = new_drafter(options, target)
        fitting = fit_settings(stage, codes["train"])
        task = DrafterTask(
            drafter,
            target,
            optim=build(stage["optim"], trust=True),
            steps=fitting.steps,
            seed=self.seed,
            **losses,
        )
        record.begin()
        seconds = fit(
            task,
            self._stream(codes["train"], codes["val"], fitting),
            fitting,
            title="drafter",
            directory=directory,
            config=stage | provenance(),
            resume=self.config["auto_resume"],
        )
        self.seconds["drafter"] = seconds
        target.to(self.device)
        drafter = drafter.to(self.device).eval()
        if is_rank_zero():
            about = {
                "weights": "ema" if fitting.ema else "raw",
                "steps": fitting.steps,
                "seed": self.seed,
                "target": made_for,
                **provenance(),
            }
            save_drafter(drafter, directory / "model", about=about)
            record.finish(seconds)
        barrier()
        return drafter

    def report_drafter(
        self, pipe: Pipeline, drafter: FeatureDrafter, val: CodeDataset
    ) -> dict[str, Any]:
        """Measure the drafter on held-out codes, once, and write `drafter/metrics.json`."""
        path = self.directory / "drafter" / "metrics.json"
        if path.is_file():
            return read_json(path)
        weight = float(self.stages["drafter"]["drafter"]["loss"]["logit_weight"])
        result: dict[str, Any] = drafter_numbers(
            pipe, drafter, val, logit_weight=weight, device=self.device
        )
        count = sum(p.numel() for p in drafter.parameters())
        result |= {"parameters": count, "seconds": round(self.seconds["drafter"], 1)}
        write_json(path, result | provenance())
        return result


def require_same_conditions(codes: CodeDataset, pipe: Pipeline) -> None:
    """Raise unless the codes carry the classes, or the text features, that a model reads.

    Raises:
        UserError: other classes; SpecError: features of another text encoder.
    """
    assert pipe.generator is not None
    conditioner = pipe.generator.conditioner
    if isinstance(conditioner, TextConditioner):
        reader_for(codes, pipe.generator.config)  # type: ignore[arg-type]
        if conditioner.text is not None and codes.text is not None:
            require_same_text(
                TextSpec.of(codes.text["spec"]),
                conditioner.text,
                found_in=str(codes.directory),
                wanted_by="the generator",
                fix="write the codes again with that text encoder",
            )
        return
    known, count = pipe.class_names, num_classes(conditioner)
    if (known and codes.classes != known) or len(codes.classes) > count:
        wanted = f"{count} classes" + (f" ({', '.join(known[:3])}, ...)" if known else "")
        raise UserError(
            f"{codes.directory} has codes of {len(codes.classes)} classes "
            f"({', '.join(codes.classes[:3])}, ...), but the generator knows {wanted}: choose the "
            "data= that it was trained on."
        )
