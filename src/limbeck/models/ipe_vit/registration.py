"""Makes timm know our networks, on being imported: `timm.create_model("ipe_vit_300m")` after `import limbeck`.

`import limbeck` asks for this file to be imported as soon as timm itself has been (see `limbeck/__init__.py`). That may be
while a file of this package waits for its own `import timm`, so the network is imported when one is made, not here.
"""

import sys
from collections.abc import Callable
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from limbeck.models.ipe_vit import DEIT_SHRUNK, NETWORKS

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


def __getattr__(name: str) -> Any:
    """The network's class, by which an option's message finds the known ones."""
    if name != "IpeVit":
        raise AttributeError(name)
    from limbeck.models.ipe_vit.network import IpeVit

    return IpeVit


def _entry(name: str, build: Callable[..., nn.Module], size: dict[str, Any]) -> Callable[..., nn.Module]:
    def entry(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build(name, pretrained, **{**size, **kwargs})

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"{name}: see limbeck.models.ipe_vit."
    return entry


def _ipe_vit(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    from limbeck.models.ipe_vit.checkpoints import checkpoint_filter_fn
    from limbeck.models.ipe_vit.network import IpeVit

    # Without a stem the maps are those of the blocks.
    maps = range(kwargs["depth"])[-4:] if kwargs.get("stem") == "patchify" else range(4)
    network: nn.Module = build_model_with_cfg(
        IpeVit,
        name,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": tuple(maps), "feature_cls": "getter"},
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


def _register() -> None:
    module = sys.modules[__name__]
    for name, size in NETWORKS.items():
        setattr(module, name, register_model(_entry(name, _ipe_vit, size)))
    for name, size in DEIT_SHRUNK.items():
        setattr(module, name, register_model(_entry(name, _deit, size)))


_register()
