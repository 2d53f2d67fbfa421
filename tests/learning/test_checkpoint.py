"""Checkpoints: whole, of this training, or not there."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch

from support.project import largest_file
from tomoscout.learning.checkpoint import Checkpoint
from tomoscout.machine.errors import TomoscoutError

torch.set_num_threads(1)


def state(step: int = 3) -> dict[str, Any]:
    torch.manual_seed(step)
    network = torch.nn.Linear(4, 2)
    return {
        "network": network.state_dict(),
        "optimiser": torch.optim.AdamW(network.parameters()).state_dict(),
        "progression": {"step": step, "history": [{"step": 1, "loss": 0.5}], "best_score": float("-inf")},
    }


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return Checkpoint(tmp_path / "model/checkpoint.pt", "abc", 0)


def step_of(checkpoint: Checkpoint) -> int | None:
    """The step that a training would go on from."""
    loaded = checkpoint.load()
    return loaded and loaded["progression"]["step"]


def files(checkpoint: Checkpoint) -> set[str]:
    return {path.name for path in checkpoint.path.parent.iterdir()}


def test_round_trip(checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    saved = state()
    checkpoint.save(saved)
    loaded = checkpoint.load()
    assert loaded is not None
    assert loaded["progression"] == saved["progression"]
    assert loaded["optimiser"] == saved["optimiser"]
    for name, value in saved["network"].items():
        assert torch.equal(loaded["network"][name], value)
    assert files(checkpoint) == {"checkpoint.pt"}
    assert capsys.readouterr().err == ""


def test_the_last_one_is_kept_beside_the_new_one(checkpoint: Checkpoint) -> None:
    for step in (3, 4, 5):
        checkpoint.save(state(step))
    assert step_of(checkpoint) == 5
    assert files(checkpoint) == {"checkpoint.pt", "checkpoint.previous.pt"}
    checkpoint.path.unlink()
    assert step_of(checkpoint) == 4
    checkpoint.save(state(6))
    assert step_of(checkpoint) == 6
    checkpoint.remove_previous()
    checkpoint.remove_previous()
    assert files(checkpoint) == {"checkpoint.pt"}
    assert step_of(checkpoint) == 6


def test_none_there(checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    assert checkpoint.load() is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("previous", [True, False])
def test_a_truncated_file_is_reported_and_passed_over(
    checkpoint: Checkpoint, previous: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if previous:
        checkpoint.save(state(3))
    checkpoint.save(state(4))
    content = checkpoint.path.read_bytes()
    for length in [*range(0, len(content), 97), len(content) - 1]:
        checkpoint.path.write_bytes(content[:length])
        assert step_of(checkpoint) == (3 if previous else None)
        message = capsys.readouterr().err
        assert message.startswith(f"warning: {checkpoint.path}: damaged checkpoint, not used")
        assert message.count("\n") == 1
    checkpoint.path.write_bytes(content)
    assert step_of(checkpoint) == 4


def test_both_damaged(checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.save(state(3))
    checkpoint.save(state(4))
    for path in (checkpoint.path, checkpoint.previous):
        path.write_bytes(path.read_bytes()[:500])
    assert checkpoint.load() is None
    message = capsys.readouterr().err
    assert f"{checkpoint.path}: damaged" in message
    assert f"{checkpoint.previous}: damaged" in message


def test_one_changed_byte_changes_no_number(checkpoint: Checkpoint) -> None:
    checkpoint.save(state(3))
    checkpoint.save(state(4))
    content = checkpoint.path.read_bytes()
    expected = {step: state(step) for step in (3, 4)}
    fallen_back = 0
    for place in range(0, len(content), 5):
        checkpoint.path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        loaded = checkpoint.load()
        assert loaded is not None
        step = loaded["progression"]["step"]
        fallen_back += step == 3
        assert loaded["progression"] == expected[step]["progression"]
        assert loaded["optimiser"] == expected[step]["optimiser"]
        for name, value in expected[step]["network"].items():
            assert torch.equal(loaded["network"][name], value)
    # What is between the records, and names no reader looks at, can change unseen.
    assert fallen_back > 150


def test_a_file_of_something_else_is_passed_over(checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.path.parent.mkdir()
    checkpoint.path.write_text("not a checkpoint at all")
    assert checkpoint.load() is None
    assert "damaged checkpoint" in capsys.readouterr().err
    for other in ({"network": {}}, [1, 2]):
        torch.save(other, checkpoint.path)
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
    other = Checkpoint(checkpoint.path, "abd", 0)
    assert other.load() is None
    assert "checkpoint of other settings or data, not used" in capsys.readouterr().err
    other.save(state(9))
    assert step_of(other) == 9
    # Back to the old settings: what was done for them is still there.
    assert step_of(checkpoint) == 3


@pytest.mark.parametrize("size", [0, 100, 50_000])
def test_a_file_too_large_keeps_the_earlier_ones(checkpoint: Checkpoint, size: int) -> None:
    checkpoint.save(state(2))
    checkpoint.save(state(3))
    before = {path: path.read_bytes() for path in checkpoint.path.parent.iterdir()}
    large = {**state(4), "best_weights": torch.zeros(100_000)}
    message = r"checkpoint\.pt: the checkpoint cannot be written \(File too large\); make room"
    with largest_file(size), pytest.raises(TomoscoutError, match=message):
        checkpoint.save(large)
    assert {path: path.read_bytes() for path in checkpoint.path.parent.iterdir()} == before
    assert step_of(checkpoint) == 3
    checkpoint.save(large)
    assert step_of(checkpoint) == 4


@pytest.mark.parametrize("values", [1, 1_000_000])
def test_a_full_disk_keeps_the_earlier_ones(checkpoint: Checkpoint, values: int) -> None:
    checkpoint.save(state(2))
    checkpoint.save(state(3))
    before = {path: path.read_bytes() for path in checkpoint.path.parent.iterdir()}
    # The new file is begun on a device that is always full.
    checkpoint.path.with_name(".checkpoint.pt.tmp").symlink_to("/dev/full")
    with pytest.raises(TomoscoutError, match=r"checkpoint\.pt: .* \(No space left on device\); make room"):
        checkpoint.save({**state(4), "best_weights": torch.zeros(values)})
    assert {path: path.read_bytes() for path in checkpoint.path.parent.iterdir()} == before
    checkpoint.save(state(4))
    assert step_of(checkpoint) == 4


class PowerCut(BaseException):
    """Ends the process without any chance to write anything."""


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_killed_around_the_renames(
    checkpoint: Checkpoint, renames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(state(2))
    checkpoint.save(state(3))
    replace, done = Path.replace, []
    left_behind = tmp_path / "left behind"

    def cut_off(source: Path, target: Path) -> Path:
        if len(done) == renames:
            # The new file stays under its temporary name: nobody is left to delete it.
            temporary = checkpoint.path.with_name(".checkpoint.pt.tmp")
            left_behind.write_bytes(temporary.read_bytes())
            raise PowerCut
        done.append(target)
        return replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", cut_off)
        with pytest.raises(PowerCut) if renames < 2 else contextlib.nullcontext():
            checkpoint.save(state(4))
    if left_behind.exists():
        replace(left_behind, checkpoint.path.with_name(".checkpoint.pt.tmp"))
    assert step_of(checkpoint) == (3 if renames < 2 else 4)
    checkpoint.save(state(5))
    assert step_of(checkpoint) == 5
    assert files(checkpoint) == {"checkpoint.pt", "checkpoint.previous.pt"}


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("a file where the folder should be")
    with pytest.raises(TomoscoutError, match=r"model/checkpoint\.pt: the checkpoint cannot be written"):
        Checkpoint(tmp_path / "model/checkpoint.pt", "abc", 0).save(state())


def test_due_after_its_time(tmp_path: Path) -> None:
    assert Checkpoint(tmp_path / "a.pt", "abc", 0).is_due()
    assert not Checkpoint(tmp_path / "a.pt", "abc", 1e9).is_due()
