"""The area under the ROC curve of the classes that are there."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassAUROC
from torchmetrics.utilities import dim_zero_cat


@final
class PresentAUROC(MulticlassAUROC):
    """One against the rest, the mean over the classes that some samples have and others do not; NaN without any.

    torchmetrics counts a class without samples as 0.
    """

    def __init__(self, classes: int, **options: bool) -> None:
        super().__init__(classes, average="none", **options)
        self.classes = classes

    def compute(self) -> Tensor:
        by_class = super().compute()
        target = dim_zero_cat(self.target)
        count = torch.bincount(target, minlength=self.classes)
        return by_class[(count > 0) & (count < len(target))].mean()
