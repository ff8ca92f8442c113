"""Jobs of a cluster: by submitit on this machine, and by a Slurm that is made of four scripts."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from forked import Running
from runs import TINY, command
from safetensors.torch import load_file

pytest.importorskip("submitit")

WORDS = ["train", "name=digits", *TINY, "stage=tokenizer", "fit.steps=40"]

# What argen and submitit ask of Slurm. A job runs at once, in the background, on this machine.
SBATCH = """#!/bin/bash
cp "$1" "$FAKE/script.sh"
( SLURM_JOB_ID=4242 SLURM_JOB_NODELIST=localhost bash "$1" > "$FAKE/batch.log" 2>&1 ) &
echo "Submitted batch job 4242"
"""
SRUN = """#!/bin/bash
while [[ "$1" != /* || ! -x "$1" ]]; do shift; done
export SLURM_PROCID=0 SLURM_NTASKS=1 SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_STEP_ID=0
echo $$ > "$FAKE/pid"
exec "$@"
"""
SCONTROL = """#!/bin/bash
echo "$@" >> "$FAKE/scontrol.log"
( sleep 1; kill -9 $(cat "$FAKE/pid"); cp "$FAKE/batch.log" "$FAKE/batch-1.log"
  export SLURM_JOB_ID=4242 SLURM_JOB_NODELIST=localhost
  bash "$FAKE/script.sh" > "$FAKE/batch.log" 2>&1 ) > /dev/null 2>&1 &
"""
SACCT = """#!/bin/bash
echo "JobID|State"
echo "4242|RUNNING"
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the four scripts in front of the path; returns their directory."""
    place = tmp_path / "slurm"
    place.mkdir()
    scripts = {"sbatch": SBATCH, "srun": SRUN, "scontrol": SCONTROL, "sacct": SACCT}
    for name, text in scripts.items():
        (place / name).write_text(text)
        (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(place))
    return place


def test_the_script_that_slurm_is_given(slurm: Path, tmp_path: Path) -> None:
    options = ["cluster.nodes=2", "cluster.gpus=4", "cluster.minutes=90", "cluster.partition=big"]
    options += ["cluster.setup=[module load cuda]", "+cluster.sbatch.mail-type=END"]
    (slurm / "sbatch").write_text('#!/bin/bash\ncp "$1" "$FAKE/script.sh"\nexit 1\n')
    done = command(*WORDS, "cluster=slurm", *options, cwd=tmp_path)
    assert done.returncode != 0
    script = (slurm / "script.sh").read_text()
    for line in (
        "--nodes=2", "--gpus-per-node=4", "--ntasks-per-node=4", "--cpus-per-task=8", "--time=90",
        "--partition=big", "--mail-type=END", "--signal=USR2@180", "--job-name=argen",
    ):  # fmt: skip
        assert f"#SBATCH {line}\n" in script, script
    assert script.index("module load cuda") < script.index("srun")


def test_a_job_of_slurm_trains_and_goes_on_after_its_limit(slurm: Path, tmp_path: Path) -> None:
    words = [*WORDS, "cluster=slurm", "fit.steps=200"]
    process = Running("argen.train", words[1:], cwd=tmp_path)
    run = tmp_path / "outputs" / "digits" / "tokenizer"
    deadline = time.monotonic() + 240
    first = run / "checkpoints" / "last.ckpt"
    while not first.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(int((slurm / "pid").read_text()), signal.SIGUSR2)  # as Slurm before the limit
    said = "".join(process.communicate(timeout=300))
    assert process.returncode == 0, said + (slurm / "batch.log").read_text()
    assert (slurm / "scontrol.log").read_text() == "requeue 4242\n"
    begun = (slurm / "batch-1.log").read_text()
    assert "SIGUSR2: saved step" in begun
    assert "Asked Slurm to start job 4242 again" in begun
    assert "tokenizer: going on from" in (slurm / "batch.log").read_text()
    whole = command(*WORDS, "fit.steps=200", "name=whole", cwd=tmp_path)
    assert whole.returncode == 0
    expected = load_file(tmp_path / "outputs/whole/tokenizer/model/tokenizer.safetensors")
    found = load_file(run / "model" / "tokenizer.safetensors")
    assert all((value == found[key]).all() for key, value in expected.items())


@pytest.mark.full
def test_two_ranks_by_submitit_on_this_machine(tmp_path: Path) -> None:
    words = [*WORDS, "cluster=submitit_local", "cluster.tasks=2", "cluster.gpus=2"]
    words += ["trainer=ddp", "trainer.accelerator=cpu", "fit.batch_size=4"]
    words.remove("trainer=cpu")
    job = command(*words, cwd=tmp_path)
    logs = [p.read_text() for p in (tmp_path / "outputs" / "jobs").rglob("*_log.*")]
    assert job.returncode == 0, job.stdout + job.stderr + "".join(logs)
    one = command(*WORDS, "name=one", "fit.batch_size=8", cwd=tmp_path)
    assert one.returncode == 0
    models = [
        load_file(tmp_path / "outputs" / name / "tokenizer/model/tokenizer.safetensors")
        for name in ("digits", "one")
    ]
    for key, value in models[0].items():
        assert (value - models[1][key]).abs().max() < 5e-3, key


def test_bad_input_of_a_job_stops_the_command(tmp_path: Path) -> None:
    done = command(*WORDS, "cluster=submitit_local", "fit.steps=0", cwd=tmp_path)
    assert done.returncode == 2
    assert "error: fit.steps=0 must be at least 1" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.full
def test_a_list_of_values_becomes_a_job_each(tmp_path: Path) -> None:
    words = [*WORDS, "cluster=submitit_local", "fit.steps=2", "seed=0,1", "name=run${seed}"]
    done = command(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(p.name for p in (tmp_path / "outputs").glob("run*")) == ["run0", "run1"]


def test_tasks_of_srun_are_ranks(workplace: Path, tmp_path: Path) -> None:
    model = workplace / "outputs" / "digits" / "model"
    words = ["tokenize", f"model={model}", "data=digits", "shard_size=300", "device=cpu"]
    one = command(*words, "out=one", cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    step = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2"}
    tasks = [
        Running(
            "argen.tokenize",
            [*words[1:], "out=two"],
            cwd=tmp_path,
            env=os.environ
            | step
            | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_STEP_NODELIST": "localhost"},
        )
        for rank in "01"
    ]
    assert [task.wait(timeout=300) for task in tasks] == [0, 0]
    for path in (tmp_path / "one").rglob("*.npy"):
        other = tmp_path / "two" / path.relative_to(tmp_path / "one")
        assert path.read_bytes() == other.read_bytes()
