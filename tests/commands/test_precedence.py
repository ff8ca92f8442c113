"""Who wins: what is typed over the experiment, for one stage over for all, however it is spelt."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from argen.errors import UserError
from argen.runtime.presets import config_dir
from argen.runtime.renamed import renamed_word
from argen.runtime.stage_settings import stage_settings

QUICK = "experiment=quickstart"


@pytest.fixture(scope="module")
def composed():
    """Return what each stage is trained with, for the words of a command line."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):

        def settings(*words: str):
            config = compose("train", overrides=list(words))
            return {stage: stage_settings(config, stage, words) for stage in config.stages}

        yield settings
    GlobalHydra.instance().clear()


# words, then what must stand where: (stage, key): value. Quickstart's generator has lr 4e-3, its
# tokenizer 3e-3; adamw has 1e-4 and warmup 100; llamagen has 1e-4, constant, warmup 0.
CASES = [
    ([], {("generator", "optim.lr"): 1e-4, ("tokenizer", "fit.steps"): 5000}),
    ([QUICK], {("generator", "optim.lr"): 4e-3, ("tokenizer", "optim.lr"): 3e-3}),
    ([QUICK], {("generator", "fit.steps"): 2200, ("tokenizer", "fit.ema"): 0.998}),
    ([QUICK, "optim.lr=1"], {("generator", "optim.lr"): 1, ("tokenizer", "optim.lr"): 1}),
    (["optim.lr=1", QUICK], {("generator", "optim.lr"): 1}),
    ([QUICK, "+optim.lr=1"], {("generator", "optim.lr"): 1}),  # taken whether it is there or not
    ([QUICK, "++optim.lr=1"], {("generator", "optim.lr"): 1, ("drafter", "optim.lr"): 1}),
    ([QUICK, "++optim.lr=1e-3"], {("generator", "optim.lr"): 1e-3}),
    ([QUICK, "optim=llamagen"], {("generator", "optim.lr"): 1e-4, ("tokenizer", "optim.lr"): 1e-4}),
    ([QUICK, "optim=llamagen"], {("generator", "optim.schedule"): "constant"}),
    ([QUICK, "optim=llamagen"], {("generator", "optim.weight_decay"): 0.05}),
    ([QUICK, "optim=llamagen", "optim.lr=1"], {("generator", "optim.lr"): 1}),
    (["optim.lr=1", "optim=llamagen", QUICK], {("generator", "optim.lr"): 1}),
    ([QUICK, "optim=adamw"], {("generator", "optim.lr"): 1e-4}),
    ([QUICK, "stages.generator.optim.lr=2"], {("generator", "optim.lr"): 2}),
    ([QUICK, "stages.generator.optim.lr=2"], {("tokenizer", "optim.lr"): 3e-3}),
    (
        [QUICK, "stages.generator.optim.lr=2", "optim.lr=1"],
        {("generator", "optim.lr"): 2, ("tokenizer", "optim.lr"): 1},
    ),
    (
        [QUICK, "optim=llamagen", "stages.generator.optim.lr=2"],
        {("generator", "optim.lr"): 2, ("tokenizer", "optim.lr"): 1e-4},
    ),
    (
        [QUICK, "++stages.generator.optim.lr=2", "++optim.lr=1"],
        {("generator", "optim.lr"): 2, ("drafter", "optim.lr"): 1},
    ),
    (
        [QUICK, "+stages.generator.optim.warmup=0.5", "optim.warmup=7"],
        {("generator", "optim.warmup"): 0.5, ("tokenizer", "optim.warmup"): 7},
    ),
    ([QUICK, "~stages.generator.optim.lr"], {("generator", "optim.lr"): 1e-4}),
    ([QUICK, "~optim.lr"], {("generator", "optim.lr"): None, ("tokenizer", "optim.lr"): None}),
    ([QUICK, "+optim.optimizer.weird=3"], {("generator", "optim.optimizer.weird"): 3}),
    ([QUICK, "optim.optimizer._target_=a.B"], {("generator", "optim.optimizer._target_"): "a.B"}),
    (
        [QUICK, "optim.scheduler={_target_: a.S, n: 2}"],
        {("generator", "optim.scheduler"): {"_target_": "a.S", "n": 2}},
    ),
    ([QUICK, "fit.steps=9"], {("tokenizer", "fit.steps"): 9, ("generator", "fit.steps"): 9}),
    ([QUICK, "++fit.ema=0"], {("tokenizer", "fit.ema"): 0}),
    ([QUICK, "optim.betas=[0.5,0.9]"], {("generator", "optim.betas"): [0.5, 0.9]}),
    ([QUICK, "seed=3"], {("generator", "seed"): 3}),
    ([QUICK, "seed=3", "+stages.generator.seed=4"], {("generator", "seed"): 4}),
    ([QUICK, "objective.weights.prior=0.5"], {("tokenizer", "objective.weights.prior"): 0.5}),
    ([QUICK, "objective=tiny"], {("tokenizer", "objective.weights.perceptual"): 0.5}),
    # What the chosen preset does not speak of stays as the experiment has it.
    ([QUICK, "objective=tiny"], {("tokenizer", "objective.weights.prior"): 0.05}),
    (
        ["experiment=tokenizer/tiny_vq", "optim=llamagen"],
        {("tokenizer", "optim.lr"): 1e-4, ("tokenizer", "optim.warmup"): 0},
    ),
    (["experiment=tokenizer/tiny_vq", "~optim.warmup"], {("tokenizer", "optim.warmup"): None}),
    (
        ["+optim@stages.generator.optim=rar", "optim.lr=1"],
        {("generator", "optim.lr"): 4e-4, ("tokenizer", "optim.lr"): 1},
    ),
    # Two ways to say how long, and how large a batch: what is typed is meant.
    (["fit.epochs=3"], {("generator", "fit.epochs"): 3}),
    (["+stages.generator.fit.epochs=3", "fit.steps=9"], {("generator", "fit.epochs"): 3}),
    (
        ["experiment=imagenet256/llamagen_b", "fit.steps=9", "fit.batch_size=4"],
        {("generator", "fit.epochs"): None, ("generator", "fit.global_batch"): None},
    ),
    (
        ["experiment=imagenet256/llamagen_b", "optim=adamw"],
        {("generator", "optim.schedule"): "cosine", ("generator", "optim.warmup"): 100},
    ),
    ([QUICK, "optim.final=0.5"], {("generator", "optim.min_lr_ratio"): 0.5}),
    ([QUICK, "+optim.plateau=5"], {("generator", "optim.hold"): 5}),
    ([QUICK, "+stages.generator.optim.stair=0.5"], {("generator", "optim.gamma"): 0.5}),
]


@pytest.mark.filterwarnings("ignore:.* is now ")
@pytest.mark.parametrize(("words", "expected"), CASES, ids=[" ".join(w) or "-" for w, _ in CASES])
def test_what_is_typed_wins(composed, words, expected):
    words = [renamed_word(word) for word in words]
    if expected is None:
        from hydra.errors import ConfigCompositionException

        with pytest.raises(ConfigCompositionException):
            composed(*words)
        return
    found = composed(*words)
    for (stage, key), value in expected.items():
        assert OmegaConf.select(found[stage], key) == value, (stage, key)


def test_a_stage_may_not_set_everything(composed):
    with pytest.raises(UserError, match=r"may set fit, optim.*not data"):
        composed("+stages.generator.data.flip=true")


def test_old_words_are_told():
    with pytest.warns(FutureWarning, match="is now optim.schedule=multistep"):
        assert renamed_word("optim.schedule=stairs") == "optim.schedule=multistep"
    assert renamed_word("optim.lr=1") == "optim.lr=1"
    assert renamed_word("text=what is final, optim.final=?") == "text=what is final, optim.final=?"
