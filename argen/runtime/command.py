"""What every command shares: Hydra around a function, errors a person can act on, exit codes.

Exit status 0: done; 2: bad input, one line that names cause and fix; 75: stopped by a signal, to be
started again; 1: a bug, with a traceback.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

from argen.errors import Preempted, UserError, suggest
from argen.runtime.cluster import launched, start_again, take_rank
from argen.runtime.presets import config_dir, preset_names
from argen.runtime.renamed import renamed_settings, renamed_word
from argen.runtime.threads import fit_threads

# Settings of commands that hold words of people, which need no quotes of their own.
VERBATIM = {"sample": ("text",)}


def run(main: Callable[[Any], Any], config_name: str, *, directory: Path | None = None) -> None:
    """Compose `config_name` with the command line and call `main` with it.

    Args:
        main: takes the composed configuration (an omegaconf DictConfig).
        config_name: a YAML at the top of configs/.
        directory: where it lies instead of configs/.
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    where = directory or config_dir()
    verbatim = VERBATIM.get(config_name, ())
    warnings.filterwarnings("default", ".* is now ", FutureWarning)
    sys.argv[1:] = [quoted(renamed_word(word), verbatim) for word in sys.argv[1:]]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come back here instead of being printed there
    _start_logging()

    @wraps(main)
    def guarded(config: Any) -> Any:
        _start_logging()  # once more in a process of a cluster's job, which begins here
        take_rank()
        fit_threads()  # not earlier: a job on another machine would inherit this one's number
        # Caught here, so that Hydra does not report an error of its own first.
        try:
            return main(config)  # a sweeper reads what it returns
        except UserError as error:
            if launched():
                raise  # to the command that waits for this job, which stops with it
            _stop(str(error))
        except OmegaConfBaseException as error:
            _stop(_explain(error, config_name, where))
        except PermissionError as error:
            _stop(f"{error.filename or error} is not writable; choose another with out=DIR.")
        except Preempted as stop:
            print(f"\n{stop}", file=sys.stderr)
            if start_again():
                _end_quietly()
            sys.exit(Preempted.CODE)
        except KeyboardInterrupt:
            print("\nInterrupted; the same command goes on from here.", file=sys.stderr)
            sys.exit(130)

    compose = hydra.main(config_path=str(where), config_name=config_name, version_base="1.3")
    try:
        compose(guarded)()
    except UserError as error:
        _stop(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        _stop(_explain(error, config_name, where))


def quoted(word: str, keys: Sequence[str]) -> str:
    """Return `KEY=what anyone may write` as Hydra reads it; lists and what is quoted stay.

    Args:
        word: an argument of the command line.
        keys: the settings that this is done for.
    """
    key, equals, value = word.partition("=")
    if not equals or key not in keys or not value or value[0] in "[\"'" or value == "null":
        return word
    # Backslashes count only before a quote, and the closing one is such a quote.
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value.replace("${", r"\${"))
    last = len(escaped) - len(escaped.rstrip("\\"))
    return f"{key}='{escaped}" + last * "\\" + "'"


def require_writable(directory: Path | str) -> Path:
    """Create a directory and prove that files can be written there.

    Raises:
        UserError: if they cannot.
    """
    path = Path(directory)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"{path} is not writable ({error.strerror}); choose another directory with out=DIR."
        ) from error
    return path


def require_positive(settings: Mapping[str, Any], *names: str) -> None:
    """Raise a UserError unless each of these settings is a number of at least 1."""
    for name in names:
        if settings[name] < 1:
            raise UserError(f"{name}={settings[name]} must be at least 1.")


def show(line: str = "") -> None:
    """Print a line at once, also into a pipe."""
    print(line, flush=True)


def _start_logging() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    # Libraries narrate below the level of a warning.
    for name in ("matplotlib", "PIL", "torch", "fsspec", "hydra", "submitit"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _end_quietly() -> None:
    """Wait to be ended by Slurm, which starts the job again: an exit would end the job for good."""
    import time

    sys.stdout.flush()
    time.sleep(600)


def _stop(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _explain(error: Exception, config_name: str, where: Path) -> str:
    """Return Hydra's message with the nearest names that would have been right."""
    from omegaconf.errors import MissingMandatoryValue

    lines = [line for line in str(error).splitlines() if line.strip()]
    message = " ".join(line.strip() for line in lines)
    if "hydra/launcher" in message and "submitit" in message:
        return "cluster=slurm and submitit_local need submitit: pip install 'argen[slurm]'."
    if "hydra/sweeper/optuna" in message:
        return "hparams_search=optuna needs Optuna's sweeper: pip install 'argen[sweep]'."
    choice = re.search(r"Could not find '([\w/]+)/([\w.-]+)'", message)
    if choice:
        group, name = choice.groups()
        return f"There is no {group}={name}.{suggest(name, preset_names(group))} {lines[0]}"
    wrong = re.search(r"Could not override '([\w./@-]+)'", message)
    if wrong and wrong.group(1).startswith("cluster.sbatch."):
        return f"Options of sbatch are added with a plus: +{wrong.group(1)}=..."
    if wrong:
        return f"{lines[0]}{suggest(wrong.group(1), _known_keys(config_name, where))}"
    if isinstance(error, MissingMandatoryValue):
        key = getattr(error, "full_key", None) or "a value"
        return f"{key} must be given: add {key}=... to the command."
    return message


def _known_keys(config_name: str, where: Path) -> list[str]:
    """Return every key and group that the command line could set."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(where), version_base="1.3"):
        plain = OmegaConf.to_container(compose(config_name=config_name), resolve=False)
    groups = [path.name for path in where.iterdir() if path.is_dir()]
    return [*_flatten(plain), *groups]


def _flatten(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, dict):
        return []
    keys = []
    for key, value in node.items():
        keys += [f"{prefix}{key}", *_flatten(value, f"{prefix}{key}.")]
    return keys


def plain(config: Any) -> dict[str, Any]:
    """Return a configuration as plain dictionaries, interpolations resolved, old names renewed."""
    from omegaconf import OmegaConf

    settings = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    return renamed_settings(settings)
