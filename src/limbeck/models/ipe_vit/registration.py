"""Makes timm know our networks: `timm.create_model("ipe_vit_300m")` after `import limbeck`.

`import limbeck` asks for `register` to be called as soon as timm itself has been imported (see `limbeck/__init__.py`).
"""

import sys
from collections.abc import Callable
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from limbeck.models.ipe_vit import DEIT_SHRUNK, NETWORKS
from limbeck.models.ipe_vit.embedding import WholeMap, resized_table
from limbeck.models.ipe_vit.network import IpeVit

_CIFAR = {"mean": (0.5071, 0.4865, 0.4409), "std": (0.2673, 0.2564, 0.2762)}
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def _cfg(size: int, first: str, classifier: str) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, size, size),
        "pool_size": None,
        "crop_pct": 0.9 if size > 32 else 1.0,
        "interpolation": "bicubic",
        **(_IMAGENET if size > 32 else _CIFAR),
        "first_conv": first,
        "classifier": classifier,
        "license": "apache-2.0",
    }


default_cfgs = generate_default_cfgs(
    {
        **{name: _cfg(size.get("img_size", 224), "stem.conv_stem.0", "head") for name, size in NETWORKS.items()},
        **{name: _cfg(size.get("img_size", 224), "patch_embed.proj", "head") for name, size in DEIT_SHRUNK.items()},
    }
)


def register(_timm: Any = None) -> None:
    """Register every network with timm; called by the import hook with timm itself."""
    module = sys.modules[__name__]
    for name, size in NETWORKS.items():
        setattr(module, name, register_model(_entry(name, _ipe_vit, size)))
    for name, size in DEIT_SHRUNK.items():
        setattr(module, name, register_model(_entry(name, _deit, size)))


def checkpoint_filter_fn(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Weights for images of another size: tables and whole-map kernels resized to the model's."""
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


def _entry(name: str, build: Callable[..., nn.Module], size: dict[str, Any]) -> Callable[..., nn.Module]:
    def entry(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build(name, pretrained, **{**size, **kwargs})

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"{name}: see limbeck.models.ipe_vit."
    return entry


def _ipe_vit(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    network: nn.Module = build_model_with_cfg(
        IpeVit,
        name,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **kwargs,
    )
    return network


def _deit(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    network: nn.Module = build_model_with_cfg(
        VisionTransformer,
        name,
        pretrained,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **{"patch_size": 16, **kwargs},
    )
    return network
