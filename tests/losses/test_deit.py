import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

import limbeck
from limbeck.data.door import open_data
from limbeck.distiller import Distiller
from limbeck.errors import UserError
from limbeck.losses import DeiT, hard_distillation_loss, kd_loss
from limbeck.models import VisionModel, load_model
from limbeck.models.cifar import create
from limbeck.outputs import Request

DISTILLED = "deit_tiny_distilled_patch16_224(depth=2, embed_dim=48, num_heads=3, patch_size=8)"
WITHOUT = "deit_tiny_patch16_224(depth=2, embed_dim=48, num_heads=3, patch_size=8)"


def opened(name: str = DISTILLED, size: int = 32, seed: int = 1) -> VisionModel:
    model = load_model(name, pretrained=False, num_classes=7, input_size=(size, size))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def pair() -> tuple[VisionModel, VisionModel]:
    return opened("limbeck:resnet8"), opened()


IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
TARGET = torch.tensor([0, 3, 6, 1])


def test_hard_is_the_mean_log_probability_of_the_teachers_class() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, 6, generator=generator, dtype=torch.float64)
    expected = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        likeliest = max(range(6), key=lambda i: t[i])
        expected -= math.log(math.exp(s[likeliest]) / sum(map(math.exp, s))) / 5
    assert hard_distillation_loss(student, teacher).item() == pytest.approx(expected, rel=1e-12)
    # Whatever the teacher is sure of beyond its first answer does not count.
    assert torch.equal(hard_distillation_loss(student, 9 * teacher), hard_distillation_loss(student, teacher))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    student, teacher = torch.randn(2, 5, 6).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = hard_distillation_loss(student, teacher)
    torch.testing.assert_close(loss, hard_distillation_loss(student.float(), teacher.float()), rtol=0, atol=0)


def test_without_a_token_it_is_kd_at_temperature_one_or_a_second_label(plain, make_outputs) -> None:
    hard, soft = DeiT(plain(), plain()), DeiT(plain(), plain(), kind="soft", temperature=3.0)
    assert (hard.default_weight, hard.default_task_weight, hard.token) == (0.5, 0.5, False)
    own, other = make_outputs(plain(), hard.student_request), make_outputs(plain(), hard.teacher_request, seed=1)
    torch.testing.assert_close(soft(own, other), kd_loss(own.logits, other.logits, 3.0), rtol=0, atol=0)
    value = hard(own, other)
    torch.testing.assert_close(value, F.cross_entropy(own.logits, other.logits.argmax(1)), rtol=0, atol=0)
    value.backward()
    assert own.logits.grad is not None
    assert other.logits.grad is None


def test_options_are_checked(plain) -> None:
    with pytest.raises(UserError, match="temperature is 0"):
        DeiT(plain(), plain(), temperature=0.0)
    with pytest.raises(UserError, match=r"token is True, but vit has no distillation token.*distilled network"):
        DeiT(plain(), plain(), token=True)
    with pytest.raises(UserError, match="class by class"):
        DeiT(plain(), plain(num_classes=3))


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("soft_labels", [False, True])
def test_each_head_learns_from_its_own_master(kind: str, soft_labels: bool) -> None:
    """With a token the total is ½ of the labels' on one head and ½ of the teacher's on the other."""
    teacher, student = pair()
    distiller = Distiller(teacher, student, f"deit(kind={kind})").eval()
    target = 0.7 * F.one_hot(TARGET, 7) + 0.3 * F.one_hot(TARGET.flip(0), 7) if soft_labels else TARGET
    terms, answers = distiller.student_step(IMAGES, target, distiller.teacher_step(IMAGES))
    with torch.no_grad():
        tokens = student.network.forward_features(student.prepare(IMAGES))
        own, distilled = student.network.head(tokens[:, 0]), student.network.head_dist(tokens[:, 1])
        taught = teacher(IMAGES).logits
    expected = F.cross_entropy(distilled, taught.argmax(1)) if kind == "hard" else kd_loss(distilled, taught, 1.0)
    torch.testing.assert_close(terms["task"], F.cross_entropy(own, target))
    torch.testing.assert_close(terms["deit"], expected)
    torch.testing.assert_close(terms["total"], 0.5 * F.cross_entropy(own, target) + 0.5 * expected)
    torch.testing.assert_close(answers, (own + distilled) / 2)

    heads = (student.network.head.weight, student.network.head_dist.weight)
    of_labels = torch.autograd.grad(terms["task"], heads, retain_graph=True, allow_unused=True)
    of_teacher = torch.autograd.grad(terms["deit"], heads, allow_unused=True)
    assert of_labels[0] is not None
    assert of_labels[1] is None
    assert of_teacher[0] is None
    assert of_teacher[1] is not None


def test_token_false_teaches_the_mean_of_both_heads() -> None:
    teacher, student = pair()
    distiller = Distiller(teacher, student, "deit(token=False)").eval()
    terms, answers = distiller.student_step(IMAGES, TARGET, distiller.teacher_step(IMAGES))
    torch.testing.assert_close(terms["task"], F.cross_entropy(answers, TARGET))
    torch.testing.assert_close(terms["deit"], hard_distillation_loss(answers, teacher(IMAGES).logits))


def test_losses_beside_it_read_the_mean_of_both_heads() -> None:
    teacher, student = pair()
    distiller = Distiller(teacher, student, "deit+kd").eval()
    terms, answers = distiller.student_step(IMAGES, TARGET, distiller.teacher_step(IMAGES))
    torch.testing.assert_close(terms["kd"], kd_loss(answers, teacher(IMAGES).logits))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        (DISTILLED, 32),
        ("levit_128s", 224),
        ("pit_ti_distilled_224", 224),
        ("efficientformer_l1", 224),
    ],
)
def test_timms_two_heads_are_read_apart_and_the_answer_stays_its_mean(name: str, size: int) -> None:
    model = opened(name, size)
    assert model.facts.has_distillation_token
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        model.eval()
        whole, apart = model(images), model(images, Request(heads=True, pooled=True))
        assert whole.class_logits is None
        torch.testing.assert_close(apart.logits, whole.logits)
        torch.testing.assert_close((apart.class_logits + apart.distilled_logits) / 2, whole.logits)
        # timm tells the two heads apart in training only; batch norms and stochastic depth are kept out of the comparison.
        model.network.set_distilled_training(True)
        model.network.training = True
        own, distilled = model.network(model.prepare(images))
    torch.testing.assert_close(apart.class_logits, own)
    torch.testing.assert_close(apart.distilled_logits, distilled)


@pytest.mark.parametrize("name", [WITHOUT, "limbeck:resnet8", "resnet18"])
def test_networks_with_one_head_have_none_to_read(name: str) -> None:
    model = opened(name).eval()
    assert not model.facts.has_distillation_token
    outputs = model(IMAGES, Request(heads=True))
    assert outputs.class_logits is None
    assert outputs.distilled_logits is None


def test_of_transformers_too() -> None:
    transformers = pytest.importorskip("transformers")
    from limbeck.models.transformers_models import from_config

    config = transformers.DeiTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    config.num_labels, config.architectures = 7, ["DeiTForImageClassificationWithTeacher"]
    preparation = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "input_size": (32, 32)}
    model = from_config(config, text="hf:deit", preparation=preparation).eval()
    assert type(model.network).__name__ == "DeiTForImageClassificationWithTeacher"
    assert model.facts.has_distillation_token
    with torch.no_grad():
        whole = model.network(model.prepare(IMAGES))
        outputs = model(IMAGES, Request(heads=True))
    assert torch.equal(outputs.class_logits, whole.cls_logits)
    assert torch.equal(outputs.distilled_logits, whole.distillation_logits)
    torch.testing.assert_close(outputs.logits, (whole.cls_logits + whole.distillation_logits) / 2)
    rebuilt = limbeck.models.rebuild(model.rebuild)
    assert rebuilt.facts.has_distillation_token


def test_what_a_run_saves_is_a_distilled_network_that_answers_with_the_mean(tmp_path: Path) -> None:
    weights = tmp_path / "teacher.safetensors"
    save_file(create("resnet8", 10, input_size=(8, 8)).state_dict(), weights)
    run = limbeck.distill(
        teacher=f"limbeck:resnet8@{weights}",
        student="deit_tiny_distilled_patch16_224(depth=2, embed_dim=24, num_heads=3, patch_size=4)",
        student_size=8,
        data="digits",
        method="deit",
        trust_teacher=True,
        teacher_size=8,
        mixup=0.8,
        label_smoothing=0.1,
        epochs=1,
        batch_size=128,
        max_train_images=256,
        num_workers=0,
        accelerator="cpu",
        out=str(tmp_path / "run"),
        progress=False,
        report=False,
        loggers=[],
    )
    model = limbeck.load_model(str(run.path)).eval()
    assert type(model.network).__name__ == "VisionTransformerDistilled"
    assert model.facts.has_distillation_token
    data = open_data("digits")
    images = torch.stack([torch.tensor(np.asarray(data.val.read(i))) for i in range(40)]).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        outputs = model(images, Request(heads=True))
    said: Tensor = torch.from_numpy(np.load(run.path / "predictions.npz")["student_logits"][:40])
    torch.testing.assert_close((outputs.class_logits + outputs.distilled_logits) / 2, said, atol=1e-4, rtol=0)
    assert not torch.equal(outputs.class_logits, outputs.distilled_logits)
