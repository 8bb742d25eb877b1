"""Small networks to search on, and the loading of any other."""

from dnas.models.dscnn import DSCNN, dscnn
from dnas.models.elastic_mobilenet import ElasticMobileNet, elastic_mobilenet
from dnas.models.errors import ModelError
from dnas.models.load import ModelConfig, build_model
from dnas.models.mobilenet import MobileNetV2, mobilenetv2
from dnas.models.resnet import ResNet, cifar_resnet, resnet8, resnet18, resnet20, resnet56, resnet110

__all__ = [
    "DSCNN",
    "ElasticMobileNet",
    "MobileNetV2",
    "ModelConfig",
    "ModelError",
    "ResNet",
    "build_model",
    "cifar_resnet",
    "dscnn",
    "elastic_mobilenet",
    "mobilenetv2",
    "resnet8",
    "resnet18",
    "resnet20",
    "resnet56",
    "resnet110",
]
