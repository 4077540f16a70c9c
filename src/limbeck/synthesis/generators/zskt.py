"""A generator that seeks pictures on which the student's distribution is far from the teacher's.

Micaelli and Storkey, "Zero-shot Knowledge Transfer via Adversarial Belief Matching" (ZSKT), NeurIPS 2019,
arXiv:1905.09768. The generator's part only: the student of the paper minimises the same divergence (`--method kd` with
temperature 1) and, between convolutional networks, the distance of spatial attention maps. The generator is that of the
code base of CMI, which compares all such methods with one network.
"""

from typing import ClassVar

from torch import Tensor

from limbeck.call_checks import require_positive
from limbeck.models.base import VisionModel
from limbeck.synthesis.base import Setting
from limbeck.synthesis.generators.streamed import GeneratorMethod
from limbeck.synthesis.priors.disagreement import kullback_leibler


class ZSKT(GeneratorMethod):
    """L_G = -KL(t ‖ s), which has nothing to say without a student.

    Args:
        setting: what for.
        temperature: of both distributions; above 0.
        latent: D of the latent vectors.
        channels: of the generator's last maps.
        lr: of Adam.
        betas: of Adam.
        student_steps: steps of the student for each call of `learn`.
        updates: of the generator in each call of `learn`.
        generator_steps: updates before pictures are drawn against a finished student; ours.
    """

    needs_learning_student: ClassVar[bool] = True

    def __init__(
        self,
        setting: Setting,
        *,
        temperature: float = 1.0,
        latent: int = 256,
        channels: int = 64,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.5, 0.999),
        student_steps: int = 10,
        updates: int = 1,
        generator_steps: int = 2000,
    ) -> None:
        require_positive("ZSKT", temperature=temperature)
        self.temperature = temperature
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
        """The divergence, whose weight is -1."""
        assert student is not None
        divergence = kullback_leibler(self.setting.teacher(images).logits, student(images).logits, self.temperature)
        return {"disagreement": divergence.mean()}
