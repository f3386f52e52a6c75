"""Every hardware model of ours, against the laws that third parties inherit too."""

from mpsearch.hwmodels import Ace, BitOps, Size
from mpsearch.testing import HardwareSuite


class TestSize(HardwareSuite):
    hardware = Size()


class TestBitOps(HardwareSuite):
    hardware = BitOps()


class TestNncf(HardwareSuite):
    hardware = BitOps("nncf")


class TestAce(HardwareSuite):
    hardware = Ace()


class TestCpu64(HardwareSuite):
    hardware = Ace("cpu64")


class TestLinearAce(HardwareSuite):
    hardware = Ace("linear")
