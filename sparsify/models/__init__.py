"""Small reference networks, and those of transformers.

A builder seeds nothing: seed torch before calling it.
"""

from sparsify.models.autoencoders import autoencoder
from sparsify.models.cifar_resnets import (
    cifar_resnet,
    cifar_resnet20,
    cifar_resnet32,
    cifar_resnet44,
    cifar_resnet56,
)
from sparsify.models.detectors import detector
from sparsify.models.digits import digits_cnn
from sparsify.models.imagenet import alexnet, resnet18
from sparsify.models.lenet import lenet5, lenet_300_100
from sparsify.models.mlps import mlp
from sparsify.models.ssl_nets import ssl_convnet, ssl_mlp
from sparsify.models.transformers_nets import hugging_face
from sparsify.models.unets import unet
from sparsify.models.vgg import cifar_vgg16

__all__ = [
    "alexnet",
    "autoencoder",
    "cifar_resnet",
    "cifar_resnet20",
    "cifar_resnet32",
    "cifar_resnet44",
    "cifar_resnet56",
    "cifar_vgg16",
    "detector",
    "digits_cnn",
    "hugging_face",
    "lenet5",
    "lenet_300_100",
    "mlp",
    "resnet18",
    "ssl_convnet",
    "ssl_mlp",
    "unet",
]
