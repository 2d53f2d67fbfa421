"""How to cite: tomoscout, and the methods that a model was made with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Citation(NamedTuple):
    """What is cited, the reference, and its DOI (empty where there is none)."""

    what: str
    reference: str
    doi: str = ""


def _tomoscout(version: str) -> Citation:
    return Citation("tomoscout", f"tomoscout, version {version}. Software, MIT license.")


_ALWAYS = (
    Citation(
        "copick",
        "Harrington K. I., Zhao Z., Schwartz J., Kandel S., Ermel U., Paraan M., Potter C., Carragher B. Open-source "
        "Tools for CryoET Particle Picking Machine Learning Competitions. NeurIPS 2024 Workshop on Machine Learning in "
        "Structural Biology.",
        "10.1101/2024.11.04.621608",
    ),
    Citation(
        "Snakemake",
        "Mölder F., Jablonski K. P., Letcher B., et al. Sustainable data analysis with Snakemake. F1000Research 10:33 "
        "(2021).",
        "10.12688/f1000research.29032.2",
    ),
    Citation(
        "MONAI",
        "Cardoso M. J., Li W., Brown R., et al. MONAI: An open-source framework for deep learning in healthcare. arXiv "
        "(2022).",
        "10.48550/arXiv.2211.02701",
    ),
)

_FAMILIES = {
    "UNet": (
        "Kerfoot E., Clough J., Oksuz I., Lee J., King A. P., Schnabel J. A. Left-Ventricle Quantification Using "
        "Residual U-Net. STACOM 2018, LNCS 11395, 371–380 (2019).",
        "10.1007/978-3-030-12029-0_40",
    ),
    "AttentionUNet": (
        "Oktay O., Schlemper J., Le Folgoc L., et al. Attention U-Net: Learning Where to Look for the Pancreas. arXiv "
        "(2018).",
        "10.48550/arXiv.1804.03999",
    ),
    "DynUNet": (
        "Isensee F., Jaeger P. F., Kohl S. A. A., Petersen J., Maier-Hein K. H. nnU-Net: a self-configuring method for "
        "deep learning-based biomedical image segmentation. Nature Methods 18, 203–211 (2021).",
        "10.1038/s41592-020-01008-z",
    ),
    "ResidualEncoderUNet": (
        "Isensee F., Wald T., Ulrich C., Baumgartner M., Roy S., Maier-Hein K., Jaeger P. F. nnU-Net Revisited: A Call "
        "for Rigorous Validation in 3D Medical Image Segmentation. MICCAI 2024, LNCS 15009, 488–498.",
        "10.1007/978-3-031-72114-4_47",
    ),
    "SegResNet": (
        "Myronenko A. 3D MRI Brain Tumor Segmentation Using Autoencoder Regularization. BrainLes 2018, LNCS 11384, "
        "311–320 (2019).",
        "10.1007/978-3-030-11726-9_28",
    ),
    "SwinUNETR": (
        "Hatamizadeh A., Nath V., Tang Y., Yang D., Roth H. R., Xu D. Swin UNETR: Swin Transformers for Semantic "
        "Segmentation of Brain Tumors in MRI Images. BrainLes 2021, LNCS 12962, 272–284 (2022).",
        "10.1007/978-3-031-08999-2_22",
    ),
    "MedNeXt": (
        "Roy S., Koehler G., Ulrich C., Baumgartner M., Petersen J., Isensee F., Jaeger P. F., Maier-Hein K. MedNeXt: "
        "Transformer-driven Scaling of ConvNets for Medical Image Segmentation. MICCAI 2023, 405–415.",
        "10.1007/978-3-031-43901-8_39",
    ),
}


def citations(version: str, families: Iterable[str]) -> list[Citation]:
    """What to cite. `version`: that of tomoscout; `families`: of the networks, of which those of users have none."""
    networks = [Citation(family, *_FAMILIES[family]) for family in dict.fromkeys(families) if family in _FAMILIES]
    return [_tomoscout(version), *_ALWAYS, *networks]
