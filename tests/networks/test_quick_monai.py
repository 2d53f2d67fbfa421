"""MONAI is imported without what no network uses, and nobody else misses it."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
from tomoscout.networks.quick_monai import UNUSED, import_monai
import matplotlib
import_monai()
assert not {*UNUSED} & {*sys.modules} - {"matplotlib"}, sys.modules.keys()
from monai.networks.nets import AttentionUnet, DynUNet, MedNeXt, SegResNetDS, SwinUNETR, UNet
SwinUNETR(in_channels=1, out_channels=2, feature_size=12, spatial_dims=3)
from mlflow import MlflowClient
import optuna, pandas, skimage
import matplotlib.pyplot
import_monai()
assert matplotlib is sys.modules["matplotlib"] and pandas is sys.modules["pandas"]
"""


def test_monai_leaves_out_what_it_does_not_need() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)
