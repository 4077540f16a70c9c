"""The mobile vision transformer: what its design promises, in numbers."""

import subprocess
import sys
from itertools import pairwise

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from limbeck.errors import UserError
from limbeck.models import load_model, save_model
from limbeck.models.ipe_vit import DEIT_SHRUNK, NETWORKS
from limbeck.models.ipe_vit.embedding import KERNEL, Branch, WholeMap, branch_grid, parse_branches, resized_table
from limbeck.models.ipe_vit.fusion import PatchFusion
from limbeck.models.ipe_vit.network import POOLINGS, IpeVit
from limbeck.outputs import Request
from limbeck.recipe import TrainRecipe
from limbeck.training.optimisers import make_optimizer

# Patches of the three branches by image size, from floor((h + 2p - k) / s) + 1 with k = 5 and p = 2.
PATCHES = {128: 21, 160: 35, 192: 46, 224: 66, 240: 81, 256: 81, 288: 107, 320: 126}

# Millions of parameters and of multiply-adds at 224 pixels and 1000 classes, from the analytic counts of the sizes' table.
SIZES = {
    "ipe_vit_75m": (0.89, 74),
    "ipe_vit_150m": (1.95, 140),
    "ipe_vit_300m": (3.67, 292),
    "ipe_vit_600m": (7.84, 572),
}


def tiny(**options: object) -> IpeVit:
    torch.manual_seed(0)
    settings = {"width": 0.25, "embed_dim": 32, "depth": 2, "num_classes": 7, "img_size": 64} | options
    return IpeVit(**settings).eval()  # type: ignore[arg-type]


def multiply_adds(network: nn.Module, size: int) -> float:
    # The fused attention of the CPU is not in the counter's list; written out, its two products are counted.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.rand(1, 3, size, size))
    return counter.get_total_flops() / 2e6


@pytest.mark.parametrize(("size", "count"), PATCHES.items())
def test_patches_at_eight_sizes(size: int, count: int) -> None:
    network = tiny(img_size=size)
    tokens, grids, _ = network.encode(torch.rand(1, 3, size, size))
    assert tokens.shape[1] == sum(h * w for h, w in grids) == count
    assert grids[0] == (1, 1)
    assert all(fine > coarse for coarse, fine in pairwise(grids))


def test_patches_of_the_networks_for_small_images() -> None:
    assert [h * w for h, w in tiny(img_size=32, stem_stride=4).grids] == [1, 4, 16]


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_of_the_table(name: str) -> None:
    network = timm.create_model(name).eval()
    parameters, macs = SIZES[name]
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(parameters, rel=0.02)
    assert multiply_adds(network, 224) == pytest.approx(macs, rel=0.02)


@pytest.mark.parametrize("name", DEIT_SHRUNK)
def test_the_shrunk_deit_costs_what_its_rival_costs(name: str) -> None:
    control, rival = timm.create_model(name).eval(), timm.create_model(name.replace("deit_shrunk", "ipe_vit")).eval()
    size = rival.img_size[0]
    assert 0.95 < multiply_adds(control, size) / multiply_adds(rival, size) < 1.08


def pixel_gradient(branch: nn.Module, stem: nn.Module, size: int) -> Tensor:
    images = torch.rand(1, 3, size, size, requires_grad=True)
    patches = branch(stem(images)[-1])
    (patches * torch.randn_like(patches)).sum().backward()
    assert images.grad is not None
    return images.grad.abs().sum(1)[0]


@pytest.mark.parametrize("block", ["ir_se", "ir", "plain", "separable"])
@pytest.mark.parametrize("reduction", ["full", "pool"])
def test_every_pixel_has_a_gradient_in_every_branch(block: str, reduction: str) -> None:
    network = tiny(img_size=224, branch_block=block, global_reduction=reduction)
    for branch in network.branches:
        assert (pixel_gradient(branch, network.stem, 224) > 0).all()


@pytest.mark.parametrize(("stride", "kernel"), [(14, 3), (4, 1)])
def test_a_kernel_that_skips_places_would_be_noticed(stride: int, kernel: int) -> None:
    network = tiny(img_size=224)
    (mid,) = (b for name, b in zip(network.branch_names, network.branches, strict=True) if name == "mid")
    (old,) = (m for m in mid.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (KERNEL, KERNEL))
    skipping = nn.Conv2d(old.in_channels, old.in_channels, kernel, stride, kernel // 2, groups=old.groups, bias=False)
    plain_stem = nn.Sequential(nn.Conv2d(3, network.stem.channels[-1], 16, 16))
    body = mid.body.body
    index = next(i for i, m in enumerate(body) if m is old)
    body[index] = skipping
    # Squeeze-and-excitation sees only what the kernel lets through, so nothing makes up for the skipped places.
    gradient = pixel_gradient(mid, lambda images: [plain_stem(images)], 224)
    assert (gradient == 0).any()


FUSIONS = [
    {"reading": reading, "squash": squash, "renormalise": renormalise}
    for reading in ("token", "token_se", "pooled")
    for squash in ("sigmoid", "softmax")
    for renormalise in (False, True)
]


@pytest.mark.parametrize("options", [*FUSIONS, {"use_global": False}, {"use_adaptive": False}])
def test_fusion_starts_as_the_average(options: dict[str, object]) -> None:
    fusion = PatchFusion(16, [(1, 1), (2, 2), (4, 4)], **options)  # type: ignore[arg-type]
    fusion.init_weights()
    tokens = torch.randn(3, 21, 16)
    torch.testing.assert_close(fusion(tokens, [(1, 1), (2, 2), (4, 4)]), tokens.mean(1))


def test_fusion_starts_as_the_average_at_other_sizes() -> None:
    fusion = PatchFusion(16, [(1, 1), (2, 2), (4, 4)])
    fusion.init_weights()
    tokens = torch.randn(3, 46, 16)
    torch.testing.assert_close(fusion(tokens, [(1, 1), (3, 3), (6, 6)]), tokens.mean(1))


def test_fusion_is_the_weighted_sum_of_its_definition() -> None:
    torch.manual_seed(0)
    grids = [(1, 1), (2, 3)]
    fusion = PatchFusion(8, grids)
    for parameter in fusion.parameters():
        nn.init.normal_(parameter)
    tokens = torch.randn(2, 7, 8)
    first, _, last = fusion.adaptive
    expected = torch.zeros(2, 8)
    tables = [table.flatten() for table in fusion.global_weights]
    shared = torch.cat(tables)
    for image in range(2):
        for patch in range(7):
            x = tokens[image, patch]
            score = last.weight @ nn.functional.gelu(first.weight @ x + first.bias) + last.bias
            expected[image] += shared[patch] * 2 * torch.sigmoid(score) * x
    torch.testing.assert_close(fusion(tokens, grids), expected)


def test_a_whole_network_starts_with_average_pooling() -> None:
    fused, averaged = tiny(), tiny(pooling="gap")
    averaged.load_state_dict(fused.state_dict(), strict=False)
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(fused(images), averaged(images))


def test_the_whole_map_kernel_keeps_the_average_on_other_grids() -> None:
    kernel = WholeMap(5, (4, 4))
    nn.init.constant_(kernel.weight, 1 / 16)
    map_ = torch.rand(2, 5, 7, 9)
    torch.testing.assert_close(kernel(map_), map_.mean((2, 3), keepdim=True))
    own = torch.rand(2, 5, 4, 4)
    torch.testing.assert_close(kernel(own), nn.functional.conv2d(own, kernel.weight.transpose(0, 1), groups=5))


def test_a_table_resized_to_its_own_grid_is_itself() -> None:
    table = torch.randn(1, 6, 7, 7)
    torch.testing.assert_close(resized_table(table, (7, 7), always=True), table, rtol=0, atol=1e-6)
    torch.testing.assert_close(resized_table(table.new_ones(1, 6, 7, 7), (9, 5)), torch.ones(1, 6, 9, 5))


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (128, 160)])
@pytest.mark.parametrize("options", [{}, {"pooling": "cls", "positions": "sincos"}, {"distilled": True}])
def test_any_size_and_the_graph_for_unknown_sizes_agree(size: tuple[int, int], options: dict[str, object]) -> None:
    network = tiny(**options)
    images = torch.rand(2, 3, *size)
    usual = network(images)
    network.dynamic_size = True
    assert usual.shape == (2, 7)
    torch.testing.assert_close(network(images), usual)


def test_timm_knows_the_networks_whichever_is_imported_first() -> None:
    ask = "import sys; assert timm.is_model('ipe_vit_300m') and timm.is_model('deit_shrunk_75m_32')"
    for imports in ("import limbeck, timm", "import timm, limbeck"):
        subprocess.run([sys.executable, "-c", f"{imports}; {ask}"], check=True)


def test_importing_limbeck_imports_neither_timm_nor_torch() -> None:
    ask = "import limbeck, sys; assert not {'torch', 'timm', 'torchvision'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", ask], check=True)


def test_timm_and_limbeck_give_the_same_network() -> None:
    ours = load_model("limbeck:ipe_vit_75m_32", num_classes=5).eval()
    theirs = load_model("timm:ipe_vit_75m_32", num_classes=5, pretrained=False).eval()
    theirs.network.load_state_dict(ours.network.state_dict())
    images = torch.rand(2, 3, 32, 32)
    own = ours(images, Request(tuple(level.name for level in ours.facts.levels), pooled=True, final=True))
    other = theirs(images, Request(tuple(level.name for level in theirs.facts.levels), pooled=True, final=True))
    torch.testing.assert_close(own.logits, other.logits)
    torch.testing.assert_close(own.pooled, other.pooled)
    torch.testing.assert_close(own.final, other.final)
    for level, twin in zip(ours.facts.levels, theirs.facts.levels, strict=True):
        assert (level.channels, level.stride, level.grid) == (twin.channels, twin.stride, twin.grid)
        torch.testing.assert_close(own.maps[level.name], other.maps[twin.name])


@pytest.mark.parametrize("name", [*NETWORKS, "ipe_vit_75m(stem=patchify)", "ipe_vit_75m(branches=uniform)"])
def test_maps_are_what_the_facts_say(name: str) -> None:
    model = load_model(f"limbeck:{name}", num_classes=3).eval()
    with torch.no_grad():
        outputs = model(
            torch.rand(1, 3, 40, 40),
            Request(tuple(level.name for level in model.facts.levels), pooled=True, final=True),
        )
    assert outputs.pooled.shape == (1, model.facts.pooled_channels)
    for level, map_ in [
        *((level, outputs.maps[level.name]) for level in model.facts.levels),
        (model.facts.final, outputs.final),
    ]:
        assert map_.shape == (1, level.channels, *level.grid)
        assert level.stride * level.grid[0] == pytest.approx(model.facts.input_size[0], rel=0.15)


def test_the_fine_map_holds_the_patches_of_the_fine_branch() -> None:
    network = tiny(depth=1, positions="none", token_norm=False)
    nn.init.zeros_(network.blocks[0].attn.proj.weight)
    nn.init.zeros_(network.blocks[0].mlp.fc2.weight)
    images = torch.rand(2, 3, 64, 64)
    _, _, maps = network.encode(images, ["blocks.0"])
    torch.testing.assert_close(maps["blocks.0"], network.branches[-1](network.stem(images)[-1]))


def test_distilled_averages_two_heads_and_trains_them_apart() -> None:
    network = tiny(distilled=True)
    images = torch.rand(2, 3, 64, 64)
    tokens = network.forward_features(images)
    one, two = network.fusions[0](tokens, network.grids), network.fusions[1](tokens, network.grids)
    torch.testing.assert_close(network(images), (network.head(one) + network.head_dist(two)) / 2)
    network.set_distilled_training()
    network.train()
    assert [tuple(logits.shape) for logits in network(images)] == [(2, 7), (2, 7)]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_poolings_differ_once_trained(pooling: str) -> None:
    network = tiny(pooling=pooling)
    names = {name.split(".")[0] for name, _ in network.named_parameters()}
    assert ("fusions" in names) == (pooling in ("global", "adaptive", "apf"))
    assert ("cls_token" in names) == (pooling == "cls")
    parts = {name.split(".")[2] for name, _ in network.named_parameters() if name.startswith("fusions")}
    expected = {"global": {"global_weights"}, "adaptive": {"adaptive"}, "apf": {"global_weights", "adaptive"}}
    assert parts == expected.get(pooling, set())


def test_saved_weights_open_at_another_size(tmp_path: object) -> None:
    model = load_model("limbeck:ipe_vit_75m_32(embed_dim=32)", num_classes=4).eval()
    save_model(model, tmp_path)  # type: ignore[arg-type]
    larger = load_model(str(tmp_path), input_size=(64, 64)).eval()
    assert larger.facts.final.grid == (8, 8)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        resized = model.read((images - model.mean) / model.std, Request()).logits
        torch.testing.assert_close(larger(images).logits, resized)


def test_weight_decay_spares_positions_and_shares() -> None:
    network = tiny(pooling="apf")
    recipe = TrainRecipe(model="x", data="digits", lr=1e-3, weight_decay=0.05, decay_norms=False)
    spared = make_optimizer(network.named_parameters(), recipe).param_groups[1]["params"]
    spared_ids = {id(p) for p in spared}
    assert network.no_weight_decay()
    for name, parameter in network.named_parameters():
        expected = parameter.ndim <= 1 or name in network.no_weight_decay()
        assert (id(parameter) in spared_ids) == expected, name


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"branches": "fine+coarse"}, "'coarse' is no branch"),
        ({"branches": "fine+fine"}, "named twice"),
        ({"branch_block": "mlp"}, "branch_block is 'mlp'"),
        ({"stem": "resnet"}, "stem is 'resnet'"),
        ({"stem_stride": 5}, "stem_stride is 5"),
        ({"pooling": "max"}, "pooling is 'max'"),
        ({"positions": "rope"}, "positions is 'rope'"),
        ({"fusion": "map"}, "fusion is 'map'"),
        ({"fusion_squash": "tanh"}, "fusion_squash is 'tanh'"),
        ({"global_reduction": "max"}, "global_reduction is 'max'"),
        ({"embed_dim": 40}, "multiple of head_dim"),
        ({"depth": 0}, "at least 1 block"),
        ({"width": 0}, "width is 0"),
        ({"distilled": True, "pooling": "gap"}, "needs a fusion"),
        ({"img_size": 16}, "too small"),
    ],
)
def test_impossible_options_are_explained(options: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        tiny(**options)


def test_a_fusion_that_knows_its_patches_refuses_others() -> None:
    with pytest.raises(UserError, match="made for 6 patches"):
        tiny(fusion="pooled")(torch.rand(1, 3, 96, 96))


def test_branches_of_the_other_scales() -> None:
    assert branch_grid("uniform", (14, 14)) == (14, 14)
    assert branch_grid("square", (14, 14)) == (8, 8)
    assert parse_branches("fine + global+mid") == ("global", "mid", "fine")
    patches = Branch("square", 8, 16, (14, 14))(torch.rand(2, 8, 14, 14))
    assert patches.shape == (2, 16, 8, 8)
