"""What is published of a preset as lines of text: sizes, codes, scores and commands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from argen.runtime.presets import preset
from argen.spec import CodeSpec
from argen.zoo.checks import CONTEXT, METRICS
from argen.zoo.meta import Meta, Weights, card, experiment

NONE = "-"
LOWER_IS_BETTER = ("fid", "rfid")


def size_text(parameters: int | None) -> str:
    """Return a number of parameters as papers write it: 310M, 1.46B."""
    if parameters is None:
        return NONE
    if parameters >= 1e9:
        return f"{parameters / 1e9:.2f}".rstrip("0").rstrip(".") + "B"
    return f"{parameters / 1e6:.1f}".removesuffix(".0") + "M"


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


def score_text(entry: Mapping[str, Any], names: Sequence[str] = tuple(METRICS)) -> str:
    """Return a published score and the settings it was got under; empty without one of `names`."""
    found = [f"{METRICS[key]} {entry[key]}" for key in names if key in entry]
    if not found:
        return ""
    setting = [f"{entry['image_size']} px"]
    setting += [str(entry[key]) for key in ("set", "split", "against", "selection") if key in entry]
    if "by" in entry:
        setting.append(f"as reported by {entry['by']}")
    setting += [f"{entry[key]} {key}" for key in ("passes", "steps") if key in entry]
    sampling = {k: v for k, v in entry.items() if k not in (*CONTEXT, *METRICS)}
    return f"{', '.join(found)} ({', '.join([*setting, *words_of(sampling)])})"


def best_score(meta: Meta) -> str:
    """Return the best score that needs no selection of samples, without its settings."""
    fair = [entry for entry in meta.expected if "selection" not in entry]
    for key in ("fid", "rfid", "geneval"):
        values = [entry[key] for entry in fair if key in entry]
        if values:
            return f"{METRICS[key]} {min(values) if key in LOWER_IS_BETTER else max(values)}"
    return NONE


def words_of(sampling: Mapping[str, Any]) -> list[str]:
    """Return sampling settings as `argen.sample` takes them: cfg=2.0, decoder=confidence, ..."""
    words = [f"{key}={_plain(value)}" for key, value in sampling.items() if key != "decoder"]
    decoder = dict(sampling.get("decoder", {}))
    if decoder:
        words.append(f"decoder={decoder.pop('name')}")
        words += [f"decoder.{key}={_plain(value)}" for key, value in decoder.items()]
    return words


def commands(group: str, name: str, meta: Meta) -> dict[str, str]:
    """Return the commands that convert, sample, evaluate and train a published preset.

    A command that there is not, such as sampling with a tokenizer, is left out. What is in
    capitals is for the reader to fill in.
    """
    found = {
        "convert": _convert(group, name, meta) if meta.convert else [],
        "sample": _sample(name, meta) if group == "generator" else [],
        "evaluate": _evaluate(group, name, meta),
        "train": _train(group, name, meta),
    }
    return {
        verb: " ".join([f"python -m argen.{verb}", *words])
        for verb, words in found.items()
        if words
    }


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{_plain(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_plain(v) for v in value) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def tokenizer_weights(group: str, meta: Meta) -> tuple[Weights, ...]:
    """Return the released tokenizer that a generator's files need beside them, if any."""
    carried = "tokenizer_ckpt" in meta.convert or _file(meta.weights, "tokenizer")
    if group != "generator" or carried or not meta.weights or meta.tokenizer is None:
        return ()
    partner = card("tokenizer", meta.tokenizer)
    return partner.weights[:1] if partner else ()


def _file(weights: Sequence[Weights], part: str) -> str | None:
    """Return the name of the first released file of a part, without folders."""
    for one in weights:
        if one.what.startswith(part):
            return one.file.rpartition("/")[2] if one.file else None
    return None


def _convert(group: str, name: str, meta: Meta) -> list[str]:
    extra = dict(meta.convert)
    words = [f"source={extra.pop('source')}", f"ckpt={_file(meta.weights, group) or 'CHECKPOINT'}"]
    if group == "generator" and "tokenizer_ckpt" not in extra:
        files = (*meta.weights, *tokenizer_weights(group, meta))
        file = _file(files, "tokenizer")
        words.append(f"tokenizer_ckpt={file or 'TOKENIZER_CHECKPOINT'}")
    words.append(f"out=models/{name}")
    if meta.image_size not in (None, 256):
        words.append(f"image_size={meta.image_size}")
    if extra.get("trust"):
        words.append("trust=true")
    for group_key in ("options", "tokenizer_options"):
        words += [f"+{group_key}.{k}={_plain(v)}" for k, v in extra.get(group_key, {}).items()]
    return words


def _condition(name: str) -> str:
    return str(preset("generator", name)["conditioner"]["_target_"]).rpartition(".")[2]


def _sample(name: str, meta: Meta) -> list[str]:
    asked = {
        "ClassConditioner": ["classes=[207]"],
        "TextConditioner": ["text='a red heart'", "text_encoder=pretrained text_encoder.path=DIR"],
        "Unconditional": [],
    }.get(_condition(name))
    if asked is None:
        return []  # conditioned on codes of another image, which the command does not take
    return [f"model=models/{name}", *asked, "n=8", *words_of(meta.sampling)]


def _evaluate(group: str, name: str, meta: Meta) -> list[str]:
    if not meta.convert:
        return []
    words = [f"model=models/{name}"]
    if group == "tokenizer":
        data = "data=folder data.path=IMAGENET_VAL"
        return [*words, "reconstruction=true", "protocol=rfid_imagenet_val", data]
    condition = _condition(name)
    if condition == "ClassConditioner":
        words.append(f"protocol=adm50k_{512 if meta.image_size == 512 else 256}")
    elif condition == "Unconditional":
        words += ["protocol=fid", "reference=IMAGES"]
    else:
        return []
    # Guidance and filters are those that the converted model keeps.
    return words + [word for word in words_of(meta.sampling) if word.startswith("decoder")]


def _train(group: str, name: str, meta: Meta) -> list[str]:
    if recipe := experiment(name):
        return [f"experiment={recipe}"]
    if group == "tokenizer":
        words = ["stage=tokenizer", f"tokenizer={name}"]
    else:
        words = ["stage=generator", f"generator={name}"]
        if meta.tokenizer:
            words += [f"model=models/{meta.tokenizer}", f"tokenizer={meta.tokenizer}"]
            known = preset("tokenizer", meta.tokenizer)
            words += list(overrides(meta.tokenizer_changes, known, "tokenizer"))
    words += [f"{key}={value}" for key in ("objective", "optim") if (value := getattr(meta, key))]
    return [*words, "data=folder data.path=DIR"]


def overrides(changes: Mapping[str, Any], known: Any, prefix: str) -> Iterator[str]:
    """Give changes as words of the command line; what a preset does not have gets a plus."""
    for key, value in changes.items():
        inside = known.get(key) if isinstance(known, Mapping) else None
        if isinstance(value, Mapping) and isinstance(inside, Mapping):
            yield from overrides(value, inside, f"{prefix}.{key}")
        else:
            yield f"{'' if key in known else '+'}{prefix}.{key}={_plain(value)}"
