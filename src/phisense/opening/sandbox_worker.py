"""Runs third-party templates and patterns in a subprocess: run as a script by `sandbox`, never
imported.

argv    one JSON object: memory (bytes), seconds (CPU time)
stdin   one JSON object, either of
        template, messages, special (tokens by name), most (characters)     renders a chat template
        patterns, names                                                     matches each regular
                                                                            expression against
                                                                            every name
stdout  {"text": ...}, the rendered text; on failure the last line of stderr says why
"""

from __future__ import annotations

import json
import re
import sys
from contextlib import suppress


def set_worker_limits(memory: int, seconds: int) -> None:
    """Set the limits of this process; on systems without them only the parent's timeout applies."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 2))
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def main() -> None:
    """Render a chat template or match module patterns within the limits; JSON in, JSON out."""
    asked = json.load(sys.stdin)
    if "patterns" in asked:
        set_worker_limits(**json.loads(sys.argv[1]))
        match_patterns(asked["patterns"], asked["names"])
        return
    from transformers.utils.chat_template_utils import render_jinja_template

    set_worker_limits(**json.loads(sys.argv[1]))
    try:
        made = render_jinja_template(
            conversations=[asked["messages"]],
            chat_template=asked["template"],
            add_generation_prompt=True,
            **asked["special"],
        )[0][0]
    except MemoryError:
        sys.exit("more memory than it may have")
    except RecursionError:
        sys.exit("recursion without an end")
    except Exception as error:  # noqa: BLE001, a child process that runs others' template
        sys.exit(" ".join(f"{error}".split())[:200] or type(error).__name__)
    if len(made) > asked["most"]:
        sys.exit(f"{len(made):,} characters for one question")
    sys.stdout.write(json.dumps({"text": made}))


def match_patterns(patterns: list[str], names: list[str]) -> None:
    """Match as PEFT does (tuners_utils.check_target_module_exists, other.get_pattern_key)."""
    try:
        for pattern in patterns:
            for name in names:
                re.fullmatch(pattern, name)
                re.match(rf"(.*\.)?({pattern})$", name)
    except (re.error, RecursionError, OverflowError) as error:
        sys.exit(f"the pattern {pattern[:80]} is none: {error}")


if __name__ == "__main__":
    main()
