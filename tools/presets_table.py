"""The Markdown tables of the documentation, made from the presets and the code.

    python tools/presets_table.py tokenizer     print one table
    python tools/presets_table.py --write       bring the tables of all pages up to date

A page holds a table between `<!-- presets:NAME -->` and `<!-- /presets -->`.
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from argen.build import META, build, locate
from argen.errors import IncompatibleError, UserError
from argen.interop.find import importers
from argen.runtime.presets import for_codes, preset, preset_names, shown_name
from argen.zoo.card import NONE, codes_of, overrides, score_text, size_text, typed
from argen.zoo.meta import Meta, published
from argen.zoo.pairs import tokenizer_of

DOCS = Path(__file__).parents[1] / "docs"
MARKED = re.compile(r"(<!-- presets:([a-z]+) -->\n).*?(<!-- /presets -->)", re.S)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def scores(expected: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """Return published scores of some metrics, each with the settings it was got under."""
    return "; ".join(filter(None, (score_text(entry, names) for entry in expected))) or NONE


def paper(meta: Meta) -> str:
    """Return a link to the paper."""
    return f"[{meta.arxiv}](https://arxiv.org/abs/{meta.arxiv})" if meta.arxiv else NONE


def tokenizer_table() -> str:
    """Return every published tokenizer; parameters are counted on the network built here."""
    rows = []
    for name, meta in published("tokenizer"):
        network = tokenizer_of(name)
        count, vocabulary = codes_of(network.spec)
        size = "x".join(str(side) for side in network.image_size)
        parameters = f"{sum(p.numel() for p in network.parameters()) / 1e6:.1f}M"
        rows.append(
            [
                *(
                    meta.family,
                    f"`{shown_name('tokenizer', name)}`",
                    size,
                    count,
                    vocabulary,
                    parameters,
                ),
                *(scores(meta.expected, ["rfid"]), meta.licence_code, meta.licence_weights),
                paper(meta),
            ]
        )
    head = ["family", "`tokenizer=`", "pixels", "codes", "vocabulary of each", "parameters"]
    return table([*head, "published rFID", "licence: code", "weights", "paper"], rows)


def generator_table() -> str:
    """Return every published generator; sizes and tokenizers are what the presets state."""
    rows = [
        [
            *(meta.family, f"`{shown_name('generator', name)}`", size_text(meta.parameters)),
            _tokenizer_cell(meta),
            scores(meta.expected, ["fid", "is", "precision", "recall", "geneval"]),
            *(meta.licence_code, meta.licence_weights, paper(meta)),
        ]
        for name, meta in published("generator")
    ]
    head = ["family", "`generator=`", "parameters", "`tokenizer=`", "published scores"]
    return table([*head, "licence: code", "weights", "paper"], rows)


def _tokenizer_cell(meta: Meta) -> str:
    if meta.tokenizer is None:
        return NONE
    changes = overrides(meta.tokenizer_changes, preset("tokenizer", meta.tokenizer), "tokenizer")
    return " ".join(f"`{word}`" for word in (meta.tokenizer, *changes))


def importer_table() -> str:
    """Return what each module of argen.interop imports."""
    rows = []
    for name, found in sorted(importers().items()):
        cells, functions = [], {}
        for kind in ("tokenizer", "generator", "drafter"):
            function = getattr(found, f"import_{kind}", None)
            if function is None:
                cells.append(NONE)
                continue
            functions[kind] = set(inspect.signature(function).parameters)
            options = functions[kind] - {"checkpoint", "source", "image_size"}
            named = ", ".join(f"`{option}`" for option in sorted(options))
            cells.append(f"yes: {named}" if named else "yes")
        if functions:
            # The command imports both parts of a model by one source; a drafter stands alone.
            whole = "tokenizer" in functions or "drafter" in functions
            rows.append([f"`{name}`", *cells, "yes" if whole else "Python only"])
    return table(["`source=`", "tokenizer", "generator", "drafter", "`argen.convert`"], rows)


def fitted_generator(name: str) -> Any:
    """Return a tiny generator on the first tiny tokenizer it accepts."""
    for tokenizer in preset_names("tokenizer"):
        if tokenizer.startswith("tiny_"):
            try:
                config = for_codes(preset("generator", name), tokenizer_of(tokenizer).spec)
                with torch.device("meta"):
                    return build(config, trust=True)
            except UserError:
                continue
    raise UserError(f"No tiny tokenizer fits generator={name}.")


def decoder_table() -> str:
    """Return which strategy drives which generator, by asking the strategies."""
    names = [name for name in preset_names("generator") if name.startswith("tiny_")]
    generators = {name: fitted_generator(name) for name in names}
    columns: dict[str, list[str]] = {}  # generators that all strategies treat alike
    answers = {}
    for strategy in preset_names("decoder"):
        decoder = build(preset("decoder", strategy), trust=True)
        answers[strategy] = {name: _drives(decoder, g) for name, g in generators.items()}
    for name in names:
        columns.setdefault("".join("ny"[a[name]] for a in answers.values()), []).append(name)
    head = [", ".join(f"`{n.removeprefix('tiny_')}`" for n in group) for group in columns.values()]
    rows = []
    for strategy, answer in answers.items():
        exact = build(preset("decoder", strategy), trust=True).exact
        cells = ["yes" if answer[group[0]] else NONE for group in columns.values()]
        rows.append([f"`{strategy}`", "yes" if exact else "no", *cells])
    return table(["`decoder=`", "exact", *head], rows)


def options_list() -> str:
    """Return what each strategy is and the options it takes, from its docstring and preset."""
    parts = []
    for name in preset_names("decoder"):
        config = {k: v for k, v in preset("decoder", name).items() if k not in ("_target_", META)}
        target = locate(preset("decoder", name)["_target_"])
        lines = inspect.getdoc(target).splitlines()
        starts = [i for i, line in enumerate(lines) if line in ("Args:", "Attributes:")]
        about = " ".join(
            "\n".join(lines[: starts[0]] if starts else lines).split("\n\n")[0].split()
        )
        options = _arguments(lines[starts[0] + 1 :]) if starts else {}
        rows = [
            [f"`{key}`", f"`{yaml_text(config[key])}`" if key in config else "not set", text]
            for key, text in options.items()
        ]
        body = table(["option", "preset", "meaning"], rows) if rows else "No options.\n"
        parts.append(f"### {name}\n\n{about}\n\n{body}")
    return "\n".join(parts)


def yaml_text(value: Any) -> str:
    """Return a value as it is typed on the command line."""
    return "null" if value is None else typed(value)


def _arguments(lines: Sequence[str]) -> dict[str, str]:
    """Return {name: meaning} of the indented lines below `Args:`."""
    found: dict[str, str] = {}
    for line in lines:
        start = re.match(r" {4}(\w+): (.*)", line)
        if start:
            found[start[1]] = start[2]
        elif line.startswith(" " * 8) and found:
            found[list(found)[-1]] += " " + line.strip()
        elif line.strip():
            break
    return {name: text.replace("|", "\\|") for name, text in found.items()}


def _drives(decoder: Any, generator: Any) -> bool:
    try:
        decoder.check(generator)
    except IncompatibleError:
        return False
    except UserError:
        return True  # it lacks a part of its own, such as a draft model
    return True


TABLES: dict[str, Callable[[], str]] = {
    "tokenizer": tokenizer_table,
    "generator": generator_table,
    "importer": importer_table,
    "decoder": decoder_table,
    "options": options_list,
}


def refreshed(page: str, made: Callable[[str], str]) -> str:
    """Return a page with its marked tables replaced by those that `made` gives."""
    return MARKED.sub(lambda match: match[1] + made(match[2]) + match[3], page)


def main() -> None:
    """Print a table, or write all of them into the pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", nargs="?", choices=sorted(TABLES))
    parser.add_argument("--write", action="store_true", help="update the pages of docs/")
    options = parser.parse_args()
    if options.table:
        print(TABLES[options.table](), end="")
    elif options.write:
        for path in sorted(DOCS.glob("*.md")):
            text = path.read_text()
            new = refreshed(text, lambda name: TABLES[name]())
            if new != text:
                temporary = path.with_suffix(".md.new")
                temporary.write_text(new)
                os.replace(temporary, path)
                print(f"updated {path.name}")
    else:
        parser.error("name a table, or use --write")


if __name__ == "__main__":
    main()
