"""Layers on real kernels, and what they take on this machine.

A backend (the protocol of the hub) gives, for a layer at an option, a module that computes it with
a kernel of this machine, or ``None``. Its ``runs_as`` names what is really multiplied: codes of 4
bits in containers of 8 are ``int8/int8``. Every kernel reads and writes what the module it stands
for reads and writes, so that it can be put in its place.
"""
