"""Commands that pages show, taken apart as a shell does."""

import re
import shlex
from itertools import dropwhile

# The body of a file that is written in place: cat > notes.txt <<'END' ... END.
HERE_DOCUMENT = re.compile(r"(<<-?\s*['\"]?(\w+)['\"]?[^\n]*\n).*?^\2$", re.DOTALL | re.MULTILINE)

ENDS_A_COMMAND = {"&&", "||", "|", ";", "&"}


def commands(block):
    """The commands of a block as lists of words, without comments, pipes and redirections."""
    text = HERE_DOCUMENT.sub(r"\1", block).replace("\\\n", " ")
    found = []
    for line in text.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;<>")
        lexer.whitespace_split = True
        found += _split(list(lexer))
    return found


def _split(words):
    commands_of_line = [[]]
    skips_file = False
    for word in words:
        if word in ENDS_A_COMMAND:
            commands_of_line.append([])
        elif skips_file:
            skips_file = False
        elif re.fullmatch(r"[<>]+", word):
            skips_file = True
        else:
            commands_of_line[-1].append(word)
    # NAME=value in front of a command is its environment.
    commands_of_line = [list(dropwhile(is_variable, words)) for words in commands_of_line]
    return [words for words in commands_of_line if words]


def is_variable(word):
    return bool(re.match(r"[A-Z_]+=", word))
