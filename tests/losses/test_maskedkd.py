import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import limbeck
from limbeck.distiller import Distiller
from limbeck.errors import UserError
from limbeck.losses import MaskedKD, attended_patches, kd_loss
from limbeck.models import VisionModel, load_model
from limbeck.models.attention import reading_attention
from limbeck.models.kept_patches import cannot_rank_patches, keeping_patches
from limbeck.outputs import Request

VIT = "vit_tiny_patch16_224(patch_size=8, embed_dim={}, depth=3, num_heads=2)"
IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
TARGET = torch.tensor([0, 3, 6, 1])


def opened(name: str, size: int = 32, seed: int = 1) -> VisionModel:
    model = load_model(name, pretrained=False, num_classes=7, input_size=(size, size))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def pair(teacher_size: int = 32) -> tuple[VisionModel, VisionModel]:
    return opened(VIT.format(32), teacher_size), opened(VIT.format(16), seed=3)


def slow_choice(student: VisionModel, count: int) -> list[set[int]]:
    """The patches by hand: of each picture, the class token's softmax in the last block, one head and key after another."""
    with torch.no_grad(), reading_attention(student) as found:
        student(IMAGES)
    query, key = found[-1].query.double(), found[-1].key.double()
    chosen = []
    for b in range(len(IMAGES)):
        scores = [0.0] * (key.shape[2] - 1)
        for head in range(query.shape[1]):
            products = [float(query[b, head, 0] @ k) * found[-1].scale for k in key[b, head]]
            whole = sum(torch.tensor(products, dtype=torch.float64).exp().tolist())
            for patch, product in enumerate(products[1:]):
                scores[patch] += float(torch.tensor(product, dtype=torch.float64).exp()) / whole / query.shape[1]
        order = sorted(range(len(scores)), key=lambda patch: -scores[patch])
        chosen.append(set(order[:count]))
    return chosen


def test_the_best_patches_of_each_picture() -> None:
    attention = torch.tensor([[[0.1, 0.4], [0.2, 0.3]], [[0.5, 0.0], [0.1, 0.05]]]).unsqueeze(0)
    assert attended_patches(attention, (2, 2), 1).tolist() == [[0]]
    assert attended_patches(attention, (2, 2), 3).tolist() == [[0, 1, 3]]
    assert attended_patches(attention[:, :1], (2, 2), 2).tolist() == [[1, 3]]


def test_attention_meets_another_grid_by_area_or_bilinearly() -> None:
    attention = torch.zeros(1, 1, 4, 4)
    attention[0, 0, 2:, 2:] = 1
    assert attended_patches(attention, (2, 2), 1).tolist() == [[3]]
    corner = F.interpolate(attention[:, :, ::2, ::2], (8, 8), mode="bilinear", align_corners=False)
    kept = attended_patches(attention[:, :, ::2, ::2], (8, 8), 9)[0].tolist()
    assert set(kept) == set(corner.flatten().topk(9).indices.tolist())


def test_no_gradient_flows_through_the_choice() -> None:
    attention = torch.rand(2, 3, 4, 4, requires_grad=True)
    assert not attended_patches(attention, (4, 4), 5).requires_grad


@pytest.mark.parametrize(
    "name", [VIT.format(16), "deit_tiny_distilled_patch16_224(depth=2, embed_dim=24, patch_size=8)"]
)
def test_attention_is_the_share_of_the_class_token_in_the_last_block(name: str) -> None:
    model = opened(name).eval()
    with torch.no_grad():
        outputs = model(IMAGES, Request(attention=True))
        block = model.network.blocks[-1]
        entered: list[Tensor] = []
        handle = block.attn.register_forward_pre_hook(lambda _, given: entered.append(given[0]))
        logits = model(IMAGES).logits
        handle.remove()
        batch, count, width = entered[0].shape
        heads = block.attn.num_heads
        q, k, _ = block.attn.qkv(entered[0]).reshape(batch, count, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        shares = (q @ k.transpose(-2, -1) * (width // heads) ** -0.5).softmax(-1)[:, :, 0, -16:]
    assert torch.equal(outputs.logits, logits)
    assert outputs.attention is not None
    assert outputs.attention.shape == (4, heads, 4, 4)
    torch.testing.assert_close(outputs.attention.flatten(2), shares)
    assert Request.union([Request(), Request(attention=True)]).attention
    assert model(IMAGES).attention is None


def test_the_teacher_sees_what_the_student_attends_to() -> None:
    """Equality with a teacher's pass on patches that were chosen by hand."""
    teacher, student = pair()
    distiller = Distiller(teacher, student, "maskedkd(keep=0.4)").eval()
    assert distiller.teacher_step(IMAGES) is None
    terms = distiller(IMAGES, TARGET)
    kept = torch.tensor([sorted(chosen) for chosen in slow_choice(student, 6)])
    with torch.no_grad(), keeping_patches(teacher, kept):
        taught = teacher(IMAGES).logits
    logits = student(IMAGES).logits
    torch.testing.assert_close(terms["maskedkd"], kd_loss(logits, taught, 1.0))
    assert not torch.allclose(terms["maskedkd"], kd_loss(logits, teacher(IMAGES).logits, 1.0))
    torch.testing.assert_close(terms["total"], 0.5 * F.cross_entropy(logits, TARGET) + 0.5 * terms["maskedkd"])


def test_the_teacher_computes_on_the_kept_patches_only() -> None:
    teacher, student = pair()
    counts: list[int] = []
    teacher.network.blocks[1].register_forward_pre_hook(lambda _, given: counts.append(given[0].shape[1]))
    distiller = Distiller(teacher, student, "maskedkd")
    counts.clear()
    distiller(IMAGES, TARGET)
    assert counts == [1 + 8], "once, with the class token and half of 16 patches"


@pytest.mark.parametrize("soft", [False, True])
def test_keeping_all_is_kd(soft: bool) -> None:
    teacher, student = pair()
    target = 0.6 * F.one_hot(TARGET, 7) + 0.4 * F.one_hot(TARGET.flip(0), 7) if soft else TARGET
    whole = Distiller(teacher, student, "maskedkd(keep=1.0)").eval()(IMAGES, target)
    kd = Distiller(teacher, student, "kd(temperature=1.0, weight=0.5)", task_weight=0.5).eval()(IMAGES, target)
    assert torch.equal(whole["maskedkd"], kd["kd"])
    assert torch.equal(whole["total"], kd["total"])


def test_losses_on_logits_beside_it_read_the_masked_teacher() -> None:
    teacher, student = pair()
    terms = Distiller(teacher, student, "kd(temperature=1.0)+maskedkd").eval()(IMAGES, TARGET)
    assert torch.equal(terms["kd"], terms["maskedkd"])


def test_another_grid_of_the_teacher() -> None:
    teacher, student = pair(teacher_size=64)
    distiller = Distiller(teacher, student, "maskedkd(keep=0.25)").eval()
    (loss,) = distiller.distillation_losses.values()
    assert loss.notes == (
        "the teacher is shown 16 of its 64 patches",
        "the student's attention on 4x4 patches is brought to the teacher's 8x8; published are equal grids",
    )
    attention = student(IMAGES, Request(attention=True)).attention
    with torch.no_grad(), keeping_patches(teacher, attended_patches(attention, (8, 8), 16)):
        taught = teacher(IMAGES).logits
    expected = kd_loss(student(IMAGES).logits, taught, 1.0)
    torch.testing.assert_close(distiller(IMAGES, TARGET)["maskedkd"], expected)


def test_two_steps_change_the_student_alone_and_measuring_gradients_changes_nothing() -> None:
    teacher, student = pair()
    distiller = Distiller(teacher, student, "maskedkd").train()
    taught = copy.deepcopy(teacher.state_dict())
    before = copy.deepcopy(student.state_dict())
    norms = distiller.gradient_norms(IMAGES, TARGET)
    assert all(norms[name] > 0 for name in ("task", "maskedkd"))
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    optimizer = torch.optim.SGD([p for _, p in distiller.trained_parameters()], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        distiller(IMAGES, TARGET)["total"].backward()
        assert all(p.grad is None for p in teacher.parameters())
        optimizer.step()
    assert all(torch.equal(value, taught[name]) for name, value in teacher.state_dict().items())
    assert not torch.equal(student.network.blocks[0].attn.qkv.weight, before["network.blocks.0.attn.qkv.weight"])
    assert not any("chooser" in name for name in distiller.state_dict())
    assert not teacher.training


def test_under_autocast() -> None:
    teacher, student = pair()
    distiller = Distiller(teacher, student, "maskedkd").eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = distiller(IMAGES, TARGET)
    assert terms["maskedkd"].dtype == torch.float32
    terms["total"].backward()
    assert all(torch.isfinite(p.grad).all() for p in student.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("teacher", "student", "words"),
    [
        ("limbeck:resnet8", VIT.format(16), "limbeck:resnet8 is none"),
        (VIT.format(32), "limbeck:resnet8", "limbeck:resnet8 is none"),
        (VIT.format(32), "mixer_s16_224", "cannot say how much it attends"),
        ("vit_small_patch16_dinov3(depth=2, embed_dim=32, num_heads=2)", VIT.format(16), "rotary positions"),
    ],
)
def test_models_that_cannot_are_named_with_a_way_out(teacher: str, student: str, words: str) -> None:
    with pytest.raises(UserError, match=f"maskedkd.*{words}.*kd\\(temperature=1.0\\)"):
        Distiller(opened(teacher), opened(student), "maskedkd")


def test_windows_do_not_rank_all_patches() -> None:
    small = "swin_tiny_patch4_window7_224(depths=(1, 1, 1, 1), embed_dim=24)"
    swin = load_model(small, pretrained=False, input_size=(448, 448))
    assert "no attention among all patches" in str(cannot_rank_patches(swin))
    assert cannot_rank_patches(nn.Linear(1, 1)) == "it is no classifier"
    vit = opened(VIT.format(16)).train()
    assert cannot_rank_patches(vit) is None
    assert all(part.training for part in vit.modules())


def test_losses_on_the_teachers_maps_are_refused_by_name() -> None:
    for method, name in (("maskedkd+manifold", "manifold"), ("vitkd+maskedkd", "vitkd")):
        with pytest.raises(UserError, match=f"which are no map, and {name} reads its maps"):
            Distiller(*pair(), method)
    with pytest.raises(UserError, match="maskedkd and maskedkd#2 each choose"):
        Distiller(*pair(), "maskedkd+maskedkd(keep=0.2)")
    with pytest.raises(UserError, match="maskedkd cannot be compiled"):
        Distiller(*pair(), "maskedkd").compile()


def test_options_are_checked(plain) -> None:
    loss = MaskedKD(plain(grid=14), plain(grid=14))
    assert (loss.count, loss.temperature, loss.default_weight, loss.default_task_weight) == (98, 1.0, 0.5, 0.5)
    assert MaskedKD(plain(), plain(), keep=0.001).count == 1
    for keep in (0.0, 1.5, -0.5):
        with pytest.raises(UserError, match=f"maskedkd: keep is {keep}"):
            MaskedKD(plain(), plain(), keep=keep)
    with pytest.raises(UserError, match="temperature is 0"):
        MaskedKD(plain(), plain(), temperature=0.0)
    with pytest.raises(UserError, match="class by class"):
        MaskedKD(plain(), replace(plain(), num_classes=3))


def test_a_run_from_end_to_end(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = "vit_tiny_patch16_224(patch_size=2, embed_dim={}, depth=2, num_heads=2)"
    teacher = load_model(small.format(24), pretrained=False, num_classes=10, input_size=(8, 8))
    save_file(teacher.network.state_dict(), tmp_path / "teacher.safetensors")
    options: dict[str, Any] = {"batch_size": 64, "num_workers": 0, "progress": False, "loggers": [], "report": False}
    run = limbeck.distill(
        teacher=f"{small.format(24)}@{tmp_path / 'teacher.safetensors'}",
        student=small.format(12),
        student_size=8,
        teacher_size=8,
        data="digits",
        method="maskedkd",
        trust_teacher=True,
        mixup=0.8,
        epochs=1,
        max_train_images=128,
        accelerator="cpu",
        out=str(tmp_path / "run"),
        **options,
    )
    rows = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    (gradients,) = [row for row in rows if row["kind"] == "gradients"]
    assert gradients["maskedkd"] > 0
    train = [row for row in rows if row["kind"] == "train"][-1]
    assert train["loss/total"] == pytest.approx(0.5 * train["loss/task"] + 0.5 * train["loss/maskedkd"], rel=1e-3)
    assert [row for row in rows if row["kind"] == "val"]
    assert run.summary["agreement"] is not None
    assert (run.path / "cka.npz").exists(), "maps are read of whole pictures afterwards"
