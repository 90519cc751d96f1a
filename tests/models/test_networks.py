"""Convolutional networks and transformers: shapes, layers, parameters, initial weights, knobs."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from models import BERT, VGG11, XLM, ResNet16, ResNet18, Signature
from models.convolutional import ConvolutionalConfig
from models.data.text import PAD
from models.resnet import BasicBlock

IMAGENET = Signature("images", (3, 224, 224), 1000)


def images(size: int, channels: int = 3, outputs: int = 10) -> Signature:
    return Signature("images", (channels, size, size), outputs)


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]


def weighted_layers(network: nn.Module) -> int:
    """Convolutions and linear layers, without the shortcuts' 1 × 1 ones, as papers count them."""
    shortcuts = [
        c for block in network.modules() if isinstance(block, BasicBlock) for c in convolutions(block.shortcut)
    ]
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    return len(convolutions(network)) - len(shortcuts) + len(linear)


class TestConvolutional:
    @pytest.mark.parametrize("size", [1, 8, 28, 32, 64])
    @pytest.mark.parametrize(
        "config",
        [
            VGG11(width=2),
            VGG11(width=2, pool="average", norm=False, stride=2, alpha=0.5),
            ResNet16(width=2, bottleneck=3),
            ResNet18(width=2, norm=False, stem="imagenet", stride=2, alpha=1.0),
        ],
        ids=lambda config: config.kind,
    )
    def test_images_of_any_size_and_channels_are_taken(self, config, size):
        for channels in (1, 3):
            assert config.build(images(size, channels))(torch.randn(2, channels, size, size)).shape == (2, 10)

    @pytest.mark.parametrize(("config", "count"), [(VGG11(), 8 + 1), (ResNet16(), 16), (ResNet18(), 18)])
    def test_networks_have_as_many_weighted_layers_as_their_names_say(self, config, count):
        """VGG-11's other two are the linear layers that its one classifier stands for."""
        with torch.device("meta"):
            assert weighted_layers(config.build(IMAGENET)) == count

    @pytest.mark.parametrize(
        ("config", "count"),
        [
            (ResNet18(stem="imagenet"), 11_689_512),  # torchvision's resnet18
            (VGG11(norm=False), 132_863_336 - 123_642_856 + 513_000),  # its vgg11 with another classifier
        ],
    )
    def test_parameters_are_as_many_as_others_have(self, config, count):
        with torch.device("meta"):
            assert parameters(config.build(IMAGENET)) == count

    @pytest.mark.parametrize("config", [VGG11, ResNet16, ResNet18])
    def test_width_stride_and_bottleneck_are_the_layers_own(self, config):
        network = config(width=6, stride=2, bottleneck=3).build(images(16))
        first = convolutions(network)[0]
        assert (first.out_channels, first.stride) == (6, (2, 2))
        assert convolutions(network)[-1].out_channels == 48
        unhurried = convolutions(config(width=6).build(images(16)))
        assert [layer.stride for layer in convolutions(network)[1:]] == [layer.stride for layer in unhurried[1:]]
        assert [(layer.in_features, layer.out_features) for layer in network if isinstance(layer, nn.Linear)] == [
            (48, 3),
            (3, 10),
        ]
        assert config(bottleneck=3).knobs["bottleneck"] == 3
        assert config(width=6).knobs["bottleneck"] == 6

    def test_stems_are_small_or_imagenets_with_twice_the_stride_and_a_pool(self):
        for stem, kernel, stride in (("small", 3, 1), ("imagenet", 7, 2)):
            network = ResNet16(width=2, stem=stem).build(images(16))
            assert (network[0].kernel_size, network[0].stride) == ((kernel, kernel), (stride, stride))
            assert any(isinstance(layer, nn.MaxPool2d) for layer in network) == (stem == "imagenet")

    @pytest.mark.parametrize("config", [VGG11, ResNet16])
    def test_convolutions_have_a_norm_or_a_bias(self, config):
        for norm in (True, False):
            network = config(width=2, norm=norm).build(images(8))
            norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
            assert len(norms) == (len(convolutions(network)) if norm else 0)
            assert all((layer.bias is None) == norm for layer in convolutions(network))

    @pytest.mark.parametrize(
        "config", [VGG11(width=2, pool="average", norm=False, alpha=1.0), ResNet16(width=2, norm=False, alpha=1.0)]
    )
    def test_a_slope_of_one_makes_the_network_affine(self, config):
        torch.manual_seed(0)
        network = config.build(images(8)).double()
        x, y = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64)
        assert torch.allclose(network(x) + network(y), network(x + y) + network(0 * x))
        bent = config.model_copy(update={"alpha": 0.9}).build(images(8)).double()
        assert not torch.allclose(bent(x) + bent(y), bent(x + y) + bent(0 * x))

    def test_pools_take_the_largest_or_the_average(self):
        kinds = {
            pool: {type(layer) for layer in VGG11(width=2, pool=pool).build(images(8))} for pool in ("max", "average")
        }
        assert kinds["max"] - kinds["average"] == {nn.MaxPool2d}
        assert kinds["average"] - kinds["max"] == {nn.AvgPool2d}

    def test_a_pool_on_one_position_is_none(self):
        for pool in ("max", "average"):
            layers = [layer for layer in VGG11(width=2, pool=pool).build(images(1)) if "Pool" in type(layer).__name__]
            image = torch.randn(2, 4, 1, 1)
            assert all(torch.equal(layer(image), image) for layer in layers[:5])

    @pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize("config", [VGG11(), VGG11(pool="average"), ResNet16(), ResNet18()])
    @pytest.mark.parametrize(("size", "stride"), [(8, 1), (32, 1), (32, 2)])
    def test_signals_keep_their_size_without_norms(self, config, alpha, size, stride):
        torch.manual_seed(0)
        knobs = {"width": 8, "norm": False, "alpha": alpha, "stride": stride}
        *layers, _, _, _ = config.model_copy(update=knobs).build(images(size))
        smooth = nn.functional.interpolate(torch.randn(4, 3, 4, 4), size=(size, size), mode="bilinear")
        with torch.no_grad():
            assert 0.1 < float(nn.Sequential(*layers)(smooth).std()) < 10

    @pytest.mark.parametrize("settings", [{"alpha": 2.0}, {"stride": 0}, {"width": 0}, {"depth": 3}, {"stem": "large"}])
    @pytest.mark.parametrize("config", [VGG11, ResNet16])
    def test_knobs_out_of_range_or_unknown_are_refused(self, config: type[ConvolutionalConfig], settings):
        with pytest.raises(ValidationError, match=next(iter(settings))):
            config(**settings)


TEXT = Signature("tokens", (8,), 50, each_step=True, vocabulary=50)
PAIRS = Signature("pairs", (8,), 50, each_step=True, vocabulary=50, languages=2)
SMALL = {"layers": 2, "hidden": 16, "heads": 2, "sequence_length": 8}


def pair(rows: int, present: int) -> tuple[torch.Tensor, ...]:
    """Pairs of which so many positions are there, the others padding."""
    ids = torch.randint(5, 50, (rows, 8))
    attention = (torch.arange(8) < present).long().expand(rows, 8)
    languages = (torch.arange(8) >= 3).long().expand(rows, 8)
    return ids, attention, languages, torch.arange(8).expand(rows, 8)


class TestTransformers:
    def test_bert_base_has_its_known_parameters(self):
        signature = Signature("tokens", (512,), 30522, each_step=True, vocabulary=30522)
        with torch.device("meta"):
            assert parameters(BERT(size="base", sequence_length=512).build(signature)) == 109_514_298

    def test_xlm_of_that_size_has_what_its_parts_add_up_to(self):
        signature = Signature("pairs", (512,), 30522, each_step=True, vocabulary=30522, languages=2)
        h, norm = 768, 2 * 768
        layer = 4 * (h * h + h) + (4 * h * h + 4 * h) + (4 * h * h + h) + 2 * norm
        with torch.device("meta"):
            network = XLM(size="base", sequence_length=512).build(signature)
        assert parameters(network) == 12 * layer + (30522 + 512 + 2) * h + norm + 30522

    @pytest.mark.parametrize("sizes", [{}, {"size": "mini"}, {"hidden": 12, "heads": 3}, {"layers": 1}])
    def test_sizes_are_named_or_given_one_by_one(self, sizes):
        config = BERT(sequence_length=8, **sizes)
        found = config.build(TEXT).config
        assert config.sizes == (found.num_hidden_layers, found.hidden_size, found.num_attention_heads)
        assert found.intermediate_size == 4 * found.hidden_size
        assert all(getattr(config.sizes, key) == value for key, value in sizes.items() if key != "size")

    def test_heads_that_cannot_share_the_width_are_refused(self):
        with pytest.raises(ValidationError, match="hidden is 128, which 3 heads cannot share evenly"):
            XLM(heads=3)

    def test_each_position_gets_a_logit_for_each_token(self):
        assert BERT(**SMALL).build(TEXT)(torch.randint(0, 50, (3, 8))).shape == (3, 8, 50)
        assert XLM(**SMALL).build(PAIRS)(*pair(3, present=8)).shape == (3, 8, 50)

    def test_bert_reads_both_ways(self):
        network = BERT(**SMALL).build(TEXT)
        ids = torch.randint(0, 25, (1, 8))
        for changed, seen in ((0, 7), (7, 0)):
            other = ids.clone()
            other[0, changed] += 25
            assert not torch.allclose(network(ids)[0, seen], network(other)[0, seen], atol=1e-6)

    def test_padding_changes_nothing_elsewhere(self):
        torch.manual_seed(0)
        network = XLM(**SMALL).build(PAIRS)
        ids, attention, languages, positions = pair(3, present=5)
        other = torch.cat([ids[:, :5], ids[:, 5:].flip(1) // 2], 1)
        before, after = (network(given, attention, languages, positions)[:, :5] for given in (ids, other))
        assert torch.allclose(before, after, atol=1e-6)
        unmasked = torch.ones_like(attention)
        before, after = (network(given, unmasked, languages, positions)[:, :5] for given in (ids, other))
        assert not torch.allclose(before, after, atol=1e-6)

    @pytest.mark.parametrize(("config", "signature"), [(BERT, TEXT), (XLM, PAIRS)])
    def test_every_token_but_padding_has_an_embedding_to_learn(self, config, signature):
        embedding = config(**SMALL).build(signature).get_input_embeddings()
        embedding(torch.arange(50)).sum().backward()
        assert (embedding.weight.grad == 0).all(1).nonzero().flatten().tolist() == [PAD]

    @pytest.mark.parametrize("changed", [2, 3])
    def test_languages_and_positions_matter(self, changed):
        torch.manual_seed(0)
        network, given = XLM(**SMALL).build(PAIRS), list(pair(3, present=8))
        before = network(*given)
        given[changed] = given[changed].flip(1)
        assert not torch.allclose(before, network(*given), atol=1e-6)

    @pytest.mark.parametrize(("alpha", "expected"), [(None, None), (0.3, nn.LeakyReLU), (1.0, nn.Identity)])
    @pytest.mark.parametrize(("config", "signature"), [(BERT, TEXT), (XLM, PAIRS)])
    def test_alpha_replaces_gelu_in_all_feed_forward_layers(self, config, signature, alpha, expected):
        network = config(alpha=alpha, **SMALL).build(signature)
        found = [module for module in network.modules() if isinstance(module, (nn.LeakyReLU, nn.Identity))]
        assert [type(module) for module in found] == ([] if expected is None else [expected] * 2)
        assert all(module.negative_slope == alpha for module in found if isinstance(module, nn.LeakyReLU))

    @pytest.mark.parametrize(("config", "signature"), [(BERT, TEXT), (XLM, PAIRS)])
    def test_dropout_is_drawn_in_training_alone(self, config, signature):
        given = pair(3, present=8)[: 1 if config is BERT else 4]
        for dropout in (0.0, 0.5):
            network = config(dropout=dropout, **SMALL).build(signature)
            assert torch.equal(network(*given), network(*given)) == (dropout == 0)
            network.eval()
            assert torch.equal(network(*given), network(*given))
