"""Ranks known in closed form, one network each: the bound, and the rank measured in float64, must be equal."""

import pytest
import torch
import torch.nn.functional as F
from measured import gradients, rank
from recurrent import Elman
from torch import Tensor, nn

from compress import rank_bounds


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def sequential(*layers: nn.Module) -> nn.Sequential:
    model = nn.Sequential(*layers).double()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:  # norms start at one and zero: not generic
            nn.init.normal_(parameter, mean=1.0 if name.endswith("weight") else 0.0)
    return model


def ranks(model, batches, loss=F.mse_loss, *, accumulation_steps=1, **options):
    """(bound, measured) by matrix; `batches` are (inputs, target), one for each pass."""
    torch.manual_seed(0)
    args, target = batches[0]
    args = args if isinstance(args, tuple) else (args,)
    bounds = rank_bounds(
        model,
        args,
        loss=loss,
        targets=(target,),
        world_size=len(batches) // accumulation_steps,
        accumulation_steps=accumulation_steps,
        **options,
    )
    assert not bounds.unknown_ops
    passes = [lambda m, x=x, t=t: loss(m(*x) if isinstance(x, tuple) else m(x), t) for x, t in batches]
    measured = gradients(model, passes)
    return {name: (bounds[name].rank, rank(measured[name])) for name in bounds}


def check(found: dict[str, tuple[int, int]], expected: dict[str, int]) -> None:
    assert {name: found[name] for name in expected} == {name: (value, value) for name, value in expected.items()}


class TestRecurrent:
    @pytest.mark.parametrize("steps", [1, 2, 5, 10, 20])
    def test_a_linear_elman_network_is_a_krylov_space(self, steps):
        model = Elman([64, 64, 2, 64])
        found = ranks(model, [(normal(96, steps, 64), normal(96, 64))])
        check(
            found,
            {
                "inward.0.weight": min(64, 2 * steps),
                "hidden.0.weight": min(64, 2 * (steps - 1)),
                "inward.1.weight": 2,
                "hidden.1.weight": 2 if steps > 1 else 0,
                "hidden.2.weight": min(64, 2 * (steps - 1)),
                "inward.2.weight": 2,
            },
        )

    def test_a_carried_state_is_one_more_input(self):
        model = Elman([64, 64, 2, 64])
        states = [normal(12, 64), normal(12, 2), normal(12, 64)]
        found = ranks(model, [((normal(12, 5, 64), states), normal(12, 64))])
        check(found, {"hidden.0.weight": 10, "hidden.1.weight": 2, "hidden.2.weight": 5 * 12})

    def test_a_state_carried_over_from_earlier_steps_holds_theirs(self):
        class Truncated(Elman):
            """Gradients through the last 5 steps; the state before them comes from 24 others."""

            def forward(self, x: Tensor) -> Tensor:
                for inward, hidden in zip(self.inward, self.hidden, strict=True):
                    state, found = x.new_zeros(x.shape[0], hidden.in_features), []
                    for t in range(x.shape[1]):
                        state = inward(x[:, t]) + hidden(state)
                        state = state.detach() if t < 24 else state
                        found.append(state)
                    x = torch.stack(found, 1)
                return x[:, -1]

        found = ranks(Truncated([64, 64, 2, 64]), [(normal(96, 29, 64), normal(96, 64))])
        check(found, {"hidden.0.weight": 10, "hidden.1.weight": 2, "hidden.2.weight": 2 * (24 + 4)})

    def test_written_in_place_and_with_every_step_read(self):
        class InPlace(Elman):
            def forward(self, x: Tensor) -> Tensor:
                out = x.new_zeros(x.shape[0], x.shape[1], self.hidden[0].out_features)
                state = x.new_zeros(x.shape[0], self.hidden[0].out_features)
                for t in range(x.shape[1]):
                    state = self.inward[0](x[:, t]) + self.hidden[0](state)
                    out[:, t] = state
                return self.inward[1](out)

        model = InPlace([32, 32, 3])
        found = ranks(model, [(normal(96, 5, 32), normal(96, 5, 3))])
        check(found, {"inward.0.weight": 15, "hidden.0.weight": 12, "inward.1.weight": 3})

    def test_classes_of_the_last_step_alone(self):
        model = nn.Sequential(Elman([24, 24], last=False, activation=torch.tanh), nn.Linear(24, 4).double())
        batch = (normal(60, 3, 24), torch.randint(0, 4, (60,)))
        found = ranks(model, [batch], lambda y, t: F.cross_entropy(y[:, -1], t))
        check(found, {"1.weight": 3})

    @pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
    def test_pytorchs_own_ops_have_a_row_for_each_step(self, kind):
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = kind(32, 24, batch_first=True, dtype=torch.float64)

            def forward(self, x: Tensor) -> Tensor:
                return self.net(x)[0]

        found = ranks(Net(), [(normal(2, 5, 32), normal(2, 5, 24))])
        check(found, {"net.weight_ih_l0": 10, "net.weight_hh_l0": 8})

    @pytest.mark.parametrize("kind", [nn.RNN, nn.GRU])
    def test_a_state_that_is_given_has_a_row_too(self, kind):
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = kind(32, 24, batch_first=True, dtype=torch.float64)

            def forward(self, x: Tensor, state: Tensor) -> Tensor:
                return self.net(x, state)[0]

        found = ranks(Net(), [((normal(2, 5, 32), normal(1, 2, 24)), normal(2, 5, 24))])
        check(found, {"net.weight_hh_l0": 10})


class TestConvolutions:
    @pytest.mark.parametrize("stride", [1, 2])
    @pytest.mark.parametrize("padding", [0, 1])
    def test_a_bottleneck_of_two_channels_leaves_two_for_each_tap(self, stride, padding):
        model = sequential(
            nn.Conv2d(24, 24, 3, padding=padding, bias=False),
            nn.Conv2d(24, 2, 3, stride=stride, padding=padding, bias=False),
            nn.Conv2d(2, 24, 3, padding=padding, bias=False),
        )
        x = normal(8, 24, 12, 12)
        found = ranks(model, [(x, normal(*model(x).shape))])
        check(found, {"0.weight": 18, "1.weight": 2, "2.weight": 18})

    def test_a_kernel_of_one_keeps_two_before_and_the_next_unfolds_them(self):
        model = sequential(
            nn.Conv2d(24, 24, 3, bias=False), nn.Conv2d(24, 2, 1, bias=False), nn.Conv2d(2, 24, 3, bias=False)
        )
        found = ranks(model, [(normal(8, 24, 10, 10), normal(8, 24, 6, 6))])
        check(found, {"0.weight": 2, "1.weight": 2, "2.weight": 18})

    def test_one_image_has_as_many_rows_as_positions(self):
        model = sequential(nn.Conv2d(32, 32, 3, bias=False), nn.LeakyReLU(0.1), nn.Conv2d(32, 32, 3, bias=False))
        found = ranks(model, [(normal(1, 32, 8, 8), normal(1, 32, 4, 4))])
        check(found, {"2.weight": 16})
        assert found["0.weight"] == (32, 32)

    @pytest.mark.parametrize("groups", [2, 4, 8])
    def test_each_group_is_a_use_of_its_own(self, groups):
        model = sequential(nn.Conv1d(32, 32, 1, groups=groups, bias=False))
        found = ranks(model, [(normal(1, 32, 1), normal(1, 32, 1))])
        check(found, {"0.weight": min(groups, 32 // groups)})

    def test_a_constant_is_one_direction_without_padding_and_nine_with(self):
        for padding, expected in ((0, 9 + 1), (1, 9 + 9)):
            model = sequential(
                nn.Conv2d(6, 1, 1, bias=False), nn.Conv2d(1, 24, 1), nn.Conv2d(24, 24, 3, padding=padding, bias=False)
            )
            x = normal(16, 6, 8, 8)
            found = ranks(model, [(x, normal(*model(x).shape))])
            check(found, {"2.weight": expected})

    def test_taps_that_meet_nothing_but_padding_add_nothing(self):
        model = sequential(nn.Conv1d(6, 8, 3, padding=1))
        check(ranks(model, [(normal(12, 6, 1), normal(12, 8, 1))]), {"0.weight": 6})

    def test_a_transposed_convolution(self):
        model = sequential(
            nn.Conv2d(16, 2, 1, bias=False), nn.ConvTranspose2d(2, 16, 3, stride=2, bias=False), nn.Conv2d(16, 3, 1)
        )
        x = normal(8, 16, 5, 5)
        found = ranks(model, [(x, normal(*model(x).shape))])
        check(found, {"0.weight": 2, "1.weight": 2})

    def test_stacked_layers_read_each_position_once(self):
        model = sequential(nn.Conv2d(1, 40, 3, bias=False), nn.Conv2d(40, 40, 3, bias=False))
        found = ranks(model, [(normal(16, 1, 10, 10), normal(16, 40, 6, 6))])
        check(found, {"1.weight": 25})


NORMS = {
    "layer": (lambda width: nn.LayerNorm(width), 8 + 5),
    "batch": (lambda width: nn.BatchNorm1d(width), 8 + 4),
    "rms": (lambda width: nn.RMSNorm(width), 8 + 5),
}


class Low(nn.Module):
    """A network whose first input comes from few dimensions."""

    def __init__(self, net: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.net, self.up = net, nn.Parameter(normal(4, x.shape[1]))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.net(x @ self.up, z)


class TestNorms:
    @pytest.mark.parametrize("kind", NORMS)
    def test_the_adjoint_before_a_norm_holds_the_normalised_input(self, kind):
        make, expected = NORMS[kind]

        class Net(nn.Module):
            """The weight `seen` has inputs of full rank but adds nothing, so its gradient has the adjoint's rank."""

            def __init__(self) -> None:
                super().__init__()
                self.first, self.seen = nn.Linear(32, 32), nn.Linear(32, 32, bias=False)
                self.rest = sequential(make(32), nn.Linear(32, 8, bias=False), nn.Linear(8, 32, bias=False))
                self.double()

            def forward(self, x: Tensor, z: Tensor) -> Tensor:
                added = self.seen(z)
                return self.rest(self.first(x) + added - added.detach())

        x, z = normal(200, 4) @ normal(4, 32), normal(200, 32)
        _, measured = ranks(Net(), [((x, z), normal(200, 32))])["seen.weight"]
        assert measured == expected
        loss = lambda y, t: F.mse_loss(y, t)  # noqa: E731
        low = rank_bounds(Low(Net(), x), (normal(200, 4), z), loss=loss, targets=(normal(200, 32),))
        assert low["net.seen.weight"].rank == expected

    @pytest.mark.parametrize("workers", [1, 2, 3])
    @pytest.mark.parametrize("accumulation", [1, 2])
    def test_batch_norm_looks_through_another_diagonal_on_each_worker_and_pass(self, workers, accumulation):
        model = sequential(
            nn.Linear(64, 8), nn.Linear(8, 64, bias=False), nn.BatchNorm1d(64), nn.Linear(64, 64, bias=False)
        )
        batches = [(normal(40, 64), normal(40, 64)) for _ in range(workers * accumulation)]
        found = ranks(model, batches, accumulation_steps=accumulation)
        check(found, {"3.weight": min(64, 8 * workers * accumulation + 1)})

    @pytest.mark.parametrize(("kind", "expected"), [("layer", 10), ("rms", 9)])
    def test_other_norms_are_alike_on_all_workers(self, kind, expected):
        model = sequential(nn.Linear(64, 8), nn.Linear(8, 64), NORMS[kind][0](64), nn.Linear(64, 64, bias=False))
        batches = [(normal(40, 64), normal(40, 64)) for _ in range(3)]
        check(ranks(model, batches), {"3.weight": expected})

    def test_in_evaluation_batch_norm_is_one_diagonal(self):
        model = sequential(nn.Linear(64, 8), nn.Linear(8, 64), nn.BatchNorm1d(64), nn.Linear(64, 64, bias=False))
        model(normal(100, 64))
        model.eval()
        batches = [(normal(40, 64), normal(40, 64)) for _ in range(3)]
        check(ranks(model, batches, training=False), {"3.weight": 9})

    def test_statistics_of_all_workers_are_one_diagonal_for_one_pass(self):
        layers = [nn.Linear(64, 8), nn.Linear(8, 64), nn.SyncBatchNorm(64), nn.Linear(64, 64, bias=False)]
        model, args = sequential(*layers), {"loss": F.mse_loss, "targets": (normal(40, 64),), "world_size": 3}
        assert rank_bounds(model, (normal(40, 64),), **args)["3.weight"].rank == 9
        assert rank_bounds(model, (normal(40, 64),), accumulation_steps=2, **args)["3.weight"].rank == 8 * 6 + 1
        # One worker's rows alone do not sum to zero.
        assert rank_bounds(model, (normal(2, 64),), loss=F.mse_loss, targets=(normal(2, 64),))["3.weight"].rank == 2

    @pytest.mark.parametrize("samples", [2, 3, 5])
    def test_few_samples_of_batch_norm(self, samples):
        model = sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 16))
        found = ranks(model, [(normal(samples, 16), normal(samples, 16))])
        check(found, {"0.weight": samples - 1, "2.weight": samples})

    def test_batch_norm_takes_the_constant_of_the_layer_before(self):
        model = sequential(nn.Linear(32, 8), nn.Linear(8, 32), nn.Linear(32, 32), nn.BatchNorm1d(32), nn.Linear(32, 32))
        check(ranks(model, [(normal(100, 32), normal(100, 32))]), {"2.weight": 8})

    @pytest.mark.parametrize("kind", NORMS)
    def test_where_nothing_arrives_nothing_is_sent_on(self, kind):
        """Cross-entropy over one class: the normalised input does not count, for its coefficients are zero."""
        model = sequential(nn.Linear(6, 6), NORMS[kind][0](6), nn.Linear(6, 1))
        bounds = rank_bounds(model, (normal(8, 6),), loss=F.cross_entropy, targets=(torch.zeros(8).long(),))
        assert [bound.rank for bound in bounds.values()] == [0, 0]

    @pytest.mark.parametrize("groups", [1, 2, 4])
    def test_group_norm_splits_the_space_by_group(self, groups):
        model = sequential(nn.Linear(32, 32), nn.GroupNorm(groups, 32, affine=False), nn.Linear(32, 32))
        x = normal(200, 4) @ normal(4, 32)
        check(ranks(model, [(x, normal(200, 32))], input_rank=4), {"2.weight": 5 * groups})


class Attention(nn.Module):
    """Written out, or by the fused op; `kv` heads of keys and values."""

    def __init__(
        self, width: int, heads: int, out: int, *, kv: int | None = None, bias=False, fused=True, causal=False
    ):
        super().__init__()
        self.heads, self.kv, self.fused, self.causal = heads, kv or heads, fused, causal
        each = width // heads
        self.q = nn.Linear(width, width, bias=bias, dtype=torch.float64)
        self.k = nn.Linear(width, each * self.kv, bias=bias, dtype=torch.float64)
        self.v = nn.Linear(width, each * self.kv, bias=bias, dtype=torch.float64)
        self.o = nn.Linear(width, out, bias=False, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        b, t, w = x.shape
        each = w // self.heads
        q = self.q(x).view(b, t, self.heads, each).transpose(1, 2)
        k = self.k(x).view(b, t, self.kv, each).transpose(1, 2)
        v = self.v(x).view(b, t, self.kv, each).transpose(1, 2)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, enable_gqa=self.kv != self.heads)
        else:
            times = self.heads // self.kv
            k = k[:, :, None].expand(b, self.kv, times, t, each).reshape(b, self.heads, t, each)
            v = v[:, :, None].expand(b, self.kv, times, t, each).reshape(b, self.heads, t, each)
            scores = q @ k.transpose(-1, -2) / each**0.5
            if self.causal:
                scores = scores + torch.full((t, t), -torch.inf, dtype=x.dtype).triu(1)
            y = scores.softmax(-1) @ v
        return self.o(y.transpose(1, 2).reshape(b, t, w))


@pytest.mark.parametrize("fused", [True, False])
class TestAttention:
    @pytest.mark.parametrize(("heads", "expected"), [(1, 6), (4, 24)])
    def test_a_narrow_output_map(self, heads, expected, fused):
        model = Attention(64, heads, 6, fused=fused)
        found = ranks(model, [(normal(16, 12, 64), normal(16, 12, 6))])
        check(found, {"o.weight": 6, "v.weight": expected, "q.weight": 64, "k.weight": 64})

    def test_heads_that_share_their_values(self, fused):
        model = Attention(64, 4, 2, kv=1, fused=fused)
        found = ranks(model, [(normal(16, 12, 64), normal(16, 12, 2))])
        check(found, {"v.weight": 8})

    def test_inputs_of_rank_five(self, fused):
        model = Attention(32, 4, 32, fused=fused)
        x = (normal(16 * 12, 5) @ normal(5, 32)).view(16, 12, 32)
        found = ranks(model, [(x, normal(16, 12, 32))], input_rank=5)
        check(found, {"q.weight": 5, "k.weight": 5, "v.weight": 5})

    def test_what_is_constant_vanishes_from_keys(self, fused):
        class Biased(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.shift = nn.Parameter(normal(32))
                self.attend = Attention(32, 1, 32, bias=True, fused=fused)

            def forward(self, x: Tensor) -> Tensor:
                return self.attend(x + self.shift)

        x = (normal(16 * 12, 5) @ normal(5, 32)).view(16, 12, 32)
        found = ranks(Biased(), [(x, normal(16, 12, 32))], input_rank=5)
        check(found, {"attend.k.weight": 5, "attend.q.weight": 5, "attend.v.weight": 6})

    @pytest.mark.parametrize("causal", [False, True])
    def test_rows_of_few_positions(self, causal, fused):
        model = Attention(32, 4, 32, fused=fused, causal=causal)
        found = ranks(model, [(normal(2, 4, 32), normal(2, 4, 32))])
        check(found, {"k.weight": 2 * 3, "v.weight": 2 * 4})
        # A mask that is added to the scores is data: who masks is not known.
        rows = 3 if causal else 4
        assert found["q.weight"] == (2 * (rows if fused else 4), 2 * rows)

    def test_one_position_gives_no_gradient(self, fused):
        model = Attention(32, 4, 32, fused=fused)
        found = ranks(model, [(normal(5, 1, 32), normal(5, 1, 32))])
        assert (found["q.weight"][0], found["k.weight"][0]) == (0, 0)  # measured is roundoff

    def test_one_position_mixes_nothing(self, fused):
        model = nn.Sequential(nn.Linear(32, 32, bias=False).double(), Attention(32, 4, 32, fused=fused))
        x = (normal(40, 3) @ normal(3, 32))[:, None]
        found = ranks(model, [(x, normal(40, 1, 32))], input_rank=3)
        check(found, {"0.weight": 3, "1.v.weight": 3, "1.o.weight": 3})
        narrow = Attention(32, 4, 5, fused=fused)
        check(ranks(narrow, [(normal(40, 1, 32), normal(40, 1, 5))]), {"v.weight": 5, "o.weight": 5})
