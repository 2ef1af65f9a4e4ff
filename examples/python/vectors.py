"""Judges the vectors that every verifier must judge alike: python3 vectors.py ../vectors.json"""

import json
import sys

from gateway_assertion import Gateway, Refused

with open(sys.argv[1], encoding="utf-8") as file:
    vectors = json.load(file)
gateway = Gateway(audience=vectors["audience"], issuer=vectors["issuer"], key_set=vectors["key_set"], now=lambda: vectors["now"])
for case in vectors["cases"]:
    try:
        claims = gateway.verify(case["token"], case["method"], case["path"])
        print(json.dumps({"name": case["name"], "valid": True, "subject": claims["sub"]}))
    except Refused:
        print(json.dumps({"name": case["name"], "valid": False}))
