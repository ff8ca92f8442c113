"""The `argen` command: `argen COMMAND ...` is `python -m argen.COMMAND ...`."""

from __future__ import annotations

import sys
from importlib import import_module

from argen import __version__
from argen.errors import suggest
from argen.runtime.command import run

COMMANDS = {
    "train": "train a tokenizer, a generator, or both",
    "sample": "draw images with a trained model",
    "evaluate": "score a model or a folder of images",
    "tokenize": "turn images into code shards",
    "reconstruct": "images to codes and back with a tokenizer",
    "convert": "turn a released checkpoint into a model directory",
    "models": "list the published systems, or show one of them",
}
PLAIN = ("models",)  # commands without a configuration, which read their words themselves


def main() -> None:
    """Dispatch to a command."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help", "help"):
        print("argen: autoregressive image generation\n\nargen COMMAND [KEY=VALUE ...]\n")
        for command, what in COMMANDS.items():
            print(f"  {command:11s} {what}")
        print("\nargen COMMAND --help explains a command.")
        return
    if name in ("-V", "--version"):
        print(f"argen {__version__}")
        return
    if name not in COMMANDS:
        print(f"error: There is no command {name!r}.{suggest(name, COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"argen {name}", *sys.argv[2:]]
    command = import_module(f"argen.{name}").main
    if name in PLAIN:
        command()
    else:
        run(command, name)


if __name__ == "__main__":
    main()
