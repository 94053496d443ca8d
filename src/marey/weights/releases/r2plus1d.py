"""R(2+1)D of VMZ: facebookresearch/VMZ@4cc542d5, c2/tutorials/model_zoo.md.

The source states no protocol: clips and crops are the defaults of its test script (c2/tools/test_net.py),
which resizes to 171x128 where we keep the aspect. MMAction2's R(2+1)D is another network, and left out.
"""

from typing import Any

from marey.video.preprocess import Preprocess, Protocol
from marey.weights.release import DROPBOX, Release, named
from marey.weights.releases.csn import KINETICS


def clips(frames: int) -> Preprocess:
    """Frames in a row, small pictures; tested on the centre of 10 clips."""
    return Preprocess(frames=frames, short_side=128, crop=112, test=Protocol(clips=10), **KINETICS)


def _row(
    frames: int,
    place: str,
    top1: float | None = None,
    top5: float | None = None,
    *,
    depth: int = 34,
    **fields: Any,
) -> Release:
    return Release(
        model=f"r2plus1d_r{depth}",
        preprocess=clips(frames),
        top1=top1,
        top5=top5,
        source="vmz",
        url=f"{DROPBOX}{place}.pkl?dl=1",
        **fields,
    )


RELEASES = named(
    {  # some files have a blank in their name there
        "r2plus1d_34_clip8_ft_kinetics_from_ig65m_f128022400": _row(
            8, "p81twy88kwrrcop/r2plus1d_34_clip8_ft_kinetics_from_ig65m_%20f128022400", 74.9, 91.8
        ),
        "r2plus1d_34_clip32_ft_kinetics_from_ig65m_f106169681": _row(
            32, "z41ff7vs0bzf6b8/r2plus1d_34_clip32_ft_kinetics_from_ig65m_%20f106169681", 80.0, 94.2
        ),
        "r2plus1d_34_clip8_ig65m_from_scratch_f79708462": _row(
            8, "6xwyu1az6oy4ts7/r2plus1d_34_clip8_ig65m_from_scratch_f79708462", dataset="IG-65M"
        ),
        "r2plus1d_34_clip32_ig65m_from_scratch_f102649996": _row(
            32, "eimo232tqw8mwi9/r2plus1d_34_clip32_ig65m_from_scratch_f102649996", dataset="IG-65M"
        ),
        "r2plus1d_152_kinetics_from_scratch_f127858918": _row(
            32, "9770y063u3z5bmb/r2plus1d_152_kinetics_from_scratch_f127858918", 77.3, 92.5, depth=152
        ),
        "r2plus1d_152_ft_kinetics_from_sports1m_f128957437": _row(
            32, "twvcpe30rxuaf45/r2plus1d_152_ft_kinetics_from_sports1m_f128957437", 79.5, 94.0, depth=152
        ),
        "r2plus1d_152_ft_kinetics_from_ig65m_f107107466": _row(
            32, "tmxuae8ubo5gipy/r2plus1d_152_ft_kinetics_from_ig65m_f107107466", 81.6, 95.3, depth=152
        ),
        "r2plus1d_152_sports1m_from_scratch_f127111290": _row(
            32,
            "w5cdqeyqukuaqt7/r2plus1d_152_sports1m_from_scratch_f127111290",
            depth=152,
            dataset="Sports-1M",
        ),
        "r2plus1d_152_ig65m_from_scratch_f106380637": _row(
            32, "oqdg176p7nqc84v/r2plus1d_152_ig65m_from_scratch_f106380637", depth=152, dataset="IG-65M"
        ),
    }
)
