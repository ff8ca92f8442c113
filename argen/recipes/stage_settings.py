"""The settings of one stage: the experiment's, the stage's own, and above all what was typed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from argen.errors import UserError

STAGE_KEYS = ("fit", "optim", "discriminator_optim", "objective", "seed")
GROUPS = ("optim", "objective")  # those of them that are chosen by name
# Settings that say the same in two ways: typing one takes the place of the other.
INSTEAD = {"fit.steps": "fit.epochs", "fit.batch_size": "fit.global_batch"}


def stage_settings(config: Any, stage: str, typed: Sequence[str]) -> Any:
    """Return the configuration of one stage, as an omegaconf DictConfig.

    From the weakest to the strongest: what the groups and the experiment say, `stages.STAGE` of the
    experiment, what was typed for all stages (`optim=NAME`, then `optim.lr=1`, `+optim.lr=1`,
    `++optim.lr=1`, `~optim.lr`), and what was typed for this stage (`stages.STAGE.optim.lr=1`).

    Args:
        config: as composed.
        stage: name of the stage.
        typed: words of the command line that change it.

    Raises:
        UserError: a stage sets what is not one of `STAGE_KEYS`.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    own = config.stages[stage]
    unknown = [key for key in own if key not in STAGE_KEYS]
    if unknown:
        raise UserError(f"stages.{stage} may set {', '.join(STAGE_KEYS)}, not {unknown[0]}.")
    overrides = OverridesParser.create().parse_overrides(list(typed))
    config = config.copy()
    OmegaConf.set_struct(config.objective, False)  # a tokenizer may need a weight of its own
    if any(override.is_delete() for override in overrides):
        OmegaConf.set_struct(config, False)  # the stage may have what was taken away
    result = OmegaConf.merge(config, own)
    OmegaConf.set_struct(result, False)
    prefix = f"stages.{stage}."
    for mine in (False, True):  # what was typed for all stages, then for this one
        words = [one for one in overrides if _place(one).startswith(prefix) == mine]
        for override in words:
            _take_group(result, override, prefix)
        for override in words:
            if not (mine and override.is_delete()):  # gone when the stage's own were composed
                _take_value(result, override, prefix)
    OmegaConf.set_struct(result, True)
    return result


def _place(override: Any) -> str:
    """Return where an override changes the configuration."""
    return str(override.package or override.key_or_group)


def _named(override: Any) -> bool:
    """Whether a preset is chosen by name."""
    return override.key_or_group in GROUPS and isinstance(override.value(), str)


def _take_group(result: Any, override: Any, prefix: str) -> None:
    """Let a preset that was chosen by typing win over what an experiment set on top of it."""
    from omegaconf import OmegaConf

    from argen.runtime.presets import preset

    if override.is_delete() or not _named(override):
        return
    place = _place(override).removeprefix(prefix)
    OmegaConf.update(result, place, preset(override.key_or_group, override.value()), merge=True)


def _take_value(result: Any, override: Any, prefix: str) -> None:
    from omegaconf import OmegaConf

    key = _place(override).removeprefix(prefix)
    if key.partition(".")[0] not in STAGE_KEYS or _named(override):
        return
    if override.is_delete():
        parent, _, last = key.rpartition(".")
        node = OmegaConf.select(result, parent) if parent else result
        if node is not None and last in node:
            del node[last]
        return
    if key in INSTEAD:
        OmegaConf.update(result, INSTEAD[key], None)
    OmegaConf.update(result, key, override.value(), merge=True)
