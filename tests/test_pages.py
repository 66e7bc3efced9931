"Every page keeps the rules of layout, and the linter notices each breach of them."
import ast, re

import pytest
import nb as editor
from build import NBS, PARTS, cells, mechanics, number, pages, part, source
from lint import MOST, closure, lint, story


@pytest.mark.parametrize('f', pages(), ids=lambda f: str(f.relative_to(NBS)))
def test_page(f): assert not lint(f)


GOOD = '''# %% [markdown] title
# Nets

> Layers.

# %% [markdown] about
What layers are. Words and symbols: [glossary](../tour/990_glossary.ipynb).

# %% exp
#| default_exp belief.nets

# %% hidden
#| hide
from fastcore.test import *

# %% imports
#| export
import math
from ldm_nb.core.zeros import zero

# %% [markdown] words
A function.

# %% def1
#| export
def one(): return zero() + 1

# %% def2
#| export
def two(): return one() + one()

# %% lesson
two()
'''

@pytest.fixture
def check(tmp_path):
    "The linter's findings on a page that differs from a good one"
    nbs = tmp_path/'nbs'
    nbs.mkdir()
    for f in ('core/000_zeros', 'belief/220_late', 'lab/800_runs', 'lab/888_front', 'tour/990_glossary'):
        (nbs/f).parent.mkdir(exist_ok=True)
        editor.save(dict(editor.NEW), nbs/f'{f}.ipynb')
    def check(old='', new='', name='belief/210_nets', outputs=(), size=0):
        assert old in GOOD
        nb = editor.write(GOOD.replace(old, new, 1), editor.NEW)
        nb['cells'][-1]['outputs'] = [*outputs]
        if size: nb['metadata'] = dict(x='x'*size)
        f = nbs/f'{name}.ipynb'
        f.parent.mkdir(exist_ok=True)
        editor.save(nb, f)
        return lint(f, nbs)
    return check


X = '# %% x\n#| export\nx = 1\n\n# %% lesson'
BREACHES = {
    'title':          (('# Nets\n\n> Layers.', '# Nets'), 'title', '`> one sentence`'),
    'subtitle':       (('> Layers.', '> Layers. And more.'), 'title', 'one sentence on one line'),
    'subtitle lines': (('> Layers.', '> Layers\n> and more.'), 'title', 'one sentence on one line'),
    'split title':    (('\n\n> Layers.\n\n# %% [markdown] about', '\n\n# %% [markdown] sub\n> Layers.\n'), 'title', 'one markdown cell'),
    'module name':  (('default_exp belief.nets', 'default_exp nets'), 'exp', 'default_exp belief.nets'),
    'import right': (('ldm_nb.core.zeros', 'ldm_nb.belief.late'), 'imports', 'page 210 may not import ldm_nb.belief.late, page 220'),
    'import self':  (('# %% lesson', '# %% x\nimport ldm_nb.belief.nets\n\n# %% lesson'), 'x', 'may not import ldm_nb.belief.nets'),
    'import inside':  (('return zero() + 1', 'import ldm_nb.belief.late'), 'def1', 'may not import ldm_nb.belief.late'),
    'import relative': (('from ldm_nb.core.zeros import', 'from .late import'), 'imports', 'may not import ldm_nb.belief.late'),
    'import of a part': (('from ldm_nb.core.zeros import zero', 'from ldm_nb.belief import late'), 'imports', 'may not import ldm_nb.belief.late'),
    'import up':      (('from ldm_nb.core.zeros import', 'from ..belief.late import'), 'imports', 'may not import ldm_nb.belief.late'),
    'import front':   (('from ldm_nb.core.zeros import', 'from ldm_nb import'), 'imports', 'may not import ldm_nb.__init__, page 888'),
    'import unknown': (('ldm_nb.core.zeros', 'ldm_nb.core.ones'), 'imports', 'comes from no page'),
    'import mixed':   (('# %% lesson\n', '# %% lesson\nimport sys\n'), 'lesson', 'a cell of their own'),
    'no words':       (('# %% [markdown] words\nA function.\n', ''), 'def1', 'no words before'),
    'no lesson':      (('# %% lesson\ntwo()\n', ''), 'def2', 'no lesson after'),
    'hidden lesson':  (('# %% lesson\n', '# %% lesson\n#| hide\n'), 'def2', 'no lesson after'),
    'three':          (('# %% lesson', X), 'x', 'more than 2'),
    'three in prose': (('# %% lesson', '# %% [markdown]\nMore.\n\n' + X), 'x', 'more than 2'),
    'long export':    (('return zero() + 1', '(\n' + '    zero(),\n'*50 + ')'), 'def1', '52 lines, at most 50'),
    'long lesson':    (('\ntwo()\n', '\n' + 'two()\n'*16), 'lesson', '16 lines, at most 15'),
    'print':          (('return zero() + 1', 'print(1)'), 'def1', '`print(`'),
    'path':           (('A function.', 'See `/home/me/x.py`.'), 'words', 'one machine in the source, /home/me/x.py'),
    'two definitions': (('+ 1', '+ 1\n\ndef other(): pass'), 'def1', 'several definitions in one cell (one; other)'),
    'two constants': (('def one(): return zero() + 1', 'A = 1\nB = 2'), 'def1', 'several definitions'),
    'two classes':    (('def one(): return zero() + 1', 'class A: pass\n\nclass B:\n    a = A()'), 'def1', 'several definitions'),
    'by the way':     (('return zero() + 1', 'return 1\n\ndef other():\n    "Not like `one`"'), 'def1', 'several definitions'),
    'of that name':   (('def one(): return zero() + 1', 'x = 1\n\ndef one(x): return x'), 'def1', 'several definitions'),
    'inside':         (('def one(): return zero() + 1', 'if True:\n    def one(): pass\n    def other(): pass'), 'def1', 'several definitions'),
    'three helpers': (('+ 1', '+ 1\n\ndef h(): one()\n\ndef k(): one(), h()'), 'def1', 'several definitions'),
    'wide':           (('+ 1', '+ 1 # ' + 'x'*120), 'def1', '1 lines of more than 120 columns'),
    'link':           (('A function.', 'See [core](../core/010_zeros.ipynb#zero).'), 'words', 'a link to ../core/010_zeros.ipynb#zero'),
    'no glossary':    (('Words and symbols: [glossary](../tour/990_glossary.ipynb).', 'The end.'), 'about', 'end the second cell with `Words and symbols'),
    'jargon':         (('A function.', 'A dream of two workers.'), 'words', '"dream" is not the field\'s word: write imagined task'),
    'jargon beside':  (('zero() + 1', 'zero() + 1 # where they live'), 'def1', '"live" is not the field\'s word'),
    'jargon in docs': (('def one(): return zero() + 1', 'def one():\n    "Setting out"'), 'def1', '"setting out" is not'),
    'as in':          (('zero() + 1', 'zero() + 1 # as in `two`'), 'def1', 'the comment "as in `two`" says nothing'),
    'of':             (('zero() + 1', 'zero() + 1 # of `two`'), 'def1', 'the comment "of `two`" says nothing'),
    'settings':       (('zero() + 1', 'zero() + 1 # settings; where'), 'def1', 'the comment "settings; where" says nothing'),
    'composed':       (('two()\n', 'Markdown(f"It is {two()}.")\n'), 'lesson', 'a sentence composed by code'),
    'to do':          (('A function.', 'A function (TODO: more).'), 'words', 'TODO'),
}

@pytest.mark.parametrize('change,cell,message', BREACHES.values(), ids=BREACHES)
def test_breach(check, change, cell, message):
    found = check(*change)
    assert len(found) == 1 and f'belief/210_nets.ipynb cell {cell}: ' in found[0] and message in found[0], found

KEPT = {
    'the page itself': ('', ''),
    'prose between':   ('# %% def2', '# %% [markdown]\nAnother.\n\n# %% def2'),
    'imports between': ('# %% def2', '# %%\n#| export\nimport sys\n\n# %% def2'),
    'shell line':      ('\ntwo()\n', '\n#| eval: false\n!ldm train gridworld\n'),
    'url':             ('A function.', 'See https://example.com/home/x and [a](../data/tmp/x) and runs/tmp.'),
    'helper':          ('+ 1', '+ other()\n\ndef other(): pass'),
    'inverse':         ('return zero() + 1', 'return zero() + 1\n\ndef back():\n    "The inverse of `one`"'),
    'record':          ('def one(): return zero() + 1', 'class One: pass\n\ndef one(): return One()'),
    'constant':        ('def one(): return zero() + 1', 'A, B = 1, 2\n\nC = 3\n\ndef one(): return A + C'),
    'wide lesson':     ('\ntwo()\n', '\ntwo() # ' + 'x'*120 + '\n'),
    'link':            ('A function.', 'See [core](../core/000_zeros.ipynb#zero).'),
    'code names':      ('A function.', 'The key `live` and alive.'),
    'comment says':    ('zero() + 1', 'zero() + 1 # [S] numbers, of `two`'),
    'table':           ('\ntwo()\n', '\nMarkdown("\\n".join(["| a |", f"| {two()} |"]))\n'),
    'doctest word':    ('return zero() + 1', 'return pprint(1)'),
}

@pytest.mark.parametrize('change', KEPT.values(), ids=KEPT)
def test_kept(check, change): assert not check(*change)

def test_output_path(check):
    for o in (dict(output_type='stream', name='stdout', text=['saved to /tmp/run\n']),
              dict(output_type='display_data', metadata={}, data={'text/html': '<a href="/root/x">'})):
        assert 'one machine in the output, /' in check(outputs=[o])[0]

def test_size(check): assert 'kB, at most 300' in check(size=300_000)[0] and not check(size=289_000)

def test_number(check):
    "A page lies in the folder of its part and has a number of its own there"
    assert 'lies in the folder of its part' in check(name='210_nets')[0]
    assert 'lies in the folder of its part' in check(name='other/210_nets')[0]
    for bad in ('belief/nets', 'belief/310_nets', 'belief/20_nets'): assert 'give the page its number: 200_nets.ipynb to 299' in check(name=bad)[0]
    assert 'belief/220_late.ipynb has this number too' in check(name='belief/220_nets')[0]

def test_free(check):
    "The index imports from anywhere; so do pages of results, which export nothing"
    late = 'from ldm_nb.belief.late import zero'
    assert not [l for l in check('from ldm_nb.core.zeros import zero', late, name='index') if 'a link to ../tour' not in l]
    assert 'a page of results exports nothing' in check('default_exp belief.nets', 'default_exp results.nets', name='results/900_nets')[0]
    assert 'a page of recipes exports nothing' in check('default_exp belief.nets', 'default_exp recipes.nets', name='recipes/970_nets')[0]

@pytest.mark.parametrize('new', ['from ldm_nb.lab.runs import zero', 'from ldm_nb import lab', 'import ldm_nb.lab', 'from .. import lab', 'from ..lab.runs import zero',
                                 'from importlib import import_module\nimport_module("ldm_nb.lab.runs")', 'import ldm_nb\nldm_nb.lab.runs'])
def test_story(check, new):
    "The story imports nothing of the laboratory, whatever the numbers and the way"
    assert any('belief uses nothing of the laboratory: ldm_nb.lab' in l for l in check('from ldm_nb.core.zeros import zero', new))

def test_parts():
    "Every page but the index has a number, and the numbers run with the parts"
    fs = pages()
    assert fs[0].stem == 'index' and all(number(f) is not None for f in fs[1:])
    assert [number(f) for f in fs[1:]] == sorted({number(f) for f in fs[1:]})
    assert list(dict.fromkeys(map(part, fs[1:]))) == list(PARTS)

def test_index():
    "The index links to every page once, in the order of reading; bold is what LDM needs, and mechanics are marked"
    md = next(source(c) for c in cells(NBS/'index.ipynb') if source(c).startswith('## The pages'))
    assert 'seventeen pages' in md and len(closure()) == 17
    found = re.findall(r'(\*\*)?\[[^]]+\]\(([\w/-]+\.ipynb)\)(\*\*)?( ⚙)?', md)
    assert [u for _, u, *_ in found] == [f.relative_to(NBS).as_posix() for f in pages()[1:]]
    assert [u for b, u, *_ in found if b] == [f.relative_to(NBS).as_posix() for f in closure()]
    assert [u for *_, u, _, m in found if m] == [f.relative_to(NBS).as_posix() for f in pages()[1:] if mechanics(f)]

def test_idea_first():
    "`elbo` and its plain form stand in the first third of their page, of its cells and of its lines"
    cs = [source(c) for c in cells(NBS/'belief/230_elbo.ipynb')]
    at = [next(i for i, s in enumerate(cs) if f'def {name}(' in s) for name in ('elbo_naive', 'elbo')]
    lines = [len(s.splitlines()) for s in cs]
    assert at == sorted(at) and 3*(at[1] + 1) <= len(cs) and 3*sum(lines[:at[1]]) <= sum(lines)

def test_closure():
    "LDM on the gridworld needs at most 17 pages, none of the laboratory and none of mechanics"
    names = [f'{part(f)}.{f.stem[4:]}' for f in closure()]
    assert {'core.seeds', 'belief.elbo', 'mixture.mixture', 'methods.rl2', 'methods.ldm'} <= set(names) and len(names) <= MOST
    assert not any(map(mechanics, closure())) and not any(n.startswith(('lab.', 'evaluation.')) for n in names)
    said, short = story()
    assert short and f'need {len(names)} pages' in said and 'belief/230_elbo' in said

def test_closure_grows(tmp_path):
    "What a page imports counts, also by way of mechanics, which do not count themselves"
    box = '# %% [markdown]\n# M\n> M.\n\n# %% [markdown]\n> **Skip this on a first reading.** It equals one.\n\n'
    def exports(*mods): return '# %%\n#| export\n' + '\n'.join(f'import ldm_nb.{m}' for m in mods) + '\n'
    for f, txt in {'core/000_a': exports(), 'core/010_m': box + exports('core.a'), 'core/020_b': exports(), 'worlds/100_g': exports(),
                   'methods/700_l': exports('core.m') + '\n# %%\nimport ldm_nb.core.b\n'}.items():
        (tmp_path/f).parent.mkdir(exist_ok=True)
        editor.save(editor.write(txt, editor.NEW), tmp_path/f'{f}.ipynb')
    assert [f.stem for f in closure(('methods.l', 'worlds.g'), tmp_path)] == ['000_a', '100_g', '700_l']

def shown_value(cell):
    "Does a cell end in a value to show: a name, a table or a figure?"
    text = source(cell)
    if cell['cell_type'] != 'code' or '#| slow' in text or re.search(r'^#\| (hide|export)$', text, re.M): return False
    try: *_, last = ast.parse('\n'.join(l for l in text.splitlines() if l[:2] != '#|')).body
    except (SyntaxError, ValueError): return False
    value = getattr(last, 'value', None)
    return isinstance(last, ast.Expr) and (isinstance(value, ast.Name) or isinstance(value, ast.Call) and getattr(value.func, 'id', '') == 'Markdown')

@pytest.mark.parametrize('f', pages(), ids=lambda f: str(f.relative_to(NBS)))
def test_outputs(f):
    "No page has lost a table or a figure: a merge or an edit drops the outputs of a cell, and only a run brings them back"
    assert not [c['id'] for c in cells(f) if shown_value(c) and not c['outputs']]
