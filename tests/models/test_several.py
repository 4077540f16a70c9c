"""Several models as one teacher: their joint probabilities, what each is asked, their names and their papers."""

from pathlib import Path

import pytest
import torch

from limbeck.distiller import Distiller
from limbeck.errors import UserError
from limbeck.models import load_model
from limbeck.models.names import split_model_names
from limbeck.models.several import SeveralModels, load_teacher, log_mean_probability
from limbeck.outputs import Request
from limbeck.verbs.model_card import origin_lines
from limbeck.verbs.names import refuse_several_without_data
from limbeck.verbs.provenance import of_model
from limbeck.verbs.results import count_macs, count_parameters


def two(classes: tuple[int, int] = (5, 5)) -> SeveralModels:
    torch.manual_seed(0)
    names, sides = ("limbeck:resnet8", "limbeck:resnet14"), (8, 16)
    return SeveralModels(
        [load_model(n, num_classes=k, input_size=(s, s)) for n, k, s in zip(names, classes, sides, strict=True)]
    ).eval()


def test_the_joint_answer_is_the_mean_of_probabilities() -> None:
    logits = [torch.randn(4, 3, dtype=torch.float64), 50 * torch.randn(4, 3, dtype=torch.float64)]
    mean = (logits[0].softmax(1) + logits[1].softmax(1)) / 2
    joint = log_mean_probability(logits)
    torch.testing.assert_close(joint.exp(), mean)
    torch.testing.assert_close(joint.softmax(1), mean)
    torch.testing.assert_close(log_mean_probability(logits[:1]), logits[0].log_softmax(1))
    assert log_mean_probability([of.half() for of in logits]).dtype == torch.float32


def test_each_sees_the_images_and_answers_its_own_request() -> None:
    teachers, images = two(), torch.rand(2, 3, 12, 12)
    asked = Request(members=(Request(pooled=True), Request(("stages.1",), final=True)))
    with torch.no_grad():
        outputs = teachers(images, asked)
        alone = [model(images, own) for model, own in zip(teachers.members, asked.members, strict=True)]
        bare = teachers(images)
    torch.testing.assert_close(outputs.logits.exp(), sum(of.logits.softmax(1) for of in alone) / 2)
    torch.testing.assert_close(bare.logits, outputs.logits)
    assert torch.equal(outputs.members[0].pooled, alone[0].pooled) and outputs.members[0].final is None
    assert torch.equal(outputs.members[1].maps["stages.1"], alone[1].maps["stages.1"])
    assert teachers.facts.name == "limbeck:resnet8 + limbeck:resnet14"
    assert (teachers.facts.num_classes, teachers.facts.input_size, teachers.facts.levels) == (5, (16, 16), ())
    assert [facts.input_size for facts in teachers.facts.members] == [(8, 8), (16, 16)]


def test_unequal_classes_leave_no_joint_answer() -> None:
    teachers = two((5, 7))
    assert teachers.facts.num_classes == 0
    outputs = teachers(torch.rand(2, 3, 12, 12))
    assert outputs.logits.shape == (2, 0)
    assert [of.logits.shape[1] for of in outputs.members] == [5, 7]


def test_names_are_joined_by_a_plus_between_spaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a + b").mkdir()
    (tmp_path / "w + x.pt").touch()
    assert split_model_names("a + b") == ("a + b",)
    assert split_model_names(f"hf:{tmp_path}/a + b") == (f"hf:{tmp_path}/a + b",)
    assert split_model_names("resnet18@w + x.pt") == ("resnet18@w + x.pt",)
    assert split_model_names("a+b") == ("a+b",)
    assert split_model_names("a(x='c + d')  +  b + c@d.pt") == ("a(x='c + d')", "b", "c@d.pt")
    with pytest.raises(UserError, match="lacks a name"):
        split_model_names("a +  + b")
    with pytest.raises(UserError, match=r"images for one teacher.*names 2"):
        refuse_several_without_data("c + d")


def test_one_name_opens_the_model_itself() -> None:
    assert not isinstance(load_teacher("limbeck:resnet8"), SeveralModels)
    opened = load_teacher("limbeck:resnet8 + limbeck:resnet14", input_size=(8, 8))
    assert isinstance(opened, SeveralModels)
    assert [facts.input_size for facts in opened.facts.members] == [(8, 8), (8, 8)]


def test_numbers_licences_and_sources_are_of_all() -> None:
    teachers = two()
    assert count_parameters(teachers) == sum(count_parameters(model) for model in teachers.members)
    assert count_macs(teachers) == sum(count_macs(model) for model in teachers.members)
    teachers.members[0].provenance.licence, teachers.members[1].provenance.licence = "mit", "cc-by-nc-4.0"
    teachers = SeveralModels(teachers.members)
    assert teachers.provenance.licence == "limbeck:resnet8: mit; limbeck:resnet14: cc-by-nc-4.0"
    assert [of["licence"] for of in of_model(teachers)["members"]] == ["mit", "cc-by-nc-4.0"]
    card = "\n".join(origin_lines(teachers, "s", teachers.members[0].provenance, "unic"))
    assert "| teacher | limbeck:resnet8 | mit |" in card and "| teacher | limbeck:resnet14 | cc-by-nc-4.0 |" in card


@pytest.mark.parametrize("method", ["kd", "unic(hidden=8, last_hidden=8)", "kd+unic(hidden=8, last_hidden=8)"])
def test_a_step_trains_the_student_and_no_teacher(method: str) -> None:
    teachers, student = two(), load_model("limbeck:resnet8", num_classes=5, input_size=(8, 8))
    distiller = Distiller(teachers, student, method, task_loss=None)
    images = torch.rand(4, 3, 12, 12)
    distiller.calibrate(lambda: images.split(2))
    before = {name: value.clone() for name, value in teachers.state_dict().items()}
    distiller.train()
    terms = distiller(images)
    terms["total"].backward()
    assert not teachers.training and not any(model.training for model in teachers.members)
    assert all(p.grad is None for p in teachers.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teachers.state_dict().items())
    reached = [p for name, p in student.named_parameters() if p.grad is not None and p.grad.abs().max() > 0]
    assert len(reached) > 5
    if "kd" in method:
        expected = distiller.distillation_losses["kd"]
        assert torch.isfinite(terms["kd"]) and expected.on_logits


def test_kd_learns_from_the_mean_probabilities() -> None:
    teachers, student = two(), load_model("limbeck:resnet8", num_classes=5, input_size=(8, 8))
    distiller = Distiller(teachers, student, "kd(temperature=1.0)", task_loss=None).eval()
    images = torch.rand(4, 3, 12, 12)
    with torch.no_grad():
        mean = sum(model(images).logits.softmax(1) for model in teachers.members) / 2
        own = student(images).logits.log_softmax(1)
        expected = (mean * (mean.log() - own)).sum(1).mean()
        torch.testing.assert_close(distiller(images)["kd"], expected)
