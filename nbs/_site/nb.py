#!/usr/bin/env python
"""Edit notebooks from a terminal: an .ipynb as one text file of cells, and back.

    nb.py show nbs/core/000_seeds.ipynb > seeds.txt    # each cell under `# %% id`, markdown under `# %% [markdown] id`
    nb.py write nbs/core/000_seeds.ipynb < seeds.txt   # ids keep a cell and, where its source is unchanged, its outputs
    nb.py edit nbs/core/000_seeds.ipynb                # both, around $EDITOR
    nb.py run nbs/*/*.ipynb                            # run what nbdev_test runs, save the outputs
    git config diff.ipynb.textconv 'nbs/_site/nb.py show'  # git diff and log -p read as text
"""
import base64, io, json, os, re, subprocess, sys, tempfile, uuid
from pathlib import Path

HEAD = re.compile(r'^# %%(?: \[(markdown|raw)\])?(?: ([\w-]+))?$')
META = dict(kernelspec=dict(display_name='python3', language='python', name='python3'))
NEW = dict(cells=[], metadata=META, nbformat=4, nbformat_minor=5)


def read(p): return json.loads(Path(p).read_text(encoding='utf-8'))

def save(nb, p):
    "In nbdev's own layout, so that nbdev_clean leaves the file alone"
    Path(p).write_text(json.dumps(nb, sort_keys=True, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')

def show(nb):
    out = []
    for c in nb['cells']:
        kind = '' if c['cell_type'] == 'code' else f"[{c['cell_type']}] "
        src = ''.join(c['source'])
        if re.search(HEAD.pattern, src, re.M): raise ValueError(f"cell {c['id']} has a `# %%` line of its own")
        out.append(f"# %% {kind}{c['id']}\n{src}")
    return '\n\n'.join(out) + '\n'

def write(txt, nb):
    "`nb` with the cells of `txt`"
    old, cells, seen = {c['id']: c for c in nb['cells']}, [], set()
    parts = re.split(r'^(# %%.*)$', txt, flags=re.M)
    if parts[0].strip(): raise ValueError('text before the first `# %%` line')
    for head, src in zip(parts[1::2], parts[2::2]):
        m = HEAD.match(head)
        if not m: raise ValueError(f'not a cell header: {head}')
        kind, cid, src = m[1] or 'code', m[2] or uuid.uuid4().hex[:8], src.strip('\n')
        if cid in seen: raise ValueError(f'cell id twice: {cid}')
        seen.add(cid)
        was = old.get(cid)
        same = was and was['cell_type'] == kind and ''.join(was['source']) == src
        meta = was['metadata'] if was else {}
        c = was if same else dict(cell_type=kind, id=cid, metadata=meta, source=src.splitlines(True))
        if kind == 'code' and not same: c.update(execution_count=None, outputs=[])
        cells.append(c)
    return {**nb, 'cells': cells}

def edit(p):
    nb = read(p)
    with tempfile.NamedTemporaryFile('w+', suffix='.py', delete=False, encoding='utf-8') as f: f.write(show(nb))
    subprocess.run([*os.environ.get('EDITOR', 'vi').split(), f.name], check=True)
    save(write(Path(f.name).read_text(encoding='utf-8'), nb), p)

def smaller(png):
    "The picture with a palette of 64 colours, 256 for photographs: a third of the bytes, and lines and bands look the same"
    from PIL import Image
    im, buf = Image.open(io.BytesIO(base64.b64decode(png))).convert('RGB'), io.BytesIO()
    keeps = Image.Quantize.FASTOCTREE if im.getcolors(20_000) else Image.Quantize.MEDIANCUT # the colours of lines
    im.quantize(64 if im.getcolors(20_000) else 256, method=keeps, dither=Image.Dither.NONE).save(buf, 'PNG', optimize=True)
    return min(png, base64.b64encode(buf.getvalue()).decode(), key=len)

def run(p):
    "Cells that nbdev_test skips keep the outputs they have"
    sys.path.insert(0, str(Path(__file__).parents[2]/'tests'))
    from test_notebooks import Notebook
    from execnb.nbio import read_nb, write_nb
    from execnb.shell import CaptureShell
    from fastcore.xtras import working_directory
    from nbdev.clean import clean_nb
    ok, nb, k = {c.id for c in Notebook(p).cells}, read_nb(p), CaptureShell(p, mpl_format='retina')
    for c in nb.cells:
        if c.id in ok: c.outputs = []
    with working_directory(p.parent): k.run_all(nb, exc_stop=True, preproc=lambda c: c.id not in ok)
    for c in nb.cells:
        if c.cell_type == 'code':  # less progress bars and warnings
            c.outputs = [o for o in c.outputs if o.get('name') != 'stderr']
            for o in c.outputs:
                if 'image/png' in o.get('data', {}): o['data']['image/png'] = smaller(o['data']['image/png'])
    clean_nb(nb)
    write_nb(nb, p)

if __name__ == '__main__':
    cmd, *paths = sys.argv[1:] or ['help']
    for s in (sys.stdin, sys.stdout): s.reconfigure(encoding='utf-8')
    if cmd not in ('show', 'write', 'edit', 'run') or not paths: sys.exit(__doc__)
    for p in [Path(p).resolve() for p in paths]:
        if cmd == 'show': sys.stdout.write(show(read(p)))
        elif cmd == 'write': save(write(sys.stdin.read(), read(p) if p.exists() else NEW), p)
        elif cmd == 'edit': edit(p)
        else: run(p)
