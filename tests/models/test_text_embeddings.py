"""Class names through a text encoder, of a tiny random CLIP with a tokenizer made on the spot."""

import json
from pathlib import Path

import pytest
import torch

from limbeck.errors import UserError
from limbeck.models.text_embeddings import class_text_embeddings

transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Letters are its words."""
    torch.manual_seed(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={
            **small,
            "vocab_size": len(words),
            "max_position_embeddings": 40,
            "projection_dim": 12,
            "bos_token_id": len(words) - 2,
            "eos_token_id": len(words) - 1,
            "pad_token_id": len(words) - 1,
        },
        vision_config={**small, "image_size": 16, "patch_size": 8},
        projection_dim=12,
    )
    folder = tmp_path / "clip"
    transformers.CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_each_name_is_embedded_as_a_photo_of_it(clip: Path) -> None:
    names = ["cat", "maple_tree", "dog"]
    found = class_text_embeddings(str(clip), names)
    assert found.shape == (3, 12)
    model = transformers.CLIPModel.from_pretrained(clip).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(clip)
    for name, row in zip(("cat", "maple tree", "dog"), found, strict=True):
        with torch.no_grad():
            tokens = tokenizer([f"a photo of a {name}"], return_tensors="pt")
            hidden = model.text_model(**tokens).pooler_output
            torch.testing.assert_close(row, model.text_projection(hidden)[0], rtol=1e-4, atol=1e-5)


def test_names_do_not_depend_on_those_beside_them(clip: Path) -> None:
    names = ["cat", "a rather long name", "dog"]
    torch.testing.assert_close(
        class_text_embeddings(str(clip), names, batch_size=1), class_text_embeddings(str(clip), names)
    )


def test_a_folder_without_a_clip_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"could not be opened.*folder that"):
        class_text_embeddings(str(tmp_path), ["cat"])
