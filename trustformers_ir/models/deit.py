"""DeiT: Touvron et al., "Training Data-Efficient Image Transformers & Distillation through Attention" (2021).

A ViT with one more token, which learned to answer as a teacher does (section 4). DeiTs without it are saved as ``model_type`` vit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from trustformers_ir.ir.parameters import Scope
from trustformers_ir.ir.tensor import Tensor
from trustformers_ir.models import vit
from trustformers_ir.models.config import Fields
from trustformers_ir.models.family import transformer_size
from trustformers_ir.models.vit import ViT, ViTConfig, ViTForImageClassification, classifier, vit_model


def read_config(fields: Fields) -> ViTConfig:
    """The config of a ``config.json``, which has the fields of a ViT's."""
    return replace(ViTConfig.read(fields), tokens=("cls_token", "distillation_token"))


class DeiTForImageClassificationWithTeacher(ViT):
    """Section 4, "Classification with our approach: joint classifiers": the mean of what the heads of both tokens say."""

    def __init__(self, config: ViTConfig, scope: Scope) -> None:
        super().__init__(config, scope)
        self.cls_classifier = classifier(config, scope.child("cls_classifier"))
        self.distillation_classifier = classifier(config, scope.child("distillation_classifier"))

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        hidden = self.encode(**inputs)
        label, teacher = self.cls_classifier(hidden[:, 0]), self.distillation_classifier(hidden[:, 1])
        return {"logits": (label + teacher) / 2, "cls_logits": label, "distillation_logits": teacher}


_ARCHITECTURES: dict[str, Callable[[ViTConfig, Scope], ViT]] = {
    "DeiTModel": vit_model,
    "DeiTForImageClassification": ViTForImageClassification,
    "DeiTForImageClassificationWithTeacher": DeiTForImageClassificationWithTeacher,
}

FAMILY = replace(
    vit.FAMILY,
    model_type="deit",
    read_config=read_config,
    architectures=_ARCHITECTURES,
    prefix="deit",
    presets={"tiny": transformer_size(12, 192, 3), "small": transformer_size(12, 384, 6)},  # table 1
    parts=(*vit.FAMILY.parts, "cls_classifier", "distillation_classifier"),
)
