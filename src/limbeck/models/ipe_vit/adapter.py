"""`limbeck:ipe_vit_*` behind our interface: its facts are known without running it, its maps come from one pass.

Levels, shallow to deep: `stages.0` to `stages.2`, the stem's maps at strides 4, 8 and 16 (1, 2 and 4 for 32-pixel images),
and `tokens`, the finest patches after the trunk. `pooled` is the fused vector. The same network as `timm:ipe_vit_*`
gives its maps through timm's interface, but reads no other size than its own.
"""

from typing import Any

from torch import Tensor

from limbeck.errors import UserError
from limbeck.models import timm_models
from limbeck.models.base import Provenance, VisionModel
from limbeck.models.ipe_vit.checkpoints import checkpoint_filter_fn
from limbeck.models.ipe_vit.network import IpeVit, average, finest_map
from limbeck.models.timm_options import check_options
from limbeck.outputs import Level, ModelFacts, Outputs, Request

TOKENS = "tokens"


class IpeVitModel(VisionModel):
    """An `ipe_vit`, to be trained from random weights or given some.

    Args:
        name: a key of `limbeck.models.ipe_vit.NETWORKS`.
        num_classes: K of the logits.
        input_size: (height, width) in pixels; None is the name's own.
        drop_path: stochastic depth of the last block.
        text: the name the user gave.
        options: others of `IpeVit`'s arguments than the name stands for.

    Raises:
        UserError: an option is unknown or impossible.
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        input_size: tuple[int, int] | None,
        drop_path: float,
        text: str,
        options: dict[str, Any],
    ) -> None:
        if num_classes < 1:
            raise UserError(f"{text} was asked for {num_classes} classes; a classifier needs at least 1.")
        check_options(options, text)
        settings: dict[str, Any] = {"num_classes": num_classes, "drop_path_rate": drop_path}
        if input_size is not None:
            settings["img_size"] = input_size
        network, _ = timm_models.make_network(name, text, settings, options)
        cfg = network.pretrained_cfg
        super().__init__(cfg["mean"], cfg["std"], cfg["interpolation"])
        self.network: IpeVit = network
        self.provenance = Provenance(licence="Apache-2.0")
        self.facts = _facts(text, network)
        self.rebuild = {
            "library": "limbeck",
            "name": name,
            "num_classes": num_classes,
            "input_size": list(network.img_size),
        } | ({"options": options} if options else {})

    def read(self, inputs: Tensor, request: Request) -> Outputs:
        """One pass over (B, 3, H, W) inputs of any size, keeping only the requested maps.

        Raises:
            KeyError: a requested level is not one of this network's.
        """
        for name in request.levels:
            self.facts.level(name)
        last = f"blocks.{len(self.network.blocks) - 1}"
        kept = [last if name == TOKENS else name for name in request.levels]
        tokens, grids, maps = self.network.encode(inputs, kept)
        vectors = self.network.fuse(tokens, grids)
        return Outputs(
            # Both classifiers of the distilled form, whatever its switch for loops of one's own says.
            logits=average(self.network.logits_of(vectors)),
            pooled=average(vectors) if request.pooled else None,
            maps={name: maps[key] for name, key in zip(request.levels, kept, strict=True)},
            final=finest_map(tokens, grids[-1]) if request.final else None,
        )

    def convert(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights made for another image size, resized to this one."""
        return checkpoint_filter_fn(state, self.network)


def _facts(text: str, network: IpeVit) -> ModelFacts:
    size = network.img_size
    levels = [
        Level(info["module"], info["num_chs"], info["reduction"], _cells(size, info["reduction"]))
        for info in network.feature_info
        if info["module"].startswith("stages.")
    ]
    grid = network.grids[-1]
    if network.stem is None:
        # Without a stem there is one resolution, so the trunk's depth is what can be read.
        levels = [
            Level(info["module"], network.embed_dim, network.stride, grid, "block") for info in network.feature_info
        ]
    else:
        levels.append(Level(TOKENS, network.embed_dim, network.stride, grid))
    final = Level("final", network.embed_dim, network.stride, grid, "block" if network.stem is None else "stage")
    return ModelFacts(text, network.num_classes, size, tuple(levels), network.embed_dim, final)


def _cells(size: tuple[int, int], stride: int) -> tuple[int, int]:
    return -(-size[0] // stride), -(-size[1] // stride)
