"""Products of 16-bit inputs and packed weights, in Triton.

:mod:`mpsearch.kernels.triton_layout` says how weights lie. A program takes 128 outputs, 16 tokens
and a share of the inputs; the last of those that share outputs sums what all found, in their order,
so that a call is one launch and repeats to the bit. Sums are in 32-bit floats: of a group of exact
codes first, then times its scale.
"""

# ruff: noqa: ANN001, ANN201, ANN202, FURB136, PLR0913, PLR0917
# (Triton reads annotations; its constants are numbers and text, and have no min)
# mypy: ignore-errors
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# pyright: reportAssignmentType=false, reportOperatorIssue=false

import triton
import triton.language as tl


@triton.constexpr_function
def _number(planes, plane, item):
    """Bits, first tile, offset or factor of a plane, by its place in the text."""
    text = planes.split("\n")[plane].split("|")[item]
    return int(text) if text.isdigit() else float(text)


@triton.constexpr_function
def _program(planes, plane, field):
    """Instructions of a field of a plane; none where the text has none."""
    return [*planes.split("\n")[plane].split("|")[4:], *[""] * 16][field]


@triton.constexpr_function
def _count(planes):
    """Planes."""
    return len(planes.split("\n"))


@triton.jit
def _values(words, like, PLANES: tl.constexpr, PLANE: tl.constexpr, PIECE: tl.constexpr):
    """What a slice of a plane stands for, exactly, in the type of ``like``."""
    BITS: tl.constexpr = _number(PLANES, PLANE, 0)
    FIELD: tl.constexpr = PIECE % (16 // BITS)
    PROGRAM: tl.constexpr = _program(PLANES, PLANE, FIELD)
    if PROGRAM != "":
        return tl.inline_asm_elementwise(
            PROGRAM, "=r,r", [words], dtype=like.dtype.element_ty, is_pure=True, pack=2
        )
    codes = (words >> (FIELD * BITS)) & ((1 << BITS) - 1)
    found = (codes.to(tl.float32) - _number(PLANES, PLANE, 2)) * _number(PLANES, PLANE, 3)
    return found.to(like.dtype.element_ty)


@triton.jit
def _weight(
    from_words, like,
    PLANES: tl.constexpr, PLANE: tl.constexpr, PIECE: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """(width, 128) of one slice of a plane."""
    FIELDS: tl.constexpr = 16 // _number(PLANES, PLANE, 0)
    TILE: tl.constexpr = _number(PLANES, PLANE, 1) + PIECE // FIELDS
    return _values(tl.load(from_words + TILE * SIZE), like, PLANES, PLANE, PIECE)


@triton.jit
def _inputs(
    from_x, at, there, columns,
    GROUP: tl.constexpr, PADDED: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """(16, width) inputs, zero where there are none."""
    if EVEN:
        return tl.load(from_x + at[None, :], mask=there, other=0.0)
    within = at % PADDED
    real = at // PADDED * GROUP + within
    inside = (within < GROUP) & (real < columns)
    return tl.load(from_x + real[None, :], mask=there & inside[None, :], other=0.0)


@triton.jit
def _sum_of_shares(total, parts, to, inside, size, counter, share, SPLIT: tl.constexpr):
    """Whether this program is the last of its outputs, and if so the sum of what all found."""
    tl.store(parts + share * size + to, total, mask=inside)
    tl.debug_barrier()  # all threads have stored before one says so
    last = tl.atomic_add(counter, 1, sem="acq_rel") == SPLIT - 1
    if last:
        tl.store(counter, 0)  # for the next call
        total = tl.full(total.shape, 0.0, tl.float32)
        for other in tl.static_range(SPLIT):
            at = parts + other * size + to
            total += tl.load(at, mask=inside, other=0.0, cache_modifier=".cg")  # past the L1
    return last, total


@triton.jit(do_not_specialize=["tokens", "groups", "blocks", "each"])
def decode(
    x, words, scales, zeros, bias, y, parts, arrived,
    tokens, rows, columns, groups, blocks, each,
    GROUP: tl.constexpr, PADDED: tl.constexpr, WIDTH: tl.constexpr, SLICES: tl.constexpr,
    TILES: tl.constexpr, PLANES: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr,
    SPLIT: tl.constexpr, EVEN: tl.constexpr, ZEROS: tl.constexpr, BIAS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """(tokens, rows) outputs of (tokens, columns) inputs, a bias added.

    PLANES has a line for each: bits, first tile, offset, factor, and instructions of each field.
    """
    column, share, chunk = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    BLOCK: tl.constexpr = SLICES * WIDTH
    ALONE: tl.constexpr = PADDED if PADDED < BLOCK else BLOCK  # inputs of a block with one scale
    PIECES: tl.constexpr = ALONE // WIDTH
    SIZE: tl.constexpr = ROWS * WIDTH
    k, n = tl.arange(0, WIDTH), tl.arange(0, ROWS)
    m = chunk * TOKENS + tl.arange(0, TOKENS)
    there = (m < tokens)[:, None]
    from_x = x + m[:, None].to(tl.int64) * columns
    from_words = words + column.to(tl.int64) * blocks * (TILES * SIZE)
    from_words += n[None, :] * WIDTH + k[:, None]
    first = column * groups * ROWS + n
    total = tl.full((TOKENS, ROWS), 0.0, tl.float32)
    for block in tl.range(share * each, min(share * each + each, blocks), num_stages=STAGES):
        of_block = from_words + block * (TILES * SIZE)
        for part in tl.static_range(BLOCK // ALONE):
            of_group = first + (block * BLOCK + part * ALONE) // PADDED * ROWS
            scale = tl.load(scales + of_group).to(tl.float32)
            found = tl.full((TOKENS, ROWS), 0.0, tl.float32)
            seen = tl.full((TOKENS, WIDTH), 0.0, tl.float32)
            for piece in tl.static_range(part * PIECES, (part + 1) * PIECES):
                at = block * BLOCK + piece * WIDTH + k
                values = _inputs(from_x, at, there, columns, GROUP, PADDED, EVEN)
                seen += values.to(tl.float32)
                for p in tl.static_range(_count(PLANES)):
                    weight = _weight(of_block, x, PLANES, p, piece, SIZE)
                    found = tl.dot(values, weight, found)
            if ZEROS:
                zero = tl.load(zeros + of_group).to(tl.float32)
                found -= tl.sum(seen, 1)[:, None] * zero[None, :]
            total += found * scale[None, :]
    n += column * ROWS
    inside = there & (n < rows)[None, :]
    to = m[:, None].to(tl.int64) * rows + n[None, :]
    last = SPLIT == 1
    if SPLIT > 1:
        counter = arrived + chunk * tl.num_programs(0) + column
        size = tokens.to(tl.int64) * rows
        last, total = _sum_of_shares(total, parts, to, inside, size, counter, share, SPLIT)
    if last:
        if BIAS:
            total += tl.load(bias + n, mask=n < rows, other=0.0)[None, :]
        tl.store(y + to, total.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["groups", "blocks"])
def dequantize(
    words, scales, zeros, weight, rows, columns, groups, blocks,
    GROUP: tl.constexpr, PADDED: tl.constexpr, WIDTH: tl.constexpr, SLICES: tl.constexpr,
    TILES: tl.constexpr, PLANES: tl.constexpr, ROWS: tl.constexpr, ZEROS: tl.constexpr,
):  # fmt: skip
    """(rows, columns) of what the codes stand for, a block a program."""
    column, block = tl.program_id(0), tl.program_id(1)
    SIZE: tl.constexpr = ROWS * WIDTH
    k, n = tl.arange(0, WIDTH), tl.arange(0, ROWS)
    from_words = words + (column.to(tl.int64) * blocks + block) * (TILES * SIZE)
    from_words += n[None, :] * WIDTH + k[:, None]
    for piece in tl.static_range(SLICES):
        start = (block * SLICES + piece) * WIDTH
        found = tl.full((WIDTH, ROWS), 0.0, tl.float32)
        for p in tl.static_range(_count(PLANES)):
            found += _weight(from_words, weight, PLANES, p, piece, SIZE).to(tl.float32)
        of_group = (column * groups + start // PADDED) * ROWS + n
        if ZEROS:
            found -= tl.load(zeros + of_group).to(tl.float32)[None, :]
        found *= tl.load(scales + of_group).to(tl.float32)[None, :]
        within = (start + k) % PADDED
        at = (start + k) // PADDED * GROUP + within
        row = column * ROWS + n
        inside = ((within < GROUP) & (at < columns))[:, None] & (row < rows)[None, :]
        to = row[None, :].to(tl.int64) * columns + at[:, None]
        tl.store(weight + to, found.to(weight.dtype.element_ty), mask=inside)
