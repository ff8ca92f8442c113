"""Two processes that each see half of a batch learn what one process learns from all of it."""

import torch
from torch import distributed, multiprocessing

from argen.layers.collective import all_mean, draw_rows, from_rank_zero
from argen.spec import CodeSpec, Segment
from argen.tokenizers.quantizers.codebook import Codebook
from argen.tokenizers.quantizers.ema import EMAVQ
from argen.tokenizers.quantizers.ibq import IBQ
from argen.tokenizers.quantizers.kmeans import kmeans
from argen.tokenizers.quantizers.lfq import BSQ, LFQ
from argen.tokenizers.quantizers.residual import Residual
from argen.tokenizers.quantizers.vq import VQ
from argen.tokenizers.usage import CodeUsage

PROCESSES = 2


def data(rows=24, dim=6):
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(0))


def averaged(gradient):
    """Return the mean over processes, as DistributedDataParallel takes it."""
    if distributed.is_initialized():
        distributed.all_reduce(gradient)
        gradient /= PROCESSES
    return gradient


def statistics(z):
    """Return everything that must not depend on how the batch is shared out."""
    found = {}
    torch.manual_seed(0)
    ema = EMAVQ(8, 6, decay=0.7).train()
    for _ in range(3):
        ema(z)
    found |= {f"ema.{k}": v for k, v in ema.state_dict().items()}
    counted = VQ(8, 6, revive_below=1e-6, count_decay=0.7).train()
    counted(z)
    found["vq.count"] = counted.count
    centres, sizes = kmeans(z, 5, start=data(5))
    found |= {"kmeans.centres": centres, "kmeans.sizes": sizes}
    scale = torch.ones(6, requires_grad=True)
    forms = {
        "lfq": LFQ(6, temperature=1.0),
        "lfq.clamped": LFQ(6, temperature=1.0, clamp_log=True),
        "lfq.groups": LFQ(6, groups=2, temperature=1.0, batch_entropy="group"),
        "bsq": BSQ(6, temperature=1.0),
        "ibq": IBQ(8, 6, entropy_temperature=1.0),
    }
    for name, quantizer in forms.items():
        loss = quantizer.train()(z * scale).losses["batch_entropy"]
        (gradient,) = torch.autograd.grad(loss, scale)
        found |= {f"{name}.entropy": loss.detach(), f"{name}.gradient": averaged(gradient)}
    meter = CodeUsage(CodeSpec("discrete", (Segment((1, 2), vocab_sizes=(8,)),)), positions=True)
    meter.update(ema.eval().encode(z).view(-1, 2))
    return found | {f"usage.{k}": torch.tensor(v) for k, v in meter.compute().items()}


def agreed(z, rank):
    """Return what is drawn at random but must come out the same on every process."""
    torch.manual_seed(rank)
    found = {"draw": draw_rows(z, 7), "first": from_rank_zero(torch.rand(3))}
    for kind in (VQ, EMAVQ):
        quantizer: Codebook = kind(16, 6, kmeans_steps=3, revive_below=2.0).train()
        quantizer.place(torch.ones(16, dtype=torch.bool), torch.ones(16, 6), torch.ones(16))
        for _ in range(3):
            quantizer(z)
        found[kind.__name__] = quantizer.rows().detach()
    residual = Residual([VQ(4, 6) for _ in range(4)], dropout=1.0).train()
    found["levels"] = torch.tensor([int((residual(z).ids[0] >= 0).sum()) for _ in range(8)])
    # Unequal shares: three rows here, nine there.
    share = z[:3] if rank == 0 else z[:9]
    found["mean"] = all_mean(share.sum(0), len(share))
    return found


def work(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=PROCESSES
    )
    z = data().chunk(PROCESSES)[rank]
    torch.save([statistics(z), agreed(z, rank)], f"{folder}/{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def test_two_processes_learn_what_one_learns(tmp_path):
    multiprocessing.spawn(work, args=(str(tmp_path),), nprocs=PROCESSES)
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]
    alone = statistics(data())
    assert len(alone) >= 20
    for shared, _ in results:
        assert shared.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(shared[name], value, msg=lambda text, n=name: f"{n}: {text}")
    (_, first), (_, second) = results
    mean = first.pop("mean")
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    halves = data().chunk(PROCESSES)
    assert {tuple(row.tolist()) for row in first["draw"]} <= {tuple(r.tolist()) for r in data()}
    expected = torch.cat((halves[0][:3], halves[1][:9])).mean(0)
    torch.testing.assert_close(mean, expected)
    torch.testing.assert_close(second["mean"], expected)
    assert len(set(first["levels"].tolist())) > 1
