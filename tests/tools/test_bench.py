"""tools/bench.py: cases take turns, bounds and ratios are as stated, subjects run by command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from bench.cases import Case, measure
from bench.exactness import exactness_of
from bench.machine import bound
from bench.plot import save_plot
from bench.table import markdown
from PIL import Image

from argen.decoding.context import SamplingContext
from argen.decoding.sequential import Sequential
from argen.decoding.speculative.jacobi import GroupedJacobi, Jacobi
from argen.decoding.zipar import ZipAR

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return forked.run(str(ROOT / "tools" / "bench.py"), *arguments, cwd=Path.cwd())


def row(**changes: Any) -> dict[str, Any]:
    one = Case({"what": "x"}, call=lambda: None)
    measured = measure([one], rounds=1, device=CPU)[0].to_dict() | {"bound_seconds": None}
    return measured | changes


def test_cases_take_turns_after_one_to_warm_up() -> None:
    seen: list[str] = []
    cases = [Case({"name": name}, call=lambda name=name: seen.append(name)) for name in "ab"]
    rows = measure(cases, rounds=3, device=CPU)
    assert seen == list("ab" * 4)
    assert [len(r.seconds) for r in rows] == [3, 3]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_memory_beyond_what_was_held() -> None:
    held = torch.ones(2**24)  # 64 MiB that are no part of it
    for _ in range(2):  # from the second time on these come from the heap, which keeps them
        freed = [torch.ones(2**22) for _ in range(12)]
        above = torch.ones(2**10)
        del freed
    case = Case({}, call=lambda: float((held + 1).sum()))
    extra = measure([case], rounds=1, device=CPU)[0].extra_bytes
    del above
    assert extra is not None
    assert 60 * 2**20 < extra < 100 * 2**20


def test_seconds_of_the_work_itself_and_its_numbers() -> None:
    case = Case({}, call=lambda: {"passes": 7}, seconds=lambda result: result["passes"] / 2)
    measured = measure([case], rounds=2, device=CPU)[0]
    assert measured.seconds == [3.5, 3.5]
    assert measured.to_dict()["numbers"] == {"passes": 7}


def test_bound_is_the_larger_of_bytes_and_flops() -> None:
    found = {
        "bytes_per_second": 10.0,
        "float32_flops_per_second": 4.0,
        "bfloat16_flops_per_second": 8.0,
    }
    assert bound({"bytes": 20, "flops": 4, "dtype": "float32"}, found) == 2.0
    assert bound({"bytes": 20, "flops": 40, "dtype": "float32"}, found) == 10.0
    assert bound({"bytes": 20, "flops": 40, "dtype": "bfloat16"}, found) == 5.0
    assert bound({"bytes": 0, "flops": 0, "dtype": "float32"}, found) is None


def test_table_compares_with_base_bound_and_an_earlier_run() -> None:
    slow = row(labels={"what": "old", "batch": 1}, median_seconds=4.0, units=2)
    fast = row(
        labels={"what": "new", "batch": 1},
        median_seconds=1.0,
        bases={"x base": {"what": "old"}},
        bound_seconds=0.5,
    )
    before = {"rows": [{**fast, "median_seconds": 3.0}]}
    lines = markdown({"rows": [slow, fast]}, before).splitlines()
    header = [cell.strip() for cell in lines[0].split("|")]
    cells = dict(zip(header, (cell.strip() for cell in lines[3].split("|"))))
    assert cells["x base"] == "2.00"  # 2 s a unit before, 1 s now
    assert cells["x bound"] == "2.00"
    assert cells["x before"] == "3.00"


def test_startup_by_command_writes_a_file_that_a_later_run_compares_with(tmp_path: Path) -> None:
    first = tmp_path / "a.json"
    done = bench("startup", "rounds=1", f"out={first}", "commands=[import argen]")
    assert done.returncode == 0, done.stderr
    result = json.loads(first.read_text())
    assert result["machine"]["torch"] == torch.__version__
    assert [r["labels"]["command"] for r in result["rows"]] == ["import argen"]
    assert 0 < result["rows"][0]["median_seconds"] < 60
    again = bench(
        "startup",
        "rounds=1",
        f"out={tmp_path / 'b.json'}",
        f"against={first}",
        "commands=[import argen]",
    )
    assert "x before" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["startip"], "Did you mean 'startup'"),
        (["startup", "round=1"], "Did you mean 'rounds'"),
        (["startup", "against=nowhere.json"], "nowhere.json is not there"),
        (["startup", "commands=[nothing]"], "no command 'nothing'"),
    ],
)
def test_bad_input_is_refused(arguments: list[str], said: str) -> None:
    done = bench(*arguments)
    assert done.returncode == 2
    assert said in done.stdout + done.stderr


SMALL = ("rounds=1", "precisions=[float32]", "+changes.layers=1")


@pytest.mark.parametrize(
    "words",
    [
        ("sample", *SMALL, "decoders=[released,sequential]"),
        ("train", *SMALL, "modes=[eager,recompute]", "batch=1"),
        ("train", *SMALL, "modes=[eager,released]", "batch=1"),
        (
            *("train", "rounds=1", "models=[llamagen_vq16]", "modes=[eager,released]", "batch=1"),
            *("precisions=[bfloat16]", "+changes.image_size=32", "+changes.encoder.channels=32"),
            "+changes.decoder.channels=32",
        ),
        pytest.param(
            ("images", *SMALL, "models=[llamagen_b]", "batches=[1,2]"), marks=pytest.mark.full
        ),
        pytest.param(
            (
                *("first", "rounds=1", "precisions=[float32,int8]", "+changes.layers=1"),
                "more=['cfg=1.0']",
            ),
            marks=pytest.mark.full,
        ),
        (
            *("tokenizer", "rounds=1", "models=[tiny_vq]", "operations=[decode]"),
            *("precisions=[float32]", "layouts=[contiguous,channels_last]"),
        ),
        (
            *("data", "rounds=1", "images=80", "side=40", "size=16", "models=[]"),
            "readers=[folder,webdataset]",
        ),
        pytest.param(("evaluate", "rounds=1", "counts=[4]"), marks=pytest.mark.full),
    ],
)
def test_a_subject_by_command(words: tuple[str, ...], tmp_path: Path) -> None:
    done = bench(*words, f"out={tmp_path / 'out.json'}")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert len(rows) == 2
    assert all(r["median_seconds"] > 0 for r in rows)


@torch.inference_mode()
def test_the_released_loop_draws_the_same_greedy_codes() -> None:
    from bench.models import generator
    from released.llamagen_loop import ReleasedLoop

    from argen.decoding.filters import Filters
    from argen.decoding.guidance import Guidance
    from argen.decoding.sequential import Sequential
    from argen.layers.noise import SeededNoise

    model = generator("llamagen_b", device=CPU, dtype=torch.float32, layers=2).eval()
    labels = torch.tensor([3, 999])
    released = ReleasedLoop(model, scale=2.0, greedy=True)(labels)
    ours = Sequential()(
        model,
        model.conditioner(labels),
        SamplingContext(
            guidance=Guidance(2.0),
            filters=Filters(temperature=0.0),
            noise=SeededNoise([0, 1]),
        ),
    ).codes
    assert (released == ours).float().mean() > 0.98  # a tie in the last bit may end the agreement


def test_the_tables_of_the_page_are_those_of_the_files() -> None:
    command = [sys.executable, str(ROOT / "tools" / "bench_tables.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_plot_has_a_dot_for_every_row(tmp_path: Path) -> None:
    rows = [row(labels={"what": name}, bound_seconds=0.5, units=2) for name in "abc"]
    found = {f"{kind}_flops_per_second": 1.0 for kind in ("float32", "bfloat16")}
    result = {
        "rows": rows,
        "machine": {"cpu": "any", "threads": 1, "torch": "any"},
        "ceilings": {"bytes_per_second": 1.0, **found},
    }
    save_plot(result, tmp_path / "plot.png")
    image = Image.open(tmp_path / "plot.png")
    taller = {**result, "rows": rows * 2}
    save_plot(taller, tmp_path / "taller.png")
    assert Image.open(tmp_path / "taller.png").height > image.height > 0


def test_how_exact_a_strategy_is() -> None:
    assert exactness_of(Jacobi()) == exactness_of(Sequential()) == "exact"
    assert exactness_of(ZipAR()) == "not exact"
    word, distance, _ = exactness_of(GroupedJacobi()).split()
    assert word == "TV"
    assert 0 < float(distance) < 0.3


def test_milliseconds_a_pass() -> None:
    drawn = row(labels={"what": "x", "batch": 4}, units=8, median_seconds=2.0)
    table = markdown({"rows": [drawn | {"numbers": {"passes": 10}}]}).splitlines()
    cells = dict(zip(*([c.strip() for c in line.split("|")] for line in (table[0], table[2]))))
    assert cells["ms/pass"] == "100"  # two batches of ten passes
