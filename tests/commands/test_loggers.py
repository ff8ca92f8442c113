"""Where numbers and grids of a run go, by command."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from runs import TINY, command

WORDS = ["train", "name=digits", *TINY, "stage=tokenizer", "fit.val_every=10"]
WORDS += ["trainer.log_every_n_steps=5", "fit.steps=20"]


def records(run: Path) -> list:
    """Return the records of an offline run of Weights & Biases.

    The file is a log of LevelDB's form: a head of 7 bytes, then blocks of 32 KiB that hold records
    or parts of them, each behind a checksum (4 bytes), a length (2) and a kind (1): whole, first,
    middle or last.
    """
    from wandb.proto import wandb_internal_pb2

    data, place, parts, found = run.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or last
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            found.append(record)
            parts = b""
    return found


def test_offline_run_of_wandb_holds_everything(tmp_path: Path) -> None:
    done = command(*WORDS, "logger=wandb_offline", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    stage = tmp_path / "outputs" / "digits" / "tokenizer"
    (file,) = stage.rglob("run-*.wandb")
    found = records(file)
    (start,) = [r.run for r in found if r.HasField("run")][:1]
    assert start.run_id == (stage / "wandb_id").read_text()
    config = {u.key: json.loads(u.value_json) for u in start.config.update}
    assert config["fit"]["steps"] == 20
    assert config["tokenizer"]["_target_"].startswith("argen.")
    assert "commit" in config
    keys = {
        item.key or ".".join(item.nested_key)
        for r in found
        if r.HasField("history")
        for item in r.history.item
    }
    wanted = ("loss", "val/psnr_db", "val/usage", "images_per_second", "reconstructions")
    missing = [name for name in wanted if not any(key.startswith(name) for key in keys)]
    assert not missing, sorted(keys)
    assert list(stage.rglob("media/images/*.png"))


def test_a_resumed_run_keeps_its_identity(tmp_path: Path) -> None:
    stage = tmp_path / "outputs" / "digits" / "tokenizer"
    first = command(*WORDS, "logger=wandb_offline", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    identity = (stage / "wandb_id").read_text()
    (stage / "finished.json").unlink()  # as after a kill between the last step and the end
    again = command(*WORDS, "logger=wandb_offline", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (stage / "wandb_id").read_text() == identity
    names = {path.name for path in stage.rglob("run-*.wandb")}
    assert names == {f"run-{identity}.wandb"}


def test_tensorboard_holds_numbers_and_images(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = command(*WORDS, "logger=tensorboard", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    events = EventAccumulator(
        str(tmp_path / "outputs/digits/tokenizer/tensorboard"), size_guidance={"images": 0}
    )
    events.Reload()
    tags = events.Tags()
    assert {"loss", "val/psnr_db", "images_per_second"} <= set(tags["scalars"])
    assert [e.step for e in events.Scalars("loss")] == [4, 9, 14, 19]
    assert [e.step for e in events.Images("reconstructions")] == [10, 20]
