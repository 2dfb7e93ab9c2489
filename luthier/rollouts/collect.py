"""Rounds of an online run: prompts are answered by the model as it stands, answers judged, and dealt to steps.

A round is sampled before the first of its steps and kept (`round.py`) until the run ends; a run that goes on reads it
again. What is sampled depends on the weights, the seed and the round alone. The answers are learnt from under the
log-probabilities that the sampler itself drew them with. grpo and ppo reward them; for gkd the teacher judges them in
the loss, and some prompts may keep the row's own answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from luthier.config.loss import LossSpec
from luthier.config.rollouts import RolloutsSpec
from luthier.errors import ArtifactError, TrainError
from luthier.losses.head import policy_logps
from luthier.losses.policy import ADVANTAGE, OLD, REF
from luthier.losses.ppo import RETURN, VALUE, token_values
from luthier.losses.tokens import SecondModel
from luthier.rollouts.advantages import gae, group_advantages, is_constant, token_rewards, whitened
from luthier.rollouts.draw import Source
from luthier.rollouts.rewards import Asked, Rewarded, Rewards
from luthier.rollouts.round import GIVEN, LOST, Answer, read_round, write_round
from luthier.rollouts.rows import AnswerRows
from luthier.types import Batch, Completion, EncodedRow, RowSet, StepRows

CONSTANT_ROUNDS = 3  # rounds of one and the same reward after which a run is stopped


class Planned(Protocol):
    """A step's place in the run, as the engine plans it: its micro-batch is the round's prompts."""

    @property
    def epoch(self) -> int: ...

    @property
    def index(self) -> int: ...

    @property
    def micro_batches(self) -> Sequence[Sequence[int]]: ...


def plan_rounds(spec: RolloutsSpec) -> Callable[[RowSet, int, int, int], list[list[int]]]:
    """(prompts, budget, seed, epoch) -> for every step the prompts of its round, in an order of the seed only."""

    def plan(rows: RowSet, budget_tokens: int, seed: int, epoch: int) -> list[list[int]]:
        del budget_tokens
        order = np.random.default_rng([seed, epoch]).permutation(len(rows)).tolist()
        rounds = [order[start : start + spec.prompts] for start in range(0, len(order), spec.prompts)]
        return [prompts for prompts in rounds for _ in range(spec.steps_of_round)]

    return plan


class Rollouts:
    """What an online run learns from. Implements the engine's Supply, and lays its rows out with their columns.

    prompts: the training prompts; asked: what their answers are held against, by row id. policy: the model in training;
    base: the same with its adapters off, None where it cannot be had. source: where answers come from. laid: answers to
    these prompts as rows. folder: of the rounds.
    """

    def __init__(
        self,
        spec: RolloutsSpec,
        loss: LossSpec,
        prompts: RowSet,
        asked: Mapping[str, Asked],
        *,
        policy: Any,
        source: Source,
        rewards: Rewards,
        base: SecondModel | None,
        laid: AnswerRows,
        seed: int,
        folder: Path,
        notice: Callable[[str], None],
    ) -> None:
        self.spec, self.loss, self.prompts, self.asked = spec, loss, prompts, asked
        self.policy, self.source, self.rewards, self.base = policy, source, rewards, base
        self.laid, self.seed, self.folder, self.notice = laid, seed, folder, notice
        self.held: tuple[Path, list[Answer], dict[str, float]] | None = None
        self.tables: dict[str, dict[str, tuple[float, ...]]] = {}

    def rows_of(self, planned: Planned, between: Callable[[], None]) -> StepRows:
        """The answers that a step learns from. Raises what `between` raises, TrainError for rewards that teach nothing,
        ArtifactError when the round of a step in its middle is lost.
        """
        number, inner = divmod(planned.index, self.spec.steps_of_round)
        path = self._path(planned.epoch, number)
        if self.held is None or self.held[0] != path:
            self.held = (path, *self._round(path, planned, number, inner, between))
        _, answers, figures = self.held
        chosen = self._dealt(answers, [self.seed, planned.epoch, number], inner)
        is_idle = self.loss.needs_rewards and not self.loss.kl_to_base
        is_idle = is_idle and not any(any(answer.advantages) for answer in chosen)
        return self._made([] if is_idle else chosen, figures if inner == 0 else {})

    def heaviest(self) -> StepRows:
        """A micro-batch of the longest prompt and answers as long as they may be."""
        prompt = max((self.prompts[index] for index in range(len(self.prompts))), key=lambda row: len(row.ids))
        length, answers = self.spec.max_new_tokens, []
        filler = (prompt.ids * (length // len(prompt.ids) + 1))[:length]
        while not answers or self.laid.cost(answers) <= self.laid.budget:
            name = f"{prompt.row_id}/rehearsed-{len(answers)}"
            none = (0.0,) * length
            one = Answer(
                name, 0, filler, none, "length", "",
                ref_logps=none, advantages=(1.0,) * length, values=none, returns=none,
            )  # fmt: skip
            group = [replace(one, number=i) for i in range(self.spec.answers)]
            self.laid.prompts[name] = prompt.ids
            if answers and self.laid.cost([*answers, *group]) > self.laid.budget:
                break
            answers += group
        made = self._made(answers, {})
        return replace(made, micro_batches=[list(range(len(made.rows)))])

    def lay_out(self, rows: Sequence[EncodedRow]) -> Batch:
        """The packed batch of answers, with what was noted of every token. (A row that was cut at its front keeps the
        numbers of its end.)
        """
        batch = self.laid.lay_out(rows)
        counts = np.bincount(batch.sequences_K, minlength=len(rows)).tolist()
        columns = {}
        for name, table in self.tables.items():
            parts = [table[row][len(table[row]) - count :] for row, count in zip(batch.row_ids, counts, strict=True)]
            columns[name] = np.concatenate([np.asarray(part, dtype=np.float32) for part in parts])
        return replace(batch, columns={**batch.columns, **columns})

    def _path(self, epoch: int, number: int) -> Path:
        return self.folder / f"epoch-{epoch:03d}-round-{number:05d}.jsonl"

    def _round(
        self, path: Path, planned: Planned, number: int, inner: int, between: Callable[[], None]
    ) -> tuple[list[Answer], dict[str, float]]:
        kept = read_round(path)
        if kept is None and inner:
            raise ArtifactError(
                f"{path}: the answers of this round are gone, and the model has moved since it gave them",
                hint="remove the run's .work folder and start it again",
            )
        if kept is None:
            kept = self._sampled(planned, number, between)
            write_round(path, *kept)
        self._refuse_constant(planned.epoch, number)
        return kept

    def _sampled(
        self, planned: Planned, number: int, between: Callable[[], None]
    ) -> tuple[list[Answer], dict[str, float]]:
        wanted, given = self._split(planned.micro_batches[0], [self.seed, planned.epoch, number])
        groups, everything = [], []
        shuffled = np.random.default_rng([self.seed, planned.epoch, number]).permutation(len(self.prompts)).tolist()
        others = iter([index for index in shuffled if index not in wanted])
        for attempt in range(self.spec.resample):
            chosen = wanted if not attempt else list(islice(others, self.spec.prompts))
            seed = ((self.seed * 1000 + planned.epoch) * 1_000_000 + number) * 16 + attempt
            found = self._groups(chosen, seed, between) if chosen else []
            everything += [answer for group in found for answer in group]
            groups += found if self.spec.resample == 1 else [group for group in found if _varies(group)]
            if self.spec.resample == 1 or len(groups) >= len(wanted) or not chosen:
                break
        kept = [answer for group in groups[: len(wanted)] for answer in group if not answer.error]
        learnt = [replace(a, learnt=a.finish == "stop" or not self.spec.drop_overlong) for a in kept]
        return [*self._judged(learnt), *given], self._figures(everything) | ({"given": len(given)} if given else {})

    def _split(self, prompts: Sequence[int], seed: list[int]) -> tuple[list[int], list[Answer]]:
        """The prompts that the model answers itself, and the rows' own answers to the others (loss.on_policy)."""
        share = self.loss.on_policy
        if share is None or share == 1.0:
            return list(prompts), []
        own = np.random.default_rng([*seed, 1]).random(len(prompts)) < share
        rows = [self.prompts[index].row_id for index, is_own in zip(prompts, own, strict=True) if not is_own]
        given = []
        for row in rows:
            ids = self.asked[row].reference_ids[: self.spec.max_new_tokens]
            given.append(Answer(row, 0, ids, (), GIVEN, self.asked[row].reference))
        return [index for index, is_own in zip(prompts, own, strict=True) if is_own], given

    def _groups(self, chosen: Sequence[int], seed: int, between: Callable[[], None]) -> list[list[Answer]]:
        """The answers to some prompts, one list a prompt, rewarded where the objective asks for it."""
        answers = self.source.draw([self.prompts[index] for index in chosen], seed, between)
        if self.loss.needs_rewards:
            answers = self._rewarded(answers, between)
        return list(_grouped(answers).values())

    def _rewarded(self, answers: list[Answer], between: Callable[[], None]) -> list[Answer]:
        came = [answer for answer in answers if not answer.error]
        said = [Completion(a.text, a.ids, "stop" if a.finish == "stop" else "length") for a in came]
        got = iter(self.rewards.of(said, [self.asked[answer.row] for answer in came], between))
        answers = [answer if answer.error else _with(answer, next(got)) for answer in answers]
        if answers and all(answer.reward is None for answer in answers):
            error, times = Counter(answer.error for answer in answers).most_common(1)[0]
            raise TrainError(
                f"no answer of a round got a reward; {times} of {len(answers)} times: {error}",
                hint="mend the rewards (rollouts.rewards), or what they read",
            )
        return answers

    def _judged(self, answers: list[Answer]) -> list[Answer]:
        """With what the loss reads of each token."""
        if not self.loss.needs_rewards:
            return answers
        judge = self._credited if self.loss.has_value_head else self._compared
        return judge(self._with_base(answers))

    def _compared(self, answers: list[Answer]) -> list[Answer]:
        """With the advantage of each answer over the others to its prompt, the same for all of its tokens."""
        compared = []
        for group in _grouped(answers).values():
            rewards = [answer.reward for answer in group if answer.reward is not None]
            advantages = group_advantages(rewards, scaled=self.loss.variant != "dr_grpo")
            compared += [replace(a, advantages=(x,) * len(a.ids)) for a, x in zip(group, advantages, strict=True)]
        return compared

    def _credited(self, answers: list[Answer]) -> list[Answer]:
        """With the advantage of each token over what the value head expected, whitened over the round."""
        loss = self.loss
        assert loss.kl_to_base is not None and loss.gamma is not None and loss.gae_lambda is not None
        told = self.laid.told(answers, lambda batch: token_values(self.policy, self.policy.hidden(batch)))
        found = []
        for answer in answers:
            assert answer.reward is not None
            earned_T = token_rewards(answer.reward, answer.logps, answer.ref_logps, loss.kl_to_base)
            found.append(gae(earned_T, told[answer.name], loss.gamma, loss.gae_lambda))
        white = whitened([advantages_T for advantages_T, _ in found]) if found else []
        return [
            replace(answer, advantages=tuple(w.tolist()), values=told[answer.name], returns=tuple(returns_T.tolist()))
            for answer, w, (_, returns_T) in zip(answers, white, found, strict=True)
        ]

    def _with_base(self, answers: list[Answer]) -> list[Answer]:
        """With each token's log-probability under the base."""
        base = self.base
        if base is None:
            return answers

        def logps(batch: Batch) -> torch.Tensor:
            return policy_logps(base, base.hidden(batch), batch.targets_K, self.spec.temperature)[0]

        found = self.laid.told(answers, logps)
        return [replace(answer, ref_logps=found[answer.name]) for answer in answers]

    def _figures(self, answers: list[Answer]) -> dict[str, float]:
        """Of all answers that were drawn, learnt from or not."""
        if not answers:
            return {}
        came = [answer for answer in answers if answer.finish != LOST]
        figures = {
            "answer_tokens": float(np.mean([len(answer.ids) for answer in came])),
            "cut_off": float(np.mean([answer.finish == "length" for answer in came])),
            "answers": float(len(answers)),
            **self.source.figures(answers),
        }
        if not self.loss.needs_rewards:
            return figures
        rewards = [answer.reward for answer in answers if answer.reward is not None]
        alike = [not _varies(group) for group in _grouped(answers).values()]
        return {
            "reward": float(np.mean(rewards)),
            "reward_std": float(np.std(rewards)),
            "alike_groups": float(np.mean(alike)),
            "reward_failed": float(sum(answer.reward is None for answer in came)),
            **figures,
            **self.rewards.means([answer.parts for answer in answers]),
        }

    def _refuse_constant(self, epoch: int, number: int) -> None:
        """Says, and after some rounds refuses, that every answer of the run gets the same reward."""
        if epoch or number >= CONSTANT_ROUNDS or not self.loss.needs_rewards:
            return
        rounds = [kept[1] for kept in (read_round(self._path(0, n)) for n in range(number + 1)) if kept]
        if any(told["reward_std"] for told in rounds) or len({told["reward"] for told in rounds}) > 1:
            return
        num_answers = sum(told["answers"] - told["reward_failed"] - told.get("server_lost", 0) for told in rounds)
        reward = rounds[0]["reward"]
        words = f"each of the first {num_answers:.0f} answers got the reward {reward:g}: there is nothing to compare"
        hint = "rewards that a start reaches in 20% to 80% of its answers teach best: fine-tune first, or ask for less"
        if number == CONSTANT_ROUNDS - 1:
            raise TrainError(words, hint=hint)
        self.notice(f"{words} ({hint})")

    def _dealt(self, answers: list[Answer], seed: list[int], inner: int) -> list[Answer]:
        """Those that the `inner`-th step of a round learns from; the answers to a prompt stay together."""
        inner_epoch, place = divmod(inner, self.spec.inner_batches)
        names = list(dict.fromkeys(answer.row for answer in answers))
        if self.spec.inner_batches > 1:
            order = np.random.default_rng([*seed, inner_epoch]).permutation(len(names))
            names = [names[index] for index in order]
        mine = set(names[place :: self.spec.inner_batches])
        return [answer for answer in answers if answer.row in mine and answer.learnt]

    def _made(self, answers: list[Answer], figures: Mapping[str, float]) -> StepRows:
        self.tables = self._columns(answers)
        rows = self.laid.rows(answers)
        return StepRows(rows, self.laid.micro_batches(answers), sum(row.num_tokens for row in rows), figures)

    def _columns(self, answers: list[Answer]) -> dict[str, dict[str, tuple[float, ...]]]:
        if not self.loss.needs_rewards:
            return {}
        tables = {
            OLD: {answer.name: answer.logps for answer in answers},
            ADVANTAGE: {answer.name: answer.advantages for answer in answers},
        }
        if self.loss.has_value_head:
            tables[VALUE] = {answer.name: answer.values for answer in answers}
            tables[RETURN] = {answer.name: answer.returns for answer in answers}
        if self.base is not None:
            tables[REF] = {answer.name: answer.ref_logps for answer in answers}
        return tables


def _grouped(answers: Iterable[Answer]) -> dict[str, list[Answer]]:
    """The answers to each prompt."""
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(answer.row, []).append(answer)
    return groups


def _with(answer: Answer, got: Rewarded) -> Answer:
    return replace(answer, reward=got.value, parts=got.parts, error=got.error)


def _varies(group: Sequence[Answer]) -> bool:
    """Whether the answers to a prompt got different rewards."""
    return not is_constant([answer.reward for answer in group if answer.reward is not None])
