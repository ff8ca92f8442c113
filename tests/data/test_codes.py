import json
import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from torchdata.stateful_dataloader import StatefulDataLoader

from argen.data.codes import CodeDataset, CodeWriter
from argen.data.draws import RequestSampler, SampleRequest
from argen.data.shards import Extra, storage_dtype
from argen.errors import UserError
from argen.spec import CodeSpec, Segment, SpecError

VQ = CodeSpec("discrete", (Segment((2, 3), (512,), dim=4),))
SMALL = CodeSpec("discrete", (Segment((2, 3), (256,)),))
HUGE = CodeSpec("discrete", (Segment((2, 3), (2**18,)),))
FACTORISED = CodeSpec("discrete", (Segment((2, 3), (64, 4096)),))
PYRAMID = CodeSpec("discrete", (Segment((1, 1), (512,)), Segment((2, 2), (512,))))
BITS = CodeSpec("binary", (Segment((2, 3), bits=18),))
KL = CodeSpec("continuous", (Segment((2, 3), dim=4),))
ITEMS = 10


def codes_of(spec, views=2, items=ITEMS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (items, views, *spec.code_shape(1)[1:])
    if spec.kind == "continuous":
        return torch.randn(shape, generator=generator)
    if spec.kind == "binary":
        return torch.randint(0, 2, shape, generator=generator)
    sizes = torch.tensor(spec.segments[0].vocab_sizes)
    if len(sizes) > 1:  # the last dimension of the shape is the sub-tokens
        return (torch.rand(shape, generator=generator) * sizes).long()
    return torch.randint(0, int(sizes[0]), shape, generator=generator)


def writer(directory, spec=VQ, **changes):
    arguments = {
        "spec": spec,
        "tokenizer_fingerprint": "abc",
        "classes": ["cat", "dog"],
        "transform": "centre crop",
        "views": ["centre", "flip"],
        "num_items": ITEMS,
        "shard_size": 4,
    }
    return CodeWriter(directory, **(arguments | changes))


def write(to, codes, shards=None):
    for shard in to.missing() if shards is None else shards:
        rows = torch.arange(shard.start, shard.stop)
        to.write(shard, codes[shard.start : shard.stop], rows % 2, rows + 100)


@pytest.mark.parametrize(
    ("spec", "dtype"),
    [
        (SMALL, "uint8"),
        (VQ, "uint16"),
        (FACTORISED, "uint16"),
        (PYRAMID, "uint16"),
        (HUGE, "int32"),
        (BITS, "uint8"),
        (KL, "float16"),
    ],
)
def test_round_trip(tmp_path, spec, dtype):
    codes = codes_of(spec)
    to = writer(tmp_path / "train", spec)
    write(to, codes)
    manifest = to.finish()
    assert manifest["dtype"] == dtype == storage_dtype(spec).name
    assert manifest["class_counts"] == {"cat": 5, "dog": 5}

    data = CodeDataset(tmp_path, split="train")
    assert len(data) == ITEMS
    assert data.spec == spec
    assert data.classes == ("cat", "dog")
    assert data.labels.tolist() == [0, 1] * 5
    batch = torch.utils.data.default_collate([data[i] for i in range(ITEMS)])
    spec.check(batch["codes"])
    assert torch.allclose(batch["codes"].double(), codes[:, 0].double(), atol=2e-3)
    assert spec.kind == "continuous" or torch.equal(batch["codes"], codes[:, 0])
    assert batch["index"].tolist() == list(range(100, 110))
    assert batch["label"].dtype == torch.int64


def test_view_is_picked_by_the_seed(tmp_path):
    codes = codes_of(VQ)
    to = writer(tmp_path)
    write(to, codes)
    to.finish()
    data = CodeDataset(tmp_path)
    views = []
    for seed in range(40):
        got = data[SampleRequest(3, seed)]["codes"]
        views.append([torch.equal(got, codes[3, v]) for v in range(2)].index(True))
        assert torch.equal(got, data[SampleRequest(3, seed)]["codes"])
    assert 10 < sum(views) < 30


def test_mean_and_deviation_are_drawn_from(tmp_path):
    mean, deviation = codes_of(KL, views=1), torch.full((ITEMS, 1, 6, 4), 0.5)
    to = writer(tmp_path, KL, views=["centre"], channels="mean_std", float_dtype="float32")
    write(to, torch.cat([mean, deviation], dim=-1))
    to.finish()
    data = CodeDataset(tmp_path)
    assert torch.equal(data[2]["codes"], mean[2, 0])
    drawn = torch.stack([data[SampleRequest(2, seed)]["codes"] for seed in range(300)])
    assert torch.equal(drawn[7], data[SampleRequest(2, 7)]["codes"])
    assert drawn.std(0).mean() == pytest.approx(0.5, abs=0.03)
    assert (drawn.mean(0) - mean[2, 0]).abs().max() < 0.15


def test_killed_run_goes_on_without_redoing_shards(tmp_path):
    codes = codes_of(VQ)
    first = writer(tmp_path)
    assert [tuple(s) for s in first.missing()] == [(0, 0, 4), (1, 4, 8), (2, 8, 10)]
    write(first, codes, [first.shards()[1]])
    (tmp_path / ".codes-00000.npy.1.tmp").write_bytes(b"half")  # what a kill leaves
    with pytest.raises(UserError, match="lacks 2 of 3 shards"):
        first.finish()
    with pytest.raises(UserError, match=r"no manifest.json \(1 shards .*`argen tokenize`"):
        CodeDataset(tmp_path)
    before = (tmp_path / "codes-00001.npy").stat().st_mtime_ns

    again = writer(tmp_path)
    assert [s.number for s in again.missing()] == [0, 2]
    write(again, codes)
    again.finish()
    assert again.finished
    assert (tmp_path / "codes-00001.npy").stat().st_mtime_ns == before
    assert not list(tmp_path.glob(".*"))
    assert torch.equal(CodeDataset(tmp_path)[5]["codes"], codes[5, 0])
    assert writer(tmp_path).missing() == []


def _write_share(directory, rank):
    to = writer(directory)
    write(to, codes_of(VQ, seed=1) * 0 + 7, to.shards()[rank::2])


def test_processes_share_the_shards(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write_share, args=(tmp_path, rank)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    writer(tmp_path).finish()
    assert all((CodeDataset(tmp_path)[i]["codes"] == 7).all() for i in range(ITEMS))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"tokenizer_fingerprint": "xyz"}, 'tokenizer \\("abc", now "xyz"'),
        ({"views": ["centre", "ten"]}, "views"),
        ({"num_items": 11}, "num_items"),
        ({"spec": SMALL}, "spec"),
        ({"transform": "resize"}, "transform"),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_codes_of_something_else_are_not_mixed_in(tmp_path, changes, what, finished):
    to = writer(tmp_path)
    if finished:
        write(to, codes_of(VQ))
        to.finish()
    with pytest.raises(UserError, match="another " + what):
        writer(tmp_path, **changes)


@pytest.fixture
def finished(tmp_path):
    to = writer(tmp_path / "val")
    write(to, codes_of(VQ))
    to.finish()
    return tmp_path


def test_truncated_shard(finished):
    path = finished / "val" / "codes-00001.npy"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"Shard 1 .*truncated.*delete codes-00001.npy"):
        CodeDataset(finished, split="val")
    path.unlink()
    with pytest.raises(UserError, match=r"codes-00001\.npy is missing"):
        CodeDataset(finished, split="val")
    to = writer(finished / "val")
    assert not to.finished
    assert [shard.number for shard in to.missing()] == [1]


@pytest.mark.parametrize("what", ["codes", "labels", "indices"])
def test_changed_shard(finished, what):
    path = finished / "val" / f"{what}-00000.npy"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"Shard 0 .*its {what} changed"):
        CodeDataset(finished, split="val")
    assert len(CodeDataset(finished, split="val", verify=False)) == ITEMS


def test_shard_of_another_shape(finished):
    np.save(finished / "val" / "codes-00002.npy", np.zeros((2, 2, 7), dtype=np.uint16))
    with pytest.raises(UserError, match=r"Shard 2 .*expected uint16 \(2, 2, 6\)"):
        CodeDataset(finished, split="val")


def test_no_codes(tmp_path):
    with pytest.raises(UserError, match=r"no codes in .*argen tokenize"):
        CodeDataset(tmp_path, split="train")


def test_damaged_or_foreign_manifest(finished):
    path = finished / "val" / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"format": 99}))
    with pytest.raises(UserError, match="format 99"):
        CodeDataset(finished, split="val")
    path.write_text("{")
    with pytest.raises(UserError, match=r"manifest.json is damaged"):
        CodeDataset(finished, split="val")


def test_generator_refuses_codes_of_another_tokenizer(finished):
    data = CodeDataset(finished, split="val")
    data.require_spec(VQ, wanted_by="generator g")
    data.require_tokenizer("abc", wanted_by="generator g")
    with pytest.raises(SpecError, match=r"val holds codes of another tokenizer.*generator g"):
        data.require_spec(SMALL, wanted_by="generator g")
    with pytest.raises(SpecError, match=r"tokenizer abc, but generator g needs tokenizer xyz"):
        data.require_tokenizer("xyz", wanted_by="generator g")


def test_bad_codes_are_not_written(tmp_path):
    to = writer(tmp_path)
    shard, rows = to.shards()[0], torch.arange(4)
    good = codes_of(VQ)[:4]
    with pytest.raises(SpecError, match="outside the vocabulary"):
        to.write(shard, good + 512, rows % 2, rows)
    with pytest.raises(SpecError, match="4 items x 2 views"):
        to.write(shard, good[:3], rows % 2, rows)
    with pytest.raises(SpecError, match="2 classes"):
        to.write(shard, good, rows, rows)
    kl = writer(tmp_path / "kl", KL)
    for bad in (float("nan"), float("inf"), 1e6):
        with pytest.raises(SpecError, match="not finite, or too large"):
            kl.write(shard, torch.full((4, 2, 6, 4), bad), rows % 2, rows)
    assert len(to.missing()) == len(kl.missing()) == 3
    assert not list(tmp_path.glob("**/*.npy"))


def test_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        writer(tmp_path / "file" / "codes")


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_resumes_on_codes(finished, workers):
    def loader():
        data = CodeDataset(finished, split="val")
        sampler = RequestSampler(len(data), seed=2, num_draws=24)
        return StatefulDataLoader(data, batch_size=4, num_workers=workers, sampler=sampler)

    whole = list(loader())
    first = loader()
    stream = iter(first)
    for _ in range(3):
        next(stream)
    second = loader()
    second.load_state_dict(first.state_dict())
    rest = list(second)
    assert [b["codes"].tolist() for b in rest] == [b["codes"].tolist() for b in whole[3:]]


def test_pickled_data_set_opens_its_own_maps(finished):
    data = CodeDataset(finished, split="val")
    expected = data[9]["codes"]
    assert torch.equal(pickle.loads(pickle.dumps(data))[9]["codes"], expected)


FEATURES = {"text": Extra((5, 3)), "text_length": Extra((), "int64")}


def write_with_text(directory, text):
    to = writer(directory, extras=FEATURES)
    for shard in to.missing():
        rows = torch.arange(shard.start, shard.stop)
        to.write(
            shard,
            codes_of(VQ)[shard.start : shard.stop],
            rows % 2,
            rows,
            {"text": text[shard.start : shard.stop], "text_length": rows + 3},
        )
    return to


def test_extra_arrays_travel_with_the_codes(tmp_path):
    text = torch.randn(ITEMS, 5, 3, generator=torch.Generator().manual_seed(1)).half()
    write_with_text(tmp_path, text.bfloat16().float()).finish()
    data = CodeDataset(tmp_path)
    assert data.extras == FEATURES
    batch = torch.utils.data.default_collate([data[SampleRequest(i, i)] for i in range(ITEMS)])
    assert batch["text"].dtype == torch.float16
    assert torch.equal(batch["text"], text.bfloat16().half())
    assert batch["text_length"].tolist() == list(range(3, 13))
    # Their files are part of the shard: damaged ones are found, and other extras refused.
    (tmp_path / "text-00001.npy").write_bytes(b"half")
    with pytest.raises(UserError, match=r"text-00001\.npy is truncated"):
        CodeDataset(tmp_path)
    assert [shard.number for shard in writer(tmp_path, extras=FEATURES).missing()] == [1]
    with pytest.raises(UserError, match="another extras"):
        writer(tmp_path)


def test_wrong_extra_arrays_are_not_written(tmp_path):
    to, rows = writer(tmp_path, extras=FEATURES), torch.arange(4)
    shard, codes = to.shards()[0], codes_of(VQ)[:4]
    good = {"text": torch.zeros(4, 5, 3), "text_length": rows}
    for bad, message in (
        ({"text": torch.zeros(4, 5, 3)}, "needs the extra arrays"),
        (good | {"text": torch.zeros(4, 5, 2)}, "must have shape"),
        (good | {"text": torch.full((4, 5, 3), float("nan"))}, "not finite"),
        (good | {"text": torch.full((4, 5, 3), 1e6)}, "too large to be stored as float16"),
    ):
        with pytest.raises(SpecError, match=message):
            to.write(shard, codes, rows % 2, rows, bad)
    assert not list(tmp_path.glob("*.npy"))
    for name, extra, message in (
        ("codes", Extra(()), "cannot be called"),
        ("a/b", Extra(()), "cannot be called"),
        ("text", Extra((), "complex64"), "dtype"),
    ):
        with pytest.raises(UserError, match=message):
            writer(tmp_path / "other", extras={name: extra})
