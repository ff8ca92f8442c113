"""Where the YAML lives, and presets read without Hydra."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from argen.errors import UserError, suggest
from argen.runtime.flat_names import grouped_name, grouped_names
from argen.spec import CodeSpec


def config_dir() -> Path:
    """Return the configs/ of a checkout, or the copy inside an installed wheel."""
    package = Path(__file__).resolve().parents[1]
    for candidate in (package.parent / "configs", package / "_configs"):
        if (candidate / "train.yaml").is_file():
            return candidate
    raise UserError(f"The configs of argen were not found beside {package}; reinstall argen.")


def preset_names(group: str) -> list[str]:
    """Return the flat names of all presets of a config group (`var_d16` for `var/d16`)."""
    directory = config_dir() / group
    return sorted([*(path.stem for path in directory.glob("*.yaml")), *grouped_names(directory)])


def preset_path(group: str, name: str) -> Path:
    """Return the file of a preset, by its name or its flat name.

    Raises:
        UserError: naming close matches, if there is no such preset.
    """
    directory = config_dir() / group
    path = directory / f"{grouped_name(directory, name)}.yaml"
    if not path.is_file():
        names = preset_names(group)
        raise UserError(f"There is no {group} preset {name!r}.{suggest(name, names)}")
    return path


def shown_name(group: str, name: str) -> str:
    """Return a preset's name as it is written today: `var/d16` for `var_d16`."""
    return grouped_name(config_dir() / group, name)


def preset(group: str, name: str) -> dict[str, Any]:
    """Return one preset of a group as plain data, interpolations resolved.

    Presets of its group that its `defaults` name are merged in, as Hydra does it.

    Raises:
        UserError: naming close matches, if there is no such preset.
    """
    from omegaconf import OmegaConf

    return OmegaConf.to_container(_composed(preset_path(group, name)), resolve=True)  # type: ignore[return-value]


def _composed(path: Path) -> Any:
    from omegaconf import OmegaConf

    config: Any = OmegaConf.load(path)
    names = [name for name in config.pop("defaults", ["_self_"]) if isinstance(name, str)]
    if "_self_" not in names:
        names.insert(0, "_self_")
    return OmegaConf.merge(
        *(config if name == "_self_" else _composed(_named(path, name)) for name in names)
    )


def _named(path: Path, name: str) -> Path:
    """Return the file that an entry of a preset's defaults means."""
    if name.startswith("/"):  # /generator/tiny/gpt@_here_
        return config_dir() / f"{name[1:].partition('@')[0]}.yaml"
    return path.with_name(f"{name}.yaml")


def for_codes(
    config: Mapping[str, Any],
    spec: CodeSpec,
    *,
    num_classes: int | None = None,
    text: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a generator's configuration fitted to a tokenizer's codes and a data set's classes.

    Args:
        config: a generator preset, whose own spec, if any, is replaced.
        spec: the codes it will model.
        num_classes: number of classes, for class-conditional presets.
        text: spec of the text features beside the codes, for text-conditional presets, which
            remember it.
    """
    fitted = {**config, "spec": spec.to_dict()}
    conditioner = fitted.get("conditioner")
    if num_classes is not None and conditioner and "num_classes" in conditioner:
        fitted["conditioner"] = {**conditioner, "num_classes": num_classes}
    if text is not None and reads_text(config):
        fitted["conditioner"] = {**fitted["conditioner"], "text": dict(text)}
    return fitted


def reads_text(config: Mapping[str, Any]) -> bool:
    """Whether a generator's configuration is conditioned on text."""
    return "feature_dim" in (config.get("conditioner") or {})
