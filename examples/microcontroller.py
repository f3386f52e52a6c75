"""Three budgets of a microcontroller at once: flash, peak SRAM and latency.

The device is a data file (``mpsearch list devices``); flash is exact bytes, SRAM a maximum over
steps of what is alive, latency cycles by operator. Below 8 bits this core is no faster, only
smaller, and the table of its costs says so.
"""

import mpsearch as mp
from mpsearch.demo import digits
from mpsearch.hwmodels import Mcu

task = digits.task()
options = mp.options("w2a8", "w4a8", "w8a8", "w4a4")
net = mp.trace(task.model, task.batches[0])
board = Mcu("stm32l4r5", in_place=True)
costs = board.costs(net, options)
loss = mp.estimate(task, options, method="kl", network=net)

print(board.machine.title)
for note, where in costs["latency"].notes.items():  # type: ignore[union-attr]
    print(f"{int(where.any(axis=0).sum())} of {len(options)} options: {note}")

best = mp.solve(loss, {costs["flash"]: "12kB", costs["sram"]: "5kB", costs["latency"]: "50ms"})
for name, figure in best.figures.items():
    print(f"{name}: {figure.value:g} of {figure.limit:g} {figure.unit}")
print(f"{best.status.value}: loss {best.loss:.4g}; {best.provenance['why']}")

try:
    mp.solve(loss, {costs["flash"]: "12kB", costs["sram"]: "1kB"})
except mp.Infeasible as reason:
    print(reason)
