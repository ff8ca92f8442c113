"""What `argen COMMAND --help` prints: its own text, and the choices of the groups it reads."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

WIDTH, COLUMN = 100, 18
HIDDEN = ("tiny",)  # folders of presets that are for tests
EXPERIMENTS_OF_TESTS = ("experiment/tokenizer",)


def help_text(config_name: str, where: Path) -> str:
    """Return the help of a command.

    Args:
        config_name: a YAML at the top of configs/, with a text under `hydra.help.template`.
        where: the directory of the configs.
    """
    import yaml

    config = yaml.safe_load((where / f"{config_name}.yaml").read_text(encoding="utf-8"))
    text = config["hydra"]["help"]["template"]
    return text.replace("$APP_CONFIG_GROUPS", choices(config.get("defaults", []), where)).rstrip()


def choices(defaults: list[Any], where: Path) -> str:
    """Return a paragraph a group: its presets, and the folders that hold more of them."""
    names = [next(iter(entry)) for entry in defaults if isinstance(entry, dict)]
    groups = [name.removeprefix("optional ") for name in names if "hydra" not in name]
    return "\n".join(_paragraph(group, where) for group in groups)


def _paragraph(group: str, where: Path) -> str:
    directory = where / group
    presets = [p.stem for p in sorted(directory.glob("*.yaml")) if not p.stem.startswith("_")]
    folders = [
        f"{path.name}/..."
        for path in sorted(directory.iterdir())
        if path.is_dir() and path.name not in HIDDEN
        and f"{group}/{path.name}" not in EXPERIMENTS_OF_TESTS
    ]  # fmt: skip
    return textwrap.fill(
        ", ".join([*folders, *presets]),
        width=WIDTH,
        initial_indent=f"  {group:{COLUMN - 2}}",
        subsequent_indent=" " * COLUMN,
        break_long_words=False,
        break_on_hyphens=False,
    )
