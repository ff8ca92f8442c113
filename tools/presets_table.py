"""The Markdown tables of the documentation, made from the presets and the code.

    python tools/presets_table.py tokenizer     print one table
    python tools/presets_table.py --write       bring the tables of all pages up to date

A page holds a table between `<!-- presets:NAME -->` and `<!-- /presets -->`.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import pkgutil
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from argen import interop
from argen.build import META, build, locate
from argen.errors import IncompatibleError, UserError
from argen.runtime.presets import config_dir, for_codes, preset, preset_names
from argen.spec import CodeSpec

DOCS = Path(__file__).parents[1] / "docs"
MARKED = re.compile(r"(<!-- presets:([a-z]+) -->\n).*?(<!-- /presets -->)", re.S)
OWN = ("tiny_", "small_", "quickstart_", "emoji_")  # presets that reproduce nothing published
NONE = "-"

# Families by how their presets' names begin, in the order of the pages.
FAMILIES = {
    "tokenizer": {
        "taming": "VQGAN (taming)",
        "llamagen": "LlamaGen VQ",
        "maskgit_vqgan": "MaskGIT-VQGAN",
        "kl": "KL autoencoder",
        "vavae": "VA-VAE",
        "var_vqvae": "VAR VQVAE",
        "titok": "TiTok",
        "ta_titok": "TA-TiTok",
        "one_d_piece": "One-D-Piece",
        "open_magvit2": "Open-MAGVIT2",
        "ibq": "IBQ",
        "wetok": "WeTok",
        "binary_ae": "Binary autoencoder",
    },
    "generator": {
        "llamagen": "LlamaGen",
        "net2net": "Net2Net (taming)",
        "rar": "RAR",
        "ibq": "IBQ AR",
        "open_magvit2": "Open-MAGVIT2 AR",
        "wetok": "WeTok AR",
        "elm": "ELM",
        "var": "VAR",
        "nar": "NAR",
        "maskgit": "MaskGIT",
        "mar": "MAR",
        "xar": "xAR",
    },
}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def published(group: str) -> list[tuple[str, str]]:
    """Return (family, preset) of every published preset, family by family."""
    families = FAMILIES[group]
    found = []
    for name in preset_names(group):
        if not name.startswith(OWN):
            key = max((k for k in families if name.startswith(k)), key=len, default=None)
            if key is None:
                raise UserError(f"{group} preset {name} is of no family; add it to FAMILIES.")
            found.append((list(families).index(key), families[key], name))
    return [(family, name) for _, family, name in sorted(found, key=lambda row: row[0])]


def comment(group: str, name: str) -> str:
    """Return the comment that a preset begins with."""
    lines = []
    for line in (config_dir() / group / f"{name}.yaml").read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines)


def scores(expected: Sequence[dict[str, Any]], names: dict[str, str]) -> str:
    """Return published scores, each with the settings it was got under."""
    parts = []
    for entry in expected:
        found = [f"{shown} {entry[key]}" for key, shown in names.items() if key in entry]
        if not found:
            continue
        setting = [f"{entry['image_size']} px"] if "image_size" in entry else []
        setting += [str(entry[key]) for key in ("set", "split", "against") if key in entry]
        known = {*names, "image_size", "set", "split", "against", "codes"}
        setting += [f"{k}={_plain(v)}" for k, v in entry.items() if k not in known]
        parts.append(", ".join(found) + (f" ({', '.join(setting)})" if setting else ""))
    return "; ".join(parts) or NONE


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ",".join(str(v) for v in value) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def licences(meta: dict[str, Any]) -> list[str]:
    """Return the licences of code and of weights."""
    return [str(meta["licence_code"]), str(meta["licence_weights"])]


def paper(group: str, name: str, meta: dict[str, Any]) -> str:
    """Return a link to the paper, from `_meta_` or from the preset's comment."""
    number = re.search(r"\d{4}\.\d{5}", str(meta.get("paper", "")) + " " + comment(group, name))
    return f"[{number[0]}](https://arxiv.org/abs/{number[0]})" if number else NONE


@cache
def meta_tokenizer(name: str) -> Any:
    """Return a preset's network without memory for its weights."""
    with torch.device("meta"):
        return build(preset("tokenizer", name))


def codes_of(spec: CodeSpec) -> tuple[str, str]:
    """Return the number of codes of an image and what each can be."""
    shapes = [segment.shape for segment in spec.segments]
    if len(shapes) > 1:
        count = f"{spec.length} in {len(shapes)} scales"
    elif shapes[0][0] == 1:
        count = f"{spec.length} in a row"
    else:
        count = f"{shapes[0][0]}x{shapes[0][1]}"
    first = spec.segments[0]
    if spec.kind == "continuous":
        return count, f"{first.dim} floats"
    if spec.kind == "binary":
        return count, f"{first.bits} bits"
    sizes = [f"{size:,}" for size in first.vocab_sizes]
    same = len(sizes) > 1 and len(set(sizes)) == 1
    return count, f"{len(sizes)} ids of {sizes[0]}" if same else " x ".join(sizes)


def tokenizer_table() -> str:
    """Return every published tokenizer; parameters are counted on the network built here."""
    rows = []
    for family, name in published("tokenizer"):
        meta, network = preset("tokenizer", name)[META], meta_tokenizer(name)
        count, vocabulary = codes_of(network.spec)
        size = "x".join(str(side) for side in network.image_size)
        parameters = f"{sum(p.numel() for p in network.parameters()) / 1e6:.1f}M"
        rfid = scores(meta["expected"], {"rfid": "rFID"})
        rows.append(
            [
                *(family, f"`{name}`", size, count, vocabulary, parameters, rfid),
                *licences(meta),
                paper("tokenizer", name, meta),
            ]
        )
    head = ["family", "`tokenizer=`", "pixels", "codes", "vocabulary of each", "parameters"]
    return table([*head, "published rFID", "licence: code", "weights", "paper"], rows)


def generator_table() -> str:
    """Return every published generator; sizes and tokenizers are what the presets state."""
    rows = []
    for family, name in published("generator"):
        meta, text = preset("generator", name)[META], comment("generator", name)
        size = re.search(r"([\d.]+[MB])(?= parameters)", text)
        size = size or re.search(r"([\d.]+[MB]) parameters", text)
        codes = re.search(r"tokenizer=(\w+)", text)
        fid = scores(meta["expected"], {"fid": "FID", "is": "IS", "geneval": "GenEval"})
        rows.append(
            [
                *(family, f"`{name}`", size[1] if size else NONE),
                *(f"`{codes[1]}`" if codes else NONE, fid),
                *licences(meta),
                paper("generator", name, meta),
            ]
        )
    head = ["family", "`generator=`", "parameters", "`tokenizer=`", "published scores"]
    return table([*head, "licence: code", "weights", "paper"], rows)


def importer_table() -> str:
    """Return what each module of argen.interop imports."""
    rows = []
    for module in pkgutil.iter_modules(interop.__path__):
        found = importlib.import_module(f"argen.interop.{module.name}")
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
            rows.append([f"`{module.name}`", *cells, "yes" if whole else "Python only"])
    return table(["`source=`", "tokenizer", "generator", "drafter", "`argen.convert`"], rows)


def fitted_generator(name: str) -> Any:
    """Return a tiny generator on the first tiny tokenizer it accepts."""
    for tokenizer in preset_names("tokenizer"):
        if tokenizer.startswith("tiny_"):
            try:
                config = for_codes(preset("generator", name), meta_tokenizer(tokenizer).spec)
                with torch.device("meta"):
                    return build(config)
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
        decoder = build(preset("decoder", strategy))
        answers[strategy] = {name: _drives(decoder, g) for name, g in generators.items()}
    for name in names:
        columns.setdefault("".join("ny"[a[name]] for a in answers.values()), []).append(name)
    head = [", ".join(f"`{n.removeprefix('tiny_')}`" for n in group) for group in columns.values()]
    rows = []
    for strategy, answer in answers.items():
        exact = build(preset("decoder", strategy)).exact
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
    return "null" if value is None else _plain(value)


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
