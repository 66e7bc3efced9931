#!/usr/bin/env python
"Write README.md from nbs/index.ipynb: `python nbs/_site/readme.py`"
import posixpath, re
from build import CFG, NBS, ROOT, Names, cells, code, named, options, outside, source

NOTE = '<!-- Made from nbs/index.ipynb by nbs/_site/readme.py. Edit that page, not this file. -->'


def markdown(s, names):
    "Links of the index as links of the README"
    def href(nm):
        hit = names.find(nm)
        return hit and names.mods[hit[0]][0].relative_to(names.nbs).as_posix()
    def fix(t):
        t = re.sub(r'(\]\([^)]*\))\{[^}]*\}', r'\1', t)
        return re.sub(r'\]\((?!\w+:|#|/)([^)\s]+)', lambda m: f']({posixpath.normpath("nbs/" + m[1])}', t)
    return outside(named(s, href), fix)

def output(o):
    "An output as text; pictures stay out (the index shows files of data/ instead)"
    d = o.get('data', {})
    if any(k.startswith('image/') for k in d): return ''
    if md := ''.join(d.get('text/markdown', '')): return md
    t = ''.join(o.get('text', '') or d.get('text/plain', '')).rstrip()
    return t and '\n'.join('    ' + l for l in t.splitlines())

def readme(nbs=NBS):
    names, md = Names(nbs), []
    for c in cells(nbs/'index.ipynb'):
        if c['cell_type'] == 'markdown': md.append(markdown(source(c).strip(), names))
        else:
            opts = options(c)
            if code(c) and not {'echo: false', 'hide_input'} & set(opts): md.append(f'```python\n{code(c)}\n```')
            if not {'output: false', 'hide_output'} & set(opts): md += map(output, c.get('outputs', []))
    title, _, rest = md[0].partition('\n')
    lead = re.sub(r'^> ?', '', rest.strip(), flags=re.M)
    return '\n\n'.join(s for s in [title, NOTE, lead, *md[1:]] if s) + '\n'


if __name__ == '__main__': (ROOT/'README.md').write_text(readme(), encoding='utf-8')
