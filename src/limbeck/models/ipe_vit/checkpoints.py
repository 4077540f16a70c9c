"""Weights saved at one image size, for a network made for another."""

from torch import Tensor, nn

from limbeck.models.ipe_vit.embedding import WholeMap, resized_table


def checkpoint_filter_fn(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Weights for images of another size: tables and whole-map kernels resized to the model's (timm's name for it)."""
    own = model.state_dict()
    kernels = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, WholeMap)}
    resized = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if name in own and tensor.ndim == 4 and tensor.shape[:2] == own[name].shape[:2]:
            height, width = own[name].shape[2:]
            if name in kernels or "pos_embed" in parts:
                tensor = resized_table(tensor, (height, width), keep_sum=name in kernels)
            elif "global_weights" in parts:
                # On more patches each weighs less.
                fusion = name.rpartition(".")[0]
                tensor = resized_table(tensor, (height, width)) * (_count(state, fusion) / _count(own, fusion))
        resized[name] = tensor
    return resized


def _count(state: dict[str, Tensor], fusion: str) -> int:
    return sum(tensor.numel() for name, tensor in state.items() if name.startswith(f"{fusion}."))
