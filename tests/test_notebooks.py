"""Every code cell of every notebook is a test.

Cells run in order in one shell a notebook, under the same rules as `nbdev_test`: `#| eval: false` and the flags in
`tst_flags` (settings.ini) are left out. `NB_FLAGS="slow"`, which `pytest --slow` sets, runs a flag's cells after all.
An `#| export` cell is compiled as the lines of `ldm_nb` it exports to, so `--cov=ldm_nb` counts what pages exercise.
"""
import contextlib, linecache, os, re, sys, traceback
from pathlib import Path

import pytest
from execnb.shell import CaptureShell
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.frontmatter import FrontmatterProc
from nbdev.process import NBProcessor

os.chdir(Path(__file__).parents[1])  # where settings.ini is
cfg = get_config()
SKIP = set(cfg.tst_flags.split()) - set(os.environ.get('NB_FLAGS', '').split())


def runs(cell):
    "Does `nbdev_test` run this cell?"
    code = re.sub(r'^\s*#.*$', '', cell.source, flags=re.M).strip()
    if cell.cell_type != 'code' or not code or 'nbdev_export(' in code: return False
    d = getattr(cell, 'directives_', {}) or {}
    ev = d.get('eval:', d.get('eval', ''))
    if (ev if isinstance(ev, str) else ' '.join(ev)).lower() == 'false': return False
    return not SKIP & set(d)


def registries():
    "Tables of worlds and methods by name, which pages may add to"
    from ldm_nb.lab.entries import METHODS
    from ldm_nb.worlds.registry import DESCRIPTIONS, WORLDS
    return WORLDS, DESCRIPTIONS, METHODS

class Notebook:
    def __init__(self, path):
        self.path, self.name = Path(path), str(Path(path).relative_to(cfg.nbs_path))
        self.nb = NBProcessor(path, procs=FrontmatterProc, process=True).nb
        off = str(getattr(self.nb, 'frontmatter_', {}).get('skip_exec', False)).lower() == 'true'
        self.cells = [] if off else [c for c in self.nb.cells if runs(c)]
        self.done, self.failed, self.shell = 0, None, None
        self.before = [] # names that worlds and methods had before the page

    @contextlib.contextmanager
    def home(self):
        old = os.getcwd()
        os.chdir(self.path.parent)
        try: yield
        finally: os.chdir(old)

    def where(self, cell):
        "The exported file and first line of `cell`, or a name for the cell itself"
        d, all_d = cell.directives_ or {}, [getattr(c, 'directives_', None) or {} for c in self.nb.cells]
        dflt = [o['default_exp'] for o in all_d if 'default_exp' in o]
        if kind := {'export', 'exporti', 'exports'} & set(d):
            mod = ''.join(d[kind.pop()]) or ''.join(*dflt[:1])  # `#| export` or `#| export other.module`
            f = cfg.lib_path/(mod.replace('.', '/') + '.py')
            tag = re.compile(rf'^# %% .*{re.escape(self.path.name)} #{re.escape(cell.id)}$')
            for i, l in enumerate(f.read_text().splitlines() if f.exists() else [], 1):
                if tag.match(l): return str(f), i
        return f'{self.name}[{cell.id}]', 0

    def run(self, cell):
        if self.shell is None:
            self.shell, self.before = CaptureShell(self.path), [(r, dict(r)) for r in registries()]
            self.shell.compile.get_code_name = lambda raw, code, n: self.fname
        self.fname, skip = self.where(cell)
        self.shell._cell_idx = cell.idx_
        with self.home(): self.shell.run('#\n'*skip + cell.source)
        if plt := sys.modules.get('matplotlib.pyplot'): plt.close('all')  # as a notebook's backend does
        if skip: linecache.cache.pop(self.fname, None)  # the padded copy; the file has these lines
        if self.shell.exc: self.failed = cell
        self.done += 1
        if self.done == len(self.cells): self.forget()

    def forget(self):
        "What the page registered and its variables are gone for the tests that follow in this process"
        for now, then in self.before: now.clear(); now.update(then)
        if self.failed: return
        for k in [k for k in self.shell.user_ns if not re.fullmatch('__.*__', k)]: del self.shell.user_ns[k]
        self.shell = None

    def test(self, i):
        while self.done <= i and not self.failed: self.run(self.cells[self.done])
        if not self.failed or i < self.done - 1: return
        bad = self.failed
        if bad is not self.cells[i]: pytest.skip(f'cell {bad.idx_} ({bad.id}) of {self.name} failed')
        te = traceback.TracebackException.from_exception(self.shell.exc)
        te.stack = traceback.StackSummary.from_list([f for f in te.stack if '/IPython/' not in f.filename])
        src = '\n'.join(f'{n:4} {l}' for n, l in enumerate(self.cells[i].source.splitlines(), 1))
        pytest.fail(f'{self.path} cell {bad.idx_} (id {bad.id})\n\n{src}\n\n{"".join(te.format())}', pytrace=False)


NBS = {p: Notebook(p) for p in sorted(nbglob(as_path=True))}
CASES = [pytest.param(p, i, id=f'{nb.name}-{c.idx_:02}-{c.id}', marks=pytest.mark.xdist_group(nb.name))
         for p, nb in NBS.items() for i, c in enumerate(nb.cells)]

@pytest.mark.parametrize('path,i', CASES)
def test_cell(path, i): NBS[path].test(i)
