"""The temporal shift: exact, cheap to differentiate, and only where it belongs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from marey.errors import UsageError
from marey.models import build
from marey.models.tsm import TimeShift


def shifted_by_hand(x, segments, shift_div):
    """Every value looked up on its own, as the definition says."""
    out, fold = torch.zeros_like(x), x.shape[1] // shift_div
    for row in range(len(x)):
        first, last = row - row % segments, row - row % segments + segments - 1
        for channel in range(x.shape[1]):
            source = row + (1 if channel < fold else -1 if channel < 2 * fold else 0)
            if first <= source <= last:
                out[row, channel] = x[source, channel]
    return out


@settings(max_examples=40, deadline=None)
@given(
    passes=st.integers(1, 3),
    segments=st.integers(1, 9),
    channels=st.integers(1, 20),
    shift_div=st.integers(2, 9),
    last=st.booleans(),
)
def test_shift_moves_values_exactly_and_keeps_the_memory_format(passes, segments, channels, shift_div, last):
    form = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(passes * segments, channels, 3, 2).to(memory_format=form)
    before = x.clone()
    shifted = TimeShift(segments, shift_div)(x)
    assert torch.equal(shifted, shifted_by_hand(x, segments, shift_div))
    assert shifted.is_contiguous(memory_format=form)
    assert torch.equal(x, before)


def test_gradient_of_the_shift_is_that_of_its_definition():
    x = torch.randn(8, 16, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(TimeShift(4, 8), x)
    assert torch.autograd.gradgradcheck(TimeShift(4, 8), x)


def shifted_blocks(name, **overrides):
    with torch.device("meta"):
        model = build(name, **overrides)
    return [n.removesuffix(".conv1.shift") for n, m in model.named_modules() if isinstance(m, TimeShift)]


def test_every_block_is_shifted_up_to_depth_50_and_every_second_from_101_on():
    assert len(shifted_blocks("tsm_r50")) == 16
    assert len(shifted_blocks("tsm_r18")) == 8
    deep = [f"trunk.stage{s}.{b}" for s, n in enumerate((3, 4, 23, 3), 1) for b in range(0, n, 2)]
    assert shifted_blocks("tsm_r101") == deep


def test_stages_after_temporal_pooling_shift_over_half_the_frames():
    with torch.device("meta"):
        model = build("tsm_r50", temporal_pool=True)
    assert {m.segments for n, m in model.named_modules() if isinstance(m, TimeShift) and "stage1" in n} == {8}
    assert {
        m.segments for n, m in model.named_modules() if isinstance(m, TimeShift) and "stage1" not in n
    } == {4}


@pytest.mark.parametrize("overrides", [{}, {"temporal_pool": True}])
@torch.inference_mode()
def test_several_passes_in_one_clip_give_the_rows_of_each_alone(overrides):
    torch.manual_seed(0)
    model = build("tsm_r18", 5, width=16, segments=4, **overrides).eval()
    clips = torch.randn(2, 3, 12, 32, 32)
    parts = torch.stack([clips[:, :, i : i + 4] for i in (0, 4, 8)], dim=1).flatten(0, 1)
    assert torch.allclose(model(clips), model(parts), atol=1e-6)
    assert torch.allclose(model.embed(clips), model.embed(parts), atol=1e-6)
    assert model(clips).shape == (6, 5)


@torch.inference_mode()
def test_dropout_falls_on_frames_and_not_on_their_mean():
    torch.manual_seed(0)
    model = build("tsm_r18", 2, width=8, segments=4, dropout=0.5, norm_eval=True).train()
    with torch.no_grad():
        model.head.weight.fill_(1.0)
    seen = []
    model.dropout.register_forward_hook(lambda _m, _i, out: seen.append(out))
    model(torch.randn(1, 3, 4, 32, 32))
    assert seen[0].numel() == 4 * 64


def test_a_clip_of_another_length_is_refused():
    with pytest.raises(UsageError, match="7 frames came to a network of 8 segments") as error:
        build("tsm_r18", 2, width=8)(torch.zeros(1, 3, 7, 32, 32))
    assert error.value.code == "CLIP_LENGTH"
