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
    from ldm_nb.lab.catalogue import ABOUT
    from ldm_nb.lab.presets import CHOICES, METHODS, ROBOTS, WORLDS, as_stored, changes, presets_of, sources, usual
    texts = {}  # text -> its place
    def said(v, text): return [v, texts.setdefault(text, len(texts))]
    def plain(method):
        cfg = method.config()
        about = sources(cfg)
        return {k: said(v, about[k]) for k, v in as_stored(cfg).items()}
    def changed(world, preset):
        out = {m: {k: said(v, text) for k, (v, text) in changes(world, m, preset).items()} for m in METHODS}
        return {m: c for m, c in out.items() if c}
    def world(name, make):
        splits = {s: len(x.tasks) for s, x in make().family.splits.items() if s != 'eval'}
        return dict(about=ABOUT[name], form='ppo' if name in ROBOTS else 'a2c', splits=splits)
    return dict(
        worlds={k: world(k, make) for k, make in WORLDS.items()},
        methods={k: dict(about=e.about, a2c=plain(e.method), ppo=plain(e.ppo)) for k, e in METHODS.items()},
        presets={p: ABOUT[p] for w in WORLDS for p in presets_of(w)},
        usual={w: {p: usual(w, p) for p in presets_of(w)} for w in WORLDS},
        changes={w: {p: changed(w, p) for p in presets_of(w)} for w in WORLDS},
        choices=CHOICES, texts=list(texts))

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
