#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes cases of line retrieval in the form of LongEval's files (task "lines"): a record of named
lines with a number each, and the question for one of them. Needs Python alone.

    make_lines.py --lines 20 --cases 200 --seed 1 --out cases.jsonl

Cases of another seed are other cases; --names takes the lines' names from a file of cases, such as
LongEval's own, so that they are words that no training has seen."""
import argparse
import json
import random
import re

ADJECTIVES = """
able amber ancient bitter blank blue bold brave brief bright broad broken busy calm careful cheap
civil clean clever cold common cool crisp cruel curious dark deep dense dim distant double dry dull
eager early easy empty equal exact faint fair famous fast fierce final firm flat formal frank free
fresh full gentle giant glad golden grand gray great green grim happy hard harsh heavy hidden high
hollow honest huge humble hungry idle icy jolly keen kind large late lazy lean light little live
lonely long loose loud low loyal lucky mad major mellow mild minor modest narrow near neat noble
noisy odd old open orange pale patient plain polite poor private proud pure quick quiet random rapid
rare raw ready red rich right rigid ripe rough round royal rude rural sad safe salty scarce secret
senior sharp short shy silent silver simple sleepy slim slow small smart smooth soft solid sour
spare steady steep stern stiff still strange strict strong sudden sweet swift tall tame tender thick
thin tidy tight tiny tired tough true upper urban usual vague vast violent vivid warm weak weary
wet white whole wide wild wise wooden worthy yellow young
""".split()
NOUNS = """
acid actor agent anchor animal apple arch arrow artist aunt author autumn badge baker ball bank
barrel basket battle beach bean bear bell bench bird blade blanket boat bone book bottle box branch
bread bridge brother brush bucket butter button cabin cake camel camera canal candle captain card
castle cattle cave chain chair chalk cheese cherry child circle city clerk cliff clock cloud coach
coast coat coin corn cotton cousin cow crown cup curtain dancer desert desk doctor dog donkey door
dragon dream drum duck eagle ear earth echo editor egg engine evening eye factory farm farmer father
feather fence field film finger fire fish flag flame flower flute forest fork fox friend frog fruit
game garden gate giraffe glass glove goat grape guitar hammer harbor hat hill horse hotel house
island jacket jar jewel judge kettle key king kitchen knife ladder lake lamp lawyer leaf lemon letter
library lion lizard map market meadow metal milk mirror monkey moon motor mountain mouse museum
nail needle nephew nest night novel nurse oak ocean office onion orchard owl oyster paint palace
paper parade parrot peach pencil piano picture pilot planet plate pocket poem pond potato prince
queen rabbit radio rain ribbon rice ring river road robot rocket roof rope rose saddle sailor salt
school sea shadow sheep ship shoe sister snake soap soldier song spoon spring squirrel stable star
station stone storm story stove student sugar summer sun table tailor teacher temple tent theater
thunder ticket tiger tower town toy train tree truck tunnel turtle uncle valley vase village violin
voice wagon wall water wheel whistle widow wind window winter wizard wolf wood writer zebra
""".split()
HEAD = (
    "Below is a record of lines I want you to remember. Each line begins with 'line <line index>' "
    "and contains a '<REGISTER_CONTENT>' at the end of the line as a numerical value. For each line "
    "index, memorize its corresponding <REGISTER_CONTENT>. At the end of the record, I will ask you "
    "to retrieve the corresponding <REGISTER_CONTENT> of a certain line index. Now the record start:"
    "\n\n")
QUESTION = ("\nNow the record is over. Tell me what is the <REGISTER_CONTENT> in line {}? "
            "I need the number. ")


def line(name, number):
    return f"line {name}: REGISTER_CONTENT is <{number}>\n"


def names_of(path):
    """The names of all lines of a file of cases."""
    names = set()
    with open(path) as file:
        for entry in file:
            names.update(re.findall(r"^line (\S+): ", json.loads(entry)["prompt"], re.MULTILINE))
    return sorted(names)


def make_case(draw, count, names=None):
    """One case of `count` lines; `draw` is a random.Random."""
    if names is None:
        drawn = set()
        while len(drawn) < count:
            drawn.add(f"{draw.choice(ADJECTIVES)}-{draw.choice(NOUNS)}")
        drawn = draw.sample(sorted(drawn), count)
    else:
        drawn = draw.sample(names, count)
    numbers = [draw.randint(1, 50000) for _ in drawn]
    lines = [line(*pair) for pair in zip(drawn, numbers)]
    asked = draw.randrange(count)
    return {
        "random_idx": [drawn[asked], asked],
        "expected_number": numbers[asked],
        "num_lines": count,
        "correct_line": lines[asked],
        "prompt": HEAD + "".join(lines) + QUESTION.format(drawn[asked]),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", required=True, help="file to write (.jsonl)")
    add("--lines", type=int, default=20, help="of a record, default: 20")
    add("--cases", type=int, default=200, help="default: 200")
    add("--seed", type=int, default=1)
    add("--names", help="file of cases whose lines' names are taken")
    asked = parser.parse_args()
    names = names_of(asked.names) if asked.names else None
    if asked.lines < 1 or asked.cases < 1 or names is not None and len(names) < asked.lines:
        parser.error("--lines and --cases must be positive, and --names has to have as many names")
    draw = random.Random(asked.seed)
    with open(asked.out, "w") as file:
        for _ in range(asked.cases):
            file.write(json.dumps(make_case(draw, asked.lines, names)) + "\n")


if __name__ == "__main__":
    main()
