"""Options of the record in MLflow."""

from __future__ import annotations

from pydantic import ConfigDict, Field, field_validator

from tomoscout.machine.errors import without_passwords
from tomoscout.options.sections import Section


class Tracking(Section):
    """A record of every training in MLflow. Nothing that goes wrong here stops a training."""

    # An address may hold a password.
    model_config = ConfigDict(hide_input_in_errors=True)

    enabled: bool = True
    """Whether trainings are recorded."""
    uri: str | None = Field(default=None, min_length=1)
    """A tracking server, such as https://mlflow.example.org; MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in
    the environment log in. `$NAME`: the address that this variable of the environment holds, read only where MLflow is
    connected, so that a password in it is written nowhere. Default: the file `results/mlflow.db`, to look at with
    `mlflow ui --backend-store-uri sqlite:///results/mlflow.db`; a copy of the model folders, made again by `snakemake
    track` if it is lost."""
    experiment: str = Field(default="tomoscout", min_length=1)
    """Name of the experiment."""

    @field_validator("uri")
    @classmethod
    def _refuse_password(cls, value: str | None) -> str | None:
        """What stands in the configuration is copied into results, logs and messages."""
        if value is not None and without_passwords(value) != value:
            raise ValueError(
                "the address holds a user or a password; leave them out and set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD in the environment, or give $NAME for a variable with the whole address"
            )
        return value
