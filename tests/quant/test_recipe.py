import subprocess
import sys
from typing import Any

import pytest

from mpsearch.quant.recipe import Recipe


def test_a_recipe_reads_back_what_it_wrote() -> None:
    recipe = Recipe("minmax", "nearest", (), "percentile", 99.0, 32)
    assert Recipe.read(recipe.document()) == recipe


def test_what_a_document_leaves_out_is_the_default() -> None:
    assert Recipe.read({"corrections": []}) == Recipe(corrections=())
    assert Recipe.read(None) == Recipe.read({}) == Recipe()


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"range": "mse"}, "no setting is named 'range'; there are .*ranges"),
        ({"ranges": "max"}, "ranges has 'max'; known are 'minmax', 'mse'"),
        ({"ranges": ["mse"]}, "ranges has"),
        ({"rounding": "gptq"}, "rounding has 'gptq'; known are 'nearest'"),
        ({"activation_ranges": "max"}, "activation_ranges has 'max'"),
        ({"corrections": "moments"}, "corrections are a list, got 'moments'"),
        ({"corrections": ["bias"]}, "corrections has 'bias'; known are 'moments'"),
        ({"corrections": ["moments", "moments"]}, "named twice"),
        ({"percentile": 0}, "percentile is above 50"),
        ({"percentile": float("nan")}, "percentile is above 50"),
        ({"percentile": "99"}, "percentile is above 50"),
        ({"samples": 0}, "samples is a whole number from 1 up, got 0"),
        ({"samples": True}, "samples is a whole number"),
        ({"samples": float("nan")}, "samples is a whole number"),
        ({"samples": float("inf")}, "samples is a whole number"),
        ([], "a recipe is an object such as"),
    ],
)
def test_says_what_no_recipe_has(document: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe.read(document)


def test_needs_no_torch() -> None:
    code = "import sys; import mpsearch.quant.recipe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
