"""Data modules of still images: MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_snn.checks import check_integer
from lightning_snn.data.augmentation import AutoAugment, cutout, shift
from lightning_snn.data.image_files import Images, read_cifar10, read_cifar100, read_mnist
from lightning_snn.data.image_module import ImageDataModule


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


class MNIST(ImageDataModule):
    """MNIST: handwritten digits, ``(T, B, 1, 28, 28)``.

    ``root`` is an ``.npz`` file with ``x_train``, ``y_train``, ``x_test`` and ``y_test``, or the folder that holds
    ``MNIST/raw`` as torchvision writes it. Arguments are those of
    :class:`~lightning_snn.data.image_module.ImageDataModule`.

    Example:
        >>> import numpy as np
        >>> digits = [(np.full((28, 28), 10 * label, np.uint8), label) for label in range(10)] * 2
        >>> data = MNIST(train=digits, test=digits, time_steps=4, batch_size=5, encoder="poisson")
        >>> data.setup()
        >>> x, y = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
        >>> x.shape, y.shape
        (torch.Size([4, 5, 1, 28, 28]), torch.Size([5]))
    """

    class_names = tuple(str(digit) for digit in range(10))
    frame_shape = (1, 28, 28)
    citation = """@article{lecun1998gradient,
  title = {Gradient-Based Learning Applied to Document Recognition},
  author = {LeCun, Yann and Bottou, L{\\'e}on and Bengio, Yoshua and Haffner, Patrick},
  journal = {Proceedings of the IEEE},
  volume = {86},
  number = {11},
  pages = {2278--2324},
  year = {1998}
}"""

    def read_files(self, root: str) -> tuple[Images, Images]:
        """Return the training and test images of the files at ``root``."""
        return read_mnist(root)


class FashionMNIST(MNIST):
    """Fashion-MNIST: articles of clothing in ten classes, ``(T, B, 1, 28, 28)``.

    ``root`` is an ``.npz`` file with ``x_train``, ``y_train``, ``x_test`` and ``y_test``, or the folder that holds
    ``FashionMNIST/raw`` as torchvision writes it. Arguments are those of
    :class:`~lightning_snn.data.image_module.ImageDataModule`.

    Example:
        >>> import numpy as np
        >>> clothes = [(np.full((28, 28), 10 * label, np.uint8), label) for label in range(10)] * 2
        >>> data = FashionMNIST(train=clothes, test=clothes)
        >>> data.class_names[:2]
        ('T-shirt/top', 'Trouser')
    """

    class_names = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
    citation = """@article{xiao2017fashion,
  title = {Fashion-{MNIST}: a Novel Image Dataset for Benchmarking Machine Learning Algorithms},
  author = {Xiao, Han and Rasul, Kashif and Vollgraf, Roland},
  journal = {arXiv preprint arXiv:1708.07747},
  year = {2017}
}"""

    def read_files(self, root: str) -> tuple[Images, Images]:
        """Return the training and test images of the files at ``root``."""
        return read_mnist(root, "FashionMNIST")


class CIFAR10(ImageDataModule):
    """CIFAR-10: photographs of ten classes, ``(T, B, 3, 32, 32)``.

    Args:
        root: an ``.npz`` file with ``x_train``, ``y_train``, ``x_test`` and ``y_test``, or the folder that holds
            ``cifar-10-batches-py`` as torchvision writes it; None takes ``train`` and ``test``.
        augmentation: shift each training image at random by up to 4 pixels, padding with black, and mirror it with
            probability 1/2; all time steps alike.
        auto_augment: then apply the AutoAugment policy for CIFAR-10, which needs kornia.
        cutout: then set a square with sides of this many pixels to the mean if there is one, else to zero; 0 disables
            it.
        **image_options: other arguments of :class:`~lightning_snn.data.image_module.ImageDataModule`.

    Raises:
        ImportError: if ``auto_augment`` is set and kornia is not installed.

    Example:
        >>> import numpy as np
        >>> images = [(np.zeros((32, 32, 3), np.uint8), label) for label in range(10)] * 2
        >>> data = CIFAR10(train=images, test=images, time_steps=2, batch_size=5, augmentation=True)
        >>> data.setup()
        >>> x, y = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
        >>> x.shape, y.shape
        (torch.Size([2, 5, 3, 32, 32]), torch.Size([5]))
    """

    class_names: tuple[str, ...] = (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )
    frame_shape = (3, 32, 32)
    citation = """@techreport{krizhevsky2009learning,
  title = {Learning Multiple Layers of Features from Tiny Images},
  author = {Krizhevsky, Alex},
  institution = {University of Toronto},
  year = {2009}
}"""

    def __init__(
        self,
        root: str | None = None,
        *,
        augmentation: bool = False,
        auto_augment: bool = False,
        cutout: int = 0,
        **image_options: Any,
    ) -> None:
        super().__init__(root, **image_options)
        check_integer("cutout", cutout, minimum=0)
        self.augmentation = augmentation
        self.auto_augment = AutoAugment() if auto_augment else None
        self.cutout = cutout

    def read_files(self, root: str) -> tuple[Images, Images]:
        """Return the training and test images of the files at ``root``."""
        return read_cifar10(root)

    def augment(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Augment pixels ``(1, B, C, H, W)`` as configured, with an independent random draw per image."""
        if self.augmentation:
            x = shift(x, 4, mirror=True)
        if self.auto_augment is not None:
            x = self.auto_augment(x[0])[None]
        if self.cutout:
            x = cutout(x, self.cutout, self.mean)  # the mean becomes zero when pixels are standardized
        return x, y


class CIFAR100(CIFAR10):
    """CIFAR-100: photographs of a hundred classes, ``(T, B, 3, 32, 32)``.

    ``root`` is an ``.npz`` file with ``x_train``, ``y_train``, ``x_test`` and ``y_test``, or the folder that holds
    ``cifar-100-python`` as torchvision writes it. Arguments are those of :class:`~lightning_snn.data.CIFAR10`;
    ``auto_augment`` is the policy for CIFAR-10, which is in use for CIFAR-100 as well.

    Example:
        >>> import numpy as np
        >>> images = [(np.zeros((32, 32, 3), np.uint8), label) for label in range(100)] * 2
        >>> data = CIFAR100(train=images, test=images, time_steps=2, val_fraction=0.5)
        >>> data.setup()
        >>> len(data.val_set), data.class_names[1]
        (100, 'aquarium_fish')
    """

    num_classes = 100
    class_names = _words(
        "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel "
        "can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur "
        "dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion "
        "lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree "
        "pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea "
        "seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table "
        "tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman "
        "worm"
    )

    def read_files(self, root: str) -> tuple[Images, Images]:
        """Return the training and test images of the files at ``root``."""
        return read_cifar100(root)
