"""Banks: what was put in comes out, by the rules of MMAction2's sampling, from any process.

Rules: open-mmlab/mmaction2@v0.24.1:mmaction/models/common/lfb.py, written out as `wanted_window`.
"""

import json
import multiprocessing
import pickle

import numpy as np
import pytest
import torch

from marey.data.bank import Bank, BankCard, Rows, damage, shard_files, write_shard
from marey.errors import DataError, UsageError

CARD = BankCard(model="slowonly_r50_det", model_sha256="ab" * 32, channels=4, dtype="float16")


def rows_of(persons, start=0):
    """Rows that tell where they come from: [video, second, number, 1]; persons: second -> how many."""
    where = [(second, number) for second, count in persons.items() for number in range(count)]
    features = torch.tensor([[start, s, number, 1] for s, number in where]).float().reshape(-1, 4)
    return Rows([s for s, _ in where], features, torch.rand(len(where), 4), torch.rand(len(where)))


PERSONS = {
    "vidA": {902: 2, 904: 5, 905: 1, 960: 3, 961: 12},
    "vidB": {1770: 1, 1798: 2, 1799: 3},
    "-empty_": {},
}


@pytest.fixture
def folder(tmp_path):
    videos = {video: rows_of(persons, n) for n, (video, persons) in enumerate(PERSONS.items())}
    write_shard(tmp_path / "bank", CARD, {"vidA": videos["vidA"], "-empty_": videos["-empty_"]})
    write_shard(tmp_path / "bank", CARD, {"vidB": videos["vidB"]})
    return tmp_path / "bank"


def wanted_window(video, second, window, per_step):
    """For each slot the second whose persons may fill it; None: it stays empty."""
    slots = []
    for step in range(window):
        there = PERSONS[video].get(second - window // 2 + step, 0)
        slots += [second - window // 2 + step] * min(there, per_step) + [None] * max(per_step - there, 0)
    return slots


@pytest.mark.parametrize("epoch", [None, 3])
@pytest.mark.parametrize(("window", "per_step"), [(60, 5), (3, 20), (7, 1), (1, 5)])
@pytest.mark.parametrize(
    ("video", "second"), [("vidA", 902), ("vidA", 931), ("vidB", 1798), ("vidB", 1300), ("-empty_", 902)]
)
def test_windows_reach_from_half_before_to_one_less_after(folder, video, second, window, per_step, epoch):
    bank = Bank(folder)
    found = bank.look_up([(video, second)], [2], window=window, per_step=per_step, epoch=epoch)
    assert (found.shape, found.dtype) == ((2, window * per_step, 4), torch.float16)
    number = list(PERSONS).index(video)
    for block in found.tolist():
        assert [int(row[1]) if any(row) else None for row in block] == wanted_window(
            video, second, window, per_step
        )
        full = [tuple(row) for row in block if any(row)]
        assert len(set(full)) == len(full)  # nobody twice
        assert all(row[0] == number and row[3] == 1 for row in full)


def test_all_choices_of_persons_are_equally_likely(folder):
    bank, count = Bank(folder), 3000
    found = bank.look_up([("vidA", 961)], [count], window=1, per_step=3, epoch=0)
    triples = {}
    for persons in found[:, :, 2].int().tolist():
        assert persons == sorted(persons)
        triples[tuple(persons)] = triples.get(tuple(persons), 0) + 1
    assert len(triples) == 220  # 3 of 12
    mean = count / 220
    chi = sum((seen - mean) ** 2 / mean for seen in triples.values())
    assert abs(chi - 219) < 5 * (2 * 219) ** 0.5


def test_draws_depend_on_seed_epoch_key_and_box_alone(folder):
    bank = Bank(folder)

    def draw(keys=(("vidA", 961),), counts=(3,), **options):
        return bank.look_up(keys, counts, window=2, per_step=4, **options)

    test = draw()
    assert torch.equal(test[0], test[1])
    assert torch.equal(test, draw(seed=0))
    assert not torch.equal(test, draw(seed=1))
    one = draw(epoch=1)
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one, draw(epoch=2))
    assert torch.equal(one, draw((("vidB", 1799), ("vidA", 961)), (2, 3), epoch=1)[2:])
    assert not torch.equal(one[0], draw((("vidA", 962),), epoch=1)[0])


def test_rows_of_a_second_keep_their_order_and_their_boxes(tmp_path):
    given = rows_of({7: 3, 5: 2})
    write_shard(tmp_path, CARD, {"v": given})
    features, boxes, scores = Bank(tmp_path).rows("v", 7)
    assert torch.equal(features.float(), given.features[:3])
    assert torch.equal(boxes, given.boxes[:3])
    assert torch.equal(scores, given.scores[:3])
    assert [len(part) for part in Bank(tmp_path).rows("v", 6)] == [0, 0, 0]
    assert len(Bank(tmp_path).rows("v", 4)[0]) == 0


def test_a_bank_says_what_is_in_it_and_shards_are_mapped(folder):
    bank = Bank(folder, model_sha256="ab" * 32)
    assert (bank.card, len(bank), set(bank.videos)) == (CARD, 29, set(PERSONS))
    assert (bank.seconds, bank.most) == ((902.0, 1799.0), 12)
    assert bank.look_up([("vidA", 902)]).shape == (1, 300, 4)
    assert bank.look_up([]).shape == (0, 300, 4)
    assert bank.look_up([("vidA", 902)], [0]).shape == (0, 300, 4)
    for shard in bank.shards:
        assert isinstance(shard.features.base, np.memmap) or shard.features.size == 0
        assert not list(damage(shard))


def test_time_steps_need_not_be_seconds(tmp_path):
    card = BankCard(model="m", model_sha256=None, channels=4, step=0.5, window=4, per_step=1)
    write_shard(tmp_path, card, {"v": rows_of({0.5: 1, 1.0: 1, 1.5: 1, 2.0: 1})})
    bank = Bank(tmp_path)
    assert bank.seconds == (0.5, 2.0)
    assert bank.look_up([("v", 1.5)])[0, :, 1].tolist() == [0.5, 1.0, 1.5, 2.0]
    with pytest.raises(DataError, match="between time steps") as error:
        write_shard(tmp_path, card, {"w": rows_of({0.7: 1})})
    assert error.value.code == "BANK_VALUES"


def summed(bank):
    return bank.look_up([("vidA", 931)]).double().sum().item(), len(pickle.dumps(bank))


def test_other_processes_map_the_same_files(folder):
    bank = Bank(folder)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        (found,) = pool.map(summed, [bank])
    assert found == summed(bank)
    assert found[1] < 500  # a path, no features


def test_a_bank_in_memory_gives_what_the_one_on_disk_gives(folder):
    videos = {video: rows_of(persons, n) for n, (video, persons) in enumerate(PERSONS.items())}
    held, keys = Bank.of(CARD, videos), [("vidA", 931), ("vidB", 1799)]
    assert torch.equal(held.look_up(keys, epoch=1), Bank(folder).look_up(keys, epoch=1))
    # safe: the bytes were pickled in the same line
    again = pickle.loads(pickle.dumps(held))
    assert torch.equal(held.look_up(keys), again.look_up(keys))


def refused(code, kind, call):
    with pytest.raises(kind) as error:
        call()
    assert error.value.code == code
    return error.value.message


def test_what_does_not_belong_together_is_refused(folder, tmp_path):
    text = refused("BANK_MODEL", UsageError, lambda: Bank(folder, model_sha256="cd" * 32))
    assert "abababababab" in text and "cdcdcdcdcdcd" in text
    text = refused("BANK_VIDEO", DataError, lambda: Bank(folder).look_up([("vidC", 902)]))
    assert "vidA" in text
    refused("BANK_NOT_FOUND", DataError, lambda: Bank(tmp_path / "nothing"))
    other = BankCard(model="other", model_sha256=None, channels=4, dtype="float16")
    unknown = write_shard(tmp_path / "other", other, {"x": rows_of({1: 1})})
    refused("BANK_MODEL", UsageError, lambda: Bank(tmp_path / "other", model_sha256="ab" * 32))
    unknown.rename(folder / unknown.name)
    assert "model slowonly_r50_det and other" in refused("BANK_MIXED", DataError, lambda: Bank(folder)) or (
        "model other and slowonly_r50_det" in refused("BANK_MIXED", DataError, lambda: Bank(folder))
    )
    (folder / unknown.name).unlink()
    write_shard(folder, CARD, {"vidB": rows_of({1: 1}), "new": rows_of({1: 1})})
    assert "'vidB' in two shards" in refused("BANK_MIXED", DataError, lambda: Bank(folder))


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (Rows([1], torch.zeros(1, 5)), "needed: [1, 4]"),
        (Rows([1, 2], torch.zeros(1, 4)), "needed: [2, 4]"),
        (Rows([1], torch.full((1, 4), 70000.0)), "too large for float16"),
        (Rows([1], torch.full((1, 4), torch.nan)), "not finite"),
        (Rows([1], torch.zeros(1, 4), torch.zeros(2, 4)), "boxes of 'v'"),
        (Rows([1, 10**9], torch.zeros(2, 4)), "apart"),
    ],
)
def test_values_that_cannot_be_kept_are_refused(tmp_path, rows, text):
    message = refused("BANK_VALUES", DataError, lambda: write_shard(tmp_path, CARD, {"v": rows}))
    assert text in message
    assert not list(tmp_path.iterdir())


def test_damage_is_named(folder):
    file = max(shard_files(folder), key=lambda path: path.stat().st_size)
    whole = file.read_bytes()
    head = 8 + int.from_bytes(whole[:8], "little")
    table = json.loads(whole[8:head])
    for wrong in (
        b"",
        whole[: head - 3],
        whole[:-20],
        b"\xff" * 8 + whole[8:],
        whole.replace(b'\\"channels\\":4', b'\\"channels\\":5'),
        whole.replace(b'\\"vidA\\",902,60,', b'\\"vidA\\",902,59,'),
        whole.replace(b'\\"most\\":12', b'\\"most\\":1x'),
        whole[: head + table["offsets"]["data_offsets"][0]] + b"\x7f" * 16 + whole[head + 16 :],
    ):
        file.write_bytes(wrong)
        assert str(file) in refused("BANK_DAMAGED", DataError, lambda: Bank(folder))
    start = head + table["features"]["data_offsets"][0]
    file.write_bytes(whole[:start] + b"\xff\x7f" + whole[start + 2 :])
    problems = [text for shard in Bank(folder).shards for text in damage(shard)]
    assert problems == ["the features have changed since they were written", "some features are not finite"]
