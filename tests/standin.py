"""Stands in for `python` when DVC runs a stage's command in tests/test_reruns.py and others.

It writes what the stage would, as a digest: a function of the stage's code and parameters (found
by the test: the file that STANDIN names) and of the contents of its inputs. And it notes that it
ran. A stage named in `seconds` takes that long, one in `failing` fails. Only the standard library
is used, and little of it: it is started a few hundred times.
"""

import hashlib
import json
import os
import sys
import time

OUTS = {
    "download": ["--train", "--test"],
    "stats": ["--stats"],
    "lineup": ["--out"],
    "train": ["--weights", "--curves", "--record", "--examples"],
    "evaluate": ["--metrics", "--details", "--predictions", "--examples"],
    "plot": ["--figures", "--all-curves"],
}
METRICS = {"accuracy": 0.75, "accuracy_low": 0.7, "accuracy_high": 0.8}


def main() -> None:
    family, arguments = sys.argv[2].rsplit(".", 1)[-1], sys.argv[3:]
    flags = {name: arguments[i + 1] for i, name in enumerate(arguments) if name.startswith("--")}
    outs = [flags.pop(flag) for flag in OUTS[family]]
    flags.pop("--checkpoints", None)  # no dependency
    name = family if family == "lineup" else f"{family}@{stem(outs[0], family)}"
    with open(os.environ["STANDIN"]) as file:
        standin = json.load(file)
    digest = hashlib.sha256(standin["digests"][name].encode())
    for path in sorted(flags.values()):
        digest.update(contents(path))
    with open(standin["log"], "a") as file:
        file.write(f"{name}\n")
    time.sleep(standin.get("seconds", {}).get(name, 0))
    if name in standin.get("failing", []):
        sys.exit(f"{name} was told to fail")
    if family == "lineup":
        for dataset, names in standin["lineup"].items():
            write(f"{outs[0]}/{dataset}.json", json.dumps(names))
        return
    for path in outs:
        text = f"{path} {digest.hexdigest()}"
        is_json = "/metrics/" in path or "/runs/" in path
        write(path, json.dumps(METRICS | {"of": text}) if is_json else text)


def stem(path: str, family: str) -> str:
    """The dataset's or variant's name in an output's path."""
    if family == "download":
        return path.split("/")[-2]
    return path.split("/")[-1].split(".")[0]


def contents(path: str) -> bytes:
    """What a file holds, or all files of a folder."""
    if os.path.isfile(path):
        with open(path, "rb") as file:
            return file.read()
    return b"".join(contents(f"{path}/{name}") for name in sorted(os.listdir(path)))


def write(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(text)


if __name__ == "__main__":
    main()
