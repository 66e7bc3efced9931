#!/usr/bin/env python
"""Build the site from the pages: `python nbs/_site/build.py [--out DIR]` makes `_docs/`, offline.

A page is taken as it stands in git: its outputs are the saved ones, nothing is run or imported (only the belief theatre
imports the package: its robots play when the site is built). Here it becomes a MyST
notebook (hidden cells left out, back-quoted names linked to their definitions), and Sphinx makes the site. Warnings are
errors, and so is a link inside the site that leads nowhere.
"""
import argparse, ast, html, json, os, posixpath, re, shutil, subprocess, sys, tempfile
from collections import defaultdict
from configparser import ConfigParser
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

HERE = Path(__file__).resolve().parent
THEATRE = HERE/'theatre'
NBS, ROOT = HERE.parent, HERE.parents[1]
cp = ConfigParser(); cp.read(ROOT/'settings.ini', encoding='utf-8')
CFG = cp['DEFAULT']
LIB = CFG['lib_path']
TAGS = {'echo: false': 'remove-input', 'hide_input': 'remove-input', 'output: false': 'remove-output',
        'hide_output': 'remove-output', 'code-fold: true': 'hide-input'}
META = dict(kernelspec=dict(name='python3', display_name='python3'),
            language_info=dict(name='python', pygments_lexer='ipython3'))
FENCE = re.compile(r'^(`{3,}|~{3,}).*?^\1`*\s*$', re.M | re.S)


# Pages and cells, also for readme.py and lint.py

PARTS = ('core', 'worlds', 'belief', 'policy', 'mixture', 'training', 'evaluation', 'methods', 'lab', 'results', 'recipes', 'tour')  # in reading order
TOP = dict(main='__main__', front='__init__')  # pages of `lab` that make modules of the package itself
START = 'theatre', 'tour/tour', 'recipes/tutorial', 'recipes/install'    # first in the sidebar, after the front page
ROOMS = 'core', 'worlds', 'belief', 'policy', 'training', 'evaluation', 'methods', 'lab'  # of the engine room
FIRST = 'results/what-generalises', 'results/why', 'results/gridworld', 'results/locomotion'
HOW_TO = ('recipes/world', 'recipes/method', 'recipes/sweep', 'recipes/pandas', 'recipes/gymnasium', 'recipes/imagined', 'recipes/trackers',
          'recipes/cluster', 'recipes/plan', 'recipes/questions', 'recipes/weights')
OPEN = 'results/extrapolation', 'results/mixture-workers'  # experiments whose runs are not recorded yet
TOOLS = 'check', 'pictures', 'animation', 'imagined_worlds', 'motion', 'records', 'compare'  # pages for the engine room beside mechanics
SHOWN = {  # label in the belief theatre -> networks of data/weights
    'LDM, one goal (ours)': ['gridworld-ldm-one-goal'], 'LDM': ['gridworld-ldm', 'cheetah-vel-ldm-reduced', 'ant-dir-ldm-reduced', 'ant-goal-ldm-reduced'],
    'variBAD': ['gridworld-varibad', 'cheetah-vel-varibad-reduced'], 'Mixreg': ['gridworld-mixreg', 'cheetah-vel-mixreg-reduced'],
    'RL²': ['gridworld-rl2-full', 'cheetah-vel-rl2-reduced', 'ant-dir-rl2-reduced', 'ant-goal-rl2-reduced'], 'PEARL': ['cheetah-vel-pearl-reduced']}
REFERENCE = 'recipes/commands', 'recipes/settings', 'worlds/envs', 'api', 'tour/glossary', 'results/deviations', 'tour/changelog'
SKIP = '> **Skip this on a first reading.**'   # how a page of mechanics begins
MARK = '⚙'                                     # of such pages in the sidebar

def stem(f): return re.sub(r'^\d+_', '', Path(f).stem)
def part(f): return Path(f).parent.name        # of a page in a part's folder
def module(f): return TOP.get(stem(f), f'{part(f)}.{stem(f)}')  # what a page makes

def number(f):
    "Place of a page in the order of reading and of imports; None for the index, and for a page without a number"
    m = re.match(r'(\d+)_', Path(f).name)
    return int(m[1]) if m else None

def pages(nbs=NBS):
    "The index, then all pages by their numbers, whatever folder they lie in"
    fs = [f for f in Path(nbs).rglob('*.ipynb') if not any(p[0] in '_.' for p in f.relative_to(nbs).parts)]
    return sorted(fs, key=lambda f: (f.stem != 'index', number(f) is None, number(f) or 0, f.as_posix()))
def source(c): return ''.join(c['source'])
def options(c): return [o for l in source(c).splitlines() if l.startswith('#|') and (o := l[2:].strip())]
def code(c): return '\n'.join(l for l in source(c).splitlines() if not l.startswith('#|')).strip('\n')
def flags(c): return {o.split()[0] for o in options(c)} if c['cell_type'] == 'code' else set()
def exported(c): return bool(flags(c) & {'export', 'exporti', 'exports'})

def tree(c):
    "Syntax tree of a cell, shell lines and magics left out; empty where it does not parse"
    try: return ast.parse(re.sub(r'^(\s*)[!%].*$', r'\1pass', code(c), flags=re.M) if c['cell_type'] == 'code' else '')
    except SyntaxError: return ast.Module([], [])

def is_import(n):
    return isinstance(n, (ast.Import, ast.ImportFrom)) or isinstance(n, ast.Try) and all(map(is_import, n.body))

def imports_only(c): return bool(tree(c).body) and all(map(is_import, tree(c).body))

def shown(c):
    "Does the reader see this cell?"
    if c['cell_type'] == 'raw' or 'nbdev_export(' in source(c): return False
    if c['cell_type'] == 'markdown': return bool(source(c).strip())
    if flags(c) & {'hide', 'default_exp'} or 'include: false' in options(c): return False
    return bool(code(c).strip() or c.get('outputs'))

def mechanics(f):
    "Is it a page of mechanics, which a first reading skips?"
    words = [c for c in json.loads(Path(f).read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'markdown']
    return len(words) > 1 and source(words[1]).startswith(SKIP)

def cells(f): return [c for c in json.loads(Path(f).read_text(encoding='utf-8'))['cells'] if shown(c)]

def defined(c):
    "Public names an exported cell defines -> first line of their docstrings"
    for n in ast.parse(code(c)).body:
        if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)): names = [n.name]
        elif isinstance(n, (ast.Assign, ast.AnnAssign)):
            ts = n.targets if isinstance(n, ast.Assign) else [n.target]
            names = [x.id for t in ts for x in (t.elts if isinstance(t, ast.Tuple) else [t]) if isinstance(x, ast.Name)]
        else: continue
        doc = '' if isinstance(n, (ast.Assign, ast.AnnAssign)) else ast.get_docstring(n) or ''
        for nm in names:
            if not nm.startswith('_'): yield nm, doc.split('\n')[0].rstrip('.')

def signatures(c):
    "Functions and classes an exported cell defines -> their arguments in brackets, without types; records without"
    for n in ast.parse(code(c)).body:
        if not isinstance(n, ast.FunctionDef): continue
        for a in ast.walk(n.args):
            if isinstance(a, ast.arg): a.annotation = None
        yield n.name, f'({ast.unparse(n.args)})'

def outside(s, fn):
    "Apply `fn` to the markdown `s` outside its fenced blocks"
    out, i = [], 0
    for m in FENCE.finditer(s):
        out += [fn(s[i:m.start()]), m[0]]
        i = m.end()
    return ''.join(out) + fn(s[i:])

def named(s, href):
    "Link back-quoted names: `href(name)` is where a name is defined, or None"
    def link(m): return f'[{m[0]}]({h})' if (h := href(m[1])) else m[0]
    def line(l): return l if l.startswith('#') else re.sub(r'(?<![\w`\[])`([\w.]+)(?:\(\))?`(?![\w`\]])', link, l)
    return outside(s, lambda t: '\n'.join(map(line, t.split('\n'))))

def relative(s):
    "Targets of the links and images of `s` that are files of the repository"
    return re.findall(r'\]\((?!\w+:|#|/)([^)\s]+)', FENCE.sub('', s))


# Pages -> MyST

class Names:
    "Where every exported name of the pages is defined"
    def __init__(self, nbs=NBS):
        self.nbs, self.mods, self.at, self.calls = Path(nbs), {}, defaultdict(list), {}
        for f in pages(nbs):
            syms = {k: d for c in cells(f) if exported(c) for k, d in defined(c)}
            if syms: self.mods[module(f)] = (f, syms)
            self.calls |= {(module(f), k): s for c in cells(f) if exported(c) for k, s in signatures(c)}
            for k in syms: self.at[k].append(module(f))

    def find(self, name, here=None):
        "The module and the name, if they are certain; `here` is the module of the asking page"
        if name.startswith(LIB+'.'):
            names = name[len(LIB)+1:].split('.')  # of a part, a page, a definition
            mod, sym = '.'.join(names[:2]), names[2] if len(names) > 2 else None
            return (mod, sym) if mod in self.mods and (not sym or sym in self.mods[mod][1]) else None
        if re.search(r'\.(jsonl?|py|md|csv|toml|ini|png|svg|gif|mp4|txt|safetensors|ipynb)$', name): return None  # a file
        top = name.split('.')[0]
        mods = self.at.get(top, [])
        if here in mods: return here, top
        return (mods[0], top) if len(mods) == 1 else None


def anchor(mod, sym):
    "The label of a definition; labels know no case, so the kind of name tells `GRIDWORLD` from `gridworld`"
    return f'{LIB}.{mod}.{sym}' + ('' if sym.islower() else '.constant' if sym.isupper() else '.class')

def markdown(s, names, f):
    "Quarto-flavoured markdown of page `f` -> MyST"
    def href(nm):
        if stem(f) == 'changelog' or not (hit := names.find(nm, module(f))): return None  # a changelog has old names
        mod, sym = hit
        if sym: return '#' + anchor(mod, sym)
        return posixpath.relpath(document(names.mods[mod][0], names.nbs) + '.ipynb', f.parent.relative_to(names.nbs).as_posix())
    def page(m): return f']({m[1]}{stem(m[2])}.ipynb'
    def file(m):  # of the repository: a folder has no page, and Sphinx would take .md for one
        if (f.parent/m[2]).is_dir(): return m[1]
        return f'[{m[1]}](path:{m[2]})' if m[2].endswith('.md') else m[0]
    def box(m): return ':::{admonition} Skip this on a first reading\n:class: skip\n' + re.sub(r'^> ?', '', m[1], flags=re.M).strip() + '\n:::\n'
    up = '../'*(len(f.relative_to(names.nbs).parts) - 1)
    def fix(t):
        t = re.sub(re.escape(f"]({CFG['doc_host']}{CFG['doc_baseurl']}/") + r'(\w+)\.html\)', rf']({up}\1.md)', t)  # a page that no notebook makes
        t = re.sub(r'(\]\([^)]*\))\{[^}]*\}', r'\1', t)
        t = re.sub(r'^:::\s*\{\.callout-(\w+)[^}]*\}', r':::{\1}', t, flags=re.M)
        t = re.sub(rf'^{re.escape(SKIP)}(.*(?:\n>.*)*)', box, t, flags=re.M)
        t = re.sub(r'\[([^\[\]]*)\]\((\.\.?/[\w./-]*)\)', file, t)
        return re.sub(r'\]\((?!\w+:)((?:[\w.-]+/)*)([\w-]+)\.ipynb', page, t)
    return named(outside(s, fix), href)


def alternative(c, after):
    "What a picture of cell `c` shows, in words: its option `fig-alt`, or the caption **Figure.** in the cell that follows"
    said = next((o for o in options(c) if o.startswith('fig-alt:')), '').partition(':')[2].strip(' "')
    drawn = ''.join(''.join(o.get('data', {}).get('image/svg+xml', '')) for o in c.get('outputs', []))
    if not said and (m := re.search(r'<title>(.*?)</title>', drawn, re.S)): said = html.unescape(m[1])
    below = source(after) if after and after['cell_type'] == 'markdown' else ''
    return said or (re.sub(r'[*`$]', '', below.partition('\n\n')[0]).removeprefix('Figure.').strip() if below.startswith('**Figure.**') else '')


def convert(f, names):
    "Page `f` as a MyST notebook"
    out, page = [], cells(f)
    for c, after in zip(page, [*page[1:], None]):
        alt = alternative(c, after)
        c = {k: v for k, v in c.items() if k != 'attachments'} | dict(source=source(c))
        if c['cell_type'] == 'markdown': c['source'] = markdown(c['source'], names, f)
        else:
            tags = [TAGS[o] for o in options(c) if o in TAGS]
            meta = {}
            if imports_only(c):  # folded: a reader of the site seldom needs them
                tags.append('hide-input')
                meta = dict(mystnb=dict(code_prompt_show='Show the imports', code_prompt_hide='Hide the imports'))
            if exported(c):
                tags.append('export')
                labels = '\n'.join(f'({anchor(module(f), k)})=' for k, _ in defined(c))
                if labels: out.append(dict(cell_type='markdown', id=f"at-{c['id']}", metadata={}, source=labels))
            for o in c.get('outputs', []):
                if md := ''.join(o.get('data', {}).get('text/markdown', '')):
                    md = re.sub(r'^---\n|^\[source\]\(.*\n', '', md, flags=re.M)  # what show_doc begins with
                    o['data']['text/markdown'] = markdown(md, names, f)
            wide = next((w for o in c.get('outputs', []) if (w := o.get('metadata', {}).get('image/png', {}).get('width'))), None)
            image = ({'alt': alt} if alt else {}) | ({'width': f'{wide}px'} if wide else {})  # drawn with two pixels a point
            if image: meta |= dict(mystnb=meta.get('mystnb', {}) | dict(image=image))
            c.update(source=code(c), metadata=meta | dict(tags=tags))
        out.append(c)
    return dict(cells=out, metadata=META | described(f), nbformat=4, nbformat_minor=5)


def described(f):
    "A page's description for search engines: the sentence below its title"
    lead = re.search(r'^> ?(.+)', source(next(c for c in cells(f) if c['cell_type'] == 'markdown')), re.M)
    return dict(myst=dict(html_meta=dict(description=lead[1]))) if lead else {}

def links(f, nbs):
    "A cell that only the site has, at a page's end: links to the notebook"
    rel = f.relative_to(nbs).as_posix()
    up = '../'*rel.count('/')
    at = f"{CFG['branch']}/{CFG['nbs_path']}/{rel}"
    links = {'Notebook': f'{up}notebooks/{rel}', 'Source': f"{CFG['git_url']}/blob/{at}",
             'Colab': f"https://colab.research.google.com/github/{CFG['user']}/{CFG['repo']}/blob/{at}",
             'Binder': f"https://mybinder.org/v2/gh/{CFG['user']}/{CFG['repo']}/{CFG['branch']}?labpath={CFG['nbs_path']}/{rel}"}
    row = ''.join(f'<a href="{u}"{" download" if k == "Notebook" else ""}>{k}</a>' for k, u in links.items())
    return [dict(cell_type='markdown', id='links', metadata={}, source=f'<p class="page-links">{row}</p>')]


def document(f, nbs): return (f.relative_to(nbs).parent/stem(f)).as_posix()  # what the site calls a page

def heading(f): return re.search(r'^# (.+)', source(next(c for c in cells(f) if c['cell_type'] == 'markdown')), re.M)[1]

def toctree(caption, docs): return f'```{{toctree}}\n:hidden:\n:caption: {caption}\n\n' + '\n'.join(docs) + '\n```'

def api(names):
    "A page listing every exported name"
    md = '# API\n\n> Every name the package exports, page by page.\n'
    for mod, (f, syms) in names.mods.items():
        md += f'\n## {LIB}.{mod}\n\n'
        for k, d in syms.items(): md += f'- [`{k}{names.calls.get((mod, k), "")}`](#{anchor(mod, k)})' + (f' – {d}' if d else '') + '\n'
    return md


def sidebar(docs, more):
    "Captions of the sidebar -> its documents (`more`: those that no notebook makes): what a visitor wants first, then the method, what was found, and the machinery"
    room = 'Engine room: {}'.format
    groups = {k: [] for k in ('Start', 'Method', 'Findings', 'Open experiments', 'How-to', 'Reference', *map(room, ROOMS))}
    groups['Start'] = ['Front page <self>', *(d for d in START if d in docs or d in more)]
    groups['Reference'] = [d for d in REFERENCE if d in docs or d in more]
    for doc, (f, _) in docs.items():
        if doc in ('index', *START, *REFERENCE): continue
        kind = ('Open experiments' if doc in OPEN else 'Findings' if part(f) == 'results' else 'How-to' if part(f) in ('recipes', 'tour') else
                room(part(f)) if part(f) in ('core', 'lab') or stem(f) in TOOLS or mechanics(f) else 'Method')
        groups[kind].append(f'{heading(f)} {MARK} <{doc}>' if mechanics(f) else doc)
    for k, first in (('Findings', FIRST), ('How-to', HOW_TO)): groups[k].sort(key=lambda d: first.index(d) if d in first else len(first))
    return {k: v for k, v in groups.items() if v}


def prepare(nbs, dst, theatre):
    "Write MyST pages for the notebooks under `nbs` to `dst`, and that of the theatre; document -> its page and cells"
    docs, names = {}, Names(nbs)
    for f in pages(nbs):
        doc = document(f, nbs)
        if doc in docs: raise ValueError(f'{docs[doc][0].name} and {f.name} would both become {doc}.html; rename one')
        docs[doc] = f, convert(f, names)
        if doc != 'index': docs[doc][1]['cells'] += links(f, nbs)
    if names.mods: (dst/'api.md').write_text(api(names), encoding='utf-8')
    if theatre: shutil.copyfile(THEATRE/'page.md', dst/'theatre.md')
    toc = '\n\n'.join(toctree(k, v) for k, v in sidebar(docs, [p.stem for p in dst.glob('*.md')]).items())
    docs['index'][1]['cells'].append(dict(cell_type='markdown', id='toctree', metadata={}, source=toc))
    if (nbs/'images').exists(): shutil.copytree(nbs/'images', dst/'images')
    for doc, (f, nb) in docs.items():
        (dst/doc).parent.mkdir(parents=True, exist_ok=True)
        (dst/f'{doc}.ipynb').write_text(json.dumps(nb), encoding='utf-8')
    return {doc: (f.relative_to(nbs), nb['cells']) for doc, (f, nb) in docs.items()}


# The finished site

class Links(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.ids, self.urls = set(), []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        d = dict(attrs)
        self.ids |= {d[k] for k in ('id', 'name') if d.get(k)}
        self.urls += [d[k] for k in ('href', 'src') if d.get(k)]


def dead_links(site):
    "Links inside the built `site` that lead nowhere"
    site = Path(site).resolve()
    docs = {f: Links(f.read_text(encoding='utf-8')) for f in sorted(site.rglob('*.html'))}
    bad = []
    for f, d in docs.items():
        for u in dict.fromkeys(d.urls):
            s = urlsplit(u)
            if s.scheme or s.netloc: continue
            t = (f.parent/unquote(s.path)).resolve() if s.path else f
            if t.is_dir(): t = t/'index.html'
            missing = not t.exists() or s.fragment and t in docs and unquote(s.fragment) not in docs[t].ids
            if missing: bad.append(f'{f.relative_to(site)}: dead link {u}')
    return bad


def theatre_networks(weights):
    "What the belief theatre needs of the networks in a folder; None if there are none"
    runs = {label: [str(f) for n in names if (f := weights/f'{n}.safetensors').exists()] for label, names in SHOWN.items()}
    if not any(runs.values()): return None
    sys.path.insert(0, str(ROOT))
    from ldm_nb.lab.theatre import theatre_data
    return theatre_data(runs)


def build(out, nbs=NBS):
    "Build the pages under `nbs` into `out`; the list of what is wrong (then `out` is left alone)"
    out, nbs = Path(out).resolve(), Path(nbs).resolve()
    if out.exists() and any(out.iterdir()) and not (out/'searchindex.js').exists():
        return [f'{out} holds something else than a site; move it away first']
    with tempfile.TemporaryDirectory() as d:
        d = Path(d).resolve()
        src, site = d/'nbs', d/'html'
        for f in nbs.parent.iterdir():  # what pages link to as ../data/...
            if f.name[0] not in '._' and f not in (nbs, out): (d/f.name).symlink_to(f)
        src.mkdir()
        acted = theatre_networks(nbs.parent/'data/weights')
        docs = prepare(nbs, src, theatre=bool(acted))
        opts = ['-b', 'html', '-W', '--keep-going', '-q', '-N', '-c', HERE, '-d', d/'trees']
        cmd = [sys.executable, '-m', 'sphinx', *opts, src, site]
        r = subprocess.run(cmd, capture_output=True, encoding='utf-8', errors='replace', cwd=d,
                           env=os.environ | dict(PYTHONWARNINGS='ignore', PYTHONUTF8='1'))
        if r.returncode:
            def page(m):
                f, cs = docs[m[1]]
                if not m[2]: return str(f)
                return f"{f} cell {cs[int(m[2])//10_000 - 1]['id'].removeprefix('at-')}"  # how MyST-NB counts lines
            msg = re.sub(rf'{src}/([\w/-]+)\.ipynb(?::(\d+))?', page, r.stderr).replace(f'{src}/', '')
            return [l for l in msg.splitlines() if l.strip()] or [r.stdout]
        if acted:
            shutil.copytree(THEATRE, site/'theatre', ignore=shutil.ignore_patterns('*.py', '*.md', '__pycache__'))
            (site/'theatre/networks.js').write_text(f'const [NETWORKS, ROBOTS] = {json.dumps(acted, ensure_ascii=False)};\n', encoding='utf-8')
        for f in pages(nbs):  # as they are in the repository, to download
            (page := site/'notebooks'/f.relative_to(nbs)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(f, page)
        if bad := dead_links(site): return bad
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(site, out, ignore=shutil.ignore_patterns('.buildinfo', 'objects.inv'))
    return []


if __name__ == '__main__':
    ap = argparse.ArgumentParser(description='Build the site from the pages.')
    ap.add_argument('--out', default=ROOT/CFG['doc_path'], help='where the site goes (default: _docs)')
    args = ap.parse_args()
    if bad := build(args.out): sys.exit('\n'.join(['The site was not built:', *bad]))
    print(f'{args.out}/index.html')
