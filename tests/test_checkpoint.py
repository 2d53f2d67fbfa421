"""Checkpoints: whole, of this training, or not there."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tomoscout.checkpoint import Checkpoint
from tomoscout.errors import TomoscoutError

torch.set_num_threads(1)


def state(step: int = 3) -> dict:
    network = torch.nn.Linear(4, 2)
    return {
        "network": network.state_dict(),
        "optimiser": torch.optim.AdamW(network.parameters()).state_dict(),
        "progression": {"step": step, "history": [{"step": 1, "loss": 0.5}], "best_score": float("-inf")},
    }


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return Checkpoint(tmp_path / "model/checkpoint.pt", "abc", 0)


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to let files grow beyond `size` bytes, as a full disk would."""
    earlier = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, earlier[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, earlier)


def test_round_trip(checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    saved = state()
    checkpoint.save(saved)
    loaded = checkpoint.load()
    assert loaded is not None
    assert loaded["progression"] == saved["progression"]
    assert loaded["optimiser"] == saved["optimiser"]
    for name, value in saved["network"].items():
        assert torch.equal(loaded["network"][name], value)
    checkpoint.save(state(step=4))
    assert checkpoint.load()["progression"]["step"] == 4
    assert [path.name for path in checkpoint.path.parent.iterdir()] == ["checkpoint.pt"]
    assert capsys.readouterr().err == ""


def test_none_there(checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    assert checkpoint.load() is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_reported_and_passed_over(
    checkpoint: Checkpoint, kept: float, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint.save(state())
    content = checkpoint.path.read_bytes()
    checkpoint.path.write_bytes(content[: int(kept * len(content))])
    assert checkpoint.load() is None
    message = capsys.readouterr().err
    assert message.startswith(f"warning: {checkpoint.path}: damaged checkpoint, starting afresh")
    assert message.count("\n") == 1


def test_a_file_of_something_else_is_passed_over(checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.path.parent.mkdir()
    checkpoint.path.write_text("not a checkpoint at all")
    assert checkpoint.load() is None
    assert "damaged checkpoint" in capsys.readouterr().err


def test_nothing_in_a_checkpoint_is_executed(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Harmful:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "executed",))

    checkpoint.path.parent.mkdir()
    torch.save({"fingerprint": "abc", "network": Harmful()}, checkpoint.path)
    assert checkpoint.load() is None
    assert not (tmp_path / "executed").exists()
    assert "damaged checkpoint" in capsys.readouterr().err


def test_a_checkpoint_of_another_training_is_not_taken_up(
    checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint.save(state())
    assert Checkpoint(checkpoint.path, "abd", 0).load() is None
    assert "other settings or data, starting afresh" in capsys.readouterr().err
    assert checkpoint.load() is not None


def test_a_failed_save_keeps_the_earlier_file(checkpoint: Checkpoint) -> None:
    checkpoint.save(state())
    before = checkpoint.path.read_bytes()
    large = {**state(4), "best_weights": torch.zeros(100_000)}
    message = r"checkpoint\.pt: the checkpoint cannot be written \(.*too large"
    with largest_file(50_000), pytest.raises(TomoscoutError, match=message):
        checkpoint.save(large)
    assert checkpoint.path.read_bytes() == before
    assert [path.name for path in checkpoint.path.parent.iterdir()] == ["checkpoint.pt"]
    checkpoint.save(large)
    assert checkpoint.load()["progression"]["step"] == 4


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("a file where the folder should be")
    with pytest.raises(TomoscoutError, match=r"model/checkpoint\.pt: the checkpoint cannot be written"):
        Checkpoint(tmp_path / "model/checkpoint.pt", "abc", 0).save(state())


def test_due_after_its_time(tmp_path: Path) -> None:
    assert Checkpoint(tmp_path / "a.pt", "abc", 0).is_due()
    assert not Checkpoint(tmp_path / "a.pt", "abc", 1e9).is_due()
