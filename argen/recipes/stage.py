"""What a stage was begun with and whether it is done, kept in its directory."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from argen.build import current_config
from argen.errors import UserError
from argen.runtime.distributed import is_rank_zero
from argen.runtime.files import read_json, write_json
from argen.runtime.renamed import renamed_settings
from argen.training.fit import FitSettings


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
            recorded = current_config(renamed_settings(read_json(marker)["settings"]))
            # Settings that came later stood at their defaults.
            recorded["fit"] = {**FitSettings.defaults(), **recorded["fit"]}
            changed = changed_settings(recorded, current_config(self._plain()))
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


def changed_settings(old: Any, new: Any, path: str = "") -> list[str]:
    """Return `key: old, now new` for every leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in sorted({*old, *new})
            for line in changed_settings(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))
        ]
    return [] if old == new else [f"{path}: {old}, now {new}"]
