"""Cards of feature folders: what makes features the same, and what is refused."""

import msgspec
import pytest

from marey.data.feature_card import (
    NAME,
    YOUTUBE8M,
    FeatureCard,
    feature_card,
    not_comparable,
    read_feature_card,
    write_feature_card,
)
from marey.errors import DataError

CARD = FeatureCard(
    rgb=4, made_by={"rgb": {"model": "tsn_r50", "weights_sha256": "ab"}}, shards=("0.tfrecord",)
)


def changed(**fields):
    return msgspec.structs.replace(CARD, **fields)


def test_a_card_comes_back_and_knows_what_a_byte_means(tmp_path):
    assert read_feature_card(tmp_path) is None
    write_feature_card(tmp_path, CARD)
    assert read_feature_card(tmp_path) == CARD
    same = changed(videos=7, class_names=("a",), num_classes=1, seconds=2.0, shards=("1.tfrecord",))
    assert same.fingerprint == CARD.fingerprint
    others = changed(rgb=5), changed(audio=1), changed(made_by={"rgb": {"model": "tsn_r18"}})
    assert len({card.fingerprint for card in (CARD, *others)}) == 4


def test_what_is_no_card_is_refused(tmp_path):
    for text in (
        b"{}",
        b"nothing",
        b'{"rgb": "wide", "made_by": {}}',
        b'{"format": 2, "rgb": 1, "made_by": {}}',
    ):
        (tmp_path / NAME).write_bytes(text)
        with pytest.raises(DataError, match=NAME) as error:
            read_feature_card(tmp_path)
        assert error.value.code == "FEATURES_CARD"


def test_folders_must_agree(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    paths = [a / "0.tfrecord", a / "1.tfrecord", b / "0.tfrecord"]
    assert feature_card([]) is None
    assert feature_card(paths) is None
    write_feature_card(a, CARD)
    assert feature_card(paths[:2]) == CARD
    with pytest.raises(DataError) as error:
        feature_card(paths)
    assert error.value.code == "FEATURES_MIXED"
    write_feature_card(b, changed(videos=3, longest=7))
    assert feature_card(paths) == changed(longest=7)
    write_feature_card(b, changed(audio=2))
    with pytest.raises(DataError):
        feature_card(paths)


def test_only_a_known_difference_makes_scores_incomparable():
    assert not_comparable(None, CARD) is None
    assert not_comparable(CARD.fingerprint, CARD) is None
    assert not_comparable(YOUTUBE8M, None) is None
    assert "YouTube-8M's own features and these" in str(not_comparable(YOUTUBE8M, CARD))
    assert "not comparable" in str(not_comparable("0" * 64, CARD))
    assert NAME in str(not_comparable(CARD.fingerprint, None))
