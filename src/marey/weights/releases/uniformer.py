"""UniFormer as its authors publish it: Sense-X/UniFormer@52a0415e, video_classification.

Rows of the classifiers of Kinetics are not in the order of the sorted names: `uniformer_order.txt`, from the
authors' lists. On Something-Something frames were read as BGR, and of V2 the numbers of the classes may be
those of a list that is not sorted as the official one: compare some videos before trusting them. Names of
those files are by the pattern of the authors' code. Files lie on Google Drive; no hashes are stated. The
licence is that of the repository.

Two files of images are there to start from (image_classification/README.md), those without layer scale.

Left out: UCF101 and HMDB51, whose files' names are not known, and MMAction2's copies, whose tensors have
names that are not known here. Of UniFormer-S on 32 frames of Kinetics-400 there is no file.
"""

from importlib import resources
from typing import Any

import msgspec

from marey.video.preprocess import Preprocess, Protocol
from marey.weights.release import DRIVE, PYSLOWFAST, Release, named

SMALL, BASE = "uniformer_s", "uniformer_b"
K400, K600 = "Kinetics-400", "Kinetics-600"
V1, V2 = "Something-Something V1", "Something-Something V2"


def _orders() -> dict[str, tuple[int, ...]]:
    """Labels of the classifier's rows, for each data set."""
    orders = {}
    text = resources.files(__package__).joinpath("uniformer_order.txt").read_text(encoding="utf-8")
    for line in text.splitlines()[1:]:
        dataset, _, labels = line.partition(": ")
        orders[dataset] = tuple(map(int, labels.split()))
    return orders


ORDERS = _orders()


def _dense(frames: int, interval: int) -> Preprocess:
    """Consecutive frames whatever their rate, cut in training from whole ones; tested on four clips of the
    centre."""
    return Preprocess(
        frames=frames,
        interval=interval,
        rule="slowfast_offset",
        short_side=None,
        average="score",
        val=Protocol(short_side=224),
        test=Protocol(clips=4, short_side=224),
        **PYSLOWFAST,
    )


def _sparse(frames: int) -> Preprocess:
    """A frame from each part of the video; tested on three crops."""
    return Preprocess(
        sampling="uniform",
        frames=frames,
        rule="slowfast_offset",
        short_side=None,
        flip=0.0,
        channel_order="bgr",
        average="score",
        val=Protocol(short_side=224),
        test=Protocol(crops="three", short_side=224),
        **PYSLOWFAST,
    )


def _row(
    model: str,
    dataset: str,
    clips: Preprocess,
    top1: float | None,
    key: str,
    **fields: Any,
) -> Release:
    """`key` is that of the file on Google Drive."""
    return Release(
        model=model,
        preprocess=clips,
        dataset=dataset,
        top1=top1,
        source="uniformer",
        license="MIT",
        url=DRIVE.format(key),
        label_order=ORDERS.get(dataset, ()),
        **fields,
    )


def _start(model: str, key: str) -> Release:
    return _row(model, "ImageNet-1K", CLIPS, None, key, headless=True)


def _recipe(name: str) -> str:
    """The folder of the training; it has the parts of a file's name in another order."""
    _, size, dataset, frames, *start = name.split("_")
    return "_".join([f"uniformer_{size[0]}{frames}", dataset, *start])


CLIPS = _dense(16, 4)
STARTS = named(
    {
        "uniformer_small_in1k": _start(SMALL, "1-uepH3Q3BhTmWU6HK-sGAGQC_MpfIiPD"),
        "uniformer_base_in1k": _start(BASE, "1-wT39QazTGELxgrQIu6J12D3qcla3hui"),
    }
)
TRAINED = named(
    {
        "uniformer_small_k400_8x8": _row(
            SMALL, K400, _dense(8, 8), 78.4, "1-kitVTkWErHXI_x-sLItvK9-sOmb53j6"
        ),
        "uniformer_small_k400_16x4": _row(
            SMALL, K400, _dense(16, 4), 80.8, "1-jGZIIuTM5IYIpqkNTojhGhfMc7Gu9Kt"
        ),
        "uniformer_small_k400_16x8": _row(
            SMALL, K400, _dense(16, 8), 80.8, "174muWZJcZHieABDZMKiJ0tNeFLoEkJLx"
        ),
        "uniformer_base_k400_8x8": _row(BASE, K400, _dense(8, 8), 79.8, "1hBxGU-QE8hGRBjSNCymJ7Au06LhluvTv"),
        "uniformer_base_k400_16x4": _row(
            BASE, K400, _dense(16, 4), 82.0, "15ipzFaZdTt-aHv7jcr_h_vgYD2X7D6AD"
        ),
        "uniformer_base_k400_16x8": _row(
            BASE, K400, _dense(16, 8), 81.7, "1VoZcpFZbk9lEyRQ7gqRgT4CsnVt9g7uk"
        ),
        "uniformer_base_k400_32x4": _row(
            BASE, K400, _dense(32, 4), 82.9, "1gHxx8cr1H0CNvngj1kB9ArgcPfJtqjCV"
        ),
        "uniformer_small_k600_16x4": _row(
            SMALL, K600, _dense(16, 4), 82.8, "1-dqzjm5RZVspWHQLRD4S1vo4_6jyVltb"
        ),
        "uniformer_small_k600_16x8": _row(
            SMALL, K600, _dense(16, 8), 82.7, "1-c835NJjg_015WxLBQF-1cPdQsyWMWfY"
        ),
        "uniformer_base_k600_16x4": _row(
            BASE, K600, _dense(16, 4), 84.0, "1nBQCBCsCflhZ4OGUoGB3pAkc_GDau7vd"
        ),
        "uniformer_base_k600_16x8": _row(
            BASE, K600, _dense(16, 8), 83.4, "1aidHdSd-h65-_EUkfNOdMMw0ZB8G5maY"
        ),
        "uniformer_base_k600_32x4": _row(
            BASE, K600, _dense(32, 4), 84.5, "1-DwdVf8w8lYj-iFpU40pfEpog9VE5PQB"
        ),
        "uniformer_small_sthv1_16_prek400": _row(
            SMALL, V1, _sparse(16), 57.2, "1-bdFsmXt2Ztf43lrVgmqS8_VYJ8tub6J"
        ),
        "uniformer_small_sthv1_16_prek600": _row(
            SMALL, V1, _sparse(16), 57.6, "1-YbYGjM15MDtQnrmCeZ9H2ybNdYTFkgO"
        ),
        "uniformer_small_sthv1_32_prek400": _row(
            SMALL, V1, _sparse(32), 58.8, "1-Y5ADssqM2C8o_1jix48fQM788mVGWQ3"
        ),
        "uniformer_small_sthv1_32_prek600": _row(
            SMALL, V1, _sparse(32), 59.9, "1-XEgaGqXGp1EGzFl63ctApnvU54X27WP"
        ),
        "uniformer_base_sthv1_16_prek400": _row(
            BASE, V1, _sparse(16), 59.1, "1uMq4W5lf17vOHUmccNjYLeTMqaWHSh6v"
        ),
        "uniformer_base_sthv1_16_prek600": _row(
            BASE, V1, _sparse(16), 58.8, "1xpiL8zEDWYHFR55gOsbQiI41YEjTD89J"
        ),
        "uniformer_base_sthv1_32_prek400": _row(
            BASE, V1, _sparse(32), 60.9, "18A3FuUUbdQ8ehMQ0D78qTTtm6YmIVWaO"
        ),
        "uniformer_base_sthv1_32_prek600": _row(
            BASE, V1, _sparse(32), 61.0, "1xE1aJYAYFOlXOkpiIbJFHu_jSrr8reKm"
        ),
        "uniformer_small_sthv2_16_prek400": _row(
            SMALL, V2, _sparse(16), 67.7, "1-Wq22024HB7tT8kPX6eSMn2GUNMI-_gY"
        ),
        "uniformer_small_sthv2_16_prek600": _row(
            SMALL, V2, _sparse(16), 69.4, "1-V1mQp4fIIYhaXUWCgZXkJ0H6ne0Z8rz"
        ),
        "uniformer_small_sthv2_32_prek400": _row(
            SMALL, V2, _sparse(32), 69.0, "1-5Q5S-NRmHFkIBygaRYpJLT7aI9cpmky"
        ),
        "uniformer_small_sthv2_32_prek600": _row(
            SMALL, V2, _sparse(32), 70.4, "1-1K5R3Ed4t8d_DZnJ62xysIt1dBNmx96"
        ),
        "uniformer_base_sthv2_16_prek400": _row(
            BASE, V2, _sparse(16), 70.4, "1s78JBpnykyJ7pYEGRDK8BZL9seIRIUlC"
        ),
        "uniformer_base_sthv2_16_prek600": _row(
            BASE, V2, _sparse(16), 70.2, "16nCBGWzMM8n8Vr_EY0UmvgzLG0S_QYef"
        ),
        "uniformer_base_sthv2_32_prek400": _row(
            BASE, V2, _sparse(32), 71.1, "1-rpMARXnyvyj6YUJkIvVqtna86egpjoS"
        ),
        "uniformer_base_sthv2_32_prek600": _row(
            BASE, V2, _sparse(32), 71.2, "1-lkRB3546l_ECuObN_IrHws1C9a-qKPr"
        ),
    }
)
RELEASES = STARTS | {
    name: msgspec.structs.replace(row, recipe=_recipe(name)) for name, row in TRAINED.items()
}
