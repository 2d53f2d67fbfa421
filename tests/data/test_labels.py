"""Labels inside a training are 1 to C; on disk they are copick's."""

from __future__ import annotations

import copick
import numpy as np
import pytest

from support.project import SHAPE, SmallProject, error_of, succeeded
from tomoscout.data.labels import from_stored, label_type, stored_labels, to_stored
from tomoscout.machine.errors import TomoscoutError
from tomoscout.plan.plan import Plan

STORED = {"ribosome": 7, "ferritin": 1, "membrane": 300}


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int64])
def test_labels_come_back(kind: type) -> None:
    labels = np.random.default_rng(0).integers(0, 3, SHAPE).astype(kind)
    stored = to_stored(labels, {"ribosome": 7, "ferritin": 1})
    assert stored.dtype == np.uint8
    np.testing.assert_array_equal(stored, np.array([0, 7, 1])[labels])
    np.testing.assert_array_equal(from_stored(stored.astype(kind), {"ribosome": 7, "ferritin": 1}, "it"), labels)


def test_large_labels_take_two_bytes() -> None:
    assert to_stored(np.arange(4), STORED).tolist() == [0, 7, 1, 300]
    assert to_stored(np.arange(4), STORED).dtype == np.uint16
    assert [label_type(largest) for largest in (1, 255, 256)] == [np.uint8, np.uint8, np.uint16]


@pytest.mark.parametrize("value", [2, 8, 301, -1, 70_000])
def test_a_value_that_is_no_label_is_refused(value: int) -> None:
    volume = np.zeros((2, 2, 2), dtype=np.int64)
    volume[1, 1, 1] = value
    expected = rf"^it: holds the label {value}, expected 0 for background or 7 ribosome, 1 ferritin, 300 membrane$"
    with pytest.raises(TomoscoutError, match=expected):
        from_stored(volume, STORED, "it")


def test_a_mask_is_a_label_volume_of_ones() -> None:
    mask = np.array([[[True, False]]])
    assert from_stored(mask, {"ribosome": 1}, "it").tolist() == [[[1, 0]]]
    with pytest.raises(TomoscoutError, match="it: holds float32, expected whole numbers"):
        from_stored(mask.astype(np.float32), {"ribosome": 1}, "it")


def test_a_class_without_a_label_gets_one_above_all(small: SmallProject) -> None:
    assert stored_labels(small.copick, ["ribosome", "vesicle", "actin"]) == {"ribosome": 7, "vesicle": 10, "actin": 11}


def test_two_classes_of_one_label_are_refused(small: SmallProject) -> None:
    entries = [{**entry, "label": 4} for entry in small.objects]
    small.write_copick_config(pickable_objects=entries)
    assert stored_labels(small.copick, ["ribosome"]) == {"ribosome": 4}
    with pytest.raises(TomoscoutError, match="'ribosome' and 'ferritin' have one label, 4; expected two"):
        stored_labels(small.copick, ["ribosome", "ferritin"])


def test_other_programs_read_the_right_objects_from_targets(small: SmallProject) -> None:
    small.add_run("a")
    places = {"ribosome": (120.0, 100.0, 100.0), "ferritin": (300.0, 200.0, 100.0)}
    for name, place in places.items():
        small.add_picks("a", f"{name}:expert/0", [place])
    small.configure(targets={"picks": ["ribosome", "ferritin"]})
    succeeded(small.make_targets())
    root = copick.from_file(str(small.copick))
    volume = root.get_run("a").get_segmentations(name="targets")[0].numpy()
    by_label = {entry.label: entry.name for entry in root.pickable_objects}
    for name, (x, y, z) in places.items():
        assert by_label[int(volume[round(z / 10), round(y / 10), round(x / 10)])] == name


def test_another_label_in_the_copick_config_makes_targets_again(small: SmallProject) -> None:
    small.add_run("a")
    small.add_picks("a", "ribosome:expert/0", [(100.0, 100.0, 100.0)])
    succeeded(small.make_targets())
    entries = [{"color": [1, 2, 3, 255], **entry} for entry in small.objects]
    entries[0] |= {"label": 5}
    small.write_copick_config(pickable_objects=entries)
    succeeded(small.make_targets())
    volume = copick.from_file(str(small.copick)).get_run("a").get_segmentations(name="targets")[0].numpy()
    assert set(np.unique(volume)) == {0, 5}


# A multilabel segmentation that is there already


def existing(small: SmallProject, values: dict[str, int]) -> np.ndarray:
    """A segmentation by somebody else, with a ribosome, a ferritin and a membrane."""
    volume = np.zeros(SHAPE, dtype=np.uint8)
    volume[8:13, 8:13, 8:13] = values["ribosome"]
    volume[8:12, 20:24, 30:34] = values["ferritin"]
    volume[20:22] = values["membrane"]
    small.add_run("a")
    folder = small.add_segmentation("a", "targets:octopi/1", volume)
    folder.rename(folder.with_name("10.000_octopi_1_targets-multilabel.zarr"))
    small.add_picks("a", "ribosome:expert/0", [(100.0, 100.0, 100.0)])
    small.add_picks("a", "ferritin:expert/0", [(315.0, 215.0, 95.0)])
    return volume


@pytest.mark.parametrize("given", [True, False])
def test_a_target_that_is_there_is_taken_with_its_labels(small: SmallProject, given: bool) -> None:
    values = {"ribosome": 1, "ferritin": 2, "membrane": 3} if given else {"ribosome": 7, "ferritin": 1, "membrane": 9}
    volume = existing(small, values)
    options = {"labels": values} if given else {"labels": {"membrane": 9}}
    small.configure(targets={"picks": ["ribosome", "ferritin"], "existing": "targets:octopi/1", **options})
    assert "'membrane' is learnt by its voxels alone" in str(plan(small).warnings)
    succeeded(small.make_targets())
    found = small.target("a")
    assert [entry["name"] for entry in found["classes"]] == ["ribosome", "ferritin", "membrane"]
    voxels = {entry["name"]: entry["voxels"] for entry in found["classes"]}
    assert voxels == {name: int((volume == value).sum()) for name, value in values.items()}
    assert found["existing"] == "targets:octopi/1@10.0?multilabel=true"
    assert found["classes"][0]["picks"]["without_voxels"] == 0
    stored = copick.from_file(str(small.copick)).get_run("a").get_segmentations(name="targets", user_id="tomoscout")[0]
    np.testing.assert_array_equal(stored.numpy() == 7, volume == values["ribosome"])


def test_names_are_taken_as_copick_writes_them(small: SmallProject) -> None:
    config = small.configure(targets={"picks": ["ribosome"], "existing": "my_targets:octopi/1"})
    assert config.targets.existing == "my-targets:octopi/1"
    for wrong in ("targets", "targets:octopi"):
        with pytest.raises(TomoscoutError, match=r"targets.existing: '"):
            small.configure(targets={"picks": ["ribosome"], "existing": wrong})


@pytest.mark.parametrize("existing", ["targets:tomoscout/1", "predicted:tomoscout/unet"])
def test_what_is_written_cannot_be_the_existing_target(small: SmallProject, existing: str) -> None:
    small.add_run("a")
    small.add_picks("a", "ribosome:expert/0", [(100.0, 100.0, 100.0)])
    folder = small.add_segmentation("a", existing, np.full(SHAPE, 7))
    folder.rename(folder.with_name(f"{folder.stem}-multilabel.zarr"))
    small.configure(targets={"picks": ["ribosome"], "existing": existing})
    assert f"{existing} is what targets reads" in error_of(small.make_targets())


def plan(small: SmallProject):

    return Plan(small.config, small.refresh()).targets


def test_picks_beside_the_voxels_of_their_class_are_told(small: SmallProject) -> None:
    existing(small, {"ribosome": 1, "ferritin": 7, "membrane": 9})
    small.configure(
        targets={"picks": ["ribosome", "ferritin"], "existing": "targets:octopi/1", "labels": {"membrane": 9}}
    )
    result = succeeded(small.make_targets())
    assert "ribosome: 1 of 1 picks do not lie on its voxels in targets:octopi/1@10.0?multilabel=true" in result.stderr


def test_a_value_of_no_class_in_the_existing_target(small: SmallProject) -> None:
    existing(small, {"ribosome": 7, "ferritin": 1, "membrane": 200})
    small.configure(targets={"picks": ["ribosome", "ferritin"], "existing": "targets:octopi/1"})
    message = error_of(small.make_targets())
    assert message.startswith(
        "demo/a: segmentation targets:octopi/1@10.0?multilabel=true: holds the label 200, expected 0"
    )


def test_an_existing_target_that_is_not_there(small: SmallProject) -> None:
    existing(small, {"ribosome": 7, "ferritin": 1, "membrane": 9})
    small.configure(targets={"picks": ["ribosome"], "existing": "labels:octopi/1"})
    assert error_of(small.make_targets()) == (
        "targets.existing: no multilabel segmentation labels:octopi/1 in any run; "
        "found: targets:octopi/1@10.0?multilabel=true"
    )
