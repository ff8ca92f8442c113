"""The comparison of quantisers runs, resumes by file, and refuses unknown names."""

import json
from pathlib import Path

import forked

ROOT = Path(__file__).parents[2]


def run(*words, cwd):
    return forked.run(str(ROOT / "tools" / "ablate_quantizers.py"), *words, cwd=cwd)


def test_two_quantisers_train_and_are_not_trained_again(tmp_path):
    words = ["steps=2", "only=[fsq,kl]", f"out={tmp_path}/made"]
    first = run(*words, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    fsq, kl = (
        json.loads((tmp_path / "made" / f"{n}-seed0.json").read_text()) for n in ("fsq", "kl")
    )
    assert fsq["bits_per_image"] == 12 * 64
    assert 0 < fsq["codes_used"] <= 1
    assert kl["bits_per_code"] > 0
    again = run(*words, cwd=tmp_path)
    assert again.stdout.count("finished, see") == 2
    assert run("only=[vqq]", cwd=tmp_path).returncode == 1
