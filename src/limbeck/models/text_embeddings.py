"""What a CLIP text encoder of transformers says about the names of classes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import MissingExtraError, UserError
from limbeck.models.weights import is_unreachable

PROMPT = "a photo of a {}"


@torch.no_grad()
def class_text_embeddings(
    name: str, class_names: Sequence[str], *, prompt: str = PROMPT, batch_size: int = 256
) -> Tensor:
    """The projected text embedding of every class.

    Args:
        name: hub name or local folder of a CLIP, such as `openai/clip-vit-base-patch32`. Code from the hub is never run.
        class_names: in label order; underscores are read as spaces.
        prompt: with `{}` in the place of the name.
        batch_size: names that are read together.

    Returns:
        (K, D) float32, on the CPU, as the encoder gives them, not brought to length 1.

    Raises:
        UserError: transformers is not installed, or there is no such CLIP.
    """
    try:
        from transformers import AutoTokenizer, CLIPTextModelWithProjection
        from transformers.utils import logging
    except ImportError as missing:
        raise MissingExtraError("transformers", "hf", "Embedding class names by a CLIP") from missing

    local = Path(name).is_dir()
    options: dict[str, Any] = {
        "trust_remote_code": False,
        "local_files_only": local or is_unreachable("huggingface.co"),
    }
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        with _without_warnings(logging):
            encoder = CLIPTextModelWithProjection.from_pretrained(
                name, use_safetensors=True, dtype=torch.float32, **options
            ).eval()
    except (OSError, ValueError, RuntimeError) as error:
        # The first line that says something: some of the library's messages begin with an empty one.
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"The text encoder {name} could not be opened: {reason} Give the name of a CLIP on the hub, or a folder that "
            "holds its tokenizer and its safetensors weights."
        ) from error
    prompts = [prompt.format(class_name.replace("_", " ").strip()) for class_name in class_names]
    parts = []
    for first in range(0, len(prompts), batch_size):
        tokens = tokenizer(prompts[first : first + batch_size], padding=True, truncation=True, return_tensors="pt")
        parts.append(encoder(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).text_embeds)
    return torch.cat(parts)


@contextmanager
def _without_warnings(logging: Any) -> Iterator[None]:
    """Without the library's list of the image encoder's tensors, which are not wanted."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
