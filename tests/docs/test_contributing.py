"""The examples of CONTRIBUTING.md work as they stand there."""

import copy
import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from argen.build import META, build
from argen.decoding.context import SamplingContext
from argen.decoding.filters import Filters
from argen.decoding.guidance import Guidance
from argen.decoding.sequential import Sequential
from argen.errors import CheckpointError, IncompatibleError
from argen.layers.noise import SeededNoise
from argen.runtime.presets import for_codes
from argen.spec import CodeSpec, Segment
from argen.zoo.meta import Meta

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()


def examples(language):
    """Return {path: text} of the blocks that name a file in their first line."""
    blocks = re.findall(rf"```{language}\n# (\S+)\n(.*?)```", TEXT, re.S)
    assert blocks
    return dict(blocks)


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory):
    """Import the example files under the names they would have in the package."""
    folder, added = tmp_path_factory.mktemp("examples"), []
    for path, text in examples("python").items():
        name = path.removesuffix(".py").replace("/", ".")
        if (ROOT / path).exists():
            pytest.fail(f"{path} exists by now; choose another example")
        file = folder / path.replace("/", "_")
        file.write_text(text)
        spec = importlib.util.spec_from_file_location(name, file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        added.append(name)
        spec.loader.exec_module(module)
    yield
    for name in added:
        del sys.modules[name]


def config(path):
    return OmegaConf.to_container(OmegaConf.create(yaml.safe_load(examples("yaml")[path])))


def made(path, **arguments):
    torch.manual_seed(0)
    resolved = OmegaConf.create(yaml.safe_load(examples("yaml")[path]))
    return build({**OmegaConf.to_container(resolved, resolve=True), **arguments})


def tokenizer():
    return made("configs/tokenizer/tiny_patches.yaml").eval()


def generator():
    plain = OmegaConf.create(yaml.safe_load(examples("yaml")["configs/generator/tiny_gru.yaml"]))
    fitted = for_codes(OmegaConf.to_container(plain, resolve=True), tokenizer().spec, num_classes=3)
    torch.manual_seed(0)
    return build(fitted).eval()


def test_tokenizer():
    model = tokenizer()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    codes = model.encode(images)
    model.spec.check(codes)
    assert model.decode(codes).shape == images.shape
    torch.testing.assert_close(model(images).images, model.decode(codes))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    errors = []
    for _ in range(60):
        error = (model(images).images - images).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.7 * errors[0]


def test_published_preset():
    path = "configs/tokenizer/somebody_vq16.yaml"
    meta = Meta.of(config(path)[META], where=path)
    assert meta.parameters == 144_136
    assert meta.weights[0].link
    with torch.device("meta"):
        assert made(path).spec.vocab_size == 16384


@torch.no_grad()
def test_generator():
    model = generator()
    codes = torch.randint(512, (2, 16), generator=torch.Generator().manual_seed(0))
    cond = model.conditioner(torch.tensor([0, 2]))
    state, parts = model.start(cond), []
    for i in range(16):
        parts.append(model.predict(state))
        model.commit(state, codes[:, i : i + 1])
    torch.testing.assert_close(torch.cat(parts, dim=1), model.score(codes, cond))
    changed = codes.clone()
    changed[:, 8:] = 0
    before, after = model.score(codes, cond), model.score(changed, cond)
    torch.testing.assert_close(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])
    assert model.loss(codes, cond).loss.isfinite()
    wrong = CodeSpec("discrete", (Segment((4, 4), vocab_sizes=(8, 8)),))
    with pytest.raises(IncompatibleError, match="one id"):
        build({**model.config, "spec": wrong.to_dict()})


def test_decoder():
    model, decoder = generator(), made("configs/decoder/annealed.yaml")
    cond = model.conditioner(torch.tensor([0, 1, 2]))
    options = {"guidance": Guidance(scale=2.0), "noise": SeededNoise([1, 2, 3])}
    result = decoder(model, cond, SamplingContext(filters=Filters(), **options))
    model.spec.check(result.codes)
    assert result.passes == 16
    even = copy.deepcopy(decoder)
    even.first = even.last = 1.0
    plain = Sequential()(model, cond, SamplingContext(filters=Filters(), **options))
    assert torch.equal(
        even(model, cond, SamplingContext(filters=Filters(), **options)).codes, plain.codes
    )
    assert not torch.equal(result.codes, plain.codes)


def test_importer():
    importer = sys.modules["argen.interop.patches"]
    model = tokenizer()
    weights = {
        "enc.weight": model.down.weight,
        "enc.bias": model.down.bias,
        "dec.weight": model.up.weight,
        "dec.bias": model.up.bias,
        "levels": torch.tensor([8, 8, 8]),
    }
    found = importer.import_tokenizer({"model": weights}, source="file", image_size=16).build()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(found.encode(images), model.encode(images))
    with pytest.raises(CheckpointError, match="enc"):
        importer.import_tokenizer({"other": torch.zeros(1)}, source="file")
    with pytest.raises(CheckpointError, match="unknown"):
        importer.import_tokenizer({**weights, "more": torch.zeros(1)}, source="file")
