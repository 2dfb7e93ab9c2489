"""What an online run (grpo, ppo) is given beside rows and model: rewards, rounds, and its held-out figure."""

from __future__ import annotations

import json
from collections.abc import Callable
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
from luthier.jobs.session import Session
from luthier.losses.policy import PolicyLoss
from luthier.models.packed import PackedModel
from luthier.rollouts.collect import Rollouts
from luthier.rollouts.rewards import Asked, Rewards
from luthier.stats.intervals import mean_interval
from luthier.store.publish import write_atomic
from luthier.types import OnEval, Sampler

REWARD = "reward"


class Online:
    """The parts of an online run. `close` ends its processes."""

    def __init__(self, session: Session, model: PackedModel, adapted: AdaptedModel, examples: Examples) -> None:
        self.session, self.project, self.prepared = session, session.project, session.prepared
        spec = self.project.spec
        self.device = next(iter(model.named_parameters()))[1].device
        shares = model.shares_prefixes and spec.train.share_prefix != "never"
        plain: LayOut = make_shared_batch if shares else make_batch
        place = lambda batch: to_device(batch, self.device)  # noqa: E731
        self.examples = examples
        self.rewards = Rewards(spec.rollouts, open_reward_model(self.project, session.opened, plain, place))
        self.supply = Rollouts(
            spec.rollouts, spec.loss, examples.train, self._asked("train"), policy=model,
            sampler=sampler_of(model, session.opened.codec, "policy", batch_size=spec.rollouts.batch_size),
            rewards=self.rewards,
            base=AdaptersOff(adapted) if adapted.keeps_base else None,
            lay_out=plain, place=place, shares=shares,
            budget=spec.train.micro_batch_tokens, seed=spec.train.seed,
            folder=session.work / "rollouts", notice=console.warn,
        )  # fmt: skip

    def _asked(self, split: str) -> dict[str, Asked]:
        schema, options = schema_of(self.project), evaluate_spec(self.project).graders
        rows, encoded = read_rows(self.prepared.folder, split), getattr(self.examples, split)
        prompts = {encoded[index].row_id: encoded[index].ids for index in range(len(encoded))}
        return {
            row.id: Asked(row.answer, Task(schema, row.columns, options, row.prompt), prompts[row.id]) for row in rows
        }

    def loss_of(self, loss: Any) -> PolicyLoss:
        """The loss with what the sampling decides."""
        rollouts = self.project.spec.rollouts
        return replace(loss, temperature=rollouts.temperature, longest=rollouts.max_new_tokens)

    def held_out(self) -> OnEval | None:
        """(step, sampler) -> mean reward of answers to dev prompts with its 95% interval, and how long they are."""
        spec = self.project.spec
        rows = read_rows(self.prepared.folder, "dev")[: spec.rollouts.dev_prompts]
        if not rows:
            return None
        asked = self._asked("dev")

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
            low, high = mean_interval(values)
            return {
                REWARD: sum(values) / len(values), f"{REWARD}_low": low, f"{REWARD}_high": high,
                "answer_tokens": sum(len(one.ids) for one in said) / len(said),
                "reward_failed": float(len(got) - len(values)), **self.rewards.means([one.parts for one in got]),
            }  # fmt: skip

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


def reward_line(facts: dict[str, Any]) -> str:
    """Held-out reward before and after, in one line; '' for a run without."""
    before, best = facts["dev_before"], facts["best_step"]
    after = next((record for record in facts["history"] if record["step"] == best), {})
    if REWARD not in before or REWARD not in after:
        return ""
    shown = "{reward:.3f} (95% {reward_low:.3f} to {reward_high:.3f})"
    return f"held-out reward before {shown.format(**before)}, after {shown.format(**after)}"
