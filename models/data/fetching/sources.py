"""The table of data sets that can be fetched."""

from models.data import cifar10, mnist, multi30k, tiny_imagenet, wikitext
from models.data.fetching.encode_images import encode_cifar10, encode_mnist
from models.data.fetching.encode_text import encode_multi30k, encode_wikitext
from models.data.fetching.expected import Expected
from models.data.fetching.source import File, FileSource, Source
from models.data.fetching.tree import TreeSource

_BATCH_SIZE = cifar10.IMAGES_A_FILE * cifar10.RECORD

_MNIST = FileSource(
    name="mnist",
    repository="ylecun/mnist",
    folders=mnist.FOLDERS,
    files={
        "train-images-idx3-ubyte": File("train", Expected(47_040_016, md5="6bbc9ace898e44ae57da46a324031adb")),
        "train-labels-idx1-ubyte": File("train", Expected(60_008, md5="a25bea736e30d166cdddb491f175f624")),
        "t10k-images-idx3-ubyte": File("test", Expected(7_840_016, md5="2646ac647ad5339dbf082846283269ea")),
        "t10k-labels-idx1-ubyte": File("test", Expected(10_008, md5="27ae3e4e09519cfbb04c329615203637")),
    },
    encode=encode_mnist,
)

_CIFAR10 = FileSource(
    name="cifar10",
    repository="uoft-cs/cifar10",
    folders=cifar10.FOLDERS,
    files={
        name: File("test" if name == cifar10.TEST else "train", Expected(_BATCH_SIZE, md5=md5))
        for md5, name in cifar10.NAMES.items()
    },
    encode=encode_cifar10,
)

_TINY_IMAGENET = TreeSource(
    name="tiny_imagenet",
    repository="zh-plus/tiny-imagenet",
    folders=tiny_imagenet.FOLDERS,
    classes=tiny_imagenet.CLASSES,
    train_images=100_000,
    held_out_images=10_000,
)

_WIKITEXT2 = FileSource(
    name="wikitext2",
    repository="Salesforce/wikitext",
    configuration="wikitext-2-v1",
    folders=wikitext.WikiText2.folders,
    files={
        "wiki.train.tokens": File("train", Expected(lines=wikitext.WikiText2.train_lines)),
        "wiki.valid.tokens": File("validation", Expected(1_121_681, 3_760, "d756d22ab2310e7e60c094bea5c5a8eb")),
        "wiki.test.tokens": File("test", Expected(1_256_449, 4_358, "781c9418ab9414bd09e4aad825aae752")),
    },
    encode=encode_wikitext,
)

_WIKITEXT103 = FileSource(
    name="wikitext103",
    repository="Salesforce/wikitext",
    configuration="wikitext-103-v1",
    folders=wikitext.WikiText103.folders,
    files={
        "wiki.train.tokens": File("train", Expected(lines=wikitext.WikiText103.train_lines)),
        "wiki.valid.tokens": File("validation", Expected(lines=3_760)),
        "wiki.test.tokens": File("test", Expected(lines=4_358)),
    },
    encode=encode_wikitext,
)

_MULTI30K = FileSource(
    name="multi30k",
    repository="bentrevett/multi30k",
    folders=multi30k.FOLDERS,
    files={
        f"{name}.{language}": File(split, Expected(lines=lines))
        for name, split, lines in (
            ("train", "train", multi30k.TRAIN_PAIRS),
            ("val", "validation", 1_014),
            ("test_2016_flickr", "test", 1_000),
        )
        for language in multi30k.LANGUAGES
    },
    encode=encode_multi30k,
)

SOURCES: dict[str, Source] = {
    source.name: source for source in (_MNIST, _CIFAR10, _TINY_IMAGENET, _WIKITEXT2, _WIKITEXT103, _MULTI30K)
}
"""Every data set that is read from files, by the name that studies give it."""
