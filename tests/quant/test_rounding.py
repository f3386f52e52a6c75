"""Methods of rounding: literal references, the official codes' own figures, and the bench."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mpsearch.formats import Format, Option
from mpsearch.quant import encode
from mpsearch.quant.adaround import adaround
from mpsearch.quant.bench import Bench
from mpsearch.quant.decoupleq import Shared, least_squares
from mpsearch.quant.gptq import gptq
from mpsearch.quant.lattice import Lattice, lattice_of
from mpsearch.quant.model import quantize
from mpsearch.quant.quantease import quantease
from mpsearch.quant.recipe import Recipe, Rounding
from mpsearch.sensitivity.relative_error import watching
from tests.quant.networks import mixed, tied
from tests.quant.weights import normal
from tests.references import feedback

METHODS: list[Rounding] = ["gptq", "decoupleq", "quantease", "adaround", "adaquant"]


def _layer(rows: int = 6, width: int = 20, bits: int = 3) -> tuple[Tensor, Lattice, Tensor, Tensor]:
    """A weight, its lattice, and the inputs and their Hessian, correlated as real ones are."""
    weight, mix = normal(rows, width).double(), normal(width, width, seed=1).double()
    inputs = normal(50, width, seed=2).double() @ mix + 1
    lattice = lattice_of(encode(weight, Format.parse(f"int{bits}g8a"))).map(Tensor.double)
    return weight, lattice, inputs, 2 / 50 * inputs.T @ inputs


def _error(values: Tensor, weight: Tensor, hessian: Tensor) -> float:
    return float(torch.einsum("rp,pq,rq->", values - weight, hessian, values - weight))


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("width", [20, 150])
def test_gptq_is_what_its_paper_defines(ordered: bool, width: int) -> None:
    weight, lattice, _, hessian = _layer(width=width)
    order = hessian.diagonal().argsort(descending=True) if ordered else torch.arange(width)
    scale, zero = (x.expand(weight.shape)[:, order].numpy() for x in (lattice.scale, lattice.zero))
    h = hessian[order][:, order].numpy()
    wanted = feedback.gptq(weight[:, order].numpy(), scale, zero, h, 0.1, 0, 7)
    codes = gptq(
        weight[None], lattice.map(lambda x: x[None]), hessian[None], damp=0.1, ordered=ordered
    )
    found = lattice.values(codes[0])[:, order].numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-9)


@pytest.mark.parametrize("method", [gptq, quantease, adaround])
@pytest.mark.parametrize("bits", [2, 4])
def test_the_output_errs_less_than_by_rounding_to_nearest(
    method: Callable[..., Tensor], bits: int
) -> None:
    weight, lattice, inputs, hessian = _layer(bits=bits)
    codes = method(weight[None], lattice.map(lambda x: x[None]), hessian[None])[0]
    assert torch.equal(codes, codes.round().clamp(0, 2**bits - 1))
    found, plain = lattice.values(codes), lattice.values(lattice.codes(weight))
    assert _error(found, weight, hessian) < 0.8 * _error(plain, weight, hessian)
    real = feedback.error(weight.numpy(), found.numpy(), inputs.numpy())
    assert _error(found, weight, hessian) == pytest.approx(real * 2 / 50)


@pytest.mark.parametrize("method", [gptq, quantease])
def test_inputs_that_are_apart_leave_nothing_to_make_up_for(method: Callable[..., Tensor]) -> None:
    weight, lattice, _, _ = _layer()
    hessian = torch.diag(torch.arange(20.0).double())  # the first is never read
    codes = method(weight[None], lattice.map(lambda x: x[None]), hessian[None])[0]
    assert torch.equal(codes, lattice.codes(weight))


@pytest.mark.parametrize("method", [gptq, quantease, adaround])
def test_what_fits_stays(method: Callable[..., Tensor]) -> None:
    weight, lattice, _, hessian = _layer()
    codes = lattice.codes(weight)
    found = method(lattice.values(codes)[None], lattice.map(lambda x: x[None]), hessian[None])
    assert torch.equal(found[0], codes)


def test_says_that_a_hessian_is_not_positive_definite() -> None:
    weight, lattice, _, hessian = _layer()
    hessian[0, 1] = hessian[1, 0] = 1e6
    with pytest.raises(ValueError, match=r"not positive definite with 0\.01 of its mean added"):
        gptq(weight[None], lattice.map(lambda x: x[None]), hessian[None])


def _golden(shared: Path, name: str) -> dict[str, Tensor]:
    found = np.load(shared / f"oracles/golden/{name}.npz")
    return {key: torch.tensor(value).double() for key, value in found.items()}


@pytest.mark.shared
def test_gptq_gives_the_integers_of_decoupleq(shared: Path) -> None:
    golden = _golden(shared, "decoupleq_g32")
    scale, start = (golden[key].repeat_interleave(32, 1) for key in ("scale_ls", "zero_ls"))
    lattice = Lattice(scale[None], -(start / scale)[None], -2, 1)
    codes = gptq(golden["W"][None], lattice, golden["H"][None], ordered=False)
    assert torch.equal(codes[0], golden["w_int"])


@pytest.mark.shared
def test_gptq_gives_the_weights_of_baq(shared: Path) -> None:
    golden = _golden(shared, "baq_R2")
    weight, inputs = golden["W"], golden["X"].reshape(-1, 96)
    low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    scale = ((high - low) / 3).expand(weight.shape)
    lattice = Lattice(scale[None], (-low / scale).round()[None], 0, 3)
    hessian = 2 / len(golden["X"]) * inputs.T @ inputs
    found = lattice.values(gptq(weight[None], lattice, hessian[None], ordered=False))[0]
    torch.testing.assert_close(found, golden["W_uniform"], rtol=0, atol=1e-6)


@pytest.mark.shared
def test_gptq_errs_as_in_slim_llm(shared: Path) -> None:
    golden = _golden(shared, "slimllm_sba_b2")
    scale, zero = (golden[key].repeat_interleave(32, 1) for key in ("scales", "zeros"))
    bits = golden["precision"].repeat_interleave(32).expand(scale.shape)
    one = bits == 1  # there the values are zero -+ scale
    zero = torch.where(one, (scale - zero) / (2 * scale), zero)
    scale, high = torch.where(one, 2 * scale, scale), 2**bits - 1
    lattice = Lattice(scale[None], zero[None], torch.zeros_like(high)[None], high[None])
    weight, hessian = golden["W"], golden["H"]
    found = lattice.values(gptq(weight[None], lattice, hessian[None], ordered=False))[0]
    ours, theirs = _error(found, weight, hessian), _error(golden["Wq"], weight, hessian)
    assert ours == pytest.approx(theirs, rel=0.005)
    same = (found - golden["Wq"]).abs() < 1e-4
    assert same.double().mean() > 0.99  # ties fall otherwise in their float32


@pytest.mark.shared
def test_quantease_gives_the_weights_of_its_code(shared: Path) -> None:
    golden = _golden(shared, "quantease_3bit")
    weight = golden["W"]
    lattice = Lattice(golden["scale"][None], golden["zero"][None], 0, 7)
    codes = quantease(
        weight[None], lattice.map(lambda x: x.expand(1, *weight.shape)), golden["XtX"][None]
    )
    torch.testing.assert_close(lattice.values(codes)[0], golden["Wq"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("form", ["int3", "int2t", "int3g5a"])
def test_every_layer_s_output_errs_less_in_a_network(method: Rounding, form: str) -> None:
    model, batches, names = mixed()
    names.remove("odd")  # it activates inside
    wrote: dict[str, Tensor] = {}

    def see(name: str, _: Tensor | None, output: Tensor) -> None:
        wrote[name] = output

    errors: dict[str, list[float]] = {name: [] for name in names}
    with torch.no_grad(), watching(model, names, see):
        model(torch.cat(batches))
    exact = dict(wrote)
    for rounding in ("nearest", method):
        bench = Bench(model, batches, names, Recipe(rounding=rounding, corrections=(), steps=100))
        for name in names:
            options = {name: Option.parse(f"{form}/fp32")}
            with torch.no_grad(), bench.at(options) as changed, watching(changed, [name], see):
                changed(bench.batch)
            errors[name].append(float((wrote[name] - exact[name]).square().sum()))
    assert all(after <= before * 1.001 for before, after in errors.values())
    assert sum(after / before for before, after in errors.values()) < 0.97 * len(names)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("form", ["int2t", "int3"])
def test_outputs_that_positions_write_together_err_less_too(method: Rounding, form: str) -> None:
    """A transposed convolution whose kernel is wider than its stride."""
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
    model, x = nn.Sequential(layer), torch.rand(3, 4, 4, 5)
    exact, found = model(x).detach(), []
    for rounding in ("nearest", method):
        bench = Bench(model, [x], ["0"], Recipe(rounding=rounding, corrections=(), steps=100))
        output = bench.outputs({"0": Option.parse(f"{form}/fp32")})
        found.append(float((output - exact).square().sum()))
    assert found[1] < 0.99 * found[0]


@pytest.mark.parametrize("make", [mixed, tied])
def test_the_network_has_the_weights_that_were_measured(
    make: Callable[[], tuple[nn.Module, list[Tensor], list[str]]],
) -> None:
    model, batches, names = make()
    recipe = Recipe(rounding="gptq", corrections=("bias", "batchnorm"))
    options = {name: Option.parse("w3a8") for name in names}
    bench = Bench(model, batches, names, recipe)
    with torch.no_grad(), bench.at(options) as changed:
        wanted = changed(bench.batch)
    found = quantize(model, options, batches, recipe)
    torch.testing.assert_close(found(bench.batch), wanted, rtol=1e-5, atol=1e-5)
    codes = found.get_submodule(names[-1]).stored().codes  # type: ignore[operator]
    assert torch.equal(codes, bench.codes(names[-1], Format.parse("int3")).codes)


def test_an_option_may_name_the_method() -> None:
    model, batches, names = tied()
    options: dict[str, Any] = dict.fromkeys(names, "w3a32")
    by_recipe = quantize(model, options, batches, Recipe(rounding="gptq"))
    named = quantize(model, {n: f"{o}+gptq" for n, o in options.items()}, batches, Recipe())
    nearest = {n: f"{o}+nearest" for n, o in options.items()}
    plain = quantize(model, nearest, batches, Recipe(rounding="gptq"))
    for name in names:
        module = by_recipe.get_submodule(name)
        assert torch.equal(named.get_submodule(name).codes, module.codes)  # type: ignore[arg-type]
    assert not torch.equal(
        plain.get_submodule("head").codes,  # type: ignore[arg-type]
        by_recipe.get_submodule("head").codes,  # type: ignore[arg-type]
    )
    assert "+gptq" in str(named.get_submodule("head"))


def test_one_weight_takes_one_method() -> None:
    model, batches, names = tied()
    bench = Bench(model, batches, names, Recipe())
    both = {"head": Option.parse("w3a32+gptq"), "embed": Option.parse("w3a32")}
    with pytest.raises(ValueError, match="share one weight and were given 'int3/fp32\\+gptq' and"):
        bench.outputs(both)


def test_a_layer_s_integers_do_not_depend_on_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpsearch.quant.input_hessian._ELEMENTS", 1)  # each made when asked for
    model, batches, names = mixed()
    recipe, option = Recipe(rounding="gptq"), Option.parse("w4a32")
    alone, bench = (Bench(model, batches, names, recipe) for _ in range(2))
    bench.outputs(dict.fromkeys(names, option))
    for name in names:
        wanted = alone.codes(name, option.weight)
        assert torch.equal(bench.codes(name, option.weight).codes, wanted.codes)


def test_other_formats_are_rounded_to_nearest() -> None:
    model, batches, names = mixed()
    bench = Bench(model, batches, names, Recipe(rounding="gptq"))
    plain = Bench(model, batches, names, Recipe())
    for name in ("nf4", "ternary", "fp16", "int1", "int4o1", "int4r2"):
        form = Format.parse(name)
        found, wanted = bench.codes("stem", form), plain.codes("stem", form)
        assert torch.equal(found.codes, wanted.codes)


def test_says_that_a_layer_is_never_called() -> None:
    class Unused(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name)
            out: Tensor = self[0](input)
            return out

    model = Unused(nn.Linear(2, 2), nn.Linear(2, 2))
    bench = Bench(model, [torch.ones(3, 2)], ["0", "1"], Recipe(rounding="gptq"))
    with pytest.raises(ValueError, match="layer '1' is not called on the calibration batches"):
        bench.outputs({"1": Option.parse("w2a32")})


@pytest.mark.parametrize("method", get_args(Rounding))
@pytest.mark.parametrize(
    ("module", "x"),
    [
        (nn.Linear(6, 5), torch.zeros(3, 6)),
        (nn.Conv2d(2, 4, 2, groups=2), torch.zeros(3, 2, 5, 5)),
        (nn.Embedding(4, 6), torch.zeros(3, 4).long()),
    ],
)
def test_what_reads_only_zeros_is_rounded_as_near_as_can_be(
    module: nn.Module, x: Tensor, method: str
) -> None:
    weight = normal(*module.get_parameter("weight").shape)
    module.get_parameter("weight").data = weight
    bench = Bench(nn.Sequential(module), [x], ["0"], Recipe(steps=5))
    found, nearest = (
        float((bench.codes("0", Format.parse("int3"), how).dequantize() - weight).square().sum())
        for how in (method, "nearest")
    )
    assert found <= nearest * (1 + 1e-6)
    if method not in {"adaquant", "decoupleq"}:  # which fit scales too
        assert found == pytest.approx(nearest, rel=1e-6)


def test_scales_are_those_that_integers_err_least_with() -> None:
    weight, lattice, _, hessian = _layer(rows=4, width=12)
    codes = lattice.codes(weight) - lattice.zero
    place = torch.arange(8).reshape(4, 2).repeat_interleave(6, 1)
    start = torch.full((8,), 0.1, dtype=torch.float64)
    found = start
    for _ in range(40):
        shared = Shared(found, place[None], 2)
        found = least_squares(weight[None], codes[None], hessian[None], shared)
    for row in range(4):
        parts = torch.stack([torch.where(place[row] == 2 * row + k, codes[row], 0) for k in (0, 1)])
        wanted = torch.linalg.solve(parts @ hessian @ parts.T, parts @ hessian @ weight[row])
        torch.testing.assert_close(found[2 * row : 2 * row + 2], wanted, rtol=1e-6, atol=1e-9)
