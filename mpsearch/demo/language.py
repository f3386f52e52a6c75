"""A byte-level language model of Python source, trained on the standard library's own text.

The text is read from the machine's Python. Which side of the split a file is on depends on its name
alone, so a file held out when the shipped weights were trained is held out on every machine; the
text of a file may differ from one Python version to the next, and the figures with it.
"""

import math
import os
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpsearch.demo import weights
from mpsearch.task import Task

WEIGHTS = Path(__file__).with_name("language.safetensors")
CONTEXT = 128  # bytes in a window
BATCH = 16  # windows in a batch

Side = Literal["train", "validation", "heldout"]

# Tests, other people's packages, tables and long prose: little of it is code as people write it.
SKIPPED = frozenset(
    "__pycache__ dist-packages encodings ensurepip idlelib pydoc_data site-packages test tests"
    " turtledemo".split()
)


class Attention(nn.Module):
    """Causal self-attention; positions enter by rotary embedding (Su et al. 2021, RoFormer)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) to (N, T, width); written out, so that it has second derivatives."""
        q, k, v = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        scores = rotated(q) @ rotated(k).mT / math.sqrt(q.shape[-1])
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        mixed = scores.masked_fill(future, -math.inf).softmax(-1) @ v
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(-2))
        return out


class GatedMLP(nn.Module):
    """SwiGLU (Shazeer 2020): what goes up is multiplied by a gate before it comes down."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) to (N, T, width)."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Block(nn.Module):
    """Attention, then the MLP, each on the normalized stream and added to it."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps=1e-5)
        self.attention = Attention(width, heads)
        self.mlp_norm = nn.RMSNorm(width, eps=1e-5)
        self.mlp = GatedMLP(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) to (N, T, width)."""
        x = x + self.attention(self.attention_norm(x))
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out


class ByteLanguageModel(nn.Module):
    """A small Llama over bytes: (N, T) bytes to (N, T, 256) logits of the byte that follows."""

    def __init__(
        self, *, width: int = 128, depth: int = 4, heads: int = 4, hidden: int = 256
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.blocks = nn.Sequential(*(Block(width, heads, hidden) for _ in range(depth)))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.lm_head = nn.Linear(width, 256, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T) bytes to (N, T, 256) logits."""
        logits: Tensor = self.lm_head(self.norm(self.blocks(self.embedding(x))))
        return logits


def rotated(x: Tensor) -> Tensor:
    """(..., T, size) with each pair of channels turned by an angle that grows along T."""
    half = x.shape[-1] // 2
    pace = 10_000.0 ** -(torch.arange(half, device=x.device, dtype=x.dtype) / half)
    angle = torch.arange(x.shape[-2], device=x.device, dtype=x.dtype)[:, None] * pace
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], dim=-1)


def load(path: Path = WEIGHTS) -> ByteLanguageModel:
    """The trained model, in eval mode."""
    return weights.load(ByteLanguageModel(), path)


def task(samples: int = 32, heldout: int = 64) -> Task:
    """The trained model with windows of Python source: (16, 128) bytes a batch.

    Args:
        samples: Windows to calibrate on, from files it was trained on.
        heldout: Windows to judge by, from files it was not.
    """
    judged = batches(text("heldout"), heldout)
    evaluate = partial(perplexity, batches=judged)
    return Task(load(), batches(text("train"), samples), judged, evaluate=evaluate)


def perplexity(model: nn.Module, batches: Sequence[Tensor]) -> Mapping[str, float]:
    """How many bytes the model hesitates between, on average: the exponential of its loss."""
    with torch.no_grad():
        each = [loss(model(x), x).double().item() * len(x) for x in batches]
    return {"perplexity": math.exp(sum(each) / sum(map(len, batches)))}


def loss(logits: Tensor, x: Tensor) -> Tensor:
    """Mean cross-entropy in nats of every byte but the first, given those before it."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten())


def batches(source: Tensor, windows: int) -> list[Tensor]:
    """That many windows, spread evenly over the text, in batches: (16, 128) of int64 each."""
    starts = torch.linspace(0, len(source) - CONTEXT, windows, dtype=torch.float64).long()
    return list(source[starts[:, None] + torch.arange(CONTEXT)].long().split(BATCH))


def text(side: Side) -> Tensor:
    """The bytes of all the standard library's files on one side of the split, as uint8."""
    folder = Path(sysconfig.get_path("stdlib"))
    parts = [(folder / name).read_bytes() for name in names(folder) if side_of(name) == side]
    joined = b"".join(parts).replace(b"\r\n", b"\n")
    if len(joined) < 100_000:
        raise FileNotFoundError(
            f"Python's standard library has {len(joined)} bytes of {side} text in {str(folder)!r};"
            " wanted at least 100000: use a Python that comes with the library's .py files"
        )
    return torch.frombuffer(bytearray(joined), dtype=torch.uint8)


def names(folder: Path) -> list[str]:
    """The files that are text, sorted, as paths from the folder with forward slashes."""
    return sorted(path.relative_to(folder).as_posix() for path in _walk(folder))


def side_of(name: str) -> Side:
    """The side of the split that a file is on: a tenth is held out, a twentieth validates."""
    percent = crc32(name.encode()) % 100
    return "heldout" if percent < 10 else "validation" if percent < 15 else "train"


def _walk(folder: Path) -> Iterator[Path]:
    # A hyphen marks a folder that holds no modules, such as config-3.11 with its build settings.
    for root, below, found in os.walk(folder):
        below[:] = [name for name in below if name not in SKIPPED and "-" not in name]
        yield from (Path(root, name) for name in found if _is_text(name))


def _is_text(name: str) -> bool:
    # Generated where Python was built: its options and paths, another text on every machine.
    return name.endswith(".py") and not name.startswith("_sysconfigdata")
