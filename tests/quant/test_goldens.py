"""What official codes computed, beside ours: formats and scales.

``pbllm_hessian``: which weights are salient, 4,095 of 4,096 in each block of 128 columns (their
threshold keeps 409, our share is rounded up to 410). Their weights are not ours: they compensate
errors as GPTQ does, and their means and scales count a zero for each salient weight.
``decoupleq_g32``: all 64 scales. ``mcmoe_rtn``: all codes at one bit, 4,095 of 4,096 at two, 4,094
at three, where our scales, stored in 16 bits, move a tie.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mpsearch.formats import Format
from mpsearch.quant import encode
from mpsearch.quant.decoupleq import Shared, least_squares
from mpsearch.quant.gptq import inverse_factor

pytestmark = pytest.mark.shared


def _golden(shared: Path, name: str) -> dict[str, Tensor]:
    found = np.load(shared / f"oracles/golden/{name}.npz")
    return {key: torch.tensor(value) for key, value in found.items()}


def test_pb_llm_keeps_the_same_weights(shared: Path) -> None:
    golden = _golden(shared, "pbllm_hessian")
    weight, inputs = golden["W"].double(), golden["X"].double()
    hessian = 2 / len(inputs) * torch.einsum("btp,btq->pq", inputs, inputs)
    left = inverse_factor(hessian[None], 0.01)[0].diagonal().square()
    salience = weight.square() / left
    for block, kept in zip(
        salience.split(128, 1), (~golden["low_mask"]).split(128, 1), strict=True
    ):
        codes = encode(torch.ones_like(block), Format.parse("pb10"), salience=block)
        ours = codes.more["mask"].bool()
        assert int((ours == kept).sum()) == 4095
        assert int(ours.sum()) == int(kept.sum()) + 1


@pytest.mark.parametrize(
    ("codes", "zero", "scale"),
    [("init", "zero_ls", "scale_ls"), ("w_int", "zero_final", "scale_final")],
)
def test_decoupleq_s_scales_are_the_least_squares(
    shared: Path, codes: str, zero: str, scale: str
) -> None:
    golden = {key: value.double() for key, value in _golden(shared, "decoupleq_g32").items()}
    size, start = (golden[key].repeat_interleave(32, 1) for key in ("scale_init", "zero_init"))
    weight = golden["W"]
    golden["init"] = ((weight - start) / size).round().clamp(-2, 1)
    left = weight - golden[zero].repeat_interleave(32, 1)
    place = torch.arange(32).reshape(16, 2).repeat_interleave(32, 1)
    found = golden["scale_init"].flatten()
    for _ in range(20):
        given = Shared(found, place[None], 2)
        found = least_squares(left[None], golden[codes][None], golden["H"][None], given)
    torch.testing.assert_close(found.reshape(16, 2), golden[scale], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("bits", "form", "agree"),
    [(1, "binaryg128", 4096), (2, "int2g128a", 4095), (3, "int3g128a", 4094)],
)
def test_mc_moe_rounds_to_the_same_codes(shared: Path, bits: int, form: str, agree: int) -> None:
    golden = _golden(shared, "mcmoe_rtn")
    codes = encode(golden["W"], Format.parse(form), "minmax")
    step = codes.steps.repeat_interleave(128).reshape(golden["W"].shape)
    away = (codes.dequantize() - golden[f"q{bits}"]).abs() / step
    assert int((away < 0.01).sum()) == agree
    assert float(away.max()) < 1.01
