"""A quantized model saved as safetensors, and loaded where there is no calibration data."""

import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import mpsearch as mp
from mpsearch.demo import digits

task = digits.task()
best = mp.search(task, mp.options("w2a8", "w4a8", "w8a8"), {"size": "4.5bit"}).allocation
model = mp.quantize(task.model, best, task.batches)

folder = Path(tempfile.mkdtemp())
best.save(folder / "bits.json")
save_file(model.state_dict(), folder / "model.safetensors")

again = mp.quantized_like(digits.DigitsNet(), mp.Allocation.load(folder / "bits.json"))
again.load_state_dict(load_file(folder / "model.safetensors"))
x, _ = task.heldout[0]
same = torch.equal(again.eval()(x), model(x))
print(f"{(folder / 'model.safetensors').stat().st_size} bytes on disk, the same outputs: {same}")
