"""Numbers as people read them, and tables in plain ASCII for a terminal."""

import math
from collections import Counter
from collections.abc import Sequence

from mpsearch.allocation import Allocation
from mpsearch.report.data import Report, Run

_COUNTS = ("", "k", "M", "G", "T", "P")
_PARTS = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0}


def scale(value: float, unit: str) -> tuple[float, str]:
    """What to divide by, and the unit then, so that a number is 1 to 1000.

    >>> scale(12_345, "byte"), scale(0.002, "s"), scale(1.2e9, "BitOps")
    ((1000.0, 'kB'), (0.001, 'ms'), (1000000000.0, 'GBitOps'))
    """
    steps = _steps(unit)
    fits = [step for step in steps if abs(float(f"{value / step[0]:.2e}")) >= 1]
    if fits:
        return fits[-1]
    return steps[0] if value else (1.0, next(name for factor, name in steps if factor == 1))


def _steps(unit: str) -> list[tuple[float, str]]:
    """The factors and names a unit may be written with, smallest first."""
    for base in ("s", "J"):
        if unit.endswith(base) and unit[:-1] in _PARTS:
            own = _PARTS[unit[:-1]]
            return [(part / own, prefix + base) for prefix, part in _PARTS.items()]
    short = {"byte": "B", "bytes": "B"}.get(unit, unit)
    if short and not short.split()[0].isalnum():
        return [(1.0, unit)]
    return [(1000.0**power, prefix + short) for power, prefix in enumerate(_COUNTS)]


def readable(value: float, unit: str) -> str:
    """A cost to three digits.

    >>> readable(6_700_000, "byte"), readable(12_300, "byte"), readable(1.2e9, "BitOps")
    ('6.7 MB', '12.3 kB', '1.2 GBitOps')
    """
    if not math.isfinite(value):
        return f"{value} {unit}".strip()
    divisor, name = scale(value, unit)
    return f"{value / divisor:.3g} {name}".strip()


def number(value: float | None, digits: int = 4) -> str:
    """A loss to so many digits; nothing where there is none.

    >>> number(0.236), number(12345.6), number(1.5e-6), number(0), number(None)
    ('0.2360', '12346', '1.500e-06', '0', '')
    """
    if value is None or not value:
        return "" if value is None else "0"
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:#.{digits}g}".rstrip(".")


def of_loss(unit: str) -> tuple[str, str]:
    """What a loss is called and what it is counted in: ``KL (nats)`` is KL, in nats."""
    name, _, counted = unit.removesuffix(")").partition(" (")
    return (name, counted) if unit.endswith(")") else (unit, "")


def printable(text: str) -> str:
    r"""Text that cannot move a terminal's cursor: ``\x1b`` is shown, not obeyed."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def aligned(cells: Sequence[str], space: str = " ", dot: str = " ") -> list[str]:
    """Numbers padded so that their points stand above each other; other columns as they are."""
    if not all(_numeric(cell) for cell in cells) or not any(cells):
        return list(cells)
    tails = [cell.partition(".")[2] for cell in cells]
    longest = max(map(len, tails))
    if not longest:
        return list(cells)
    return [
        cell + ("" if "." in cell else dot) + space * (longest - len(tail))
        for cell, tail in zip(cells, tails, strict=True)
    ]


def numbers(column: Sequence[str]) -> bool:
    """Whether a column holds numbers, with a unit or without."""
    return any(column) and all(_numeric(cell.partition(" ")[0]) for cell in column)


def _numeric(cell: str) -> bool:
    if not cell:
        return True
    try:
        float(cell)
    except ValueError:
        return False
    return True


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns under their headers; numbers stand point under point."""
    columns = [[printable(str(row[i])) for row in rows] for i in range(len(headers))]
    heads = [printable(head) for head in headers]
    right = [numbers(column) for column in columns]
    columns = [aligned(column) for column in columns]
    widths = [
        max(len(head), *map(len, column), 0) for head, column in zip(heads, columns, strict=True)
    ]

    def line(cells: Sequence[str]) -> str:
        made = zip(cells, widths, right, strict=True)
        return "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in made).rstrip()

    body = [line(cells) for cells in zip(*columns, strict=True)]
    return "\n".join([line(heads), "  ".join("-" * width for width in widths), *body])


def allocation_table(allocation: Allocation) -> str:
    """Every layer and its option, the modules where a layer stands for several, and a count."""
    headers, rows = layer_cells(allocation)
    return table(headers, rows) + "\n\n" + counted(allocation)


def layer_cells(allocation: Allocation) -> tuple[list[str], list[list[str]]]:
    """Headers and cells of the table of layers; columns that would be empty are left out."""
    modules = {n: ", ".join(m) if m != (n,) else "" for n, m in allocation.modules.items()}
    more = {"runs as": (allocation.measured or {}).get("kernels", {}), "modules": modules}
    more = {head: cells for head, cells in more.items() if any(cells.values())}
    rows = [
        [name, str(option), *(str(cells.get(name, "")) for cells in more.values())]
        for name, option in allocation.items()
    ]
    return ["layer", "option", *more], rows


def counted(allocation: Allocation) -> str:
    """How many layers take each option, most taken first."""
    counts = Counter(map(str, allocation.values())).most_common()
    many = "layer" if len(allocation) == 1 else "layers"
    each = ", ".join(f"{count} at {printable(option)}" for option, count in counts)
    return f"{len(allocation)} {many}: {each}"


def runs_table(report: Report) -> str:
    """Predicted beside measured: the allocation, its rivals, and points of the frontier."""
    headers, rows = run_cells(report)
    return table(headers, rows)


def run_cells(report: Report) -> tuple[list[str], list[list[str]]]:
    """Headers and cells of the table of runs; columns that would be empty are left out."""
    found = dict.fromkeys(key for run in report.runs for key in run.metrics)
    metrics = [key for key in found if key not in report.costs]
    costs = [head for name in report.costs for head in (name, f"measured {name}")]
    headers = ["network", *costs, "predicted", "measured", "+-", *metrics]
    rows = [_run_cells(run, report, metrics) for run in report.runs]
    always = ("network", report.cost, "predicted")
    kept = [i for i, head in enumerate(headers) if head in always or any(row[i] for row in rows)]
    return [headers[i] for i in kept], [[row[i] for i in kept] for row in rows]


def _run_cells(run: Run, report: Report, metrics: Sequence[str]) -> list[str]:
    predicted = {**run.costs, report.cost: run.cost}
    costs = [
        "" if name not in found or math.isnan(found[name]) else readable(found[name], unit)
        for name, unit in ((name, report.unit_of(name)) for name in report.costs)
        for found in (predicted, run.metrics)
    ]
    figures = [number(run.predicted), number(run.measured), number(run.stderr, 2)]
    return [run.name, *costs, *figures, *(number(run.metrics.get(key)) for key in metrics)]
