"""Which importers there are: every module or package here that says its `SOURCE`."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from types import ModuleType

from argen import interop
from argen.errors import UserError, suggest


def importers() -> dict[str, ModuleType]:
    """Return every importer by the name that `argen.convert source=NAME` calls it."""
    modules = [
        import_module(f"argen.interop.{module.name}")
        for module in pkgutil.iter_modules(interop.__path__)
    ]
    return {module.SOURCE: module for module in modules if hasattr(module, "SOURCE")}


def find_importer(name: str) -> ModuleType:
    """Return an importer by name.

    Raises:
        UserError: if there is none of that name; close matches and all names are told.
    """
    known = importers()
    if name not in known:
        raise UserError(
            f"There is no importer for source={name}.{suggest(name, known)} "
            f"Known: {', '.join(sorted(known))}."
        )
    return known[name]
