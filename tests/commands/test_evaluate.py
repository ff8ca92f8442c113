"""Scores by command: models, reconstructions, other people's images, two ranks, bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from forked import Running
from runs import call, command

MODEL = "model=outputs/digits/model"


def test_reconstructions_are_scored(workplace: Path) -> None:
    done = command(
        "evaluate", MODEL, "reconstruction=true", "protocol=reconstruction_lite", "quick=true",
        "protocol.samples=60", "protocol.least=20", "out=rec.json", cwd=workplace,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((workplace / "rec.json").read_text())
    assert 5 < result["psnr_db_pooled"] <= result["psnr_db"] < 40
    assert 0 < result["ssim"] < 1
    assert 0 < result["code_usage"] <= 1
    assert result["rfd_lite"] > 0
    assert "originals" in result["reference"]["name"]


def test_two_ranks_score_the_same_set_as_one(workplace: Path) -> None:
    words = [MODEL, "quick=true", "n=270", "export=npz", "top_k=20"]
    alone = command("evaluate", *words, "out=one/m.json", cwd=workplace)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    both = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone",
            "-m", "argen.evaluate", *words, "out=two/m.json",
        ],
        cwd=workplace, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert both.returncode == 0, both.stdout + both.stderr
    assert both.stdout.count("written to") == 1, both.stdout
    a, b = (np.load(workplace / name / "m.npz") for name in ("one", "two"))
    assert (a["arr_0"] == b["arr_0"]).all()
    one, two = (json.loads((workplace / n / "m.json").read_text()) for n in ("one", "two"))
    assert one["fd_lite"] == pytest.approx(two["fd_lite"], rel=1e-9)
    for key in ("class_agreement", "near_copies", "duplicates", "samples"):
        assert one[key] == two[key]


@pytest.mark.full
def test_drawn_in_another_precision(workplace: Path) -> None:
    words = [MODEL, "quick=true", "n=60", "device=cpu", "keep_samples=true"]
    sets = []
    for precision in ("float32", "bfloat16"):
        out = f"in-{precision}/m.json"
        done = command("evaluate", *words, f"precision={precision}", f"out={out}", cwd=workplace)
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads((workplace / out).read_text())["sampling"]["precision"] == precision
        (kept,) = (workplace / out).parent.glob("samples-*")
        sets.append((kept.name, np.load(kept / "00000000.npz")["arr_0"]))
    assert sets[0][0] != sets[1][0]
    assert (sets[0][1] != sets[1][1]).any()


def test_a_killed_evaluation_goes_on(workplace: Path) -> None:
    words = [MODEL, "quick=true", "n=700", "export=npz", "batch_size=32"]
    running = Running("argen.evaluate", [*words, "out=killed/m.json"], cwd=workplace)
    while not list((workplace / "killed").glob("samples-*/*.npz")):
        assert running.poll() is None, "it ended before it was killed"
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (workplace / "killed" / "m.json").exists()
    kept = list((workplace / "killed").glob("samples-*/0*.npz"))
    before = {path.name: path.stat().st_mtime_ns for path in kept}
    for out in ("killed", "whole"):
        words_out = [*words, f"out={out}/m.json", "keep_samples=true"]
        done = command("evaluate", *words_out, cwd=workplace)
        assert done.returncode == 0, done.stdout + done.stderr
    after = {path.name: path.stat().st_mtime_ns for path in kept}
    assert after == before, "finished shards were drawn again"
    a, b = (np.load(workplace / name / "m.npz") for name in ("killed", "whole"))
    assert (a["arr_0"] == b["arr_0"]).all()


def test_a_sweep_makes_a_table_and_a_plot_and_goes_on_where_it_stopped(workplace: Path) -> None:
    words = [MODEL, "quick=true", "n=40", "sweep.cfg=[1,2]", "sweep.top_k=[0,5]", "out=sweep"]
    half = command("evaluate", *words, "sweep.part=1", "sweep.parts=2", cwd=workplace)
    assert half.returncode == 0, half.stdout + half.stderr
    assert "2 points are still missing" in half.stdout
    made = {path.name: path.stat().st_mtime_ns for path in (workplace / "sweep").glob("cfg*.json")}
    assert set(made) == {"cfg=1,top_k=5.json", "cfg=2,top_k=5.json"}
    whole = command("evaluate", *words, cwd=workplace)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    assert "1 of 2: cfg=1,top_k=0" in whole.stdout
    for name, when in made.items():
        assert (workplace / "sweep" / name).stat().st_mtime_ns == when, "scored again"
    assert len(list((workplace / "sweep").glob("reference-*.npz"))) == 1
    lines = (workplace / "sweep" / "table.md").read_text().splitlines()
    assert len(lines) == 2 + 4
    assert (workplace / "sweep" / "plot.png").read_bytes().startswith(b"\x89PNG")
    # A point of the sweep is what the plain command gives, and no less comparable for it.
    alone = command("evaluate", *words[:3], "cfg=2", "top_k=5", "out=point.json", cwd=workplace)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    one = json.loads((workplace / "point.json").read_text())
    other = json.loads((workplace / "sweep" / "cfg=2,top_k=5.json").read_text())
    assert one["fd_lite"] == pytest.approx(other["fd_lite"], rel=1e-9)
    assert one["not_comparable_because"] == other["not_comparable_because"]


def test_references_and_other_peoples_images(workplace: Path) -> None:
    made = np.random.RandomState(0).randint(0, 256, (30, 16, 16, 3), dtype=np.uint8)
    np.savez(workplace / "made.npz", made)
    np.savez(workplace / "real.npz", made[::-1] // 2)
    kept = command(
        "evaluate", "reference=real.npz", "save=ref.npz", "protocol=fd_lite", cwd=workplace
    )
    assert kept.returncode == 0, kept.stdout + kept.stderr
    results = []
    for reference in ("real.npz", "ref.npz"):
        done = command(
            "evaluate", "samples=made.npz", f"reference={reference}", "quick=true",
            "out=foreign.json", cwd=workplace,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        results.append(json.loads((workplace / "foreign.json").read_text()))
    assert results[0]["fd_lite"] == pytest.approx(results[1]["fd_lite"], rel=1e-6)
    assert results[0]["reference"]["sha256"] == results[1]["reference"]["sha256"]
    assert not results[0]["comparable"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "Give model=DIR"),
        ([MODEL, "samples=x"], "Give model=DIR"),
        (["save=x.npz"], "reference=IMAGES"),
        (["reference=x", "save=x.pt"], "give it that ending"),
        (["samples=nowhere", "data=digits"], "There is no folder nowhere"),
        (["samples=nowhere.npz", "data=digits"], "There is no file nowhere.npz"),
        (["samples=small.npz"], "Say what the images are compared with"),
        (["samples=small.npz", "protocol=custom", "quick=true"], "reference=PATH"),
        (["samples=float.npz", "data=digits"], "must be uint8"),
        ([MODEL, "protocol=adm50k_256"], "fetch_assets.py adm_imagenet256"),
        ([MODEL, "protocol=fid", "n=10000"], "fetch_assets.py inception"),
        ([MODEL, "protocol=fd_dinov2", "n=10000"], "features_path=DIR"),
        ([MODEL, "protocol=reconstruction_lite"], "add reconstruction=true"),
        ([MODEL, "reconstruction=true"], "use protocol=reconstruction_lite"),
        ([MODEL, "reconstruction=true", "precision=int8"], "use float32 or bfloat16"),
        ([MODEL, "precision=half"], "Unknown precision=half"),
        (["samples=x", "sweep.cfg=[1]"], "give model=DIR"),
        ([MODEL, "quick=true", "sweep.cfg=2"], "must be a list"),
        ([MODEL, "quick=true", "sweep.cfg=[2,2]"], "names a value twice"),
        ([MODEL, "quick=true", "sweep.cfg=[2]", "sweep.part=1"], "must be one of 0 to 0"),
        ([MODEL, "reference=ref2.npz", "quick=true", "n=4"], "There is no file ref2.npz"),
    ],
)
def test_bad_input_ends_early_with_cause_and_fix(
    workplace: Path,
    words: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("ARGEN_ASSETS", str(workplace / "assets"))
    np.savez(workplace / "small.npz", np.zeros((4, 16, 16, 3), np.uint8))
    np.savez(workplace / "float.npz", np.zeros((4, 16, 16, 3)))
    status, _, err = call(monkeypatch, capsys, "evaluate", *words)
    assert status == 2
    assert told in err
    assert len(err.strip().splitlines()) == 1
    assert not (workplace / "metrics.json").exists()
    assert os.environ.get("WORLD_SIZE") is None


def test_codes_are_looked_at(workplace: Path) -> None:
    done = command("evaluate", "tokens=outputs/digits/codes", "out=look/t.json", cwd=workplace)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((workplace / "look" / "t.json").read_text())
    assert found["codes"].endswith("train")
    assert 0 < found["unigram"]["entropy_bits"] <= found["unigram"]["vocabulary_bits"]
    assert (workplace / "look" / "t.png").stat().st_size > 20_000
    done = command("evaluate", "tokens=outputs/nowhere", cwd=workplace)
    assert done.returncode == 2
    assert "error: There are no codes in outputs/nowhere" in done.stderr
