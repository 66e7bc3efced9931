"Every page keeps the rules of layout, and the linter notices each breach of them."
import json

import pytest
import nb as editor
from build import NBS, pages
from lint import lint


@pytest.mark.parametrize('f', pages(), ids=lambda f: str(f.relative_to(NBS)))
def test_page(f): assert not lint(f)


GOOD = '''# %% [markdown] title
# Nets

> Layers.

# %% exp
#| default_exp nets

# %% hidden
#| hide
from fastcore.test import *

# %% imports
#| export
import math
from ldm_nb.core import zero

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
    for f in ('00_core', '02_late'): editor.save(dict(editor.NEW), nbs/f'{f}.ipynb')
    def check(old='', new='', name='01_nets', outputs=(), size=0):
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
    'split title':    (('\n\n> Layers.', '\n\n# %% [markdown] sub\n> Layers.'), 'title', 'one markdown cell'),
    'module name':    (('default_exp nets', 'default_exp net'), 'exp', 'default_exp nets'),
    'import right':   (('ldm_nb.core', 'ldm_nb.late'), 'imports', 'page 01 may not import ldm_nb.late, page 02'),
    'import self':    (('# %% lesson', '# %% x\nimport ldm_nb.nets\n\n# %% lesson'), 'x', 'may not import ldm_nb.nets'),
    'import inside':  (('return zero() + 1', 'import ldm_nb.late'), 'def1', 'may not import ldm_nb.late'),
    'import relative': (('from ldm_nb.core import', 'from .late import'), 'imports', 'may not import ldm_nb.late'),
    'import unknown': (('ldm_nb.core', 'ldm_nb.cores'), 'imports', 'comes from no numbered page'),
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
    'to do':          (('A function.', 'A function (TODO: more).'), 'words', 'TODO'),
}

@pytest.mark.parametrize('change,cell,message', BREACHES.values(), ids=BREACHES)
def test_breach(check, change, cell, message):
    found = check(*change)
    assert len(found) == 1 and f'01_nets.ipynb cell {cell}: ' in found[0] and message in found[0], found

KEPT = {
    'the page itself': ('', ''),
    'prose between':   ('# %% def2', '# %% [markdown]\nAnother.\n\n# %% def2'),
    'imports between': ('# %% def2', '# %%\n#| export\nimport sys\n\n# %% def2'),
    'shell line':      ('\ntwo()\n', '\n#| eval: false\n!ldm train gridworld\n'),
    'url':             ('A function.', 'See https://example.com/home/x and [a](../data/tmp/x) and runs/tmp.'),
    'doctest word':    ('return zero() + 1', 'return pprint(1)'),
}

@pytest.mark.parametrize('change', KEPT.values(), ids=KEPT)
def test_kept(check, change): assert not check(*change)

def test_output_path(check):
    for o in (dict(output_type='stream', name='stdout', text=['saved to /tmp/run\n']),
              dict(output_type='display_data', metadata={}, data={'text/html': '<a href="/root/x">'})):
        assert 'one machine in the output, /' in check(outputs=[o])[0]

def test_size(check): assert '300 kB, at most 300' in check(size=299_000)[0] and not check(size=290_000)

def test_number(check):
    assert 'give the page its number' in check(name='nets')[0]
    for free in ('index', 'results/fig4'): assert not check('ldm_nb.core', 'ldm_nb.late', name=free)
