#!/usr/bin/env python3
"""What the pages say of the repository is true: links inside it resolve, headings too; files and folders that a page names
in backticks exist; a recipe of docs/howto/ ends with the list of files that it touches.

`src/gateway/policy/<name>.cc` is true when some file matches it with a word in the place of <name>. Design notes and
results tell of their day and are not held to this; their links are."""
import glob
import re
import sys
from pathlib import Path

from check_tree import ROOT, tracked

LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+)\)|<img[^>]* src=\"([^\"]+)\"")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.M | re.S)
TICKED = re.compile(r"`([^`\n]+)`")
# `src/...` from the root of the checkout, `gateway/policy/` from src/.
TOP = ("src/", "docs/", "tests/", "scripts/", "cmake/", "packaging/", "bench/")
UNDER_SRC = tuple(f"{p.name}/" for p in (ROOT / "src").iterdir() if p.is_dir())
PATH = re.compile(r"[\w./<>*{},-]+")
OF_THEIR_DAY = ("docs/design/", "docs/results/")


def anchors(text):
    """Headings as the places that #links name, in GitHub's spelling."""
    found = set()
    for heading in re.findall(r"^#+ +(.*?)\s*$", FENCE.sub("", text), re.M):
        plain = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)).lower()
        found.add(plain.replace(" ", "-"))
    return found


def link_problems(page, text):
    for target in (a or b for a, b in LINK.findall(FENCE.sub("", text))):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file) if file else page
        if not path.exists():
            yield f"the link {target} leads nowhere"
        elif anchor and path.suffix == ".md" and anchor not in anchors(path.read_text()):
            yield f"the link {target} names no heading"


def exists(name):
    """Whether a file is called so, with or without its extension, read from the root or from src/."""
    pattern = re.sub(r"<[^>]*>", "*", name.rstrip("/"))
    for alternative in re.findall(r"[^,{}]+", re.search(r"\{(.*)\}", pattern)[1]) if "{" in pattern else [None]:
        one = pattern if alternative is None else re.sub(r"\{.*\}", alternative, pattern)
        bases = [ROOT, ROOT / "src"]
        if not any(glob.glob(str(base / (one + ending))) for base in bases for ending in ("", ".h", ".cc")):
            return False
    return True


def path_problems(text):
    for word in TICKED.findall(text):
        if PATH.fullmatch(word) and word.startswith(TOP + UNDER_SRC) and not exists(word):
            yield f"`{word}` does not exist"


def recipe_problems(text):
    found = re.search(r"^Files: (.*?)(?:\n\n|\Z)", text, re.M | re.S)
    if not found:
        yield "a recipe says which files it touches, in a paragraph that begins with 'Files: '"
    elif not [word for word in TICKED.findall(found[1]) if word.startswith(TOP)]:
        yield "its list of files names none in backticks from the root of the checkout"


def main():
    problems = []
    pages = [path for path in tracked() if path.suffix == ".md" and path.is_file()]
    for page in pages:
        name, text = page.relative_to(ROOT).as_posix(), page.read_text()
        found = list(link_problems(page, text))
        if not name.startswith(OF_THEIR_DAY):
            found += path_problems(text)
        if name.startswith("docs/howto/") and page.name != "README.md":
            found += recipe_problems(text)
        problems += [f"{name}: {problem}" for problem in found]
    print("\n".join(problems) or f"{len(pages)} pages are true")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
