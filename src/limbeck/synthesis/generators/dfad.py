"""A generator that seeks pictures on which the student's logits are far from the teacher's.

Fang et al., "Data-Free Adversarial Distillation" (DFAD), 2019, arXiv:1912.11006. The generator's part only: the student
of the paper minimises the same distance with SGD (lr 0.1, weight decay 5e-4). The generator is that of the code base of
CMI, which compares all such methods with one network.
"""

from typing import ClassVar

from torch import Tensor

from limbeck.models.base import VisionModel
from limbeck.synthesis.base import Setting
from limbeck.synthesis.generators.adversaries import l1_disagreement
from limbeck.synthesis.generators.streamed import GeneratorMethod


class DFAD(GeneratorMethod):
    """L_G = -mean |t - s| of the logits, which has nothing to say without a student.

    Args:
        setting: what for.
        latent: D of the latent vectors.
        channels: of the generator's last maps.
        lr: of Adam.
        betas: of Adam.
        student_steps: steps of the student for each call of `learn`.
        updates: of the generator in each call of `learn`.
        generator_steps: updates before pictures are drawn against a finished student; ours.
    """

    needs_learning_student: ClassVar[bool] = True
    of_softmax: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self,
        setting: Setting,
        *,
        latent: int = 256,
        channels: int = 64,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.5, 0.999),
        student_steps: int = 5,
        updates: int = 1,
        generator_steps: int = 2000,
    ) -> None:
        super().__init__(
            setting,
            {"disagreement": -1.0},
            latent=latent,
            channels=channels,
            lr=lr,
            betas=betas,
            student_steps=student_steps,
            updates=updates,
            generator_steps=generator_steps,
        )

    def terms(self, images: Tensor, student: VisionModel | None) -> dict[str, Tensor]:
        """The distance, whose weight is -1."""
        assert student is not None
        return {"disagreement": l1_disagreement(student(images).logits, self.setting.teacher(images).logits)}
