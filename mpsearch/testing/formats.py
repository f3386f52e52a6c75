"""Laws of formats: as names, in bytes, and on a weight."""

import itertools
import math
import unittest
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from mpsearch.formats import Format

# A scale that follows from the mean of what is rounded, or a tensor's range, moves with it.
_ONCE = ("int", "float", "lookup", "power", "exponent", "binary", "fixed", "full")


class FormatSuite:
    """What any format does, as a name, in bytes, and on a weight.

    Attributes:
        formats: Names; where two differ in bits only, fewer bits must store no more bytes.
    """

    formats: Sequence[str]

    def test_the_name_is_read_back(self) -> None:
        for name in self.formats:
            assert str(Format.parse(name)) == name
            assert Format.parse(str(Format.parse(name))) == Format.parse(name)
            resolved = Format.parse(name).as_weight()
            assert resolved.as_weight() == resolved

    def test_bytes_hold_every_code_and_grow_with_the_weight(self) -> None:
        shapes = ((1, 1), (3, 5), (4, 5), (4, 7), (4, 7, 3), (64, 128), (64, 256))
        for form in map(Format.parse, self.formats):
            stored = [form.bytes(shape) for shape in shapes]
            assert stored == sorted(stored)
            for shape, size in zip(shapes, stored, strict=True):
                assert size >= math.prod(shape) * form.bits / 8
                assert form.streams(shape)["codes"][0] <= math.prod(shape)
                assert form.bits_per_weight(shape) * math.prod(shape) == 8 * size

    def test_fewer_bits_take_no_more_bytes(self) -> None:
        every = [Format.parse(name) for name in self.formats]
        for one, two in itertools.permutations(every, 2):
            alike = replace(one, base="", bits=0) == replace(two, base="", bits=0)
            alike = alike and replace(one.family, bits=0) == replace(two.family, bits=0)
            if alike and one.share == two.share and one.bits <= two.bits:
                assert one.bytes((6, 20)) <= two.bytes((6, 20))

    def test_what_is_stored_has_the_bytes_the_format_counts(self) -> None:
        for form, weight, codes in self._coded():
            stored = codes.stored()
            assert set(stored) == set(form.streams(tuple(weight.shape))), str(form)
            size = sum(part.numel() * part.element_size() for part in stored.values())
            assert size == form.bytes(tuple(weight.shape)), str(form)

    def test_what_is_stored_is_read_back(self) -> None:
        from mpsearch.quant import Codes

        for form, weight, codes in self._coded():
            back = Codes.read(codes.stored(), form, tuple(weight.shape))
            assert bool((back.dequantize() == codes.dequantize()).all()), str(form)

    def test_a_rounded_weight_is_half_a_step_away_at_most(self) -> None:
        for form, weight, codes in self._coded():
            if form.kind not in ("int", "full") or form.bits == 1 or form.plain != form:
                continue
            step = _steps(codes, weight)
            error = (codes.dequantize() - weight).abs()
            assert bool((error <= 0.5 * step * (1 + 2**-9)).all()), str(form)

    def test_rounding_twice_is_rounding_once(self) -> None:
        from mpsearch.quant import round_trip

        for form, _, codes in self._coded():
            once = codes.dequantize()
            moves = form.base == "binary2" or form.plain != form or codes.zero is not None
            if form.kind in _ONCE and not moves:
                assert bool((round_trip(once, form, "minmax") == once).all()), str(form)

    def test_a_power_of_two_passes_through(self) -> None:
        from mpsearch.quant import round_trip

        for form, weight, codes in self._coded():
            if form.kind != "fixed" and not form.rank:
                scaled = round_trip(weight * 4, form, "minmax")
                assert bool((scaled == codes.dequantize() * 4).all()), str(form)

    def _coded(self) -> Iterator[tuple[Format, Any, Any]]:
        """Each format, a weight, and its codes by min-max."""
        if find_spec("torch") is None:
            raise unittest.SkipTest("torch is not installed")
        import torch

        from mpsearch.quant import encode

        weight = torch.randn(8, 48, generator=torch.Generator().manual_seed(0))
        for form in map(Format.parse, self.formats):
            if form.kind != "log":
                yield form, weight, encode(weight, form, "minmax")


def _steps(codes: Any, weight: Any) -> Any:
    """The step each weight was rounded with: a scale, or for full formats their spacing."""
    if codes.scale is None:
        return (
            weight.abs() * {"fp16": 2.0**-10, "bf16": 2.0**-7, "fp32": 2.0**-23}[codes.format.base]
        )
    rows = codes.scale.float()
    columns = weight.shape[1]
    if codes.format.per == "group":
        groups = rows.reshape(weight.shape[0], -1)
        return groups.repeat_interleave(codes.format.group, 1)[:, :columns]
    return rows.reshape(-1, 1).expand(weight.shape[0] if len(rows) > 1 else 1, columns)
