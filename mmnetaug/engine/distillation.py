"""In-place distillation: the augmented network of a step teaches the tiny network on the same batch.

Slimmable and once-for-all networks are trained this way (Yu & Huang, 2019; Yu et al., 2020; Wang et al., 2021), and so
are tiny networks by NetDistiller (Zhang et al., 2023).
"""

from __future__ import annotations

from torch import Tensor

from mmnetaug.models.distillation import OutputDivergence, Outputs


class InPlaceDistillation(OutputDivergence):
    """The loss of the base pass, (1 − λ) · L + λ · D, where D compares the outputs of the two networks.

    Args:
        weight: λ, above 0 and at most 1.
        temperature: T of D, above 0.

    Attributes:
        last: D of the last base pass.
    """

    def __init__(self, weight: float = 0.5, temperature: float = 1.0) -> None:
        if not 0 < weight <= 1:
            raise ValueError(f"distill.weight must be above 0 and at most 1, got {weight}")
        super().__init__(temperature)
        self.weight = weight
        self.last = 0.0

    def mix(self, loss: Tensor, teacher: Outputs) -> Tensor:
        """The total loss of the base pass.

        Args:
            loss: The loss on the annotations, a scalar.
            teacher: The augmented network's outputs, of all images or the first ones.

        Raises:
            TypeError: The outputs hold nothing that can be compared.
        """
        divergence = self.between(self.take(), teacher)
        self.last = divergence.item()
        return (1 - self.weight) * loss + self.weight * divergence
