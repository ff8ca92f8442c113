"""What a training run starts from: a model that is there, or a tokenizer's weights (`init`)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from argen.errors import UserError
from argen.pipeline import Pipeline, load
from argen.tokenizers.base import Tokenizer
from argen.tokenizers.start import start_from

log = logging.getLogger(__name__)


def start_tokenizer(tokenizer: Tokenizer, init: dict[str, Any], *, trust: bool = False) -> None:
    """Load the model directories that `init` names; refuses a frozen part without weights.

    Args:
        tokenizer: about to be trained.
        init: `model`, `proxy` and `fresh`, see configs/train.yaml.
        trust: build classes from outside argen that the directories name.

    Raises:
        CheckpointError, UserError: see `start_from`.
    """
    if init["fresh"] and not init["model"]:
        raise UserError("init.fresh says what init.model leaves out; give init.model=DIR too.")
    given = {
        key: load(init[key], trust=trust).tokenizer.state_dict()
        for key in ("model", "proxy")
        if init[key]
    }
    report = start_from(
        tokenizer,
        weights=given.get("model"),
        proxy=given.get("proxy"),
        fresh=init["fresh"],
        source=str(init["model"]),
        proxy_source=str(init["proxy"]),
    )
    if given:
        names = " and ".join(str(init[key]) for key in given)
        log.info("tokenizer: starts from %s: %s", names, report)


def given_tokenizer(config: dict[str, Any], directory: Path, *, device: torch.device) -> Tokenizer:
    """Return the tokenizer on whose codes a generator alone is trained.

    Args:
        config: of the run, see configs/train.yaml.
        directory: of the run.
        device: where the tokenizer goes.

    Raises:
        UserError: if there is none.
    """
    path = Path(config["model"] or directory / "tokenizer" / "model")
    if not (path / "config.json").is_file():
        raise UserError(
            f"stage=generator needs a trained tokenizer, and there is none in {path}. Train "
            f"one with stage=tokenizer name={config['name']}, or name one with model=DIR."
        )
    return load(path, device=device, trust=config["trust"]).tokenizer


def given_target(config: dict[str, Any], directory: Path, *, device: torch.device) -> Pipeline:
    """Return the model whose generator a drafter is trained for.

    Args:
        config: of the run, see configs/train.yaml.
        directory: of the run.
        device: where the model goes.

    Raises:
        UserError: if there is none, or it has no generator.
    """
    path = Path(config["model"] or directory / "model")
    if not (path / "config.json").is_file():
        raise UserError(
            f"stage=drafter needs a trained generator, and there is no model in {path}. Train one "
            f"with stage=all name={config['name']}, or name one with model=DIR."
        )
    pipe = load(path, device=device, trust=config["trust"])
    if pipe.generator is None:
        raise UserError(
            f"{path} is a tokenizer alone, and a drafter is trained for a generator: give a model "
            "directory that holds both."
        )
    return pipe
