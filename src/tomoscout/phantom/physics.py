"""The image formation of a phantom, from density to tomogram: contrast transfer, missing wedge, noise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.geometry import Shape

VOLTAGE = 300e3
SPHERICAL_ABERRATION = 2.7e7
AMPLITUDE_CONTRAST = 0.07


def contrast_transfer(frequency: NDArray[np.floating], defocus: float) -> NDArray[np.float64]:
    """The phase-flipped contrast transfer function (CTF), between −1 and 0: protein is darker than solvent.

    `frequency` is in 1/Å, `defocus` in µm (underfocus positive). 300 kV, Cs = 2.7 mm, amplitude contrast 0.07. The
    phase shift is that of Rohou & Grigorieff (2015), doi:10.1016/j.jsb.2015.08.008, equations 2 and 3. Phases are
    flipped as in tomograms corrected for the CTF: the zeros stay and the sign does not change.
    """
    # Relativistic electron wavelength in Å.
    wavelength = 12.2643 / math.sqrt(VOLTAGE + 0.978466e-6 * VOLTAGE**2)
    squared = np.asarray(frequency, dtype=np.float64) ** 2
    phase = math.pi * wavelength * squared * (defocus * 1e4 - 0.5 * SPHERICAL_ABERRATION * wavelength**2 * squared)
    return -np.abs(np.sin(phase + math.asin(AMPLITUDE_CONTRAST)))


def measured(kz: NDArray[Any], kx: NDArray[Any], tilt_range: float) -> NDArray[np.bool_]:
    """Which Fourier components a tilt series of ±`tilt_range` degrees measures: |kz| ≤ |kx| tan(tilt range).

    The tilt axis is y and the beam runs along z, so ky does not matter.
    """
    return np.asarray(np.arctan2(np.abs(kz), np.abs(kx)) <= math.radians(tilt_range))


def image(
    density: NDArray[np.float32],
    particles: NDArray[np.bool_],
    *,
    voxel_spacing: float,
    defocus: float,
    tilt_range: float,
    signal_to_noise: float,
    random: np.random.Generator,
) -> NDArray[np.float32]:
    """The tomogram (z, y, x) of a density, float32 with mean 0 and standard deviation 1.

    The signal is the density times the contrast transfer function times the missing wedge, in Fourier space; the noise
    is white and Gaussian times the same wedge. With `particles` the voxels inside particles, `signal_to_noise` =
    variance of the signal over those voxels / variance of the noise over all voxels. Where no voxel is inside a
    particle, the noise has the variance of the signal divided by `signal_to_noise`; without any signal the tomogram is
    noise alone. One defocus holds for the whole volume, and edges are periodic.
    """
    from scipy import fft

    kz, ky, kx = _frequencies(density.shape, voxel_spacing)
    wedge = measured(kz, kx, tilt_range)
    transfer = contrast_transfer(np.sqrt(kz**2 + ky**2 + kx**2), defocus).astype(np.float32)

    signal = fft.irfftn(fft.rfftn(density) * (transfer * wedge), density.shape)
    noise = fft.irfftn(fft.rfftn(random.standard_normal(density.shape, dtype=np.float32)) * wedge, density.shape)
    inside = signal[particles] if particles.any() else signal
    if (power := float(inside.var(dtype=np.float64))) > 0:
        noise *= math.sqrt(power / signal_to_noise / float(noise.var(dtype=np.float64)))
    tomogram = signal + noise
    tomogram -= tomogram.mean(dtype=np.float64)
    tomogram /= tomogram.std(dtype=np.float64)
    return np.asarray(tomogram, dtype=np.float32)


def _frequencies(shape: Shape, voxel_spacing: float) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """kz, ky, kx in 1/Å of a real Fourier transform (last axis halved); they broadcast."""
    depth, height, width = shape
    return (
        np.fft.fftfreq(depth, voxel_spacing).astype(np.float32)[:, None, None],
        np.fft.fftfreq(height, voxel_spacing).astype(np.float32)[None, :, None],
        np.fft.rfftfreq(width, voxel_spacing).astype(np.float32)[None, None, :],
    )
