"""The answer to CA_CMD, the command with commands inside (wire reference 3.10). Pure."""

from __future__ import annotations

from classad2 import ClassAd

from cedar.classads import set_str
from cedar.commands import condor_version_text

SUCCESS, FAILURE, INVALID_REQUEST = "Success", "Failure", "InvalidRequest"
INVALID_STATE, NOT_AUTHORIZED = "InvalidState", "NotAuthorized"


def agent_reply(result: str, text: str = "") -> ClassAd:
    """``result`` is one of the words above; ``text`` says why not."""
    ad = ClassAd()
    ad["MyType"], ad["TargetType"] = "Reply", "Command"
    ad["CondorVersion"] = condor_version_text()
    ad["Result"] = result
    if text:
        set_str(ad, "ErrorString", text)
    return ad
