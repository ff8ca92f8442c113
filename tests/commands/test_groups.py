"""Callbacks, loggers, optimisers and debug settings as users of Hydra add them, by command."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from runs import TINY, call

from argen.runtime.files import read_json

ALL = ["train", *TINY, "stage=tokenizer", "trainer.log_every_n_steps=1", "fit.val_every=4"]
HERE = "test_groups"


class Counting(Callback):
    """A user's own: writes how many batches it saw."""

    def __init__(self, file: str) -> None:
        self.file, self.seen = file, 0

    def on_train_batch_end(self, *args: object) -> None:
        self.seen += 1

    def on_train_end(self, trainer: object, module: object) -> None:
        Path(self.file).write_text(str(self.seen))


class Lines(Logger):
    """A user's own: a line of JSON a call."""

    def __init__(self, save_dir: str, prefix: str = "") -> None:
        super().__init__()
        self.file, self.prefix = Path(save_dir) / "lines.jsonl", prefix

    @property
    def name(self) -> str:
        return "lines"

    @property
    def version(self) -> str:
        return "0"

    def log_hyperparams(self, *args: object, **more: object) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps({"prefix": self.prefix, "step": step, **metrics}) + "\n")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    sys.modules[HERE] = sys.modules[__name__]


def rows(run: str) -> list[dict[str, str]]:
    with Path(f"outputs/{run}/tokenizer/logs/metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_callbacks_by_name_and_by_class(monkeypatch, capsys) -> None:
    words = ["name=calls", "fit.steps=5", "callbacks=lr_monitor"]
    words += [f"+callbacks.mine._target_={HERE}.Counting", "+callbacks.mine.file=seen.txt"]
    status, _, err = call(monkeypatch, capsys, *ALL, *words)
    assert status == 0, err
    assert Path("seen.txt").read_text() == "5"
    assert any(key.startswith("lr-") for key in rows("calls")[0])
    words = ["name=wrong", "fit.steps=5", "+callbacks.mine._target_=builtins.dict"]
    status, _, err = call(monkeypatch, capsys, *ALL, *words)
    assert status == 2
    assert "callbacks.mine is no callback" in err


def test_loggers_by_class(monkeypatch, capsys) -> None:
    words = ["name=lines", "fit.steps=4", f"+logger._target_={HERE}.Lines", "+logger.prefix=x"]
    status, _, err = call(monkeypatch, capsys, *ALL, *words)
    assert status == 0, err
    lines = Path("outputs/lines/tokenizer/lines.jsonl").read_text().splitlines()
    losses = [one for one in map(json.loads, lines) if "train/loss" in one]
    assert len(losses) == 4
    assert all(one["prefix"] == "x" for one in losses)


def test_an_optimiser_by_class_and_one_for_the_discriminator(monkeypatch, capsys) -> None:
    words = ["name=sgd", "fit.steps=4", "objective=tiny", "objective.discriminator_start=0"]
    words += ["objective.adversarial_start=0", "callbacks=lr_monitor", "optim.warmup=0"]
    words += ["optim.schedule=constant", "optim.optimizer._target_=torch.optim.SGD"]
    words += ["+optim.optimizer.momentum=0.9", "optim.lr=1e-3", "+discriminator_optim.lr=5e-4"]
    words += ["+discriminator_optim.optimizer={_target_: torch.optim.NAdam}"]
    status, _, err = call(monkeypatch, capsys, *ALL, *words)
    assert status == 0, err
    first = next(row for row in rows("sgd") if row.get("lr-SGD/pg1"))
    assert float(first["lr-SGD/pg1"]) == 1e-3
    assert float(first["lr-NAdam/pg1"]) == 5e-4
    settings = read_json(Path("outputs/sgd/tokenizer/settings.json"))["settings"]
    assert settings["discriminator_optim"]["lr"] == 5e-4


@pytest.mark.full
def test_overfit_learns_few_samples_by_heart(monkeypatch, capsys) -> None:
    words = [word for word in ALL if not word.startswith("codes.")]
    status, _, err = call(monkeypatch, capsys, *words, "debug=overfit", "fit.steps=150")
    assert status == 0, err
    found = [float(row["train/l2"]) for row in rows("debug-overfit") if row.get("train/l2")]
    assert min(found) < 0.25 * found[0]
    seen = [float(row["images_seen"]) for row in rows("debug-overfit") if row.get("images_seen")]
    assert seen[-1] > 8 * 100


def test_profiler_anomaly_and_one_batch(monkeypatch, capsys) -> None:
    status, _, err = call(monkeypatch, capsys, *ALL, "debug=profiler", "fit.steps=3")
    assert status == 0, err
    (written,) = Path("outputs/debug-profiler").glob("*profile*.txt")
    assert "run_training_batch" in written.read_text()
    status, _, err = call(monkeypatch, capsys, *ALL, "debug=anomaly", "fit.steps=2")
    assert status == 0, err
    words = [word for word in ALL if not word.startswith("fit.")]
    status, _, err = call(monkeypatch, capsys, *words, "debug=one_batch")
    assert status == 0, err
    assert (
        read_json(Path("outputs/debug-one-batch/tokenizer/settings.json"))["settings"]["fit"][
            "steps"
        ]
        == 1
    )


def test_the_score_goes_back_to_a_sweeper(monkeypatch, capsys) -> None:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from argen import train
    from argen.runtime.presets import config_dir

    words = [*ALL[1:], "name=scored", "fit.steps=3"]
    assert call(monkeypatch, capsys, "train", *words)[0] == 0
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        asked = compose("train", overrides=[*words, "optimized_metric=psnr_heldout_db"])
        wrong = compose("train", overrides=[*words, "optimized_metric=psnr_heldout"])
        none = compose("train", overrides=words)
    expected = read_json(Path("outputs/scored/tokenizer/metrics.json"))["psnr_heldout_db"]
    assert train.score_of(Path("outputs/scored"), asked) == expected
    assert train.score_of(Path("outputs/scored"), none) is None
    with pytest.raises(train.UserError, match="Did you mean 'psnr_heldout_db'"):
        train.score_of(Path("outputs/scored"), wrong)


def test_what_does_not_exist_is_refused(monkeypatch, capsys) -> None:
    for word, told in (
        ("experiment=quickstrat", "Did you mean 'quickstart'"),
        ("debug=overfitt", "Did you mean 'overfit'"),
        ("callbacks=lr_monitr", "Did you mean 'lr_monitor'"),
        ("hparams_search=optna", "Did you mean 'optuna'"),
    ):
        status, _, err = call(monkeypatch, capsys, "train", word)
        assert status == 2
        assert told in err


def test_old_words_still_train(monkeypatch, capsys) -> None:
    words = ["name=old", "fit.steps=2", "optim.final=0.5", "+optim.plateau=1", "optim.warmup=0"]
    with pytest.warns(FutureWarning, match="is now"):
        status, _, err = call(monkeypatch, capsys, *ALL, *words)
    assert status == 0, err
    settings = read_json(Path("outputs/old/tokenizer/settings.json"))["settings"]
    assert (settings["optim"]["min_lr_ratio"], settings["optim"]["hold"]) == (0.5, 1)


def test_a_run_of_before_goes_on(monkeypatch, capsys) -> None:
    """Records with the old names, and without the settings that came later, are the same run."""
    words = ["name=before", "fit.steps=3", "optim.hold=0", "optim.min_lr_ratio=0.1"]
    assert call(monkeypatch, capsys, *ALL, *words)[0] == 0
    path = Path("outputs/before/tokenizer/settings.json")
    record = json.loads(path.read_text())
    optim, fit = record["settings"]["optim"], record["settings"]["fit"]
    optim["final"] = optim.pop("min_lr_ratio")
    for name in ("optimizer", "matrices_only", "scheduler", "hold", "gamma", "milestones"):
        optim.pop(name)
    for name in ("eps", "clip_value", "weight_decay_end"):
        optim.pop(name)
    for name in ("epochs", "global_batch", "overfit"):
        fit.pop(name)
    path.write_text(json.dumps(record))
    model = Path("outputs/before/tokenizer/model/tokenizer.safetensors")
    written = model.stat().st_mtime_ns
    status, _, err = call(monkeypatch, capsys, *ALL, *words)
    assert status == 0, err
    assert model.stat().st_mtime_ns == written  # nothing is trained again
    status, _, err = call(monkeypatch, capsys, *ALL, *words, "optim.min_lr_ratio=0.2")
    assert status == 2
    assert "optim.min_lr_ratio: 0.1, now 0.2" in err
