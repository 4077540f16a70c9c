"""What a newcomer gets wrong is answered with one paragraph that names file, value, expectation and remedy."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import limbeck
from limbeck.errors import UserError
from limbeck.run import Run


def distil(teacher: str, tiny: dict[str, Any], tmp_path: Path, **options: Any) -> Run:
    defaults = {
        "student": "limbeck:resnet8",
        "student_size": 8,
        "epochs": 1,
        "out": str(tmp_path / "out"),
        "report": False,
    }
    return limbeck.distill(teacher=teacher, **{**defaults, **tiny, **options})


def test_an_untrained_teacher_is_near_chance(tiny: dict[str, Any], tmp_path: Path, teacher_run: Run) -> None:
    weights = tmp_path / "untrained.safetensors"
    torch.manual_seed(0)
    from limbeck.models.cifar import create

    save_file(create("resnet14", 10, input_size=(8, 8)).state_dict(), weights)
    with pytest.raises(UserError, match=r"near chance.*normalisation"):
        distil(f"limbeck:resnet14@{weights}", tiny, tmp_path, teacher_size=8)
    assert not (tmp_path / "out" / "checkpoints").exists(), "it stopped before training"


def test_a_teacher_below_expectation_stops_and_trusting_it_goes_on(
    teacher_run: Run, tiny: dict[str, Any], tmp_path: Path
) -> None:
    # The teacher's own file of weights, with its classes shuffled: the renaming is found.
    weights = load_file(teacher_run.path / "model.safetensors")
    order = torch.tensor([1, 2, 3, 4, 5, 6, 7, 8, 9, 0])
    shuffled = {
        **weights,
        **{name: weights[name][order].contiguous() for name in ("classifier.weight", "classifier.bias")},
    }
    save_file(shuffled, tmp_path / "shuffled.safetensors")
    name = f"limbeck:resnet14@{tmp_path / 'shuffled.safetensors'}"
    with pytest.raises(
        UserError, match=r"Tried out: with the classes in another order \d+\.\d % \(this is probably what is wrong\)"
    ):
        distil(name, tiny, tmp_path, teacher_size=8, teacher_accuracy=0.95)
    assert distil(name, tiny, tmp_path, teacher_size=8, trust_teacher=True).summary["teacher_accuracy"] < 0.3


def test_labels_outside_the_teachers_classes(
    teacher_run: Run, photos: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"10 classes.*4"):
        distil(str(teacher_run.path), {**tiny, "data": str(photos)}, tmp_path)
    with pytest.raises(UserError, match=r"10 classes.*4"):
        limbeck.evaluate(str(teacher_run.path), data=str(photos))


def test_classes_in_another_order_are_named(photos: Path, tiny: dict[str, Any], tmp_path: Path) -> None:
    teacher = limbeck.train(
        model="limbeck:resnet8",
        input_size=16,
        epochs=1,
        out=str(tmp_path / "t"),
        report=False,
        **{**tiny, "data": str(photos)},
    )
    renamed = tmp_path / "renamed"
    for number in range(4):
        place = renamed / f"class_{number}"
        place.parent.mkdir(exist_ok=True)
        place.symlink_to(photos / f"digit_{number}")
    with pytest.raises(UserError, match=r"class 0 is 'digit_0'.*'class_0'"):
        distil(str(teacher.path), {**tiny, "data": str(renamed)}, tmp_path)


def test_a_truncated_image_stops_by_name_or_is_skipped_and_counted(
    photos: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    import shutil

    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    victim = folder / "digit_1" / "broken.png"
    whole = next((folder / "digit_1").glob("*.png")).read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    options = {**tiny, "data": str(folder)}
    train = {"model": "limbeck:resnet8", "input_size": 16, "epochs": 1, "report": False}
    with pytest.raises(UserError, match=r"broken\.png"):
        limbeck.train(out=str(tmp_path / "stop"), **train, **options)
    run = limbeck.train(out=str(tmp_path / "skip"), bad_images="skip", **train, **options)
    assert any("broken.png" in str(note) or "1 image" in note for note in run.summary["notes"])


def test_an_empty_class_folder_is_named(photos: Path, tiny: dict[str, Any], tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "digit_9").mkdir()
    with pytest.raises(UserError, match="digit_9"):
        limbeck.train(model="limbeck:resnet8", epochs=1, out=str(tmp_path / "o"), **{**tiny, "data": str(folder)})


@pytest.mark.parametrize("mode", ["L", "CMYK", "I;16", "P", "RGBA"])
def test_images_of_every_mode_are_predicted_like_their_rgb_twin(mode: str, student_run: Run, tmp_path: Path) -> None:
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4)
    if mode == "I;16":
        other = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    elif mode == "CMYK":
        other = grey.convert("RGB").convert("CMYK")
    else:
        other = grey.convert("RGB").convert(mode)
    for folder, image in (("rgb", grey.convert("RGB")), ("other", other)):
        (tmp_path / folder).mkdir()
        image.save(tmp_path / folder / "x.tiff")
    answers = [
        limbeck.predict(str(student_run.path), str(tmp_path / folder), out=str(tmp_path / "p" / folder))[0]["answers"]
        for folder in ("rgb", "other")
    ]
    assert answers[0][0][0] == answers[1][0][0]
    assert answers[0][0][1] == pytest.approx(answers[1][0][1], abs=0.02)


def test_a_pickle_posing_as_weights_is_refused_unread(teacher_run: Run, tiny: dict[str, Any], tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (marker,))

    for name in ("trap.safetensors", "trap.pth"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        with pytest.raises(UserError, match=name):
            distil(f"limbeck:resnet14@{tmp_path / name}", tiny, tmp_path)
    assert not marker.exists()


def test_weights_of_another_model_are_refused_with_examples(
    teacher_run: Run, tiny: dict[str, Any], tmp_path: Path
) -> None:
    weights = teacher_run.path / "model.safetensors"
    with pytest.raises(UserError, match=r"(?s)model\.safetensors.*(missing|unexpected|shape)"):
        distil(f"limbeck:vgg8@{weights}", tiny, tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"teacher": "runs/nowhere"}, "runs/nowhere"),
        ({"student": "limbeck:resnet21"}, "resnet20"),
        ({"student": "deit_tinny_patch16_224"}, "deit_tiny_patch16_224"),
        ({"method": "reviewkdd"}, "reviewkd"),
        ({"method": "kd(temprature=2)"}, "temperature"),
        ({"data": "no_such_folder"}, "no_such_folder"),
    ],
)
def test_misspelt_names_are_answered_with_the_right_ones(
    options: dict[str, Any], words: str, teacher_run: Run, tiny: dict[str, Any], tmp_path: Path
) -> None:
    arguments = {"teacher": str(teacher_run.path), **options}
    with pytest.raises((UserError, FileNotFoundError), match=words):
        distil(arguments.pop("teacher"), tiny, tmp_path, **arguments)
