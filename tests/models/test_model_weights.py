import hashlib
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from limbeck.errors import UserError
from limbeck.models.weights import (
    bare_network,
    fit_state_dict,
    load_weights,
    read_state_dict,
    weights_hash,
)


class Net(nn.Module):
    def __init__(self, classes: int = 5, width: int = 4, extra: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width))
        if extra:
            self.extra = nn.Linear(2, 2)
        self.head = nn.Linear(width, classes)


def saved(path: Path, network: nn.Module, prefix: str = "") -> Path:
    save_file({prefix + name: tensor for name, tensor in network.state_dict().items()}, path)
    return path


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_what_was_saved_is_read(tmp_path: Path, suffix: str) -> None:
    state = Net().state_dict()
    file = tmp_path / f"w{suffix}"
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    found = read_state_dict(file)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("owned"),)  # type: ignore[return-value]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_pickle_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / f"w{suffix}"
    file.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match="A pickle may run code"):
        read_state_dict(file)
    torch.save({"state": Evil()}, file)
    with pytest.raises(UserError, match="A pickle may run code"):
        read_state_dict(file)
    assert not (tmp_path / "owned").exists()


def test_broken_files_are_named(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole.safetensors", Net()).read_bytes()
    header = int.from_bytes(whole[:8], "little")
    broken = tmp_path / "broken.safetensors"
    for content, reason in (
        (whole[:-10], "its header promises"),
        (whole[: 8 + header // 2], "truncated inside its header"),
        (b"abc", "no header length"),
        (b"\xff" * 100, "no header length"),
        ((20).to_bytes(8, "little") + b"not json at all here" * 2, "not safetensors' JSON"),
    ):
        broken.write_bytes(content)
        with pytest.raises(UserError, match=reason) as caught:
            read_state_dict(broken)
        assert str(broken) in str(caught.value)
    half = tmp_path / "half.pth"
    torch.save(Net().state_dict(), half)
    half.write_bytes(half.read_bytes()[:-200])
    with pytest.raises(UserError, match="cannot be read as a file of tensors"):
        read_state_dict(half)
    with pytest.raises(FileNotFoundError):
        read_state_dict(tmp_path / "none.safetensors")


def test_a_training_checkpoint_is_not_taken_for_weights(tmp_path: Path) -> None:
    file = tmp_path / "last.pt"
    torch.save({"state_dict": Net().state_dict(), "epoch": 3}, file)
    with pytest.raises(UserError, match="entries state_dict"):
        read_state_dict(file)


@pytest.mark.parametrize(
    "prefix", ["", "model.", "module.", "student.", "backbone.", "module.student.", "student.network."]
)
def test_common_prefixes_come_off_and_are_noted(tmp_path: Path, prefix: str) -> None:
    source, network = Net(), Net()
    notes = load_weights(network, saved(tmp_path / "w.safetensors", source, prefix))
    assert equal(network, source)
    assert bool(notes) == bool(prefix)


def test_of_a_checkpoint_with_teacher_and_student_the_student_is_taken(tmp_path: Path) -> None:
    student, teacher, network = Net(), Net(width=8), Net()
    state = {f"student.{k}": v for k, v in student.state_dict().items()}
    save_file(state | {f"teacher.{k}": v for k, v in teacher.state_dict().items()}, tmp_path / "w.safetensors")
    notes = load_weights(network, tmp_path / "w.safetensors")
    assert equal(network, student)
    assert f"{len(teacher.state_dict())} other tensors ignored" in notes[0]


def test_another_number_of_classes_needs_to_be_asked_for(tmp_path: Path) -> None:
    source, network = Net(classes=9), Net(classes=5)
    fresh = network.head.weight.clone()
    file = saved(tmp_path / "w.safetensors", source)
    with pytest.raises(UserError, match=r"2 of another shape \(head\.weight 9x4 for 5x4.*number of classes"):
        load_weights(network, file)
    assert load_weights(network, file, new_head=5) == ["head replaced: 9 -> 5 classes, freshly initialised"]
    assert torch.equal(network.head.weight, fresh)
    assert equal(network.body, source.body)


def test_a_backbone_without_a_head_serves_where_a_new_head_is_asked_for(tmp_path: Path) -> None:
    source, network = Net(), Net()
    state = {k: v for k, v in source.state_dict().items() if not k.startswith("head.")}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"2 missing \(head\.weight, head\.bias\)"):
        load_weights(network, tmp_path / "w.safetensors")
    assert "no classifier" in load_weights(network, tmp_path / "w.safetensors", new_head=5)[0]
    assert equal(network.body, source.body)


def test_weights_of_another_model_change_nothing_and_are_counted(tmp_path: Path) -> None:
    network = Net()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    other = saved(tmp_path / "w.safetensors", nn.Sequential(*[nn.Linear(3, 3) for _ in range(3)]))
    with pytest.raises(UserError) as caught:
        load_weights(network, other, new_head=5)
    message = str(caught.value)
    assert "of its 9 tensors 0 fit; 9 missing (body.0.weight, body.0.bias, body.1.weight, ...)" in message
    assert "6 unexpected (" in message
    assert "another architecture" in message
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    with pytest.raises(UserError, match=r"2 unexpected \(extra\.bias, extra\.weight\)"):
        load_weights(network, saved(tmp_path / "w.safetensors", Net(extra=True)))
    with pytest.raises(UserError, match="another size"):
        load_weights(network, saved(tmp_path / "w.safetensors", Net(width=8)))


def test_a_librarys_converter_is_used_only_where_it_helps() -> None:
    source, network = Net(), Net()
    old = {name.replace("body", "trunk"): tensor for name, tensor in source.state_dict().items()}
    fit = fit_state_dict(network, old, lambda state: {k.replace("trunk", "body"): v for k, v in state.items()})
    assert fit.complete
    assert len(fit.notes) == 1
    assert fit_state_dict(network, source.state_dict(), lambda state: {}).complete
    assert not fit_state_dict(network, old, lambda state: {"x": state["missing"]}).complete


def test_the_hash_is_of_names_and_values_only() -> None:
    network = Net()
    twin = Net()
    twin.load_state_dict(network.state_dict())
    assert weights_hash(network) == weights_hash(twin)
    holder = nn.Module()
    holder.network = network
    assert weights_hash(holder) == weights_hash(network)
    assert bare_network(holder) is network
    with torch.no_grad():
        twin.head.bias[0] += 1e-3
    assert weights_hash(network) != weights_hash(twin)
    one = nn.Module()
    one.register_buffer("b", torch.tensor([1.0, -2.0], dtype=torch.bfloat16))
    expected = hashlib.sha256(b"b torch.bfloat16 (2,)\n" + bytes([0x80, 0x3F, 0x00, 0xC0])).hexdigest()
    assert weights_hash(one) == expected
