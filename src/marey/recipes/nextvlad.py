"""NeXtVLAD on YouTube-8M as it was published, and the same network on features and tags of one's own.

Paddle's configuration (PaddlePaddle/models@b71cf63:PaddleCV/video/configs/nextvlad.yaml), and the authors'
(linrongc/youtube-8m@4810b4e and Lin, Xiao and Fan, arXiv:1811.05014). The authors draw their first weights
from a truncated Gaussian, a little wider than here.
"""

from typing import Any

import msgspec

from marey.recipes.schema import Model, Published, Records, TagRecipe, TagTesting, Training
from marey.training.optim import Optimizer, Schedule

VALIDATION = 1_112_356  # videos of YouTube-8M 2018, partition 2/frame/validate
YOUTUBE8M = "YouTube-8M 2018 validation"
ADAM = Optimizer(kind="adam", lr=2e-4, weight_decay=1e-5, groups="head", clip_norm=None)
AUTHORS: dict[str, Any] = {  # how their network computes, whatever its size
    "audio_cluster_size": 64,
    "audio_groups": 4,
    "inverted_dropout": True,
    "bn_eps": 1e-3,
    "bn_momentum": 0.001,
    "pad_to": 300,
    "l2_floor": True,
}


def nextvlad_yt8m() -> TagRecipe:
    """NeXtVLAD of PaddlePaddle/models, 89 M parameters; published GAP 87.09, Hit@1 89.60, PERR 81.32.

        marey train nextvlad_yt8m data.train=2/frame/train data.val=2/frame/validate

    Paddle trained on four GPUs with 40 videos each: `--devices 4 training.batch=40`. Its configuration names
    a gradient clipping of 1.0 that no release applied; training.optimizer.clip_norm=1 would.
    """
    return TagRecipe(
        name="nextvlad.nextvlad_yt8m",
        model=Model(name="nextvlad", num_classes=3862),
        data=Records(),
        training=Training(
            epochs=6,
            batch=160,
            reference_batch=160,
            optimizer=ADAM,
            schedule=Schedule(kind="samples", samples=2_000_000, gamma=0.8, until=700_000),
        ),
        testing=TagTesting(batch=40, top=20),
        published=Published(
            metrics={"gap": 0.8709, "hit1": 0.8960, "perr": 0.8132},
            source="PaddlePaddle/models@b71cf63:PaddleCV/video/models/nextvlad/README.md",
            protocol="GAP@20 of one network",
            dataset=YOUTUBE8M,
        ),
    )


def nextvlad_yt8m_authors() -> TagRecipe:
    """NeXtVLAD as its authors computed and trained it, 128 clusters; published GAP 87.23.

        marey train nextvlad_yt8m_authors data.train=2/frame/train data.val=2/frame/validate

    Other rows of the paper's table 1: model.options.groups=16 and 32, model.options.dropout=0.2.
    """
    base = nextvlad_yt8m()
    return msgspec.structs.replace(
        base,
        name="nextvlad.nextvlad_yt8m_authors",
        model=msgspec.structs.replace(base.model, options=AUTHORS),
        training=msgspec.structs.replace(
            base.training,
            epochs=5,
            optimizer=msgspec.structs.replace(ADAM, clip_norm=1.0, clip_each=True),
            schedule=Schedule(kind="samples", samples=2_000_000, gamma=0.8, counted="samples"),
        ),
        published=Published(
            metrics={"gap": 0.8723},
            source="arXiv:1811.05014, table 1",
            protocol="GAP@20 of one network",
            dataset="about a tenth of YouTube-8M 2018 validation",
        ),
    )


def nextvlad_yt8m_112k() -> TagRecipe:
    """NeXtVLAD of the authors' submission, 112 clusters, 79 M parameters; published GAP 87.85.

        marey train nextvlad_yt8m_112k data.train=LIST   # a list of the shards of train and validate

    Trained for 15 epochs on both partitions. The rate is the script's; the paper says 0.9 for 2.5 M videos.
    """
    base = nextvlad_yt8m_authors()
    sizes = {"cluster_size": 112, "audio_cluster_size": 56, "gating_reduction": 16}
    return msgspec.structs.replace(
        base,
        name="nextvlad.nextvlad_yt8m_112k",
        model=msgspec.structs.replace(base.model, options=AUTHORS | sizes),
        training=msgspec.structs.replace(
            base.training,
            epochs=15,
            schedule=Schedule(kind="samples", samples=2_500_000, gamma=0.8, counted="samples"),
        ),
        published=Published(
            metrics={"gap": 0.87846},
            source="arXiv:1811.05014, table 2",
            protocol="GAP@20 of one network; public board 0.87910",
            dataset="YouTube-8M 2018 test, private board",
        ),
    )


def own_tags() -> TagRecipe:
    """Tags of one's own from features that `marey features --format youtube8m` made, with sound or without.

        marey train own_tags data.train=features/train data.val=features/val

    Widths, number and names of the tags are those of the features. A small network, for sets of thousands of
    videos; for more, take model.options.cluster_size=128 and hidden_size=2048, as on YouTube-8M.
    """
    options = {"whitened": False, "cluster_size": 32, "hidden_size": 512}
    return TagRecipe(
        name="nextvlad.own_tags",
        model=Model(name="nextvlad", options=options),
        training=Training(
            epochs=30,
            batch=32,
            reference_batch=32,
            optimizer=msgspec.structs.replace(ADAM, lr=1e-3, clip_norm=1.0),
            schedule=Schedule(kind="cosine", per="iteration", warmup_epochs=1.0),
            log_every=10,
        ),
    )
