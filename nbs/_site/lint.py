#!/usr/bin/env python
"""Check the layout of pages: `python nbs/_site/lint.py [PAGE...]`, all of them by default.

CONTRIBUTING.md lists the rules. A finding names the page, the cell and what to do.
"""
import ast, json, re, sys
from pathlib import Path
from build import LIB, NBS, code, exported, module, options, pages, shown, source, stem

EXPORT, LESSON, RUN, SIZE = 50, 15, 2, 300_000   # lines, lines, exported cells to a lesson, bytes
TITLE = re.compile(r'# \S.*\n+> (\S.*(?:\n>.*)*)')
PATH = re.compile(r'(?<![\w.~:/})*-])/(?:root|home|work|tmp|mnt|opt|var|Users|usr/(?:local|lib))\b[\w./-]*')


def number(f, nbs):
    "Place of a page in the order of imports; None where any import is allowed (the index, results)"
    m = re.match(r'(\d+)[a-z]?_', f.name)
    return int(m[1]) if m and f.parent == nbs else None

def tree(c):
    "Syntax tree of a cell, shell lines and magics left out; empty where it does not parse"
    try: return ast.parse(re.sub(r'^(\s*)[!%].*$', r'\1pass', code(c), flags=re.M) if c['cell_type'] == 'code' else '')
    except SyntaxError: return ast.Module([], [])

def is_import(n):
    return isinstance(n, (ast.Import, ast.ImportFrom)) or isinstance(n, ast.Try) and all(map(is_import, n.body))

def imports_only(c): return bool(tree(c).body) and all(map(is_import, tree(c).body))

def modules(c):
    "Modules of the package that a cell imports, wherever in it"
    for n in ast.walk(tree(c)):
        if isinstance(n, ast.Import): names = [a.name for a in n.names]
        elif isinstance(n, ast.ImportFrom):
            mod = '.'.join([LIB]*bool(n.level) + [n.module]*bool(n.module))
            names = [f'{mod}.{a.name}' for a in n.names] if mod == LIB else [mod]
        else: continue
        yield from (nm.split('.')[1] for nm in names if nm.startswith(LIB+'.'))


# Each rule takes a page and gives pairs of a cell (or None) and what to do

def title(f, nb, nbs):
    c = next(filter(shown, nb['cells']), None)
    m = c and c['cell_type'] == 'markdown' and TITLE.match(source(c))
    if not m: yield c, 'begin the page with one markdown cell: `# Title`, then `> one sentence`'
    elif re.search(r'\n|[.!?]\s+[A-Z]', m[1]): yield c, 'make the `>` subtitle one sentence on one line'

def name(f, nb, nbs):
    if number(f, nbs) is None:
        if f.parent == nbs and f.stem != 'index': yield None, 'give the page its number: NN_name.ipynb'
        return
    for c in nb['cells']:
        for o in options(c):
            if o.startswith('default_exp') and o.split()[1:] != [module(f)]:
                yield c, f'a page makes the module of its name: `#| default_exp {module(f)}`'

def imports(f, nb, nbs):
    n, num = number(f, nbs), {stem(p): k for p in pages(nbs) if (k := number(p, nbs)) is not None}
    for c in nb['cells']:
        for m in modules(c):
            if m.startswith('_'): continue
            if m not in num: yield c, f'{LIB}.{m} comes from no numbered page; import what a page exports'
            elif n is not None and num[m] >= n:
                yield c, (f'imports run left to right: page {n:02} may not import {LIB}.{m}, page {num[m]:02}; '
                          'move the definition to a lower page')
        mixed = any(map(is_import, tree(c).body)) and not imports_only(c)
        if mixed and not exported(c) and 'nbdev_export(' not in code(c):
            yield c, 'imports mixed with other code; give them a cell of their own'

def order(f, nb, nbs):
    "Words before every one or two exported cells, a lesson after them; imports do not count"
    prose, run = False, []
    end = dict(cell_type='end', source='')
    for c in [*filter(shown, nb['cells']), end][1:]:  # after the title
        if c['cell_type'] == 'markdown': prose = True
        elif imports_only(c) or code(c).startswith('show_doc('): continue
        elif exported(c):
            run.append(c)
            if not prose: yield c, 'no words before this definition: add a markdown cell above it'; prose = True
            if len(run) == RUN+1: yield c, f'more than {RUN} exported cells without a lesson: add one before this'
        else:
            if run and c is end: yield run[-1], 'no lesson after this definition: add a code cell that uses it'
            prose, run = False, []

def lengths(f, nb, nbs):
    for c in nb['cells']:
        if c['cell_type'] != 'code': continue
        n = len(code(c).rstrip().splitlines())
        if exported(c) and n > EXPORT: yield c, f'an exported cell of {n} lines, at most {EXPORT}: split the definition'
        if not exported(c) and shown(c) and n > LESSON:
            yield c, f'a lesson of {n} lines, at most {LESSON}: split it, or export a helper'
        if exported(c) and re.search(r'(?<![\w.])print\(', code(c)):
            yield c, '`print(` in an exported cell: return the value and let the lesson show it'

def texts(c):
    "The source of a cell and the text of its outputs"
    yield 'source', source(c)
    for o in c.get('outputs', []):
        yield 'output', '\n'.join([''.join(o.get('text', '')), *o.get('traceback', [])])
        for k, v in o.get('data', {}).items():
            if not re.match('image/(?!svg)', k): yield 'output', v if isinstance(v, str) else json.dumps(v)

def words(f, nb, nbs):
    for c in nb['cells']:
        for where, t in texts(c):
            if m := PATH.search(t): yield c, f'a path of one machine in the {where}, {m[0]}: make it relative'
        if m := re.search(r'\b(TODO|FIXME)\b', source(c)): yield c, f'{m[0]}: do it or drop it'

def size(f, nb, nbs):
    if (n := f.stat().st_size) >= SIZE: yield None, f'{n/1000:.0f} kB, at most {SIZE//1000}: fewer or smaller pictures'


def lint(f, nbs=NBS):
    "What is wrong with page `f`, as lines of text; `nbs` is the folder of the pages"
    f, nbs = Path(f).resolve(), Path(nbs).resolve()
    nb = json.loads(f.read_text(encoding='utf-8'))
    found = [x for rule in (title, name, imports, order, lengths, words, size) for x in rule(f, nb, nbs)]
    at = f.relative_to(nbs.parent) if f.is_relative_to(nbs) else f
    return [f"{at}{' cell ' + c['id'] if c else ''}: {msg}" for c, msg in found]


if __name__ == '__main__':
    fs = sys.argv[1:] or pages()
    bad = [l for f in fs for l in lint(f)]
    print('\n'.join(bad) or f'{len(fs)} pages, nothing to mend')
    sys.exit(bool(bad))
