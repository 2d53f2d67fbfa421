"""Models as octopi writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import monai.networks.nets as nets
import torch
import yaml
from torch import nn

Values = dict[str, Any]
LABELS = {"virus-like-particle": 2, "ribosome": 1, "membrane": 3}


UNET = {
    "architecture": "Unet",
    "num_classes": 4,
    "channels": [4, 8, 8],
    "strides": [2, 1],
    "num_res_units": 1,
    "dropout": 0.1,
    "dim_in": 32,
}


DYNUNET = {
    "architecture": "DynUNet",
    "num_classes": 4,
    "kernel_size": [3, 3, 3],
    "strides": [1, 2, 2],
    "upsample_kernel_size": [2, 2],
    "filters": [4, 6, 8, 10],
    "dropout": 0.2,
    "norm_name": ("INSTANCE", {"affine": True}),
    "act_name": ("leakyrelu", {"inplace": True, "negative_slope": 0.01}),
    "deep_supervision": False,
    "deep_supr_num": 0,
    "res_block": True,
    "dim_in": 64,
}


SEGRESNET = {
    "architecture": "SegResNet",
    "num_classes": 4,
    "init_filters": 8,
    "blocks_down": (1, 2, 2),
    "dsdepth": 1,
    "act": "prelu",
    "norm": "instance",
    "blocks_up": (1, 1),
    "upsample_mode": "deconv",
    "resolution": None,
    "dim_in": 96,
}


SWIN = {
    "architecture": "SwinUNETR",
    "num_classes": 4,
    "feature_size": 12,
    "depths": (2, 2, 2, 2),
    "num_heads": (3, 6, 12, 24),
    "window_size": 5,
    "drop_rate": 0.1,
    "attn_drop_rate": 0.2,
    "dropout_path_rate": 0.3,
    "use_checkpoint": True,
    "dim_in": 64,
}


ATTENTION = {
    "architecture": "AttentionUnet",
    "num_classes": 4,
    "channels": [4, 8, 8],
    "strides": [2, 1],
    "dropout": 0.1,
}


MEDNEXT = {
    "architecture": "MedNeXt",
    "num_classes": 4,
    "init_filters": 4,
    "encoder_expansion_ratio": 2,
    "decoder_expansion_ratio": 3,
    "bottleneck_expansion_ratio": 4,
    "kernel_size": 3,
    "deep_supervision": False,
    "norm_type": "group",
    "global_resp_norm": False,
    "blocks_down": (1, 2, 1),
    "blocks_bottleneck": 1,
    "blocks_up": (1, 1, 2),
}


def as_octopi_builds(model: Values) -> nn.Module:
    """The network of a configuration, with every parameter somewhere else than where it starts."""
    options = {key: value for key, value in model.items() if key not in ("architecture", "num_classes", "dim_in")}
    common: Values = {"spatial_dims": 3, "in_channels": 1, "out_channels": model["num_classes"]}
    makers: dict[str, Callable[[], nn.Module]] = {
        "Unet": lambda: nets.UNet(**common, **options),
        "AttentionUnet": lambda: nets.AttentionUnet(**common, **options),
        "DynUNet": lambda: nets.DynUNet(
            **common,
            **{"norm_name": ("INSTANCE", {"affine": True}), "res_block": True, "dropout": None, **options},
        ),
        "SegResNet": lambda: nets.SegResNetDS(**common, **{"act": "prelu", "norm": "instance", **options}),
        "SwinUNETR": lambda: nets.SwinUNETR(**common, **options),
        "MedNeXt": lambda: nets.MedNeXt(**common, use_residual_connection=True, **options),
    }
    torch.manual_seed(1)
    network = makers[model["architecture"]]()
    with torch.no_grad():
        for name, weight in network.state_dict().items():
            if weight.is_floating_point():
                weight.mul_(1.1 if "running" in name else 1 + 0.2 * torch.randn_like(weight)).add_(0.02)
    return network.eval()


def write_model(
    folder: Path, model: Values, weights: Any = None, labels: Any = None, dumper: Any = yaml.SafeDumper
) -> Path:
    """A model as octopi writes it; returns the configuration."""
    config = {
        "model": model,
        "labels": LABELS if labels is None else labels,
        "optimizer": {"lr": 0.001, "loss_function": "FocalLoss", "gamma": 2.0},
        "dataloader": {"tomo_uris": ["wbp@10.0"], "trainRunIDs": ["a", "b"]},
    }
    path = folder / "model_config.yaml"
    path.write_text(yaml.dump(config, Dumper=dumper, sort_keys=False))
    if weights is None:
        weights = as_octopi_builds(model).state_dict()
    torch.save(weights, folder / "best_model.pth")
    return path
