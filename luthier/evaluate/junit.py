"""junit.xml: one test case a gate, so that any CI shows the verdict. INCONCLUSIVE and gates not run are `skipped`.

So are the prompt arm's own gates when they do not hold: they never block a tune, and a tune that ships must not be red.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from luthier.evaluate.gate import Gate
from luthier.evaluate.verdict import Verdict

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(verdict: Verdict) -> str:
    """The file's text. Failure text = measured against required, and the next action."""
    cases: list[tuple[str, Gate]] = [("luthier.tune", gate) for gate in verdict.gates]
    cases += [("luthier.prompt", gate) for gate in verdict.prompt_gates]
    num_failed = sum(gate.status == "FAIL" for gate in verdict.gates)
    num_skipped = sum(gate.status != "PASS" for _, gate in cases) - num_failed + len(verdict.not_run)
    counts = {
        "tests": str(len(cases) + len(verdict.not_run)),
        "failures": str(num_failed),
        "errors": "0",
        "skipped": str(num_skipped),
    }
    root = ET.Element("testsuites", counts)
    suite = ET.SubElement(root, "testsuite", {"name": f"luthier verdict {verdict.verdict}", **counts})
    for class_name, gate in cases:
        case = ET.SubElement(suite, "testcase", {"classname": class_name, "name": gate.id, "time": "0"})
        message = _clean(f"{gate.reason}. Next: {gate.next_action}" if gate.next_action else gate.reason)
        if gate.status == "FAIL" and gate in verdict.gates:
            failure = ET.SubElement(case, "failure", {"message": message, "type": "gate"})
            failure.text = _clean(f"measured {gate.delta} [{gate.low}, {gate.high}], required {gate.margin}\n{message}")
        elif gate.status != "PASS":
            ET.SubElement(case, "skipped", {"message": message})
    for name, why in verdict.not_run.items():
        case = ET.SubElement(suite, "testcase", {"classname": "luthier.not_run", "name": name, "time": "0"})
        ET.SubElement(case, "skipped", {"message": f"not run: {_clean(why)}"})
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _clean(text: str) -> str:
    """Without the characters that XML 1.0 cannot hold."""
    return _NOT_XML.sub("\ufffd", text)
