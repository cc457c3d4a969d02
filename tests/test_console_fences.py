# SPDX-License-Identifier: Apache-2.0
from .console_fences import Step, read_steps

PAGE = """# x
```console
$ echo one
one
$ printf '%s\\n' \\
    two
...
$ false
cannot do it
(exit 3)
```
```python
print()
```
```console
$ true
```
"""


def test_fences_become_steps():
    assert read_steps(PAGE) == [
        Step("echo one", "one\n", 0),
        Step("printf '%s\\n' \\\n    two", "...\n", 0),
        Step("false", "cannot do it\n", 3),
        Step("true", "", 0),
    ]


def test_output_is_compared_with_wildcards():
    step = Step("x", "PCR0 ...\ndone in ... s\n", 0)
    assert step.accepts("PCR0 abc\ndone  in 3 s\n")
    assert not step.accepts("PCR1 abc\ndone in 3 s\n")
