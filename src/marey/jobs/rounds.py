"""`marey adapt`: rounds of training, scoring and pseudo-labelling; killed at any moment it goes on.

Each stage has a folder of its own and writes a card when it is done: the SHA-256 of every file that went in
and came out, and the settings. A stage whose card still holds is skipped, one whose inputs changed is done
again, a training that was stopped continues. `state.json` lists the stages.
"""

import csv
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from marey.data.lists import ClipList, read_list
from marey.data.workers import Pool
from marey.errors import DataError, MareyError, UsageError
from marey.files import replacing
from marey.jobs import setup
from marey.jobs.epochs import Trained
from marey.jobs.leaks import leaks
from marey.jobs.provenance import Provenance, is_current, now, read_card, sha256_of, write_card
from marey.jobs.pseudo_label import pseudo_label, refuse_leaks
from marey.jobs.rounds_plan import NORMS, OWN, Plan, reads_truth, stage_recipe
from marey.jobs.runs import plain_json
from marey.jobs.scores import open_scores
from marey.jobs.scoring import score_videos
from marey.jobs.sharpen import remeasure, sharpen
from marey.jobs.train import train
from marey.jobs.vote import vote
from marey.recipes.schema import Recipe
from marey.scores.calibrate import fit_temperature
from marey.scores.labels import read_labels, read_truth, truth_of, write_labels
from marey.scores.presets import load_preset
from marey.training.distributed import launch
from marey.weights.create import open_model

Files = Mapping[str, str | os.PathLike[str]]
CARD, BEGUN, STATE = "stage.manifest.json", "begun.json", "state.json"


class Adapted(NamedTuple):
    """What an adaptation leaves: its folder, the last checkpoints by network, and the report's numbers."""

    folder: Path
    checkpoints: dict[str, Path]
    report: dict[str, Any]


def adapt(
    plan: Plan,
    out: str | os.PathLike[str] = "runs/adapt",
    *,
    accelerator: str = "auto",
    say: Callable[[str], None] = lambda text: None,
) -> Adapted:
    """Run an adaptation in `out`, or what is still to be done of it.

    say  told of every stage
    Raises DataError TEST_LEAK where test videos are among those that are trained on, UsageError ADAPT_PLAN,
    and what training, scoring and labelling raise; Interrupted after SIGINT, with everything saved.
    """
    return Rounds(plan, Path(out), accelerator, say).all()


class Rounds:
    """One adaptation under way."""

    def __init__(self, plan: Plan, folder: Path, accelerator: str, say: Callable[[str], None]) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UsageError(
                "ADAPT_PLAN", "adapt runs in one process; its trainings alone run under torchrun"
            )
        self.plan, self.folder, self.accelerator, self.say = plan, folder, accelerator, say
        folder.mkdir(parents=True, exist_ok=True)
        self.source = read_list(plan.source, root=plan.source_root)
        target = read_list(plan.target, root=plan.target_root)
        self.root = os.path.abspath(target.root)  # noqa: PTH100 - a link stays a link
        self._refuse_leaks(target)
        self.target = self._bare(target)
        self.truth = self._truth(target)
        self.done: dict[str, dict[str, Any]] = {}
        self.temperatures: dict[str, float] = {}
        with replacing(folder / "plan.json") as part:
            part.write_text(plain_json(plan) + "\n", encoding="utf-8")

    # What goes in ---------------------------------------------------------------------------------

    def _bare(self, target: ClipList) -> Path:
        """The target's list without labels: all that any stage is given of it."""
        entries = [target[i] for i in range(len(target))]
        if any(entry.start or entry.total or entry.seconds for entry in entries):
            raise DataError(
                "LIST_FORMAT", f"{target.name}: lists of parts of videos cannot be adapted to; cut them first"
            )
        path = self.folder / "target.csv"
        with replacing(path) as part, part.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["path", "label"])
            writer.writerows([target.written(i), -1] for i in range(len(target)))
        return path

    def _truth(self, target: ClipList) -> Path | None:
        """The true classes, by the names that the target's list has."""
        if self.plan.truth is None:
            return None
        known = read_truth(self.plan.truth)
        if not known.keys() & {target.written(i) for i in range(len(target))}:
            raise UsageError(
                "TRUTH_MISSING",
                f"{self.plan.truth} names no video as {self.plan.target} does; the same names",
            )
        return Path(self.plan.truth)

    def _refuse_leaks(self, target: ClipList) -> None:
        plan = self.plan
        if plan.test is None:
            return
        test = read_list(plan.test, root=plan.test_root)
        names = [test.written(i) for i in range(len(test))]
        listed = [target.written(i) for i in range(len(target))]
        refuse_leaks(leaks(listed, names, roots=(target.root, test.root)), plan.test)
        learnt = [self.source.written(i) for i in range(len(self.source))]
        if found := leaks(learnt, names, roots=(self.source.root, test.root)):
            raise DataError(
                "TEST_LEAK",
                f"{len(found)} videos of the source {plan.source!r} are also in the test list {plan.test!r}, "
                f"{found[0].train} ({found[0].why}) for one; leave them out of one of the two",
            )

    # Stages ---------------------------------------------------------------------------------------

    def stage(
        self,
        name: str,
        job: str,
        settings: Mapping[str, Any],
        inputs: Files,
        work: Callable[[Path, bool], Files],
    ) -> Provenance:
        """Do a stage, or find it done.

        work  is given the stage's folder, and whether an attempt with the same inputs stands there; it
              returns the files that it wrote
        """
        folder = self.folder / name
        card = folder / CARD
        if is_current(card, job, settings, inputs):
            self.say(f"{name}: done before")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            card.unlink(missing_ok=True)
            key = _digest(settings, inputs)
            again = _text(folder / BEGUN) == key
            with replacing(folder / BEGUN) as part:
                part.write_text(key, encoding="utf-8")
            self._write_state({**self.done, name: {"job": job, "status": "begun", "started": now()}})
            self.say(f"{name}: {'continues' if again else 'begins'}")
            started = now()
            outputs = work(folder, again)
            write_card(card, job, settings, inputs, outputs, started=started)
        made = read_card(card)
        assert made is not None
        self.done[name] = {"job": job, "status": "done", **msgspec.to_builtins(made)}
        self._write_state(self.done)
        return made

    def _write_state(self, stages: Mapping[str, Any]) -> None:
        """What ran, with which weights, giving which files; paths are relative to each stage's folder."""
        keys = ("job", "status", "started", "ended", "inputs", "outputs")
        short = {name: {k: row[k] for k in keys if k in row} for name, row in stages.items()}
        with replacing(self.folder / STATE) as part:
            part.write_text(plain_json({"stages": short}) + "\n", encoding="utf-8")

    def _output(self, name: str, made: Provenance, what: str) -> Path:
        return self.folder / name / made.outputs[what].path

    def train(self, step: int, name: str, recipe: Recipe, labels: Path | None, weights: Path | None) -> Path:
        """Train a network in a step; its checkpoint."""
        plan, stage = self.plan, f"step{step}/train-{name}"
        val = None
        if plan.select == "source":
            val = os.path.abspath(plan.val or "")  # noqa: PTH100
        elif plan.select == "published":
            val = str(self._selection())
        made = stage_recipe(
            plan,
            recipe,
            source=os.path.abspath(plan.source),  # noqa: PTH100
            source_root=setup.full_path(plan.source_root),
            target=str(self.target.resolve()),
            target_root=self.root,
            val=val,
            labels=None if labels is None else str(labels.resolve()),
            weights=None if weights is None else str(weights.resolve()),
        )
        settings = {
            "recipe": _settings(made, weights),
            "seed": plan.seed_of(name),
            "select": plan.select,
            "source": self.source.fingerprint(),
        }
        inputs: dict[str, str | Path] = {"target": self.target}
        inputs |= {k: v for k, v in {"labels": labels, "weights": weights}.items() if v is not None}
        inputs |= {"val": val} if val is not None and Path(val).is_file() else {}

        def work(folder: Path, again: bool) -> Files:
            found = self._trained(made, folder, again, plan.seed_of(name))
            outputs: dict[str, Path] = {"checkpoint": found.checkpoint}
            if plan.sharpen:
                outputs["trained"] = found.checkpoint
                outputs["checkpoint"] = folder / "sharpened.safetensors"
                self._sharpen(found.checkpoint, outputs["checkpoint"], made)
            return outputs

        if plan.sharpen:
            settings["sharpen"] = True
        return self._output(stage, self.stage(stage, "train", settings, inputs, work), "checkpoint")

    def _trained(self, recipe: Recipe, folder: Path, again: bool, seed: int) -> Trained:
        how: dict[str, Any] = {"validate": recipe.data.val is not None, "seed": seed}
        try:
            return train(recipe, out=folder, resume=again, accelerator=self.accelerator, **how)
        except UsageError as error:
            if error.code != "RESUME_MISMATCH" or not again:
                raise
            # the folder was moved: its files are the same, but a run's recipe names them by their places
            return train(recipe, out=folder, accelerator=self.accelerator, **how)

    def _sharpen(self, checkpoint: Path, out: Path, recipe: Recipe) -> None:
        fabric = launch(accelerator=self.accelerator)
        clips = read_list(self.target, root=self.root)
        with Pool(setup.decoding_workers(recipe.data), recipe.data.seconds) as pool:
            steps = sharpen(
                checkpoint, clips, out, fabric=fabric, pool=pool, seed=self.plan.seed,
                norms=recipe.training.precise_bn or 1,
            )  # fmt: skip
        self.say(f"  entropy {steps[0].entropy:.3f} to {steps[-1].entropy:.3f}")

    def _selection(self) -> Path:
        """The target's labelled videos as a list with full paths, for the published choice of an epoch."""
        assert self.truth is not None
        path = self.folder / "selection.csv"
        names = {row[0] for row in csv.reader(self.target.open(encoding="utf-8"))}
        with replacing(path) as part, part.open("w", encoding="utf-8", newline="") as file:
            rows = [
                (os.path.join(self.root, k), v)  # noqa: PTH118
                for k, v in read_truth(self.truth).items()
                if k in names
            ]
            csv.writer(file, lineterminator="\n").writerows([("path", "label"), *rows])
        return path.resolve()

    def score(self, step: str, name: str, checkpoint: Path, recipe: Recipe, what: str = "target") -> Path:
        """Score videos by a checkpoint; the table."""
        plan, stage = self.plan, f"{step}/score-{what}-{name}"
        listed, root = {
            "target": (self.target, self.root),
            "test": (plan.test, plan.test_root),
            "val": (plan.val, plan.source_root),
        }[what]
        assert listed is not None
        model: Any = open_model(checkpoint)
        protocol = plan.views.of(model.preprocess.test)
        settings = {"protocol": msgspec.to_builtins(protocol)}
        settings["videos"] = {"list": read_list(listed, root=root).fingerprint()}

        def work(folder: Path, _: bool) -> Files:
            found = score_videos(
                checkpoint,
                listed,
                out=folder / "scores.parquet",
                protocol=protocol,
                root=root,
                accelerator=self.accelerator,
                workers=setup.decoding_workers(recipe.data),
                max_bad=recipe.data.max_bad_test,
            )
            if found.failed:
                self.say(f"  {len(found.failed)} videos could not be read")
            return {"scores": folder / "scores.parquet"}

        inputs: dict[str, str | Path] = {"checkpoint": checkpoint}
        inputs |= {"list": listed} if Path(listed).is_file() else {}
        return self._output(stage, self.stage(stage, "score", settings, inputs, work), "scores")

    def label(self, round_: int, scores: Mapping[str, Path], previous: Path | None) -> Path:
        """Pseudo-labels of a round; the table."""
        plan, stage = self.plan, f"step{round_}/labels"
        policy = plan.policy(round_)
        preset, reads = plan.preset(round_), reads_truth(policy)
        heat = {name: self.temperatures[name] for name in scores if name in self.temperatures}
        settings = {
            "policy": policy,
            "filters": plan.filters,
            "preset": _preset(preset),
            "temperatures": heat,
        }
        inputs: dict[str, str | Path] = {f"scores {name}": path for name, path in scores.items()}
        inputs |= {"previous": previous} if previous is not None else {}
        inputs |= {"truth": self.truth} if self.truth is not None and reads else {}

        def work(folder: Path, _: bool) -> Files:
            table = folder / "labels.parquet"
            found = pseudo_label(
                [f"{name}={path}" for name, path in scores.items()],
                out=table,
                preset=preset,
                policy=None if policy == OWN else policy,
                filters=plan.filters,
                previous=previous,
                truth=self.truth if reads else None,
                test=plan.test if plan.test is not None and Path(plan.test).is_file() else None,
                roots=None if plan.test is None else (self.root, plan.test_root or Path(plan.test).parent),
                round=round_,
                train=folder / "list.csv",
                temperatures=heat or None,
            )
            write_labels(folder / "labels.csv", found.labels)
            self.say(f"  {int(found.labels.kept.sum())} of {len(found.labels)} videos kept")
            return {"labels": table, "csv": folder / "labels.csv", "list": folder / "list.csv"}

        return self._output(stage, self.stage(stage, "pseudo-label", settings, inputs, work), "labels")

    def vote(self, what: str, scores: Mapping[str, Path]) -> Path:
        """The ensemble's scores."""
        stage = f"final/vote-{what}"
        heat = {name: self.temperatures[name] for name in scores if name in self.temperatures}
        settings = {"preset": _preset(self.plan.vote), "temperatures": heat}

        def work(folder: Path, _: bool) -> Files:
            sources = [f"{name}={path}" for name, path in scores.items()]
            outputs = {"scores": folder / "vote.parquet", "csv": folder / "vote.csv"}
            for path in outputs.values():
                try:
                    vote(sources, preset=self.plan.vote, out=path, temperatures=heat or None)
                except MareyError as error:
                    if error.code != "VOTE_LABELS":  # corrected labels fit a CSV only
                        raise
            return {k: path for k, path in outputs.items() if path.exists()}

        inputs = {f"scores {name}": path for name, path in scores.items()}
        made = self.stage(stage, "vote", settings, inputs, work)
        return self._output(stage, made, "scores" if "scores" in made.outputs else "csv")

    def temperature(self, step: int, name: str, checkpoint: Path, recipe: Recipe) -> None:
        """Find how sure a network should be, on labelled videos of the source, by the source's statistics.

        With those of the target it would not know them, and would be taken for a network that is never sure.
        """
        if self._norms(recipe):
            checkpoint = self._at_home(step, name, checkpoint, recipe)
        table = open_scores([f"{name}={self.score(f'step{step}', name, checkpoint, recipe, 'val')}"])
        scores = table.tables[name]
        known = scores.labels >= 0
        assert scores.probabilities is not None
        if (scores.probabilities[known].argmax(axis=1) == scores.labels[known]).all():
            self.temperatures[name] = 1.0  # the surer, the better: no temperature would be low enough
        else:
            self.temperatures[name] = fit_temperature(scores.probabilities[known], scores.labels[known])
        self.say(f"  {name}: temperature {self.temperatures[name]:.2f}")

    def _norms(self, recipe: Recipe) -> int:
        """Batches of the target that a network's batch norms are measured on."""
        return (recipe.training.precise_bn or NORMS) if self.plan.norms is None else self.plan.norms

    def _at_home(self, step: int, name: str, checkpoint: Path, recipe: Recipe) -> Path:
        """The network with its batch norms measured on the source."""
        stage, norms = f"step{step}/source-norms-{name}", self._norms(recipe)
        settings = {"norms": norms, "seed": self.plan.seed, "source": self.source.fingerprint()}

        def work(folder: Path, _: bool) -> Files:
            made = folder / "source-norms.safetensors"
            fabric = launch(accelerator=self.accelerator)
            with Pool(setup.decoding_workers(recipe.data), recipe.data.seconds) as pool:
                remeasure(
                    checkpoint, self.source, made, fabric=fabric, pool=pool, norms=norms, seed=self.plan.seed
                )
            return {"checkpoint": made}

        done = self.stage(stage, "norms", settings, {"checkpoint": checkpoint}, work)
        return self._output(stage, done, "checkpoint")

    # Everything -----------------------------------------------------------------------------------

    def all(self) -> Adapted:
        """All stages in their order, and the report."""
        plan = self.plan
        weights: dict[str, Path] = {}
        scores: dict[str, Path] = {}
        history: list[dict[str, Path]] = []
        tables: list[Path] = []
        for step in range(plan.rounds + 1):
            if step:
                tables.append(self.label(step, scores, tables[-1] if tables else None))
            labels = tables[-1] if tables else None
            for name, recipe in plan.members.items():
                start = weights.get(name) if plan.start == "previous" else None
                weights[name] = self.train(step, name, recipe, labels, start)
            scores = {
                name: self.score(f"step{step}", name, weights[name], recipe)
                for name, recipe in plan.members.items()
            }
            if plan.calibrate:
                for name, recipe in plan.members.items():
                    self.temperature(step, name, weights[name], recipe)
            history.append(dict(scores))
        for name, recipe in plan.experts.items():
            weights[name] = self.train(plan.rounds, name, recipe, tables[-1], None)
            scores[name] = self.score(f"step{plan.rounds}", name, weights[name], recipe)
            if plan.calibrate:
                self.temperature(plan.rounds, name, weights[name], recipe)
        voted = {"target": self.vote("target", scores)}
        finals = {"target": dict(scores)}
        if plan.test is not None:
            recipes = {**plan.members, **plan.experts}
            finals["test"] = {
                name: self.score("final", name, weights[name], recipe, "test")
                for name, recipe in recipes.items()
            }
            voted["test"] = self.vote("test", finals["test"])
        report = self._numbers(history, tables, finals)
        with replacing(self.folder / "report.json") as part:
            part.write_text(plain_json(report) + "\n", encoding="utf-8")
        return Adapted(self.folder, weights, report)

    def _numbers(
        self, history: list[dict[str, Path]], tables: list[Path], finals: Mapping[str, Mapping[str, Path]]
    ) -> dict[str, Any]:
        """Plain JSON values: what each step's networks and ensembles are worth, and what labels it gave."""
        from marey.jobs.pseudo_label import describe
        from marey.jobs.vote import vote as voted

        def worth(scores: Mapping[str, Path], truth: Path | None, preset: str | None) -> dict[str, Any]:
            found = voted([f"{n}={p}" for n, p in scores.items()], preset=preset, truth=truth)
            rows = {name: row["measured"] for name, row in found.report["members"].items()}
            best = {"members": rows, "ensemble": found.report["measured"]}
            return best | {"agreement": found.report["agreement"], "labels": found.report["labels"]}

        truth = {} if self.truth is None else read_truth(self.truth)
        steps = [
            {"step": k, **worth(scores, self.truth, self.plan.preset(min(k + 1, self.plan.rounds)))}
            for k, scores in enumerate(history)
        ]
        before = None
        for number, path in enumerate(tables, 1):
            table = read_labels(path)
            real = truth_of(table.ids, truth) if truth else None
            steps[number]["pseudo_labels"] = describe(table, real, before)
            before = table
        final = {"target": worth(finals["target"], self.truth, self.plan.vote)}
        if "test" in finals:  # its list may have labels; they are measured against here, and nowhere else
            final["test"] = worth(finals["test"], None, self.plan.vote)
        return {
            "members": list(self.plan.members),
            "experts": list(self.plan.experts),
            "classes": list(read_labels(tables[-1]).classes or ()) if tables else [],
            "rounds": self.plan.rounds,
            "root": self.root,
            "labels_used": self.plan.labels_used(),
            "steps": steps,
            "final": final,
        }


def _settings(recipe: Recipe, weights: Path | None) -> dict[str, Any]:
    """A recipe without the places of files, which are known by their content."""
    tree: dict[str, Any] = msgspec.to_builtins(recipe)
    for part, keys in {
        "data": ("train", "val", "root", "workers", "seconds"),
        "adapt": ("target", "root"),
        "model": ("weights",) if weights is not None else (),
    }.items():
        for key in keys if tree[part] is not None else ():
            tree[part].pop(key)
    if tree["adapt"] is not None and tree["adapt"]["pseudo"] is not None:
        for key in ("labels", "root", "sha256"):
            tree["adapt"]["pseudo"].pop(key)
    return tree


def _preset(name: str | None) -> Any:
    """What a preset says, which is more than its name where it is a file."""
    return None if name is None else msgspec.to_builtins(load_preset(name))


def _digest(settings: Mapping[str, Any], inputs: Files) -> str:
    """What tells two attempts at a stage apart."""
    files = {name: sha256_of(path) for name, path in inputs.items()}
    return msgspec.json.encode([msgspec.to_builtins(dict(settings)), files], order="sorted").decode()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def read_plan(folder: str | os.PathLike[str]) -> Plan:
    """The plan that an adaptation's folder holds. Raises UsageError ADAPT_PLAN."""
    path = Path(folder) / "plan.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Plan)
    except (OSError, msgspec.DecodeError, msgspec.ValidationError) as error:
        raise UsageError("ADAPT_PLAN", f"{str(path)!r} is no plan of an adaptation: {error}") from None


def status(folder: str | os.PathLike[str]) -> dict[str, str]:
    """Stages of an adaptation, and whether their files are as they were written."""
    read_plan(folder)
    try:
        stages = msgspec.json.decode((Path(folder) / STATE).read_bytes())["stages"]
    except (OSError, msgspec.DecodeError, KeyError):
        return {}
    found = {}
    for name, row in stages.items():
        whole = all(
            (path := Path(folder) / name / file["path"]).is_file() and sha256_of(path) == file["sha256"]
            for file in row.get("outputs", {}).values()
        )
        found[name] = row["status"] if whole else "changed"
    return found
