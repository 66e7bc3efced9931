#!/usr/bin/env python
"""Check the layout of pages: `python nbs/_site/lint.py [PAGE...]`, all of them by default.

CONTRIBUTING.md lists the rules. A finding names the page, the cell and what to do.
"""
import ast, io, json, re, sys, tokenize
from pathlib import Path
from build import LIB, NBS, PARTS, code, exported, imports_only, is_import, mechanics, module, number, options, pages, part, relative, shown, source, stem, tree

EXPORT, LESSON, RUN, SIZE, WIDE = 50, 15, 2, 300_000, 120   # lines, lines, exported cells to a lesson, bytes, columns
STORY = PARTS[:PARTS.index('lab')]                          # parts that import nothing of the laboratory
BARE = 'results', 'recipes', 'tour'                                 # parts that export nothing
CLOSURE, MOST = ('methods.ldm', 'worlds.gridworld'), 17     # pages that a reader of LDM needs, mechanics left out
TITLE = re.compile(r'# \S.*\n+> (\S.*(?:\n>.*)*)')
GLOSSARY = re.compile(r'Words and symbols: \[glossary\]\((?:\.\./tour/)?990_glossary\.ipynb\)\.$')
JARGON = {'live': 'interact, train', 'lives': 'acts', 'lived': 'acted in', 'living': 'acting', 'dream': 'imagined task', 'dreams': 'imagined tasks',
          'dreamt': 'imagined', 'asleep': 'suspended', 'setting out': 'start', 'books': 'records', 'some_of': 'a name that says of what'}
EMPTY = re.compile(r'(?:as in|see) `[\w.]+`(?: in `?\w+`?)?$|settings; where$|of `\w+`$')  # comments that say nothing of shape or meaning
PATH = re.compile(r'(?<![\w.~:/})*-])/(?:root|home|work|tmp|mnt|opt|var|Users|usr/(?:local|lib))\b[\w./-]*')


def modules(c, f):
    "Modules of the package that a cell of page `f` imports, wherever in it"
    whole = [LIB, *(f'{LIB}.{p}' for p in PARTS)]  # packages, whose names are modules
    for n in ast.walk(tree(c)):
        if isinstance(n, ast.Import): names = [a.name for a in n.names]
        elif isinstance(n, ast.ImportFrom):
            base = ['', f'{LIB}.{part(f)}', LIB][n.level]
            mod = '.'.join(x for x in (base, n.module) if x)
            names = [f'{mod}.{a.name}' for a in n.names] if mod in whole else [mod]
            if mod == LIB: names = [nm if nm in whole or a.name.startswith('_') else f'{LIB}.__init__' for nm, a in zip(names, n.names)]
        else: continue
        yield from (nm[len(LIB)+1:] for nm in names if nm.startswith(LIB+'.'))

def bound(n):
    "Names that a function binds for itself: its arguments and what it assigns"
    if not isinstance(n, (ast.FunctionDef, ast.Lambda)): return set()
    inside = {x.id for x in ast.walk(n) if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store)}
    return inside | {a.arg for x in ast.walk(n) if isinstance(x, ast.arguments) for a in (*x.posonlyargs, *x.args, *x.kwonlyargs)}

def definitions(c):
    "What an exported cell defines, one by one: its names, the names it uses or is the inverse of, its kind"
    todo = list(tree(c).body)
    while todo:
        n = todo.pop(0)
        if is_import(n): continue
        if isinstance(n, (ast.If, ast.Try, ast.With, ast.For, ast.While)) and any(isinstance(x, (ast.FunctionDef, ast.ClassDef)) for x in ast.walk(n)):
            todo = [x for x in ast.iter_child_nodes(n) if isinstance(x, ast.stmt)] + todo
            continue
        targets = n.targets if isinstance(n, ast.Assign) else [n.target] if isinstance(n, (ast.AnnAssign, ast.AugAssign)) else []
        names = {x.id for t in targets for x in ast.walk(t) if isinstance(x, ast.Name)} | {getattr(n, 'name', '')} - {''}
        said = {x.id for x in ast.walk(n) if isinstance(x, ast.Name)} - bound(n)
        doc = ast.get_docstring(n) or '' if isinstance(n, (ast.FunctionDef, ast.ClassDef)) else ''
        said |= set(re.findall(r'inverse of `(\w+)`', doc))
        yield names, said, {ast.FunctionDef: 'function', ast.ClassDef: 'class'}.get(type(n), '')


# Each rule takes a page and gives pairs of a cell (or None) and what to do

def title(f, nb, nbs):
    c = next(filter(shown, nb['cells']), None)
    m = c and c['cell_type'] == 'markdown' and TITLE.match(source(c))
    if not m: yield c, 'begin the page with one markdown cell: `# Title`, then `> one sentence`'
    elif re.search(r'\n|[.!?]\s+[A-Z]', m[1]): yield c, 'make the `>` subtitle one sentence on one line'

def name(f, nb, nbs):
    if f.parent == nbs and f.stem == 'index': return
    k = PARTS.index(part(f)) if f.parent.parent == nbs and part(f) in PARTS else None
    if k is not None: k = min(k, 9)  # results, recipes and tour share the last hundred
    if k is None: yield None, f'a page lies in the folder of its part: {", ".join(PARTS)}'
    elif number(f) is None or number(f)//100 != k: yield None, f'give the page its number: {k}00_{stem(f)}.ipynb to {k}99'
    for p in pages(nbs):
        if p != f and number(p) == number(f) is not None: yield None, f'{p.relative_to(nbs)} has this number too'
    for c in nb['cells']:
        for o in options(c):
            if o.startswith('default_exp') and o.split()[1:] != [module(f)]:
                yield c, f'a page makes the module of its name: `#| default_exp {module(f)}`'
            if part(f) in BARE and o.startswith('export'): yield c, f'a page of {part(f)} exports nothing'

def imports(f, nb, nbs):
    n, num = number(f), {module(p): number(p) for p in pages(nbs)}
    for c in nb['cells']:
        used = list(modules(c, f))
        lab = [m for m in used if m.split('.')[0] == 'lab'] or re.findall(rf'{LIB}\.(lab\b[.\w]*)', code(c))  # or by another way
        if part(f) in STORY and lab: yield c, f'{part(f)} uses nothing of the laboratory: {LIB}.{lab[0]}'
        for m in used:
            if m.startswith('_') and m != '__init__' or m in PARTS: continue
            if m not in num: yield c, f'{LIB}.{m} comes from no page; import what a page exports'
            elif n is not None and num[m] >= n:
                yield c, (f'imports run from lower to higher numbers: page {n:03} may not import {LIB}.{m}, page {num[m]:03}; '
                          'move the definition to a lower page')
        mixed = any(map(is_import, tree(c).body)) and not imports_only(c)
        if mixed and not exported(c) and 'nbdev_export(' not in code(c):
            yield c, 'imports mixed with other code; give them a cell of their own'

def one(f, nb, nbs):
    "An exported cell holds one definition, or a function with a helper, an inverse, constants or the record it makes or takes"
    for c in filter(exported, nb['cells']):
        found = list(definitions(c))
        names = [', '.join(sorted(x)) or 'a statement' for x, *_ in found]
        def tied(a, b): return bool(a[0] & b[1] or b[0] & a[1])
        kinds = sorted(k for *_, k in found if k)
        pair = any(all(a is b or tied(a, b) for b in found) for a in found) and len(kinds) in (1, 2) and kinds != ['class', 'class']
        if len(found) > 1 and not pair:
            yield c, f'several definitions in one cell ({"; ".join(names)}): only a function with its helper, inverse, constants or record may share one'

def order(f, nb, nbs):
    "Words before every one or two exported cells, a lesson after them; imports do not count"
    prose, run = False, []
    end = dict(cell_type='end', source='')
    for c in [*filter(shown, nb['cells']), end][2:]:  # after the title and what the page is about
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
        if not exported(c) and shown(c) and not imports_only(c) and n > LESSON:
            yield c, f'a lesson of {n} lines, at most {LESSON}: split it, or export a helper'
        wide = [l for l in code(c).splitlines() if len(l) > WIDE] if exported(c) else []
        if wide: yield c, f'{len(wide)} lines of more than {WIDE} columns, the first begins with: {wide[0].strip()[:40]}'
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

def comments(c):
    "Comments of a code cell, without `#`, and the docstrings of its definitions"
    try: found = [t.string.lstrip('# ') for t in tokenize.generate_tokens(io.StringIO(code(c)).readline) if t.type == tokenize.COMMENT]
    except (tokenize.TokenError, SyntaxError): found = []  # a cell of magics
    return found, [d for n in ast.walk(tree(c)) if isinstance(n, (ast.FunctionDef, ast.ClassDef)) if (d := ast.get_docstring(n))]

def language(f, nb, nbs):
    "The field's words, comments that say something, sentences written by hand, and the glossary at the end of the second cell"
    for c in nb['cells']:
        beside, docs = comments(c) if c['cell_type'] == 'code' else ([], [source(c)])
        for w, better in JARGON.items():
            if any(re.search(rf'(?<![\w`])(?i:{w})(?![\w`])', t) for t in beside + docs): yield c, f'"{w}" is not the field\'s word: write {better}'
        for t in beside:
            if EMPTY.match(t): yield c, f'the comment "{t}" says nothing: name the thing, its shape and its unit'
        if c['cell_type'] == 'code' and re.search(r'Markdown\(\s*f[\'"]', source(c)):
            yield c, 'a sentence composed by code: write it by hand and assert its number'
    if f.parent == nbs or part(f) not in PARTS or stem(f) == 'glossary': return
    second = [c for c in nb['cells'] if shown(c)][1:2]
    if not second or second[0]['cell_type'] != 'markdown' or not GLOSSARY.search(source(second[0]).rstrip()):
        yield (second or [None])[0], 'end the second cell with `Words and symbols: [glossary](../tour/990_glossary.ipynb).`'

def links(f, nb, nbs):
    "Pages that the words link to have this very name, number and all (the site leaves the numbers out; JupyterLab does not)"
    for c in nb['cells']:
        for u in relative(source(c)) if c['cell_type'] == 'markdown' else ():
            if '.ipynb' in u and not (f.parent/u.split('#')[0]).exists(): yield c, f'a link to {u}, which is not there: has the page moved?'

def size(f, nb, nbs):
    if (n := f.stat().st_size) >= SIZE: yield None, f'{n/1000:.0f} kB, at most {SIZE//1000}: fewer or smaller pictures'


def lint(f, nbs=NBS):
    "What is wrong with page `f`, as lines of text; `nbs` is the folder of the pages"
    f, nbs = Path(f).resolve(), Path(nbs).resolve()
    nb = json.loads(f.read_text(encoding='utf-8'))
    found = [x for rule in (title, name, imports, one, order, lengths, words, language, links, size) for x in rule(f, nb, nbs)]
    at = f.relative_to(nbs.parent) if f.is_relative_to(nbs) else f
    return [f"{at}{' cell ' + c['id'] if c else ''}: {msg}" for c, msg in found]


def closure(begin=CLOSURE, nbs=NBS):
    "Pages that the modules of `begin` import, and what these import, in reading order; themselves too, mechanics left out"
    page = {module(p): p for p in pages(nbs)}
    def needs(p): return {m for c in json.loads(p.read_text(encoding='utf-8'))['cells'] if exported(c) for m in modules(c, p) if m in page}
    seen, todo = set(), list(begin)
    while todo:
        if (m := todo.pop()) not in seen: seen.add(m); todo += needs(page[m])
    return [p for p in pages(nbs) if module(p) in seen and not mechanics(p)]

def story(nbs=NBS):
    "Lines about `closure`, and whether it is short enough"
    ps = closure(nbs=nbs)
    lines = sum(len(code(c).splitlines()) for p in ps for c in json.loads(p.read_text(encoding='utf-8'))['cells'] if exported(c))
    names = [p.relative_to(nbs).with_suffix('').as_posix() for p in ps]
    return f'{" and ".join(CLOSURE)} need {len(ps)} pages ({lines} lines), mechanics left out: {", ".join(names)}', len(ps) <= MOST


if __name__ == '__main__':
    fs = sys.argv[1:] or pages()
    bad = [l for f in fs for l in lint(f)]
    if not sys.argv[1:]:
        said, short = story()
        print(said)
        if not short: bad.append(f'more than {MOST} pages stand before LDM: move what it does not need')
    print('\n'.join(bad) or f'{len(fs)} pages, nothing to mend')
    sys.exit(bool(bad))
