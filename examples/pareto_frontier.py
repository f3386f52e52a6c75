"""The Pareto frontier of a trained network: what each byte buys, and how sure that is."""

import mpsearch as mp
from mpsearch.demo import digits

task = digits.task()
options = mp.options("w2a8", "w3a8", "w4a8", "w8a8")
network = mp.trace(task.model, task.batches[0])
loss = mp.estimate(task, options, method="kl", network=network)
size = mp.cost(network, options, model="size")

for allocation in mp.frontier(loss, size, points=12):
    bits = " ".join(str(option.weight.bits) for option in allocation.values())
    size_and_loss = f"{allocation.cost['size']:6.0f} byte  loss {allocation.loss:.5f}"
    print(f"{size_and_loss}  gap {allocation.gap:.0e}  weight bits {bits}")
