import pytest
import torch
from PIL import Image

from argen.build import build
from argen.decoding.default import default_decoder
from argen.images.grid import to_pil
from argen.pipeline import Pipeline
from argen.pipeline.preview import Preview, fill, save_animation
from argen.runtime.presets import for_codes, preset
from argen.spec import CodeSpec, Segment


def pipeline(tokenizer, generator):
    torch.manual_seed(0)
    parts = build(preset("tokenizer", tokenizer)).eval()
    config = for_codes(preset("generator", generator), parts.spec, num_classes=3)
    network = build(config).eval()
    network.bind(parts)
    return Pipeline(tokenizer=parts, generator=network)


@pytest.mark.parametrize(
    ("tokenizer", "generator"),
    [
        ("tiny_vq", "tiny_gpt"),
        ("tiny_vq", "tiny_maskgit"),
        ("tiny_kl", "tiny_mar"),
        ("tiny_multiscale", "tiny_var"),
        ("tiny_one_d_piece", "tiny_gpt"),
    ],
)
def test_last_frame_is_the_image(tokenizer, generator):
    pipe = pipeline(tokenizer, generator)
    preview = Preview(pipe.tokenizer)
    drawn = pipe([0, 2], n=1, seed=5, observer=preview)
    frames = preview.frames()
    assert 1 < len(frames) <= 24
    assert all(f.shape == drawn.images.shape and f.abs().max() <= 1 for f in frames)
    # The confidence decoder is observed before it keeps the surest of its last candidates: all.
    torch.testing.assert_close(frames[-1], drawn.images, atol=1e-4, rtol=0)
    assert not torch.equal(frames[0], frames[-1])
    assert len(preview.frames(max_frames=3)) <= 3
    assert torch.equal(preview.frames(max_frames=3)[-1], frames[-1])


def test_decoder_of_the_first_case_notes_every_pass():
    pipe = pipeline("tiny_vq", "tiny_gpt")
    preview = Preview(pipe.tokenizer)
    drawn = pipe([0], n=1, observer=preview, decoder=default_decoder(pipe.generator))
    assert len(preview.passes) == drawn.passes == pipe.tokenizer.spec.length


def test_given_codes_are_in_the_first_frame():
    pipe = pipeline("tiny_vq", "tiny_gpt")
    L = pipe.tokenizer.spec.length
    codes = torch.arange(L)[None] % 7
    preview = Preview(pipe.tokenizer, known=(torch.arange(L - 1), codes[:, :-1]))
    preview(torch.tensor([L - 1]), codes[:, -1:], torch.zeros(1))
    expected = pipe.decode(codes)
    torch.testing.assert_close(preview.frames()[-1], expected)


def test_unknown_codes_take_the_nearest_known():
    spec = CodeSpec(kind="discrete", segments=(Segment(shape=(2, 3), vocab_sizes=(9,)),))
    codes = torch.tensor([[1, 0, 2, 3, 0, 0], [0, 0, 0, 0, 4, 0]])
    known = torch.tensor([[1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 0]]).bool()
    filled = fill(codes, known, spec)
    assert filled[:, [0, 2, 3]].tolist()[0] == [1, 2, 3]
    assert filled[0, 5] == 2
    assert filled[1].unique().tolist() == [4]


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_animation_plays_every_frame(tmp_path, kind):
    shades = torch.linspace(-1, 1, 5).view(5, 1, 1, 1).expand(5, 3, 8, 8)
    save_animation(to_pil(shades), tmp_path / f"a.{kind}")
    with Image.open(tmp_path / f"a.{kind}") as movie:
        assert movie.n_frames == 5
        movie.seek(4)
        assert movie.convert("RGB").getpixel((3, 3)) > (240, 240, 240)
    assert [p.name for p in tmp_path.iterdir()] == [f"a.{kind}"]
