"""The forms that text/clinical.py looks for, as regular expressions: how notes write names, dates, addresses, numbers.

A group called `it`, `name` or `date` is the identifier; without one the whole match is. Source: 45 CFR
164.514(b)(2)(i); the way notes are written in English.
"""

from __future__ import annotations

import re

from luthier.text.gazetteer import MONTHS, STATE_CODES, STATES, TOWNS

PIECE = r"(?:[A-Z]['’][A-Z][a-zà-ÿ]+|Ma?c[A-Z][a-z]+|[A-ZÀ-Þ][a-zà-ÿ]+(?:[A-Z][a-zà-ÿ]+)?)"
CAP = rf"(?:{PIECE}(?:['’-](?:{PIECE}|[a-zà-ÿ]+))*)"
UPPER = r"[A-Z]{2,}(?:['’-][A-Z]{2,})*"
INITIAL = r"[A-Z]\.?"
PARTICLE = r"(?:de la|de los|van der|van den|von der|de|del|da|dos|di|van|von|bin|ibn|al|el|la|le)"
PART = rf"(?:{CAP}|{UPPER})"
REST = rf"(?:[ \u00a0](?:{INITIAL}(?=[ ,]|$)|{PARTICLE} {PART}|{PART}))"
NAME = rf"(?<!\w)(?:{PART}, {PART}(?:[ ]{INITIAL}\b)?|(?:{INITIAL} ?){{0,2}}{PART}{REST}{{0,3}})"
TITLE = r"(?:Drs?|Mrs?|Ms|Miss|Mx|Prof|Professor|Doctor|Nurse|Rev|Fr|Sgt|Capt|Lt|Sir|Dame)\b\.?"
LABELS = (
    r"(?:patient(?:'s)?(?: full| legal)? name|patient|pt\.?(?: name)?|name|full name|first name|last name|surname"
    r"|attending(?: physician)?|physician|provider|surgeon|nurse|resident|pcp|referring(?: physician)?|consultant"
    r"|next of kin|emergency contact|contact(?: person)?|guardian|spouse|guarantor|subscriber|author|cc|seen by"
    r"|signed(?: by)?|electronically signed by|dictated by|transcribed by|reviewed by|cosigned by|attested by"
    r"|referred by|performed by|ordered by|prepared by|interpreter|mother|father|witness|caregiver|from|to|attn)"
)
RELATION = (
    r"(?:wife|husband|son|daughter|mother|father|brother|sister|partner|spouse|friend|neighbou?r|aunt|uncle|niece"
    r"|nephew|cousin|grandson|granddaughter|grandmother|grandfather|roommate|caregiver|guardian|fianc[eé]e?"
    r"|girlfriend|boyfriend|boss|employer|twin|baby|child|sponsor|landlord|colleague)"
)
NAME_RULES = tuple(
    re.compile(form)
    for form in (
        rf"\b{TITLE} (?P<name>{NAME})",
        rf"(?im:(?<![\w-]){LABELS})[ \t]*(?::|=|-(?= ))[ \t]*(?:{TITLE} )?(?P<name>{NAME})",
        rf"(?i:\b(?:signed by|dictated by|seen by|referred by|cared for by|evaluated by|discussed with|spoke"
        rf" (?:with|to)"
        rf"|reviewed by|per|named|called|goes by|my name is|i am|i'm|this is|dear|hi|hello|thanks,|regards,|sincerely,"
        rf"|attn:?|care of|c/o|accompanied by|lives with))\s+(?:{TITLE} )?(?P<name>{NAME})",
        rf"\b(?i:{RELATION})(?:'s name is|,| is| named|:)? \(?(?P<name>{NAME})",
        rf"(?P<name>{NAME}),? (?:M\.?D\.?|D\.?O\.?|R\.?N\.?|N\.?P\.?|P\.?A\.?(?:-C)?|Ph\.?D\.?|LPN|LCSW|MSW|PharmD|DDS"
        r"|DPM|OD|FACP|FACS|MBBS|APRN|CRNA|LMFT|Psy\.?D\.?|DPT|CNM|Esq|Jr|Sr)\b",
        rf"(?P<name>{PART}{REST}{{1,3}})(?= (?:will|is|was|has|had|can|may|would|could|did|does|called|calls"
        rf"|reports|reported"
        r"|states|stated|said|says|came|comes|lives|lived|agrees|agreed|asked|denies|drove|brought|signed|wants"
        r"|tolerated)\b)",
        rf"\bwith (?P<name>{PART}{REST}{{1,3}})",
        rf"(?P<name>{NAME})(?= ?,? ?\(?(?:DOB|MRN|aged? \d|a \d{{1,3}}[- ]year|\d{{1,3}}[ -]?(?:y/?o|year)))",
    )
)
WORD = re.compile(rf"{CAP}|{UPPER}")
PLACE_BEFORE = re.compile(
    r"(?:(?:born|live[sd]?|living|resid(?:es?|ed|ing)|grew up|raised|works?|worked|moved|travel(?:l?ed|s|l?ing)?|drove"
    r"|flew|transferred|returned|relocated)(?: back| down| up)? (?:in|from|to|near|outside|of)|resident of|native of"
    r"|(?:is|was|comes?|visiting) from|hometown(?: is|:)|city of|town of|city:|town:|suburb of|family in)\s+$"
)
MONTH = "|".join(rf"{m}|{m[:3]}\.?" for m in (*MONTHS, "sept"))
_DAY, _YEAR = r"(?:3[01]|[12]\d|0?[1-9])", r"(?:(?:19|20)\d\d)"
SHORT_YEAR = r"(?:(?:19|20)?\d\d)"
DATE_FORMS = tuple(
    re.compile(form, re.IGNORECASE)
    for form in (
        rf"(?<![\w./-]){_YEAR}[-/.](?:1[0-2]|0?[1-9])[-/.]{_DAY}(?=T\d|(?![\w/-]))(?:T\d\d:\d\d(?::\d\d)?Z?)?",
        rf"(?<![\w./-])(?:{_DAY}([-/.])(?:1[0-2]|0?[1-9])|(?:1[0-2]|0?[1-9])([-/.]){_DAY})(?:\1"
        rf"|\2){SHORT_YEAR}(?![\w/]|[.-]\d)",
        rf"(?<![\w./-])(?:1[0-2]|0?[1-9])[-/.]{_DAY}[-/.]{SHORT_YEAR}(?![\w/]|[.-]\d)",
        rf"(?<!\w)(?:{MONTH})\s+{_DAY}(?:st|nd|rd|th)?(?:,?\s+{_YEAR})?(?![\w%/]|\.\d| ?(?:mg|ml|mcg))",
        rf"(?<![\w.])(?:the )?{_DAY}(?:st|nd|rd|th)?(?: of|-)?[ -]?(?:{MONTH})(?:[ ,-]+{SHORT_YEAR})?(?!\w)",
        rf"(?<!\w)(?:{MONTH})(?: of|,)?\s+'?{_YEAR}(?!\w)",
        rf"(?<=\bthe )(?:{_DAY})(?:st|nd|rd|th)(?! (?:floor|percentile|grade|rib|digit|toe|metatarsal|cranial"
        rf"|edition|\w+"
        r" (?:rib|space|nerve)))(?!\w)(?=[.,;]| at| and he| and she| when| after)",
    )
)
BARE_DATE = re.compile(
    rf"(?:\b(?:on|since|by|until|till|from|dated|at|through|to|for|before|after|of|and|due|seen|admitted|discharged"
    rf"|date|dob|visit|scheduled|past|between|around|next|last|this)\b|[(:;–-])[ :]*(?P<date>(?:1[0-2]"
    rf"|0?[1-9])/{_DAY})(?![\w/]|\.\d)",
    re.IGNORECASE,
)
LATE_DAY = re.compile(r"(?<![\w./-])(?P<date>(?:1[0-2]|0?[1-9])/(?:1[3-9]|2\d|3[01]))(?![\w/]|\.\d)")
CUED_MONTH = re.compile(
    rf"\b(?:in|since|last|until|by|this|early|late|mid|next|during|of)["
    rf" -](?P<date>{'|'.join(m.title() for m in MONTHS)})"
    r"(?!\w)(?! (?:Street|Avenue|Road))"
)
NOT_A_DATE = re.compile(
    r"(?:strength|bp|pain|grade|rated?|score|ratio|stage|power|motor|reflex\w*)\W{0,3}(?:is |of )?$", re.I
)
AGE = re.compile(
    r"(?<![\w.])(?P<age>9\d|1[0-3]\d)(?=[ -]?(?:years?|yrs?|y\.?/?o\b|y\.o\.|[MF]\b)(?![ -](?:ago|history|later"
    r"|of (?!age))))"
    r"|\b(?i:aged?|age is|turned|turning|age:)[ :]+(?P<age2>9\d|1[0-3]\d)(?![\w%./])"
    r"|\b(?P<age3>ninety|one hundred(?: and)?|hundred)(?:[ -](?:one|two|three|four|five|six|seven|eight|nine))?"
    r"(?=[ -](?:years?|yrs?)[ -]old)|\b(?:in (?:his|her|their) )(?P<age4>(?:early |mid |late |mid-)?(?:nineties"
    r"|90'?s))\b",
)
SUFFIX = (
    r"(?:Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Drive|Dr|Lane|Ln|Court|Ct|Place|Pl|Terrace|Ter|Way|Circle|Cir"
    r"|Parkway|Pkwy|Highway|Hwy|Square|Sq|Trail|Trl|Crescent|Close|Mews|Row|Grove|Loop|Alley|Plaza|Pike|Crossing"
    r"|Ridge|Path|Run|Walk|Turnpike|Gardens|Hill|Heights|Green|Passage|Expressway|Route)"
)
ZIP = r"\d{5}(?:-\d{4})?"
STATE = rf"(?:{'|'.join(sorted(STATE_CODES))})"
UK = r"[A-Z]{1,2}\d[A-Z\d]? \d[A-Z]{2}"
UNIT = r"(?:,? (?:Apt|Apartment|Unit|Suite|Ste|Room|Rm|Floor|Flat|#)\.?,? ?#?\w{1,5})"
TOWN = rf"{PART}(?:[ -]{PART}){{0,2}}"
STATE_NAME = "|".join(s.title() for s in sorted(STATES, key=len, reverse=True))
ADDRESSES = tuple(
    re.compile(form)
    for form in (
        rf"\b\d{{1,6}}[A-Za-z]?(?:-\d+)? (?:[NSEW]\.? |North |South |East |West )?(?:{PART}\.? |\d{{1,3}}(?:st"
        rf"|nd|rd|th) ){{1,4}}?"
        rf"{SUFFIX}\b\.?(?: (?:[NSEW]|NE|NW|SE|SW)\b)?{UNIT}?(?:,(?: {TOWN})(?=,| {STATE}\b| {ZIP}))?"
        rf"(?:,? (?:{STATE}|{STATE_NAME})\b)?(?:,? (?:{ZIP}|{UK})\b)?",
        rf"\b(?i:P\.? ?O\.? ?Box) \d+(?:,? {TOWN},? {STATE} {ZIP})?",
        rf"\b{TOWN}, ?{STATE}\.?,? {ZIP}\b",
        rf"(?i:\b(?:zip|postal|post)(?: ?code)?(?: is|:)?) (?P<it>{ZIP}|{UK})\b",
        rf"(?<![\w-]){UK}(?!\w)",
        rf"\b{STATE} (?P<it>{ZIP})\b",
    )
)
TOWN_STATE = re.compile(rf"\b(?P<it>{TOWN}), (?:(?:{STATE})\b|(?:{STATE_NAME})\b)")
COUNTY = re.compile(rf"\b{PART}(?: {PART})? (?:County|Parish|Borough|Township)\b")
AFTER_PLACE_CUE = re.compile(TOWN)
KNOWN_TOWN = re.compile(
    r"(?<![\w-])(?:"
    + "|".join(re.escape(t.title()).replace("St\\.\\ ", r"St\.? ") for t in sorted(TOWNS, key=len, reverse=True))
    + r")(?!\w)(?! (?:Coma|virus|disease|criteria|score))"
)
HOSPITAL_END = (
    r"(?:Hospitals?|Medical (?:Center|Centre|Group|Associates|Clinic)|Clinics?|Health ?care|Health(?: (?:System"
    r"|Center|Centre"
    r"|Services|Network|Partners|Department))?|Infirmary|Hospice|Nursing (?:Home|Center|Facility)"
    r"|Rehabilitation(?: (?:Center"
    r"|Hospital|Institute))?|Rehab(?: Center)?|Care Center|Care Home|Urgent Care|Surgery Center|Surgical Center"
    r"|Cancer (?:Center|Institute)|Heart (?:Center|Institute)|Children's(?: Hospital)?|Memorial|Sanatorium|Asylum"
    r"|Pharmacy|Labs?|Laborator(?:y|ies)|Family (?:Medicine|Practice)|Dialysis(?: Center)?|Assisted Living|Manor"
    r"|Retirement (?:Home|Community)|University|Elementary School|High School|Eye (?:Center|Institute)|Surgery|Trust)"
)
HOSPITALS = tuple(
    re.compile(form)
    for form in (
        rf"\b(?:(?:St|Saint|Mt|Mount)\.? )?(?:{PART}|[A-Z]\.)(?:(?: of(?: the)?| and| &|-)? (?:{PART}"
        rf"|of)){{0,4}}? {HOSPITAL_END}"
        rf"(?: (?:{HOSPITAL_END}|Emergency Department))?(?: (?:of|at) {TOWN})?(?!\w)",
        rf"\b(?:University|Children's Hospital|Hospital|Institute|Clinic) (?:of|at) {TOWN}(?: {HOSPITAL_END})?(?!\w)",
        rf"\b(?:at|to|from|by|in) (?P<it>(?:St|Saint)\.? {PART}(?:'s)?(?: {HOSPITAL_END})?)",
        r"\b(?:at|to|from|by|in) (?P<it>(?:[A-Z]GH|[A-Z]{2,4}MC|VAMC|[A-Z]CH|BWH|MGH|NYU|UCSF|UCLA))\b",
    )
)
GENERIC = {"the", "a", "an", "our", "your", "his", "her", "this", "that", "local", "general", "emergency", "public",
            "mental", "home", "primary", "community", "at", "to", "in"}  # fmt: skip
NUMBER_CUE = (
    r"(?:mrn|mr|medical record|med rec|record|chart|patient|account|acct|policy|member(?:ship)?|subscriber|insurance"
    r"|beneficiary|claim|case|encounter|visit|accession|licen[cs]e|driver'?s licen[cs]e|dl|dea|npi|vin|plate|tag|serial"
    r"|device|udi|implant|lot|certificate|medicare|medicaid|group|rx|prescription|order|specimen|sample|passport|fin"
    r"|csn|hcn|ssn|hospital|health plan|health card|id|identifier|study|badge|employee|referral|authorization|sn|s/n"
    r"|model|registration|reg|receipt|confirmation|invoice|unit|bag|donor|pacemaker|unique)"
)
RECORD = re.compile(
    rf"\b{NUMBER_CUE}(?:['’]s)?(?: (?:{NUMBER_CUE}|no|number|num|nr|code|plate)\b\.?){{0,3}}[ \t]*(?:is |was "
    rf"|of )?[ \t]*(?:no\.?|[#:=(№]|-(?= )){{0,3}}"
    r"[ \t]*#?(?P<it>(?=[\w./-]*\d[\w./-]*\d[\w./-]*\d)[A-Z0-9](?:[A-Z0-9]|[-./](?=[A-Z0-9])){3,24})(?![\w%]|/\d)",
    re.IGNORECASE,
)
NUMBER_FORM = re.compile(
    r"(?<![\w.,/$€£+-])(?:[A-Z]{1,4}-?\d{4,}(?:-\d+)*|\d{2,4}-\d{2,6}(?:-\d{2,6})?|\d{7,12})(?![\w%/]"
    r"|[.,-]\d)(?! ?(?:mg|ml|mL|mcg|units?))"
)
HASH = re.compile(r"#(?P<it>(?=[\w-]*\d{3})[A-Z0-9][A-Z0-9-]{3,20})\b")
VIN = re.compile(r"\b(?=[A-Z0-9]*\d)(?=[A-Z0-9]*[A-Z])[A-HJ-NPR-Z0-9]{11}\d{6}\b")
MBI = re.compile(r"\b[1-9][A-Z][A-Z0-9]\d-?[A-Z][A-Z0-9]\d-?[A-Z]{2}\d\d\b")
URL = re.compile(r"\b(?:https?://|ftp://|www\.)[^\s<>\"')\]]+[^\s<>\"')\].,;:!?]", re.IGNORECASE)
