import pytest
import torch
from torch import Tensor, nn

from mpsearch.formats import Option
from mpsearch.quant.bench import Bench
from mpsearch.quant.corrections import shift
from mpsearch.quant.recipe import Recipe
from tests.quant.networks import mixed, tied

LOW = Option.parse("w2a32")


class ConvNorm(nn.Module):
    def __init__(self, kind: int) -> None:
        super().__init__()
        convs, norms = (
            (nn.Conv1d, nn.Conv2d, nn.Conv3d),
            (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
        )
        self.conv, self.norm = convs[kind - 1](3, 5, 2), norms[kind - 1](5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x))
        return out


@pytest.mark.parametrize("kind", [1, 2, 3])
def test_a_norm_s_output_keeps_its_float_mean_and_variance(kind: int) -> None:
    torch.manual_seed(0)
    model = ConvNorm(kind).eval()
    model.norm.running_mean.normal_()  # type: ignore[union-attr]
    model.norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    x = torch.randn(16, 3, *[5] * kind)
    axes = [0, *range(2, 2 + kind)]
    with torch.no_grad(), Bench(model, [x], ["conv"], Recipe()).at({"conv": LOW}) as changed:
        wanted, got = model(x), changed(x)
    assert not torch.allclose(wanted, got, atol=1e-2)
    torch.testing.assert_close(got.mean(axes), wanted.mean(axes), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.var(axes), wanted.var(axes), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_layer_s_output_keeps_its_float_mean(bias: bool) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 4, bias=bias)), torch.rand(3, 9, 6)
    bench = Bench(model, [x], ["0"], Recipe())
    with torch.no_grad(), bench.at({"0": LOW}) as changed:
        wanted, got = model(x), changed(x)
    assert not torch.allclose(got, wanted, atol=1e-2)
    torch.testing.assert_close(got.mean((0, 1)), wanted.mean((0, 1)))
    assert bench.model.get_submodule("0").bias is None or bias


def test_what_a_subclass_does_after_the_operation_is_not_counted() -> None:
    model, batches, _ = mixed()
    bench = Bench(model, batches, ["odd"], Recipe())
    wanted = _before_activation(bench.model, bench.batch)
    with bench.at({"odd": LOW}) as changed:
        got = _before_activation(changed, bench.batch)
    assert not torch.allclose(got, wanted, atol=1e-2)
    torch.testing.assert_close(got.mean((0, 2, 3)), wanted.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def _before_activation(model: nn.Module, x: Tensor) -> Tensor:
    """What the convolution inside ``odd`` returns."""
    seen: list[Tensor] = []
    layer = model.get_submodule("odd")
    assert isinstance(layer, nn.Conv2d)
    layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(x)
    layer._forward_pre_hooks.popitem()
    return nn.Conv2d.forward(layer, nn.functional.pad(seen[0], (0, 1, 0, 1))).detach()


def test_what_comes_before_the_first_quantized_layer_is_not_touched() -> None:
    model, batches, names = mixed()
    bench = Bench(model, batches, names, Recipe())
    norm = bench.model.get_submodule("norm")
    before = {k: v.clone() for k, v in norm.state_dict().items()}
    with bench.at({"depthwise": LOW}) as changed:
        assert all(
            torch.equal(v, before[k]) for k, v in changed.get_submodule("norm").state_dict().items()
        )
    with bench.at({"stem": LOW}) as changed:
        after = changed.get_submodule("norm").state_dict()
        assert not torch.equal(after["running_mean"], before["running_mean"])


def test_a_layer_that_a_norm_reads_gets_no_bias() -> None:
    model, batches, names = mixed()
    with Bench(model, batches, names, Recipe()).at(dict.fromkeys(names, LOW)) as changed:
        assert changed.get_submodule("stem").bias is None
        assert changed.get_submodule("depthwise").bias is not None


def test_constant_channels_keep_their_deviation() -> None:
    norm = nn.BatchNorm1d(2)
    one, zero = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    shift(norm, (zero, zero), (one, one))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.running_mean.tolist() == [1, 1]
    assert norm.running_var.tolist() == pytest.approx([1, 1])
    shift(norm, (one, one), (zero, zero))
    assert norm.running_mean.tolist() == [0, 0]
    assert norm.running_var.tolist() == pytest.approx([1, 1])


def test_says_that_a_norm_has_no_statistics() -> None:
    one = torch.ones(2)
    with pytest.raises(ValueError, match="without running statistics"):
        shift(nn.BatchNorm1d(2, track_running_stats=False), (one, one), (one, one))


def test_embeddings_and_their_tied_heads_are_corrected_too() -> None:
    model, batches, names = tied()
    bench = Bench(model, batches, names, Recipe())
    with torch.no_grad(), bench.at(dict.fromkeys(names, LOW)) as changed:
        got = changed(bench.batch).mean((0, 1))
    torch.testing.assert_close(got, bench.reference.mean((0, 1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [1, 2, 3])
def test_a_norm_s_statistics_become_those_of_what_it_reads(kind: int) -> None:
    torch.manual_seed(0)
    model, x = ConvNorm(kind).eval(), torch.randn(16, 3, *[5] * kind)
    axes = [0, *range(2, 2 + kind)]
    recipe = Recipe(corrections=("batchnorm",))
    with torch.no_grad(), Bench(model, [x], ["conv"], recipe).at({"conv": LOW}) as changed:
        read = changed.get_submodule("conv")(x)
        norm = changed.get_submodule("norm")
        variance, mean = torch.var_mean(read, axes, correction=0)
        torch.testing.assert_close(norm.running_mean, mean)
        torch.testing.assert_close(norm.running_var, variance)


def test_every_layer_s_output_keeps_its_float_mean() -> None:
    model, batches, names = mixed()
    bench = Bench(model, batches, names, Recipe(corrections=("bias",)))
    before = {k: v.clone() for k, v in bench.model.get_submodule("norm").state_dict().items()}
    with torch.no_grad(), bench.at({"stem": LOW}) as changed:
        stem, norm = changed.get_submodule("stem"), changed.get_submodule("norm")
        wanted, got = model.get_submodule("stem")(bench.batch), stem(bench.batch)
        assert all(torch.equal(v, before[k]) for k, v in norm.state_dict().items())
    torch.testing.assert_close(got.mean((0, 2, 3)), wanted.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(got, wanted, atol=1e-2)
    with torch.no_grad(), bench.at(dict.fromkeys(names, LOW)) as changed:
        got = changed(bench.batch).mean(0)
    torch.testing.assert_close(got, bench.reference.mean(0), rtol=1e-4, atol=1e-5)


def test_a_norm_sees_biases_corrected_before_it_is_estimated() -> None:
    model, batches, names = mixed()
    recipe = Recipe(corrections=("bias", "batchnorm"))
    with torch.no_grad(), Bench(model, batches, names, recipe).at({"stem": LOW}) as changed:
        wanted = model.get_submodule("stem")(torch.cat(batches)).mean((0, 2, 3))
        torch.testing.assert_close(changed.get_submodule("norm").running_mean, wanted)
