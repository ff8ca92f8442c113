"""Commands in processes that fork from one which has imported torch and Lightning already.

A fresh `python -m argen.train` imports for seven seconds of a core, as often as the tests call it.
Here a server process of each test process imports once; a command forks from it, with standard
output and errors, exit code, working directory, environment and signals of its own. Everything that
a user's process does after its imports happens as it does there.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["preloaded"])


class Running:
    """A running command; the part of `subprocess.Popen` that tests use.

    Args:
        target: a module that `python -m` would run, or the path of a script.
        words: its arguments.
        cwd: working directory.
        env: environment; this process's own by default.
    """

    def __init__(
        self, target: str, words: list[str], *, cwd: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self._place = tempfile.TemporaryDirectory()
        self._files = [Path(self._place.name) / name for name in ("stdout", "stderr")]
        environment = dict(os.environ if env is None else env)
        self._process = SERVER.Process(
            target=_run,
            args=(target, words, str(cwd), environment, *map(str, self._files)),
        )
        # The server starts with the first command, and must find what it is to import.
        kept = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        try:
            self._process.start()
        finally:
            if kept is None:
                del os.environ["PYTHONPATH"]
            else:
                os.environ["PYTHONPATH"] = kept

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, minus the signal's number where one ended it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code.

        Raises:
            subprocess.TimeoutExpired: it still ran after `timeout` seconds, and was killed.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.kill()
            self._process.join()
            raise subprocess.TimeoutExpired("forked command", timeout or 0, self.said()[0])
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end and return standard output and errors."""
        self.wait(timeout)
        return self.said()

    def said(self) -> tuple[str, str]:
        """Return standard output and errors so far."""
        out, err = (file.read_text() if file.exists() else "" for file in self._files)
        return out, err


def run(
    target: str,
    *words: str,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    timeout: float = 600,
) -> subprocess.CompletedProcess[str]:
    """Run a module or a script to its end."""
    running = Running(target, list(words), cwd=cwd, env=env)
    code = running.wait(timeout)
    return subprocess.CompletedProcess([target, *words], code, *running.said())


def _run(
    target: str, words: list[str], cwd: str, env: dict[str, str], stdout: str, stderr: str
) -> None:
    """Be the command: in the child, until it exits."""
    assert "preloaded" in sys.modules, "the server imported nothing: every command is slow"
    for path, number in ((stdout, 1), (stderr, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    SERVER.set_forkserver_preload(["__main__"])  # the default, for servers of the command's own
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    code = 0
    try:
        if target.endswith(".py"):
            sys.argv = [target, *words]
            sys.path.insert(0, str(Path(target).parent))
            runpy.run_path(target, run_name="__main__")
        else:
            sys.argv = [target, *words]
            sys.path.insert(0, cwd)
            # As `python -m` does: the module runs as the main one, whether imported before or not.
            sys.modules.pop(target, None)
            runpy.run_module(target, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()  # a forked process ends without them
    sys.exit(code)
