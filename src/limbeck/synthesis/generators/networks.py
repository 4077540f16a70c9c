"""Networks from a latent vector to a picture of any size: a convolutional one, and one that begins with attention.

`ConvGenerator` is the generator that the code of CMI and Fast-DFKD (Fang et al., arXiv:2105.08584, arXiv:2112.06253)
shares among DAFL, ZSKT, DFAD, CMI, Fast-DFKD and NAYER; published for 32 pixels, that is two doublings from an 8 x 8
grid. `AttentionGeneratorNetwork` follows our own plan for arXiv:2408.05952, of whose generator we know no more than that it
has self-attention inside: every size in it is inferred. For other pictures than 28 or 32 pixels both take more doublings
(ours): as many as bring the longer side's first grid to at most 8 cells. Where a side is no multiple of 2^doublings the
grid is one cell larger and the picture's rim is cut off, the same on both sides.

Their BatchNorm layers normalise by the batch at hand whatever the mode, and keep no running averages: the original code
of DAFL and DFAD draws the student's pictures in training mode, and that is what it does to them. (The code of CMI draws
for these methods in either mode, depending on its version; averages lag behind a generator that learns.) Without buffers a
network's state is its parameters, so that drawing changes nothing. A picture thus depends on the others of its batch.
"""

import torch
from torch import Tensor, nn

from limbeck.errors import UserError

_FIRST_CELLS = 8
_LEAST_DOUBLINGS = 2


class ConvGenerator(nn.Module):
    """Linear -> BN -> [double -> conv3 -> BN -> LeakyReLU 0.2] x doublings -> conv3 -> sigmoid.

    The first half of the doublings (rounded up) has 2·channels, the second half channels.

    Args:
        latent: D of the latent vectors, drawn from N(0, 1).
        channels: of the last maps.
        size: (height, width) in pixels, at least 8 x 8.
        exchange: probability that a channel of a picture's map is replaced by another picture's (see
            `ChannelExchange`), behind every doubling but the last.

    Attributes:
        latent: as given.
        size: as given.
        project: the first layer, Linear, which Fast-DFKD starts anew halfway; with the `norm` behind it.

    Raises:
        UserError: a number is out of its range.
    """

    def __init__(self, latent: int, channels: int = 64, *, size: tuple[int, int], exchange: float = 0.0) -> None:
        super().__init__()
        require_sizes(latent, channels, size, exchange)
        self.latent, self.size = latent, size
        self.grid, doublings = first_grid(size)
        self.project = nn.Linear(latent, 2 * channels * self.grid[0] * self.grid[1])
        self.norm = batch_norm(2 * channels)
        widths = [2 * channels] * (doublings - doublings // 2) + [channels] * (doublings // 2)
        self.blocks = nn.Sequential(*_doublings(2 * channels, widths, exchange))
        self.picture = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """(B, latent) to (B, 3, height, width) in [0, 1]."""
        maps = self.norm(self.project(z).reshape(len(z), -1, *self.grid))
        return torch.sigmoid(centre_crop(self.picture(self.blocks(maps)), self.size))


class AttentionGeneratorNetwork(nn.Module):
    """Linear to tokens -> transformer blocks -> pixel shuffle -> conv + self-attention -> doublings -> conv3 -> sigmoid.

    At 32 pixels and with 64 channels: 8·8 tokens of 256 with learned positions, pixel-shuffled to 16 x 16 x 64, a
    convolution to 128 followed by self-attention between the 256 cells, a doubling with a convolution to 64, and the
    picture. Blocks are pre-norm (LayerNorm, GELU, MLP ratio 4); behind the tokens the parts are those of
    `ConvGenerator`. All of it is inferred (see above).

    Args:
        latent: D of the latent vectors, drawn from N(0, 1).
        channels: of the last maps; tokens are four times as wide.
        size: (height, width) in pixels, at least 8 x 8.
        depth: transformer blocks.
        heads: of the blocks and of the self-attention; a divisor of 2·channels.
        exchange: as in `ConvGenerator`.

    Attributes:
        latent: as given.
        size: as given.
        project: the first layer, Linear.

    Raises:
        UserError: a number is out of its range.
    """

    def __init__(
        self,
        latent: int,
        channels: int = 64,
        *,
        size: tuple[int, int],
        depth: int = 2,
        heads: int = 4,
        exchange: float = 0.0,
    ) -> None:
        super().__init__()
        require_sizes(latent, channels, size, exchange)
        if depth < 1 or heads < 1 or 2 * channels % heads:
            raise UserError(
                f"A generator with attention of {channels} channels cannot have {depth} blocks of {heads} heads: it "
                f"needs at least one block, and heads must divide {2 * channels}."
            )
        self.latent, self.size = latent, size
        self.grid, doublings = first_grid(size)
        tokens, width = self.grid[0] * self.grid[1], 4 * channels
        self.project = nn.Linear(latent, width * tokens)
        self.positions = nn.Parameter(torch.randn(1, tokens, width) * 0.02)
        self.transformer = nn.Sequential(*(_TransformerBlock(width, heads) for _ in range(depth)))
        self.shuffle = nn.Sequential(
            nn.LayerNorm(width), _TokensToMap(self.grid), nn.PixelShuffle(2), *_convolution(channels, 2 * channels)
        )
        self.attention = _MapAttention(2 * channels, heads)
        after = doublings - 1
        widths = [2 * channels] * (after // 2) + [channels] * (after - after // 2)
        between = [ChannelExchange(exchange)] if exchange else []
        self.blocks = nn.Sequential(*between, *_doublings(2 * channels, widths, exchange))
        self.picture = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """(B, latent) to (B, 3, height, width) in [0, 1]."""
        tokens = self.project(z).reshape(len(z), *self.positions.shape[1:]) + self.positions
        maps = self.blocks(self.attention(self.shuffle(self.transformer(tokens))))
        return torch.sigmoid(centre_crop(self.picture(maps), self.size))


class ChannelExchange(nn.Module):
    """Each channel of each picture's map is taken from the next picture of the batch with probability p.

    After SpaceshipNet (Yu et al., CVPR 2023), which exchanges channels of its generator's maps between pictures for
    diversity; where and how many is inferred, for we know its abstract only. As the latent vectors are independent, the
    next picture is as good a partner as a random one.

    Args:
        probability: in [0, 1].
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        foreign = torch.rand(*maps.shape[:2], 1, 1, device=maps.device) < self.probability
        return torch.where(foreign, maps.roll(1, 0), maps)


def first_grid(size: tuple[int, int]) -> tuple[tuple[int, int], int]:
    """The grid at which a generator of pictures of `size` begins, and how often it is doubled.

    28 -> (7, 2), 32 -> (8, 2), 48 -> (6, 3), 64 -> (8, 3), 224 -> (7, 5); the grid times 2^doublings is at least `size`.
    """
    doublings = _LEAST_DOUBLINGS
    while max(size) > _FIRST_CELLS << doublings:
        doublings += 1
    return (-(-size[0] >> doublings), -(-size[1] >> doublings)), doublings


def centre_crop(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle `size` of (B, C, H, W)."""
    top, left = (images.shape[-2] - size[0]) // 2, (images.shape[-1] - size[1]) // 2
    return images[..., top : top + size[0], left : left + size[1]]


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """By the statistics of the batch in every mode, without buffers; see the top of this file."""
    return nn.BatchNorm2d(channels, track_running_stats=False)


def require_sizes(latent: int, channels: int, size: tuple[int, int], exchange: float) -> None:
    """Refuse what no generator can be built of.

    Raises:
        UserError: says which number it is.
    """
    if latent < 1 or channels < 1:
        raise UserError(f"A generator has latent={latent} and channels={channels}; both must be at least 1.")
    if min(size) < 8:
        raise UserError(f"A generator makes pictures of at least 8 x 8 pixels, not {size[0]} x {size[1]}.")
    if not 0 <= exchange <= 1:
        raise UserError(f"A generator has exchange={exchange}; it is a probability, from 0 to 1.")


class _TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        inner = self.norm1(tokens)
        tokens = tokens + self.attention(inner, inner, inner, need_weights=False)[0]
        changed: Tensor = tokens + self.mlp(self.norm2(tokens))
        return changed


class _MapAttention(nn.Module):
    """Every cell of a map asks all others; added to the map."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)

    def forward(self, maps: Tensor) -> Tensor:
        inner = self.norm(maps.flatten(2).transpose(1, 2))
        found: Tensor = self.attention(inner, inner, inner, need_weights=False)[0]
        return maps + _as_map(found, (maps.shape[-2], maps.shape[-1]))


class _TokensToMap(nn.Module):
    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, tokens: Tensor) -> Tensor:
        return _as_map(tokens, self.grid)


def _as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, N, C) to (B, C, rows, columns)."""
    return tokens.transpose(1, 2).reshape(len(tokens), -1, *grid)


def _convolution(entering: int, leaving: int) -> list[nn.Module]:
    """Without a bias, which the norm behind it would take away again."""
    return [
        nn.Conv2d(entering, leaving, 3, padding=1, bias=False),
        batch_norm(leaving),
        nn.LeakyReLU(0.2, inplace=True),
    ]


def _doublings(entering: int, widths: list[int], exchange: float) -> list[nn.Module]:
    """A doubling to each of the widths, with exchanges between them."""
    layers: list[nn.Module] = []
    for index, leaving in enumerate(widths):
        layers += [nn.Upsample(scale_factor=2), *_convolution(entering, leaving)]
        if exchange and index < len(widths) - 1:
            layers.append(ChannelExchange(exchange))
        entering = leaving
    return layers
