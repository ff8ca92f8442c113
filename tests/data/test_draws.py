import pytest
import torch
from torchdata.stateful_dataloader import StatefulDataLoader

from argen.data.draws import RequestSampler, SampleRequest
from argen.data.images import MemoryImages
from argen.data.transforms import Augment
from argen.errors import UserError

N = 11


def dataset():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (N, 3, 6, 6), generator=generator).to(torch.uint8)
    return MemoryImages(images, torch.arange(N) % 3, [f"p{i}" for i in range(N)], Augment(2, True))


def loader(workers, **kwargs):
    return StatefulDataLoader(
        dataset(), batch_size=4, num_workers=workers, sampler=RequestSampler(N, **kwargs)
    )


def test_epochs_join_without_repeats():
    draws = list(RequestSampler(N, seed=3, num_draws=3 * N + 2))
    assert len(draws) == 3 * N + 2
    epochs = [[d.index for d in draws[k * N : (k + 1) * N]] for k in range(3)]
    assert all(sorted(epoch) == list(range(N)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert len({d.seed for d in draws}) == len(draws)


def test_stream_is_a_function_of_the_seed():
    assert list(RequestSampler(N, seed=1, num_draws=30)) == list(
        RequestSampler(N, seed=1, num_draws=30)
    )
    assert list(RequestSampler(N, seed=1, num_draws=30)) != list(
        RequestSampler(N, seed=2, num_draws=30)
    )


def test_ranks_deal_one_stream():
    whole = list(RequestSampler(N, seed=5, num_draws=24))
    for world in (2, 3):
        hands = [
            list(RequestSampler(N, seed=5, rank=r, world_size=world, num_draws=24 // world))
            for r in range(world)
        ]
        assert [draw for turn in zip(*hands) for draw in turn] == whole


def test_two_ranks_share_no_sample_within_an_epoch():
    # 10 samples: both ranks stay inside the same epoch for 5 draws.
    hands = [
        {d.index for d in RequestSampler(10, rank=r, world_size=2, num_draws=5)} for r in range(2)
    ]
    assert not hands[0] & hands[1]
    assert hands[0] | hands[1] == set(range(10))


def test_no_shuffle_no_augmentation():
    draws = list(RequestSampler(4, shuffle=False, augment=False, num_draws=6))
    assert draws == [SampleRequest(i, None) for i in (0, 1, 2, 3, 0, 1)]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_one_pass_covers_everything_once(world):
    parts = [list(RequestSampler.one_pass(N, rank=r, world_size=world)) for r in range(world)]
    assert sorted(d.index for part in parts for d in part) == list(range(N))
    assert all(d.seed is None for part in parts for d in part)


def test_passes_continue_the_stream():
    whole = list(RequestSampler(N, num_draws=20))
    sampler = RequestSampler(N, num_draws=10)
    first = list(sampler)
    sampler.set_epoch(1)
    assert first + list(sampler) == whole


def test_endless_stream_has_no_length():
    sampler = RequestSampler(N)
    with pytest.raises(TypeError, match="no end"):
        len(sampler)
    stream = iter(sampler)
    assert sorted(next(stream).index for _ in range(N)) == list(range(N))
    assert len(RequestSampler(N, num_draws=7)) == 7


@pytest.mark.parametrize("stop", [0, 1, 9, 13])
@pytest.mark.parametrize("worlds", [(1, 1), (2, 2), (1, 2), (2, 3), (3, 1)])
def test_state_resumes_at_any_world_size(stop, worlds):
    before, after = worlds
    whole = list(RequestSampler(N, seed=7, num_draws=300))
    samplers = [RequestSampler(N, seed=7, rank=r, world_size=before) for r in range(before)]
    streams = [iter(s) for s in samplers]
    for _ in range(stop):
        for stream in streams:
            next(stream)
    states = [s.state_dict() for s in samplers]
    assert all(state == states[0] for state in states)
    resumed = []
    for rank in range(after):
        sampler = RequestSampler(N, seed=7, rank=rank, world_size=after)
        sampler.load_state_dict(states[0])
        stream = iter(sampler)
        resumed += [next(stream) for _ in range(8)]
    expected = whole[stop * before : stop * before + 8 * after]
    assert sorted(resumed) == sorted(expected)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("rank", "world"), [(0, 1), (1, 2)])
def test_stateful_loader_resumes_exactly(workers, rank, world):
    kwargs = {"seed": 9, "rank": rank, "world_size": world, "num_draws": 40}
    whole = list(loader(workers, **kwargs))
    assert len(whole) == 10
    first = loader(workers, **kwargs)
    stream = iter(first)
    for _ in range(4):
        next(stream)
    # From rank 0, as a checkpoint holds only its state.
    rank0 = loader(workers, **(kwargs | {"rank": 0}))
    stream0 = iter(rank0)
    for _ in range(4):
        next(stream0)
    for state in (first.state_dict(), rank0.state_dict()):
        second = loader(workers, **kwargs)
        second.load_state_dict(state)
        rest = list(second)
        assert len(rest) == 6
        for got, expected in zip(rest, whole[4:]):
            assert all(torch.equal(got[key], expected[key]) for key in expected)


def test_loader_output_does_not_depend_on_workers():
    for a, b in zip(loader(0, num_draws=24), loader(2, num_draws=24)):
        assert torch.equal(a["image"], b["image"])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_samples": 0}, "empty"),
        ({"num_samples": 3, "rank": 2, "world_size": 2}, "rank=2"),
        ({"num_samples": 3, "num_draws": -1}, "num_draws"),
    ],
)
def test_impossible_numbers(kwargs, message):
    with pytest.raises(UserError, match=message):
        RequestSampler(**kwargs)


def test_state_of_other_data_is_refused():
    state = RequestSampler(N).state_dict()
    with pytest.raises(UserError, match="num_samples was 11, now it is 12"):
        RequestSampler(N + 1).load_state_dict(state)
    with pytest.raises(UserError, match="seed was 0, now it is 1"):
        RequestSampler(N, seed=1).load_state_dict(state)
