"""Feeding a plain vision transformer only some patches of each picture, after their positions are in them.

A block of such a network does not know where its tokens lie, nor how many there are: whatever a position says is added
before the first block. There the tokens are thinned out, and every block, norm and head runs on what is left, in time
that falls with their number.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import UserError
from limbeck.models.attention import attention_blocks, reading_attention
from limbeck.models.base import VisionModel
from limbeck.outputs import Outputs, Request

_ROTARY = re.compile(r"rotary|rope.*embed|rope$", re.IGNORECASE)
_RELATIVE = re.compile(r"rel_pos|relative_position|attention_biases|attention_bias_table")


def can_keep_patches(model: nn.Module) -> str | None:
    """Whether `keeping_patches` works on a model.

    Beside its parts, its answer to one small noise image is looked at: it must not depend on the order of the patches.

    Args:
        model: behind our interface.

    Returns:
        None if it does, otherwise the reason in words that continue "... since ".
    """
    reason = _unfit_part(model)
    if reason is not None or not isinstance(model, VisionModel):
        return reason
    modes = [(part, part.training) for part in model.modules()]
    try:
        model.eval()
        return _answer_depends_on_order(model)
    finally:
        for part, mode in modes:
            part.train(mode)  # and not the flag, since some parts forget cached values in it


@torch.no_grad()
def cannot_rank_patches(model: nn.Module) -> str | None:
    """Why a model cannot say how much it attends to each of its patches (`Request.attention`).

    Args:
        model: behind our interface.

    Returns:
        None if it can, otherwise the reason in words that continue "... since ".
    """
    if not isinstance(model, VisionModel):
        return "it is no classifier"
    modes = [(part, part.training) for part in model.modules()]
    noise = torch.randn((1, 3, *model.facts.input_size), generator=torch.Generator().manual_seed(0))
    try:
        with reading_attention(model.eval()) as found:
            model.read(noise.to(model.mean), Request())
        # Windows count as images, so that there are more of these than pictures.
        if not found or found[-1].grid is None or found[-1].query.shape[0] != 1:
            return "its last block has no attention among all patches of a picture that could be read"
        return None
    finally:
        for part, mode in modes:
            part.train(mode)  # and not the flag, since some parts forget cached values in it


@contextmanager
def keeping_patches(model: VisionModel, kept: Tensor | None) -> Iterator[None]:
    """While it lasts, `model` runs its blocks on the tokens before the patches and on some patches only.

    Logits and the pooled vector can be asked for; maps cannot, since the patches are on no grid. Attention can be read
    (`reading_attention`), of the kept patches in the order of `kept`.

    Args:
        model: one for which `can_keep_patches` gives None.
        kept: (B, M) int64, for each picture of the batch the numbers of its patches in row-major order of the grid, on
            the model's device; None keeps all.

    Raises:
        UserError: the model cannot keep patches, or is asked for maps meanwhile.
    """
    if kept is None:
        yield
        return
    reason, entrance = _unfit_part(model), _entrance(model)
    if reason is not None or entrance is None:
        raise UserError(f"{model.facts.name} cannot be fed some patches only, since {reason}. Feed whole pictures.")
    assert kept.ndim == 2 and kept.dtype == torch.int64, "kept holds (B, M) numbers of patches"
    height, width = model.facts.levels[0].grid
    choose = _Choice(kept, height * width)
    module, is_before = entrance
    handle = (
        module.register_forward_pre_hook(choose.enters, with_kwargs=True)
        if is_before
        else module.register_forward_hook(choose.leaves)
    )
    read, is_wrapped = model.read, "read" in vars(model)

    def read_some(inputs: Tensor, request: Request) -> Outputs:
        if request.levels or request.final:
            raise UserError("Maps cannot be read while only some patches are fed; ask for logits, pooled or attention.")
        return read(inputs, request)

    model.read = read_some  # type: ignore[method-assign]
    try:
        yield
    finally:
        handle.remove()
        if is_wrapped:
            model.read = read  # type: ignore[method-assign]
        else:
            del model.read


class _Choice:
    """Takes some tokens out of a sequence.

    Args:
        kept: (B, M), numbers of patches.
        patches: of the whole sequence, behind all other tokens.
    """

    def __init__(self, kept: Tensor, patches: int) -> None:
        self.kept = kept
        self.patches = patches

    def __call__(self, tokens: Tensor) -> Tensor:
        """(B, prefix + patches, C) to (B, prefix + M, C)."""
        prefix = tokens.shape[1] - self.patches
        assert prefix >= 0 and tokens.shape[0] == self.kept.shape[0], "another picture or batch than was said"
        before = torch.arange(prefix, device=tokens.device).expand(tokens.shape[0], -1)
        order = torch.cat([before, self.kept + prefix], 1).unsqueeze(2)
        return tokens.gather(1, order.expand(-1, -1, tokens.shape[2]))

    def enters(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """A hook before the first block."""
        if args:
            return (self(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": self(kwargs["hidden_states"])}

    def leaves(self, _: nn.Module, __: Any, output: Tensor) -> Tensor:
        """A hook after what comes before the first block."""
        return self(output)


def _unfit_part(model: nn.Module) -> str | None:
    if not isinstance(model, VisionModel):
        return "it is no classifier"
    levels = model.facts.levels
    if not levels or any(level.kind != "block" or level.grid != levels[0].grid for level in levels):
        return "it is no plain transformer, whose blocks all see the same patches"
    if any(_ROTARY.search(type(part).__name__) and not hasattr(part, "num_heads") for part in model.modules()):
        return "its attention turns queries and keys by the patches' positions (rotary positions)"
    if any(_RELATIVE.search(name) for name, _ in model.named_parameters()):
        return "its attention knows the patches' distances (relative positions)"
    if _entrance(model) is None:
        return "its blocks with attention do not stand in one list"
    return None


def _entrance(model: nn.Module) -> tuple[nn.Module, bool] | None:
    """The module before (True) or after (False) which the tokens are thinned out; None where there is no block list."""
    blocks = attention_blocks(model)
    for part in model.modules():
        if not isinstance(part, nn.ModuleList | nn.Sequential) or len(part) != len(blocks) or not blocks:
            continue
        if all(any(inner is block for inner in child.modules()) for child, block in zip(part, blocks, strict=True)):
            return _torchvisions_entrance(model, part) or (part[0], True)
    return None


def _torchvisions_entrance(model: nn.Module, blocks: nn.Module) -> tuple[nn.Module, bool] | None:
    """torchvision's adapter runs what is inside its blocks, and never calls them; a dropout comes before the first."""
    for encoder in model.modules():
        dropout = getattr(encoder, "dropout", None)
        if getattr(encoder, "layers", None) is blocks and isinstance(dropout, nn.Dropout):
            return dropout, False
    return None


@torch.no_grad()
def _answer_depends_on_order(model: VisionModel) -> str | None:
    height, width = model.facts.levels[0].grid
    noise = torch.randn((1, 3, *model.facts.input_size), generator=torch.Generator().manual_seed(0))
    inputs = noise.to(model.mean)
    backwards = torch.arange(height * width - 1, -1, -1, device=inputs.device).unsqueeze(0)
    try:
        whole = _summary(model, inputs)
        with keeping_patches(model, backwards):
            turned = _summary(model, inputs)
        with keeping_patches(model, backwards[:, ::2]):
            model.read(inputs, Request())
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        return f"it fails on fewer patches ({str(error).splitlines()[0]})"
    # The order of a sum costs some of the last bits; a position that matters costs more.
    if (turned - whole).abs().max() > 1e-3 * whole.abs().max():
        return "its answer depends on where the patches lie after their positions were added"
    return None


def _summary(model: VisionModel, inputs: Tensor) -> Tensor:
    """The pooled vector, since a fresh classifier may give zeros; logits where the model does not show it."""
    try:
        outputs = model.read(inputs, Request(pooled=True))
    except UserError:
        outputs = model.read(inputs, Request())
    return outputs.logits if outputs.pooled is None else outputs.pooled
