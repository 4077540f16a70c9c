"""Function matching: agree with the teacher on every view, for a very long time, without labels.

Beyer, Zhai, Royer, Markeeva, Anil, Kolesnikov, "Knowledge distillation: A good teacher is patient and consistent", CVPR
2022, arXiv:2106.05237.

The formula is that of `kd` at temperature 1; what is new is the recipe, and only all of it gives the published numbers:

* labels have no weight (`default_task_weight` 0);
* both models see the same crop and the same mixed image, which holds in Limbeck for every method;
* Mixup always, its coefficient uniform in [0, 1], on random resized crops: `--mixup 1.0 --crop resized`;
* patience: on ImageNet 300 epochs are the cheap run, 1200 the released one and 9600 the headline's, at batch 4096 with Adam
  (learning rate 0.03, decoupled weight decay 3e-4, gradients clipped at 1, 5000 steps of warm-up, cosine).
"""

from typing import ClassVar

from limbeck.losses.kd import KD
from limbeck.outputs import ModelFacts


class FunctionMatching(KD):
    """`kd_loss` on the logits of both models, at temperature 1 and in place of the labels.

    Args:
        student: facts of the student.
        teacher: facts of the teacher.
        temperature: τ > 0.

    Raises:
        UserError: the temperature is not positive, or the models' classes differ in number.
    """

    method: ClassVar[str] = "function_matching"
    default_task_weight: ClassVar[float] = 0.0

    def __init__(self, student: ModelFacts, teacher: ModelFacts, *, temperature: float = 1.0) -> None:
        super().__init__(student, teacher, temperature=temperature)
        self.notes = ("the published gains come with --mixup 1.0 and very many epochs (300 to 9600 on ImageNet).",)

    @property
    def default_weight(self) -> float:
        """1; the labels have none."""
        return 1.0
