"""Personal data with a checkable form: e-mail, phone, card, IBAN, IP address, national id, date of birth, credentials
in a URL.

What: a regular expression proposes, a validator decides (phonenumbers for phones, python-stdnum for check digits,
ipaddress for addresses). Why so: check digits are what separates a card from an order number. What it cannot see:
names, streets, anything written out in words; nothing here claims them.
Sources: ITU-T E.164; ISO/IEC 7812 (cards), ISO 13616 (IBAN); python-stdnum's and phonenumbers' documentation; the
public-address rule for IPs is datatrove's.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence

import phonenumbers
from phonenumbers import PhoneMetadata
from stdnum import iban, luhn
from stdnum.br import cpf
from stdnum.cn import ric
from stdnum.de import idnr
from stdnum.es import dni, nie
from stdnum.fi import hetu
from stdnum.fr import nir
from stdnum.gb import nhs
from stdnum.in_ import aadhaar
from stdnum.it import codicefiscale
from stdnum.nl import bsn
from stdnum.pl import pesel
from stdnum.se import personnummer

from luthier.text.findings import Finding, keep_apart

KINDS = ("url_credentials", "email", "iban", "card", "national_id", "date_of_birth", "ip", "phone")
"""In order of precedence: where two overlap, the earlier one stays."""
DEFAULT_REGIONS = ("US", "GB")
_CUE_CHARS = 32

_EMAIL = re.compile(r"(?<![\w.+-])[\w.%+'-]{1,64}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,24}(?![\w-])")
_URL_CREDENTIALS = re.compile(r"\b[a-zA-Z][a-zA-Z0-9+.-]{1,20}://([^\s/:@\"'<>]+:[^\s/@\"'<>]+)@")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]){11,30}\b")
_CARD = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){11,18}(?![\w-]|\.\d)")
_CARD_CUE = re.compile(r"\b(?:card|visa|mastercard|maestro|amex|american express|credit|debit)\b", re.IGNORECASE)
_IP4 = re.compile(r"(?<![\w.-])\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)")
_IP6 = re.compile(r"(?<![\w:.])(?:[0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F]{0,4}(?![\w:])")
_VERSION = re.compile(r"(?:\bv|\bversion|\brelease|\bfirmware|\bbuild)\W{0,3}$", re.IGNORECASE)
_PHONE = re.compile(
    r"(?<![\w.,:/$€£#-])(?:\+|\(\+|00)?\(?\d(?:[\s().\-/\u00a0\u2011]{0,3}\d){6,14}"
    r"(?:,? ?(?:x|ext\.?|extension) ?\d{1,6})?(?![\w-]|[.,:]\d)",
    re.IGNORECASE,
)
_NANP = re.compile(r"(?:\+?1[ .-]?)?(?:\([2-9]\d\d\) ?|[2-9]\d\d[-.])[2-9]\d\d[-. ]?\d{4}")
_PHONE_CUE = re.compile(
    r"(?:phone|tel|telephone|cell|mobile|fax|whatsapp|handy|telefon|móvil|téléphone|hotline)\b[\w\s:.,'’()@#-]{0,24}$",
    re.IGNORECASE,
)
_WEAK_CUE = re.compile(
    r"(?:number|call|contact|text|sms|ring|reach|dial)\b(?: (?:is|me|us|him|her|them|on|at|back)){0,3}"
    r"[\s:.,'’()@#-]{0,4}$",
    re.IGNORECASE,
)
_NOT_A_PHONE = re.compile(
    r"(?:order|invoice|ticket|account|tracking|serial|ref|reference|case|policy|id|isbn|model|sku|article|part"
    r"|transaction|part no|customer|booking|parcel|shipment)(?: (?:number|no|nr|id|code))?\W{0,4}$",
    re.IGNORECASE,
)
_DATE = (
    r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}"
    r"|\d{1,2}(?:st|nd|rd|th|\.)?(?: of)? [^\W\d]{3,12}\.?,? \d{4}|[^\W\d]{3,12}\.? \d{1,2}(?:st|nd|rd|th)?,? \d{4}"
)
_BIRTH = re.compile(
    r"(?:\bborn(?: on)?|\bdate of birth|\bd\.?o\.?b\b\.?|\bbirth ?(?:day|date)|\bgeb(?:oren|urtsdatum|\.)(?: am)?"
    r"|\bn[ée]e?\(?e?\)? le|\bnacid[oa] el|\bfecha de nacimiento|\bdate de naissance)"
    rf"(?:(?: is| was)?[\s:,=(-]{{0,4}})({_DATE})(?!\w)",
    re.IGNORECASE,
)
_ANY_DIGITS = re.compile(r"\d(?:[^a-zA-Z\d]{0,3}\d){6}|\d{2}[A-Z]\d{2}[A-Z]")


def _ssn(value: str) -> bool:
    """No area 000, 666 or 900 and up, no group 00, no serial 0000."""
    digits = re.sub(r"\D", "", value)
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def _always(value: str) -> bool:
    return True


_IDS: tuple[tuple[str, Callable[[str], bool], str], ...] = (
    (r"\d{3}-\d{2}-\d{4}", _ssn, ""),  # United States
    (r"\d{3} ?\d{2} ?\d{4}", _ssn, r"ssn|social security"),
    (r"9\d{2}-\d{2}-\d{4}", _always, r"ssn|itin|tax|social security"),
    (
        r"(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D]",
        _always,
        "",
    ),  # Great Britain, National Insurance
    (r"[A-Z]{2} ?\d{2} ?\d{2} ?\d{2} ?[A-Z]", _always, r"national insurance|nino|\bni\b"),
    (r"\d{3}[ -]?\d{3}[ -]?\d{4}", nhs.is_valid, r"nhs"),
    (r"\d{8}-?[A-Z]", dni.is_valid, ""),  # Spain
    (r"[XYZ]-?\d{7}-?[A-Z]", nie.is_valid, ""),
    (r"[A-Z]{6}\d{2}[A-Z]\d{2}[A-Z]\d{3}[A-Z]", codicefiscale.is_valid, ""),  # Italy
    (r"[12] ?\d{2} ?\d{2} ?\d[\dAB] ?\d{3} ?\d{3} ?\d{2}", nir.is_valid, ""),  # France
    (r"\d{3}\.\d{3}\.\d{3}-\d{2}", cpf.is_valid, ""),  # Brazil
    (r"\d{11}", cpf.is_valid, r"cpf"),
    (r"\d{4} \d{4} \d{4}", aadhaar.is_valid, ""),  # India
    (r"\d{12}", aadhaar.is_valid, r"aadhaar|uidai"),
    (r"\d{6}[-+A]\d{3}[0-9A-Y]", hetu.is_valid, ""),  # Finland
    (r"(?:\d{2})?\d{6}[-+]\d{4}", personnummer.is_valid, ""),  # Sweden
    (r"\d{17}[\dX]", ric.is_valid, ""),  # China
    (r"\d{9}", bsn.is_valid, r"bsn|burgerservice"),  # Netherlands
    (r"\d{11}", pesel.is_valid, r"pesel"),  # Poland
    (r"\d{2} ?\d{3} ?\d{3} ?\d{3}", idnr.is_valid, r"steuer|identifikationsnummer|tax id"),  # Germany
)
_ID_RULES = tuple(
    (re.compile(rf"(?<![\w.-])(?:{form})(?![\w-])"), check, re.compile(cue, re.IGNORECASE) if cue else None)
    for form, check, cue in _IDS
)


def find_pii(text: str, kinds: Sequence[str] = KINDS, regions: Sequence[str] = DEFAULT_REGIONS) -> list[Finding]:
    """The personal data in `text`, by place, without overlaps. regions: ISO codes of the countries whose phone numbers
    may stand without a country code."""
    digits = _ANY_DIGITS.search(text) is not None
    found: list[Finding] = []
    for kind in KINDS:
        if kind in kinds and (digits or kind in _WITHOUT_DIGITS):
            found += (Finding(start, end, kind) for start, end in _FINDERS[kind](text, regions))
    return keep_apart(found) if len(found) > 1 else found


def _emails(text: str, regions: Sequence[str]) -> Iterator[tuple[int, int]]:
    if "@" in text:
        yield from (m.span() for m in _EMAIL.finditer(text))


def _credentials(text: str, regions: Sequence[str]) -> Iterator[tuple[int, int]]:
    if "://" in text:
        yield from (m.span(1) for m in _URL_CREDENTIALS.finditer(text))


def _ibans(text: str, regions: Sequence[str]) -> Iterator[tuple[int, int]]:
    """The longest valid beginning of each candidate: a candidate may run on into the next word."""
    for match in _IBAN.finditer(text):
        start, end = match.span()
        while end - start >= 15:
            whole = text[end - 1].isalnum() and (end == len(text) or not text[end].isalnum())
            if whole and iban.is_valid(text[start:end], check_country=False):
                yield start, end
                break
            end -= 1


def _cards(text: str, regions: Sequence[str]) -> Iterator[tuple[int, int]]:
    for match in _CARD.finditer(text):
        number = re.sub(r"\D", "", match[0])
        before = text[max(match.start() - _CUE_CHARS, 0) : match.start()]
        if (_is_card(number) or _CARD_CUE.search(before)) and luhn.is_valid(number):
            yield match.span()


def _is_card(number: str) -> bool:
    """Whether an issuer has numbers that begin so and are that long."""
    size, two, three, four = len(number), int(number[:2]), int(number[:3]), int(number[:4])
    if number[0] == "4":
        return size in (13, 16, 19)
    if 51 <= two <= 55 or 2221 <= four <= 2720 or four == 6011 or two == 65 or 644 <= three <= 649:
        return size == 16
    if two in (34, 37):
        return size == 15
    if 3528 <= four <= 3589 or two == 62:
        return 16 <= size <= 19
    return size == 14 and (300 <= three <= 305 or two in (36, 38, 39))


def _ids(text: str, regions: Sequence[str]) -> Iterator[tuple[int, int]]:
    for form, check, cue in _ID_RULES:
        for match in form.finditer(text):
            if cue and not cue.search(text, max(match.start() - _CUE_CHARS, 0), match.start()):
                continue
            if check(match[0]):
                yield match.span()


def _births(text: str, regions: Sequence[str]) -> Iterator[tuple[int, int]]:
    yield from (m.span(1) for m in _BIRTH.finditer(text))


def _ips(text: str, regions: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Public addresses only: 192.168.0.1 and 127.0.0.1 tell nothing about anybody."""
    matches = [*_IP4.finditer(text), *(_IP6.finditer(text) if text.count(":") > 1 else ())]
    for match in matches:
        try:
            is_global = ipaddress.ip_address(match[0]).is_global
        except ValueError:
            continue
        if is_global and not _VERSION.search(text[max(match.start() - 12, 0) : match.start()]):
            yield match.span()


def _phones(text: str, regions: Sequence[str]) -> Iterator[tuple[int, int]]:
    for match in _PHONE.finditer(text):
        before = text[max(match.start() - _CUE_CHARS, 0) : match.start()]
        if _is_phone(match[0], before, regions):
            yield match.span()


def _is_phone(value: str, before: str, regions: Sequence[str]) -> bool:
    """With a country code: a possible number. Without: a possible one of `regions` that is announced as a phone number,
    or a valid one that is written like one; digits in one run say nothing by themselves."""
    international = value.lstrip("(").startswith(("+", "00"))
    if international:
        return _parsed(re.sub(r"^\(?00", "+", value), None, phonenumbers.is_possible_number)
    if _NOT_A_PHONE.search(before):
        return False
    is_spaced, weak = not value.isdigit(), _WEAK_CUE.search(before) is not None
    if _PHONE_CUE.search(before) or (weak and is_spaced):
        return any(_parsed(value, region, phonenumbers.is_possible_number) for region in regions)
    if "US" in regions and is_spaced and _NANP.match(value):
        return True
    written = weak or (is_spaced and value.lstrip("(")[0] == "0")
    return written and any(_parsed(value, region, phonenumbers.is_valid_number) for region in regions)


def _parsed(value: str, region: str | None, check: Callable[[phonenumbers.PhoneNumber], bool]) -> bool:
    try:
        return check(phonenumbers.parse(value, region))
    except phonenumbers.NumberParseException:
        return False


def known_region(region: str) -> bool:
    """Whether phone numbers of this ISO country code can be checked."""
    return PhoneMetadata.metadata_for_region(region, None) is not None


_FINDERS = {
    "url_credentials": _credentials,
    "email": _emails,
    "iban": _ibans,
    "card": _cards,
    "national_id": _ids,
    "date_of_birth": _births,
    "ip": _ips,
    "phone": _phones,
}
_WITHOUT_DIGITS = {"url_credentials", "email", "date_of_birth", "ip", "national_id"}
