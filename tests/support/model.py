"""A model of random weights."""

from __future__ import annotations

import torch

from tomoscout.networks import build_network, parse_network
from tomoscout.options.names import Source
from tomoscout.plan.classes import TargetClass
from tomoscout.tasks.picking.model import PickingModel
from tomoscout.tasks.picking.options import Picking

CPU = torch.device("cpu")


NETWORK = parse_network({"channels": [2, 4, 4], "strides": [2, 1], "residual_units": 1, "dropout": 0.1})


CLASSES = (
    TargetClass("ribosome", 1, 150.0, 120.0, (Source("ribosome", "data-portal", "0"), Source("ribosome", "me", "1"))),
    TargetClass("µ-tubule", 2, 125.5, 100.4, (Source("µ-tubule", "data-portal", "0"),)),
    TargetClass("membrane", 3, None, None, (Source("membrane", "membrain", "1"),)),
)


def random_network() -> torch.nn.Module:
    torch.manual_seed(3)
    return build_network(NETWORK, len(CLASSES) + 1).eval()


MODEL = PickingModel(
    name="unet",
    network=NETWORK,
    made_from={"fingerprint": "abc", "train": ["demo/run-1"], "step": 500},
    weights_digest="",
    classes=CLASSES,
    thresholds={"ribosome": 0.3125, "µ-tubule": 0.5},
    voxel_spacings=(10.0, 13.48),
    patch=(32, 64, 64),
    picking=Picking(smoothing=0.3, separation=1.5, distance=0.7),
)
