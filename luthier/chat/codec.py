"""The one door between messages and token ids: prompts as serving renders them, rows with their mask, answers back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.bases.tokenizer import Tokenizer
from luthier.chat.conversation import Renderer, checked
from luthier.chat.families.plain import PLAIN
from luthier.chat.families.registry import family_of
from luthier.chat.mask import mask_conversation
from luthier.chat.template import ChatTemplate
from luthier.errors import TemplateError
from luthier.types import EncodedRow, Message, Row


class ChatCodec:
    """Encodes for one tokenizer and its chat template (plain lines when it has none).

    template_kwargs: settings the template reads (enable_thinking=False, ...): the same ones that serving will use.
    family: name of the template family, for people. stop_ids: what ends an answer, here and in every server that
    reads the folder.
    """

    def __init__(self, tokenizer: Tokenizer, **template_kwargs: Any) -> None:
        self.tokenizer = tokenizer
        self.family = family_of(tokenizer.chat_template)
        self.stop_ids = tokenizer.stop_ids
        self.template_kwargs = dict(template_kwargs)
        variables = {**tokenizer.named_tokens, **template_kwargs}
        source = tokenizer.chat_template
        if source is None:
            source = PLAIN.template
            variables |= {"adds_bos": tokenizer.adds_bos}
            if tokenizer.eos_id is None:
                raise TemplateError(
                    f"{tokenizer.folder}: neither a chat template nor an EOS token, so no answer could ever end",
                    hint="set eos_token in tokenizer_config.json",
                )
        self.renderer = Renderer(tokenizer, ChatTemplate(source, variables))

    def prompt_ids(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Ids of the conversation with the generation prompt added: exactly what serving feeds the model."""
        plain = checked(messages)
        self.renderer.check_used(plain)
        rendered = self.renderer.render(plain, add_generation_prompt=True)
        return self.tokenizer.encode_spans(rendered.text, rendered.literal_spans)[0]

    def encode(self, row: Row) -> list[EncodedRow]:
        """The training rows of a canonical row: one, or one for each assistant turn when the template rewrites history
        (then with ids `<row>/0`, `<row>/1`, ...). A text row is trained on all tokens but the first, EOS appended.

        Raises TemplateError with file and line of the row when it cannot be encoded.
        """
        try:
            if row.segments:
                return [self._encode_segments(row)]
            return [self._encode_text(row)] if row.text else self._encode_messages(row)
        except TemplateError as error:
            where = f"{row.source}:{row.line}: " if row.source and row.line else f"{row.source}: " if row.source else ""
            raise TemplateError(f"{where}{error}", hint=error.hint) from None

    def parse(self, ids: Sequence[int]) -> str:
        """The answer in generated ids: up to the first stop token, without control tokens and outer white space."""
        end = next((i for i, token in enumerate(ids) if token in self.stop_ids), len(ids))
        return self.tokenizer.decode(ids[:end], skip_specials=True).strip()

    def encode_answer(self, messages: Sequence[Message], answer: str) -> tuple[list[int], int]:
        """(ids of prompt + answer + stop, index of the first answer token): what a scorer needs."""
        row = Row(id="", messages=(*messages, Message(role="assistant", content=answer)))
        encoded = self._encode_messages(row)[-1]
        last = max(i for i, trained in enumerate(encoded.trained) if trained)
        start = last
        while encoded.trained[start - 1]:
            start -= 1
        return list(encoded.ids[: last + 1]), start

    def text_ids(self, text: str) -> list[int]:
        """Ids of a plain document: BOS in front when the tokenizer is made so, no EOS, control tokens read as text."""
        head = [self.tokenizer.bos_id] if self.tokenizer.adds_bos and self.tokenizer.bos_id is not None else []
        return head + self.tokenizer.encode(text, specials=False)

    def _encode_text(self, row: Row) -> EncodedRow:
        tail = [] if self.tokenizer.eos_id is None else [self.tokenizer.eos_id]
        ids = self.text_ids(row.text) + tail
        if len(ids) < 2:
            raise TemplateError("the text has no tokens to train on", hint="leave the row out")
        return EncodedRow(row.id, tuple(ids), (False,) + (True,) * (len(ids) - 1))

    def _encode_segments(self, row: Row) -> EncodedRow:
        """The segments' tokens one after the other, tokenised apart, so that no token belongs to two. Nothing is added:
        control tokens are what the segments themselves spell."""
        ids: list[int] = []
        trained: list[bool] = []
        for text, label in row.segments:
            piece = self.tokenizer.encode(text, specials=True)
            ids += piece
            trained += [label] * len(piece)
        if not any(trained[1:]):
            raise TemplateError("no token of the segments is trained", hint="leave the row out")
        return EncodedRow(row.id, tuple(ids), (False, *trained[1:]))

    def _encode_messages(self, row: Row) -> list[EncodedRow]:
        messages = checked(row.messages)
        if messages[-1]["role"] != "assistant":
            raise TemplateError(
                f"the last message is of role {messages[-1]['role']!r}, so there is no answer to train on",
                hint="end the conversation with an assistant turn",
            )
        self.renderer.check_used(messages)
        masks = mask_conversation(self.tokenizer, self.renderer, messages)
        names = [row.id] if len(masks) == 1 else [f"{row.id}/{i}" for i in range(len(masks))]
        return [EncodedRow(name, tuple(masked.ids), masked.flags()) for name, masked in zip(names, masks, strict=True)]
