"""MobileNetV2 on ImageNet images: uniform 4-bit weights lose everything, a mix does not.

Needs ``../shared/models`` (or ``$MPSEARCH_SHARED/models``) and Pillow. On the command line:
``mpsearch search examples/mobilenet_v2.py --options w3a16,w4a16,w6a16,w8a16 --corrections none
--budget size=uniform:w4a16 --report report.html``
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

import mpsearch as mp

MODELS = Path(os.environ.get("MPSEARCH_SHARED", Path(__file__).parents[2] / "shared")) / "models"


def task(calibrate: int = 32, judge: int = 200) -> mp.Task:
    """The network, calibrated and judged on disjoint images."""
    if not MODELS.is_dir():
        raise FileNotFoundError(
            f"{MODELS} is not there; set MPSEARCH_SHARED to the folder that holds models"
        )
    threads = torch.get_num_threads()  # the definitions set their own
    sys.path.insert(0, str(MODELS / "definitions"))
    try:
        from imagenet_sample import images  # type: ignore[import-not-found]
        from mobilenet_v2 import load_model  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
        torch.set_num_threads(threads)
    model: nn.Module = load_model(MODELS / "imagenet/weights/mobilenet_v2_int8pc.safetensors")

    def prepared(split: str, count: int) -> tuple[Tensor, Tensor]:
        x, y = images(split, 224, count)
        return torch.from_numpy(x).permute(0, 3, 1, 2).float() / 127.5 - 1, torch.from_numpy(
            y
        ).long()

    x, y = prepared("calib", calibrate)
    test_x, test_y = prepared("test", judge)
    heldout = list(zip(test_x.split(50), test_y.split(50), strict=True))

    @torch.no_grad()
    def top1(network: nn.Module) -> Mapping[str, float]:
        right = sum(int((network(a).argmax(1) == b).sum()) for a, b in heldout)
        return {"top1": right / len(test_y)}

    return mp.Task(model, [(x, y)], heldout, evaluate=top1)
