"""What an online run (grpo, ppo, gkd) is given beside rows and model: rewards or a teacher, rounds, and its held-out
figure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from luthier.adapters.handle import AdaptedModel
from luthier.config.load import Project
from luthier.data.pack import LayOut, make_batch, make_shared_batch
from luthier.data.stored import read_rows
from luthier.engine.inputs import to_device
from luthier.graders.grader import Task
from luthier.jobs import console
from luthier.jobs.local import sampler_of
from luthier.jobs.objective import AdaptersOff, Examples
from luthier.jobs.prepare import evaluate_spec, schema_of
from luthier.jobs.reward_model import open_reward_model, reward_model_digest
from luthier.jobs.rollout_server import open_server
from luthier.jobs.session import Session
from luthier.losses.loss import Loss
from luthier.losses.policy import PolicyLoss
from luthier.losses.tokens import SecondModel, TokenLoss, distances
from luthier.models.packed import PackedModel
from luthier.models.sampler import LocalSampler
from luthier.rollouts.collect import Rollouts
from luthier.rollouts.draw import LocalSource
from luthier.rollouts.rewards import Asked, Rewards
from luthier.rollouts.round import Answer
from luthier.rollouts.rows import AnswerRows
from luthier.stats.intervals import mean_interval
from luthier.store.publish import write_atomic
from luthier.types import Completion, OnEval, Row, Sampler

REWARD, TEACHER_KL = "reward", "teacher_kl"
"""The held-out figures: of what is rewarded, and of what a teacher judges (nats a token)."""


class Online:
    """The parts of an online run. `close` ends its processes."""

    def __init__(self, session: Session, model: PackedModel, adapted: AdaptedModel, examples: Examples) -> None:
        self.session, self.project, self.prepared = session, session.project, session.prepared
        spec = self.project.spec
        self.model, self.device = model, next(iter(model.named_parameters()))[1].device
        shares = model.shares_prefixes and spec.train.share_prefix != "never"
        plain: LayOut = make_shared_batch if shares else make_batch
        place = lambda batch: to_device(batch, self.device)  # noqa: E731
        self.examples, self.layout = examples, (plain, place)
        self.sizes = {"shares": shares, "budget": spec.train.micro_batch_tokens}
        self.rewards = Rewards(spec.rollouts, open_reward_model(self.project, session.opened, plain, place))
        asked = self._asked("train")
        laid, server = self._laid(asked), spec.rollouts.server
        self.server = None if server is None else open_server(session, server, adapted, laid)
        self.supply = Rollouts(
            spec.rollouts, spec.loss, examples.train, asked, policy=model,
            source=self.server or LocalSource(spec.rollouts, self._own_sampler()),
            rewards=self.rewards,
            base=AdaptersOff(adapted) if adapted.keeps_base else None,
            laid=laid, seed=spec.train.seed,
            folder=session.work / "rollouts", notice=console.warn,
        )  # fmt: skip

    def _own_sampler(self) -> LocalSampler:
        batch_size = self.project.spec.rollouts.batch_size
        return sampler_of(self.model, self.session.opened.codec, "policy", batch_size=batch_size)

    def _laid(self, asked: Mapping[str, Asked]) -> AnswerRows:
        return AnswerRows({name: one.prompt for name, one in asked.items()}, *self.layout, **self.sizes)

    def _asked(self, split: str) -> dict[str, Asked]:
        schema, options = schema_of(self.project), evaluate_spec(self.project).graders
        rows, encoded = read_rows(self.prepared.folder, split), getattr(self.examples, split)
        prompts = {encoded[index].row_id: encoded[index].ids for index in range(len(encoded))}
        return {
            row.id: Asked(
                row.answer, Task(schema, row.columns, options, row.prompt), prompts[row.id], self._reference_ids(row)
            )
            for row in rows
        }

    def _reference_ids(self, row: Row) -> tuple[int, ...]:
        """The row's own answer as it would be learnt from; () where no answer of a row is."""
        if self.project.spec.loss.on_policy in (None, 1.0):
            return ()
        ids, start = self.session.opened.codec.encode_answer(row.prompt, row.answer)
        return tuple(ids[start:])

    def loss_of(self, loss: Loss) -> Loss:
        """The loss with what the sampling decides."""
        if not isinstance(loss, PolicyLoss):
            return loss
        rollouts = self.project.spec.rollouts
        return replace(loss, temperature=rollouts.temperature, longest=rollouts.max_new_tokens)

    def held_out(self, loss: Loss) -> OnEval | None:
        """(step, sampler) -> mean over dev prompts of what their answers are worth, with its 95% interval, and how long
        they are. Worth: their reward; where a teacher judges, how far from it the student is in its own answers.
        """
        rows = read_rows(self.prepared.folder, "dev")[: self.project.spec.rollouts.dev_prompts]
        if not rows:
            return None
        if isinstance(loss, TokenLoss):
            assert loss.second is not None
            return self._apart(rows, loss.second)
        return self._reward(rows)

    def _apart(self, rows: list[Row], teacher: SecondModel) -> OnEval:
        asked, rollouts = self._asked("dev"), self.project.spec.rollouts
        laid = self._laid(asked)

        def measure(step: int, sampler: Sampler) -> dict[str, float]:
            del step
            said = sampler.sample(
                [row.prompt for row in rows], max_new_tokens=rollouts.max_new_tokens, temperature=rollouts.temperature,
                seed=self.project.spec.evaluate.seed,
            )  # fmt: skip
            answers = [
                Answer(row.id, 0, one.ids, one.logps, one.finish, one.text) for row, one in zip(rows, said, strict=True)
            ]
            told = laid.told(answers, lambda batch: distances(self.model, teacher, batch))
            return _mean_of(TEACHER_KL, [sum(one) / len(one) for one in told.values()]) | _length_of(said)

        return measure

    def _reward(self, rows: list[Row]) -> OnEval:
        spec, asked = self.project.spec, self._asked("dev")

        def measure(step: int, sampler: Sampler) -> dict[str, float]:
            del step
            said = sampler.sample(
                [row.prompt for row in rows], max_new_tokens=spec.rollouts.max_new_tokens,
                temperature=spec.evaluate.temperature, seed=spec.evaluate.seed,
            )  # fmt: skip
            got = self.rewards.of(said, [asked[row.id] for row in rows])
            values = [one.value for one in got if one.value is not None]
            if not values:
                return {REWARD: float("nan"), "reward_failed": float(len(got))}
            failed = {"reward_failed": float(len(got) - len(values))}
            means = self.rewards.means([one.parts for one in got])
            return _mean_of(REWARD, values) | _length_of(said) | failed | means

        return measure

    def before(self, measure: OnEval | None, make_sampler: Callable[[], Sampler]) -> dict[str, float]:
        """The held-out figures before the first step, kept beside the run."""
        path = self.session.work / "before.json"
        if measure is None:
            return {}
        if not path.exists():
            write_atomic(path, json.dumps(measure(0, make_sampler())))
        return json.loads(path.read_text(encoding="utf-8"))

    def close(self) -> None:
        """Ends the rewards' processes, and says what went wrong with them."""
        self.rewards.close()
        for error, times in self.rewards.errors.most_common(3):
            console.warn(f"{times} answers were left out, without a reward: {error}")
        if self.server is not None:
            for error, times in self.server.lost.most_common(5):
                console.warn(f"{times} answers of {self.server.server.url} were left out: {error}")


def online_inputs(project: Project) -> dict[str, Any]:
    """What an online run depends on beside the inputs of every run: how it samples, and what its rewards read."""
    spec = project.spec
    if not spec.loss.is_online:
        return {}
    reads = {
        "schema": schema_of(project), "graders": spec.evaluate.graders.model_dump(mode="json"),
        "reward model": reward_model_digest(project),
    }  # fmt: skip
    dev = {"temperature": spec.evaluate.temperature, "seed": spec.evaluate.seed}
    return {"rollouts": spec.rollouts.model_dump(mode="json"), "rewards": reads, "held out": dev}


def held_out_line(facts: dict[str, Any]) -> str:
    """The held-out figure before and after, in one line; '' for a run that is not online."""
    before, best = facts["dev_before"], facts["best_step"]
    after = next((record for record in facts["history"] if record["step"] == best), {})
    for name, words in ((REWARD, "held-out reward"), (TEACHER_KL, "KL from the teacher in its own answers")):
        if name in before and name in after:
            shown = f"{{{name}:.3f}} (95% {{{name}_low:.3f}} to {{{name}_high:.3f}})"
            return f"{words} before {shown.format(**before)}, after {shown.format(**after)}"
    return ""


def _mean_of(name: str, values: Sequence[float]) -> dict[str, float]:
    low, high = mean_interval(values)
    return {name: sum(values) / len(values), f"{name}_low": low, f"{name}_high": high}


def _length_of(said: Sequence[Completion]) -> dict[str, float]:
    return {"answer_tokens": sum(len(one.ids) for one in said) / len(said)}
