"""NAYER: a generator that begins from what the classes are called, through layers of noise.

Tran, Le, Le, Cao, Bui, Zhao, Phung, "NAYER: Noisy Layer Data Generation for Efficient and Effective Data-free Knowledge
Distillation", CVPR 2024, arXiv:2310.00258. Vectors of the classes carry over from batch to batch what a random latent
vector would have to find anew; the noise is in the layer behind them, not beside them.
"""

import torch
from torch import Tensor

from limbeck.call_checks import require_at_least, require_positive
from limbeck.errors import UserError
from limbeck.models.base import VisionModel
from limbeck.synthesis.base import Made, Setting
from limbeck.synthesis.generators.class_embeddings import NoisyLayers, class_embeddings
from limbeck.synthesis.generators.grown import BETAS, GrownGenerator


class NAYER(GrownGenerator):
    """NAYER; a round is a few batches of the setting's `batch_size` pictures (published 400).

    Published for networks with BatchNorm.

    Args:
        setting: any teacher.
        embeddings: of the classes: 'hf:NAME' or 'hf:FOLDER', a CLIP of transformers (published: openai/clip-vit-base-patch32);
            'teacher', the rows of the teacher's classifier (ours); FILE.npz with an array `embeddings` (K, D); or 'auto',
            which is 'teacher'.
        g_steps: steps of a batch; published 40, or 30.
        loops: batches of a round.
        warmup_loops: batches of each of the first `warmup_rounds` rounds.
        generator_rounds: rounds after which the generator starts anew.
        lr_g: of its Adam.
        bn: weight of the distance of BatchNorm statistics.
        oh: weight of the class loss.
        adv: weight of the disagreement with a student.
        prior: weight of each stand-in where the teacher has no BatchNorm (ours).
        bn_momentum: of the running statistics of synthetic pictures with which a batch's are blended.
        warmup_rounds: rounds before a student learns.
        latent: width of the noisy layers' result; published 256 for CIFAR, 1000 for ImageNet.
        channels: of the generator's last maps.

    Raises:
        FileNotFoundError: the file of embeddings does not exist.
        UserError: an option is out of range, or the embeddings cannot be had.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        embeddings: str = "auto",
        g_steps: int = 40,
        loops: int = 2,
        warmup_loops: int = 10,
        generator_rounds: int = 10,
        lr_g: float = 4e-3,
        bn: float = 10.0,
        oh: float = 0.5,
        adv: float = 1.33,
        prior: float = 1.0,
        bn_momentum: float = 0.9,
        warmup_rounds: int = 20,
        latent: int = 256,
        channels: int = 64,
    ) -> None:
        super().__init__(
            setting,
            bn=bn,
            oh=oh,
            adv=adv,
            prior=prior,
            bn_momentum=bn_momentum,
            warmup_rounds=warmup_rounds,
            latent=latent,
            channels=channels,
        )
        require_at_least(
            "nayer", 1, g_steps=g_steps, loops=loops, warmup_loops=warmup_loops, generator_rounds=generator_rounds
        )
        require_positive("nayer", lr_g=lr_g)
        if min(setting.batch_size, setting.num_classes) < 2:
            raise UserError(
                "nayer normalises over the classes of a batch and needs at least 2 of them; batch_size is "
                f"{setting.batch_size} and the teacher's classes are {setting.num_classes}. Use fast, or larger batches."
            )
        self.g_steps, self.loops, self.warmup_loops = g_steps, loops, warmup_loops
        self.generator_rounds, self.lr_g = generator_rounds, lr_g
        self.embeddings, note = class_embeddings(setting, embeddings)
        self.notes.append(note)
        self.begin()

    def begin(self) -> None:
        """A new generator with its noisy layers."""
        self._renew(0)

    def make_round(self, student: VisionModel | None, round: int) -> Made:
        """`loops` batches (`warmup_loops` in the first rounds), one after the other."""
        if round % self.generator_rounds == 0:
            self._renew(round)
        loops = self.warmup_loops if round < self.warming else self.loops
        earlier = sum(self.warmup_loops if r < self.warming else self.loops for r in range(round))
        made = [self._batch(student, earlier + loop, (loop, loops)) for loop in range(loops)]
        # On the CPU, since a warm-up's batches together are large.
        return Made(torch.cat([images.cpu() for images, _ in made]), torch.cat([asked.cpu() for _, asked in made]))

    def _batch(self, student: VisionModel | None, number: int, part: tuple[int, int]) -> tuple[Tensor, Tensor]:
        noise, generator = self.networks["noise"], self.networks["generator"]
        assert isinstance(noise, NoisyLayers)
        noise.redraw()
        # Each batch begins with a whole order of the classes: within the reach of one noisy layer none comes twice, and
        # no two pictures are thus the same.
        asked = self.asked(number * self._groups * self.setting.num_classes, self.setting.batch_size)
        learning = torch.optim.Adam([*noise.parameters(), *generator.parameters()], self.lr_g, BETAS)
        images = self.descend(lambda: generator(noise(asked)), asked, student, [learning], self.g_steps, part=part)
        return images, asked

    @property
    def _groups(self) -> int:
        return -(-self.setting.batch_size // self.setting.num_classes)

    def _renew(self, round: int) -> None:
        with self.seeded("nayer", "generator", round):
            noise = NoisyLayers(self.embeddings.to(self.setting.device), self.latent, self._groups)
            self.networks = {"noise": noise.to(self.setting.device), "generator": self.make_generator()}
