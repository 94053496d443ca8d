"""Which epochs are validated."""

from types import SimpleNamespace

import pytest

from marey.jobs.epochs import Epochs


class Written(Epochs):
    """Writes down what would be done in which epoch."""

    def __init__(self, validates, **plan):
        self.task = SimpleNamespace(
            validates=validates, notes=[], name="", size=1, unit="clips", classes=("a",), plan=None
        )
        self.plan, self.steps, self.epoch, self.step = SimpleNamespace(**plan), 1, 0, 0
        self.run = SimpleNamespace(folder="", say=lambda text: None, forget_after=lambda step: None)
        self.validated, self.refitted, self.saved = [], [], []

    def one_epoch(self):
        pass

    def validate(self):
        self.validated.append(self.epoch - 1)

    def refit_norms(self):
        self.refitted.append(self.epoch)

    def save(self):
        self.saved.append(self.epoch - 1)

    def finish(self):
        return self


@pytest.mark.parametrize(
    ("every", "epochs", "wanted"),
    [
        # Andy1621/Nightcrawler@259fa5b9 counts from 0, too: EVAL_PERIOD 3, MAX_EPOCH 20
        (3, 20, [2, 5, 8, 11, 14, 17, 19]),
        (1, 3, [0, 1, 2]),
        (0, 4, [3]),
        (7, 4, [3]),
    ],
)
def test_every_so_many_epochs_and_the_last_are_validated(every, epochs, wanted):
    run = Written(True, validate_every=every, epochs=epochs, precise_bn=5).all(resume=False)
    assert run.validated == run.refitted == wanted
    assert run.saved == list(range(epochs))


def test_without_a_list_to_validate_on_only_the_last_norms_are_measured():
    run = Written(False, validate_every=2, epochs=5, precise_bn=5).all(resume=False)
    assert (run.validated, run.refitted) == ([], [4])
