"""Names of options in other programs, mainly octopi, and the corresponding options of tomoscout."""

from __future__ import annotations

_STEPS = "`train.steps`, counted in optimiser updates: octopi's epochs × training tomograms (15 at most count)"
_TILES = "nothing to set: as much is predicted at once as fits into memory, `segment.tile` at most"
_PICKS = "`targets.picks`: user/session, or a list of name:user/session"
_OUTPUT = "`targets.name`, `targets.user` and `targets.session` name what is written"
_PREDICTED = "`localize.user` and `localize.session` name what is written"
_REFERENCE = "`evaluate.reference`: user/session, or a list of name:user/session"
_SIZES = "`localize.smallest` and `localize.largest`, in radii of the object, for all objects or by object"
_SEGMENTATION = (
    f"{_PREDICTED}: segmentation predicted:user/session; `localize.segmentation` names one to make picks from"
)
_URI = "`tomograms`: kinds as algorithm@spacing in Å, such as wbp@10.0"
_RUNS = "`targets.runs`, `segment.runs`, or the lists of `split`"
_GPUS = "nothing to set: say how many there are with `--resources gpu=4` (README, your own data)"
_PATHS = "`--directory` says where results go, `train.name` names the model"
_CACHE = "nothing to set: every batch is drawn from all training tomograms; `train.memory_gb` limits what they take"
_BATCH = "`train.batch_size`: crops per step, drawn from all training tomograms"

ELSEWHERE: dict[str, str] = {
    "config": "`projects`: a name of yours for each copick config",
    "copick_config": "`projects`: a name of yours for each copick config",
    "copick_config_path": "`projects`: a name of yours for each copick config",
    "tomo_uri": _URI,
    "tomo_uris": _URI,
    "tomo_alg": _URI,
    "tomo_algorithm": _URI,
    "tomo_type": _URI,
    "target_tomo_type": _URI,
    "tomogram_type": _URI,
    "voxel_size": "a part of `tomograms`: the spacing in Å in wbp@10.0",
    "voxel_spacing": "a part of `tomograms`: the spacing in Å in wbp@10.0",
    "target": _PICKS,
    "picks_uri": _PICKS,
    "picks_user_id": _PICKS,
    "picks_session_id": _PICKS,
    "pick_objects": "`localize.objects`; `targets.picks` names those to learn",
    "seg_target": "`targets.segmentations`: a list of name:user/session",
    "target_uri": _OUTPUT,
    "target_name": _OUTPUT,
    "target_user_id": _OUTPUT,
    "target_session_id": _OUTPUT,
    "run_ids": _RUNS,
    "runids": _RUNS,
    "run_names": _RUNS,
    "data_split": "`split.ratios`",
    "trainrunids": "`split.train`: a list of runs",
    "validaterunids": "`split.validate`: a list of runs",
    "testrunids": "`split.test`: a list of runs",
    "num_folds": "`split.folds`",
    "n_folds": "`split.folds`",
    "num_epochs": _STEPS,
    "nepochs": _STEPS,
    "n_epochs": _STEPS,
    "max_epochs": _STEPS,
    "epochs": _STEPS,
    "iterations": "`train.steps`",
    "lr": "`train.learning_rate`",
    "lr0": "`train.learning_rate`",
    "optimizer": "nothing to set: AdamW, with `train.learning_rate` and `train.weight_decay`",
    "dim_in": "`train.patch`: voxels of a crop, z, y, x",
    "crop_size": "`train.patch`: voxels of a crop, z, y, x",
    "patch_size": "`train.patch`: voxels of a crop, z, y, x",
    "batch": _BATCH,
    "nbatch": _BATCH,
    "batchsize": _BATCH,
    "num_tomo_crops": _BATCH,
    "my_num_samples": _BATCH,
    "ncache_tomos": _CACHE,
    "tomo_batch_size": _CACHE,
    "num_workers": _CACHE,
    "val_interval": "`train.validate_every`, in steps: octopi's epochs × training tomograms (15 at most count)",
    "best_metric": "`train.best_metric`",
    "metric": "`train.best_metric`",
    "tversky_alpha": "`train.loss`: {name: Tversky, alpha: 0.3, beta: 0.7} (beta is 1 - alpha in octopi)",
    "loss_function": "`train.loss`",
    "loss_fn": "`train.loss`",
    "background_ratio": "`train.background_fraction`: crops drawn anywhere, of all (octopi's 1.0 is 0.5 here)",
    "bgr": "`train.background_fraction`: crops drawn anywhere, of all (octopi's 1.0 is 0.5 here)",
    "use_ema": "`train.ema_decay`; 0 turns it off",
    "random_seed": "`train.seed`, and `split.seed` for the split",
    "architecture": "`train.network.family`",
    "model_type": "`train.network.family`",
    "channels": "`train.network.channels`",
    "strides": "`train.network.strides`",
    "res_units": "`train.network.residual_units`",
    "num_res_units": "`train.network.residual_units`",
    "dropout": "`train.network.dropout`",
    "model_config": "`train.base` to train further from octopi's model_config.yaml, `segment.models` to apply models",
    "model_weights": "`train.base_weights`, beside octopi's model_config.yaml as `train.base`",
    "model_save_path": _PATHS,
    "save_path": _PATHS,
    "output": _PATHS,
    "output_dir": _PATHS,
    "model_name": "`train.name`",
    "num_trials": "`explore.trials`",
    "n_trials": "`explore.trials`",
    "study_name": "`explore.name`",
    "num_gpus": _GPUS,
    "gpus": _GPUS,
    "njobs": "nothing to set: a profile for Slurm makes each trial a job (README, on a Slurm cluster)",
    "n_procs": "nothing to set: `--cores` says how many cores there are",
    "seg_uri": _SEGMENTATION,
    "seg_info": _SEGMENTATION,
    "ntta": "`segment.flips`",
    "tta": "`segment.flips`",
    "swbs": _TILES,
    "sw_bs": _TILES,
    "sliding_window_batch_size": _TILES,
    "method": "`localize.method`: peaks, components or watershed, for all objects or by object",
    "filter_size": "`localize.separation`, in radii of the object: how near to each other two picks may be",
    "seg_label": "`localize.labels`: the value of each object in the segmentation",
    "radius_min_scale": _SIZES,
    "radius_max_scale": _SIZES,
    "pick_user_id": _PREDICTED,
    "pick_session_id": _PREDICTED,
    "save_user_id": _PREDICTED,
    "save_session_id": _PREDICTED,
    "predict_user_id": _PREDICTED,
    "predict_session_id": _PREDICTED,
    "ground_truth_user_id": _REFERENCE,
    "ground_truth_session_id": _REFERENCE,
    "distance_threshold_scale": "`evaluate.distance`, in radii",
    "distance_threshold": "`evaluate.distance`, in radii",
    "user_id": "`user`",
    "userid": "`user`",
    "session_id": "`session`",
    "sessionid": "`session`",
}
"""Name in lower case, with underscores for hyphens → advice. Options of tomoscout are in backquotes, with their whole
path."""


def name_here(key: str) -> str | None:
    """The advice for an option of another program; None for an unknown name."""
    return ELSEWHERE.get(key.lstrip("-").lower().replace("-", "_"))
