"""Images drawn for a score: the same set in one go, in two, and on two ranks."""

import numpy as np
import pytest
import torch

from argen.build import build
from argen.evaluation import generated
from argen.evaluation.generated import Generated
from argen.evaluation.sample_files import open_samples
from argen.pipeline import Pipeline
from argen.pipeline.keys import image_keys
from argen.runtime.presets import for_codes, preset


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    tokenizer = build(preset("tokenizer", "tiny_vq")).eval()
    config = for_codes(preset("generator", "tiny_gpt"), tokenizer.spec, num_classes=3)
    return Pipeline(tokenizer=tokenizer, generator=build(config).eval())


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(generated, "SHARD", 4)


def draw(pipe, directory, **options):
    settings = {"labels": [0, 0, 0, 1, 1, 1, 2, 2, 2, 2], "seed": 7, "batch_size": 3} | options
    return Generated(pipe, directory=directory, cfg=2.0, **settings)


def whole(drawn):
    parts = sorted(drawn.batches(), key=lambda part: int(part[0][0]))
    return tuple(torch.cat(column) for column in zip(*parts))


def test_a_stopped_run_goes_on_with_what_it_has(pipe, tmp_path, monkeypatch):
    index, pixels, labels = whole(draw(pipe, tmp_path / "once"))
    assert index.tolist() == list(range(10))
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
    started = draw(pipe, tmp_path / "twice").batches()
    next(started)
    started.close()
    made = sorted(p.name for p in (tmp_path / "twice").rglob("*.npz"))
    assert made == ["00000000.npz"]
    again = draw(pipe, tmp_path / "twice")
    drawn, original = [], Generated._draw

    def noted(self, index, path):
        drawn.append(index)
        return original(self, index, path)

    monkeypatch.setattr(Generated, "_draw", noted)
    assert torch.equal(whole(again)[1], pixels)
    assert [int(i[0]) for i in drawn] == [4, 8]
    # And the images are those that the pipeline draws from these seeds.
    alone = pipe([2], n=1, seed=image_keys(7, 10)[9], cfg=2.0)
    assert torch.equal(generated.to_uint8(alone.images)[0], pixels[9])


def test_ranks_share_the_shards_and_make_the_same_set(pipe, tmp_path, monkeypatch):
    _, pixels, _ = whole(draw(pipe, tmp_path / "one"))
    parts = []
    for rank in range(2):
        monkeypatch.setattr(generated, "rank_and_world_size", lambda rank=rank: (rank, 2))
        parts += list(draw(pipe, tmp_path / "two").batches())
    parts.sort(key=lambda part: int(part[0][0]))
    assert torch.equal(torch.cat([part[1] for part in parts]), pixels)
    files = [sorted((tmp_path / name).rglob("*.npz")) for name in ("one", "two")]
    assert [p.name for p in files[0]] == [p.name for p in files[1]]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*files))


def test_other_settings_have_other_shards(pipe, tmp_path):
    places = {
        draw(pipe, tmp_path).directory,
        draw(pipe, tmp_path, seed=8).directory,
        draw(pipe, tmp_path, labels=[0, 1]).directory,
        draw(pipe, tmp_path, top_k=3).directory,
    }
    assert len(places) == 4


def test_export_is_read_back_by_numpy_and_by_us(pipe, tmp_path):
    drawn = draw(pipe, tmp_path)
    _, pixels, labels = whole(drawn)
    drawn.export(tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as file:
        assert file["arr_0"].dtype == np.uint8
        assert (file["arr_0"] == pixels.permute(0, 2, 3, 1).numpy()).all()
        assert file["labels"].tolist() == labels.tolist()
    samples = open_samples(tmp_path / "out.npz")
    assert torch.equal(next(samples.batches(10))[1], pixels)
    assert samples.labels.tolist() == labels.tolist()
    drawn.remove()
    assert not list(tmp_path.glob("samples-*"))
