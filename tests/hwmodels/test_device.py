"""Machines as data: ours are whole, a user's own is read, a wrong file is refused."""

from pathlib import Path

import pytest

from mpsearch import registry
from mpsearch.hwmodels.device import FOLDER, device, devices, read_device

FILE = """title = "Mine"
model = "mcu"
[figures.clock]
value = 1e6
unit = "Hz"
basis = "assumed"
source = "a guess"
[figures.cycles.conv2d]
value = 2
unit = "cycle/MAC"
basis = "measured"
source = "my bench"
"""


def test_every_device_of_ours_is_read_and_its_model_exists() -> None:
    found = devices()
    assert set(found) == {path.stem for path in FOLDER.glob("*.toml")}
    assert {each.model for each in found.values()} <= set(registry.names("hwmodels"))
    for each in found.values():
        assert all(figure.source and figure.unit for figure in each.figures.values()), each.name


def test_devices_are_listed_with_their_model() -> None:
    assert registry.names("devices")["bitfusion"].startswith("systolic: Bit Fusion")
    assert registry.load("devices", "bitfusion").model == "systolic"


def test_a_user_s_own_device_is_read_from_its_path(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    path.write_text(FILE)
    mine = device(str(path))
    assert (mine.name, mine.title, mine.model) == ("board", "Mine", "mcu")
    assert mine["clock"] == 1e6
    assert mine.family("cycles") == {"conv2d": 2}
    assert mine.figures["cycles.conv2d"].basis == "measured"
    assert (mine.get("sram", 7.0), mine.get("clock", 7.0)) == (7.0, 1e6)
    with pytest.raises(LookupError, match="device 'board' has no figure 'sram'; it has clock, cyc"):
        mine["sram"]


@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        ("1e6", "0", "figure 'clock' is 0; wanted a number above zero"),
        ("1e6", "-1.5", r"figure 'clock' is -1\.5; wanted a number above zero"),
        ("1e6", "nan", "figure 'clock' is nan; wanted a number above zero"),
        ("1e6", "true", "figure 'clock' is True; wanted a number above zero"),
        ("1e6", "'fast'", "figure 'clock' is 'fast'; wanted a number above zero"),
        ('"assumed"', '"rumour"', "the basis of 'clock' is 'rumour'; wanted published, measured"),
        (
            'source = "a guess"\n',
            "",
            "figure 'clock' is {.*}; wanted value, unit, basis and source",
        ),
        ('title = "Mine"\n', "", "title is None; wanted a text"),
        ('model = "mcu"', "model = 3", "model is 3; wanted a text"),
        ('model = "mcu"', 'model = "mcu"\nprice = 3', "has 'price'; a device has title, model and"),
        (FILE[FILE.index("[figures") :], "", "has no figures; give at least one"),
        ('"Mine"', "Mine", "is not TOML"),
    ],
)
def test_a_wrong_file_is_refused_with_what_is_wrong(
    was: str, now: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "board.toml"
    path.write_text(FILE.replace(was, now, 1))
    with pytest.raises(ValueError, match=message):
        read_device(path)


def test_unknown_devices_and_other_models_are_refused() -> None:
    with pytest.raises(LookupError, match=r"no device is named 'h9000'; there are .*bitfusion"):
        device("h9000")
    with pytest.raises(ValueError, match="'bitfusion' is priced by model 'systolic', not 'mcu'"):
        device("bitfusion", model="mcu")
