"""Builds the images of the workflow with Apptainer: `make image`. Those for the star head and for back ends of
cells must be named.

The base is Debian 12 from a registry, or made by mmdebstrap from Debian's packages where no registry can be reached.
Within the build pip has the settings of this machine: mirrors, certificates, and folders with packages.
"""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from urllib.parse import unquote, urlsplit

import click

from tomoscout.options.config import RuleGroup
from tomoscout.plan.containers import IMAGES

ROOT = Path(__file__).resolve().parents[1]
PATHS_OF_PIP = {"cert", "client-cert", "find-links", "index-url", "extra-index-url", "constraint"}
# Of PyTorch: 3 s of computing and 208 MB, where gzip takes 58 s and 205 MB; and it is read three times as fast.
COMPRESSION = {"zstd": "-comp zstd -Xcompression-level 3", "gzip": "-comp gzip"}
USUAL = ("light", "network")
INSIDE = Path("/mnt")
"""Where the settings of pip lie in an image that is being built."""


@click.command(help=__doc__)
@click.argument("images", nargs=-1, type=click.Choice(list(IMAGES)))
@click.option(
    "--base",
    default="docker://debian:12-slim",
    show_default=True,
    help="A registry address, a folder, an image, or `packages`: made by mmdebstrap.",
)
@click.option(
    "--compression",
    default="zstd",
    show_default=True,
    type=click.Choice(list(COMPRESSION)),
    help="gzip where mksquashfs or the clusters' kernels are too old for zstd (before 2019).",
)
def main(images: tuple[RuleGroup, ...], base: str, compression: str) -> None:
    """Build the images that the command line names; if it names none, light and network."""
    needed = ["apptainer", *(["mmdebstrap"] if base == "packages" else [])]
    if missing := [program for program in needed if not shutil.which(program)]:
        sys.exit(f"error: {', '.join(missing)} must be installed to build an image")
    with tempfile.TemporaryDirectory(prefix="tomoscout-image-") as folder:
        source = _base_of_packages(Path(folder) / "base") if base == "packages" else base
        binds = _settings_of_pip(Path(folder) / "pip")
        for image in [image for image in IMAGES if image in (images or USUAL)]:
            built = _build(image, source, [*binds, "--mksquashfs-args", COMPRESSION[compression]])
            source = built if image in USUAL else source


def _base_of_packages(base: Path) -> str:
    """A folder with Debian 12 and its Python."""
    packages = "python3,python3-venv,ca-certificates"
    tidy = ["--skip=output/dev", "--customize-hook=rm -rf $1/var/lib/apt/lists/* $1/var/cache/apt/*"]
    archive = base.with_suffix(".tar")
    _run(["mmdebstrap", "--quiet", "--variant=minbase", f"--include={packages}", *tidy, "bookworm", str(archive)])
    # Unpacked as files of one's own, which Apptainer can read also where mmdebstrap made users of a namespace.
    base.mkdir()
    _run(["tar", "--extract", "--no-same-owner", f"--file={archive}", f"--directory={base}"])
    _run(["chmod", "--recursive", "u+rX", str(base)])
    return str(base)


def _settings_of_pip(folder: Path) -> list[str]:
    """Write pip's settings on this machine into a folder; returns what Apptainer must bind. Files and folders that they
    name get a place beside them."""
    folder.mkdir()
    listed = _output([sys.executable, "-m", "pip", "config", "list"])
    settings = {"no-cache-dir": "yes"}
    binds = [f"{folder}:{INSIDE}"]
    for line in filter(None, listed.splitlines()):
        key, _, value = line.partition("=")
        name = key.split(".")[-1]
        text = value.strip("'\"")
        if name in PATHS_OF_PIP:
            text = "\n".join(_inside(entry, folder, binds) for entry in text.replace("\\n", " ").split())
        settings[name] = text
    written = configparser.RawConfigParser()
    written["global"] = settings
    with (folder / "pip.conf").open("w", encoding="utf-8") as file:
        written.write(file)
    return [word for bind in binds for word in ("--bind", bind)]


def _inside(entry: str, folder: Path, binds: list[str]) -> str:
    """A path or address as it is within the image; a local one is added to `binds`."""
    address = urlsplit(entry)
    path = Path(unquote(address.path) if address.scheme == "file" else entry)
    if address.scheme not in ("", "file") or not path.exists():
        return entry
    # An index refers to packages beside it.
    shared = path.parent if address.scheme == "file" and path.is_dir() else path
    place = folder / str(len(binds))
    place.mkdir() if shared.is_dir() else place.touch()
    binds.append(f"{shared}:{INSIDE / place.name}")
    found = INSIDE / place.name / path.relative_to(shared)
    return f"file://{found}" if address.scheme == "file" else str(found)


def _build(group: RuleGroup, base: str, options: list[str]) -> str:
    """Build an image; returns its file. The network one, built after the light one, starts from it and adds to it, and
    those of back ends from the last one before them."""
    began = time.monotonic()
    image = ROOT / "containers" / IMAGES[group]
    bootstrap, _, source = base.rpartition("://")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    values = {
        "bootstrap": bootstrap or "localimage",
        "base": source,
        "group": group,
        "version": project["version"],
        "commit": _commit(),
    }
    arguments = [word for name, value in values.items() for word in ("--build-arg", f"{name}={value}")]
    # Written beside its place and renamed: jobs may be at work in the old one.
    new = image.with_suffix(".new.sif")
    definition = str(ROOT / "containers/tomoscout.def")
    print(f"{image.name}: from {base}, packages of envs/{group}.lock", flush=True)
    _run(["apptainer", "--quiet", "build", "--fakeroot", "--force", *options, *arguments, str(new), definition])
    new.replace(image)
    print(f"{image.name}: {image.stat().st_size / 1e6:,.0f} MB, {time.monotonic() - began:.0f} s", flush=True)
    return str(image)


def _commit() -> str:
    """The commit of this clone, `-dirty` where files differ from it; `unknown` outside of a clone."""
    described = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    found = subprocess.run(described, check=False, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _run(command: list[str]) -> None:
    finished = subprocess.run(command, check=False, cwd=ROOT)
    if finished.returncode:
        sys.exit(f"error: {command[0]} ended with exit code {finished.returncode}")


if __name__ == "__main__":
    main()
