import torch

from limbeck.synthesis.best import Best


def test_best_is_a_copy_that_later_writing_does_not_change() -> None:
    images, best = torch.zeros(2, 3, 2, 2), Best()
    for loss, value in ((3.0, 1.0), (1.0, 2.0), (2.0, 3.0), (float("nan"), 4.0)):
        images.fill_(value)
        best.offer(images, torch.tensor(loss))
    images.fill_(9.0)
    assert best.images is not None and torch.equal(best.images, torch.full_like(images, 2.0))


def test_best_may_be_chosen_for_each_picture() -> None:
    best = Best()
    best.offer(torch.full((2, 3, 2, 2), 1.0), torch.tensor([1.0, 5.0]))
    best.offer(torch.full((2, 3, 2, 2), 2.0), torch.tensor([2.0, 4.0]))
    assert best.images is not None
    assert best.images[0].unique().item() == 1.0 and best.images[1].unique().item() == 2.0
