"""Networks by family. A family is a module with a class `Options` and a function `build`.

`Options` derives from `NetworkOptions`; `build(options, inputs, outputs, dimensions)` returns a module that maps
(batch, inputs, *space) to logits (batch, outputs, *space), or in training mode to a list of logits for deep
supervision, the full resolution first and the others falling, or blown up to its size. A family's module imports
PyTorch inside `build` alone: its options are read where nothing slow may be imported. Users name a file of their own,
or an entry point of the group `tomoscout.networks`; config/examples/my_network.py shows how.
"""

from __future__ import annotations

import difflib
import sys
import traceback
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tomoscout.machine.files import digest, digest_file
from tomoscout.networks.options import NetworkOptions
from tomoscout.options.sections import expand_path, note_change

if TYPE_CHECKING:
    from torch import nn

FAMILIES = {
    "UNet": "unet",
    "AttentionUNet": "attention_unet",
    "DynUNet": "dynunet",
    "SegResNet": "segresnet",
    "MedNeXt": "mednext",
    "SwinUNETR": "swin_unetr",
    "ResidualEncoderUNet": "residual_encoder_unet",
}
"""The built-in families and their modules."""

ENTRY_POINTS = "tomoscout.networks"


def family_name(given: str, key: str) -> str:
    """The name of a family from one in any case, as octopi's Unet, or the whole path of a Python file; `key`
    says in a note where it was given.

    Raises:
        ValueError: a path holds a variable that is not set.
    """
    if given.endswith(".py"):
        return expand_path(given)
    name = {family.lower(): family for family in FAMILIES}.get(given.replace("_", "").replace("-", "").lower(), given)
    if name != given:
        note_change("", key, given, name)
    return name


def family_module(family: str) -> ModuleType:
    """The module of a family: built in, installed as an entry point, or a file `….py` of the user.

    Raises:
        ValueError: there is no such family, its module cannot be imported, or it lacks `Options` or `build`.
    """
    if family in FAMILIES:
        return import_module(f"{__name__}.{FAMILIES[family]}")
    module = _load_file(Path(family)) if family.endswith(".py") else _load_entry_point(family)
    options = getattr(module, "Options", None)
    if not (isinstance(options, type) and issubclass(options, NetworkOptions)):
        raise ValueError(f"family '{family}' has no class Options of NetworkOptions; see config/examples/my_network.py")
    if not callable(getattr(module, "build", None)):
        raise ValueError(f"family '{family}' has no function build; see config/examples/my_network.py")
    return module


def _load_entry_point(family: str) -> ModuleType:
    installed = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    if family not in installed:
        known = [*FAMILIES, *installed]
        lower = {name.lower(): name for name in known}
        near = difflib.get_close_matches(family.lower(), lower, n=1, cutoff=0.5)
        hint = f"did you mean '{lower[near[0]]}'?" if near else f"known: {', '.join(known)}, or a Python file"
        raise ValueError(f"unknown family '{family}'; {hint}")
    try:
        module: ModuleType = installed[family].load()
    except Exception as error:
        raise ValueError(f"family '{family}' ({installed[family].value}): {_describe(error)}") from None
    return module


def _load_file(path: Path) -> ModuleType:
    """The module in a file. Compiled from what is there: Python's cache of compiled files would miss an edit within
    the second, and lie beside the user's configuration."""
    if not path.is_file():
        raise ValueError(f"family '{path}': no such file")
    content = path.read_bytes()
    name = f"tomoscout_network_{digest(content)}"
    if name not in sys.modules:
        module = ModuleType(name)
        module.__file__ = str(path.absolute())
        sys.modules[name] = module
        try:
            exec(compile(content, module.__file__, "exec"), module.__dict__)
        except Exception as error:
            del sys.modules[name]
            lines = [
                frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == module.__file__
            ]
            where = f" line {lines[-1]}:" if lines else ""
            raise ValueError(f"family '{path}':{where} {_describe(error)}") from None
    return sys.modules[name]


def _describe(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def parse_network(values: Any) -> NetworkOptions:
    """Options of any family from a mapping, or a list of one; the family is UNet unless given.

    Raises:
        ValueError: the family is unknown, or an option is.
    """
    if isinstance(values, NetworkOptions):
        return values
    if isinstance(values, list) and len(values) == 1:
        [values] = values
    if not isinstance(values, dict):
        raise ValueError(f"expected a mapping with a family and its options, found {values!r}")
    values = {"family": "UNet", **values}
    if not isinstance(values["family"], str):
        raise ValueError(f"family must be a name or a Python file, found {values['family']!r}")
    values["family"] = family_name(values["family"], "train.network.family")
    options: NetworkOptions = family_module(values["family"]).Options.model_validate(values)
    return options


def code_digest(options: NetworkOptions) -> str | None:
    """What stands for the code of a family that is a file of the user: another file trains again."""
    return digest_file(Path(options.family)) if options.family.endswith(".py") else None


def build_network(options: NetworkOptions, outputs: int, *, inputs: int = 1, dimensions: int = 3) -> nn.Module:
    """A network with random weights: (batch, inputs, *space) → logits (batch, outputs, *space).

    Raises:
        ValueError: an option is given for another number of dimensions, or there are neither two nor three.
    """
    if dimensions not in (2, 3):
        raise ValueError(f"networks have 2 or 3 dimensions, found {dimensions}")
    options.size_step(dimensions)
    network: nn.Module = family_module(options.family).build(options, inputs, outputs, dimensions)
    from tomoscout.networks.prelu import quicken

    quicken(network)
    return network


def head_parameters(
    options: NetworkOptions, outputs: int, *, inputs: int = 1, dimensions: int = 3
) -> dict[str, tuple[int, ...]]:
    """The parameters (and buffers) that make the classes: by name, the axes along which the classes lie.

    Most have one such axis; a layer from classes to classes, as MONAI's UNet has with residual units, has two. Found by
    building the network for one class more and comparing shapes, without memory for weights (the meta device).

    Raises:
        ValueError: a parameter does not grow by one for a class, so that no part of it belongs to one.
    """
    import torch

    def shapes(count: int) -> dict[str, torch.Size]:
        with torch.device("meta"):
            network = build_network(options, count, inputs=inputs, dimensions=dimensions)
        return {name: value.shape for name, value in network.state_dict().items()}

    heads = {}
    more = shapes(outputs + 1)
    for name, shape in shapes(outputs).items():
        grown = [larger - size for size, larger in zip(shape, more[name], strict=True)]
        if any(grown):
            if set(grown) - {0, 1}:
                raise ValueError(f"family '{options.family}': {name} grows from {list(shape)} to {list(more[name])}")
            heads[name] = tuple(axis for axis, extra in enumerate(grown) if extra)
    return heads
