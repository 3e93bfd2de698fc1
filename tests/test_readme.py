"""The documentation runs: every Python block is executed, every command exists.

In each file the ```python blocks run in order in one namespace, as a reader would type them. A
```bash or ```console block may hold `make` targets of the Makefile, `pip install` of this project,
and `git clone`; anything else is an error, because nothing would check it.
"""

import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts),
]
FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>`{3,})(?P<language>\w*)[^\n]*\n"
    r"(?P<body>.*?)^(?P=indent)(?P=fence) *$",
    re.MULTILINE | re.DOTALL,
)
SHELLS = {"bash", "console", "sh", "shell"}
# Without code to run; a block in another language is likely a misspelt one that nobody checks.
PLAIN = {"", "text", "toml", "json", "math", "none"}


def blocks(page):
    """(language, line number, text) of each fenced block."""
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("body")) + 1
        yield match["language"], line, match["body"]


def commands(page):
    """(line number, words) of each command in the shell blocks of the page."""
    for language, line, body in blocks(page):
        if language in SHELLS:
            for offset, text in enumerate(body.splitlines()):
                words = shlex.split(text.removeprefix("$ "), comments=True)
                if words:
                    yield line + offset, words


def _label(page):
    return page.relative_to(ROOT).as_posix()


def _with(language_filter):
    return [p for p in PAGES if any(language_filter(language) for language, _, _ in blocks(p))]


@pytest.mark.parametrize("page", _with(lambda language: language == "python"), ids=_label)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a block that writes a file writes it here
    namespace = {"__name__": "__main__"}
    for language, line, body in blocks(page):
        if language == "python":
            # Blank lines in front, so that a traceback gives the line of the page.
            code = compile("\n" * (line - 1) + body, str(page), "exec")
            exec(code, namespace)


@pytest.mark.parametrize("page", PAGES, ids=_label)
def test_languages_are_known(page):
    unknown = [
        f"{_label(page)}:{line} {language!r}"
        for language, line, _ in blocks(page)
        if language not in SHELLS | PLAIN | {"python"}
    ]
    assert unknown == []


def _check_make(words):
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    # -n prints the commands and runs none of them, so `make test` does not start this suite again.
    done = subprocess.run(
        [make, "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def _check_pip(words):
    assert words[1] == "install", "only `pip install` is documented"
    names = rf"({re.escape(PROJECT['name'])}|\.)"
    extras = "|".join(PROJECT["optional-dependencies"])
    wanted = re.compile(rf"{names}(\[({extras})(,({extras}))*\])?")
    arguments = [w for w in words[2:] if w not in {"-e", "--upgrade"}]
    assert arguments, "names nothing to install"
    for argument in arguments:
        assert wanted.fullmatch(argument), f"not this project or not one of its extras: {argument}"


def _check_git(words):
    assert words[1] == "clone", "only `git clone` is documented"


@pytest.mark.parametrize("page", _with(SHELLS.__contains__), ids=_label)
def test_commands_exist(page):
    checks = {"make": _check_make, "pip": _check_pip, "git": _check_git}
    for line, words in commands(page):
        assert words[0] in checks, f"{_label(page)}:{line}: nothing checks {shlex.join(words)!r}"
        try:
            checks[words[0]](words)
        except AssertionError as error:
            raise AssertionError(f"{_label(page)}:{line}: {shlex.join(words)}: {error}") from None


def test_readme_opens_with_the_two_commands():
    found = [words for _, words in commands(ROOT / "README.md")]
    assert found[:2] == [["make", "demo"], ["make", "test"]]


@pytest.mark.parametrize("page", PAGES, ids=_label)
def test_links_to_files_exist(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    missing = [
        target
        for target in targets
        if "://" not in target and not (page.parent / target).resolve().exists()
    ]
    assert missing == []


def test_the_reader_finds_fences():
    """The reader of fences itself, on a page that it is easy to be wrong about."""
    page = ROOT / "README.md"
    opened = sum(
        line.lstrip().startswith("```") for line in page.read_text(encoding="utf-8").splitlines()
    )
    assert opened == 2 * len(list(blocks(page)))
