"""octopi's networks, converted to options of tomoscout's network families.

Both programs build them with MONAI, so equal options and equal weights give equal logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from tomoscout.machine.errors import TomoscoutError
from tomoscout.networks import parse_network
from tomoscout.networks.options import NetworkOptions


class _Architecture(NamedTuple):
    """A network architecture of octopi: the names of its required options, the defaults of the others, and a function
    that converts all of them to the options of a family. It raises a ValueError if an option is not supported."""

    required: tuple[str, ...]
    defaults: Mapping[str, Any]
    options: Callable[[Mapping[str, Any]], dict[str, Any]]


def read_network(path: Path, model: Mapping[Any, Any]) -> NetworkOptions:
    """The options of a network family from the section `model` of octopi's configuration at `path`.

    Raises:
        TomoscoutError: the architecture or an option is not known, missing, or not supported.
    """
    name = model.get("architecture")
    if not isinstance(name, str) or name not in _ARCHITECTURES:
        found = "is missing" if name is None else f"is {name!r}"
        raise TomoscoutError(f"{path}: model.architecture {found}, expected one of {', '.join(_ARCHITECTURES)}")
    architecture = _ARCHITECTURES[name]
    for key in architecture.required:
        if key not in model:
            raise TomoscoutError(f"{path}: model.{key} is missing, expected the option of octopi's {name}")
    given = {key: value for key, value in model.items() if key not in ("architecture", "num_classes", "dim_in")}
    for key in given:
        if key not in architecture.required and key not in architecture.defaults:
            known = ", ".join((*architecture.required, *architecture.defaults))
            raise TomoscoutError(f"{path}: model.{key}: unknown option of octopi's {name}; known: {known}")
    try:
        return parse_network(architecture.options({**architecture.defaults, **given}))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        message = f"{where}: {first['msg']}, found {first['input']!r}" if where else first["msg"]
        raise TomoscoutError(f"{path}: model, read as options of {name}: {message}") from None
    except ValueError as error:
        raise TomoscoutError(f"{path}: model.{error}") from None


def _unet(given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "family": "UNet",
        "channels": given["channels"],
        "strides": given["strides"],
        "residual_units": given["num_res_units"],
        "dropout": given["dropout"],
    }


def _attention_unet(given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "family": "AttentionUNet",
        "channels": given["channels"],
        "strides": given["strides"],
        "dropout": given["dropout"],
    }


def _dynunet(given: Mapping[str, Any]) -> dict[str, Any]:
    strides, filters = _list(given, "strides"), given["filters"]
    _only(given, "upsample_kernel_size", strides[1:])
    norm, arguments = _layer(given, "norm_name")
    if arguments != {"affine": True}:
        raise ValueError(f"norm_name is {given['norm_name']!r}, expected one with {{'affine': True}}")
    if _layer(given, "act_name") not in (
        ("leakyrelu", {"negative_slope": 0.01}),
        ("leakyrelu", {"negative_slope": 0.01, "inplace": True}),
        ("leakyrelu", {"negative_slope": 0.01, "inplace": False}),
    ):
        raise ValueError(f"act_name is {given['act_name']!r}, expected leakyrelu with {{'negative_slope': 0.01}}")
    return {
        "family": "DynUNet",
        "strides": strides,
        "kernel_sizes": given["kernel_size"],
        # MONAI ignores surplus filters.
        "filters": None if filters is None else _list(given, "filters")[: len(strides)],
        "residual_blocks": given["res_block"],
        "norm": norm,
        "dropout": given["dropout"] or 0.0,
        "deep_supervision": 1 + _count(given, "deep_supr_num") if given["deep_supervision"] else 1,
    }


def _segresnet(given: Mapping[str, Any]) -> dict[str, Any]:
    norm, norm_arguments = _layer(given, "norm")
    if norm_arguments not in ({}, {"affine": True}):
        raise ValueError(f"norm is {given['norm']!r}, expected one without further options")
    activation, arguments = _layer(given, "act")
    if arguments not in ({}, {"inplace": True}, {"inplace": False}):
        raise ValueError(f"act is {given['act']!r}, expected one without further options")
    return {
        "family": "SegResNet",
        "init_filters": given["init_filters"],
        "blocks_down": given["blocks_down"],
        "blocks_up": given["blocks_up"],
        "norm": norm,
        "activation": activation,
        "upsampling": given["upsample_mode"],
        "resolution": given["resolution"],
        "deep_supervision": given["dsdepth"],
    }


def _mednext(given: Mapping[str, Any]) -> dict[str, Any]:
    _only(given, "norm_type", "group")
    _only(given, "global_resp_norm", False)
    _only(given, "deep_supervision", False)
    down, up = _list(given, "blocks_down"), _list(given, "blocks_up")
    expansion = {}
    for key, levels in (("encoder_expansion_ratio", len(down)), ("decoder_expansion_ratio", len(up))):
        expansion[key] = [given[key]] * levels if isinstance(given[key], int) else given[key]
    return {
        "family": "MedNeXt",
        "init_filters": given["init_filters"],
        "kernel_size": given["kernel_size"],
        "blocks_down": down,
        "blocks_bottleneck": given["blocks_bottleneck"],
        "blocks_up": up,
        "expansion_down": expansion["encoder_expansion_ratio"],
        "expansion_bottleneck": given["bottleneck_expansion_ratio"],
        "expansion_up": expansion["decoder_expansion_ratio"],
    }


def _swin_unetr(given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "family": "SwinUNETR",
        "feature_size": given["feature_size"],
        "depths": given["depths"],
        "num_heads": given["num_heads"],
        "window_size": given["window_size"],
        "dropout": given["drop_rate"],
        "attention_dropout": given["attn_drop_rate"],
        "path_dropout": given["dropout_path_rate"],
        "checkpointing": given["use_checkpoint"],
    }


def _only(given: Mapping[str, Any], key: str, expected: Any) -> None:
    if given[key] != expected:
        raise ValueError(f"{key} is {given[key]!r}, expected {expected!r}: the only one supported")


def _list(given: Mapping[str, Any], key: str) -> list[Any]:
    if not isinstance(given[key], list):
        raise ValueError(f"{key} is {given[key]!r}, expected a list")
    return list(given[key])


def _count(given: Mapping[str, Any], key: str) -> int:
    if not isinstance(given[key], int):
        raise ValueError(f"{key} is {given[key]!r}, expected a whole number")
    return int(given[key])


def _layer(given: Mapping[str, Any], key: str) -> tuple[str, dict[str, Any]]:
    """A layer in MONAI's notation: a name in any case, or a list of a name and a mapping of arguments."""
    name, arguments = given[key] if isinstance(given[key], list) and len(given[key]) == 2 else (given[key], {})
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError(f"{key} is {given[key]!r}, expected a name, or a list of a name and a mapping")
    return name.lower(), arguments


_ARCHITECTURES = {
    "Unet": _Architecture(("channels", "strides", "num_res_units", "dropout"), {}, _unet),
    "DynUNet": _Architecture(
        ("kernel_size", "strides", "upsample_kernel_size"),
        {
            "filters": None,
            "dropout": None,
            "norm_name": ["instance", {"affine": True}],
            "act_name": ["leakyrelu", {"negative_slope": 0.01}],
            "deep_supervision": False,
            "deep_supr_num": 1,
            "res_block": True,
        },
        _dynunet,
    ),
    "SegResNet": _Architecture(
        ("init_filters",),
        {
            "act": "prelu",
            "norm": "instance",
            "blocks_down": [1, 2, 2, 4],
            "blocks_up": None,
            "dsdepth": 1,
            "upsample_mode": "deconv",
            "resolution": None,
        },
        _segresnet,
    ),
    "SwinUNETR": _Architecture(
        (
            "feature_size",
            "depths",
            "num_heads",
            "drop_rate",
            "attn_drop_rate",
            "dropout_path_rate",
            "use_checkpoint",
        ),
        {"window_size": 7},
        _swin_unetr,
    ),
    # Written by octopi up to version 1.5.
    "AttentionUnet": _Architecture(("channels", "strides", "dropout"), {}, _attention_unet),
    "MedNeXt": _Architecture(
        (
            "init_filters",
            "encoder_expansion_ratio",
            "decoder_expansion_ratio",
            "bottleneck_expansion_ratio",
            "kernel_size",
            "norm_type",
            "global_resp_norm",
            "blocks_down",
            "blocks_bottleneck",
            "blocks_up",
        ),
        {"deep_supervision": False},
        _mednext,
    ),
}
