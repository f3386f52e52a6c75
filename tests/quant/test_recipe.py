import json
import subprocess
import sys
from typing import Any

import pytest

from mpsearch.quant.recipe import Recipe


def test_a_recipe_reads_back_what_it_wrote() -> None:
    recipe = Recipe(
        "minmax", "gptq", ("bias", "batchnorm"), "percentile", 99.0, 32, 0.1, False, 9, ("fold",)
    )
    assert Recipe.read(recipe.document()) == recipe
    assert json.loads(json.dumps(recipe.document())) == recipe.document()


def test_what_a_document_leaves_out_is_the_default() -> None:
    assert Recipe.read({"corrections": []}) == Recipe(corrections=())
    assert Recipe.read(None) == Recipe.read({}) == Recipe()


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"range": "mse"}, "no setting is named 'range'; there are .*ranges"),
        ({"ranges": "max"}, "ranges has 'max'; known are 'minmax', 'mse'"),
        ({"ranges": ["mse"]}, "ranges has"),
        ({"rounding": "up"}, "rounding has 'up'; known are 'nearest', 'gptq', 'adaround'"),
        ({"activation_ranges": "max"}, "activation_ranges has 'max'"),
        ({"corrections": "moments"}, "corrections are a list, got 'moments'"),
        ({"corrections": ["mean"]}, "corrections has 'mean'; known are 'moments', 'bias'"),
        ({"corrections": ["moments", "batchnorm"]}, "'moments' and 'batchnorm' both set what"),
        ({"corrections": ["moments", "moments"]}, "named twice"),
        ({"percentile": 0}, "percentile is above 50"),
        ({"percentile": float("nan")}, "percentile is above 50"),
        ({"percentile": "99"}, "percentile is above 50"),
        ({"samples": 0}, "samples is a whole number from 1 up, got 0"),
        ({"samples": True}, "samples is a whole number"),
        ({"samples": float("nan")}, "samples is a whole number"),
        ({"samples": float("inf")}, "samples is a whole number"),
        ({"steps": 1.5}, "steps is a whole number from 1 up, got 1.5"),
        ({"preparations": "fold"}, "preparations are a list, got 'fold'"),
        (
            {"preparations": ["melt"]},
            "preparations has 'melt'; known are 'fold', 'smooth', 'rotate'",
        ),
        ({"alpha": 2}, "alpha is a number from 0 to 1, got 2"),
        ({"damp": 0}, "damp is a number above 0, got 0"),
        ({"damp": float("inf")}, "damp is a number above 0, got inf"),
        ({"act_order": 1}, "act_order is true or false, got 1"),
        ([], "a recipe is an object such as"),
    ],
)
def test_says_what_no_recipe_has(document: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe.read(document)


def test_whole_numbers_may_be_written_as_floats() -> None:
    found = Recipe.read({"samples": 256.0, "steps": 3.0}).document()
    assert repr((found["samples"], found["steps"])) == "(256, 3)"


def test_needs_no_torch() -> None:
    code = "import sys; import mpsearch.quant.recipe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
