"""A per-layer bit config from a table written by hand: no model, no torch."""

import numpy as np

import mpsearch as mp

layers = (mp.Layer("conv1", params=432), mp.Layer("conv2", params=4608), mp.Layer("fc", params=640))
options = mp.options("int2/int8", "int4/int8", "int8/int8")
damage = np.array([[0.90, 0.10, 0.01], [0.30, 0.02, 0.001], [0.05, 0.004, 0.0002]])
stored = np.array([[option.weight.bytes((1, n.params)) for option in options] for n in layers])

loss = mp.Table(layers, options, damage, unit="loss")
size = mp.Table(layers, options, stored, unit="byte", name="size", reference=4 * 5680)
best = mp.solve(loss, {size: "uniform:int4/int8"})

print({name: option.weight.bits for name, option in best.items()})
print(f"loss {best.loss:.4f}, proven at least {best.bound:.4f}; {best.cost['size']} byte")
if best.uniform is not None:
    print(f"uniform {best.uniform.option}: loss {best.uniform.loss:.4f}")
