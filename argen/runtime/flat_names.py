"""Flat names of presets that lie in folders: `generator=var_d16` is `generator=var/d16`.

A preset `GROUP/FOLDER/NAME.yaml` also answers to `FOLDER_NAME`, as presets were called before they
were grouped: on the command line, in the defaults of a user's own YAML, and in `preset()`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any


@cache
def grouped_names(group_dir: Path) -> dict[str, str]:
    """Return {flat name: grouped name} of a group's presets, {"var_d16": "var/d16"}."""
    return {
        "_".join(path.relative_to(group_dir).with_suffix("").parts): str(
            path.relative_to(group_dir).with_suffix("")
        )
        for path in sorted(group_dir.glob("*/*.yaml"))
    }


def grouped_name(group_dir: Path, name: str) -> str:
    """Return the name of a preset's file within its group: as given, or what a flat name means."""
    if (group_dir / f"{name}.yaml").is_file():
        return name
    return grouped_names(group_dir).get(name, name)


@cache
def teach_hydra(config_dir: Path) -> None:
    """Let Hydra find flat names too, whoever composes: commands, tests, a user's own script."""
    from hydra._internal.core_plugins.file_config_source import FileConfigSource
    from hydra._internal.sources_registry import SourcesRegistry
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class FlatNames(FileConfigSource):
        """The directory of the presets as it was when all of them were flat."""

        @staticmethod
        def scheme() -> str:
            return "argen-flat"

        def _grouped(self, config_path: str) -> str:
            group, _, name = config_path.removesuffix(".yaml").rpartition("/")
            found = grouped_names(Path(self.path) / group).get(name) if group else None
            return f"{group}/{found}" if found else ""

        def load_config(self, config_path: str) -> Any:
            return super().load_config(self._grouped(config_path))

        def is_config(self, config_path: str) -> bool:
            return bool(self._grouped(config_path))

        def is_group(self, config_path: str) -> bool:
            return False

        def available(self) -> bool:
            return Path(self.path).is_dir()

        def list(self, config_path: str, results_filter: Any) -> list[str]:
            return []  # --help lists the grouped names alone

    class FlatNamesPath(SearchPathPlugin):
        """Looks there last."""

        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            search_path.append(provider="argen", path=f"{FlatNames.scheme()}://{config_dir}")

    SourcesRegistry.instance().register(FlatNames)
    Plugins.instance().register(FlatNamesPath)
