"""Run as a process of its own: the wheel's Collector client against an address, with tokens of its own."""

import json
import os
import sys
import tempfile

address, tokens, what = sys.argv[1:4]
config = tempfile.NamedTemporaryFile("w", suffix=".conf")  # noqa: SIM115 - lives as long as the process
config.write(f"""
SEC_TOKEN_DIRECTORY = {tokens}
SEC_CLIENT_AUTHENTICATION_METHODS = IDTOKENS
TRUST_DOMAIN = pool.test
SEC_DEFAULT_ENCRYPTION = REQUIRED
COLLECTOR_HOST = {address}
LOCAL_CONFIG_FILE =
LOCAL_CONFIG_DIR =
""")
config.flush()
os.environ["CONDOR_CONFIG"] = config.name
import classad2  # noqa: E402
import htcondor2  # noqa: E402

collector = htcondor2.Collector(address)
try:
    if what == "query":
        found = collector.query(htcondor2.AdType.Startd, constraint="Cpus > 0")
        answer = [{name: str(ad[name]) for name in ad} for ad in found]
    elif what == "project":
        found = collector.query(htcondor2.AdType.Startd, projection=["Name", "Cpus"])
        answer = [sorted(ad.keys()) for ad in found]
    elif what == "nothing":
        answer = [str(ad["Name"]) for ad in collector.query(htcondor2.AdType.Startd, constraint='Name == "no"')]
    elif what == "locate":
        answer = str(collector.locate(htcondor2.DaemonType.Startd, "localhost")["MyAddress"])
    elif what == "self":
        answer = str(collector.locate(htcondor2.DaemonType.Collector)["MyAddress"])
    else:
        ad = classad2.ClassAd()
        ad["MyType"], ad["Name"], ad["Machine"] = "Machine", "slot1@stock", "stock"
        ad["MyAddress"] = ad["StartdIpAddr"] = "<127.0.0.1:9?noUDP>"
        ad["State"] = "Owner"
        collector.advertise([ad], "UPDATE_STARTD_AD")
        answer = "sent"
except Exception as error:  # whatever it is: the test looks at the words
    answer = f"failed: {error}"
print(json.dumps(answer))
