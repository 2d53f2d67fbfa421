"""Whether octopi's models give the same logits here: `python tests/benchmarks/octopi_model.py`.

octopi builds each of its architectures with its own search space, writes configuration, weights and the logits of a
random tomogram, and trains two networks on a phantom for a few steps. Here all are read and applied to the same
tomogram, and the trained ones fine-tuned. The file runs twice: under tomoscout's Python, which starts it again under
octopi's.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

ALLOWED = 1e-5
SIZE = 64
CROP = 32
RUNS = 4
LOGITS = "logits.npz"
TUNING_STEPS = 100
# The smallest of octopi's search space, and what else changes the form of its networks.
SEARCHED: dict[str, tuple[str, dict[str, Any]]] = {
    "Unet": (
        "Unet",
        {"num_layers": 3, "hidden_layers": 1, "base_channel": 8, "num_res_units": 2, "dropout": 0.1},
    ),
    "DynUNet": ("DynUNet", {"topology": "3stage_s22", "deep_supr_num": 0, "dropout": 0.2}),
    "DynUNet, 4 stages, deep supervision": (
        "DynUNet",
        {"topology": "4stage_s221", "deep_supr_num": 2, "dropout": 0.0},
    ),
    "SegResNet": ("SegResNet", {"init_filters": 16, "dsdepth": 1, "blocks_down": "1-1-2-2"}),
    "SegResNet, deep supervision": ("SegResNet", {"init_filters": 16, "dsdepth": 3, "blocks_down": "1-2-2-4"}),
    "SwinUNETR": (
        "SwinUNETR",
        {
            "feature_size_num_heads": "fs12_h3-6-12-24",
            "depths": "2-2-4-2",
            "window_size": 5,
            "drop_rate": 0.1,
            "attn_drop_rate": 0.1,
            "dropout_path_rate": 0.1,
        },
    ),
}
TRAINED: dict[str, dict[str, Any]] = {
    "Unet, trained": {
        "architecture": "Unet",
        "channels": [8, 16, 24, 24],
        "strides": [2, 2, 1],
        "num_res_units": 1,
        "dropout": 0.1,
    },
    "SegResNet with deep supervision, trained": {
        "architecture": "SegResNet",
        "init_filters": 8,
        "blocks_down": [1, 1, 2],
        "blocks_up": [1, 1],
        "dsdepth": 2,
    },
}


def main() -> None:
    """Print the table; exit with an error where logits differ by more than allowed."""
    from measure import run, table
    from peer import octopi

    from tomoscout.phantom.options import Phantom
    from tomoscout.phantom.project import make_phantom

    with tempfile.TemporaryDirectory(prefix="tomoscout-bench-") as name:
        folder = Path(name)
        project = make_phantom(folder / "phantom", Phantom(runs=RUNS, shape=[SIZE] * 3, particles=4, membranes=1))
        source = ["--picks-user-id", "phantom", "--picks-session-id", "0"]
        run([octopi(), "create-targets", "--config", project, *source], folder=folder)
        run([octopi().with_name("python"), Path(__file__).resolve(), project, folder / "models"], folder=folder)
        rows = [_compare(folder / "models" / what.replace(" ", "_"), what) for what in (*SEARCHED, *TRAINED)]
        tuned = [_fine_tune(project, folder, what) for what in TRAINED]
    columns = ["", "parameters", "largest logit", "largest difference"]
    print(table(f"Logits of octopi's models on {SIZE}³ voxels", columns, rows))
    columns = ["", "F4 of octopi's model", "F4 fine-tuned", "best step"]
    print(table(f"Fine-tuned for {TUNING_STEPS} steps", columns, tuned))
    if any(float(row[-1]) > ALLOWED for row in rows):
        sys.exit(f"logits differ by more than {ALLOWED}")


def _compare(folder: Path, what: str) -> list[str]:
    import numpy as np
    import torch

    from tomoscout.models.octopi import read_octopi_model
    from tomoscout.networks import build_network

    model = read_octopi_model(folder / "model_config.yaml", None)
    network = build_network(model.network, model.outputs)
    network.load_state_dict(model.weights)
    with np.load(folder / LOGITS) as stored, torch.inference_mode():
        ours = network.eval()(torch.from_numpy(stored["tomogram"])).numpy()
        theirs = stored["logits"]
    assert ours.shape == theirs.shape, (what, ours.shape, theirs.shape)
    assert model.patch == (CROP,) * 3 and list(model.labels.values()) == list(range(1, model.outputs)), what
    count = sum(weight.numel() for weight in network.parameters())
    return [what, f"{count:,}", f"{abs(theirs).max():.2f}", f"{abs(ours - theirs).max():.1e}"]


def _fine_tune(project: Path, folder: Path, what: str) -> list[object]:
    from tomoscout.api import create_targets, train
    from tomoscout.machine.files import read_json

    config = {
        "projects": {"phantom": str(project)},
        "tomograms": ["wbp@10.0"],
        # Of the octopi model's classes those that every one of these small tomograms holds.
        "targets": {"picks": ["apo-ferritin:phantom/0", "hemoglobin:phantom/0"]},
        "split": {"ratios": 0.75},
        "tracking": {"enabled": False},
    }
    results = folder / what.replace(" ", "_")
    create_targets(config, results)
    base = folder / "models" / what.replace(" ", "_") / "model_config.yaml"
    size = {"patch": [CROP] * 3, "batch_size": 2, "steps": TUNING_STEPS, "validate_every": TUNING_STEPS // 2}
    tuned = train(config, results, base=str(base), device="cpu", **size)
    before = read_json(tuned.folder / "results.json")["base_score"]
    return [what, f"{before:.3f}", f"{tuned.score:.3f}", tuned.best_step]


def make_models(project: str, folder: Path) -> None:
    """Under octopi's Python: a folder per model, with its files and logits."""
    import torch
    from octopi.datasets.config import DataGeneratorConfig
    from octopi.models import common

    torch.manual_seed(0)
    data = DataGeneratorConfig(config=project, name="targets", user_id="octopi", session_id="1").create_data_generator()
    for what, (architecture, choices) in SEARCHED.items():
        target = folder / what.replace(" ", "_")
        target.mkdir(parents=True)
        builder = common.get_model(architecture)
        _write_searched(builder, choices, data, target)
        _write_logits(builder, target)
    for what, config in TRAINED.items():
        target = folder / what.replace(" ", "_")
        _train({**config, "num_classes": data.Nclasses, "dim_in": CROP}, data, target)
        builder = common.get_model(config["architecture"])
        builder.build_model({**config, "num_classes": data.Nclasses})
        builder.model.load_state_dict(torch.load(target / "best_model.pth", weights_only=True))
        _write_logits(builder, target)


def _write_searched(builder: Any, choices: dict[str, Any], data: Any, target: Path) -> None:
    """A network as octopi's search builds and saves it, with all its parameters moved from where they start."""
    import torch
    from monai.losses import FocalLoss
    from octopi.pytorch.trainer import ModelTrainer
    from octopi.utils import io
    from optuna.trial import FixedTrial

    builder.bayesian_search(FixedTrial(choices), data.Nclasses)
    builder.config["dim_in"] = CROP
    with torch.no_grad():
        for weight in builder.model.parameters():
            weight.mul_(1 + 0.2 * torch.randn_like(weight)).add_(0.02 * torch.randn_like(weight))
    optimizer = torch.optim.AdamW(builder.model.parameters())
    trainer = ModelTrainer(builder.model, torch.device("cpu"), FocalLoss(), None, optimizer, use_ema=False)
    trainer.num_samples, trainer.val_interval, trainer.lr0, trainer.best_metric = 4, 1, 1e-3, "avg_f1"
    trainer.save_model(str(target))
    io.save_parameters_to_yaml(builder, trainer, data, str(target / "model_config.yaml"))


def _train(config: dict[str, Any], data: Any, target: Path) -> None:
    from monai.losses import TverskyLoss
    from octopi import workflows

    loss = TverskyLoss(include_background=True, to_onehot_y=True, softmax=True, alpha=0.3, beta=0.7)
    workflows.train(
        data,
        loss,
        batch_size=2,
        model_config=config,
        model_save_path=str(target),
        num_epochs=2,
        val_interval=1,
        best_metric="avg_f1",
    )


def _write_logits(builder: Any, target: Path) -> None:
    import numpy as np
    import torch

    tomogram = torch.randn(1, 1, SIZE, SIZE, SIZE)
    with torch.inference_mode():
        logits = builder.model.eval()(tomogram)
    np.savez(target / LOGITS, tomogram=tomogram.numpy(), logits=logits.numpy())


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        make_models(sys.argv[1], Path(sys.argv[2]))
