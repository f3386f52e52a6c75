"""Plain text for terminals."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsearch.allocation import Figure
from mpsearch.report.data import Report, Run
from mpsearch.report.page import page
from mpsearch.report.text import (
    allocation_table,
    number,
    of_loss,
    readable,
    run_cells,
    runs_table,
    table,
)

Build = Callable[..., Report]


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (6_700_000, "byte", "6.7 MB"),
        (12_300, "byte", "12.3 kB"),
        (1.2e9, "BitOps", "1.2 GBitOps"),
        (512, "byte", "512 B"),
        (0, "byte", "0 B"),
        (999.6, "byte", "1 kB"),
        (999_999, "byte", "1 MB"),
        (-12_300, "byte", "-12.3 kB"),
        (0.25, "byte", "0.25 B"),
        (1234, "ms", "1.23 s"),
        (0.5, "ms", "500 us"),
        (2e-12, "s", "0.002 ns"),
        (0, "s", "0 s"),
        (3.5, "mJ", "3.5 mJ"),
        (12_300, "", "12.3 k"),
        (1.2e9, "BitOps (NNCF)", "1.2 GBitOps (NNCF)"),
        (12_300, "J/s", "1.23e+04 J/s"),
        (2e18, "cycle", "2e+03 Pcycle"),
        (float("inf"), "byte", "inf byte"),
        (float("nan"), "", "nan"),
    ],
)
def test_costs_are_written_with_the_unit_that_fits(value: float, unit: str, expected: str) -> None:
    assert readable(value, unit) == expected


@given(st.floats(1e-9, 1e15), st.sampled_from(["byte", "s", "ms", "BitOps"]))
def test_a_written_cost_is_the_cost_to_three_digits(value: float, unit: str) -> None:
    written, name = readable(value, unit).split()
    steps = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
    factors = {p + base: step for p, step in steps.items() for base in ("B", "BitOps")}
    factors |= {"s": 1, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
    own = 1e-3 if unit == "ms" else 1
    assert float(written) * factors[name] / own == pytest.approx(value, rel=5.01e-3)


def test_a_number_keeps_its_digits_and_zero_and_none_are_themselves() -> None:
    assert [number(x) for x in (0.236, -7.2, 1.5e-6, 12_345.6, 0.0, None)] == [
        "0.2360",
        "-7.200",
        "1.500e-06",
        "12346",
        "0",
        "",
    ]


def test_a_loss_is_named_and_counted() -> None:
    assert of_loss("KL (nats per token)") == ("KL", "nats per token")
    assert of_loss("relative MSE") == ("relative MSE", "")
    assert of_loss("") == ("", "")


def test_columns_stand_under_their_headers_and_numbers_point_under_point() -> None:
    made = table(["layer", "loss", "size"], [["a", "0.5", "371 kB"], ["long", "12.25", "2 MB"]])
    assert made.split("\n") == [
        "layer   loss    size",
        "-----  -----  ------",
        "a       0.5   371 kB",
        "long   12.25    2 MB",
    ]


def test_a_table_without_rows_is_its_headers() -> None:
    assert table(["layer", ""], []) == "layer\n-----  "


def test_a_name_cannot_move_the_cursor() -> None:
    made = table(["layer"], [["\x1b[2J\r\nx\ud800"]])
    assert made.split("\n")[2] == "\\x1b[2J\\r\\nx\\ud800"


def test_an_allocation_lists_its_layers_and_counts_its_options(new_report: Build) -> None:
    made = allocation_table(new_report().allocation)
    assert "blocks.0.fc1  int8/int8" in made
    assert made.endswith("4 layers: 2 at int4/int8, 2 at int8/int8")
    assert "modules" not in made


def test_an_allocation_names_the_modules_of_a_layer_of_several(new_report: Build) -> None:
    report = new_report()
    modules = {name: (name,) for name in report.allocation} | {"head": ("head", "stem.tied")}
    made = allocation_table(replace(report.allocation, modules=modules))
    assert "head          int8/int8  head, stem.tied" in made
    assert "\nstem          int4/int8\n" in made


def test_runs_stand_predicted_beside_measured(new_report: Build) -> None:
    headers, rows = run_cells(new_report())
    assert headers == ["network", "size", "predicted", "measured", "+-", "top1"]
    assert rows[0][:2] == ["this allocation", "2 kB"]
    names = [row[0] for row in rows]
    assert names[1:4] == ["type template", "uniform int2/int8", "uniform int4/int8"]
    assert names[-1] == "point 2"


def test_columns_of_what_was_not_measured_are_left_out(new_report: Build) -> None:
    headers, _ = run_cells(new_report(measured=False))
    assert headers == ["network", "size", "predicted"]


def test_every_unusual_report_is_plain_text(unusual: Report) -> None:
    for text in (runs_table(unusual), allocation_table(unusual.allocation)):
        assert all(line.isprintable() for line in text.split("\n"))


def timed(report: Report) -> Report:
    """Along latency, measured too, with the bytes beside it."""
    figures = {"latency": Figure(0.002, "s", 0.003), "size": Figure(1000.0, "byte")}
    allocation = replace(
        report.allocation,
        figures=figures,
        measured={"kl": 0.1, "float": {"metrics": {"top1": 0.97, "latency": 0.004}}},
    )
    runs = [
        Run(name, 0.002, 0.1, 0.11, 0.01, {"top1": 0.9, "latency": seconds}, {"size": 1000.0})
        for name, seconds in (("this allocation", 0.0021), ("uniform int8/int8", 0.0025))
    ]
    return replace(
        report,
        allocation=allocation,
        cost="latency",
        others=(runs[0],),
        uniform=(runs[1],),
        points=(),
    )


def test_a_metric_called_as_a_cost_is_that_cost_measured(new_report: Build) -> None:
    headers, rows = run_cells(timed(new_report()))
    assert headers == [
        *("network", "latency", "measured latency", "size"),
        *("predicted", "measured", "+-", "top1"),
    ]
    assert rows[0] == [
        *("this allocation", "2 ms", "2.1 ms", "1 kB", "0.1000", "0.1100", "0.010", "0.9000")
    ]
    assert rows[1][2] == "2.5 ms"


def test_the_unquantized_network_s_latency_stands_under_the_measured_ones(
    new_report: Build,
) -> None:
    found = re.search(r"<tr[^>]*><th[^>]*>unquantized</th>(.*?)</tr>", page(timed(new_report())))
    assert found is not None
    cells = [cell.replace("\u2007", "") for cell in re.findall(r"<td[^>]*>(.*?)</td>", found[1])]
    assert [cell.strip("\u2008") for cell in cells[:3]] == ["", "4 ms", ""]
    assert "0.9700" in cells


def test_layers_are_listed_with_the_kernels_that_ran(new_report: Build) -> None:
    allocation = new_report().allocation
    kernels = {"stem": "fp32/fp32 in place of int4/int8", "head": "int8/int8"}
    made = allocation_table(replace(allocation, measured={"kl": 0.1, "kernels": kernels}))
    assert made.splitlines()[0].split("  ")[-1].strip() == "runs as"
    assert "head          int8/int8  int8/int8\n" in made
    assert "fp32/fp32 in place of int4/int8" in made
