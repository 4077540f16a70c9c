"""The mobile vision transformer: stem, irregular patch embedding, uniform trunk, adaptive patch fusion.

After Chen et al., "Exploring and Improving Mobile Level Vision Transformers", arXiv:2108.13015, of which only the ideas
are known; sizes and details are inferred. docs/mobile_vit.md says which is which.

Patches stand coarse to fine in the sequence, so that the finest scale comes last, where timm's transformers have their
patches; the order changes nothing else. The class speaks timm's dialect (`forward_features`, `forward_head`,
`forward_intermediates`, `feature_info`), and is registered there by `limbeck.models.ipe_vit.registration`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from limbeck.errors import UserError
from limbeck.models.drop_path import drop_path_rates
from limbeck.models.ipe_vit.checkpoints import checkpoint_filter_fn as checkpoint_filter_fn
from limbeck.models.ipe_vit.convolutions import init_convolutions
from limbeck.models.ipe_vit.embedding import (
    Branch,
    Grid,
    WholeMap,
    branch_grid,
    halving,
    parse_branches,
)
from limbeck.models.ipe_vit.fusion import PatchFusion
from limbeck.models.ipe_vit.options import (
    BranchBlock,
    BranchMap,
    GlobalReduction,
    Pooling,
    PositionKind,
    Reading,
    Squash,
    StemOption,
    check_options,
)
from limbeck.models.ipe_vit.positions import Positions
from limbeck.models.ipe_vit.stem import Stem

_norm: Any = partial(nn.LayerNorm, eps=1e-6)


class IpeVit(nn.Module):
    """An image classifier for (B, 3, H, W) normalised images of any size, to logits (B, K).

    Args:
        img_size: height and width in pixels for which tables and kernels are made; others are read by resizing them.
        in_chans: channels of the images.
        num_classes: K; 0 leaves the classifier out.
        width: multiplies the channels of the stem.
        embed_dim: D, width of the patches.
        depth: transformer blocks.
        head_dim: width of an attention head; D must be a multiple.
        mlp_ratio: hidden width of the blocks' MLPs over D.
        stem: `mobilenetv3`; `separable` convolutions only; `residual`, see `limbeck.models.ipe_vit.stem`; `patchify` has
            one linear map of each patch instead of stem and branches.
        stem_stride: pixels per cell of the stem's last map: 16, or 8, 4, 2 for small images. With `patchify`, the patch's
            side.
        branches: of `uniform` (14x14 patches at 224 pixels), `square` (8x8), `fine` (7x7), `mid` (4x4), `global` (1x1),
            joined with +.
        branch_block: `ir_se`, `ir`, `plain` or `separable`.
        branch_expansion: of the branches' inverted residuals.
        branch_map: `stem`: the branches read the stem's last map, with strides 2 and 4 for `fine` and `mid`; `halved`: one
            more inverted residual halves it for all of them, and their strides with it. The same patches, deeper, with
            less spatial detail.
        global_reduction: how the global branch sees the whole map, `full` or `pool`.
        token_norm: LayerNorm over the joined patches before the trunk.
        positions: `none`, `learned` or `sincos`.
        pooling: `apf` adaptive patch fusion; `global` or `adaptive` one factor of it; `gap` the average; `cls` a class
            token.
        fusion: what the adaptive weights read: `token`, `token_se` or `pooled`.
        fusion_squash: `sigmoid` or `softmax`.
        fusion_renormalise: make the fusion's weights sum to 1.
        distilled: two fusions and two classifiers, whose logits are averaged; see `set_distilled_training`.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0 at the first.
        dynamic_size: resize every table to the image without asking whether it is needed, for graphs whose image size is
            not yet known.

    Raises:
        UserError: an option is unknown or does not fit the others.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        *,
        width: float = 1.0,
        embed_dim: int = 192,
        depth: int = 6,
        head_dim: int = 32,
        mlp_ratio: float = 4.0,
        stem: StemOption = "mobilenetv3",
        stem_stride: int = 16,
        branches: str = "fine+mid+global",
        branch_block: BranchBlock = "ir_se",
        branch_expansion: float = 4.0,
        branch_map: BranchMap = "stem",
        global_reduction: GlobalReduction = "full",
        token_norm: bool = True,
        positions: PositionKind = "learned",
        pooling: Pooling = "apf",
        fusion: Reading = "token",
        fusion_squash: Squash = "sigmoid",
        fusion_renormalise: bool = False,
        distilled: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        dynamic_size: bool = False,
    ) -> None:
        super().__init__()
        check_options(locals())
        size = (img_size, img_size) if isinstance(img_size, int) else (img_size[0], img_size[1])
        if min(size) < 2 * stem_stride:
            raise UserError(
                f"Images of {size[0]}x{size[1]} pixels are too small for patches of {stem_stride} pixels; take a smaller "
                "stem_stride, or one of the networks for 32 pixels (their names end in _32)."
            )
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.img_size: tuple[int, int] = size
        self.stem: Stem | None = None
        if stem == "patchify":
            self.patch_embed = nn.Conv2d(in_chans, embed_dim, stem_stride, stem_stride)
            self.grids: list[Grid] = [(size[0] // stem_stride, size[1] // stem_stride)]
            self.branch_names: tuple[str, ...] = ()
            self.stride = stem_stride
        else:
            self.stem = Stem(in_chans, width=width, stride=stem_stride, kind=stem)
            map_grid: Grid = (-(-size[0] // stem_stride), -(-size[1] // stem_stride))
            self.branch_names = parse_branches(branches)
            channels, halved = self.stem.channels[-1], branch_map == "halved"
            self.reduction: nn.Module = nn.Identity()
            if halved:
                self.reduction = halving(channels)
                map_grid = (-(-map_grid[0] // 2), -(-map_grid[1] // 2))
            self.grids = [branch_grid(name, map_grid, halved=halved) for name in self.branch_names]
            self.branches = nn.ModuleList(
                Branch(
                    name,
                    channels,
                    embed_dim,
                    map_grid,
                    halved=halved,
                    block=branch_block,
                    reduction=global_reduction,
                    expansion=branch_expansion,
                )
                for name in self.branch_names
            )
            self.stride = round(size[0] / self.grids[-1][0])
        if min(min(grid) for grid in self.grids) < 1:
            raise UserError(f"Images of {size[0]}x{size[1]} pixels leave a branch of {branches} without any patch.")
        self.token_norm = nn.LayerNorm(embed_dim) if token_norm else nn.Identity()
        self.positions = Positions(embed_dim, self.grids, positions)
        heads = embed_dim // head_dim
        self.blocks = nn.ModuleList(
            Block(embed_dim, heads, mlp_ratio, qkv_bias=True, drop_path=rate, norm_layer=_norm)
            for rate in drop_path_rates(drop_path_rate, depth)
        )
        self.norm = _norm(embed_dim)
        self.pooling = pooling
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if pooling == "cls" else None
        fusions = (1 + distilled) if pooling in ("global", "adaptive", "apf") else 0
        self.fusions = nn.ModuleList(
            PatchFusion(
                embed_dim,
                self.grids,
                use_global=pooling != "adaptive",
                use_adaptive=pooling != "global",
                reading=fusion,
                squash=fusion_squash,
                renormalise=fusion_renormalise,
            )
            for _ in range(fusions)
        )
        self.drop_rate = drop_rate
        self.head_drop = nn.Dropout(drop_rate)
        self.head = _classifier(embed_dim, num_classes)
        self.head_dist: nn.Module | None = _classifier(embed_dim, num_classes) if distilled else None
        self.distilled_training = False
        self.grad_checkpointing = False
        self.feature_info = self._feature_info()
        self.dynamic_size = dynamic_size
        self._init_weights()

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before those of the finest scale: the class token and the coarser patches."""
        return sum(h * w for h, w in self.grids[:-1]) + (self.cls_token is not None)

    @property
    def dynamic_size(self) -> bool:
        """Whether every table is resized to the image without asking; see the class."""
        return self._dynamic_size

    @dynamic_size.setter
    def dynamic_size(self, value: bool) -> None:
        self._dynamic_size = value
        for module in self.modules():
            if isinstance(module, WholeMap | Positions | PatchFusion):
                module.dynamic_size = value

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are no weights of a linear map (timm's question)."""
        spared = ("pos_embed", "cls_token", "global_weights")
        return {name for name, _ in self.named_parameters() if any(part in name.split(".") for part in spared)}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the trunk's blocks again in the backward pass instead of keeping what they computed (timm's name)."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameters belong to which depth, for layer-wise learning rates (timm's question)."""
        blocks = r"^blocks\.(\d+)"
        return {
            "stem": r"^(stem|patch_embed|reduction|branches|token_norm|positions|cls_token)",
            "blocks": [(blocks, None), (r"^(norm|fusions)", (99999,))],
        }

    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        """The classifier, or both of the distilled form."""
        return self.head if self.head_dist is None else (self.head, self.head_dist)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Fresh classifiers for another number of classes; the pooling is part of the network and stays."""
        if global_pool not in (None, "", self.pooling):
            raise UserError(f"The pooling is part of the network ({self.pooling}) and cannot become {global_pool!r}.")
        self.num_classes = num_classes
        self.head = _classifier(self.embed_dim, num_classes)
        if self.head_dist is not None:
            self.head_dist = _classifier(self.embed_dim, num_classes)

    def set_distilled_training(self, enable: bool = True) -> None:
        """While training, return the logits of both classifiers instead of their average (as timm's DeiT)."""
        self.distilled_training = enable

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (B, K) of images (B, 3, H, W)."""
        tokens, grids, _ = self.encode(images)
        return self.classify(self.fuse(tokens, grids))

    def forward_features(self, images: Tensor) -> Tensor:
        """The tokens after the final norm, (B, N, D)."""
        return self.encode(images)[0]

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Any:
        """Logits, or the pooled vector, from the tokens of images of the network's own size (B, N, D).

        Raises:
            UserError: they are those of another size, whose grids are not known here.
        """
        height, width = self.grids[-1]
        own = self.num_prefix_tokens + height * width
        if tokens.shape[1] != own:
            raise UserError(
                f"{tokens.shape[1]} tokens cannot be fused: images of {self.img_size[0]}x{self.img_size[1]} pixels, for "
                f"which this network was made, give {own}. Call the network itself, which knows the image's size."
            )
        vectors = self.fuse(tokens, self.grids)
        return average(vectors) if pre_logits else self.classify(vectors)

    def forward_intermediates(
        self,
        images: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The maps named in `feature_info`, and the tokens; arguments as everywhere in timm.

        Args:
            images: (B, 3, H, W).
            indices: which maps; the last n if a number, all if None.
            norm: also normalise maps of the trunk.
            stop_early: changes nothing, since the last map is the trunk's.
            output_fmt: `NCHW` only.
            intermediates_only: leave the tokens out.
        """
        assert output_fmt == "NCHW", "maps are given as NCHW"
        names = [info["module"] for info in self.feature_info]
        if isinstance(indices, int):
            if not 1 <= indices <= len(names):
                raise IndexError(f"{indices} maps were asked for; there are {len(names)}")
            names = names[-indices:]
        elif indices is not None:
            names = [names[index] for index in indices]
        tokens, _, maps = self.encode(images, names, norm_maps=norm)
        chosen = [maps[name] for name in names]
        return chosen if intermediates_only else (tokens, chosen)

    def encode(
        self, images: Tensor, wanted: Sequence[str] = (), *, norm_maps: bool = False
    ) -> tuple[Tensor, list[Grid], dict[str, Tensor]]:
        """Everything before the fusion.

        Args:
            images: (B, 3, H, W), normalised.
            wanted: which maps to keep: `stages.0` to `stages.2` of the stem, and `blocks.I`, the finest patches after a
                transformer block.
            norm_maps: put the final norm over the blocks' maps.

        Returns:
            The tokens after the final norm (B, N, D), the grid of each branch, and the maps by name.
        """
        if self.training and images.shape[0] == 1 and self.stem is not None and (1, 1) in self.grids:
            raise UserError(
                "A branch with a single patch normalises over the images of a batch, so that training needs at least 2 of "
                "them in each batch. Take a larger batch, or leave the branch out: branches='fine+mid'."
            )
        maps: dict[str, Tensor] = {}
        if self.stem is None:
            branch_maps = [self.patch_embed(images)]
        else:
            stem_maps = self.stem(images)
            maps = {f"stages.{index}": map_ for index, map_ in enumerate(stem_maps[1:])}
            shared = self.reduction(stem_maps[-1])
            branch_maps = [branch(shared) for branch in self.branches]
        grids: list[Grid] = [(map_.shape[2], map_.shape[3]) for map_ in branch_maps]
        tokens = self.token_norm(torch.cat([map_.flatten(2) for map_ in branch_maps], dim=2).transpose(1, 2))
        where = self.positions(grids)
        if where is not None:
            tokens = tokens + where.to(tokens.dtype)
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.to(tokens.dtype).expand(tokens.shape[0], -1, -1), tokens], dim=1)
        for index, block in enumerate(self.blocks):
            if self.grad_checkpointing and self.training:
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
            if f"blocks.{index}" in wanted:
                shown = self.norm(tokens) if norm_maps else tokens
                maps[f"blocks.{index}"] = finest_map(shown, grids[-1])
        return self.norm(tokens), grids, {name: maps[name] for name in wanted}

    def fuse(self, tokens: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
        """One (B, D) vector for each classifier."""
        heads = 1 if self.head_dist is None else 2
        if self.cls_token is not None:
            return [tokens[:, 0]] * heads
        if not len(self.fusions):
            return [tokens.mean(1)] * heads
        return [fusion(tokens, grids) for fusion in self.fusions]

    def logits_of(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Logits (B, K) of each classifier, from `fuse`'s vectors."""
        heads = [self.head] if self.head_dist is None else [self.head, self.head_dist]
        return [head(self.head_drop(vector)) for head, vector in zip(heads, vectors, strict=True)]

    def classify(self, vectors: Sequence[Tensor]) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (B, K) from `fuse`'s vectors; both classifiers' where `set_distilled_training` is on."""
        logits = self.logits_of(vectors)
        if len(logits) == 2 and self.distilled_training and self.training:
            return logits[0], logits[1]
        return average(logits)

    def _feature_info(self) -> list[dict[str, Any]]:
        blocks = [
            {"num_chs": self.embed_dim, "reduction": self.stride, "module": f"blocks.{index}"}
            for index in range(len(self.blocks))
        ]
        if self.stem is None:
            return blocks
        stem = zip(self.stem.channels[1:], self.stem.strides[1:], strict=True)
        stages = [
            {"num_chs": channels, "reduction": stride, "module": f"stages.{index}"}
            for index, (channels, stride) in enumerate(stem)
        ]
        return [*stages, blocks[-1]]

    def _init_weights(self) -> None:
        init_convolutions(self)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, PatchFusion):
                module.init_weights()
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=1e-6)


def average(of_classifiers: Sequence[Tensor]) -> Tensor:
    """Of one or two classifiers, the average of their logits (B, K) or of the vectors (B, D) that they read."""
    return of_classifiers[0] if len(of_classifiers) == 1 else (of_classifiers[0] + of_classifiers[1]) / 2


def finest_map(tokens: Tensor, grid: Grid) -> Tensor:
    """The patches of the finest scale, which stand last, as a map: (B, N, D) to (B, D, h, w)."""
    height, width = grid
    patches = tokens[:, tokens.shape[1] - height * width :]
    return patches.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], height, width)


def _classifier(dim: int, num_classes: int) -> nn.Module:
    if not num_classes:
        return nn.Identity()
    head = nn.Linear(dim, num_classes)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head
