"""Hardware models: what each layer costs at each option, as tables."""

import importlib
from typing import TYPE_CHECKING

if __name__ != "mpsearch.hwmodels":
    raise ImportError(f"{__name__!r} is the source of 'mpsearch.hwmodels': import it by that name")

if TYPE_CHECKING:
    from mpsearch.hwmodels.ace import Ace
    from mpsearch.hwmodels.bitops import BitOps
    from mpsearch.hwmodels.energy import Energy
    from mpsearch.hwmodels.fpga import Fpga
    from mpsearch.hwmodels.lookup import Lookup
    from mpsearch.hwmodels.mcu import Mcu
    from mpsearch.hwmodels.measured import Measured
    from mpsearch.hwmodels.roofline import Roofline
    from mpsearch.hwmodels.size import Size
    from mpsearch.hwmodels.sram import Sram
    from mpsearch.hwmodels.systolic import Systolic
else:
    _modules = {
        "Ace": "ace",
        "BitOps": "bitops",
        "Energy": "energy",
        "Fpga": "fpga",
        "Lookup": "lookup",
        "Mcu": "mcu",
        "Measured": "measured",
        "Roofline": "roofline",
        "Size": "size",
        "Sram": "sram",
        "Systolic": "systolic",
    }

    def __getattr__(name: str) -> object:
        if name not in _modules:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_modules[name]}"), name)


__all__ = [
    "Ace",
    "BitOps",
    "Energy",
    "Fpga",
    "Lookup",
    "Mcu",
    "Measured",
    "Roofline",
    "Size",
    "Sram",
    "Systolic",
]
