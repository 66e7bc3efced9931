"The site builds without a warning, and a link that leads nowhere stops it."
import pytest
import nb as editor
from build import MARK, Names, alternative, build, dead_links, named, pages

pytestmark = pytest.mark.xdist_group('site')

CORE = '''# %% [markdown] title
# Core

> Zeros.

# %% exp
#| default_exp core.zeros

# %% [markdown] words
> **Skip this on a first reading.** All that the story needs is:
> `zero` equals 0.

## Zero

What `zero` gives; see [results](../results/900_fig4.ipynb) and the [data](../../data/x.csv). $$x^2$$

# %% def
#| export
def zero():
    "Nothing"
    return 0

# %% lesson
zero()
'''
BELIEF = '''# %% [markdown] title
# Posterior

> After [Core](../core/010_zeros.ipynb).

# %% exp
#| default_exp belief.posterior
'''
FIG = '''# %% [markdown] title
# Figure 4

> A picture.

# %% [markdown] words
Of `zero`, from [core](../core/010_zeros.ipynb#zero) and `ldm_nb.core.zeros`.
'''
INDEX = '''# %% [markdown] title
# ldm_nb

> A laboratory.

# %% [markdown] words
See [Core](core/010_zeros.ipynb).
'''

@pytest.fixture
def site(tmp_path):
    "Build four small pages, some of them changed"
    def site(*changes):
        (tmp_path/'data').mkdir()
        (tmp_path/'data/x.csv').write_text('1\n')
        for f, s in {'index': INDEX, 'core/010_zeros': CORE, 'belief/200_posterior': BELIEF, 'results/900_fig4': FIG}.items():
            p = tmp_path/f'nbs/{f}.ipynb'
            p.parent.mkdir(parents=True, exist_ok=True)
            for old, new in changes: s = s.replace(old, new)
            editor.save(editor.write(s, editor.NEW), p)
        return build(tmp_path/'out', tmp_path/'nbs'), tmp_path/'out'
    return site


def test_ours(tmp_path):
    assert not build(tmp_path/'site')
    assert not dead_links(tmp_path/'site')
    docs = {f.relative_to(tmp_path/'site').with_suffix('').as_posix() for f in (tmp_path/'site').rglob('*.html')}
    assert len(docs) >= len(pages()) and {'index', 'api', 'search'} <= docs

def test_small(site):
    bad, out = site()
    assert not bad
    core, fig = (out/'core/zeros.html').read_text(), (out/'results/fig4.html').read_text()
    assert 'id="ldm-nb-core-zeros-zero"' in core and 'href="#ldm-nb-core-zeros-zero"' in core and 'def' in core
    assert all(f'href="../core/zeros.html{a}"' in fig for a in ('#ldm-nb-core-zeros-zero', '#zero', ''))

def test_alternative():
    "A picture says in words what it shows: its option, or the caption below it"
    picture, caption = ({'cell_type': k, 'source': [s]} for k, s in (('code', 'draw()'), ('markdown', '**Figure.** Two `lines`.\n\nMore.')))
    assert alternative(picture, caption) == 'Two lines.'
    assert alternative(picture | dict(source=['#| fig-alt: "One line."\ndraw()']), caption) == 'One line.'
    assert alternative(picture, None) == alternative(picture, caption | dict(source=['Words.'])) == ''

def test_order(site):
    "The sidebar shows what a visitor wants first, then the method, what was found, and the machinery, which is marked"
    _, out = site()
    ix = (out/'index.html').read_text()
    ix = ix[ix.index('sidebar-tree'):]
    at = [ix.index(s) for s in ('Start<', 'Front page</a>', 'Method<', 'Posterior</a>', 'Findings<', 'Figure 4</a>', 'Reference<', 'api.html', 'Engine room: core<', f'Core {MARK}</a>')]
    assert at == sorted(at)

def test_skip(site):
    "What a first reading skips is said in a box, with all its words"
    core = (site()[1]/'core/zeros.html').read_text()
    box = core[core.index('class="skip admonition"'):]
    assert 0 < box.index('Skip this on a first reading') < box.index('All that the story needs') < box.index('equals 0') < box.index('<h2>')

def test_dead(site):
    "Every dead link is named with its page and cell, and nothing is built"
    bad, out = site(('](core/010_zeros.ipynb)', '](core/020_none.ipynb)'), ('.ipynb#zero', '.ipynb#one'),
                    ('data/x.csv', 'data/y.csv'), ('A laboratory.\n', 'A laboratory.\n\n![x](../data/x.png)\n'))
    for page, target in {'index.ipynb cell words': 'none', 'results/900_fig4.ipynb cell words': 'one',
                         'core/010_zeros.ipynb cell words': 'y.csv', 'index.ipynb cell title': 'x.png'}.items():
        assert any(page in l and target in l for l in bad), (page, bad)
    assert not out.exists()

def test_dead_html(site):
    "Also those in raw HTML, which Sphinx does not follow"
    bad, out = site(('See [Core]', '<a href="core/zeros.html#none">x</a> [Core]'))
    assert bad == ['index.html: dead link core/zeros.html#none'] and not out.exists()

def test_not_a_site(tmp_path):
    "A folder that holds something else is never replaced"
    (tmp_path/'x').write_text('mine')
    assert 'something else' in build(tmp_path)[0] and (tmp_path/'x').exists()

def test_named():
    def href(nm): return '#f' if nm == 'f' else None
    s = '# `f`\n`f` and `f()` and [`f`](x) and `g`\n```python\n`f`\n```\n'
    assert named(s, href) == '# `f`\n[`f`](#f) and [`f()`](#f) and [`f`](x) and `g`\n```python\n`f`\n```\n'

def test_names():
    "Where two pages export a name, it is linked on those pages only"
    n = Names()
    for k, mods in n.at.items():
        assert n.find(k) == ((mods[0], k) if len(mods) == 1 else None)
        assert all(n.find(k, m) == (m, k) for m in mods)
