"""What `marey adapt` is to do: which networks, which videos, how many rounds, and by which means."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from marey.errors import UsageError
from marey.recipes.catalog import load_recipe
from marey.recipes.schema import Adapt, Pseudo, Recipe, clip_recipe
from marey.scores.presets import load_preset
from marey.scores.select import Filters, needs_labels, parse_policy
from marey.scores.vote import Ensemble
from marey.video.light import Light
from marey.video.preprocess import Protocol
from marey.video.transforms import Crops

OWN = "preset"  # the policy that belongs to a preset
NORMS = 50  # batches that batch norms are measured on, where a recipe does not say


class Views(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Test-time augmentation: what of each member's test protocol differs; None: as it says.

    lights  corrections of light; each crop is scored under each, the scores are averaged
    """

    clips: int | None = None
    crops: Crops | None = None
    lights: tuple[Light, ...] | None = None

    def of(self, protocol: Protocol) -> Protocol:
        """The protocol with these changes."""
        fields = {name: getattr(self, name) for name in ("clips", "crops", "lights")}
        return msgspec.structs.replace(protocol, **{k: v for k, v in fields.items() if v is not None})


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole adaptation. Rounds are counted from 1; step 0 is the training on the source alone.

    members  networks by name; their recipes say how they are trained
    experts  networks that join after the last round: trained once, on its labels, from their own start
    source, source_root  labelled videos: list, and the folder that names start from (None: the list's)
    val      labelled videos of the source, for `calibrate` and for select="source"
    target, target_root  videos to adapt to; labels of the list are not read
    truth    list `id,label` of target videos: measured against, and read for nothing else unless `select`
             or a policy says so, which every report then repeats
    test, test_root  videos that are scored and voted on at the end; none of them may be trained on
    rounds   of pseudo-labels; 0: only step 0
    policies  which rows become labels in rounds 1, 2, ...; the last one holds for all later rounds. "preset":
             as the round's preset says
    filters  what rows must be besides
    presets  ensembles that label in rounds 1, 2, ..., the last one later, too; none: the mean of the members
    vote     preset of the final vote; None: the mean of members and experts
    select   which epoch's weights are kept: the "last", the best on `val` ("source"), or the best on `truth`
             ("published", which looks at labels of the target)
    norms    batches of the target that batch norms are measured on; None: as each recipe says, or 50; 0: none
    views    how videos are scored
    start    where training begins in a round: at the "previous" step's weights or at the recipe's "own"
    epochs   of the trainings from round 1 on; None: as the recipes say
    soft     learn from the ensemble's probabilities instead of labels
    ema      share of itself that the moving average of the weights keeps; it is scored. None: as recipes say
    calibrate  members' probabilities are first brought to what they are worth on `val` (temperature)
    sharpen  after each training, norms move to lower the entropy on the target (marey.training.tent)
    seed     of the trainings; each network has another that follows from it
    """

    members: dict[str, Recipe]
    experts: dict[str, Recipe] = {}
    source: str
    source_root: str | None = None
    val: str | None = None
    target: str
    target_root: str | None = None
    truth: str | None = None
    test: str | None = None
    test_root: str | None = None
    rounds: int = 3
    policies: tuple[str, ...] = ("quantile:0.5", "quantile:0.7", "quantile:0.9")
    filters: Filters = Filters()
    presets: tuple[str, ...] = ()
    vote: str | None = None
    select: Literal["last", "source", "published"] = "last"
    norms: int | None = None
    views: Views = Views()
    start: Literal["previous", "own"] = "previous"
    epochs: int | None = None
    soft: bool = False
    ema: float | None = None
    calibrate: bool = False
    sharpen: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        needy = [text for text in self.policies if reads_truth(text)]
        for text, wrong in {
            "needs at least one recipe": not self.members,
            "rounds must not be below 0": self.rounds < 0,
            "epochs must be at least 1": self.epochs is not None and self.epochs < 1,
            "needs a policy": not self.policies,
            'policy "preset" needs a preset': OWN in self.policies and not self.presets,
            "an expert and a member have the same name": bool(self.members.keys() & self.experts.keys()),
            "experts need a round of labels to learn from": bool(self.experts) and not self.rounds,
            "select=source and calibrate need labelled videos of the source, val": (
                (self.select == "source" or self.calibrate) and self.val is None
            ),
            "select=published needs the true classes of target videos, truth": (
                self.select == "published" and self.truth is None
            ),
            f"policy {needy[:1]} needs the true classes of target videos, truth": (
                bool(needy) and self.truth is None
            ),
        }.items():
            if wrong:
                raise UsageError("ADAPT_PLAN", f"adapt: {text}")

    def policy(self, round_: int) -> str:
        """That of a round, from 1."""
        return self.policies[min(round_, len(self.policies)) - 1]

    def preset(self, round_: int) -> str | None:
        """The ensemble of a round, from 1."""
        return self.presets[min(round_, len(self.presets)) - 1] if self.presets else None

    def seed_of(self, name: str) -> int:
        """That of a network's trainings: equal recipes are to become unequal networks."""
        return self.seed + 1000 * [*self.members, *self.experts].index(name)

    def labels_used(self) -> list[str]:
        """What labels of the target have a part in, one sentence each."""
        used = (
            ["the kept epoch was chosen on true labels of the target"] if self.select == "published" else []
        )
        if any(map(reads_truth, self.policies)):
            used.append("thresholds were found with true labels of the target")
        for name in dict.fromkeys((*self.presets, *([self.vote] if self.vote else []))):
            preset = load_preset(name)
            told = [preset.labels_used]
            if isinstance(preset, Ensemble) and OWN in self.policies:
                told.append(preset.selected_on)
            used += [f"{name}: {text}" for text in told if text]
        return used


def reads_truth(policy: str) -> bool:
    """Whether a policy finds its thresholds with true labels."""
    return policy != OWN and needs_labels(parse_policy(policy))


def recipes_of(names: Sequence[str], overrides: Sequence[str] | Mapping[str, Any] = ()) -> dict[str, Recipe]:
    """Recipes by member: each text is RECIPE, called by its own name, or NAME=RECIPE.

    overrides  `key=value` for all, `NAME:key=value` for one. Raises UsageError ADAPT_PLAN for equal names and
               for a name that no member has, and what `load_recipe` raises
    """
    found: dict[str, Recipe] = {}
    texts = [f"{k}={v}" for k, v in overrides.items()] if isinstance(overrides, Mapping) else overrides
    given = []
    for text in names:
        name, equals, recipe = text.partition("=")
        given.append((name, recipe) if equals else ("", text))
    own = {name for name, _ in given}
    for name, recipe in given:
        mine = []
        for text in texts:
            owner, colon, _ = text.partition("=")[0].partition(":")
            if colon and owner not in own:
                raise UsageError("ADAPT_PLAN", f"{text!r}: no member is called {owner!r}; write NAME=RECIPE")
            if not colon or owner == name:
                mine.append(text[len(owner) + 1 :] if colon else text)
        made = clip_recipe(load_recipe(recipe, mine))
        called = name or made.name.partition(".")[2] or Path(recipe).stem
        if called in found:
            raise UsageError("ADAPT_PLAN", f"two networks are called {called!r}; write NAME=RECIPE")
        found[called] = made
    return found


def stage_recipe(
    plan: Plan,
    recipe: Recipe,
    *,
    source: str,
    source_root: str | None,
    target: str,
    target_root: str,
    val: str | None,
    labels: str | None,
    weights: str | None,
) -> Recipe:
    """A member's recipe for one training.

    labels   table of pseudo-labels; None: step 0
    weights  to start from; None: the recipe's own
    """
    replace = msgspec.structs.replace
    training, base = recipe.training, recipe.adapt or Adapt()
    norms = training.precise_bn or NORMS if plan.norms is None else plan.norms
    training = replace(training, precise_bn=norms, ema=training.ema if plan.ema is None else plan.ema)
    pseudo = None
    if labels is not None:
        training = replace(training, epochs=plan.epochs or training.epochs)
        pseudo = replace(
            base.pseudo or Pseudo(), labels=labels, root=target_root, sha256=None,
            soft=plan.soft or (base.pseudo is not None and base.pseudo.soft),
        )  # fmt: skip
    adapt = replace(
        base, target=target if norms else None, root=target_root if norms else None, pseudo=pseudo
    )
    return replace(
        recipe,
        model=replace(recipe.model, weights=weights or recipe.model.weights),
        data=replace(recipe.data, train=source, val=val, test=None, splits=None, root=source_root),
        training=training,
        adapt=adapt if norms or pseudo is not None else None,
    )
