import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("results", ROOT / "tools" / "results_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_is_up_to_date(tool):
    assert (ROOT / "RESULTS.md").read_text(encoding="utf-8") == tool.page()


def test_only_scores_count_and_empty_columns_go(tool, tmp_path):
    (tmp_path / "a").mkdir()
    for seed, fd in enumerate((4.0, 2.0, 3.0)):
        values = {"fd_lite": fd, "seed": seed, "settings": "s", "seconds": {"x": 1.0, "y": 2.5}}
        (tmp_path / "a" / f"seed{seed}.json").write_text(json.dumps(values))
    (tmp_path / "a" / "time.json").write_text(json.dumps({"seconds_per_step": {"vq": 1.0}}))
    page = tool.page(tmp_path)
    assert "## a" in page
    assert "| `seed1` | 2 | 3.5 |" in page
    assert "time" not in page.split("## a")[1]
    assert "sFID" not in page
    assert "3 seeds, fd_lite: median 3, from 2 to 4." in page
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json is not JSON"):
        tool.page(tmp_path)
