"""Encoding repair: text that was decoded with the wrong table and saved so ("cafÃ©" -> "café").

What: ftfy, which undoes a chain of wrong decodings only when the result is less improbable than what stands there.
Nothing else of the text changes (no quote marks, no line ends, no normal form). Source: R. Speer, ftfy.
"""

from __future__ import annotations

import ftfy
from ftfy.badness import is_bad

_CONFIG = ftfy.TextFixerConfig(
    unescape_html=False,
    remove_terminal_escapes=False,
    fix_latin_ligatures=False,
    fix_character_width=False,
    uncurl_quotes=False,
    fix_line_breaks=False,
    fix_surrogates=False,
    remove_control_chars=False,
    normalization=None,
    explain=False,
)


def repair(text: str) -> str:
    """`text` with wrongly decoded passages put right; the same text where nothing looks damaged."""
    return text if text.isascii() or not is_bad(text) else ftfy.fix_text(text, _CONFIG)
