"""What keeps more bits than the rest: by magnitude, or by what the output would lose."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from mpsearch.formats import Format
from mpsearch.quant import encode
from mpsearch.quant.bench import Bench
from mpsearch.quant.keeping import kept
from mpsearch.quant.model import packed, quantize
from mpsearch.quant.modules import Stored
from mpsearch.quant.recipe import Recipe

HESSIAN = Recipe(salience="hessian", corrections=())


def _inputs(*shape: int) -> Tensor:
    """Channels of very different sizes."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(2))
    size = torch.logspace(-2, 2, shape[1])
    return x * size.view(1, -1, *[1] * (len(shape) - 2))


LAYERS = [
    (nn.Linear(8, 6), (64, 8)),
    (nn.Conv2d(8, 4, 3, groups=2), (16, 8, 5, 5)),
    (nn.ConvTranspose2d(8, 6, 2, stride=2), (16, 8, 3, 3)),
]


def _filled(module: nn.Module) -> nn.Module:
    """Weights of one size, so that only inputs tell them apart."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.rand(weight.shape, generator=generator) + 1)
            weight.mul_(torch.randint(2, weight.shape, generator=generator) * 2 - 1)
    return module


def _error(module: nn.Module, x: Tensor, form: str, recipe: Recipe) -> float:
    """Squared error of what the layer returns."""
    found = quantize(nn.Sequential(module), {"0": f"{form}/fp32"}, [x], recipe)
    with torch.no_grad():
        return float((found(x) - module(x)).square().sum())


@pytest.mark.parametrize("form", ["pb20", "sc25", "int2o10", "int2g4o10"])
@pytest.mark.parametrize(("module", "shape"), LAYERS)
def test_outputs_err_less_where_what_they_need_most_is_kept(
    module: nn.Module, shape: tuple[int, ...], form: str
) -> None:
    _filled(module)
    x = _inputs(*shape)
    found = _error(module, x, form, HESSIAN)
    assert found < 0.7 * _error(module, x, form, replace(HESSIAN, salience="magnitude"))


def test_what_is_kept_is_what_the_formula_says() -> None:
    module, x = nn.Linear(6, 4), _inputs(50, 6)
    hessian = 2 / len(x) * (x.double().T @ x.double())
    damped = hessian + HESSIAN.damp * hessian.diagonal().mean() * torch.eye(6).double()
    stiff = 1 / torch.linalg.inv(damped).diagonal()
    weight = module.weight.detach()
    for name, lost in (
        ("pb25", weight),
        ("int3o25", weight - encode(weight, Format.parse("int3")).dequantize()),
    ):
        codes = Bench(nn.Sequential(module), [x], ["0"], HESSIAN).codes("0", Format.parse(name))
        found = kept(codes)
        assert found is not None
        count = int(found.sum())
        wanted = (lost.double().square() * stiff).flatten().topk(count).indices
        assert sorted(found.flatten().nonzero().flatten().tolist()) == sorted(wanted.tolist())


def test_channels_that_read_the_largest_inputs_are_kept() -> None:
    x = _inputs(16, 8, 5, 5)
    bench = Bench(nn.Sequential(nn.Conv2d(8, 4, 3)), [x], ["0"], HESSIAN)
    codes = bench.codes("0", Format.parse("sc25"))
    assert codes.more["mask"].tolist() == [0, 0, 0, 0, 0, 0, 1, 1]


def test_rows_of_a_table_count_as_often_as_they_are_read() -> None:
    torch.manual_seed(0)
    table, ids = _filled(nn.Embedding(10, 4)), torch.tensor([[3] * 9 + [7]])
    bench = Bench(nn.Sequential(table), [ids], ["0"], HESSIAN)
    found = kept(bench.codes("0", Format.parse("pb10")))
    assert found is not None
    assert found.nonzero()[:, 0].tolist() == [3] * 4
    magnitude = Bench(nn.Sequential(table), [ids], ["0"], Recipe(corrections=()))
    by_channel, plain = (b.codes("0", Format.parse("sc25")) for b in (bench, magnitude))
    assert torch.equal(by_channel.more["mask"], plain.more["mask"])  # all are read alike


def test_formats_that_keep_nothing_need_no_inputs() -> None:
    class Unused(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name)
            out: Tensor = self[0](input)
            return out

    bench = Bench(Unused(nn.Linear(4, 4), nn.Linear(4, 4)), [torch.ones(3, 4)], ["1"], HESSIAN)
    bench.codes("1", Format.parse("int4"))
    with pytest.raises(ValueError, match="layer '1' is not called on the calibration batches"):
        bench.codes("1", Format.parse("int4o10"))


def _stored(model: nn.Module) -> Stored:
    found = model.get_submodule("0")
    assert isinstance(found, Stored)
    return found


@pytest.mark.parametrize("form", ["pb20", "sc25", "int3o10", "int3g4o10"])
def test_training_keeps_the_same_weights(form: str) -> None:
    module, x = _filled(nn.Linear(8, 6)), _inputs(64, 8)
    given = {"0": f"{form}/fp32"}
    student = quantize(nn.Sequential(module), given, [x], HESSIAN, trainable=True)
    layer = _stored(student)
    before = kept(layer.stored())
    assert layer.master is not None
    plain = quantize(nn.Sequential(module), given, [x], HESSIAN)
    torch.testing.assert_close(student(x), plain(x))
    with torch.no_grad():
        layer.master.mul_(torch.rand(layer.master.shape) + 0.5)
    after = kept(_stored(packed(student)).stored())
    assert before is not None
    assert after is not None
    assert torch.equal(before, after)
    assert kept(encode(module.get_parameter("weight").detach(), Format.parse("int3"))) is None


def test_the_recipe_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="salience has 'gradient'; known are 'magnitude', 'hess"):
        Recipe.read({"salience": "gradient"})
