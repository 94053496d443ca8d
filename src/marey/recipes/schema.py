"""What a recipe is made of: small frozen records, one per concern, that refuse what they do not know."""

from typing import Any, Literal

import msgspec

from marey.data.ava import AVA, KeyFrames
from marey.errors import UsageError
from marey.training.optim import Optimizer, Schedule
from marey.video.augment import Augment
from marey.video.preprocess import Preprocess

OF_FEATURES = ("nextvlad",)  # networks that take features of frames, not clips
OF_BOXES = "_det"  # how networks end that take boxes beside clips


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which network.

    name         one of `marey.list_models()`
    num_classes  None: as many as the data has
    weights      a release's name, a checkpoint or a 2D ImageNet file to start from; None: from scratch
    options      architecture overrides, for example {"segments": 8}
    """

    name: str
    num_classes: int | None = None
    weights: str | None = None
    options: dict[str, Any] = {}


class Data(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which videos, and how they are read.

    train, val, test  a list or a folder per class each; test falls back to val
    splits            instead of the three: one list with a `split` column, or a folder of train/, val/, test/
    format            layout of the lists, see docs/data.md; "auto" finds it from the content
    root              folder that relative paths start from; None: the list's own folder
    classes           file with the class names in label order, or a data set whose names ship
                      ("Kinetics-400"); None: from the lists, or the owner's file beside them
    template          file names in folders of frames, for example "img_{:05}.jpg"; None: found
    first_label       number of the first class in the lists: 1 for lists that count from 1
    multi_label       None: as the lists say
    workers           decoding processes; -1: one per core, at most eight; 0: in the training process
    seconds           time limit for one clip, after which its file counts as bad
    max_bad           largest share of the training files that may be unreadable (skipped, counted, named)
    max_bad_test      the same for validation and test; above 0 the result says how many are missing
    labels            how clips with several labels are learnt. "each": every class is a yes-or-no question
                      (sigmoids); "one": one of the clip's labels, drawn at each visit (softmax), as ResKD
                      does; "shared": the target is spread evenly over them (softmax)
    class_power       None: every clip once an epoch; else classes are drawn with probability share ** power
                      (0: all equally often), MMAction2's sample_by_class
    """

    train: str | None = None
    val: str | None = None
    test: str | None = None
    splits: str | None = None
    format: str = "auto"
    root: str | None = None
    classes: str | None = None
    template: str | None = None
    first_label: int = 0
    multi_label: bool | None = None
    workers: int = -1
    seconds: float = 60.0
    max_bad: float = 0.01
    max_bad_test: float = 0.0
    labels: Literal["each", "one", "shared"] = "each"
    class_power: float | None = None

    @property
    def independent(self) -> bool:
        """Whether classes are questions of their own, answered by sigmoids."""
        return bool(self.multi_label) and self.labels == "each"


class Training(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the network is trained.

    epochs           how often every clip is seen
    batch            videos per process and step
    augment          what is done to clips beyond crop and mirror: copies, RandAugment, erasing, mixing
    accumulate       steps whose gradients make one update
    reference_batch  clips per update that optimizer.lr is meant for
    scale_lr         multiply the rate by (clips per update) / reference_batch
    optimizer        which optimiser, and with which rates
    schedule         how the learning rate moves
    label_smoothing  share of the target that is spread over all classes (one label per clip)
    ema              0: off; else what is validated and saved is a moving average of the weights, which keeps
                     this share of itself at each update, for example 0.9999
    precision        "32", or "bf16" autocast
    class_weights    "balanced": loss weights inverse to the classes' counts
    norm_parts       3D batch norms see the clips of a step in so many parts, with a mean and a variance each,
                     as if they were on as many GPUs; 1: all together. Published networks were mostly trained
                     with 8 clips on a GPU
    checkpoint_activations  residual blocks run again in the backward pass instead of keeping what they
                     computed: less memory, about a third more arithmetic, the same gradients
    validate_every   epochs between validations; 0: only after the last
    precise_bn       batches per process, drawn as for training, over which the statistics of the batch norms
                     are measured anew before each validation and after the last epoch; 0: they stay the
                     running averages. At most an epoch's batches; frozen norms stay as they are
    log_every        updates between rows of metrics.csv
    save_minutes     minutes between saved states inside an epoch (there is one after every epoch)
    """

    epochs: int
    batch: int = 8
    accumulate: int = 1
    reference_batch: int = 64
    scale_lr: bool = False
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    augment: Augment = Augment()
    label_smoothing: float = 0.0
    ema: float = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    precision: Literal["32", "bf16"] = "32"
    norm_parts: int = 1
    checkpoint_activations: bool = False
    validate_every: int = 1
    precise_bn: int = 0
    log_every: int = 20
    save_minutes: float = 10.0

    def __post_init__(self) -> None:
        for field in ("epochs", "batch", "accumulate", "reference_batch", "log_every"):
            if getattr(self, field) < 1:
                raise UsageError("RECIPE_VALUE", f"training.{field} must be at least 1")
        if not 1 <= self.norm_parts <= self.batch * self.augment.copies:
            raise UsageError(
                "RECIPE_VALUE", "training.norm_parts must be at least 1, and at most the clips of a step"
            )
        if self.precise_bn < 0:
            raise UsageError("RECIPE_VALUE", "training.precise_bn must not be below 0")
        if not 0 <= self.ema < 1 or not 0 <= self.label_smoothing < 1:
            raise UsageError("RECIPE_VALUE", "training.ema and training.label_smoothing must be 0 to below 1")


class Distill(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a student, the recipe's `model`, learns from a teacher besides the labels.

    teacher      which network teaches, and with which weights. It sees the training's whole crop
                 (`clips.crop`), the student the same one reduced (`clips.input_size`)
    feature_mse  weight of the mean squared difference of the two last maps, over all their elements
    map_kl       weight of the divergence of the class probabilities at every place of the map: both maps go
                 through their own classifiers; channels may differ
    logit_kl     weight of the divergence of the two predictions; for any two networks with the same classes
    labels       weight of the labels' own loss
    temperature  that logits are divided by in both divergences, which are multiplied by its square
    map_mean     unit of map_kl: "positions", mean over places; or "elements", over classes too, as published
    statistics   of the teacher's batch norms: "running", its own, or "batch", those of the clips of a step
    drop_path    the teacher drops branches at random as in training (transformers)
    projection   the student's map passes a learnt 1 x 1 x 1 convolution to the teacher's channels before
                 feature_mse; it is not saved with the student
    pool_time    where the two maps differ in moments, average the longer one; else that is refused
    precision    of the teacher: "32", "bf16" autocast, or "auto": bf16 on a GPU that has it, else 32
    compile      the teacher runs through torch.compile
    sha256       of the teacher's file: filled in when the training begins, and checked when it goes on
    cache        folder that keeps what the teacher says, so that it is asked once about each view; for
                 map_kl and logit_kl with running statistics, see docs/distillation.md
    views        with cache: how many views of a video there are; epoch after epoch takes the next one
    """

    teacher: Model
    feature_mse: float = 0.0
    map_kl: float = 0.0
    logit_kl: float = 0.0
    labels: float = 1.0
    temperature: float = 2.0
    map_mean: Literal["positions", "elements"] = "positions"
    statistics: Literal["running", "batch"] = "running"
    drop_path: bool = False
    projection: bool = False
    pool_time: bool = False
    precision: Literal["auto", "32", "bf16"] = "auto"
    compile: bool = False
    sha256: str | None = None
    cache: str | None = None
    views: int = 10

    def __post_init__(self) -> None:
        weights = (self.feature_mse, self.map_kl, self.logit_kl)
        for text, wrong in {
            "a weight among feature_mse, map_kl and logit_kl must be above 0, none of the four below": (
                min(*weights, self.labels) < 0 or max(weights) == 0
            ),
            "temperature must be above 0": not self.temperature > 0,
            "temperature is that of map_kl and logit_kl, whose weights are 0": (
                self.temperature != 2 and not max(self.map_kl, self.logit_kl)
            ),
            "map_mean is the unit of map_kl, whose weight is 0": (
                self.map_mean != "positions" and not self.map_kl
            ),
            "views must be at least 1": self.views < 1,
            "projection adapts maps for feature_mse, whose weight is 0": (
                self.projection and not self.feature_mse
            ),
            "cache keeps class maps and predictions only, not the maps of feature_mse": (
                self.cache is not None and self.feature_mse > 0
            ),
            "cache needs a teacher that says the same each time: statistics=running, drop_path=false": (
                self.cache is not None and (self.statistics != "running" or self.drop_path)
            ),
        }.items():
            if wrong:
                raise UsageError("RECIPE_VALUE", f"distill: {text}")


class Pseudo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Labels of the target that networks gave: after every step on the source comes one on these.

    Each step has clips of one domain, mixed among themselves, and batch norms see one domain at a time. A
    pair of steps has one learning rate. With training.accumulate=2 both losses make one update together.

    labels  table of `marey pseudo-label` (.parquet, .csv), a published list (`path,label,p0,...`), or a list
            `path,label`. Kept rows are learnt from, by the weights that a table gives them
    root    folder that their names start from; None: the folder of the file
    ending  "longer": an epoch sees all of the longer list, the shorter one begins anew; "shorter": the epoch
            ends with the shorter list, as published
    soft    the target of a clip is its row of probabilities, not its label
    weight  of this loss relative to the source's
    sha256  of the file: filled in when the training begins, and checked when it goes on
    """

    labels: str | None = None
    root: str | None = None
    ending: Literal["longer", "shorter"] = "longer"
    soft: bool = False
    weight: float = 1.0
    sha256: str | None = None

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise UsageError("RECIPE_VALUE", "adapt.pseudo.weight must be above 0")


class Adapt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Another domain, the target, of which nothing is labelled; `data` is the source.

    target   list of the target's videos; labels in it are not read. The statistics of batch norms are
             measured on training.precise_bn batches of it, instead of the source's, before each validation
             and after the last epoch
    root     folder that its names start from; None: the list's own
    share    of the target's statistics in what is set: below 1 some of the source's stays
    same     every epoch measures the same videos in the same order, cut anew, as published; else others
    dropout  dropout and drop path act while measuring, as published
    pseudo   labels of the target to learn from; None: the weights learn from the source alone
    """

    target: str | None = None
    root: str | None = None
    share: float = 1.0
    same: bool = False
    dropout: bool = False
    pseudo: Pseudo | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UsageError("RECIPE_VALUE", "adapt.share must be above 0 and at most 1")


class Testing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the network is tested; clips and crops are the preprocessing's test protocol.

    views_per_forward  views that go through the network at once: memory against speed, same scores
    """

    views_per_forward: int = 10


class Published(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the source reports for this recipe.

    metrics   by name, in 0..1
    source    where it says so
    protocol  clips and crops of the figures
    dataset   whose validation or test set they were measured on
    """

    metrics: dict[str, float]
    source: str
    protocol: str = ""
    dataset: str = ""


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A complete run. `marey recipe NAME` prints one; any field can be changed with `key=value`.

    name       module and published name
    model      which network
    data       which videos
    clips      which frames and pixels of them, in training, validation and test
    training   how the network is trained
    testing    how it is tested
    distill    what it learns from a teacher besides; None: from the labels alone
    adapt      another domain that it is made for, without labels; None: it learns for that of `data`
    published  what its source reports, shown beside what is measured
    """

    name: str
    model: Model
    data: Data = Data()
    clips: Preprocess
    training: Training
    testing: Testing = Testing()
    distill: Distill | None = None
    adapt: Adapt | None = None
    published: Published | None = None

    def __post_init__(self) -> None:
        if self.distill is not None and self.adapt is not None:
            raise UsageError("RECIPE_VALUE", "a recipe has either a teacher (distill) or a target (adapt)")
        if self.model.name in OF_FEATURES:
            raise UsageError(
                "RECIPE_KIND",
                f"{self.model.name} takes features of frames, but the recipe {self.name!r} is for clips; "
                "take one of `marey recipes 'nextvlad.*'`",
            )
        if self.model.name.endswith(OF_BOXES):
            raise UsageError(
                "RECIPE_KIND",
                f"{self.model.name} takes boxes, but the recipe {self.name!r} is for clips with labels; "
                "take one of `marey recipes 'lfb.*'` or 'ava.*'",
            )


class Records(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which records of frame features, and how they are read.

    train, val, test  a folder of records, a pattern, a file, or a list of files each; test falls back to val
    index        folder that keeps where the records of the files are, so that they are found once
    classes      names of the tags: YouTube-8M's vocabulary.csv, or a file with the names in label order;
                 None: those of the features (features.json), else numbers
    max_frames   later frames of a video are left out
    window       files whose records are shuffled together, see docs/youtube8m.md
    workers      reading processes; -1: one per core, at most eight; 0: in the training process
    seconds      time limit for reading a part of a batch
    max_bad      largest share of the training records that may be unreadable (skipped, counted, named)
    max_bad_test  the same for validation and test
    """

    train: str | None = None
    val: str | None = None
    test: str | None = None
    index: str | None = None
    classes: str | None = None
    max_frames: int = 300
    window: int = 16
    workers: int = -1
    seconds: float = 600.0
    max_bad: float = 0.01
    max_bad_test: float = 0.0

    def __post_init__(self) -> None:
        if self.max_frames < 1 or self.window < 1:
            raise UsageError("RECIPE_VALUE", "data.max_frames and data.window must be at least 1")


class TagTesting(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How tags are tested.

    batch  videos that go through the network at once; the last ones, fewer, are not left out
    top    tags of a video that count: the k of GAP@k and mAP
    """

    batch: int = 40
    top: int = 20

    def __post_init__(self) -> None:
        if self.batch < 1 or self.top < 1:
            raise UsageError("RECIPE_VALUE", "testing.batch and testing.top must be at least 1")


class TagRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A complete run that learns tags from features of frames; `data.train=RECORDS` says which.

    name       module and published name
    model      which network; widths of frames are options of it
    data       which records
    training   how the network is trained; what is done to clips has no place there
    testing    how it is tested
    published  what its source reports, shown beside what is measured
    """

    name: str
    model: Model
    data: Records = Records()
    training: Training
    testing: TagTesting = TagTesting()
    published: Published | None = None

    def __post_init__(self) -> None:
        if self.model.name not in OF_FEATURES:
            raise UsageError(
                "RECIPE_KIND",
                f"{self.model.name} takes clips, but the recipe {self.name!r} is for features of frames; "
                "take one for clips, for example finetune",
            )
        plain = Training(epochs=1)
        clips = ("augment", "label_smoothing", "class_weights", "norm_parts", "checkpoint_activations")
        for field in (*clips, "precise_bn"):
            if getattr(self.training, field) != getattr(plain, field):
                raise UsageError(
                    "RECIPE_KIND", f"training.{field} is for clips; {self.name!r} learns from features"
                )


class KeySplit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A split of key frames with boxes: five paths, of which `annotation` and `media` are needed.

    annotation  AVA's CSV; a test without it only predicts, at the key frames that `proposals` names
    media       folder with the videos, or with a folder of frames for each
    proposals   boxes of persons that a detector has found; training can do without, tests cannot
    excluded    key frames that do not count
    bank        feature bank of these videos, for networks with long_term
    """

    annotation: str | None = None
    media: str | None = None
    proposals: str | None = None
    excluded: str | None = None
    bank: str | None = None


class KeyData(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which videos, which moments of them, which boxes; see docs/detection.md for the files.

    train, val, test  test falls back to val
    label_map     names of the actions; those in it count in the evaluation. None: all of the annotation
    actions       only these of the annotation, renumbered 1, 2, ... in this order; none named: all
    key_frames    how time stamps, frames and key frames belong together
    template      file names in folders of frames, for example "img_{:05}.jpg"; None: found
    threshold     score from which a proposal counts as a person; one counts in any case
    most          proposals of a key frame that count at most
    bank_weights  hash of the network whose features the banks have to be; filled in by training
    workers, seconds, max_bad, max_bad_test   as in `Data`
    """

    train: KeySplit = KeySplit()
    val: KeySplit = KeySplit()
    test: KeySplit = KeySplit()
    label_map: str | None = None
    actions: tuple[int, ...] = ()
    key_frames: KeyFrames = AVA
    template: str | None = None
    threshold: float = 0.9
    most: int = 1000
    bank_weights: str | None = None
    workers: int = -1
    seconds: float = 60.0
    max_bad: float = 0.01
    max_bad_test: float = 0.0


class Boxes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a detector learns from.

    iou       overlap from which a proposal stands for a person
    most      boxes of a clip in a step
    smallest  persons of whom the crop leaves less, in pixels of width or height, are dropped; 0: none is
    alpha, gamma  focal form alpha * (1 - exp(-l)) ** gamma * l of each part l of the loss
    single    one action for each box (softmax); else every action is decided alone (sigmoids)
    """

    iou: float = 0.9
    most: int = 32
    smallest: float = 0.0
    alpha: float = 1.0
    gamma: float = 0.0
    single: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.iou <= 1 or self.most < 1 or self.smallest < 0 or self.alpha <= 0 or self.gamma < 0:
            raise UsageError(
                "RECIPE_VALUE",
                "boxes: iou in 0..1, most 1 or more, alpha above 0, smallest and gamma not below",
            )


class BoxTesting(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a detector is tested.

    threshold  probability from which an action of a box is written down
    protocol   whose frame mAP: "mmaction2" or "activitynet"
    seed       of what is drawn from the bank where a time step has more boxes than a window takes
    """

    threshold: float = 0.002
    protocol: Literal["mmaction2", "activitynet"] = "mmaction2"
    seed: int = 0


class BoxRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A complete run that learns what the persons in boxes do.

    name       module and published name
    model      which network, one that ends in _det
    data       which videos, moments and boxes
    clips      which frames and pixels around a key frame
    boxes      what is learnt from them
    training   how the network is trained; what is done to clips beyond crop and mirror has no place there
    testing    how it is tested
    published  what its source reports, shown beside what is measured
    """

    name: str
    model: Model
    data: KeyData = KeyData()
    clips: Preprocess
    boxes: Boxes = Boxes()
    training: Training
    testing: BoxTesting = BoxTesting()
    published: Published | None = None

    def __post_init__(self) -> None:
        if not self.model.name.endswith(OF_BOXES) or self.clips.sampling != "key":
            raise UsageError(
                "RECIPE_KIND",
                f"the recipe {self.name!r} is for detectors ({OF_BOXES}) and clips around key frames "
                f"(clips.sampling=key), not for {self.model.name} and {self.clips.sampling}",
            )
        plain = Training(epochs=1)
        for field in ("augment", "label_smoothing", "class_weights", "precise_bn"):
            if getattr(self.training, field) != getattr(plain, field):
                raise UsageError(
                    "RECIPE_KIND",
                    f"training.{field} is for clips with labels; {self.name!r} learns from boxes",
                )


AnyRecipe = Recipe | TagRecipe | BoxRecipe


def clip_recipe(recipe: AnyRecipe) -> Recipe:
    """The recipe, which must be one for clips. Raises UsageError RECIPE_KIND."""
    if not isinstance(recipe, Recipe):
        other = "boxes" if isinstance(recipe, BoxRecipe) else "features of frames"
        raise UsageError(
            "RECIPE_KIND", f"this needs clips with labels, but {recipe.name!r} learns from {other}"
        )
    return recipe
