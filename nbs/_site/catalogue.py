#!/usr/bin/env python
"""Write down what there is, so that `ldm list` and help need no import: `python nbs/_site/catalogue.py`

Worlds, methods, presets, and every setting with its value and source go into ldm_nb/catalogue.json. Run it after a change
to a world, a setting or a preset; tests/test_doors.py says when it is due.
"""
import json, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT/'ldm_nb'/'catalogue.json'


def collected():
    "The catalogue, from the pages' own objects"
    from ldm_nb.lab.collected import collected
    return collected()

def written(cat):
    "As text, a line for each entry, so that a change is easy to read"
    def line(x): return json.dumps(x, ensure_ascii=False)
    def part(x):
        if isinstance(x, list): return '[\n' + ',\n'.join(map(line, x)) + ']'
        return '{\n' + ',\n'.join(f'{line(k)}: {line(v)}' for k, v in x.items()) + '}'
    return '{\n' + ',\n'.join(f'{line(k)}: {part(v)}' for k, v in cat.items()) + '}\n'


if __name__ == '__main__':
    sys.path.insert(0, str(ROOT))
    FILE.write_text(written(collected()), encoding='utf-8')
