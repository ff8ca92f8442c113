"""One process a run directory: a lock that the system drops when its holder dies."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from argen.errors import UserError

log = logging.getLogger(__name__)
NAME = "run.lock"


@contextmanager
def run_lock(directory: Path) -> Iterator[None]:
    """Hold a run directory.

    The lock is the operating system's, which sees through `kill -9`; the file only says whose it
    is. Where the system has none (Windows), nothing is locked.

    Args:
        directory: of the run; it exists.

    Raises:
        UserError: another process holds it; the message names its host and number.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    path = directory / NAME
    # A record lock: loader processes that are forked do not inherit it and cannot keep it alive.
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise UserError(
                f"{directory} is in use by {_holder(file.read())}. Wait for it, stop it, or choose "
                "another name=NAME."
            ) from error
        file.seek(0)
        left = file.read()
        if left:
            log.info("%s: %s ended without leaving; taking over", path, _holder(left))
        file.seek(0)
        file.truncate()
        json.dump(
            {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "since": datetime.now().astimezone().isoformat(timespec="seconds"),
            },
            file,
        )
        file.flush()
        try:
            yield
        finally:
            file.seek(0)
            file.truncate()
            file.flush()


def _holder(text: str) -> str:
    try:
        about = json.loads(text)
        return f"process {about['pid']} on {about['host']}, since {about['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
