"""What a stage was begun with and whether it is done, kept in its directory."""

from __future__ import annotations

import hashlib
import inspect
import json
from pathlib import Path
from typing import Any

from argen.build import TARGET, locate
from argen.errors import UserError
from argen.moved import current_config
from argen.runtime.distributed import is_rank_zero
from argen.runtime.files import read_json, write_json
from argen.runtime.renamed import renamed_settings
from argen.training.fit import FitSettings
from argen.training.optim import Optim

PLAIN = (bool, int, float, str, list, tuple, type(None))


def settings_key(settings: dict[str, Any]) -> str:
    """Return a hash of settings."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class StageRecord:
    """`settings.json` and `finished.json` of a stage.

    Args:
        directory: of the stage.
        settings: all that its result depends on.
    """

    def __init__(self, directory: Path, settings: dict[str, Any]) -> None:
        self.directory, self.settings = directory, settings

    def seconds(self) -> float | None:
        """Return how long the stage took, None when it is not done.

        Raises:
            UserError: it was begun with other settings.
        """
        marker = self.directory / "settings.json"
        if marker.is_file():
            recorded = settled(renamed_settings(read_json(marker)["settings"]))
            changed = changed_settings(recorded, settled(self._plain()))
            if changed:
                raise UserError(
                    f"{self.directory} was trained with other settings ({', '.join(changed[:4])}). "
                    "Choose another name=, or delete that directory to train again."
                )
        done = self.directory / "finished.json"
        return float(read_json(done)["seconds"]) if done.is_file() else None

    def _plain(self) -> dict[str, Any]:
        """Return the settings as JSON gives them back."""
        return json.loads(json.dumps(self.settings, default=str))

    def begin(self) -> None:
        """Note what a stage is trained with, once everything it needs is there."""
        if is_rank_zero():
            marker = {"key": settings_key(self.settings), "settings": self.settings}
            write_json(self.directory / "settings.json", marker)

    def finish(self, seconds: float) -> None:
        """Note that the stage is done."""
        write_json(self.directory / "finished.json", {"seconds": round(seconds, 1)})


def settled(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings in today's names; those that came later stand at their defaults."""
    settings = current_config(settings)
    found = {key: _with_defaults(value) for key, value in settings.items() if key != "optim"}
    found["fit"] = {**FitSettings.defaults(), **settings["fit"]}
    found["optim"] = Optim.settled(settings["optim"])
    return found


def _with_defaults(config: Any) -> Any:
    """Return what is built with the plain defaults of its arguments."""
    if not isinstance(config, dict) or TARGET not in config:
        return config
    try:
        target = locate(config[TARGET], functions="data")
    except UserError:  # a class of one's own, or a name that a stranger put there: not looked at
        return config
    takes = inspect.signature(target).parameters.values()
    defaults = {p.name: p.default for p in takes if isinstance(p.default, PLAIN)}
    return json.loads(json.dumps({**defaults, **config}))


def changed_settings(old: Any, new: Any, path: str = "") -> list[str]:
    """Return `key: old, now new` for every leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in sorted({*old, *new})
            for line in changed_settings(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))
        ]
    return [] if old == new else [f"{path}: {old}, now {new}"]
