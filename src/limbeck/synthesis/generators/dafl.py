"""A generator whose pictures make the teacher sure, active and balanced.

Chen et al., "Data-Free Learning of Student Networks" (DAFL), ICCV 2019, arXiv:1904.01186. The defaults are those with
which the code base of CMI compares it on CIFAR; another one (mmrazor) has one_hot 0.05, activation 0.01, balance 5,
latent 1000 and lets the student learn with temperature 6. Of the teachers with BatchNorm it knows nothing, and with
vision transformers it is known to be weak: 56 % on CIFAR-10 where an unrelated pool of images gives 94 %.
"""

from torch import Tensor

from limbeck.models.base import VisionModel
from limbeck.outputs import Request
from limbeck.synthesis.base import Setting
from limbeck.synthesis.generators.adversaries import activation_loss, balance_loss, one_hot_loss
from limbeck.synthesis.generators.streamed import GeneratorMethod


class DAFL(GeneratorMethod):
    """L_G = one_hot·CE(t, argmax t) - activation·mean|f_t| + balance·Σ p̄ log p̄, which needs no student.

    Args:
        setting: what for.
        one_hot: weight of `one_hot_loss`.
        activation: weight of `activation_loss` of the vector that enters the teacher's classifier.
        balance: weight of `balance_loss`, within each batch.
        latent: D of the latent vectors.
        channels: of the generator's last maps.
        lr: of Adam.
        betas: of Adam.
        student_steps: steps of the student for each call of `learn`.
        updates: of the generator in each call of `learn`.
        generator_steps: updates before pictures are drawn without a learning student; ours.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        one_hot: float = 1.0,
        activation: float = 1e-3,
        balance: float = 20.0,
        latent: int = 512,
        channels: int = 64,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.5, 0.999),
        student_steps: int = 5,
        updates: int = 1,
        generator_steps: int = 2000,
    ) -> None:
        super().__init__(
            setting,
            {"one_hot": one_hot, "activation": activation, "balance": balance},
            latent=latent,
            channels=channels,
            lr=lr,
            betas=betas,
            student_steps=student_steps,
            updates=updates,
            generator_steps=generator_steps,
        )

    def terms(self, images: Tensor, student: VisionModel | None) -> dict[str, Tensor]:
        """See the class; the student is not asked."""
        outputs = self.setting.teacher(images, Request(pooled=True))
        return {
            "one_hot": one_hot_loss(outputs.logits),
            "activation": activation_loss(outputs.pooled),
            "balance": balance_loss(outputs.logits),
        }
