"""A generator with self-attention inside that puzzles the student and sharpens what the teacher attends to.

After Habib et al., "Optimizing Vision Transformers with Data-Free Knowledge Transfer", 2024, arXiv:2408.05952, of which we
could read the abstract only. By others' summaries its generator has self-attention layers and the loss L_G = L_adv +
λ·L_attention; neither the terms nor λ nor the network nor a rate of learning are known to us. EVERYTHING here beyond that
line is inferred:

* there is no real picture for a discriminator, so L_adv takes the fixed teacher (DAFL) and the student that disagrees
  (with Fast-DFKD's mask) in its place;
* L_attention wants the class token to attend to few patches, which is how Attention Probe (ICASSP 2022), whose words the
  summaries use, tells useful pictures of a pool, and patches to be unlike each other (MaskAQ's Gaussian form);
* the network is `AttentionGeneratorNetwork`; the weights 0.5, 1 and 1 are our plan's, the others DAFL's; the rest is DFAD's.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.models.attention import Attention, attention_blocks
from limbeck.models.base import VisionModel
from limbeck.outputs import Request
from limbeck.synthesis.base import Setting
from limbeck.synthesis.generators.adversaries import activation_loss, balance_loss, one_hot_loss
from limbeck.synthesis.generators.networks import AttentionGeneratorNetwork, ConvGenerator
from limbeck.synthesis.generators.streamed import GeneratorMethod
from limbeck.synthesis.priors.attention_rows import among_patches
from limbeck.synthesis.priors.base import Needs, Seen
from limbeck.synthesis.priors.disagreement import agreement, kullback_leibler
from limbeck.synthesis.priors.patch_similarity import GaussianDiversity, why_no_diversity
from limbeck.synthesis.priors.precision import full
from limbeck.synthesis.seeing import Eyes


class AttentionGenerator(GeneratorMethod):
    """L_G = L_adv + attention·(diversity·L_div - peakedness·Σ_layers peakedness).

    L_adv = one_hot·CE(t, argmax t) + activation·(-mean|f_t|) + balance·Σ p̄ log p̄ - disagreement·KL(t ‖ s)·1[argmax t =
    argmax s]. Without a student the last term is left out; with a teacher whose attention cannot be read L_attention is
    L_div on its feature maps.

    Args:
        setting: what for.
        adversary: "dafl" leaves out the term of disagreement, "disagreement" the three others, "both" none.
        one_hot: weight of `one_hot_loss`.
        activation: weight of `activation_loss`; 0 by default, for a transformer's pooled vector is normalised.
        balance: weight of `balance_loss`; DAFL's, relative to `one_hot`.
        disagreement: weight of the divergence where both name the same class.
        attention: λ.
        peakedness: weight of `attention_peakedness` within L_attention.
        diversity: weight of `GaussianDiversity` within L_attention.
        generator: "attention", or "conv" for the control without any.
        exchange: see `ChannelExchange`.
        depth: transformer blocks of the generator with attention.
        heads: of these.
        latent: D of the latent vectors.
        channels: of the generator's last maps.
        lr: of Adam.
        betas: of Adam.
        student_steps: steps of the student for each call of `learn`.
        updates: of the generator in each call of `learn`.
        generator_steps: updates before pictures are drawn without a learning student.

    Raises:
        UserError: an option is out of its range, or all weights are 0.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        adversary: Literal["dafl", "disagreement", "both"] = "both",
        one_hot: float = 0.5,
        activation: float = 0.0,
        balance: float = 10.0,
        disagreement: float = 1.0,
        attention: float = 1.0,
        peakedness: float = 1.0,
        diversity: float = 1.0,
        generator: Literal["attention", "conv"] = "attention",
        exchange: float = 0.0,
        depth: int = 2,
        heads: int = 4,
        latent: int = 256,
        channels: int = 64,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.5, 0.999),
        student_steps: int = 5,
        updates: int = 1,
        generator_steps: int = 2000,
    ) -> None:
        self.generator, self.exchange, self.depth, self.heads = generator, exchange, depth, heads
        weights = {"peakedness": -attention * peakedness, "diversity": attention * diversity}
        if adversary != "disagreement":
            weights |= {"one_hot": one_hot, "activation": activation, "balance": balance}
        if adversary != "dafl":
            weights |= {"disagreement": -disagreement}
        notes: list[str] = []
        if attention and not attention_blocks(setting.teacher):
            notes.append(f"{setting.teacher.facts.name} has no attention that can be read: none is made peaked")
            weights["peakedness"] = 0.0
        self._diversity = _diversity_of(setting.teacher, notes) if weights["diversity"] else None
        if self._diversity is None:
            weights["diversity"] = 0.0
        super().__init__(
            setting,
            weights,
            latent=latent,
            channels=channels,
            lr=lr,
            betas=betas,
            student_steps=student_steps,
            updates=updates,
            generator_steps=generator_steps,
        )
        self.needs_student = adversary == "disagreement"
        self.notes += notes

    def make_network(self) -> nn.Module:
        """The network that was asked for."""
        size = self.setting.size
        if self.generator == "conv":
            return ConvGenerator(self.latent, self.channels, size=size, exchange=self.exchange)
        return AttentionGeneratorNetwork(
            self.latent, self.channels, size=size, depth=self.depth, heads=self.heads, exchange=self.exchange
        )

    def terms(self, images: Tensor, student: VisionModel | None) -> dict[str, Tensor]:
        """See the class; the terms that are asked for and can be had."""
        asked = student if "disagreement" in self.weights else None
        with Eyes(self.setting.teacher, self._needs(asked), asked) as eyes:
            shown = self.setting.teacher.prepare(images)
            return self._terms_of(eyes.look(shown, shown))

    def _needs(self, student: VisionModel | None) -> Needs:
        own = Needs(
            Request(pooled="activation" in self.weights),
            attention="peakedness" in self.weights,
            student=student is not None,
        )
        return own if self._diversity is None else Needs.union((own, self._diversity.needs))

    def _terms_of(self, seen: Seen) -> dict[str, Tensor]:
        logits, pooled = seen.outputs.logits, seen.outputs.pooled
        terms = {"one_hot": one_hot_loss(logits), "balance": balance_loss(logits)}
        if pooled is not None:
            terms["activation"] = activation_loss(pooled)
        if seen.student_logits is not None:
            divergence = kullback_leibler(logits, seen.student_logits)
            terms["disagreement"] = (divergence * agreement(logits, seen.student_logits)).mean()
        if "peakedness" in self.weights:
            layers = [attention_peakedness(layer) for layer in among_patches(seen.attentions)]
            terms["peakedness"] = torch.stack(layers).sum()
        if self._diversity is not None:
            terms["diversity"] = self._diversity(seen)
        return terms


def attention_peakedness(attention: Attention) -> Tensor:
    """1 - H(a) / log N, mean over pictures and heads, of how the class token attends to the N patches.

    0 where it attends to all alike, 1 where to one alone. Without a class token see `Attention.class_attention`.

    Args:
        attention: of one block, of at least two patches.
    """
    to_patches = full(attention.class_attention())
    # The entropy's slope is infinite at 0, where a softmax may have rounded to.
    entropy = torch.special.entr(to_patches.clamp_min(torch.finfo(to_patches.dtype).tiny)).sum(-1)
    flatness: Tensor = entropy.mean() / math.log(to_patches.shape[-1])
    return 1 - flatness


def _diversity_of(teacher: VisionModel, notes: list[str]) -> GaussianDiversity | None:
    """The term on the teacher's attention or maps; None, with a note, where it has neither."""
    blind = why_no_diversity(teacher)
    if blind is not None:
        notes.append(f"{blind}; the diversity of patches is left out.")
        return None
    diversity = GaussianDiversity(teacher)
    notes.extend(diversity.notes)
    return diversity
